//! What holds for every answer, whichever route it comes from.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests"
)]

mod support;

use axum::body::Body;
use http::header;
use kube_authn_http::TokenExposure;
use serde_json::{Value, json};
use support::{Answered, Service, as_caller, clock};

/// Every route with every method and caller, and some that are none.
async fn all_answers(service: &Service, body: &Value) -> Vec<(String, Answered)> {
    let mut answers = Vec::new();
    for caller in [
        "",
        "alice",
        "bob",
        "limited:alice",
        "plugin",
        "plugin-for:alice",
        "default/guest",
    ] {
        for path in [
            "/api/cluster-auth/tokens",
            "/api/cluster-auth/tokens?cluster=openportal",
            "/api/cluster-auth/status",
            "/api/cluster-auth/status?cluster=nowhere&cluster=x",
            "/api/cluster-auth/token",
            "/api/cluster-auth/stats",
            "/api/cluster-auth/debug/token",
            "/api/cluster-auth/",
            "/api/cluster-auth",
        ] {
            for method in ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "POST", "DELETE"] {
                let request = as_caller(caller, method, path)
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(Body::from(body.to_string()))
                    .expect("a request");
                answers.push((format!("{caller} {method} {path}"), service.send(request).await));
            }
        }
    }
    answers
}

#[tokio::test]
async fn no_answer_of_the_token_api_may_be_stored() {
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &["openportal"])]).await;
    let tokens = service.tokens("alice-sub", json!({}));

    for (request, answer) in all_answers(&service, &tokens).await {
        assert_eq!(
            answer
                .headers
                .get(header::CACHE_CONTROL)
                .map(|value| value.as_bytes()),
            Some(&b"no-store"[..]),
            "{request}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn refusals_are_json_with_a_code() {
    let service = Service::start().await;

    for (request, answer) in all_answers(&service, &json!({})).await {
        if answer.status >= 400 && !request.contains("HEAD") {
            let body = answer.json();
            for field in ["error", "message", "code"] {
                assert!(body[field].is_string(), "{request}: {answer:?}");
            }
        }
        assert_ne!(answer.status, 500, "{request}: {answer:?}");
    }
}

#[tokio::test]
async fn no_answer_ever_holds_a_token() {
    let service = Service::start().await;
    let tokens = service.tokens("alice-sub", json!({ "secret-claim": "canary-claim" }));
    service.post("alice", &tokens).await;
    let mut forged = tokens.clone();
    forged["id_token"] = format!("{}x", tokens["id_token"].as_str().expect("text")).into();

    let mut answers = all_answers(&service, &forged).await;
    service.post("alice", &tokens).await;
    answers.extend(all_answers(&service, &tokens).await);
    for path in ["/api/kubernetes/clusters", "/healthz", "/readyz", "/metrics"] {
        answers.push((path.to_owned(), service.get("alice", path).await));
    }

    let signature = tokens["id_token"]
        .as_str()
        .and_then(|token| token.rsplit('.').next())
        .expect("a signature");
    for (request, answer) in answers {
        let all = format!("{:?} {}", answer.headers, answer.text);
        for secret in ["canary", signature, "eyJ"] {
            assert!(!all.contains(secret), "{request}: {all}");
        }
    }
}

#[tokio::test]
async fn unknown_methods_name_the_known_ones() {
    let service = Service::start().await;

    let refused = service
        .send(
            as_caller("alice", "PUT", "/api/cluster-auth/status")
                .body(Body::empty())
                .expect("a request"),
        )
        .await;

    assert_eq!(refused.status, 405);
    assert_eq!(refused.headers[header::ALLOW], "GET,HEAD");
}
