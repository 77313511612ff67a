//! `kube-authn serve` with its logins in Redis: a restart and a failover stop new logins for that while, and nothing else.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, header};
use kube_authn_core::Secret;
use kube_authn_e2e::{Caller, Http};
use kube_authn_test_servers::{Redis, Sentinels, Signal};
use serde_json::json;
use support::{OPENPORTAL, stage::Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_of_redis_stops_new_logins_alone_and_nobody_restarts_us() {
    let mut redis = Redis::start();
    let stage = Stage::with_store(json!({ "type": "redis", "url": redis.url() })).await;
    let bob = warm(&stage).await;

    redis.end(Signal::Kill);
    only_new_logins_stop(&stage, &bob).await;
    redis.start_again();

    comes_back(&stage, &bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_of_redis_stops_new_logins_alone_and_nobody_restarts_us() {
    let mut sentinels = Sentinels::start();
    let stage = Stage::with_store(json!({ "type": "redis", "url": sentinels.url() })).await;
    let bob = warm(&stage).await;
    sentinels.primary().wait_for_replica();

    sentinels.primary().end(Signal::Kill);
    let (status, _) = get(&stage, &stage.alice, &pods()).await;
    assert_eq!(status, 200);
    sentinels.wait_for_failover();

    comes_back(&stage, &bob).await;
}

/// Alice has logged in and has been served; bob is a caller who has done neither.
async fn warm(stage: &Stage) -> Caller {
    stage.log_in().await;
    let (status, _) = get(stage, &stage.alice, &pods()).await;
    assert_eq!(status, 200);
    let token = stage.cluster.issuer_a().id_token("bob", "portal").await.unwrap();
    stage.alice.with_token(Secret::new(token))
}

async fn only_new_logins_stop(stage: &Stage, bob: &Caller) {
    for _ in 0..10 {
        let (status, _) = get(stage, &stage.alice, &pods()).await;
        assert_eq!(status, 200, "alice is warm");
    }
    let tokens = stage
        .cluster
        .issuer_b()
        .sign_in("alice", "kubernetes")
        .await
        .unwrap();
    let login = Request::post("/api/cluster-auth/tokens");
    let login = send(stage, &stage.alice, login, &tokens.to_string()).await;
    let cold = get(stage, bob, &pods()).await;
    let status = get(stage, bob, "/api/cluster-auth/status").await;
    for (status, retry_after) in [login, cold, status] {
        assert_eq!(status, 503);
        assert!(
            retry_after.is_some_and(|seconds| (1..=10).contains(&seconds)),
            "{retry_after:?}"
        );
    }
}

async fn comes_back(stage: &Stage, bob: &Caller) {
    let begin = Instant::now();
    loop {
        let (status, _) = get(stage, bob, "/api/cluster-auth/status").await;
        if status == 200 {
            break;
        }
        assert_eq!(status, 503);
        assert!(begin.elapsed() < RETURN, "still away after {:?}", begin.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.log_in().await;
    let (status, _) = get(stage, &stage.alice, &pods()).await;
    assert_eq!(status, 200);
}

async fn get(stage: &Stage, caller: &Caller, path: &str) -> (u16, Option<u64>) {
    send(stage, caller, Request::get(path), "").await
}

/// The status, and `Retry-After`.
async fn send(
    stage: &Stage,
    caller: &Caller,
    request: http::request::Builder,
    body: &str,
) -> (u16, Option<u64>) {
    let mut request = request
        .header(header::AUTHORIZATION, caller.token().to_bearer().unwrap())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::from(body.to_owned()))
        .unwrap();
    let url = format!("{}{}", stage.served.url(), request.uri());
    *request.uri_mut() = url.parse().unwrap();
    let http = Http::new(stage.cluster.ca_pem()).unwrap();
    let answer = http.send(request).await.unwrap();
    let retry_after = answer.headers().get(header::RETRY_AFTER);
    let seconds = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    (answer.status().as_u16(), seconds)
}

fn pods() -> String {
    format!("/api/kubernetes/clusters/{OPENPORTAL}/proxy/api/v1/namespaces/team-a/pods")
}

/// What is promised: the first success so soon after the return.
const RETURN: Duration = Duration::from_secs(2);
