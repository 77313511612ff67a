//! The list of clusters, health and metrics.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use http::{Request, header};
use kube_authn_core::{
    AuthMetadata, CachingProvider, ClusterAccess, ClusterDetails, Clusters, Error, ErrorKind,
    ProviderRegistry, UpstreamPool,
};
use kube_authn_http::{Callers, Health, Metrics, clusters, count_request, record_credential};
use kube_authn_providers::default_registry;
use serde_json::json;
use support::{Answered, Believer, Service, as_caller, provider};
use tower::ServiceExt;

async fn ask(router: &Router, path: &str) -> Answered {
    let request = Request::get(path).body(Body::empty()).expect("a request");
    Answered::of(router.clone().oneshot(request).await.expect("infallible")).await
}

fn access(registry: ProviderRegistry, list: Vec<ClusterDetails>) -> ClusterAccess {
    ClusterAccess::new(
        Clusters::new(list),
        CachingProvider::new(registry),
        UpstreamPool::new(provider()),
    )
}

fn cluster(name: &str, server: &str, strategy: &str) -> ClusterDetails {
    ClusterDetails::builder(name, server)
        .auth_provider(strategy)
        .build()
        .expect("a cluster")
}

#[tokio::test]
async fn list_of_clusters_has_backstages_shape() {
    let service = Service::start().await;

    let answer = service.get("alice", "/api/kubernetes/clusters").await;

    assert_eq!(
        answer.json(),
        json!({ "items": [{ "name": "openportal", "title": "Open Portal", "authProvider": "clusterAuth" }] })
    );
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    assert!(!answer.text.contains("127.0.0.1"));
}

#[tokio::test]
async fn list_names_the_token_provider_and_no_secret() {
    let mut metadata = AuthMetadata::default();
    metadata.insert("kubernetes.io/oidc-token-provider", "okta");
    metadata.insert("clientSecret", "canary");
    let oidc = ClusterDetails::builder("okta", "https://127.0.0.1:1")
        .auth_provider("oidc")
        .auth_metadata(metadata)
        .service_account_token(kube_authn_core::Secret::new("canary"))
        .build()
        .expect("a cluster");
    let router = clusters(
        access(default_registry(), vec![oidc]),
        Callers::new().with(Believer),
    );
    let request = as_caller("plugin", "GET", "/api/kubernetes/clusters")
        .body(Body::empty())
        .expect("a request");

    let answer = Answered::of(router.oneshot(request).await.expect("infallible")).await;

    assert_eq!(
        answer.json(),
        json!({ "items": [{ "name": "okta", "authProvider": "oidc", "oidcTokenProvider": "okta" }] })
    );
}

#[tokio::test]
async fn list_is_for_known_callers_and_refuses_in_backstages_shape() {
    let service = Service::start().await;

    let answer = service.get("", "/api/kubernetes/clusters?x=canary").await;

    assert_eq!(
        (answer.status, answer.json()),
        (
            401,
            json!({
                "error": { "name": "AuthenticationError", "message": "Missing credentials" },
                "request": { "method": "GET", "url": "/api/kubernetes/clusters" },
                "response": { "statusCode": 401 },
            })
        )
    );
}

#[tokio::test]
async fn readiness_depends_on_the_store_alone() {
    let store = Arc::new(AtomicBool::new(true));
    let answers = store.clone();
    let failing = || async { Err(Error::new(ErrorKind::Unavailable, "canary-reason")) };
    let gone = access(
        default_registry(),
        vec![cluster("gone", "http://127.0.0.1:1", "localKubectlProxy")],
    );
    let health = || {
        let answers = answers.clone();
        Health::new()
            .with_required("store", move || {
                let answers = answers.load(Ordering::SeqCst);
                async move {
                    if answers {
                        Ok(())
                    } else {
                        Err(Error::new(ErrorKind::Unavailable, "down"))
                    }
                }
            })
            .with_reported("issuer https://login.example.com/", failing)
            .with_clusters(gone.clone())
            .router()
    };

    let degraded = ask(&health(), "/readyz").await;
    store.store(false, Ordering::SeqCst);
    let unavailable = ask(&health(), "/readyz").await;
    let alive = ask(&health(), "/healthz").await;

    let mentioned = json!(["issuer https://login.example.com/", "cluster gone"]);
    assert_eq!(
        (degraded.status, degraded.json()),
        (
            200,
            json!({ "status": "degraded", "checks": { "store": "ok" }, "degraded": mentioned })
        )
    );
    assert_eq!(
        (unavailable.status, unavailable.json()),
        (
            503,
            json!({ "status": "unavailable", "checks": { "store": "failed" }, "degraded": mentioned })
        )
    );
    assert_eq!((alive.status, alive.json()), (200, json!({ "status": "ok" })));
}

#[tokio::test(start_paused = true)]
async fn readiness_is_asked_of_others_once_in_a_while_and_never_waits_long() {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = asked.clone();
    let router = Health::new()
        .with_reported("silent", move || {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending()
        })
        .router();

    for _ in 0..50 {
        assert_eq!(ask(&router, "/readyz").await.json()["status"], json!("degraded"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    tokio::time::advance(Duration::from_secs(6)).await;
    ask(&router, "/readyz").await;

    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn callers_who_hang_up_never_begin_the_readiness_checks_anew() {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = asked.clone();
    let router = Health::new()
        .with_required("slow", move || {
            counted.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(())
            }
        })
        .router();

    for _ in 0..9 {
        let hung_up = tokio::time::timeout(Duration::from_millis(100), ask(&router, "/readyz")).await;
        assert!(hung_up.is_err());
    }
    let (one, other) = tokio::join!(ask(&router, "/readyz"), ask(&router, "/readyz"));

    assert_eq!((one.status, other.status), (200, 200));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn cluster_that_answers_anything_is_not_degraded() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let refusing = Router::new().fallback(|headers: http::HeaderMap| async move {
        assert!(!headers.contains_key(header::AUTHORIZATION));
        http::StatusCode::UNAUTHORIZED
    });
    tokio::spawn(async move { axum::serve(listener, refusing).await });
    let list = vec![cluster(
        "there",
        &format!("http://{address}"),
        "localKubectlProxy",
    )];
    let access = access(default_registry(), list);

    let ready = ask(&Health::new().with_clusters(access.clone()).router(), "/readyz").await;

    assert_eq!(ready.json()["status"], json!("ok"));
    assert_eq!(access.connections().opened, 1);
}

#[tokio::test]
async fn metrics_count_by_configured_names_only() {
    let service = Service::start().await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    let metrics =
        Metrics::install(Some(service.access.clone()), Some(service.vault.clone())).expect("a recorder");
    let router = metrics.router();
    let openportal = service.access.clusters().get("openportal").expect("a cluster");

    count_request(Some(&openportal), "2xx");
    count_request(Some(&openportal), "2xx");
    count_request(None, "not_authenticated");
    record_credential(&openportal, Duration::from_micros(50));
    let page = ask(&router, "/metrics").await;

    for line in [
        r#"kube_authn_requests_total{cluster="openportal",strategy="clusterAuth",outcome="2xx"} 2"#,
        r#"kube_authn_requests_total{cluster="",strategy="",outcome="not_authenticated"} 1"#,
        r#"kube_authn_credential_seconds_bucket{cluster="openportal",strategy="clusterAuth",le="0.0001"} 1"#,
        r#"kube_authn_logins{state="usable"} 1"#,
        r#"kube_authn_logins{state="ended"} 0"#,
        "kube_authn_upstream_connections 0",
        "kube_authn_upstream_connections_opened_total 0",
    ] {
        assert!(
            page.text.lines().any(|found| found == line),
            "{line}\n{}",
            page.text
        );
    }
    assert!(!page.text.contains("alice"), "{}", page.text);
    assert!(Metrics::install(None, None).is_err(), "one recorder per process");
}
