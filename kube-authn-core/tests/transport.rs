//! Our own calls against servers that misbehave.
#![cfg(feature = "upstream")]
#![allow(clippy::expect_used, reason = "helpers of tests")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use kube_authn_core::{CaBundle, ErrorKind, MAX_RESPONSE_BYTES, TlsTrust, Transport};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use url::Url;

fn transport() -> Transport {
    let certificate =
        rcgen::generate_simple_self_signed(["unused.example".to_owned()]).expect("a certificate");
    let trust = TlsTrust::new(CaBundle::Pem(certificate.cert.pem().into_bytes().into()));
    Transport::new(provider(), trust).expect("a transport")
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A server that gives these answers, one per connection (the last one again and again), and keeps what it was sent.
/// An empty answer is silence.
#[derive(Clone)]
struct Server {
    url: Url,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Self {
            url: Url::parse(&format!("http://{address}/path?query=canary")).expect("a URL"),
            heard: Arc::default(),
        };
        let heard = server.heard.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let Ok((mut stream, _)) = listener.accept().await else {
                    return;
                };
                let answer = answers[number.min(answers.len() - 1)].clone();
                let heard = heard.clone();
                tokio::spawn(async move {
                    let request = read_request(&mut stream).await;
                    heard.lock().expect("lock").push(request);
                    if answer.is_empty() {
                        std::future::pending::<()>().await;
                    }
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        server
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("lock").clone()
    }
}

/// Head and body, as far as `content-length` announces one.
async fn read_request(stream: &mut tokio::net::TcpStream) -> String {
    let mut request = String::new();
    loop {
        if let Some((head, body)) = request.split_once("\r\n\r\n") {
            let length = head
                .to_ascii_lowercase()
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return request;
            }
        }
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(read) if read > 0 => request += &String::from_utf8_lossy(&part[..read]),
            _ => return request,
        }
    }
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}").into_bytes()
}

#[tokio::test]
async fn answer_is_given_with_status_headers_and_body() {
    let server = Server::start(vec![answer("404 Not Found", "x-test: 1\r\n", "nothing")]).await;

    let given = transport().get(&server.url).await.expect("an answer");

    assert_eq!(given.status(), StatusCode::NOT_FOUND);
    assert_eq!(given.headers()["x-test"], "1");
    assert_eq!(given.body(), "nothing");
    let request = server.heard()[0].to_ascii_lowercase();
    let host = format!("host: {}\r\n", server.url.authority());
    assert!(
        request.starts_with("get /path?query=canary http/1.1\r\n"),
        "{request}"
    );
    assert!(request.contains("accept-encoding: identity\r\n"), "{request}");
    assert!(request.contains(&host), "{request}");
}

#[tokio::test]
async fn redirect_is_an_answer_and_never_followed() {
    let other = Server::start(vec![answer("200 OK", "", "other")]).await;
    let headers = format!("location: {}\r\n", other.url);
    let server = Server::start(vec![answer("302 Found", &headers, "")]).await;

    let given = transport().get(&server.url).await.expect("an answer");

    assert_eq!(given.status(), StatusCode::FOUND);
    assert!(other.heard().is_empty());
}

#[tokio::test]
async fn get_is_tried_again_while_a_server_restarts() {
    let busy = answer("503 Service Unavailable", "", "");
    let broken = answer("500 Internal Server Error", "", "");
    let back = answer("200 OK", "", "back");

    for (answers, status, attempts) in [
        (
            vec![busy.clone(), b"HTTP/1.1 gar".to_vec(), back],
            StatusCode::OK,
            3,
        ),
        (vec![busy], StatusCode::SERVICE_UNAVAILABLE, 3),
        (vec![broken], StatusCode::INTERNAL_SERVER_ERROR, 1),
    ] {
        let server = Server::start(answers).await;

        let given = transport().get(&server.url).await.expect("an answer");

        assert_eq!((given.status(), server.heard().len()), (status, attempts));
    }
}

#[tokio::test]
async fn post_is_never_sent_twice() {
    for fault in [
        answer("503 Service Unavailable", "", ""),
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".to_vec(),
        b"x".to_vec(),
    ] {
        let server = Server::start(vec![fault]).await;
        let form = [("grant_type", "a b"), ("code", "ü&=")];

        let _ = transport().post_form(&server.url, None, &form).await;

        let heard = server.heard();
        assert_eq!(heard.len(), 1);
        assert!(
            heard[0].ends_with("\r\n\r\ngrant_type=a+b&code=%C3%BC%26%3D"),
            "{}",
            heard[0]
        );
    }
}

#[tokio::test]
async fn larger_answer_is_refused_whether_announced_or_not() {
    let limit = "x".repeat(MAX_RESPONSE_BYTES);
    let announced = answer("200 OK", "", &format!("{limit}x"));
    let chunk = format!("{:x}\r\n{limit}\r\n", limit.len());
    let chunked = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    let until_closed = format!("HTTP/1.1 200 OK\r\n\r\n{limit}{limit}");

    for huge in [announced, chunked.into_bytes(), until_closed.into_bytes()] {
        let server = Server::start(vec![huge]).await;

        let error = transport().get(&server.url).await.expect_err("too large");

        assert_eq!(error.kind(), ErrorKind::Unexpected);
    }
    let server = Server::start(vec![answer("200 OK", "", &limit)]).await;
    assert!(transport().get(&server.url).await.is_ok());
}

#[tokio::test]
async fn endless_headers_are_refused() {
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    let server = Server::start(vec![endless.into_bytes()]).await;

    let error = transport().get(&server.url).await.expect_err("too large");

    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn silence_ends_after_the_total_time() {
    let server = Server::start(vec![Vec::new()]).await;
    let transport = transport().with_timeouts(Duration::from_millis(100), Duration::from_millis(200));
    let began = Instant::now();

    let error = transport.get(&server.url).await.expect_err("silence");

    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(server.heard().len(), 1);
}

#[tokio::test]
async fn plain_http_off_loopback_is_refused_before_a_connection() {
    for url in [
        "http://login.example.com/",
        "http://127.0.0.1.example.com/",
        "ftp://localhost/",
    ] {
        let url = Url::parse(url).expect("a URL");

        let error = transport().get(&url).await.expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    }
}

#[tokio::test]
async fn errors_name_the_host_and_nothing_else() {
    let broken = Server::start(vec![b"canary".to_vec()]).await;
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut closed = broken.url.clone();
    closed
        .set_port(Some(free.local_addr().expect("an address").port()))
        .expect("a port");
    drop(free);

    for url in [&broken.url, &closed] {
        let request = Request::post(url.as_str())
            .header("authorization", HeaderValue::from_static("Bearer canary"))
            .body(Bytes::from_static(b"canary"))
            .expect("a request");

        let error = transport().send(request).await.expect_err("unreachable");

        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::Unavailable, true)
        );
        assert!(error.to_string().contains(url.authority()), "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn ca_file_is_read_again_and_a_broken_one_keeps_the_last_good() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ca.pem");
    let write = |text: &str| std::fs::write(&path, text).expect("written");
    let (first, second) = (TlsServer::start().await, TlsServer::start().await);
    write(&first.ca);
    let trust = TlsTrust::new(CaBundle::File(path.as_path().into()));
    let transport = Transport::new(provider(), trust).expect("a transport");
    let reaches = async |server: &TlsServer| transport.get(&server.url).await.is_ok();
    assert_eq!((reaches(&first).await, reaches(&second).await), (true, false));

    write(&second.ca);
    assert_eq!((reaches(&first).await, reaches(&second).await), (false, true));

    for broken in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        write(broken);
        assert_eq!((reaches(&first).await, reaches(&second).await), (false, true));
    }
    std::fs::remove_file(&path).expect("removed");
    assert_eq!((reaches(&first).await, reaches(&second).await), (false, true));
}

/// An https server with a self-signed certificate.
struct TlsServer {
    url: Url,
    ca: String,
}

impl TlsServer {
    async fn start() -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.expect("a key"))
            .expect("a configuration");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not like the certificate hangs up here.
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&answer("200 OK", "", "secure")).await;
                let _ = stream.shutdown().await;
            }
        });
        Self {
            url: Url::parse(&format!("https://localhost:{port}/")).expect("a URL"),
            ca: certified.cert.pem(),
        }
    }
}
