//! Strategy `serviceAccount` with `tokenRequest`, against an API server on loopback that refuses.
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    http::{StatusCode, Uri},
};
use kube_authn_core::{
    ClusterDetails, CredentialRequest, EntityRef, ErrorKind, KubernetesAuthProvider, Principal, Secret,
    StrategyOptions, UpstreamPool,
    rustls::crypto::aws_lc_rs,
    serde_json::{self, Value, json},
};
use kube_authn_providers::ServiceAccountProvider;

/// Answers whatever it is asked with this, and notes it.
async fn api_server(status: u16, answer: &'static str) -> (String, Arc<Mutex<Vec<(String, Bytes)>>>) {
    let asked: Arc<Mutex<Vec<_>>> = Arc::default();
    let noted = asked.clone();
    let router = Router::new().fallback(move |uri: Uri, body: Bytes| async move {
        noted.lock().expect("unpoisoned").push((uri.to_string(), body));
        (StatusCode::from_u16(status).expect("a status"), answer)
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

fn request(url: &str) -> CredentialRequest {
    let block =
        json!({ "tokenRequest": { "namespace": "team-a", "serviceAccount": "robot", "audiences": ["x"] } });
    let cluster = ClusterDetails::builder("prod", url)
        .auth_provider(ServiceAccountProvider::NAME)
        .service_account_token(Secret::new("canary-bootstrap"))
        .options(StrategyOptions::new(
            block.as_object().expect("an object").clone(),
        ))
        .build()
        .expect("a cluster");
    let alice = EntityRef::parse("user:default/alice").expect("a reference");
    CredentialRequest::new(Principal::user(alice), cluster)
}

fn strategy() -> ServiceAccountProvider {
    let pool = UpstreamPool::new(Arc::new(aws_lc_rs::default_provider()));
    ServiceAccountProvider::new().with_token_requests(pool)
}

#[tokio::test]
async fn refusal_names_the_service_account_and_what_to_do() {
    for (status, kind, why) in [
        (
            400,
            ErrorKind::ConfigInvalid,
            "the API server refused it (400): check kubeAuthn.tokenRequest",
        ),
        (
            401,
            ErrorKind::Unavailable,
            "the API server does not know the token that asks for it (401): configure a valid serviceAccountToken",
        ),
        (
            403,
            ErrorKind::ConfigInvalid,
            "the API server refused it (403): allow the configured token verb create on serviceaccounts/token, resourceNames \
             [robot], in namespace team-a",
        ),
        (
            404,
            ErrorKind::ConfigInvalid,
            "there is no such service account (404): create it, or correct kubeAuthn.tokenRequest",
        ),
        (429, ErrorKind::Unavailable, "the API server answered with 429"),
        (500, ErrorKind::Unavailable, "the API server answered with 500"),
        (503, ErrorKind::Unavailable, "the API server answered with 503"),
    ] {
        let (url, asked) = api_server(status, r#"{"kind":"Status","message":"canary"}"#).await;

        let error = strategy().credential(&request(&url)).await.expect_err("refused");

        let expected = format!("cannot have a token of service account team-a/robot made: {why}");
        assert_eq!((error.kind(), error.to_string()), (kind, expected));
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        let asked = asked.lock().expect("unpoisoned");
        let [(path, body)] = &asked[..] else {
            panic!("{status}: {asked:?}")
        };
        assert_eq!(path, "/api/v1/namespaces/team-a/serviceaccounts/robot/token");
        assert_eq!(
            serde_json::from_slice::<Value>(body).expect("JSON"),
            json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                "spec": { "expirationSeconds": 3600, "audiences": ["x"] },
            })
        );
    }
}

#[tokio::test]
async fn answer_that_holds_no_good_token_is_named_without_being_shown() {
    for (answer, kind, why) in [
        (
            "canary",
            ErrorKind::Unexpected,
            "the API server's answer is no TokenRequest",
        ),
        (
            r#"{"status":{"token":"canary","expirationTimestamp":"soon"}}"#,
            ErrorKind::Unexpected,
            "the API server's answer states no end",
        ),
        (
            r#"{"status":{"token":"canary","expirationTimestamp":"2001-01-01T00:00:00Z"}}"#,
            ErrorKind::Unavailable,
            "the new token has expired already: compare the clocks of this machine and of the API server",
        ),
    ] {
        let (url, _) = api_server(201, answer).await;

        let error = strategy().credential(&request(&url)).await.expect_err("refused");

        let expected = format!("cannot have a token of service account team-a/robot made: {why}");
        assert_eq!((error.kind(), error.to_string()), (kind, expected));
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    }
}
