//! How many streams one caller may hold open, and how each of them is given back.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use std::{net::SocketAddr, time::Duration};

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use kube_authn_core::{CredentialScope, LoginHandle, LoginId};
use kube_authn_http::{Callers, ProxyState};
use serde_json::json;
use support::{ByName, Proxy, Strategy, access, body, eventually, listen, plain, read_request, status};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An API server: exec becomes a tunnel that echoes, `refused` is no upgrade, `closes` gets no answer, a watch answers one
/// line and stays open (`ends`: does not), everything else is short.
async fn api_server() -> SocketAddr {
    let listener = listen().await;
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn serve(mut stream: TcpStream) {
    let mut rest = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut rest).await {
        let target = request.lines().next().unwrap_or_default().to_owned();
        let has = |word: &str| target.contains(word);
        let answer = match () {
            () if has("closes") => return,
            () if has("refused") => "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
            () if has("/exec") => {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
            }
            () if has("watch") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n",
            () => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        if has("ends") {
            let _ = stream.write_all(b"0\r\n\r\n").await;
        } else if !has("refused") && (has("/exec") || has("watch")) {
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            return;
        }
    }
}

async fn proxy(strategy: Strategy, streams: usize, tunnels: usize) -> Proxy {
    let access = access(vec![plain("a", api_server().await)], strategy);
    let state = ProxyState::new(access, Callers::new().with(ByName)).with_stream_limits(streams, tunnels);
    Proxy::of(state).await
}

async fn small(streams: usize, tunnels: usize) -> Proxy {
    proxy(Strategy::new("test", CredentialScope::User), streams, tunnels).await
}

/// The connection behind the head of its answer.
async fn ask(proxy: &Proxy, caller: &str, path: &str, lines: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(proxy.http1).await.expect("a connection");
    let request = format!(
        "GET /api/kubernetes/proxy{path} HTTP/1.1\r\nHost: portal\r\nAuthorization: Bearer {caller}\r\n{lines}\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_u8());
        head.push(read.await.expect("in time").expect("a head"));
    }
    (String::from_utf8(head).expect("ASCII"), stream)
}

async fn exec(proxy: &Proxy, caller: &str) -> (u16, TcpStream) {
    let (head, stream) = ask(proxy, caller, "/pods/p/exec", UPGRADE).await;
    (status(&head), stream)
}

async fn watch(proxy: &Proxy, caller: &str) -> (u16, TcpStream) {
    let (head, stream) = ask(proxy, caller, "/pods?watch=true", "").await;
    (status(&head), stream)
}

/// Until a stream of this kind may be opened again.
async fn given_back(proxy: &Proxy, path: &str, lines: &str, how: &str) -> TcpStream {
    for _ in 0..200 {
        let (head, stream) = ask(proxy, "alice", path, lines).await;
        if status(&head) != 429 {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never given back: {how}");
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

#[tokio::test]
async fn one_user_never_holds_more_streams_than_allowed_and_nobody_else_notices() {
    let proxy = small(3, 2).await;
    let tunnels = [exec(&proxy, "alice").await, exec(&proxy, "alice").await];
    let third = exec(&proxy, "alice").await.0;
    let (watched, _watch) = watch(&proxy, "alice").await;

    let (refused, _) = watch(&proxy, "alice").await;

    assert_eq!(tunnels.map(|(status, _)| status), [101, 101]);
    assert_eq!((third, watched, refused), (429, 200, 429));
    for _ in 0..20 {
        assert_eq!(status(&proxy.get("/api/kubernetes/proxy/api", "").await), 200);
    }
    assert_eq!(exec(&proxy, "bob").await.0, 101);
    assert_eq!(watch(&proxy, "bob").await.0, 200);
}

#[tokio::test]
async fn refusal_of_one_stream_too_many_reads_well_in_kubectl() {
    let proxy = small(1, 1).await;
    let _open = exec(&proxy, "alice").await;

    let watch = proxy
        .get("/api/kubernetes/clusters/a/proxy/pods?watch=1", "")
        .await;
    let (exec, mut rest) = ask(&proxy, "alice", "/pods/p/exec", UPGRADE).await;

    assert!(
        watch.starts_with("HTTP/1.1 429 ") && watch.contains("\r\nretry-after: 1\r\n"),
        "{watch}"
    );
    let text = "user:default/alice may have 1 watches, followed logs, and connections of exec, attach and port-forward open \
        at once, and has them: close some and try again";
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(body(&watch)).expect("JSON"),
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": text,
            "reason": "TooManyRequests", "code": 429,
            "details": { "causes": [{ "reason": "rate_limited", "message": text }] },
        })
    );
    assert_eq!(status(&exec), 429);
    // What the client sends into its tunnel must not be read as requests.
    assert!(exec.contains("\r\nconnection: close\r\n"), "{exec}");
    let mut text = String::new();
    rest.read_to_string(&mut text).await.expect("an end");
    assert!(
        text.contains("may have 1 connections of exec, attach and port-forward open at once"),
        "{text}"
    );
}

#[tokio::test]
async fn count_is_never_kept_by_a_stream_that_has_ended() {
    let proxy = small(1, 1).await;
    let watch = "/pods?watch=true";

    let (_, mut stream) = exec(&proxy, "alice").await;
    stream.shutdown().await.expect("ended");
    let stream = given_back(&proxy, watch, "", "a tunnel that its client ended").await;
    drop(stream);
    let stream = given_back(&proxy, "/pods/p/exec", UPGRADE, "a watch whose caller went away").await;
    drop(stream);
    given_back(
        &proxy,
        "/pods?watch=true&ends",
        "",
        "a tunnel whose caller went away",
    )
    .await;
    // The caller keeps its connection, and only the answer has ended.
    let kept = given_back(
        &proxy,
        "/pods?watch=true&ends",
        "",
        "a watch that the API server ended",
    )
    .await;
    given_back(&proxy, "/exec?refused", UPGRADE, "an answer that ended").await;
    given_back(&proxy, "/exec?closes", UPGRADE, "an upgrade that was refused").await;
    let (head, _) = ask(&proxy, "alice", "/pods?watch&closes", "").await;
    assert_eq!(status(&head), 502);
    let mut unanswered = TcpStream::connect(proxy.http1).await.expect("a connection");
    let get =
        "GET /api/kubernetes/proxy/pods?watch HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\r\n";
    unanswered.write_all(get.as_bytes()).await.expect("written");
    drop(unanswered);
    given_back(&proxy, watch, "", "a caller who went away before the answer").await;
    drop(kept);
}

#[tokio::test]
async fn count_is_never_kept_after_a_logout() {
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let mut strategy = Strategy::new("test", CredentialScope::User);
    strategy.login = Some(login.clone());
    let proxy = proxy(strategy, 2, 1).await;
    let (tunnel, _tunnel) = exec(&proxy, "alice").await;
    let (watched, _watch) = watch(&proxy, "alice").await;
    assert_eq!((tunnel, watched, exec(&proxy, "alice").await.0), (101, 200, 429));

    login.end();

    eventually(|| proxy.state.open_tunnels() == 0, "the tunnel closes").await;
    given_back(&proxy, "/pods/p/exec", UPGRADE, "a tunnel cut at logout").await;
}

#[tokio::test]
async fn streams_of_http2_count_like_all_others_and_are_given_back() {
    let proxy = small(2, 1).await;
    let mut sender = proxy.http2().await;
    let request = || {
        Request::get("http://portal/api/kubernetes/proxy/pods?watch=true")
            .header("authorization", "Bearer alice")
            .body(Empty::new().map_err(|never| match never {}).boxed_unsync())
            .expect("a request")
    };
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(sender.send_request(request()).await.expect("an answer"));
    }
    let refused = sender.send_request(request()).await.expect("an answer");

    drop(open.pop());

    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    given_back(
        &proxy,
        "/pods?watch=true",
        "",
        "a stream of HTTP/2 that was reset",
    )
    .await;
}
