//! Which cluster, as whom, and in which words the proxy refuses.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use kube_authn_core::CredentialScope;
use serde_json::json;
use support::{ALICE, OK, Proxy, Recorder, Strategy, access, body, json as parse, plain, status};

const REFUSED: &str = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nAudit-Id: audit-1\r\nWarning: 299 - \"x\"\r\n\
    Set-Cookie: portal=evil\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 17\r\n\r\n{\"kind\":\"Status\"}";

#[tokio::test]
async fn answer_of_the_api_server_passes_unchanged() {
    let upstream = Recorder::start(REFUSED).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    let answer = proxy.get("/api/kubernetes/proxy/api", "").await;

    assert_eq!((status(&answer), body(&answer)), (403, "{\"kind\":\"Status\"}"));
    let head = answer.to_lowercase();
    for line in [
        "audit-id: audit-1",
        "warning: 299 - \"x\"",
        "content-type: application/json",
        "content-length: 17",
    ] {
        assert!(head.contains(line), "{answer}");
    }
    assert!(
        !head.contains("set-cookie") && !head.contains("x-hop"),
        "{answer}"
    );
}

#[tokio::test]
async fn script_in_a_page_of_a_pod_never_runs_on_our_origin() {
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX-Content-Type-Options: off\r\n\
        Content-Security-Policy: default-src 'self'\r\nTransfer-Encoding: chunked\r\n\
        Trailer: Content-Security-Policy, X-Content-Type-Options\r\n\r\n\
        9\r\n<script/>\r\n0\r\nContent-Security-Policy: x\r\nX-Content-Type-Options: x\r\n\r\n";
    let upstream = Recorder::start(page).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    for target in [
        "/api/kubernetes/proxy/api/v1/namespaces/a/services/x/proxy/",
        "/api/kubernetes/clusters/a/proxy/api/v1/namespaces/a/pods/x/proxy/x.svg",
    ] {
        let answer = proxy.get(target, "TE: trailers\r\n").await.to_lowercase();

        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let lines = |name: &str| -> Vec<_> {
            head.lines()
                .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .collect()
        };
        assert_eq!(
            lines("content-security-policy"),
            ["default-src 'self'", "sandbox"]
        );
        assert_eq!(lines("x-content-type-options"), ["nosniff"]);
        assert!(body.contains("<script/>"), "{answer}");
        assert!(!body.contains("policy") && !body.contains("options"), "{answer}");
    }
}

#[tokio::test]
async fn cluster_is_named_by_path_or_header_or_is_the_only_one() {
    let (a, b) = (Recorder::start(OK).await, Recorder::start(OK).await);
    let none = Proxy::start(vec![]).await;
    let one = Proxy::start(vec![plain("a b", a.address)]).await;
    let two = Proxy::start(vec![plain("a", a.address), plain("b", b.address)]).await;

    let texts = [
        none.get("/api/kubernetes/proxy/1", "").await,
        none.get("/api/kubernetes/clusters/a/proxy/2", "").await,
        two.get("/api/kubernetes/proxy/3", "").await,
        two.get("/api/kubernetes/proxy/4", "Backstage-Kubernetes-Cluster:  \r\n")
            .await,
        two.get("/api/kubernetes/proxy/5", "Backstage-Kubernetes-Cluster: B\r\n")
            .await,
        two.get("/api/kubernetes/clusters/c%0d/proxy/6", "").await,
    ]
    .map(|answer| {
        (
            status(&answer),
            parse(&answer)["message"].as_str().expect("a text").to_owned(),
        )
    });
    one.get("/api/kubernetes/proxy/7", "").await;
    one.get("/api/kubernetes/clusters/a%20b/proxy/8", "").await;
    two.get("/api/kubernetes/proxy/9", "Backstage-Kubernetes-Cluster: b\r\n")
        .await;
    // The path decides; the header is for the other path.
    two.get(
        "/api/kubernetes/clusters/b/proxy/10",
        "Backstage-Kubernetes-Cluster: a\r\n",
    )
    .await;

    assert_eq!(
        texts.each_ref().map(|(code, text)| (*code, text.as_str())),
        [
            (404, "No Clusters configured"),
            (404, "No Clusters configured"),
            (
                404,
                "Cluster 'undefined' not found: name one in the header Backstage-Kubernetes-Cluster"
            ),
            (
                404,
                "Cluster 'undefined' not found: name one in the header Backstage-Kubernetes-Cluster"
            ),
            (404, "Cluster 'B' not found"),
            (404, "Cluster 'c\\r' not found"),
        ]
    );
    assert_eq!(a.targets(), ["/7", "/8"]);
    assert_eq!(b.targets(), ["/9", "/10"]);
}

#[tokio::test]
async fn refusal_is_a_status_for_kubectl_and_an_error_for_backstage() {
    let proxy = Proxy::start(vec![]).await;

    let by_path = proxy
        .get("/api/kubernetes/clusters/a/proxy/api?token=secret", "")
        .await;
    let by_header = proxy.get("/api/kubernetes/proxy/api?token=secret", "").await;

    let mut expected = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "No Clusters configured", "reason": "NotFound", "code": 404,
        "details": { "causes": [{ "reason": "not_found", "message": "No Clusters configured" }] },
    });
    assert_eq!(parse(&by_path), expected);
    let ours = json!({
        "error": { "name": "NotFoundError", "message": "No Clusters configured" },
        "request": { "method": "GET", "url": "/api/kubernetes/proxy/api" },
        "response": { "statusCode": 404 },
    });
    expected
        .as_object_mut()
        .expect("an object")
        .extend(ours.as_object().expect("an object").clone());
    assert_eq!(parse(&by_header), expected);
    for answer in [by_path, by_header] {
        assert!(
            answer.contains("warning: 299 kube-authn \"No Clusters configured\""),
            "{answer}"
        );
        assert!(answer.contains("cache-control: no-store"), "{answer}");
    }
}

#[tokio::test]
async fn unknown_caller_learns_nothing() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    for target in [
        "/api/kubernetes/proxy/api",
        "/api/kubernetes/clusters/nope/proxy/../x",
    ] {
        let answer = proxy
            .raw(format!(
                "GET {target} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n"
            ))
            .await;

        assert_eq!(status(&answer), 401);
        assert!(
            answer.contains("www-authenticate: Bearer") && answer.contains("Missing credentials"),
            "{answer}"
        );
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn offered_token_reaches_the_strategy_that_takes_it_and_nobody_else() {
    let upstream = Recorder::start(OK).await;
    let strategy = Strategy::new("test", CredentialScope::Request);
    let proxy = Proxy::with(access(vec![plain("a", upstream.address)], strategy)).await;

    proxy
        .get(
            "/api/kubernetes/proxy/1",
            "Backstage-Kubernetes-Authorization-TEST: offered\r\n",
        )
        .await;
    proxy
        .get(
            "/api/kubernetes/proxy/2",
            "Backstage-Kubernetes-Authorization-Google: canary\r\n",
        )
        .await;
    let twice =
        "Backstage-Kubernetes-Authorization-test: a\r\nBackstage-Kubernetes-Authorization-test: b\r\n";
    let refused = proxy.get("/api/kubernetes/proxy/3", twice).await;

    let requests = upstream.requests();
    assert!(
        requests[0].contains("authorization: Bearer offered\r\n"),
        "{}",
        requests[0]
    );
    assert!(
        requests[1].contains(ALICE) && !requests[1].contains("canary"),
        "{}",
        requests[1]
    );
    assert!(
        requests
            .iter()
            .all(|request| !request.to_lowercase().contains("backstage"))
    );
    assert_eq!((status(&refused), requests.len()), (400, 2));
}

#[tokio::test]
async fn own_authorization_replaces_the_strategy_only_where_it_is_not_about_users() {
    let line = "Backstage-Kubernetes-Authorization: Basic  YTpi\r\n";
    for (scope, code, sent) in [
        (
            CredentialScope::Application,
            200,
            "authorization: Basic  YTpi\r\n",
        ),
        (CredentialScope::Request, 200, "authorization: Basic  YTpi\r\n"),
        (CredentialScope::User, 403, ""),
    ] {
        let upstream = Recorder::start(OK).await;
        let proxy = Proxy::with(access(
            vec![plain("a", upstream.address)],
            Strategy::new("test", scope),
        ))
        .await;

        let answer = proxy.get("/api/kubernetes/proxy/api", line).await;
        let after = proxy.get("/api/kubernetes/proxy/api", "").await;

        assert_eq!((status(&answer), status(&after)), (code, 200), "{answer}");
        let requests = upstream.requests();
        assert!(requests[0].contains(sent), "{requests:?}");
        // It was kept for nobody.
        assert!(
            requests.last().expect("a request").contains(ALICE),
            "{requests:?}"
        );
        assert!(!answer.contains("YTpi"), "{answer}");
    }
}

#[tokio::test]
async fn own_authorization_that_is_refused_never_drops_the_shared_credential() {
    let upstream = Recorder::start("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    let mut strategy = Strategy::new("test", CredentialScope::Application);
    strategy.renewable = true;
    let proxy = Proxy::with(access(vec![plain("a", upstream.address)], strategy)).await;

    let answer = proxy
        .get(
            "/api/kubernetes/proxy/api",
            "Backstage-Kubernetes-Authorization: Bearer wrong\r\n",
        )
        .await;

    assert_eq!((status(&answer), upstream.requests().len()), (401, 1));
}

#[tokio::test]
async fn expired_offered_line_is_never_sent() {
    let upstream = Recorder::start(OK).await;
    let strategy = Strategy::new("test", CredentialScope::Application);
    let proxy = Proxy::with(access(vec![plain("a", upstream.address)], strategy)).await;
    // {"alg":"none"} . {"exp":1}
    let line = "Backstage-Kubernetes-Authorization: Bearer eyJhbGciOiJub25lIn0.eyJleHAiOjF9.x\r\n";

    let answer = proxy.get("/api/kubernetes/proxy/api", line).await;

    assert_eq!((status(&answer), upstream.connections()), (401, 0), "{answer}");
}

#[tokio::test]
async fn read_is_sent_once_more_after_a_401_and_a_write_is_not() {
    let upstream = Recorder::start("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    let mut strategy = Strategy::new("test", CredentialScope::User);
    strategy.renewable = true;
    let proxy = Proxy::with(access(vec![plain("a", upstream.address)], strategy)).await;
    let call = |method: &str, name: &str, body: &str| {
        format!(
            "{method} /api/kubernetes/proxy/api HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer {name}\r\n\
            Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };

    let read = proxy.raw(call("GET", "alice", "")).await;
    let after_read = upstream.requests().len();
    let write = proxy.raw(call("POST", "bob", "{}")).await;

    assert_eq!((status(&read), status(&write)), (401, 401));
    assert_eq!((after_read, upstream.requests().len()), (2, 3));
}
