//! Connections to API servers on loopback: how many, which, and what happens when they break.

#![cfg(feature = "upstream")]
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use kube_authn_core::{
    Body, CachingProvider, ClusterAccess, ClusterDetails, Clusters, Credential, CredentialRequest, ErrorKind,
    Lane, Principal, ProviderRegistry, UpstreamPool,
};
use support::*;
use tokio::{io::AsyncReadExt, sync::Barrier};

fn fixed() -> Strategy {
    Strategy::new(|_| Ok(bearer("token")))
}

fn one(cluster: ClusterDetails, lane: Lane) -> (ClusterAccess, CredentialRequest) {
    let access = access(vec![cluster.clone()], fixed(), lane);
    (access, CredentialRequest::new(alice(), cluster))
}

fn with_pool(cluster: ClusterDetails, pool: UpstreamPool) -> (ClusterAccess, CredentialRequest) {
    let credentials = CachingProvider::new(ProviderRegistry::new().with(fixed()));
    let access = ClusterAccess::new(Clusters::new(vec![cluster.clone()]), credentials, pool);
    (access, CredentialRequest::new(alice(), cluster))
}

fn with_url(url: &str, ca: &Ca) -> ClusterDetails {
    ClusterDetails::builder("a", url)
        .auth_provider("test")
        .ca_pem(ca.pem())
        .build()
        .expect("a cluster")
}

/// A body that nobody could send twice.
fn stream(content: &'static str) -> Body {
    let frame = Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(content.as_bytes())));
    Body::new(StreamBody::new(futures_util::stream::iter([frame])))
}

fn post(body: Body) -> http::Request<Body> {
    http::Request::post("/api/v1/pods").body(body).expect("a request")
}

#[tokio::test]
async fn both_lanes_reach_the_api_server() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;

    for (lane, version) in [
        (Lane::Http2, http::Version::HTTP_2),
        (Lane::Http1, http::Version::HTTP_11),
    ] {
        let (access, request) = one(cluster("a", &server, &ca), lane);

        let response = access
            .send(&request, get("/api/v1/pods?limit=1"))
            .await
            .expect("an answer");

        assert_eq!(read(response).await.expect("a body"), "Bearer token");
        let seen = server.seen().pop().expect("one request");
        assert_eq!(seen.version, version);
        assert!(seen.target.ends_with("/api/v1/pods?limit=1"), "{}", seen.target);
    }
}

#[tokio::test]
async fn short_calls_take_http1_and_what_stays_open_takes_http2_by_default() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::default());

    for uri in ["/api/v1/pods", "/api/v1/pods?watch=true"] {
        let response = access.send(&request, get(uri)).await.expect("an answer");
        read(response).await.expect("a body");
    }

    let versions: Vec<_> = server.seen().iter().map(|seen| seen.version).collect();
    assert_eq!(versions, [http::Version::HTTP_11, http::Version::HTTP_2]);
}

#[tokio::test]
async fn server_without_http2_is_reached_over_http1() {
    let ca = Ca::new();
    for tls in [ca.server(&[H1]), ca.server(&[]), None] {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let server = Server::start(tls, echo_identity).await;
        let (access, request) = one(
            with_url(&format!("{scheme}://localhost:{}", server.address.port()), &ca),
            Lane::Http2,
        );

        for _ in 0..3 {
            let response = access.send(&request, get("/")).await.expect("an answer");
            assert_eq!(read(response).await.expect("a body"), "Bearer token");
        }

        assert_eq!(server.seen()[0].version, http::Version::HTTP_11);
        assert_eq!(
            server.seen()[0].header("host"),
            Some(format!("localhost:{}", server.address.port()).as_str())
        );
        assert_eq!(server.accepted(), 1);
    }
}

/// Sends so many requests that are all in flight at once.
async fn at_once(access: &ClusterAccess, request: &CredentialRequest, path: &'static str, count: usize) {
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let (access, request) = (access.clone(), request.clone());
            tokio::spawn(async move {
                read(access.send(&request, get(path)).await.expect("an answer"))
                    .await
                    .expect("a body")
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cold_burst_opens_no_connection_per_request() {
    for (count, expected) in [(60, 1), (300, 4)] {
        let ca = Ca::new();
        let all = Arc::new(Barrier::new(count));
        let server = Server::start(ca.server(&[H2]), move |_, _| {
            let all = all.clone();
            async move {
                all.wait().await;
                Ok(text("{}"))
            }
        })
        .await;
        let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);

        at_once(&access, &request, "/", count).await;

        assert!(
            server.accepted() <= expected,
            "{} connections for {count} requests",
            server.accepted()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_allows_few_streams_never_refuses_one() {
    let ca = Ca::new();
    let all = Arc::new(Barrier::new(30));
    let server = Server::start_allowing(
        10,
        "127.0.0.1:0".parse().expect("an address"),
        ca.server(&[H2]),
        move |request, _| {
            let all = all.clone();
            async move {
                if request.uri().path() == "/together" {
                    all.wait().await;
                }
                Ok(text("{}"))
            }
        },
    )
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);

    at_once(&access, &request, "/cold", 60).await;
    at_once(&access, &request, "/together", 30).await;

    assert_eq!(server.seen().len(), 90);
    assert!(server.accepted() <= 9, "{} connections", server.accepted());
}

#[tokio::test]
async fn idle_connections_are_bounded() {
    let ca = Ca::new();
    let all = Arc::new(Barrier::new(140));
    let server = Server::start(ca.server(&[H1]), move |_, _| {
        let all = all.clone();
        async move {
            all.wait().await;
            Ok(text("{}"))
        }
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http1);

    at_once(&access, &request, "/", 140).await;

    assert_eq!(server.accepted(), 140);
    eventually(|| server.open() == 128, "the pool keeps 128").await;
}

#[tokio::test]
async fn connection_is_free_again_after_the_last_byte_of_a_known_length() {
    let ca = Ca::new();
    for lane in [Lane::Http1, Lane::Http2] {
        let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
        let (access, request) = one(cluster("a", &server, &ca), lane);

        for _ in 0..5 {
            let answer = access
                .send(&request, get("/api/v1/pods"))
                .await
                .expect("an answer");
            let mut body = answer.into_body();
            // As hyper's server reads what it passes on.
            while !http_body::Body::is_end_stream(&body) {
                body.frame().await.expect("not the end").expect("a frame");
            }
        }

        assert_eq!(server.accepted(), 1, "{lane:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_never_grow_with_users() {
    for (lane, most) in [(Lane::Http2, 1), (Lane::Http1, 16)] {
        let ca = Ca::new();
        let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
        let cluster = cluster("a", &server, &ca);
        let strategy = Strategy::new(|request| Ok(bearer(format!("{}", request.principal))));
        let access = access(vec![cluster.clone()], strategy, lane);

        let tasks: Vec<_> = (0..16)
            .map(|task| {
                let (access, cluster) = (access.clone(), cluster.clone());
                tokio::spawn(async move {
                    for number in 0..60 {
                        let request =
                            CredentialRequest::new(user(&format!("u{task}-{number}")), cluster.clone());
                        let response = access.send(&request, get("/")).await.expect("an answer");
                        let identity = read(response).await.expect("a body");
                        assert_eq!(identity, format!("Bearer {}", request.principal));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }

        assert!(
            server.accepted() <= most,
            "{lane:?}: {} connections",
            server.accepted()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_watches_never_delay_a_short_call() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), |request, _| async move {
        if request.uri().query() != Some("watch=true") {
            return Ok(text("short"));
        }
        let (answer, more) = endless();
        tokio::spawn(async move { more.closed().await });
        Ok(answer)
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);
    let mut watches = Vec::new();
    for _ in 0..150 {
        let mut response = access
            .send(&request, get("/api/v1/pods?watch=true"))
            .await
            .expect("a watch");
        response
            .body_mut()
            .frame()
            .await
            .expect("a frame")
            .expect("no error");
        watches.push(response);
    }

    let short = async {
        read(
            access
                .send(&request, get("/api/v1/pods"))
                .await
                .expect("an answer"),
        )
        .await
    };
    let answer = tokio::time::timeout(Duration::from_secs(1), short)
        .await
        .expect("in time");

    assert_eq!(answer.expect("a body"), "short");
    let seen = server.seen();
    let (short, watches) = seen.split_last().expect("requests");
    assert!(
        watches
            .iter()
            .all(|watch| watch.peer.connection != short.peer.connection)
    );
    assert!(server.accepted() <= 3, "{} connections", server.accepted());
}

#[tokio::test]
async fn answer_that_is_dropped_early_frees_its_stream() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2]), |_, _| async move {
        let (answer, more) = endless();
        tokio::spawn(async move { more.closed().await });
        Ok(answer)
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);

    for _ in 0..250 {
        drop(access.send(&request, get("/")).await.expect("an answer"));
    }

    assert_eq!(server.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_stands_still_stops_nobody_else() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2]), |request, _| async move {
        match request.uri().path() {
            "/big" => Ok(text(vec![b'x'; 4 << 20])),
            _ => Ok(text("small")),
        }
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(access.send(&request, get("/big")).await.expect("an answer"));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;

    let small = async { read(access.send(&request, get("/small")).await.expect("an answer")).await };
    let answer = tokio::time::timeout(Duration::from_secs(2), small)
        .await
        .expect("in time");

    assert_eq!(answer.expect("a body"), "small");
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn restart_of_the_api_server_carries_on() {
    for lane in [Lane::Http2, Lane::Http1] {
        let ca = Ca::new();
        let tls = ca.server(&[H2, H1]);
        let server = Server::start(tls.clone(), echo_identity).await;
        let (access, request) = one(cluster("a", &server, &ca), lane);
        read(access.send(&request, get("/")).await.expect("an answer"))
            .await
            .expect("a body");

        let address = server.stop().await;
        let error = access.send(&request, get("/")).await.expect_err("nobody there");
        let server = Server::start_at(address, tls, echo_identity).await;
        let response = access.send(&request, get("/")).await.expect("an answer");

        assert_eq!(error.kind(), ErrorKind::UpstreamUnreachable);
        assert!(error.to_string().ends_with("connection refused"), "{error}");
        assert_eq!(read(response).await.expect("a body"), "Bearer token");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn idle_connection_that_was_closed_costs_a_read_no_error() {
    for lane in [Lane::Http2, Lane::Http1] {
        let ca = Ca::new();
        let tls = ca.server(&[H2, H1]);
        let server = Server::start(tls.clone(), echo_identity).await;
        let (access, request) = one(cluster("a", &server, &ca), lane);
        read(access.send(&request, get("/")).await.expect("an answer"))
            .await
            .expect("a body");

        // Restarted before anybody here has noticed.
        let address = server.stop().await;
        let _server = Server::start_at(address, tls, echo_identity).await;

        access.send(&request, get("/")).await.expect("an answer");
    }
}

#[tokio::test]
async fn read_survives_although_all_idle_connections_break_under_it() {
    const OPEN: usize = 4;
    let ca = Ca::new();
    let (all, broken) = (Arc::new(Barrier::new(OPEN)), Arc::new(AtomicBool::new(false)));
    let breaks = broken.clone();
    let server = Server::start(ca.server(&[H1]), move |_, peer| {
        let (all, breaks) = (all.clone(), breaks.clone());
        async move {
            if !breaks.load(Ordering::SeqCst) {
                all.wait().await;
            } else if peer.connection < OPEN {
                return Err(Broken);
            }
            Ok(text("{}"))
        }
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http1);
    at_once(&access, &request, "/", OPEN).await;
    assert_eq!(server.accepted(), OPEN);

    broken.store(true, Ordering::SeqCst);
    for _ in 0..OPEN {
        access.send(&request, get("/")).await.expect("an answer");
    }
}

#[tokio::test]
async fn connection_that_breaks_under_a_request_is_tried_again_for_reads_alone() {
    let ca = Ca::new();
    // The second request of each connection breaks it.
    let asked = Arc::new(AtomicUsize::new(0));
    let server = Server::start(ca.server(&[H1]), move |request, _| {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        async move {
            let read = request.into_body().collect().await.map(|body| body.to_bytes());
            match number % 2 {
                0 => Ok(text(read.unwrap_or_default())),
                _ => Err(Broken),
            }
        }
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http1);

    read(access.send(&request, get("/")).await.expect("an answer"))
        .await
        .expect("a body");
    read(access.send(&request, get("/")).await.expect("an answer"))
        .await
        .expect("a body");
    assert_eq!(server.seen().len(), 3);
    let error = access
        .send(&request, post(stream("once")))
        .await
        .expect_err("broken");

    assert_eq!(error.kind(), ErrorKind::UpstreamUnreachable);
    assert_eq!(server.seen().len(), 4);
}

/// An h2 server that refuses the first stream before processing it.
async fn refusing_once(ca: &Ca) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let tls = tokio_rustls::TlsAcceptor::from(ca.server(&[H2]).expect("tls"));
    let streams = Arc::new(AtomicUsize::new(0));
    let counted = streams.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = tls.accept(stream).await.expect("a handshake");
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("h2");
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    match counted.fetch_add(1, Ordering::SeqCst) % 2 {
                        0 => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        _ => drop(respond.send_response(http::Response::new(()), true)),
                    }
                }
            });
        }
    });
    (address, streams)
}

#[tokio::test]
async fn request_that_was_refused_unprocessed_is_sent_again_if_it_can_be() {
    let ca = Ca::new();
    let (address, streams) = refusing_once(&ca).await;
    let (access, request) = one(with_url(&format!("https://{address}"), &ca), Lane::Http2);

    let response = access
        .send(&request, post(Body::from(Bytes::from("{}"))))
        .await
        .expect("an answer");
    assert_eq!(
        (response.status().as_u16(), streams.load(Ordering::SeqCst)),
        (200, 2)
    );
    let error = access
        .send(&request, post(stream("once")))
        .await
        .expect_err("refused");

    assert_eq!(
        (error.kind(), streams.load(Ordering::SeqCst)),
        (ErrorKind::UpstreamUnreachable, 3)
    );
}

#[tokio::test]
async fn caller_that_goes_away_takes_nobody_with_it() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2]), echo_identity).await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);
    let first = tokio::spawn({
        let (access, request) = (access.clone(), request.clone());
        async move { access.send(&request, get("/")).await.map(drop) }
    });
    tokio::task::yield_now().await;

    first.abort();
    let response = access.send(&request, get("/")).await.expect("an answer");

    assert_eq!(read(response).await.expect("a body"), "Bearer token");
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn certificate_of_another_authority_is_refused_for_calls_and_for_upgrades() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Server::start(other.server(&[H2, H1]), echo_upgrade).await;
    for lane in [Lane::Http2, Lane::Http1] {
        let (access, request) = one(cluster("prod", &server, &ca), lane);

        for http in [get("/"), get("/?watch=true"), upgrade("/exec")] {
            let error = access.send(&request, http).await.expect_err("refused");

            assert_eq!(
                (error.kind(), error.is_retryable()),
                (ErrorKind::UpstreamUnreachable, false)
            );
            assert_eq!(
                error.to_string(),
                format!(
                    "cannot reach cluster \"prod\" at 127.0.0.1:{}: its certificate is signed by an authority that the \
                     cluster's CA does not hold",
                    server.address.port()
                )
            );
        }
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn expired_certificate_and_one_for_another_name_are_named() {
    let ca = Ca::new();
    for (tls, cause) in [
        (
            ca.server_for(&["127.0.0.1"], &[H2], true),
            "its certificate has expired: it was good until 2002-01-01T00:00:00Z, and here it is 20",
        ),
        (
            ca.server_for(&["api.example.com"], &[H2], false),
            "its certificate is for another name",
        ),
    ] {
        let server = Server::start(Some(Arc::new(tls)), echo_identity).await;
        let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);

        let error = access.send(&request, get("/")).await.expect_err("refused");

        let place = format!(
            "cannot reach cluster \"a\" at 127.0.0.1:{}: ",
            server.address.port()
        );
        assert!(error.to_string().starts_with(&(place + cause)), "{error}");
        assert_eq!(error.cluster(), Some("a"));
    }
}

#[tokio::test]
async fn verification_is_off_only_when_it_is_said() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Server::start(other.server(&[H2, H1]), echo_identity).await;
    let open = ClusterDetails::builder("a", format!("https://{}", server.address))
        .auth_provider("test")
        .ca_pem(ca.pem())
        .skip_tls_verify(true)
        .build()
        .expect("a cluster");
    let (access, request) = one(open, Lane::Http2);

    access.send(&request, get("/")).await.expect("an answer");

    // The same server and CA with verification is another transport.
    let request = CredentialRequest::new(alice(), cluster("a", &server, &ca));
    access.send(&request, get("/")).await.expect_err("refused");
}

#[tokio::test]
async fn changed_ca_file_is_picked_up_and_old_connections_retire() {
    let (old, new) = (Ca::new(), Ca::new());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, old.pem()).expect("written");
    let server = Server::start(old.server(&[H2]), echo_identity).await;
    let cluster = ClusterDetails::builder("a", format!("https://{}", server.address))
        .auth_provider("test")
        .ca_file(&file)
        .build()
        .expect("a cluster");
    let (access, request) = one(cluster, Lane::Http2);
    access.send(&request, get("/")).await.expect("an answer");

    // A new certificate on the server: the handshake fails, the file is read again.
    let address = server.stop().await;
    let server = Server::start_at(address, new.server(&[H2]), echo_identity).await;
    access
        .send(&request, get("/"))
        .await
        .expect_err("the CA is still the old one");
    std::fs::write(&file, new.pem()).expect("written");
    access.send(&request, get("/")).await.expect("an answer");
    assert_eq!(server.seen().len(), 1);

    // A CA that doesn't fit the open connection: it serves nobody any more once the file was looked at.
    std::fs::write(&file, old.pem()).expect("written");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    let mut refused = false;
    for _ in 0..100 {
        refused = access.send(&request, get("/")).await.is_err();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refused);
}

#[tokio::test]
async fn connection_of_one_client_certificate_never_serves_another_identity() {
    for lane in [Lane::Http2, Lane::Http1] {
        let ca = Ca::new();
        let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
        let cluster = cluster("a", &server, &ca);
        let (one, two) = (ca.client("one"), ca.client("two"));
        let strategy = Strategy::new({
            let (one, two) = (one.clone(), two.clone());
            move |request| {
                Ok(match request.principal.entity_ref().map(|user| user.name()) {
                    Some("one") => Credential::certificate(one.clone()),
                    Some("two") => Credential::certificate(two.clone()),
                    _ => bearer("alice"),
                })
            }
        });
        let access = access(vec![cluster.clone()], strategy, lane);

        for round in 0..3 {
            for (name, certificate) in [("one", Some(&one)), ("two", Some(&two)), ("alice", None)] {
                let request = CredentialRequest::new(user(name), cluster.clone());
                let response = access
                    .send(&request, get(&format!("/{round}/{name}")))
                    .await
                    .expect("an answer");
                let identity = read(response).await.expect("a body");

                let seen = server.seen().pop().expect("a request");
                let expected = certificate.map(|certificate| certificate.chain()[0].to_vec());
                assert_eq!(seen.peer.certificate, expected, "{name}");
                assert_eq!(identity, if certificate.is_none() { "Bearer alice" } else { "" });
            }
        }
        assert_eq!(server.accepted(), 3);
    }
}

#[tokio::test]
async fn silent_and_resetting_servers_give_typed_errors() {
    let ca = Ca::new();
    let silent = Server::start(ca.server(&[H2, H1]), |_, _| async {
        std::future::pending::<()>().await;
        Ok(text(""))
    })
    .await;
    let resetting = Server::start(ca.server(&[H2, H1]), |_, _| async { Err(Broken) }).await;
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let mute_url = format!("https://{}", mute.local_addr().expect("an address"));
    let chatty = Server::start(None, echo_identity).await;

    let patient = UpstreamPool::new(provider());
    let hasty_connect = patient.clone().with_connect_timeout(Duration::from_millis(100));
    let hasty_head = patient.clone().with_head_timeout(Duration::from_millis(100));
    let url = |server: &Server| format!("https://{}", server.address);
    let broken = ErrorKind::UpstreamUnreachable;

    for lane in [Lane::Http2, Lane::Http1] {
        for (url, pool, kind, cause) in [
            (
                url(&silent),
                &hasty_head,
                ErrorKind::Timeout,
                "no answer within 100ms",
            ),
            (
                mute_url.clone(),
                &hasty_connect,
                ErrorKind::Timeout,
                "no connection within 100ms",
            ),
            (url(&resetting), &patient, broken, "the connection broke off"),
            (url(&chatty), &patient, broken, "it does not speak TLS"),
            (
                "https://name.invalid:6443".to_owned(),
                &patient,
                broken,
                "the name does not resolve",
            ),
        ] {
            let (access, request) = with_pool(with_url(&url, &ca), pool.clone().with_lane(lane));

            let error = access.send(&request, get("/")).await.expect_err("no answer");

            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(cause), "{error}");
            assert!(std::error::Error::source(&error).is_some());
        }
    }
}

#[tokio::test]
async fn server_that_breaks_off_in_the_middle_is_told_from_an_end() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), |_, _| async move {
        let (answer, more) = endless();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(more);
        });
        Ok(answer)
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);
    let mut response = access
        .send(&request, get("/?watch=true"))
        .await
        .expect("an answer");
    response
        .body_mut()
        .frame()
        .await
        .expect("a frame")
        .expect("no error");

    server.stop().await;
    let error = response
        .body_mut()
        .frame()
        .await
        .expect("a frame")
        .expect_err("broken off");

    assert_eq!(error.kind(), ErrorKind::UpstreamUnreachable);
}

#[tokio::test]
async fn idle_connections_are_closed() {
    for lane in [Lane::Http2, Lane::Http1] {
        let ca = Ca::new();
        let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
        let (access, request) = one(cluster("a", &server, &ca), lane);
        read(access.send(&request, get("/")).await.expect("an answer"))
            .await
            .expect("a body");
        assert_eq!(server.open(), 1);

        tokio::time::pause();
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(26)).await;
        }
        tokio::time::resume();

        eventually(|| server.open() == 0, "the idle connection is closed").await;
    }
}

#[tokio::test]
async fn upgrade_hands_the_connection_over() {
    use tokio::io::AsyncWriteExt;

    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_upgrade).await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);

    let response = access.send(&request, upgrade("/exec")).await.expect("an answer");
    assert_eq!(response.status(), 101);
    let upgraded = hyper::upgrade::on(response).await.expect("upgraded");
    let mut stream = hyper_util::rt::TokioIo::new(upgraded);
    stream.write_all(b"hello").await.expect("written");
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.expect("read");

    assert_eq!(&echo, b"hello");
    assert_eq!(server.seen()[0].header("upgrade"), Some("SPDY/3.1"));
    drop(stream);
    eventually(
        || server.open() == 0,
        "the connection of an upgrade serves nobody afterwards",
    )
    .await;
}

#[tokio::test]
async fn application_and_user_share_connections_but_never_tokens() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2]), echo_identity).await;
    let cluster = cluster("a", &server, &ca);
    let strategy = Strategy::new(|request| match request.principal == Principal::anonymous() {
        true => Ok(Credential::anonymous()),
        false => Ok(bearer("alice")),
    });
    let access = access(vec![cluster.clone()], strategy, Lane::Http2);

    for (principal, expected) in [
        (alice(), "Bearer alice"),
        (Principal::anonymous(), ""),
        (alice(), "Bearer alice"),
    ] {
        let request = CredentialRequest::new(principal, cluster.clone());
        let response = access.send(&request, get("/")).await.expect("an answer");
        assert_eq!(read(response).await.expect("a body"), expected);
    }

    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn upgrade_that_is_refused_gives_the_whole_answer() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), |_, _| async {
        let mut answer = text(vec![b'x'; 300_000]);
        *answer.status_mut() = http::StatusCode::FORBIDDEN;
        Ok(answer)
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http2);

    let response = access.send(&request, upgrade("/exec")).await.expect("an answer");

    assert_eq!(response.status(), 403);
    assert_eq!(read(response).await.expect("a body").len(), 300_000);
    eventually(|| server.open() == 0, "its connection is closed").await;
}

/// An h2 server that says goodbye after each answer, as one with `--goaway-chance` does.
async fn saying_goodbye(ca: &Ca) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let tls = tokio_rustls::TlsAcceptor::from(ca.server(&[H2]).expect("tls"));
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = tls.accept(stream).await.expect("a handshake");
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("h2");
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    drop(respond.send_response(http::Response::new(()), true));
                    connection.graceful_shutdown();
                }
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn connection_that_says_goodbye_costs_no_error() {
    let ca = Ca::new();
    let (address, connections) = saying_goodbye(&ca).await;
    let (access, request) = one(with_url(&format!("https://{address}"), &ca), Lane::Http2);

    for _ in 0..10 {
        let response = access
            .send(&request, post(stream("once")))
            .await
            .expect("an answer");
        assert_eq!(response.status(), 200);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    assert_eq!(connections.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn client_certificate_is_never_left_out_for_want_of_tls() {
    let ca = Ca::new();
    let server = Server::start(None, echo_identity).await;
    let certificate = ca.client("one");
    let plain = with_url(&format!("http://{}", server.address), &ca);
    let strategy = Strategy::new(move |_| Ok(Credential::certificate(certificate.clone())));
    let access = access(vec![plain.clone()], strategy, Lane::Http2);

    let error = access
        .send(&CredentialRequest::new(alice(), plain), get("/"))
        .await
        .expect_err("refused");

    assert_eq!((error.kind(), server.seen().len()), (ErrorKind::ConfigInvalid, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_closes_after_every_answer_costs_no_error() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H1]), |request, _| async move {
        let body = request
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let mut answer = text(body);
        answer
            .headers_mut()
            .insert("connection", http::HeaderValue::from_static("close"));
        Ok(answer)
    })
    .await;
    let (access, request) = one(cluster("a", &server, &ca), Lane::Http1);

    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (access, request) = (access.clone(), request.clone());
            tokio::spawn(async move {
                for _ in 0..10 {
                    let response = access
                        .send(&request, post(stream("content")))
                        .await
                        .expect("an answer");
                    assert!(!response.headers().contains_key("connection"));
                    assert_eq!(read(response).await.expect("a body"), "content");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }

    assert_eq!(server.accepted(), 80);
}

#[tokio::test]
async fn cluster_of_public_addresses_is_never_reached_at_another_one_whatever_its_name_says() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    // The name is looked up when it is connected to, so what it said before makes no difference.
    let listed = ClusterDetails::builder("a", format!("https://localhost:{}", server.address.port()))
        .auth_provider("test")
        .ca_pem(ca.pem())
        .only_public_addresses(true)
        .build()
        .expect("a cluster");
    for lane in [Lane::Http2, Lane::Http1] {
        let (access, request) = one(listed.clone(), lane);
        for http in [get("/"), get("/?watch=true"), upgrade("/exec")] {
            let error = access.send(&request, http).await.expect_err("refused");

            assert_eq!(
                (error.kind(), error.is_retryable()),
                (ErrorKind::UpstreamUnreachable, false)
            );
            assert!(
                error.to_string().contains("resolves to a non-public address"),
                "{error}"
            );
        }
    }
    assert_eq!(server.accepted(), 0);
}
