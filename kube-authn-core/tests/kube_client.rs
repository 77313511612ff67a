//! `kube::Client` as somebody, against API servers on loopback.

#![cfg(feature = "client")]
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]

mod support;

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{AsyncBufReadExt, SinkExt, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{AttachParams, ListParams, LogParams, PostParams},
};
use kube_authn_core::{Error, ErrorKind, Lane, LoginHandle, LoginId, RequestAuth, Secret};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

const NO_PODS: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[]}"#;

async fn pods_for(good: &'static str) -> (Ca, Server) {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), move |request, _| async move {
        match request
            .headers()
            .get("authorization")
            .is_some_and(|line| line == good)
        {
            true => Ok(text(NO_PODS)),
            false => Ok(status(401)),
        }
    })
    .await;
    (ca, server)
}

#[tokio::test]
async fn client_is_the_user_over_shared_connections() {
    let (ca, server) = pods_for("Bearer user:default/alice").await;
    let strategy = Strategy::new(|request| Ok(bearer(request.principal.to_string())));
    let access = access(vec![cluster("a", &server, &ca)], strategy, Lane::Http2);

    let client = access.client(&alice(), "a").await.expect("a client");
    assert_eq!((client.default_namespace(), server.accepted()), ("default", 0));
    let pods: Api<Pod> = Api::namespaced(client, "team-a");
    pods.list(&ListParams::default()).await.expect("her pods");
    for number in 0..20 {
        let client = access
            .client(&user(&format!("u{number}")), "a")
            .await
            .expect("a client");
        let error = Api::<Pod>::default_namespaced(client)
            .list(&ListParams::default())
            .await
            .expect_err("refused");
        assert!(matches!(error, kube::Error::Api(status) if status.code == 401));
    }

    assert_eq!(server.accepted(), 1);
    assert!(server.seen()[0].target.contains("/api/v1/namespaces/team-a/pods"));
}

#[tokio::test]
async fn missing_login_comes_typed_and_before_the_first_call() {
    let (ca, server) = pods_for("").await;
    let strategy = Strategy::new(|request| match request.auth.token("test") {
        Some(_) => Ok(bearer("offered")),
        None => Err(Error::new(ErrorKind::LoginRequired, "offer a token")),
    });
    let access = access(vec![cluster("a", &server, &ca)], strategy, Lane::Http2);

    let error = access
        .client(&alice(), "a")
        .await
        .map(drop)
        .expect_err("no token");
    assert_eq!((error.kind(), server.accepted()), (ErrorKind::LoginRequired, 0));
    assert_eq!(
        access
            .client(&alice(), "b")
            .await
            .map(drop)
            .expect_err("unknown")
            .kind(),
        ErrorKind::ClusterUnknown
    );

    let offering = RequestAuth::new().with_token("test", Secret::new("t"));
    let request = access
        .request(&alice(), "a")
        .expect("a request")
        .with_auth(offering);
    access.client_for(request).await.expect("a client");
}

#[tokio::test]
async fn client_outlives_a_failed_call_and_tells_our_error() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), |_, _| async { Ok(text(NO_PODS)) }).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let strategy = Strategy::new({
        let calls = calls.clone();
        move |_| match calls.fetch_add(1, Ordering::SeqCst) {
            1 => Err(Error::new(ErrorKind::LoginRequired, "log in")),
            _ => Ok(bearer("t")),
        }
    })
    .scope(kube_authn_core::CredentialScope::Request);
    let access = access(vec![cluster("a", &server, &ca)], strategy, Lane::Http2);
    let pods: Api<Pod> = Api::default_namespaced(access.client(&alice(), "a").await.expect("a client"));

    let error = pods
        .list(&ListParams::default())
        .await
        .expect_err("the login is gone");
    let ours = Error::find(&error).expect("ours is inside");
    assert_eq!(
        (ours.kind(), ours.cluster()),
        (ErrorKind::LoginRequired, Some("a"))
    );

    pods.list(&ListParams::default()).await.expect("logged in again");
}

#[tokio::test]
async fn write_of_bytes_is_replayed_with_the_new_credential() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), |request, _| async move {
        let good = request.headers()["authorization"] == "Bearer token-1";
        let body = request
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        Ok(if good { text(body) } else { status(401) })
    })
    .await;
    let fetched = AtomicUsize::new(0);
    let strategy = Strategy::new(move |_| {
        Ok(bearer(format!(
            "token-{}",
            fetched.fetch_add(1, Ordering::SeqCst)
        )))
    });
    let access = access(vec![cluster("a", &server, &ca)], strategy, Lane::Http2);
    let maps: Api<ConfigMap> = Api::default_namespaced(access.client(&alice(), "a").await.expect("a client"));
    let map = ConfigMap {
        immutable: Some(true),
        ..ConfigMap::default()
    };

    let created = maps.create(&PostParams::default(), &map).await.expect("created");

    assert_eq!((created, server.seen().len()), (map, 2));
}

#[tokio::test]
async fn busy_api_server_is_asked_again() {
    let ca = Ca::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let server = Server::start(ca.server(&[H2, H1]), move |_, _| {
        let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        async move { Ok(if first { status(503) } else { text(NO_PODS) }) }
    })
    .await;
    let access = access(
        vec![cluster("a", &server, &ca)],
        Strategy::new(|_| Ok(bearer("t"))),
        Lane::Http2,
    );
    let pods: Api<Pod> = Api::default_namespaced(access.client(&alice(), "a").await.expect("a client"));

    pods.list(&ListParams::default()).await.expect("a list");

    assert_eq!(server.seen().len(), 2);
}

/// An exec that says on its standard output (channel 1) what comes in on its standard input (channel 0), as
/// `v4.channel.k8s.io` numbers them; everything else is a watch or a log that never ends.
async fn kubelet(request: http::Request<Incoming>, _: Peer) -> Result<Answer, Broken> {
    let Some(key) = request.headers().get("sec-websocket-key") else {
        let (answer, more) = endless();
        tokio::spawn(async move { more.closed().await });
        return Ok(answer);
    };
    let mut answer = status(101);
    for (name, value) in [
        ("connection", "Upgrade".to_owned()),
        ("upgrade", "websocket".to_owned()),
        ("sec-websocket-accept", derive_accept_key(key.as_bytes())),
        ("sec-websocket-protocol", "v4.channel.k8s.io".to_owned()),
    ] {
        answer
            .headers_mut()
            .insert(name, value.parse().expect("a header"));
    }
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            let mut bytes = message.into_data().to_vec();
            if let Some(channel) = bytes.first_mut() {
                *channel = 1;
                let _ = socket.send(Message::binary(bytes)).await;
            }
        }
    });
    Ok(answer)
}

#[tokio::test]
async fn logout_never_leaves_an_exec_or_a_log_of_a_client_open() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), kubelet).await;
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let credential = bearer("t").with_login(login.clone());
    let access = access(
        vec![cluster("a", &server, &ca)],
        Strategy::new(move |_| Ok(credential.clone())),
        Lane::Http2,
    );
    let pods: Api<Pod> = Api::default_namespaced(access.client(&alice(), "a").await.expect("a client"));
    let process = AttachParams::default().stdin(true).stdout(true).stderr(false);
    let mut exec = pods.exec("p", ["cat"], &process).await.expect("an exec");
    let (mut stdin, mut stdout) = (exec.stdin().expect("stdin"), exec.stdout().expect("stdout"));
    stdin.write_all(b"hello").await.expect("written");
    let mut echo = [0; 5];
    stdout.read_exact(&mut echo).await.expect("read");
    let follow = LogParams {
        follow: true,
        ..LogParams::default()
    };
    let mut log = pods.log_stream("p", &follow).await.expect("a log").lines();
    log.try_next().await.expect("a line");

    login.end();
    let ended = async { (exec.join().await, log.try_next().await) };
    let (exec, log) = tokio::time::timeout(Duration::from_secs(1), ended)
        .await
        .expect("within a second");

    assert_eq!(&echo, b"hello");
    exec.expect_err("cut, not done");
    let cut = log.expect_err("cut, not done");
    let kind = cut
        .get_ref()
        .and_then(|error| Error::find(error))
        .map(Error::kind);
    assert_eq!(
        kind,
        Some(ErrorKind::LoginRequired),
        "{:?}",
        StdError::source(&cut)
    );
    eventually(|| server.seen().len() == 2, "one exec, one log").await;
}

#[tokio::test]
async fn client_of_kube_keeps_to_the_clusters_tls_name() {
    let ca = Ca::new();
    let tls = ca.server_for(&["api.cluster.invalid"], &[H2, H1], false);
    let server = Server::start(Some(Arc::new(tls)), |_, _| async { Ok(text(NO_PODS)) }).await;
    let cluster = kube_authn_core::ClusterDetails::builder("a", format!("https://{}", server.address))
        .auth_provider("test")
        .ca_pem(ca.pem())
        .tls_server_name("api.cluster.invalid")
        .build()
        .expect("a cluster");
    let access = access(
        vec![cluster],
        Strategy::new(|_| Ok(bearer("token"))),
        Lane::default(),
    );

    let client = access.client(&alice(), "a").await.expect("a client");
    let pods: Api<Pod> = Api::namespaced(client, "team-a");

    assert!(
        pods.list(&ListParams::default())
            .await
            .expect("a list")
            .items
            .is_empty()
    );
}
