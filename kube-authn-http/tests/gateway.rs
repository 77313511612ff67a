//! Callers whom a gateway names: what a page of another site makes their browser send, and who reads the name.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use http::{HeaderName, Request};
use kube_authn_core::CredentialScope;
use kube_authn_http::{Callers, HeaderCallers, ProxyState};
use support::{ByName, OK, Proxy, Recorder, Strategy, access, full, json, plain, status};

const USER: HeaderName = HeaderName::from_static("x-forwarded-user");
const POD: &str = "/api/kubernetes/proxy/api/v1/namespaces/a/pods/x";

/// What browsers say of a page of another site, new ones first.
const ELSEWHERE: [&str; 4] = [
    "Sec-Fetch-Site: cross-site\r\nOrigin: https://evil.example\r\n",
    "Sec-Fetch-Site: same-site\r\n",
    "Origin: https://evil.example\r\n",
    "Origin: null\r\n",
];

async fn behind_a_gateway(upstream: &Recorder) -> Proxy {
    let access = access(
        vec![plain("a", upstream.address)],
        Strategy::new("test", CredentialScope::User),
    );
    let callers = Callers::new()
        .with(HeaderCallers::new(USER, |peer| peer.is_loopback()))
        .with(ByName);
    Proxy::of(ProxyState::new(access, callers)).await
}

/// The head lines of a request of alice's browser, each with what it is called with.
fn requests() -> Vec<(&'static str, String)> {
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    let plain = "Connection: close\r\nContent-Length: 0\r\n";
    vec![
        ("GET", plain.to_owned()),
        ("POST", plain.to_owned()),
        ("PUT", plain.to_owned()),
        ("DELETE", plain.to_owned()),
        ("GET", upgrade.to_owned()),
    ]
}

#[tokio::test]
async fn page_of_another_site_never_acts_for_a_caller_whom_a_gateway_names() {
    let upstream = Recorder::start(OK).await;
    let proxy = behind_a_gateway(&upstream).await;

    for (method, lines) in requests() {
        for elsewhere in ELSEWHERE {
            let answer = proxy
                .raw(format!(
                    "{method} {POD} HTTP/1.1\r\nHost: portal\r\nX-Forwarded-User: alice\r\n{lines}{elsewhere}\r\n"
                ))
                .await;

            assert_eq!(status(&answer), 403, "{method} {elsewhere}: {answer}");
            let code = &json(&answer)["details"]["causes"][0]["reason"];
            assert_eq!(code, "forbidden", "{answer}");
        }
    }
    for origin in ["https://evil.example", "null"] {
        let request = Request::post(format!("http://portal{POD}"))
            .header("x-forwarded-user", "alice")
            .header("origin", origin)
            .body(full(""));
        let answer = proxy
            .http2()
            .await
            .send_request(request.expect("a request"))
            .await;
        assert_eq!(answer.expect("an answer").status(), 403, "{origin}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn own_pages_and_programs_get_through_a_gateway() {
    let upstream = Recorder::start(OK).await;
    let proxy = behind_a_gateway(&upstream).await;

    for (method, lines) in requests() {
        for ours in [
            "",
            "Sec-Fetch-Site: same-origin\r\n",
            "Sec-Fetch-Site: none\r\n",
            "Origin: https://portal\r\n",
        ] {
            let answer = proxy
                .raw(format!(
                    "{method} {POD} HTTP/1.1\r\nHost: portal\r\nX-Forwarded-User: alice\r\n{lines}{ours}\r\n"
                ))
                .await;
            assert_eq!(status(&answer), 200, "{method} {ours}: {answer}");
        }
    }
    let over_http2 = Request::post(format!("http://portal{POD}"))
        .header("x-forwarded-user", "alice")
        .header("origin", "http://portal")
        .body(full(""));
    let answer = proxy
        .http2()
        .await
        .send_request(over_http2.expect("a request"))
        .await;
    assert_eq!(answer.expect("an answer").status(), 200);
}

#[tokio::test]
async fn token_that_a_page_adds_itself_is_not_bound_to_a_site() {
    let upstream = Recorder::start(OK).await;
    let proxy = behind_a_gateway(&upstream).await;

    let answer = proxy
        .get(
            "/api/kubernetes/proxy/api",
            "Sec-Fetch-Site: cross-site\r\nOrigin: https://other.example\r\n",
        )
        .await;

    assert_eq!(status(&answer), 200, "{answer}");
}

/// By a name that means nothing to anybody else.
#[tokio::test]
async fn name_that_a_gateway_gives_never_reaches_a_cluster() {
    let upstream = Recorder::start(OK).await;
    let access = access(
        vec![plain("a", upstream.address)],
        Strategy::new("test", CredentialScope::User),
    );
    let sso = HeaderName::from_static("sso-user");
    let callers = Callers::new()
        .with(HeaderCallers::new(sso, |peer| peer.is_loopback()))
        .with(ByName);
    let proxy = Proxy::of(ProxyState::new(access, callers)).await;
    let body = "Transfer-Encoding: chunked\r\nTrailer: Sso-User, X-Sum\r\n\r\n\
        1\r\nx\r\n0\r\nSso-User: canary\r\nSSO_USER: canary\r\nX-Sum: 1\r\n";
    for lines in [
        "Sso-User: canary\r\n",
        // Behind the body alone.
        "Authorization: Bearer alice\r\n",
    ] {
        let answer = proxy
            .raw(format!(
                "POST {POD} HTTP/1.1\r\nHost: portal\r\nConnection: close\r\n{lines}{body}\r\n"
            ))
            .await;

        assert_eq!(status(&answer), 200, "{answer}");
        let request = upstream.requests().pop().expect("a request").to_lowercase();
        assert!(request.contains("x-sum: 1"), "{request}");
        let told = request.replace("cluster-token-of-user-default-canary", "");
        assert!(!told.contains("canary"), "{request}");
    }
}
