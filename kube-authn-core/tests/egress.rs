//! API servers behind another TLS name, and behind egress proxies, on loopback.

#![cfg(feature = "upstream")]
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]
#![allow(clippy::disallowed_methods, reason = "a proxy opens connections")]

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use kube_authn_core::{ClusterBuilder, ClusterDetails, CredentialRequest, ErrorKind, Lane, Result, Secret};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// A proxy that notes what it is asked, and leads everything to one place.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Proxy {
    async fn start(kind: Kind, to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let proxy = Self {
            address: listener.local_addr().expect("an address"),
            asked: Arc::default(),
        };
        let asked = proxy.asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let asked = asked.clone();
                tokio::spawn(async move {
                    let (words, open) = kind.hear(&mut stream).await;
                    asked.lock().expect("unpoisoned").push(words);
                    if open {
                        let mut server = TcpStream::connect(to).await.expect("the server");
                        let _ = copy_bidirectional(&mut stream, &mut server).await;
                    }
                });
            }
        });
        proxy
    }

    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("unpoisoned");
        let text = |words: &Vec<u8>| String::from_utf8_lossy(words).into_owned();
        asked.iter().map(text).collect()
    }
}

#[derive(Clone, Copy)]
enum Kind {
    /// Answers CONNECT with this line.
    Http(&'static str),
    /// With user and password, or none.
    Socks5 { login: bool },
}

impl Kind {
    /// What the client said, and whether a tunnel is open.
    async fn hear(self, stream: &mut TcpStream) -> (Vec<u8>, bool) {
        match self {
            Self::Http(answer) => {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a head"));
                }
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("written");
                (head, answer.starts_with("HTTP/1.1 200"))
            }
            Self::Socks5 { login } => {
                let mut words = Vec::new();
                let mut methods = [0; 3];
                stream.read_exact(&mut methods).await.expect("methods");
                let method = if login { 2 } else { 0 };
                assert_eq!(methods, [5, 1, method]);
                stream.write_all(&[5, method]).await.expect("written");
                if login {
                    let version = stream.read_u8().await.expect("a version");
                    assert_eq!(version, 1);
                    for _ in 0..2 {
                        let length = stream.read_u8().await.expect("a length");
                        let mut text = vec![0; usize::from(length)];
                        stream.read_exact(&mut text).await.expect("text");
                        words.extend_from_slice(&text);
                        words.push(b' ');
                    }
                    stream.write_all(&[1, 0]).await.expect("written");
                }
                let mut request = [0; 5];
                stream.read_exact(&mut request).await.expect("a request");
                assert_eq!(request[..4], [5, 1, 0, 3], "a name, resolved here");
                let mut name = vec![0; usize::from(request[4])];
                stream.read_exact(&mut name).await.expect("a name");
                let port = stream.read_u16().await.expect("a port");
                words.extend_from_slice(&name);
                words.extend_from_slice(format!(":{port}").as_bytes());
                let answer = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
                stream.write_all(&answer).await.expect("written");
                (words, true)
            }
        }
    }
}

/// A server under this name alone, and a description of it under a name that nobody resolves.
async fn hidden(ca: &Ca) -> (Server, ClusterBuilder) {
    let tls = ca.server_for(&["api.cluster.invalid"], &[H2, H1], false);
    let server = Server::start(Some(Arc::new(tls)), echo_identity).await;
    let builder = ClusterDetails::builder("a", "https://api.cluster.invalid:6443")
        .auth_provider("test")
        .ca_pem(ca.pem());
    (server, builder)
}

async fn ask(cluster: ClusterDetails, lane: Lane) -> Result<String> {
    let strategy = Strategy::new(|_| Ok(bearer("token")));
    let access = access(vec![cluster.clone()], strategy, lane);
    let answer = access
        .send(&CredentialRequest::new(alice(), cluster), get("/api"))
        .await?;
    read(answer).await
}

#[tokio::test]
async fn certificate_is_looked_at_for_the_tls_name_and_not_for_the_host() {
    let ca = Ca::new();
    let (server, _) = hidden(&ca).await;
    let at_address = |name: Option<&str>| {
        let builder = ClusterDetails::builder("a", format!("https://{}", server.address))
            .auth_provider("test")
            .ca_pem(ca.pem());
        let builder = match name {
            Some(name) => builder.tls_server_name(name),
            None => builder,
        };
        builder.build().expect("a cluster")
    };

    for lane in [Lane::Http1, Lane::Http2] {
        let answer = ask(at_address(Some("api.cluster.invalid")), lane).await;
        assert_eq!(answer.expect("an answer"), "Bearer token");
    }
    for name in [None, Some("other.cluster.invalid")] {
        let refused = ask(at_address(name), Lane::Http2).await.expect_err("refused");
        assert!(
            refused
                .to_string()
                .ends_with("its certificate is for another name"),
            "{refused}"
        );
    }
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn http_proxy_is_asked_for_the_server_by_name_and_with_its_login() {
    let ca = Ca::new();
    for (login, line) in [
        ("", ""),
        ("user:p%40ss@", "Proxy-Authorization: Basic dXNlcjpwQHNz\r\n"),
    ] {
        let (server, builder) = hidden(&ca).await;
        let proxy = Proxy::start(Kind::Http("200 OK"), server.address).await;
        let url = format!("http://{login}{}", proxy.address);
        let cluster = builder.proxy_url(Secret::new(url)).build().expect("a cluster");

        let answer = ask(cluster, Lane::Http2).await.expect("an answer");

        assert_eq!(answer, "Bearer token");
        let host = "api.cluster.invalid:6443";
        assert_eq!(
            proxy.asked(),
            [format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{line}\r\n")]
        );
    }
}

#[tokio::test]
async fn socks_proxy_resolves_the_name_itself() {
    let ca = Ca::new();
    for (login, words) in [(false, ""), (true, "user p@ss ")] {
        let (server, builder) = hidden(&ca).await;
        let proxy = Proxy::start(Kind::Socks5 { login }, server.address).await;
        let login = if login { "user:p%40ss@" } else { "" };
        let url = format!("socks5://{login}{}", proxy.address);
        let cluster = builder.proxy_url(Secret::new(url)).build().expect("a cluster");

        let answer = ask(cluster, Lane::Http1).await.expect("an answer");

        assert_eq!(answer, "Bearer token");
        assert_eq!(proxy.asked(), [format!("{words}api.cluster.invalid:6443")]);
    }
}

#[tokio::test]
async fn proxy_that_refuses_or_is_gone_is_named_without_its_login() {
    let ca = Ca::new();
    let (server, builder) = hidden(&ca).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let gone_at = gone.local_addr().expect("an address");
    drop(gone);
    let wants_login = Proxy::start(Kind::Http("407 Proxy Authentication Required"), server.address).await;
    let refuses = Proxy::start(Kind::Http("403 Forbidden"), server.address).await;
    for (at, words) in [
        (gone_at, "cannot be reached: connection refused"),
        (
            wants_login.address,
            "opens no connection to it: tunnel error: proxy authorization required",
        ),
        (
            refuses.address,
            "opens no connection to it: tunnel error: unsuccessful",
        ),
    ] {
        let url = format!("http://canary:canary@{at}");
        let cluster = builder
            .clone()
            .proxy_url(Secret::new(url))
            .build()
            .expect("a cluster");

        let error = ask(cluster, Lane::Http2).await.expect_err("refused");

        assert_eq!(
            (error.kind(), error.to_string()),
            (
                ErrorKind::UpstreamUnreachable,
                format!(
                    "cannot reach cluster \"a\" at api.cluster.invalid:6443: its egress proxy at {at} {words}"
                )
            )
        );
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn connection_through_one_proxy_or_name_never_serves_another() {
    let ca = Ca::new();
    let tls = ca.server_for(&["127.0.0.1", "other.cluster.invalid"], &[H2], false);
    let server = Server::start(Some(Arc::new(tls)), echo_identity).await;
    let proxy = Proxy::start(Kind::Http("200 OK"), server.address).await;
    let builder = |name: &str| {
        ClusterDetails::builder(name, format!("https://{}", server.address))
            .auth_provider("test")
            .ca_pem(ca.pem())
    };
    let through = |login: &str| Secret::new(format!("http://{login}{}", proxy.address));
    let clusters = [
        builder("plain"),
        builder("named").tls_server_name("other.cluster.invalid"),
        builder("one").proxy_url(through("one@")),
        builder("two").proxy_url(through("two@")),
        builder("two-again").proxy_url(through("two@")),
    ]
    .map(|builder| builder.build().expect("a cluster"));
    let strategy = Strategy::new(|_| Ok(bearer("token")));
    let access = access(clusters.to_vec(), strategy, Lane::Http2);

    for cluster in clusters {
        let request = CredentialRequest::new(alice(), cluster);
        let answer = access.send(&request, get("/api")).await.expect("an answer");
        read(answer).await.expect("whole");
    }

    assert_eq!((server.accepted(), proxy.asked().len()), (4, 2));
}

#[test]
fn proxy_that_could_lead_past_a_guard_is_refused() {
    let builder = |url: &str| {
        ClusterDetails::builder("a", url)
            .auth_provider("test")
            .proxy_url(Secret::new("http://proxy"))
    };

    let plain = builder("http://127.0.0.1:1").build().expect_err("refused");
    let public = builder("https://a").only_public_addresses(true).build();
    let open = builder("https://127.0.0.1:1").skip_tls_verify(true).build();

    assert_eq!(plain.problems[0].key, "proxyUrl");
    assert_eq!(public.expect_err("refused").problems[0].key, "proxyUrl");
    assert!(
        !open.expect("a cluster").is_transport_protected(),
        "whose loopback is it?"
    );
}
