//! What the proxy writes into the log. In a binary of its own, one test at a time: a place in the code that logs asks only
//! once whether anybody listens, and tests that do not listen would answer for those that do.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use std::sync::{Arc, Mutex};

use kube_authn_core::CredentialScope;
use support::{OK, Proxy, Recorder, Strategy, access, plain, read_request};
use tokio::io::AsyncWriteExt;

static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn client_that_goes_away_early_is_logged() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let log = Log::default();
    let _guard = log.collect();
    let silent = support::listen().await;
    let proxy = Proxy::start(vec![plain("a", silent.local_addr().expect("an address"))]).await;
    let mut stream = tokio::net::TcpStream::connect(proxy.http1)
        .await
        .expect("a connection");
    let get = "GET /api/kubernetes/proxy/api HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, get.as_bytes())
        .await
        .expect("written");
    let _accepted = silent.accept().await.expect("a connection");

    drop(stream);

    support::eventually(|| log.text().contains("status=499"), "a line in the log").await;
    assert!(log.text().contains("caller=user:default/alice"), "{}", log.text());
}

#[tokio::test]
async fn request_that_gets_no_answer_never_leaves_the_log_without_its_last_audit_id() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let log = Log::default();
    let _guard = log.collect();
    let silent = support::listen().await;
    let mut strategy = Strategy::new("test", CredentialScope::User);
    strategy.renewable = true;
    let address = silent.local_addr().expect("an address");
    let proxy = Proxy::with(access(vec![plain("a", address)], strategy)).await;
    let get = "GET /api/kubernetes/proxy/api HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\r\n";
    let audit_id = |head: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix("audit-id: "));
        format!("audit_id=\"{}\"", line.expect("an ID"))
    };
    let logged = |status: &str, id: &str| {
        let text = log.text();
        let mut lines = text.lines().filter(|line| line.contains("kube_authn::audit"));
        lines.any(|line| line.contains(status) && line.contains(id))
    };

    let mut gone = tokio::net::TcpStream::connect(proxy.http1)
        .await
        .expect("a connection");
    gone.write_all(get.as_bytes()).await.expect("written");
    let (mut upstream, _) = silent.accept().await.expect("a connection");
    let head = read_request(&mut upstream, &mut Vec::new())
        .await
        .expect("a head");
    drop(gone);
    let id = audit_id(&head);
    support::eventually(|| logged("status=499", &id), "the ID of a caller who went away").await;

    // The API server refuses the first attempt and closes on the second.
    let answers = tokio::spawn(async move { proxy.get("/api/kubernetes/proxy/api", "").await });
    let (mut upstream, _) = silent.accept().await.expect("a connection");
    let first = read_request(&mut upstream, &mut Vec::new())
        .await
        .expect("a head");
    let refusal =
        "HTTP/1.1 401 Unauthorized\r\nAudit-Id: first\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    upstream.write_all(refusal.as_bytes()).await.expect("written");
    drop(upstream);
    let (mut upstream, _) = silent.accept().await.expect("a connection");
    let second = read_request(&mut upstream, &mut Vec::new())
        .await
        .expect("a head");
    drop(upstream);
    let answer = answers.await.expect("an answer");
    assert_eq!(support::status(&answer), 502, "{answer}");
    assert_ne!(audit_id(&first), audit_id(&second));
    let id = audit_id(&second);
    assert!(logged("status=502", &id), "{id} is not in {}", log.text());
}

#[tokio::test]
async fn every_request_is_logged_with_caller_cluster_and_audit_id_and_without_secrets() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let log = Log::default();
    let _guard = log.collect();
    let upstream = Recorder::start(OK).await;
    let strategy = Strategy::new("test", CredentialScope::Application);
    let proxy = Proxy::with(access(vec![plain("a", upstream.address)], strategy)).await;

    proxy
        .get(
            "/api/kubernetes/clusters/a/proxy/api/v1/pods?token=canary-1",
            "Cookie: canary-2\r\nBackstage-Kubernetes-Authorization-google: canary-3\r\n",
        )
        .await;
    proxy
        .get(
            "/api/kubernetes/proxy/x",
            "Backstage-Kubernetes-Authorization: Bearer canary-4\r\n",
        )
        .await;
    proxy.get("/api/kubernetes/clusters/b/proxy/api", "").await;

    let text = log.text();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("kube_authn::audit"))
        .collect();
    assert_eq!(lines.len(), 3, "{text}");
    for part in [
        "request_id=",
        "caller=user:default/alice",
        "cluster=a",
        "method=GET",
        "path=/api/kubernetes/clusters/a/proxy/api/v1/pods",
        "status=200",
        "duration_us=",
        "audit_id=\"audit\"",
    ] {
        assert!(lines[0].contains(part), "{part} is not in {}", lines[0]);
    }
    assert!(
        lines[2].contains("status=404") && !lines[2].contains("cluster="),
        "{}",
        lines[2]
    );
    for canary in ["canary-1", "canary-2", "canary-3", "canary-4", "cluster-token"] {
        let hit = text
            .lines()
            .find(|line| line.contains(canary) && line.contains("kube_authn"));
        assert_eq!(hit, None);
    }
}

#[tokio::test]
async fn path_of_a_stranger_never_fills_the_log_or_the_answer() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let log = Log::default();
    let _guard = log.collect();
    let proxy = Proxy::start(vec![]).await;
    // A cut in the middle of a character would be a panic.
    let path = format!(
        "/api/kubernetes/proxy/{}{}",
        "a".repeat(1000),
        "\u{fc}".repeat(4000)
    );
    let shown = |text: &str| text.matches('a').count();

    let answer = proxy
        .raw(format!(
            "GET {path} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n"
        ))
        .await;

    assert_eq!(support::status(&answer), 401, "{answer}");
    let url = support::json(&answer)["request"]["url"]
        .as_str()
        .expect("a text")
        .to_owned();
    assert!(
        url.len() < 1100 && url.ends_with('…') && shown(&url) > 1000,
        "{url}"
    );
    let text = log.text();
    let audit = text
        .lines()
        .find(|line| line.contains("kube_authn::audit"))
        .expect("a line");
    assert!(audit.len() < 3000 && audit.contains("…"), "{audit}");
}

/// Collects what `tracing` writes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn collect(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
