//! Both routers inside a service that was there before: its prefixes, state, layers, sessions and fallback.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod proxying;
mod support;

use std::net::SocketAddr;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use http::{HeaderValue, StatusCode};
use kube_authn_core::{ClusterAccess, CredentialScope, EntityRef, Principal, Result, async_trait};
use kube_authn_http::{
    Caller, CallerAuthenticator, CallerRequest, Callers, Health, ProxyState, proxy, router,
};
use proxying::{ALICE, OK, Recorder, Strategy, access, exchange, listen, plain, status};
use serde_json::json;
use support::{Answered, Service};
use tower::ServiceExt;

/// The host's own user type, which its layer finds by the session's cookie.
#[derive(Clone, Debug)]
struct Employee(&'static str);

#[derive(Debug)]
struct SignedIn;

#[async_trait]
impl CallerAuthenticator for SignedIn {
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>> {
        let Some(Employee(name)) = request.extensions.get() else {
            return Ok(None);
        };
        let user = EntityRef::parse(&format!("user:default/{name}"))?;
        Ok(Some(Caller::new(Principal::user(user))))
    }
}

async fn session(mut request: Request, next: Next) -> Response {
    if request.headers().get("cookie") == Some(&HeaderValue::from_static("session=s1")) {
        request.extensions_mut().insert(Employee("alice"));
    }
    let mut response = next.run(request).await;
    response
        .headers_mut()
        .insert("x-portal", HeaderValue::from_static("1"));
    response
}

/// The service that was there before.
#[derive(Clone)]
struct Portal {
    greeting: &'static str,
}

fn portal(access: &ClusterAccess, nest: impl FnOnce(Router, Router, Router) -> Router) -> Router {
    let callers = Callers::new().with(SignedIn);
    let own = Router::new()
        .route("/", get(async |State(portal): State<Portal>| portal.greeting))
        .fallback(async || (StatusCode::NOT_FOUND, "the portal knows no such page"))
        .with_state(Portal { greeting: "welcome" });
    let api = router(access, &callers, None, Health::new(), None);
    let proxy = proxy(ProxyState::new(access.clone(), callers));
    nest(own, api, proxy).layer(middleware::from_fn(session))
}

async fn serve(router: Router) -> SocketAddr {
    let listener = listen().await;
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn get_as(address: SocketAddr, target: &str, cookie: &str) -> String {
    let lines = match cookie {
        "" => String::new(),
        cookie => format!("Cookie: {cookie}\r\n"),
    };
    let request = format!("GET {target} HTTP/1.1\r\nHost: portal\r\nConnection: close\r\n{lines}\r\n");
    exchange(address, request.as_bytes()).await
}

fn as_users(clusters: Vec<kube_authn_core::ClusterDetails>) -> ClusterAccess {
    access(clusters, Strategy::new("test", CredentialScope::User))
}

#[tokio::test]
async fn wherever_the_proxy_is_nested_the_api_server_gets_the_same_bytes() {
    let paths = [
        "",
        "/",
        "/api/v1/pods?watch=1&labelSelector=a%3Db",
        "/api/v1/namespaces/a/services/https:s:443/proxy/x%2Fy%2fz",
        "/api/kubernetes/proxy/%C3%BC/%7e~;..",
        "/portal/api/kubernetes/clusters/a/proxy/100%2525?x=%2e%2e//",
    ];
    for (prefix, written) in [
        ("/portal", "/portal"),
        ("/a/b", "/a/b"),
        ("/tenants/{tenant}", "/tenants/t%2F%2e%2e"),
        ("/api/kubernetes", "/api/kubernetes"),
    ] {
        let recorder = Recorder::start(OK).await;
        let access = as_users(vec![plain("a/b c", recorder.address)]);
        let host = portal(&access, |own, api, proxy| own.nest(prefix, api.merge(proxy)));
        let address = serve(host).await;

        for path in paths {
            for route in [
                "/api/kubernetes/proxy",
                "/api/kubernetes/clusters/a%2Fb%20c/proxy",
            ] {
                let answer = get_as(address, &format!("{written}{route}{path}"), "session=s1").await;
                assert_eq!(status(&answer), 200, "{prefix}{route}{path}: {answer}");
            }
        }

        let expected = paths.map(|path| if path.is_empty() { "/" } else { path });
        let expected: Vec<_> = expected.into_iter().flat_map(|path| [path, path]).collect();
        assert_eq!(recorder.targets(), expected, "{prefix}");
    }
}

#[tokio::test]
async fn trick_in_the_path_gets_no_further_for_being_nested() {
    let recorder = Recorder::start(OK).await;
    let access = as_users(vec![plain("a", recorder.address)]);
    let host = portal(&access, |own, api, proxy| own.nest("/portal", api.merge(proxy)));
    let address = serve(host).await;

    for (target, refused) in [
        ("/portal/api/kubernetes/proxy/a/../b", 400),
        ("/portal/api/kubernetes/proxy/a/%2e%2e/b", 400),
        ("/portal/api/kubernetes/clusters/a/proxy/%252e%252e/b", 400),
        ("/portal/api/kubernetes/clusters/a/proxy//b", 400),
        ("/portal/api/kubernetes/clusters/%/proxy/b", 400),
        ("http://other/portal/api/kubernetes/proxy/b", 400),
        ("/portal/../portal/api/kubernetes/proxy/b", 404),
        ("//portal/api/kubernetes/proxy/b", 404),
        ("/%70ortal/api/kubernetes/proxy/b", 404),
        ("/portal/api/kubernetes/clusters/a%2Fproxy/b", 404),
        ("/api/kubernetes/proxy/b", 404),
    ] {
        let answer = get_as(address, target, "session=s1").await;
        assert_eq!(status(&answer), refused, "{target}: {answer}");
    }
    assert_eq!(recorder.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn session_of_the_host_decides_who_calls_and_never_reaches_the_cluster() {
    let recorder = Recorder::start(OK).await;
    let access = as_users(vec![plain("a", recorder.address)]);
    let host = portal(&access, |own, api, proxy| {
        own.nest("/portal", api).nest_service("/k8s", proxy)
    });
    let address = serve(host).await;
    let pods = "/k8s/api/kubernetes/clusters/a/proxy/api/v1/pods";

    let alice = get_as(address, pods, "session=s1").await;
    let strangers = [
        get_as(address, pods, "").await,
        get_as(address, pods, "session=s2").await,
        get_as(address, "/portal/api/kubernetes/clusters", "").await,
    ];
    let list = get_as(address, "/portal/api/kubernetes/clusters", "session=s1").await;
    let own = get_as(address, "/", "").await;
    let unknown = get_as(address, "/no-such-page", "").await;

    assert_eq!(status(&alice), 200, "{alice}");
    for answer in &strangers {
        assert_eq!(status(answer), 401, "{answer}");
    }
    assert!(list.contains("\"name\":\"a\""), "{list}");
    assert!(own.ends_with("welcome"), "{own}");
    assert!(unknown.ends_with("the portal knows no such page"), "{unknown}");
    for answer in [&alice, &strangers[0], &list, &own, &unknown] {
        assert!(answer.contains("x-portal: 1"), "{answer}");
    }
    let lines = recorder.last_lines();
    assert_eq!(recorder.requests().len(), 1);
    assert!(
        lines.contains(&format!("authorization: {}", ALICE.to_lowercase())),
        "{lines:?}"
    );
    assert!(!lines.iter().any(|line| line.contains("session")), "{lines:?}");
}

#[tokio::test]
async fn exec_is_upgraded_through_the_hosts_layers() {
    let recorder = Recorder::start(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n",
    )
    .await;
    let access = as_users(vec![plain("a", recorder.address)]);
    let host = portal(&access, |own, api, proxy| own.nest("/portal", api.merge(proxy)));
    let address = serve(host).await;
    let request = "POST /portal/api/kubernetes/clusters/a/proxy/api/v1/namespaces/n/pods/p/exec?command=sh HTTP/1.1\r\n\
        Host: portal\r\nCookie: session=s1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n";

    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("a connection");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .expect("written");
    let mut bytes = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut bytes)
        .await
        .expect("an answer");

    assert_eq!(&bytes, b"HTTP/1.1 101");
}

#[tokio::test]
async fn token_api_answers_alike_wherever_it_is_nested() {
    let service = Service::start().await;
    let host = Router::new()
        .fallback(async || StatusCode::IM_A_TEAPOT)
        .nest("/portal/v2", service.router.clone());
    let send = async |method: &str, path: &str, body: serde_json::Value| {
        let request = support::as_caller("alice", method, &format!("/portal/v2{path}"))
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .expect("a request");
        Answered::of(host.clone().oneshot(request).await.expect("infallible")).await
    };
    let tokens = service.tokens("alice-sub", json!({}));

    let stored = send("POST", "/api/cluster-auth/tokens", tokens).await;
    let status = send("GET", "/api/cluster-auth/status", json!({})).await;
    let unknown = send("GET", "/api/cluster-auth/stats", json!({})).await;
    let root = send("GET", "/api/cluster-auth/", json!({})).await;
    let wrong = send("PUT", "/api/cluster-auth/tokens", json!({})).await;
    let outside = send("GET", "/api/nothing", json!({})).await;

    assert_eq!(stored.status, 200, "{}", stored.text);
    assert_eq!(status.json()["authenticated"], json!(true));
    for (answer, status) in [(&unknown, 404), (&root, 404), (&wrong, 405)] {
        assert_eq!(answer.status, status);
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert!(answer.json()["code"].is_string(), "{}", answer.text);
    }
    assert_eq!(outside.status, 418);
}
