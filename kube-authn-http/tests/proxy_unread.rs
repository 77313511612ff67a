//! Callers that read nothing: what is held for them ends with their login, and after a while by itself.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use kube_authn_core::{ClusterDetails, CredentialScope, LoginHandle, LoginId};
use kube_authn_http::{Callers, ProxyState};
use support::{
    ByName, Ca, Proxy, Strategy, access, cluster, eventually, http2_server, listen, plain, read_request,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Answers that the API server is sending now.
#[derive(Clone, Default)]
struct Sending(Arc<AtomicUsize>);

struct OneAnswer(Sending);

impl Sending {
    fn now(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn begin(&self) -> OneAnswer {
        self.0.fetch_add(1, Ordering::SeqCst);
        OneAnswer(self.clone())
    }
}

impl Drop for OneAnswer {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An API server whose answers never end: of HTTP/2 for what stays open, and one of HTTP/1.1.
async fn endless(sending: &Sending) -> Vec<ClusterDetails> {
    let ca = Ca::new();
    let http2 = http2_server(&ca, {
        let sending = sending.clone();
        move |_| {
            let answer = sending.begin();
            let pieces = futures_util::stream::repeat_with(move || {
                let _ = &answer;
                Ok(http_body::Frame::data(Bytes::from_static(&[b'x'; 16384])))
            });
            async move { Ok(Response::new(StreamBody::new(pieces).boxed_unsync())) }
        }
    })
    .await;
    let listener = listen().await;
    let http1 = listener.local_addr().expect("an address");
    let sending = sending.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sending = sending.clone();
            tokio::spawn(async move {
                read_request(&mut stream, &mut Vec::new()).await;
                let _answer = sending.begin();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let _ = stream.write_all(head.as_bytes()).await;
                let chunk = [b"4000\r\n".as_slice(), &[b'x'; 16384], b"\r\n"].concat();
                while stream.write_all(&chunk).await.is_ok() {}
            });
        }
    });
    vec![
        cluster("http2", &format!("https://127.0.0.1:{}", http2.port()), Some(&ca)),
        plain("http1", http1),
    ]
}

async fn ask_over_http1(proxy: &Proxy, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.http1).await.expect("a connection");
    let get = format!("GET {path} HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\r\n");
    stream.write_all(get.as_bytes()).await.expect("written");
    stream
}

/// A client that allows not a byte of a body (`SETTINGS_INITIAL_WINDOW_SIZE` 0).
async fn ask_over_http2_without_a_window(proxy: &Proxy, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.http2).await.expect("a connection");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0".to_vec();
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "p"),
        ("authorization", "Bearer alice"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    bytes.extend([0, 0, u8::try_from(block.len()).expect("short"), 1, 5, 0, 0, 0, 1]);
    bytes.extend(block);
    stream.write_all(&bytes).await.expect("written");
    stream
}

/// Waits until the API server sends, and until nobody takes anything any more.
async fn stalled(sending: &Sending, count: usize) {
    eventually(|| sending.now() == count, "the answers begin").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(sending.now(), count);
}

async fn closed(mut stream: TcpStream) {
    let read = async {
        let mut bytes = vec![0; 65536];
        while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    };
    let begin = Instant::now();
    tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .unwrap_or_else(|_| panic!("still open after {:?}", begin.elapsed()));
}

fn paths() -> [&'static str; 4] {
    [
        "/api/kubernetes/clusters/http2/proxy/api/v1/pods?watch=1",
        "/api/kubernetes/clusters/http2/proxy/api/v1/pods",
        "/api/kubernetes/clusters/http1/proxy/api/v1/pods?watch=1",
        "/api/kubernetes/clusters/http1/proxy/api/v1/pods",
    ]
}

#[tokio::test]
async fn logout_never_waits_until_the_caller_reads() {
    let sending = Sending::default();
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let mut strategy = Strategy::new("test", CredentialScope::User);
    strategy.login = Some(login.clone());
    let proxy = Proxy::with(access(endless(&sending).await, strategy)).await;
    let mut over_http1 = Vec::new();
    let mut over_http2 = Vec::new();
    for path in paths() {
        over_http1.push(ask_over_http1(&proxy, path).await);
        over_http2.push(ask_over_http2_without_a_window(&proxy, path).await);
    }
    stalled(&sending, 8).await;

    login.end();

    let begin = Instant::now();
    eventually(|| sending.now() == 0, "the API server is let go").await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    for stream in over_http1 {
        closed(stream).await;
    }
}

#[tokio::test]
async fn answer_that_nobody_reads_is_given_up_after_a_while() {
    let sending = Sending::default();
    let strategy = Strategy::new("test", CredentialScope::User);
    let access = access(endless(&sending).await, strategy);
    let state = ProxyState::new(access, Callers::new().with(ByName)).with_patience(Duration::from_secs(2));
    let proxy = Proxy::of(state).await;
    // Somebody who reads slowly is not left.
    let mut slow = ask_over_http1(&proxy, paths()[0]).await;
    let mut open = Vec::new();
    for path in paths() {
        open.push(ask_over_http1(&proxy, path).await);
        open.push(ask_over_http2_without_a_window(&proxy, path).await);
    }
    stalled(&sending, 9).await;

    let mut bytes = vec![0; 1 << 20];
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        slow.read_exact(&mut bytes).await.expect("still open");
    }

    assert_eq!(sending.now(), 1);
    drop(open);
}

#[tokio::test]
async fn logout_never_waits_until_the_reader_of_a_tunnel_reads() {
    let listener = listen().await;
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        read_request(&mut stream, &mut Vec::new()).await;
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("written");
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    });
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let mut strategy = Strategy::new("test", CredentialScope::User);
    strategy.login = Some(login.clone());
    let proxy = Proxy::with(access(vec![plain("a", address)], strategy)).await;
    let mut stream = TcpStream::connect(proxy.http1).await.expect("a connection");
    let ask = "POST /api/kubernetes/proxy/exec HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\
        Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.expect("written");
    eventually(|| proxy.state.open_tunnels() == 1, "the tunnel opens").await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    login.end();

    eventually(|| proxy.state.open_tunnels() == 0, "the tunnel closes").await;
    closed(stream).await;
}
