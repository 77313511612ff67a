//! Bodies on their way, and API servers that are slow, silent, broken or lie.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube_authn_core::{
    CachingProvider, ClusterAccess, Clusters, CredentialScope, LoginHandle, LoginId, ProviderRegistry,
    UpstreamPool,
};
use kube_authn_http::{Callers, ProxyState};
use support::{
    AnswerBody, ByName, Ca, OK, Proxy, Recorder, Strategy, access, body, cluster, crypto, eventually,
    http2_server, json, listen, plain, read_request, status,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn http2_cluster<F, R>(handler: F) -> kube_authn_core::ClusterDetails
where
    F: Fn(Request<hyper::body::Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = std::io::Result<Response<AnswerBody>>> + Send + 'static,
{
    let ca = Ca::new();
    let address = http2_server(&ca, handler).await;
    cluster("a", &format!("https://127.0.0.1:{}", address.port()), Some(&ca))
}

/// An API server that does something to each connection.
async fn server<F, R>(act: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = listen().await;
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(act(stream));
        }
    });
    address
}

async fn answer_with(bytes: &'static str, then: Duration) -> SocketAddr {
    server(move |mut stream| async move {
        read_request(&mut stream, &mut Vec::new()).await;
        let _ = stream.write_all(bytes.as_bytes()).await;
        tokio::time::sleep(then).await;
    })
    .await
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn api_server_that_cannot_be_used_gives_a_clear_answer() {
    let gone = listen().await.local_addr().expect("an address");
    let silent = answer_with("", LONG).await;
    let closing = answer_with("", Duration::ZERO).await;
    let half = answer_with("HTTP/1.1 200 OK\r\nContent-", Duration::ZERO).await;
    let babbling = answer_with("SSH-2.0-OpenSSH_9.6\r\n", LONG).await;
    let endless = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    let trickling = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let gigantic = server(|mut stream| async move {
        let head = format!(
            "HTTP/1.1 200 OK\r\nX-Long: {}\r\nContent-Length: 0\r\n\r\n",
            "x".repeat(1 << 20)
        );
        let _ = stream.write_all(head.as_bytes()).await;
        tokio::time::sleep(LONG).await;
    })
    .await;
    let resetting = server(|stream| async move {
        #[allow(deprecated, reason = "a reset is the point")]
        let _ = stream.set_linger(Some(Duration::ZERO));
    })
    .await;

    for (address, code, words) in [
        (gone, 502, "connection refused"),
        (silent, 504, "no answer within 2s"),
        (closing, 502, "broke"),
        (half, 502, "cannot reach cluster"),
        (babbling, 502, "the answer is not HTTP"),
        (endless, 502, "the answer is not HTTP"),
        (trickling, 504, "no answer within 2s"),
        (gigantic, 502, "the answer is not HTTP"),
        (resetting, 502, "cannot reach cluster"),
    ] {
        let proxy = Proxy::start(vec![plain("a", address)]).await;
        let answer = proxy.get("/api/kubernetes/clusters/a/proxy/api", "").await;

        assert_eq!(status(&answer), code, "{answer}");
        let message = json(&answer)["message"].as_str().expect("a message").to_owned();
        assert!(message.contains(words) && message.contains("\"a\""), "{message}");
        assert!(
            answer.contains(&format!(
                "warning: 299 kube-authn \"{}\"",
                message.replace('"', "'")
            )),
            "{answer}"
        );
        assert!(!answer.contains("cluster-token"), "{answer}");
    }
}

#[tokio::test]
async fn handshake_that_never_ends_gives_a_clear_answer() {
    let silent = server(|mut stream| async move {
        let mut bytes = vec![0; 4096];
        while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let babbling = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        tokio::time::sleep(LONG).await;
    })
    .await;
    let ca = Ca::new();
    for (address, code, words) in [
        (silent, 504, "no connection within 1s"),
        (babbling, 502, "it does not speak TLS"),
    ] {
        let url = format!("https://127.0.0.1:{}", address.port());
        let strategy = Strategy::new("test", CredentialScope::User);
        let credentials = CachingProvider::new(ProviderRegistry::new().with(strategy));
        let pool = UpstreamPool::new(crypto()).with_connect_timeout(Duration::from_secs(1));
        let clusters = Clusters::new(vec![cluster("a", &url, Some(&ca))]);
        let proxy = Proxy::with(ClusterAccess::new(clusters, credentials, pool)).await;

        let answer = proxy.get("/api/kubernetes/clusters/a/proxy/api", "").await;

        assert_eq!(status(&answer), code, "{answer}");
        assert!(answer.contains(words), "{answer}");
    }
}

#[tokio::test]
async fn stream_of_http2_that_breaks_off_never_looks_whole() {
    for announced in [true, false] {
        let a = http2_cluster(move |_| async move {
            let frames = [
                Ok(http_body::Frame::data(Bytes::from("half"))),
                Err(std::io::Error::other("reset")),
            ];
            let stream = futures_util::StreamExt::then(futures_util::stream::iter(frames), |frame| async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                frame
            });
            let mut answer = Response::new(StreamBody::new(stream).boxed_unsync());
            if announced {
                answer
                    .headers_mut()
                    .insert("content-length", http::HeaderValue::from_static("8"));
            }
            Ok(answer)
        })
        .await;
        let proxy = Proxy::start(vec![a]).await;

        let answer = proxy.get("/api/kubernetes/proxy/api", "").await;
        let request = Request::get("http://portal/api/kubernetes/proxy/api")
            .header("authorization", "Bearer alice")
            .body(support::full(""))
            .expect("a request");
        let over_http2 = proxy
            .http2()
            .await
            .send_request(request)
            .await
            .expect("an answer");
        let collected = over_http2.into_body().collect().await;

        assert!(
            answer.contains("half") && !answer.ends_with("0\r\n\r\n"),
            "{answer}"
        );
        assert!(!answer.contains("content-length: 4"), "{answer}");
        assert!(collected.is_err(), "{collected:?}");
    }
}

#[tokio::test]
async fn answer_that_is_reset_never_looks_whole() {
    let address = server(|mut stream| async move {
        read_request(&mut stream, &mut Vec::new()).await;
        let half = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
        let _ = stream.write_all(half.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        #[allow(deprecated, reason = "a reset is the point")]
        let _ = stream.set_linger(Some(Duration::ZERO));
    })
    .await;
    let proxy = Proxy::start(vec![plain("a", address)]).await;

    let answer = proxy.get("/api/kubernetes/proxy/api", "").await;

    assert!(
        body(&answer).contains("half") && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn answer_that_breaks_off_never_looks_whole() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ] {
        let proxy = Proxy::start(vec![plain("a", answer_with(bytes, Duration::ZERO).await)]).await;

        let answer = proxy.get("/api/kubernetes/proxy/api", "").await;

        let body = body(&answer);
        assert!(!body.ends_with("0\r\n\r\n"), "{answer}");
        let whole = answer.contains("content-length: 4\r\n");
        assert!(!whole && body.contains("half"), "{answer}");
    }
}

#[tokio::test]
async fn api_server_that_lies_about_framing_adds_no_answer() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother",
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nother",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\nokother",
    ] {
        let proxy = Proxy::start(vec![plain("a", answer_with(bytes, Duration::ZERO).await)]).await;

        let answer = proxy.get("/api/kubernetes/proxy/api", "").await;
        let next = proxy.get("/api/kubernetes/proxy/api", "").await;

        for answer in [answer, next] {
            assert!(
                !answer.contains("other") && answer.matches("HTTP/1.1").count() == 1,
                "{bytes:?}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn answer_that_stands_still_ends_and_a_watch_does_not() {
    let address = answer_with(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        LONG,
    )
    .await;
    let access = access(
        vec![plain("a", address)],
        Strategy::new("test", CredentialScope::User),
    );
    let state =
        ProxyState::new(access, Callers::new().with(ByName)).with_idle_timeout(Duration::from_millis(200));
    let proxy = Proxy::of(state).await;

    let answer = proxy.get("/api/kubernetes/proxy/api", "").await;
    assert!(
        body(&answer).contains("half") && !answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );

    for path in [
        "api/v1/pods?watch=true",
        "api/v1/namespaces/n/pods/p/log?follow=true",
    ] {
        let path = format!("/api/kubernetes/proxy/{path}");
        let watch = tokio::time::timeout(Duration::from_secs(1), proxy.get(&path, "")).await;
        assert!(watch.is_err(), "still open");
    }
}

#[tokio::test]
async fn upload_that_stands_still_ends() {
    let upstream = Recorder::start(OK).await;
    let access = access(
        vec![plain("a", upstream.address)],
        Strategy::new("test", CredentialScope::User),
    );
    let state =
        ProxyState::new(access, Callers::new().with(ByName)).with_idle_timeout(Duration::from_millis(200));
    let proxy = Proxy::of(state).await;

    let answer = proxy
        .raw(
            "POST /api/kubernetes/proxy/api HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\
            Connection: close\r\nContent-Length: 100\r\n\r\nhalf",
        )
        .await;

    assert_eq!(status(&answer), 400, "{answer}");
    assert!(answer.contains("the body of the request"), "{answer}");
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.starts_with("unfinished"))
    );
}

#[tokio::test]
async fn watch_events_arrive_one_by_one_and_end_at_logout() {
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let a = http2_cluster(move |_| {
        let receiver = receiver.lock().expect("no panic").take().expect("one watch");
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let event = receiver.recv().await?;
            Some((Ok(http_body::Frame::data(event)), receiver))
        });
        async move { Ok(Response::new(StreamBody::new(stream).boxed_unsync())) }
    })
    .await;
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let mut strategy = Strategy::new("test", CredentialScope::User);
    strategy.login = Some(login.clone());
    let proxy = Proxy::with(access(vec![a], strategy)).await;
    let mut stream = TcpStream::connect(proxy.http1).await.expect("a connection");
    let get = "GET /api/kubernetes/proxy/api/v1/pods?watch=1 HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\r\n";
    stream.write_all(get.as_bytes()).await.expect("written");

    let mut text = String::new();
    for event in ["first", "second", "third"] {
        events.send(Bytes::from(event)).expect("the watch is open");
        while !text.contains(event) {
            let mut bytes = [0; 1024];
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut bytes)).await;
            let read = read.expect("in time").expect("bytes");
            assert_ne!(read, 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }
    login.end();

    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest))
        .await
        .expect("cut");
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"));
    eventually(|| events.is_closed(), "the API server sees the end").await;
}

#[tokio::test]
async fn compressed_answer_arrives_as_it_is() {
    let bomb = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nETag: \"1\"\r\nVary: Accept-Encoding\r\nContent-Length: 4\r\n\r\n\x1f\x08\x08\x00";
    let upstream = Recorder::start(bomb).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    let answer = proxy
        .get("/api/kubernetes/proxy/api", "Accept-Encoding: gzip, br\r\n")
        .await;

    assert!(
        answer.contains("content-encoding: gzip") && answer.contains("etag: \"1\""),
        "{answer:?}"
    );
    assert_eq!(body(&answer), "\x1f\x08\x08\x00");
    assert!(
        upstream.requests()[0]
            .to_lowercase()
            .contains("accept-encoding: gzip, br\r\n")
    );
}

#[tokio::test]
async fn early_answer_to_an_upload_arrives() {
    let address = server(|mut stream| async move {
        let mut bytes = vec![0; 1024];
        let _ = stream.read(&mut bytes).await;
        let answer = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
        let _ = stream.write_all(answer.as_bytes()).await;
        // Read on for a while, as Go's server does, so that the answer isn't lost to a reset.
        let _ = tokio::time::timeout(
            Duration::from_millis(500),
            tokio::io::copy(&mut stream, &mut tokio::io::sink()),
        )
        .await;
    })
    .await;
    let proxy = Proxy::start(vec![plain("a", address)]).await;
    let mut stream = TcpStream::connect(proxy.http1).await.expect("a connection");
    let head = "POST /api/kubernetes/proxy/api HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\
        Connection: close\r\nContent-Length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    let (mut reader, mut writer) = stream.into_split();
    let upload = tokio::spawn(async move { while writer.write_all(&[b'x'; 65536]).await.is_ok() {} });

    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(10), reader.read(&mut answer)).await;

    let read = read.expect("in time").expect("an answer");
    assert_eq!(status(&String::from_utf8_lossy(&answer[..read])), 413);
    upload.abort();
}

#[tokio::test]
async fn client_that_expects_to_be_told_is_told_to_continue() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
    let mut stream = TcpStream::connect(proxy.http1).await.expect("a connection");
    let head = "POST /api/kubernetes/proxy/api HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\
        Expect: 100-continue\r\nConnection: close\r\nContent-Length: 5\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut told = [0; 25];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut told)).await;
    read.expect("in time").expect("told");
    stream.write_all(b"hello").await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");

    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(status(&answer), 200);
    assert!(upstream.requests()[0].ends_with("\r\n\r\nhello"));
}

#[tokio::test]
async fn answer_without_a_body_keeps_its_length() {
    for (bytes, line) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            "content-length: 1234",
        ),
        ("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n", "etag: \"1\""),
        ("HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", "x-a: b"),
    ] {
        let proxy = Proxy::start(vec![plain("a", answer_with(bytes, LONG).await)]).await;

        let answer = proxy
            .raw("HEAD /api/kubernetes/proxy/x HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\nConnection: close\r\n\r\n")
            .await;

        assert_eq!(status(&answer), status(bytes), "{answer}");
        assert!(answer.contains(line) && answer.ends_with("\r\n\r\n"), "{answer}");
    }
}
