//! Refresh of logins by `kube-authn serve` over one store, at an issuer that spends a refresh token once and withdraws the
//! grant of one that comes again.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]
#![allow(clippy::print_stderr, reason = "says what was measured")]

mod support;

use std::time::{Duration, Instant};

use http::Request;
use kube_authn_e2e::{Caller, Issuer, TestCluster};
use kube_authn_test_servers::{Postgres, Redis};
use serde_json::{Value, json};
use support::{
    EXPIRED_LOGIN, NO_LOGIN, OPENPORTAL, eventually,
    fleet::{Fleet, ask, config, post},
    recorder::Recorder,
    within,
};
use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinSet,
    time::sleep,
};

/// Processes over one store in front of a recording cluster, and the trouble that this test alone may make.
struct Scene {
    fleet: Fleet,
    recorder: Recorder,
    issuer: &'static Issuer,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    async fn new(processes: usize, store: &Value) -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let cluster = TestCluster::shared().await.unwrap();
        let recorder = Recorder::start(cluster.authority()).await;
        let issuer = cluster.issuer_b();
        // What the test before left.
        issuer.set_token_trouble("none").await.unwrap();
        issuer
            .set_id_token_lifetime(Duration::from_secs(3600))
            .await
            .unwrap();
        let clusters = [
            (OPENPORTAL, recorder.url()),
            (API_SERVER, cluster.api_server_url()),
        ];
        let config = config(
            cluster,
            &clusters.each_ref().map(|(name, url)| (*name, url.as_str())),
        );
        Self {
            fleet: Fleet::start(cluster, processes, store, config).await,
            recorder,
            issuer,
            _turn: turn,
        }
    }

    /// Logs somebody in with an ID token that is worth nothing any more, and a refresh token that is.
    async fn log_in(&self, name: &str) -> (Caller, Value) {
        let caller = self.fleet.caller(name, 0).await;
        self.issuer.set_id_token_lifetime(SHORTEST_LIFE).await.unwrap();
        let tokens = self.issuer.sign_in(name, "kubernetes").await.unwrap();
        post(&caller, &tokens).await;
        self.issuer
            .set_id_token_lifetime(Duration::from_secs(3600))
            .await
            .unwrap();
        sleep(SHORTEST_LIFE - USABLE_MARGIN).await;
        (caller, tokens)
    }

    /// How many refresh tokens came to the issuer, the refused ones included.
    async fn refreshes(&self) -> u64 {
        let grants = self.issuer.grants().await.unwrap();
        let count = |outcome: &str| grants[outcome]["refresh_token"].as_u64().unwrap_or(0);
        count("success") + count("error")
    }

    /// Sends a request that begins a refresh, and returns when the issuer has spent the refresh token.
    async fn begin_refresh(&self, caller: &Caller) -> tokio::task::JoinHandle<(u16, Value)> {
        let before = self.refreshes().await;
        let caller = caller.clone();
        let asking = tokio::spawn(async move {
            let path = format!("/api/kubernetes/clusters/{OPENPORTAL}/proxy/version");
            // Its process may be killed.
            caller.get(&path).await.unwrap_or((0, Value::Null))
        });
        eventually(LIMIT, "the refresh", async || {
            (self.refreshes().await > before).then_some(())
        })
        .await;
        asking
    }
}

/// A database of its own on this server.
fn postgres(server: &Postgres) -> Value {
    json!({ "type": "postgres", "url": server.database() })
}

fn redis(server: &Redis) -> Value {
    json!({ "type": "redis", "url": server.url() })
}

fn sqlite() -> Value {
    json!({ "type": "sqlite", "url": "sqlite://${FOLDER}/kube-authn.db" })
}

/// 16 processes × 32 requests when the token has ended, the issuer takes 5 s.
async fn many_requests_of_many_processes(store: &Value, user: &str) {
    let scene = Scene::new(PROCESSES, store).await;
    let (caller, tokens) = scene.log_in(user).await;
    scene
        .issuer
        .set_late_tokens(Duration::from_secs(5))
        .await
        .unwrap();
    let before = scene.refreshes().await;

    let begin = Instant::now();
    let mut requests = JoinSet::new();
    for process in 0..PROCESSES {
        let caller = scene.fleet.at(&caller, process);
        for _ in 0..REQUESTS {
            let caller = caller.clone();
            requests.spawn(async move { ask(&caller).await });
        }
    }
    while let Some(answer) = requests.join_next().await {
        let (status, answer) = answer.unwrap();
        assert_eq!(status, 200, "{answer}");
    }

    assert_eq!(scene.refreshes().await - before, 1, "one refresh");
    let sent = scene.recorder.take();
    eprintln!("{} requests within {:?}", PROCESSES * REQUESTS, begin.elapsed());
    assert_eq!(sent.values().sum::<usize>(), PROCESSES * REQUESTS);
    assert_eq!(sent.len(), 1, "all with the same token");
    let old = format!("Bearer {}", tokens["id_token"].as_str().unwrap());
    assert!(!sent.contains_key(&old), "a new one");
    assert_eq!(scene.issuer.good_refresh_tokens(user).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refresh_token_is_never_spent_twice_over_sqlite() {
    many_requests_of_many_processes(&sqlite(), "alice").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refresh_token_is_never_spent_twice_over_postgres() {
    let server = Postgres::start();
    many_requests_of_many_processes(&postgres(&server), "ida").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refresh_token_is_never_spent_twice_over_redis() {
    let server = Redis::start();
    many_requests_of_many_processes(&redis(&server), "jan").await;
}

/// The process that spends the refresh token is killed before the answer comes.
async fn killed_between_claim_and_answer(store: &Value) {
    let scene = Scene::new(2, store).await;
    let (carol, _) = scene.log_in("carol").await;
    scene
        .issuer
        .set_late_tokens(Duration::from_secs(5))
        .await
        .unwrap();
    let before = scene.refreshes().await;
    let asking = scene.begin_refresh(&carol).await;

    scene.fleet.kill(0);
    scene.issuer.set_late_tokens(Duration::ZERO).await.unwrap();

    asking.await.unwrap();
    let carol = scene.fleet.at(&carol, 1);
    let path = format!("/api/kubernetes/clusters/{OPENPORTAL}/proxy/version");
    let refused = eventually(MARK_AND_MORE, "an outcome", async || {
        match carol.get(&path).await {
            // It waits until who has claimed the refresh must be taken for dead.
            Err(_) | Ok((503 | 504, _)) => None,
            Ok(answer) => Some(answer),
        }
    });
    let (status, answer) = refused.await;
    assert_eq!((status, message(&answer)), (401, EXPIRED_LOGIN), "{answer}");
    assert!(scene.refreshes().await - before <= 2, "one more at most");
    assert_eq!(
        scene.recorder.take().len(),
        0,
        "nothing was sent with an old token"
    );
    let tokens = scene.issuer.sign_in("carol", "kubernetes").await.unwrap();
    post(&carol, &tokens).await;
    assert_eq!(ask(&carol).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_is_told_when_a_killed_process_took_the_refresh_token_along_over_sqlite() {
    killed_between_claim_and_answer(&sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_is_told_when_a_killed_process_took_the_refresh_token_along_over_postgres() {
    let server = Postgres::start();
    killed_between_claim_and_answer(&postgres(&server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_is_told_when_a_killed_process_took_the_refresh_token_along_over_redis() {
    let server = Redis::start();
    killed_between_claim_and_answer(&redis(&server)).await;
}

/// The database is restarted between the claim and the issuer's answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_of_postgres_in_the_middle_of_a_refresh_costs_nobody_the_login() {
    let mut server = Postgres::start();
    let scene = Scene::new(2, &postgres(&server)).await;
    let (hugo, _) = scene.log_in("hugo").await;
    scene
        .issuer
        .set_late_tokens(Duration::from_secs(3))
        .await
        .unwrap();
    let before = scene.refreshes().await;
    let asking = scene.begin_refresh(&hugo).await;

    tokio::task::block_in_place(|| server.restart());

    asking.await.unwrap();
    for process in 0..2 {
        let hugo = scene.fleet.at(&hugo, process);
        eventually(LIMIT, "the new token", async || {
            (ask(&hugo).await.0 == 200).then_some(())
        })
        .await;
    }
    assert_eq!(scene.refreshes().await - before, 1, "none was lost");
    assert_eq!(scene.recorder.take().len(), 1);
}

#[tokio::test]
async fn process_that_is_told_to_stop_finishes_its_refresh() {
    let mut scene = Scene::new(1, &sqlite()).await;
    let (dora, _) = scene.log_in("dora").await;
    scene
        .issuer
        .set_late_tokens(Duration::from_secs(4))
        .await
        .unwrap();
    let asking = scene.begin_refresh(&dora).await;

    let ended = scene.fleet.processes.remove(0).stop().await.unwrap();

    asking.await.unwrap();
    assert_eq!(ended.code(), Some(0));
    let before = scene.refreshes().await;
    scene.fleet.add().await;
    let dora = scene.fleet.at(&dora, 0);
    assert_eq!(ask(&dora).await.0, 200);
    assert_eq!(scene.refreshes().await, before, "nothing was left to do");
}

#[tokio::test]
async fn issuer_that_is_in_trouble_never_logs_anybody_out() {
    let scene = Scene::new(1, &sqlite()).await;
    let (erin, _) = scene.log_in("erin").await;

    scene.issuer.set_token_trouble("status").await.unwrap();
    let failing = ask(&erin).await;
    scene.issuer.set_token_trouble("none").await.unwrap();
    scene.issuer.stop().await.unwrap();
    let gone = eventually(LIMIT, "another attempt", async || {
        let answer = ask(&erin).await;
        (message(&answer.1) != message(&failing.1)).then_some(answer)
    })
    .await;
    scene.issuer.start().await.unwrap();

    for (status, answer) in [&failing, &gone] {
        assert_eq!(*status, 503, "{answer}");
    }
    let (_, login) = erin.get("/api/cluster-auth/status").await.unwrap();
    assert_eq!(login["clusters"][0]["refreshable"], true, "{login}");
    eventually(LIMIT, "the issuer's return", async || {
        (ask(&erin).await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn withdrawn_grant_asks_for_a_login() {
    let scene = Scene::new(1, &sqlite()).await;
    let (frank, tokens) = scene.log_in("frank").await;
    // Somebody else spends it: the issuer withdraws the grant when it comes again.
    let refresh_token = tokens["refresh_token"].as_str().unwrap();
    scene.issuer.refresh(refresh_token, "kubernetes").await.unwrap();

    let (status, answer) = ask(&frank).await;

    assert_eq!((status, message(&answer)), (401, EXPIRED_LOGIN), "{answer}");
    let (_, login) = frank.get("/api/cluster-auth/status").await.unwrap();
    let cluster = &login["clusters"][0];
    assert_eq!(
        (&cluster["authenticated"], &cluster["refreshable"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(scene.recorder.take().len(), 0);
}

/// The issuer changes its keys and drops the old ones at once, as after a theft: tokens that would last an hour are refused.
#[tokio::test]
async fn token_that_an_api_server_refuses_is_refreshed_once_and_one_that_stays_refused_never_doubles_the_load()
 {
    let scene = Scene::new(2, &sqlite()).await;
    let kurt = scene.fleet.caller("kurt", 0).await;
    let elsewhere = scene.fleet.at(&kurt, 1);
    let tokens = scene.issuer.sign_in("kurt", "kubernetes").await.unwrap();
    post(&kurt, &tokens).await;
    let begin = Instant::now();
    let path = format!("/api/kubernetes/clusters/{API_SERVER}/proxy/version");
    for caller in [&kurt, &elsewhere] {
        assert_eq!(caller.get(&path).await.unwrap().0, 200);
    }

    scene.issuer.rotate_keys(false).await.unwrap();
    let new = scene.issuer.id_token("lena", "kubernetes").await.unwrap();
    let old = tokens["id_token"].as_str().unwrap();
    eventually(LIMIT, "the API server knows the new key alone", async || {
        let cluster = scene.fleet.cluster;
        let new = cluster.client_with_token(&new).await.unwrap();
        let old = cluster.client_with_token(old).await.unwrap();
        let answers = (new.apiserver_version().await, old.apiserver_version().await);
        matches!(answers, (Ok(_), Err(_))).then_some(())
    })
    .await;
    // A login that was written less than a minute ago is not refreshed for a refusal.
    sleep(A_MINUTE.saturating_sub(begin.elapsed())).await;
    let before = scene.refreshes().await;

    let mut requests = JoinSet::new();
    for caller in [&kurt, &elsewhere].into_iter().cycle().take(REQUESTS) {
        let (caller, path) = (caller.clone(), path.clone());
        requests.spawn(async move { caller.get(&path).await.unwrap() });
    }
    while let Some(answer) = requests.join_next().await {
        let (status, answer) = answer.unwrap();
        assert_eq!(status, 200, "{answer}");
    }

    assert_eq!(scene.refreshes().await - before, 1, "one refresh");
    scene.recorder.refuse();
    for caller in [&kurt, &elsewhere].into_iter().cycle().take(REQUESTS) {
        assert_eq!(ask(caller).await.0, 401);
    }
    assert_eq!(
        scene.recorder.take().values().sum::<usize>(),
        REQUESTS,
        "nothing twice"
    );
    assert_eq!(scene.refreshes().await - before, 1, "and no other refresh");
}

#[tokio::test]
async fn logout_during_a_refresh_leaves_no_good_refresh_token() {
    let scene = Scene::new(2, &sqlite()).await;
    let (gina, _) = scene.log_in("gina").await;
    scene
        .issuer
        .set_late_tokens(Duration::from_secs(3))
        .await
        .unwrap();
    let asking = scene.begin_refresh(&gina).await;
    let (_, login) = gina.get("/api/cluster-auth/status").await.unwrap();
    assert_eq!(login["clusters"][0]["refreshing"], true, "{login}");

    // At another process.
    let elsewhere = scene.fleet.at(&gina, 1);
    let (status, _) = elsewhere
        .send(Request::delete("/api/cluster-auth/tokens"), &Value::Null)
        .await
        .unwrap();

    assert_eq!(status, 200);
    let (status, answer) = within(LIMIT, "the answer", asking).await.unwrap();
    assert_eq!((status, message(&answer)), (401, NO_LOGIN), "{answer}");
    let (_, login) = gina.get("/api/cluster-auth/status").await.unwrap();
    assert_eq!(login["clusters"][0]["authenticated"], false);
    assert_eq!(scene.issuer.good_refresh_tokens("gina").await.unwrap(), 0);
    assert_eq!(scene.recorder.take().len(), 0);
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

/// The test cluster's own, beside the recorder.
const API_SERVER: &str = "real";
const PROCESSES: usize = 16;
const REQUESTS: usize = 32;
/// A token that ends in less is not sent any more.
const USABLE_MARGIN: Duration = Duration::from_secs(30);
const SHORTEST_LIFE: Duration = Duration::from_secs(33);
const A_MINUTE: Duration = Duration::from_secs(61);
const LIMIT: Duration = Duration::from_secs(60);
/// A refresh mark lasts 40 s.
const MARK_AND_MORE: Duration = Duration::from_secs(120);
