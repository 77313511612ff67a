//! Exec, attach and port-forward: connections that leave HTTP, and those that only seem to.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use std::{net::SocketAddr, time::Duration};

use kube_authn_core::{CredentialScope, LoginHandle, LoginId};
use support::{
    ALICE, Ca, OK, Proxy, Recorder, Strategy, access, cluster, eventually, listen, plain, read_request,
    status,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An API server that answers the first request with these bytes, then echoes what comes in upper case; `bye` when the
/// client has ended.
async fn echo_server(answer: &'static str) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = listen().await;
    let address = listener.local_addr().expect("an address");
    let (seen, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut rest = Vec::new();
                let request = read_request(&mut stream, &mut rest).await.expect("a request");
                let _ = seen.send(request);
                stream.write_all(answer.as_bytes()).await.expect("written");
                let mut bytes = vec![0; 65536];
                loop {
                    match stream.read(&mut bytes).await {
                        Ok(0) => break,
                        Err(_) => return,
                        Ok(read) => {
                            let upper = bytes[..read].to_ascii_uppercase();
                            if stream.write_all(&upper).await.is_err() {
                                return;
                            }
                        }
                    }
                }
                let _ = seen.send("client ended".to_owned());
                let _ = stream.write_all(b"bye").await;
            });
        }
    });
    (address, receiver)
}

const SPDY: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io\r\nAudit-Id: audit\r\nSet-Cookie: a=b\r\n\r\n";
const WEBSOCKET: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";

async fn open(proxy: &Proxy, caller: &str, lines: &str) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.http1).await.expect("a connection");
    let request = format!(
        "POST /api/kubernetes/clusters/a/proxy/api/v1/namespaces/n/pods/p/exec?command=sh&stdin=true HTTP/1.1\r\n\
        Host: portal\r\nAuthorization: Bearer {caller}\r\nConnection: keep-alive, Upgrade\r\n{lines}\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    stream
}

const ASK_SPDY: &str =
    "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n";

async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let read = stream.read_u8();
        bytes.push(
            tokio::time::timeout(Duration::from_secs(5), read)
                .await
                .expect("in time")
                .expect("a head"),
        );
    }
    String::from_utf8(bytes).expect("ASCII")
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let _ = tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .expect("the proxy closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn spdy_upgrade_echoes_and_half_closes() {
    let (address, mut seen) = echo_server(SPDY).await;
    let proxy = Proxy::start(vec![plain("a", address)]).await;

    let mut stream = open(&proxy, "alice", ASK_SPDY).await;
    let head = head(&mut stream).await;
    stream.write_all(b"hello").await.expect("written");
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.expect("an echo");
    assert_eq!(proxy.state.open_tunnels(), 1);
    stream.shutdown().await.expect("half closed");
    let bye = rest(&mut stream).await;

    assert_eq!(status(&head), 101);
    for line in [
        "upgrade: SPDY/3.1",
        "x-stream-protocol-version: v4.channel.k8s.io",
        "audit-id: audit",
    ] {
        assert!(head.contains(line), "{head}");
    }
    assert!(!head.contains("set-cookie"), "{head}");
    assert!(!head.contains("content-security-policy"), "{head}");
    assert_eq!((&echo, bye.as_str()), (b"HELLO", "bye"));
    let request = seen.recv().await.expect("a request");
    assert!(request.starts_with("POST /api/v1/namespaces/n/pods/p/exec?command=sh&stdin=true HTTP/1.1\r\n"));
    assert!(
        request.contains(ALICE) && request.contains("upgrade: SPDY/3.1"),
        "{request}"
    );
    tokio::time::timeout(Duration::from_secs(5), proxy.state.tunnels_closed())
        .await
        .expect("no tunnel is left");
}

#[tokio::test]
async fn websocket_upgrade_echoes_a_mebibyte_over_tls() {
    let ca = Ca::new();
    let listener = listen().await;
    let address = listener.local_addr().expect("an address");
    let tls = tokio_rustls::TlsAcceptor::from(ca.server(&[b"http/1.1"]));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = tls.accept(stream).await.expect("TLS");
        read_request(&mut stream, &mut Vec::new())
            .await
            .expect("a request");
        stream.write_all(WEBSOCKET.as_bytes()).await.expect("written");
        let (mut reader, mut writer) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let server = cluster("a", &format!("https://127.0.0.1:{}", address.port()), Some(&ca));
    let proxy = Proxy::start(vec![server]).await;
    let lines = "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n";

    let mut stream = open(&proxy, "alice", lines).await;
    let head = head(&mut stream).await;
    let sent: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let (written, read) = tokio::join!(
        async {
            writer.write_all(&sent).await.expect("written");
            writer.shutdown().await
        },
        reader.read_to_end(&mut received)
    );

    assert!(
        head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "{head}"
    );
    assert!(written.is_ok() && read.is_ok());
    assert!(received == sent);
}

#[tokio::test]
async fn a08_refused_upgrade_never_leaves_a_tunnel() {
    let (address, mut seen) = echo_server(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nnoHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret",
    )
    .await;
    let proxy = Proxy::start(vec![plain("a", address)]).await;

    let mut stream = open(&proxy, "alice", ASK_SPDY).await;
    // The client believes in the upgrade and sends a request with somebody else's name down the tunnel.
    let inside = "GET /api/v1/secrets HTTP/1.1\r\nHost: a\r\nImpersonate-User: root\r\n\r\n";
    stream.write_all(inside.as_bytes()).await.expect("written");
    let answer = rest(&mut stream).await;

    assert_eq!(status(&answer), 400);
    assert!(
        answer.contains("connection: close") && answer.ends_with("no"),
        "{answer}"
    );
    assert!(seen.recv().await.expect("a request").contains("/exec?"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!seen.try_recv().is_ok_and(|more| more.contains("secrets")));
    assert_eq!(proxy.state.open_tunnels(), 0);
}

#[tokio::test]
async fn a08_redirect_of_an_upgrade_is_never_followed() {
    let other = Recorder::start(OK).await;
    let upstream = Recorder::start(format!(
        "HTTP/1.1 302 Found\r\nLocation: http://u:p@{}/x\r\nContent-Length: 0\r\n\r\n",
        other.address
    ))
    .await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    let answer = rest(&mut open(&proxy, "alice", ASK_SPDY).await).await;

    assert_eq!(status(&answer), 302);
    assert!(
        answer.contains("connection: close") && !answer.contains("u:p"),
        "{answer}"
    );
    assert_eq!((other.connections(), proxy.state.open_tunnels()), (0, 0));
}

#[tokio::test]
async fn a08_protocol_that_nobody_asked_for_never_opens_a_tunnel() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let (address, _seen) = echo_server(answer).await;
        let proxy = Proxy::start(vec![plain("a", address)]).await;

        let answer = rest(&mut open(&proxy, "alice", ASK_SPDY).await).await;

        assert_eq!(status(&answer), 502, "{answer}");
        assert_eq!(proxy.state.open_tunnels(), 0);
    }
}

#[tokio::test]
async fn a08_switch_of_a_plain_request_is_no_answer() {
    let upstream = Recorder::start(SPDY).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    let answer = proxy.get("/api/kubernetes/proxy/api", "").await;

    assert_eq!(status(&answer), 502, "{answer}");
}

#[tokio::test]
async fn upgrade_to_another_http_never_arrives() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    for lines in [
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings\r\n",
        "Upgrade: websocket, h2c\r\n",
        "Upgrade: TLS/1.0\r\n",
    ] {
        rest(&mut open(&proxy, "alice", lines).await).await;
    }

    for request in upstream.requests() {
        let lower = request.to_lowercase();
        assert!(
            !lower.contains("upgrade") && !lower.contains("http2-settings"),
            "{request}"
        );
    }
    assert_eq!(upstream.requests().len(), 3);
}

#[tokio::test]
async fn logout_cuts_an_open_tunnel() {
    let (address, _seen) = echo_server(SPDY).await;
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let mut strategy = Strategy::new("test", CredentialScope::User);
    strategy.login = Some(login.clone());
    let proxy = Proxy::with(access(vec![plain("a", address)], strategy)).await;
    let mut stream = open(&proxy, "alice", ASK_SPDY).await;
    assert_eq!(status(&head(&mut stream).await), 101);

    login.end();

    assert_eq!(rest(&mut stream).await, "");
    eventually(|| proxy.state.open_tunnels() == 0, "the tunnel closes").await;
}

#[tokio::test]
async fn client_that_goes_away_closes_the_upstream_connection() {
    let (address, mut seen) = echo_server(SPDY).await;
    let proxy = Proxy::start(vec![plain("a", address)]).await;
    let mut stream = open(&proxy, "alice", ASK_SPDY).await;
    head(&mut stream).await;
    seen.recv().await.expect("a request");

    drop(stream);

    assert_eq!(seen.recv().await.as_deref(), Some("client ended"));
    eventually(|| proxy.state.open_tunnels() == 0, "the tunnel closes").await;
}

#[tokio::test]
async fn limited_token_never_opens_a_tunnel_and_only_reads() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
    let refused = rest(&mut open(&proxy, "limited-alice", ASK_SPDY).await).await;
    let by_get = "GET /api/kubernetes/proxy/exec HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer limited-alice\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let refused_get = proxy.raw(by_get).await;
    let call = |method: &str| {
        format!(
            "{method} /api/kubernetes/proxy/api HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer limited-alice\r\n\
            Connection: close\r\n\r\n"
        )
    };
    let mut statuses = Vec::new();
    for method in [
        "GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "OPTIONS", "TRACE",
    ] {
        statuses.push(status(&proxy.raw(call(method)).await));
    }

    assert_eq!((status(&refused), status(&refused_get)), (403, 403));
    assert!(
        refused.contains("a limited user token may only read"),
        "{refused}"
    );
    assert_eq!(statuses, [200, 200, 403, 403, 403, 403, 403, 400]);
    assert_eq!(upstream.requests().len(), 2);
}
