//! The request path against API servers on loopback: whose identity arrives, and when it must not.

#![cfg(feature = "upstream")]
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use http_body_util::{BodyExt, StreamBody};
use jiff::{SignedDuration, Timestamp};
use kube_authn_core::{
    Body, CachingProvider, Clock, ClusterAccess, ClusterDetails, Clusters, Credential, CredentialRequest,
    CredentialScope, Error, ErrorKind, Lane, LoginHandle, LoginId, ManualClock, Principal, ProviderRegistry,
    SystemClock, UpstreamPool,
};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LANES: [Lane; 2] = [Lane::Http2, Lane::Http1];

/// Fifty names as alike as names get: long common beginnings, case, separators, prefixes of each other.
fn near_equal_names() -> Vec<String> {
    let long = "a-very-long-cluster-name-that-goes-on-beyond-fifty-characters";
    let mut names: Vec<_> = (0..10).map(|number| format!("{long}-{number}")).collect();
    names.extend((1..=10).map(|length| "prod".repeat(length)));
    names.extend(
        [
            "eu-west-1",
            "eu-west-01",
            "eu_west-1",
            "eu-west_1",
            "EU-west-1",
            "eu-west-1 ",
            "eu west-1",
        ]
        .map(str::to_owned),
    );
    names.extend(
        [
            "a:b", "a/b", "a|b", "a.b", "a b", "a%2Fb", "a%3Ab", "a\"b", "a'b", "ab",
        ]
        .map(str::to_owned),
    );
    names.extend((0..13).map(|number| format!("n{}", "0".repeat(number))));
    assert_eq!(names.len(), 50);
    names
}

/// A token that names both, whatever characters they have.
fn token_of(principal: &Principal, cluster: &str) -> String {
    format!("{principal}@{cluster}")
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The same permutation on every run.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for index in (1..items.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        items.swap(index, usize::try_from(state >> 33).expect("small") % (index + 1));
    }
}

/// The server's own number and the token that arrived.
async fn numbered_server(number: usize, tls: Arc<rustls::ServerConfig>) -> Server {
    Server::start(Some(tls), move |request, _| async move {
        let token = request.headers()["authorization"]
            .to_str()
            .expect("text")
            .to_owned();
        Ok(text(format!("{number} {token}")))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_users_of_fifty_near_equal_clusters_never_get_another_ones_answer() {
    let ca = Ca::new();
    let tls = ca.server(&[H2, H1]).expect("tls");
    let (mut clusters, mut servers) = (Vec::new(), Vec::new());
    for (number, name) in near_equal_names().iter().enumerate() {
        let server = numbered_server(number, tls.clone()).await;
        clusters.push(cluster(name, &server, &ca));
        servers.push(server);
    }
    let strategy = Strategy::new(|request| {
        Ok(bearer(token_of(
            &request.principal,
            request.cluster.name().as_str(),
        )))
    });
    let access = access(clusters.clone(), strategy, Lane::Http2);
    let mut pairs: Vec<_> = (0..1_000)
        .flat_map(|user| (0..50).map(move |cluster| (user, cluster)))
        .collect();
    shuffle(&mut pairs);
    let pairs = Arc::new(pairs);
    let next = Arc::new(AtomicUsize::new(0));

    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (access, clusters, pairs, next) =
                (access.clone(), clusters.clone(), pairs.clone(), next.clone());
            tokio::spawn(async move {
                while let Some((number, at)) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let principal = user(&format!("u{number}"));
                    let name = clusters[*at].name().as_str();
                    let request = access.request(&principal, name).expect("a request");
                    let expected = format!("Bearer {}", token_of(&principal, name));
                    let mut headers = HeaderMap::new();
                    access
                        .credential(&request)
                        .await
                        .expect("a credential")
                        .apply(&mut headers);
                    assert_eq!(headers["authorization"], expected);
                    // Every pair gets its credential; every fifth goes over the wire, or the test would take a minute.
                    if (number + at) % 5 == 0 {
                        let answer = access.send(&request, get("/api")).await.expect("an answer");
                        assert_eq!(read(answer).await.expect("a body"), format!("{at} {expected}"));
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }

    assert_eq!(
        servers.iter().map(|server| server.seen().len()).sum::<usize>(),
        10_000
    );
    assert!(
        servers.iter().all(|server| server.accepted() == 1),
        "connections grew with users"
    );
}

#[tokio::test]
async fn missing_user_token_never_falls_back_to_another_identity() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    for kind in [
        ErrorKind::LoginRequired,
        ErrorKind::TokenExpired,
        ErrorKind::RecordDamaged,
        ErrorKind::Unavailable,
    ] {
        let strategy = Strategy::new(move |_| Err(Error::new(kind, "no token")));
        let access = access(vec![cluster("prod", &server, &ca)], strategy, Lane::Http2);
        let request = access.request(&alice(), "prod").expect("a request");

        for http in [get("/api"), upgrade("/exec")] {
            let error = access.send(&request, http).await.expect_err("no identity");

            assert_eq!(
                (error.kind(), error.provider(), error.cluster()),
                (kind, Some("test"), Some("prod"))
            );
        }
    }
    assert_eq!((server.accepted(), server.seen().len()), (0, 0));
}

/// Access whose clock stands still; credentials state this end.
fn standing(
    cluster: ClusterDetails,
    clock: &ManualClock,
    lane: Lane,
    credential: Credential,
) -> ClusterAccess {
    let clock: Arc<dyn Clock> = Arc::new(clock.clone());
    // A scope that is never cached: the access must look for itself.
    let strategy = Strategy::new(move |_| Ok(credential.clone())).scope(CredentialScope::Request);
    let registry = ProviderRegistry::new().with(strategy);
    let credentials = CachingProvider::with_clock_and_capacity(registry, clock.clone(), 100);
    let pool = UpstreamPool::new(provider()).with_lane(lane);
    ClusterAccess::new(Clusters::new(vec![cluster]), credentials, pool).with_clock(clock)
}

fn instant(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("an instant")
}

#[tokio::test]
async fn expired_token_never_reaches_the_api_server() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    for end in [0, 999, 1_000, 1_029] {
        let cluster = cluster("prod", &server, &ca);
        let clock = ManualClock::at(instant(1_000));
        let access = standing(
            cluster,
            &clock,
            Lane::Http2,
            bearer("t").with_expires_at(instant(end)),
        );
        let request = access.request(&alice(), "prod").expect("a request");

        let error = access.send(&request, get("/api")).await.expect_err("expired");

        assert_eq!(
            (error.kind(), error.cluster()),
            (ErrorKind::TokenExpired, Some("prod"))
        );
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn caller_whose_own_authentication_has_ended_never_reaches_the_api_server() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    let clock = ManualClock::at(instant(1_000));
    let access = standing(cluster("prod", &server, &ca), &clock, Lane::Http2, bearer("t"));
    let request = access
        .request(&alice().with_expires_at(instant(1_010)), "prod")
        .expect("a request");
    access.send(&request, get("/api")).await.expect("an answer");

    clock.advance_seconds(10);
    let error = access.send(&request, get("/api")).await.expect_err("ended");

    assert_eq!((error.kind(), server.seen().len()), (ErrorKind::CallerUnknown, 1));
}

#[tokio::test]
async fn ended_login_never_reaches_the_api_server() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let credential = bearer("t").with_login(login.clone());
    let access = access(
        vec![cluster("prod", &server, &ca)],
        Strategy::new(move |_| Ok(credential.clone())),
        Lane::Http2,
    );
    let request = access.request(&alice(), "prod").expect("a request");
    access.send(&request, get("/api")).await.expect("an answer");

    login.end();
    let error = access.send(&request, get("/api")).await.expect_err("ended");

    assert_eq!((error.kind(), server.seen().len()), (ErrorKind::LoginRequired, 1));
}

/// A server that accepts one token alone, and a strategy that gives tokens in turn.
async fn picky(ca: &Ca, good: &'static str) -> Server {
    Server::start(ca.server(&[H2, H1]), move |request, _| async move {
        let token = request.headers()["authorization"]
            .to_str()
            .expect("text")
            .to_owned();
        let body = request
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        match token == format!("Bearer {good}") {
            true => Ok(text(body)),
            false => Ok(status(401)),
        }
    })
    .await
}

fn in_turn() -> (Strategy, Arc<AtomicUsize>) {
    let fetched = Arc::new(AtomicUsize::new(0));
    let strategy = Strategy::new({
        let fetched = fetched.clone();
        move |_| {
            Ok(bearer(format!(
                "token-{}",
                fetched.fetch_add(1, Ordering::SeqCst)
            )))
        }
    });
    (strategy, fetched)
}

fn tokens(server: &Server) -> Vec<String> {
    server
        .seen()
        .iter()
        .map(|seen| seen.header("authorization").expect("a token").to_owned())
        .collect()
}

#[tokio::test]
async fn refused_credential_is_replaced_once_and_the_request_replayed() {
    for lane in LANES {
        let ca = Ca::new();
        let server = picky(&ca, "token-1").await;
        let (strategy, fetched) = in_turn();
        let access = access(vec![cluster("a", &server, &ca)], strategy, lane);
        let request = access.request(&alice(), "a").expect("a request");
        let post = Request::post("/api")
            .body(Body::from(Bytes::from("content")))
            .expect("a request");

        let response = access.send(&request, post).await.expect("an answer");

        assert_eq!(
            (
                response.status().as_u16(),
                read(response).await.expect("a body").as_str()
            ),
            (200, "content")
        );
        assert_eq!(tokens(&server), ["Bearer token-0", "Bearer token-1"]);
        assert_eq!(fetched.load(Ordering::SeqCst), 2);
        let seen = server.seen();
        assert_ne!(seen[0].header("audit-id"), seen[1].header("audit-id"));
    }
}

#[tokio::test]
async fn request_with_a_streamed_body_is_never_replayed() {
    let ca = Ca::new();
    let server = picky(&ca, "token-1").await;
    let (strategy, fetched) = in_turn();
    let access = access(vec![cluster("a", &server, &ca)], strategy, Lane::Http2);
    let request = access.request(&alice(), "a").expect("a request");
    let frame = Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from("content")));
    let body = Body::new(StreamBody::new(futures_util::stream::iter([frame])));

    let response = access
        .send(&request, Request::post("/api").body(body).expect("a request"))
        .await
        .expect("an answer");

    assert_eq!(
        (
            response.status().as_u16(),
            tokens(&server).len(),
            fetched.load(Ordering::SeqCst)
        ),
        (401, 1, 1)
    );
    assert_eq!(read(response).await.expect("a body"), "refused");
}

#[tokio::test]
async fn pod_that_answers_with_401_never_costs_a_credential() {
    let ca = Ca::new();
    let server = picky(&ca, "of-the-pod").await;
    let (strategy, fetched) = in_turn();
    let access = access(vec![cluster("a", &server, &ca)], strategy, Lane::Http1);
    let request = access.request(&alice(), "a").expect("a request");

    let path = "/api/v1/namespaces/team-a/services/http:grafana:80/proxy/api/user";
    let response = access.send(&request, get(path)).await.expect("an answer");

    assert_eq!(response.status(), 401);
    assert_eq!((server.seen().len(), fetched.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn token_that_is_truly_refused_never_doubles_the_load() {
    let ca = Ca::new();
    let server = picky(&ca, "another").await;
    let (strategy, fetched) = in_turn();
    let access = access(vec![cluster("a", &server, &ca)], strategy, Lane::Http2);
    let request = access.request(&alice(), "a").expect("a request");

    for _ in 0..20 {
        let response = access.send(&request, get("/api")).await.expect("an answer");
        assert_eq!(response.status(), 401);
    }

    assert_eq!(server.seen().len(), 21);
    assert_eq!(fetched.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn forbidden_and_other_refusals_pass_unchanged() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), |request, _| async move {
        Ok(status(request.uri().path()[1..].parse().expect("a number")))
    })
    .await;
    let (strategy, fetched) = in_turn();
    let access = access(vec![cluster("a", &server, &ca)], strategy, Lane::Http2);
    let request = access.request(&alice(), "a").expect("a request");

    for expected in [403, 404, 409, 429, 500, 503] {
        let response = access
            .send(&request, get(&format!("/{expected}")))
            .await
            .expect("an answer");
        assert_eq!(response.status().as_u16(), expected);
    }

    assert_eq!((server.seen().len(), fetched.load(Ordering::SeqCst)), (6, 1));
}

#[tokio::test]
async fn identity_and_connection_headers_of_a_caller_never_arrive() {
    for lane in LANES {
        let ca = Ca::new();
        let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
        let access = access(
            vec![cluster("a", &server, &ca)],
            Strategy::new(|_| Ok(bearer("alice"))),
            lane,
        );
        let request = access.request(&alice(), "a").expect("a request");
        let http = Request::get("/api")
            .header("authorization", "Bearer root")
            .header("authorization", "Basic root")
            .header("impersonate-user", "root")
            .header("impersonate_group", "system:masters")
            .header("x-remote-user", "root")
            .header("cookie", "a=b")
            .header("audit-id", "forged")
            .header("audit-id", "forged again")
            .header("connection", "keep-alive, x-named, authorization")
            .header("keep-alive", "timeout=5")
            .header("x-named", "1")
            .header("te", "trailers")
            .header("transfer-encoding", "chunked")
            .header("upgrade", "h2c")
            .header("host", "elsewhere")
            .header("content-length", "5")
            .header("accept", "application/json")
            .body(Body::empty())
            .expect("a request");

        access.send(&request, http).await.expect("an answer");

        let seen = server.seen().pop().expect("a request");
        let mut names: Vec<_> = seen.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        let expected: &[&str] = match seen.version {
            Version::HTTP_2 => &["accept", "audit-id", "authorization"],
            _ => &["accept", "audit-id", "authorization", "host"],
        };
        assert_eq!(names, expected);
        assert_eq!(seen.header("authorization"), Some("Bearer alice"));
        let audit = seen.header("audit-id").expect("an ID");
        assert_eq!((audit.len(), &audit[14..15]), (36, "4"), "{audit}");
    }
}

#[tokio::test]
async fn request_that_names_another_server_is_refused() {
    let ca = Ca::new();
    let (server, other) = (
        Server::start(ca.server(&[H2, H1]), echo_identity).await,
        Server::start(ca.server(&[H2, H1]), echo_identity).await,
    );
    let access = access(
        vec![cluster("a", &server, &ca)],
        Strategy::new(|_| Ok(bearer("alice"))),
        Lane::Http2,
    );
    let request = access.request(&alice(), "a").expect("a request");
    let port = server.address.port();

    for uri in [
        format!("https://{}/api", other.address),
        format!("http://{}/api", server.address),
        format!("https://127.0.0.1:{port}@{}/api", other.address),
        "*".to_owned(),
    ] {
        let error = access.send(&request, get(&uri)).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::RequestInvalid, "{uri}");
    }
    let connect = Request::connect(format!("{}", other.address))
        .body(Body::empty())
        .expect("a request");
    assert_eq!(
        access.send(&request, connect).await.expect_err("refused").kind(),
        ErrorKind::RequestInvalid
    );

    assert_eq!((server.accepted(), other.accepted()), (0, 0));
    access
        .send(&request, get(&format!("https://{}/api", server.address)))
        .await
        .expect("its own server is fine");
}

#[tokio::test]
async fn path_arrives_byte_for_byte_behind_the_base_path() {
    for lane in LANES {
        let ca = Ca::new();
        let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
        let rancher = ClusterDetails::builder("a", format!("https://{}/k8s/clusters/c-1/", server.address))
            .auth_provider("test")
            .ca_pem(ca.pem())
            .build()
            .expect("a cluster");
        let access = access(vec![rancher], Strategy::new(|_| Ok(bearer("alice"))), lane);
        let request = access.request(&alice(), "a").expect("a request");

        for path in [
            "/api/v1/x%2Fy;z?b=2&a=%20+1&&c",
            "//double",
            "/",
            "/a?",
            "/%7Euser/~/%c3%a4",
        ] {
            access.send(&request, get(path)).await.expect("an answer");

            let target = server.seen().pop().expect("a request").target;
            assert!(target.ends_with(&format!("/k8s/clusters/c-1{path}")), "{target}");
        }
    }
}

#[tokio::test]
async fn path_never_climbs_out_of_the_clusters_url_to_another_cluster() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    let rancher = ClusterDetails::builder("a", format!("https://{}/k8s/clusters/c-1", server.address))
        .auth_provider("test")
        .ca_pem(ca.pem())
        .build()
        .expect("a cluster");
    let access = access(vec![rancher], Strategy::new(|_| Ok(bearer("alice"))), Lane::Http2);
    let request = access.request(&alice(), "a").expect("a request");

    for path in [
        "/../c-2/api/v1/secrets",
        "/..",
        "/.",
        "/a/./b",
        "/%2e%2e/c-2/api",
        "/.%2E/c-2/api",
        "/..%2fc-2/api",
        "/a%2F..%2F..%2Fc-2/api",
        "/..%5cc-2/api",
        "/..;x=1/c-2/api",
        "/..%3b/c-2/api",
    ] {
        let error = access.send(&request, get(path)).await.expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::RequestInvalid, "{path}");
    }
    assert_eq!(server.accepted(), 0);
    for path in [
        "/...",
        "/a..b/.well-known/..x",
        "/x?path=../y",
        "/%2",
        "/%zz%252e%252e/a",
        "/;..",
    ] {
        access.send(&request, get(path)).await.expect(path);
    }
}

/// A server whose watches never end and whose upgrades echo.
async fn streaming(ca: &Ca) -> Server {
    Server::start(ca.server(&[H2, H1]), |request, peer| async move {
        if request.headers().contains_key("upgrade") {
            return echo_upgrade(request, peer).await;
        }
        let (answer, more) = endless();
        tokio::spawn(async move {
            while more.send(Bytes::from_static(b"{}\n")).is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Ok(answer)
    })
    .await
}

#[tokio::test]
async fn logout_never_leaves_a_stream_open() {
    for lane in LANES {
        let ca = Ca::new();
        let server = streaming(&ca).await;
        let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
        let credential = bearer("t").with_login(login.clone());
        let access = access(
            vec![cluster("a", &server, &ca)],
            Strategy::new(move |_| Ok(credential.clone())),
            lane,
        );
        let request = access.request(&alice(), "a").expect("a request");
        let mut watch = access
            .send(&request, get("/api/v1/pods?watch=true"))
            .await
            .expect("a watch");
        watch
            .body_mut()
            .frame()
            .await
            .expect("a frame")
            .expect("no error");

        login.end();
        let error = async {
            loop {
                match watch.body_mut().frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error,
                    None => panic!("an end is no cut"),
                }
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(1), error)
            .await
            .expect("within a second");

        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        assert!(watch.body_mut().frame().await.is_none());
    }
}

#[tokio::test]
async fn logout_never_leaves_an_upgraded_connection_open() {
    let ca = Ca::new();
    let server = streaming(&ca).await;
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let credential = bearer("t").with_login(login.clone());
    let access = access(
        vec![cluster("a", &server, &ca)],
        Strategy::new(move |_| Ok(credential.clone())),
        Lane::Http2,
    );
    let request = access.request(&alice(), "a").expect("a request");
    let response = access.send(&request, upgrade("/exec")).await.expect("an answer");
    let upgraded = hyper::upgrade::on(response).await.expect("upgraded");
    let (mut reader, mut writer) = tokio::io::split(hyper_util::rt::TokioIo::new(upgraded));
    writer.write_all(b"x").await.expect("written");
    reader.read_u8().await.expect("read");
    let waiting = tokio::spawn(async move { reader.read_u8().await });
    tokio::task::yield_now().await;

    login.end();
    let error = tokio::time::timeout(Duration::from_secs(1), waiting)
        .await
        .expect("within a second");

    let error = error.expect("no panic").expect_err("cut");
    let ours = error
        .get_ref()
        .and_then(|inner| Error::find(inner))
        .expect("ours is inside");
    assert_eq!(ours.kind(), ErrorKind::LoginRequired);
    writer.write_all(b"x").await.expect_err("cut");
    drop(writer);
    eventually(|| server.open() == 0, "the connection is closed").await;
}

#[tokio::test]
async fn stream_ends_some_time_after_its_credential_or_its_caller() {
    let ending = bearer("t").with_expires_at(instant(1_100));
    let alice_ending = alice().with_expires_at(instant(1_100));
    for (lane, credential, caller) in LANES.into_iter().flat_map(|lane| {
        [
            (lane, ending.clone(), alice()),
            (lane, bearer("t"), alice_ending.clone()),
        ]
    }) {
        let ca = Ca::new();
        let server = streaming(&ca).await;
        let clock = ManualClock::at(instant(1_000));
        let access = standing(cluster("a", &server, &ca), &clock, lane, credential);
        let request = access.request(&caller, "a").expect("a request");
        let mut watch = access
            .send(&request, get("/api/v1/pods?watch=true"))
            .await
            .expect("a watch");

        clock.advance_seconds(129);
        watch
            .body_mut()
            .frame()
            .await
            .expect("a frame")
            .expect("the grace is not over");
        clock.advance_seconds(1);
        let error = watch
            .body_mut()
            .frame()
            .await
            .expect("a frame")
            .expect_err("over");

        assert_eq!(error.kind(), ErrorKind::TokenExpired);
    }
}

#[tokio::test]
async fn answer_that_comes_after_the_logout_is_never_handed_out() {
    let ca = Ca::new();
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let server = Server::start(ca.server(&[H2, H1]), {
        let login = login.clone();
        move |_, _| {
            login.end();
            async { Ok(text("too late")) }
        }
    })
    .await;
    let credential = bearer("t").with_login(login);
    let access = access(
        vec![cluster("a", &server, &ca)],
        Strategy::new(move |_| Ok(credential.clone())),
        Lane::Http2,
    );
    let request = access.request(&alice(), "a").expect("a request");

    let error = access.send(&request, get("/api")).await.expect_err("logged out");

    assert_eq!(
        (error.kind(), error.cluster()),
        (ErrorKind::LoginRequired, Some("a"))
    );
}

#[tokio::test]
async fn call_that_waits_for_a_connection_never_leaves_after_the_logout() {
    for lane in LANES {
        let ca = Ca::new();
        // Accepts connections, and speaks no TLS until it is told to.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let cluster = ClusterDetails::builder("a", format!("https://{address}"))
            .auth_provider("test")
            .ca_pem(ca.pem())
            .build()
            .expect("a cluster");
        let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
        let credential = bearer("t").with_login(login.clone());
        let access = access(
            vec![cluster],
            Strategy::new(move |_| Ok(credential.clone())),
            lane,
        );
        let request = access.request(&alice(), "a").expect("a request");
        let call = tokio::spawn(async move { access.send(&request, get("/api")).await });
        let (stream, _) = listener.accept().await.expect("a connection");

        login.end();

        let ended = tokio::time::timeout(Duration::from_secs(5), call).await;
        let error = ended
            .expect("at once")
            .expect("no panic")
            .expect_err("logged out");
        assert_eq!(error.kind(), ErrorKind::LoginRequired);
        drop(stream);
    }
}

#[tokio::test]
async fn request_is_never_replayed_with_a_token_that_expired_meanwhile() {
    let ca = Ca::new();
    let clock = ManualClock::at(instant(1_000));
    // Breaks the second request of its connection after a while.
    let server = Server::start(ca.server(&[H1]), {
        let (clock, asked) = (clock.clone(), Arc::new(AtomicUsize::new(0)));
        move |_, _| {
            let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
            if !first {
                clock.advance_seconds(60);
            }
            async move { if first { Ok(text("")) } else { Err(Broken) } }
        }
    })
    .await;
    let credential = bearer("t").with_expires_at(instant(1_050));
    let access = standing(cluster("a", &server, &ca), &clock, Lane::Http1, credential);
    let request = access.request(&alice(), "a").expect("a request");
    read(access.send(&request, get("/")).await.expect("an answer"))
        .await
        .expect("a body");

    access.send(&request, get("/")).await.expect_err("broken");

    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn waiting_watch_ends_at_logout_before_its_first_answer() {
    let ca = Ca::new();
    let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
    let arrived = Arc::new(tokio::sync::Notify::new());
    let server = Server::start(ca.server(&[H2, H1]), {
        let arrived = arrived.clone();
        move |_, _| {
            arrived.notify_one();
            std::future::pending::<std::result::Result<Answer, Broken>>()
        }
    })
    .await;
    let credential = bearer("t").with_login(login.clone());
    let access = access(
        vec![cluster("a", &server, &ca)],
        Strategy::new(move |_| Ok(credential.clone())),
        Lane::Http2,
    );
    let request = access.request(&alice(), "a").expect("a request");
    let watch = tokio::spawn(async move { access.send(&request, get("/logs?follow=true")).await });
    arrived.notified().await;

    login.end();

    let error = watch.await.expect("no panic").expect_err("logged out");
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
}

#[tokio::test]
async fn changed_cluster_never_gets_the_request_of_the_old_one() {
    let ca = Ca::new();
    let old = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    let new = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    let seen_servers = Arc::new(Mutex::new(Vec::new()));
    let strategy = Strategy::new({
        let seen_servers = seen_servers.clone();
        move |request| {
            seen_servers
                .lock()
                .expect("no panic")
                .push(request.cluster.server().port());
            Ok(bearer(format!("for-{}", request.cluster.server().port())))
        }
    });
    let access = access(vec![cluster("a", &old, &ca)], strategy, Lane::Http2);
    let request = access.request(&alice(), "a").expect("a request");
    access.send(&request, get("/")).await.expect("an answer");

    access.clusters().replace(&[cluster("a", &new, &ca)]);
    let request = access.request(&alice(), "a").expect("a request");
    let answer = access.send(&request, get("/")).await.expect("an answer");

    assert_eq!(
        read(answer).await.expect("a body"),
        format!("Bearer for-{}", new.address.port())
    );
    assert_eq!((old.seen().len(), new.seen().len()), (1, 1));
    assert_eq!(
        *seen_servers.lock().expect("no panic"),
        [old.address.port(), new.address.port()]
    );
}

#[tokio::test]
async fn credential_without_an_end_is_sent_with_the_machines_clock() {
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), echo_identity).await;
    let soon = SystemClock.now() + SignedDuration::from_secs(600);
    let access = access(
        vec![cluster("a", &server, &ca)],
        Strategy::new(move |request| match request.principal == Principal::anonymous() {
            true => Ok(Credential::anonymous()),
            false => Ok(bearer("t").with_expires_at(soon)),
        }),
        Lane::Http2,
    );

    for (principal, expected) in [(alice(), "Bearer t"), (Principal::anonymous(), "")] {
        let request = CredentialRequest::new(principal, access.clusters().get("a").expect("a cluster"));
        let answer = access.send(&request, get("/")).await.expect("an answer");
        assert_eq!(read(answer).await.expect("a body"), expected);
    }
}
