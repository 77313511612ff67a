//! A database server that goes and comes back, beneath a service with a real API server and a real issuer.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::time::{Duration, Instant};

use kube_authn_core::ErrorKind;
use kube_authn_e2e::{Options, TestCluster};
use kube_authn_test_servers::Postgres;
use serde_json::json;
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_that_restarts_stops_new_logins_alone_and_they_are_back_within_two_seconds() {
    let cluster = TestCluster::start(Options::default()).await.unwrap();
    let mut server = Postgres::start();
    let mut config = app_config(&cluster);
    config["kubeAuthn"]["store"] = json!({ "type": "postgres", "url": server.database() });
    let portal = Portal::with_config(&cluster, &config).await;
    let (alice, _) = portal.sign_in("alice").await;
    portal.list(&alice, OPENPORTAL, "team-a").await.unwrap();

    for crash in [false, true] {
        let tokens_of_bob = portal.tokens_of("bob").await.unwrap();
        match crash {
            true => server.kill(),
            false => server.stop(),
        }
        let warm = portal.list(&alice, OPENPORTAL, "team-a").await;
        let sign_in = portal
            .hand_over(&user("bob"), tokens_of_bob)
            .await
            .map(drop)
            .unwrap_err();
        server.start_again();

        assert!(warm.unwrap().contains(&"web-0".to_owned()));
        assert_eq!(sign_in.kind(), ErrorKind::Unavailable, "{}", chain(&sign_in));
        assert!(sign_in.retry_after().is_some() && !chain(&sign_in).contains(Postgres::PASSWORD));
        let begin = Instant::now();
        let tokens = portal.tokens_of("bob").await.unwrap();
        let mut answer = portal.hand_over(&user("bob"), tokens).await.map(drop);
        while let Err(error) = answer {
            assert!(begin.elapsed() < Duration::from_secs(2), "{}", chain(&error));
            let tokens = portal.tokens_of("bob").await.unwrap();
            answer = portal.hand_over(&user("bob"), tokens).await.map(drop);
        }
        let pods = portal.list(&alice, OPENPORTAL, "team-a").await.unwrap();
        assert!(pods.contains(&"web-0".to_owned()));
    }
}
