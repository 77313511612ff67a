//! What goes wrong around us, at a real API server and a real issuer: a clear error, or nobody notices.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, Client,
    api::{AttachParams, ListParams, PostParams},
};
use kube_authn_core::ErrorKind;
use kube_authn_e2e::{Authority, Options, TestCluster};
use serde_json::json;
use support::*;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// One cluster for the whole file, broken and mended by one test at a time.
async fn cluster() -> MutexGuard<'static, TestCluster> {
    static SHARED: OnceCell<Mutex<TestCluster>> = OnceCell::const_new();
    let start = || async { TestCluster::start(Options::default()).await.map(Mutex::new) };
    SHARED.get_or_try_init(start).await.unwrap().lock().await
}

#[tokio::test]
async fn requests_carry_on_after_a_restart_of_the_api_server() {
    let mut cluster = cluster().await;
    let portal = Portal::new(&cluster).await;
    let (alice, _) = portal.sign_in("alice").await;
    let pods = portal.pods(&alice, OPENPORTAL, "team-a").await;
    let before = pods.list(&ListParams::default()).await.unwrap();

    cluster.stop_api_server().await.unwrap();
    let down = pods.list(&ListParams::default()).await.unwrap_err();
    cluster.start_api_server().await.unwrap();
    let after = pods.list(&ListParams::default()).await.unwrap();

    let address = cluster.api_server_url();
    let expected = format!(
        "cannot reach cluster \"openportal\" at {}: connection refused",
        address.trim_start_matches("https://")
    );
    assert_eq!(
        (ours(&down).kind(), ours(&down).to_string(), ours(&down).cluster()),
        (ErrorKind::UpstreamUnreachable, expected, Some(OPENPORTAL))
    );
    assert!(ours(&down).is_retryable());
    assert_eq!(before.items.len(), after.items.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_never_gives_one_persons_answer_to_another() {
    let mut cluster = cluster().await;
    let portal = Portal::new(&cluster).await;
    let over = Arc::new(AtomicBool::new(false));
    let mut people = Vec::new();
    for name in ["alice", "bob", "carol", "dave", "erin", "frank"] {
        let (principal, _) = portal.sign_in(name).await;
        let client = portal.access.client(&principal, OPENPORTAL).await.unwrap();
        people.push(tokio::spawn(asks_who_it_is(
            client,
            format!("{name}@example.com"),
            over.clone(),
        )));
    }

    cluster.restart_api_server().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    over.store(true, Ordering::SeqCst);

    let mut failures = 0;
    for person in people {
        failures += within(PATIENCE, "the last answer", person).await.unwrap();
    }
    assert!(failures > 0, "nobody noticed a restart");
}

/// Asks on and on, and once more at the end; how often there was no answer.
async fn asks_who_it_is(client: Client, expected: String, over: Arc<AtomicBool>) -> usize {
    let reviews: Api<SelfSubjectReview> = Api::all(client);
    let mut failures = 0;
    loop {
        let last = over.load(Ordering::SeqCst);
        match reviews
            .create(&PostParams::default(), &SelfSubjectReview::default())
            .await
        {
            Ok(review) => {
                let user = review.status.and_then(|status| status.user_info).unwrap();
                assert_eq!(user.username.as_ref(), Some(&expected));
                if last {
                    return failures;
                }
            }
            // An API server that starts has yet to fetch the issuer's keys.
            Err(kube::Error::Api(status)) => {
                assert!([401, 403, 429, 500, 503].contains(&status.code), "{status:?}")
            }
            Err(error) => {
                let kind = ours(&error).kind();
                assert!(
                    matches!(kind, ErrorKind::UpstreamUnreachable | ErrorKind::Timeout),
                    "{}",
                    chain(&error)
                );
                failures += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_new_certificate_by_the_same_ca_disturbs_nobody() {
    let cluster = cluster().await;
    let portal = Portal::new(&cluster).await;
    let (alice, _) = portal.sign_in("alice").await;
    portal.list(&alice, OPENPORTAL, "team-a").await.unwrap();

    cluster.replace_serving_certificate().await.unwrap();
    let over_the_open_connection = portal.list(&alice, OPENPORTAL, "team-a").await;
    // An upgrade needs a connection of its own, so it sees the new certificate.
    let pods = portal.pods(&alice, OPENPORTAL, "team-a-dev").await;
    let over_a_new_one = pods.exec("web-0", ["true"], &AttachParams::default()).await;

    over_the_open_connection.unwrap();
    over_a_new_one.unwrap();
}

#[tokio::test]
async fn a_certificate_by_another_ca_is_refused_until_the_ca_file_holds_that_ca() {
    let cluster = cluster().await;
    let stranger = Authority::new("another CA").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("cluster-ca.pem");
    std::fs::write(&ca_file, cluster.ca_pem()).unwrap();
    let mut config = app_config(&cluster);
    let entry = cluster_entry(&mut config, OPENPORTAL);
    entry.as_object_mut().unwrap().remove("caData");
    entry["caFile"] = json!(ca_file);
    let portal = Portal::with_config(&cluster, &config).await;
    let (alice, _) = portal.sign_in("alice").await;

    cluster.replace_serving_certificate_by(&stranger).await.unwrap();
    let refused = portal.list(&alice, OPENPORTAL, "team-a").await.unwrap_err();
    std::fs::write(&ca_file, stranger.pem()).unwrap();
    let accepted = portal.list(&alice, OPENPORTAL, "team-a").await;
    cluster.replace_serving_certificate().await.unwrap();

    assert!(refused.contains(FOREIGN_CERTIFICATE), "{refused}");
    assert!(refused.contains("cluster \"openportal\""), "{refused}");
    assert!(accepted.unwrap().contains(&"web-0".to_owned()));
}

/// Threat A24: verification that is skipped in one of two places.
#[tokio::test]
async fn a_server_that_another_ca_vouches_for_never_gets_a_request_nor_an_upgrade() {
    let cluster = cluster().await;
    let stranger = Authority::new("another CA").unwrap();
    let mut config = app_config(&cluster);
    cluster_entry(&mut config, OPENPORTAL)["caData"] = STANDARD.encode(stranger.pem()).into();
    let portal = Portal::with_config(&cluster, &config).await;
    let (alice, _) = portal.sign_in("alice").await;
    let pods = portal.pods(&alice, OPENPORTAL, "team-a-dev").await;

    let list = pods
        .list(&ListParams::default().labels("wrong-ca"))
        .await
        .unwrap_err();
    let process = AttachParams::default();
    let exec = pods
        .exec("web-0", ["wrong-ca"], &process)
        .await
        .map(drop)
        .unwrap_err();
    let forward = pods.portforward("web-0", &[1]).await.map(drop).unwrap_err();

    for error in [&list, &exec, &forward] {
        assert_eq!(ours(error).kind(), ErrorKind::UpstreamUnreachable);
        assert!(ours(error).to_string().ends_with(FOREIGN_CERTIFICATE), "{error}");
        assert!(!ours(error).is_retryable());
    }
    let reached = cluster
        .audit_lines()
        .unwrap()
        .into_iter()
        .find(|event| event.to_string().contains("wrong-ca"));
    assert_eq!(reached, None);
}

#[tokio::test]
async fn an_issuer_that_is_down_stops_new_logins_alone() {
    let cluster = cluster().await;
    let issuer = cluster.issuer_b();
    let portal = Portal::new(&cluster).await;
    let (alice, _) = portal.sign_in("alice").await;
    let tokens_of_bob = portal.tokens_of("bob").await.unwrap();
    let never_met = Portal::new(&cluster).await;

    issuer.stop().await.unwrap();
    let stored = portal.list(&alice, OPENPORTAL, "team-a").await;
    let sign_in = never_met.tokens_of("bob").await.map(drop).unwrap_err();
    // Tokens come from elsewhere too, and their keys have never been fetched here.
    let hand_over = never_met
        .hand_over(&user("bob"), tokens_of_bob)
        .await
        .map(drop)
        .unwrap_err();
    issuer.start().await.unwrap();
    let again = eventually(PATIENCE, "a login after the issuer's return", async || {
        never_met.try_sign_in(&user("bob"), "bob").await.ok()
    });
    again.await;
    let bob = never_met
        .list(&user("bob"), OPENPORTAL, "team-a")
        .await
        .unwrap_err();

    assert!(stored.unwrap().contains(&"web-0".to_owned()));
    for error in [&sign_in, &hand_over] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(error));
        let address = issuer.url().trim_start_matches("https://");
        assert!(error.to_string().contains(address), "{error}");
    }
    assert!(bob.contains("User \"bob@example.com\""), "{bob}");
}

#[tokio::test]
async fn new_keys_of_the_issuer_are_found_and_old_logins_stay() {
    let cluster = cluster().await;
    let portal = Portal::new(&cluster).await;
    let (alice, _) = portal.sign_in("alice").await;
    portal.list(&alice, OPENPORTAL, "team-a").await.unwrap();

    for keep_old in [true, false] {
        cluster.issuer_b().rotate_keys(keep_old).await.unwrap();
        // An unknown key is asked for at most once in a while, whoever brings it.
        let sign_in = async || portal.try_sign_in(&user("bob"), "bob").await.ok();
        eventually(
            KEYS_KEPT,
            format!("a login with the new key, old kept: {keep_old}"),
            sign_in,
        )
        .await;
    }

    assert!(portal.list(&alice, OPENPORTAL, "team-a").await.is_ok());
    // The API server looks for new keys when it likes; that is no doing of ours.
    let bob = eventually(KEYS_KEPT, "the API server knows the new key", async || {
        let answer = portal.list(&user("bob"), OPENPORTAL, "team-a").await.unwrap_err();
        answer.contains("forbidden").then_some(answer)
    });
    assert!(bob.await.contains("User \"bob@example.com\""));
}

const FOREIGN_CERTIFICATE: &str =
    "its certificate is signed by an authority that the cluster's CA does not hold";
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than our pause between two fetches of a key set.
const KEYS_KEPT: Duration = Duration::from_secs(60);
