//! Key sets over time: rotation, floods, faults of the issuer.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests read better so"
)]

mod support;

use std::time::Duration;

use kube_authn_core::{ErrorKind, Secret};
use kube_authn_oidc::IdTokenVerifier;
use serde_json::json;
use support::{Answer, FakeIssuer, Signer, key_set, transport};

/// Moves monotonic time. Nothing may be under way meanwhile.
async fn wait(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

async fn good(verifier: &IdTokenVerifier, token: &Secret) -> bool {
    verifier.verify(token, None).await.is_ok()
}

#[tokio::test]
async fn rotated_key_is_accepted_at_once_and_the_withdrawn_one_no_longer() {
    let (old, new) = (Signer::p256("old"), Signer::p256("new"));
    let issuer = FakeIssuer::start(&[&old]).await;
    let verifier = issuer.verifier();
    let (by_old, by_new) = (
        old.token(&issuer.claims(json!({}))),
        new.token(&issuer.claims(json!({}))),
    );
    assert!(good(&verifier, &by_old).await);

    issuer.publish(&[&new]);

    assert!(good(&verifier, &by_new).await);
    assert!(!good(&verifier, &by_old).await);
    assert_eq!(issuer.key_fetches(), 2);
}

#[tokio::test]
async fn key_replaced_under_its_old_id_is_found() {
    let (old, new) = (Signer::p256("1"), Signer::p256("1"));
    let issuer = FakeIssuer::start(&[&old]).await;
    let verifier = issuer.verifier();
    assert!(good(&verifier, &old.token(&issuer.claims(json!({})))).await);

    issuer.publish(&[&new]);

    assert!(good(&verifier, &new.token(&issuer.claims(json!({})))).await);
}

#[tokio::test]
async fn flood_of_unknown_key_ids_never_drives_fetches() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let verifier = issuer.verifier();
    let token = key.token(&issuer.claims(json!({})));
    assert!(good(&verifier, &token).await);
    let flood = async |tasks: u32, each: u32| {
        let mut running = tokio::task::JoinSet::new();
        for task in 0..tasks {
            let (verifier, claims) = (verifier.clone(), issuer.claims(json!({})));
            running.spawn(async move {
                for number in 0..each {
                    let header = json!({"alg": "ES256", "kid": format!("{task}-{number}")}).to_string();
                    let token = format!(
                        "{}.{}.AAAA",
                        support::encode(header),
                        support::encode(claims.to_string())
                    );
                    let error = verifier
                        .verify(&Secret::new(token), None)
                        .await
                        .expect_err("unknown key");
                    assert_eq!(error.kind(), ErrorKind::TokenRejected);
                    assert!(error.to_string().starts_with("Failed to get signing key: "));
                }
            });
        }
        running.join_all().await;
    };

    flood(50, 200).await;
    assert_eq!(issuer.key_fetches(), 2);
    flood(10, 10).await;
    assert_eq!(issuer.key_fetches(), 2);
    assert!(good(&verifier, &token).await);
    wait(10).await;
    flood(50, 20).await;
    assert_eq!(issuer.key_fetches(), 3);
}

#[tokio::test]
async fn cold_flood_shares_the_fetches() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let verifier = issuer.verifier();
    let token = key.token(&issuer.claims(json!({})));
    let mut running = tokio::task::JoinSet::new();

    for _ in 0..200 {
        let (verifier, token) = (verifier.clone(), token.clone());
        running.spawn(async move { good(&verifier, &token).await });
    }

    assert!(running.join_all().await.into_iter().all(|good| good));
    assert_eq!((issuer.discoveries(), issuer.key_fetches()), (1, 1));
}

#[tokio::test]
async fn caller_who_gives_up_never_stops_the_fetch_of_others() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let verifier = issuer.verifier();
    let token = key.token(&issuer.claims(json!({})));

    let impatient = tokio::time::timeout(Duration::ZERO, verifier.verify(&token, None)).await;

    assert!(impatient.is_err());
    assert!(good(&verifier, &token).await);
    assert_eq!(issuer.key_fetches(), 1);
}

#[tokio::test]
async fn failed_fetch_never_wipes_good_keys() {
    let (key, unknown) = (Signer::p256("k"), Signer::p256("unknown"));
    let issuer = FakeIssuer::start(&[&key]).await;
    let verifier = issuer.verifier();
    let (token, other) = (
        key.token(&issuer.claims(json!({}))),
        unknown.token(&issuer.claims(json!({}))),
    );
    assert!(good(&verifier, &token).await);

    for fault in [
        Answer::Status(500, "canary".to_owned()),
        Answer::Status(404, String::new()),
        Answer::Status(200, "<html>".to_owned()),
        Answer::Json(json!({"keys": 7})),
        Answer::Json(json!([])),
        Answer::Redirect(format!("{}/elsewhere", issuer.url())),
        Answer::Bytes(2 * 1024 * 1024),
    ] {
        issuer.keys(fault.clone());
        wait(11).await;

        assert!(!good(&verifier, &other).await, "{fault:?}");
        assert!(good(&verifier, &token).await, "{fault:?}");
    }
    // Fresh or not, the last good set serves while the issuer is out of order, and not for ever.
    wait(3600).await;
    assert!(good(&verifier, &token).await);
    wait(24 * 3600).await;
    let error = verifier.verify(&token, None).await.expect_err("no keys");
    assert_eq!(error.kind(), ErrorKind::Unexpected);
    assert!(error.to_string().starts_with("Failed to get signing key: "));
    issuer.keys(Answer::Json(key_set(&[&key])));
    wait(11).await;
    assert!(good(&verifier, &token).await);
}

#[tokio::test]
async fn huge_key_set_is_refused_and_not_kept_in_memory() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    issuer.keys(Answer::Bytes(100 * 1024 * 1024));

    let error = issuer
        .verifier()
        .verify(&key.token(&issuer.claims(json!({}))), None)
        .await
        .expect_err("too large");

    assert_eq!(error.kind(), ErrorKind::Unexpected);
    assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
}

#[tokio::test]
async fn redirect_is_never_followed() {
    let (key, evil) = (Signer::p256("k"), Signer::p256("k"));
    let (issuer, elsewhere) = (
        FakeIssuer::start(&[&key]).await,
        FakeIssuer::start(&[&evil]).await,
    );
    issuer.keys(Answer::Redirect(format!("{}/jwks", elsewhere.url())));

    let error = issuer
        .verifier()
        .verify(&evil.token(&issuer.claims(json!({}))), None)
        .await
        .expect_err("no keys");

    assert_eq!(error.kind(), ErrorKind::Unavailable);
    issuer.discovery(Answer::Redirect(format!(
        "{}/.well-known/openid-configuration",
        elsewhere.url()
    )));
    assert!(issuer.client().metadata().await.is_err());
    assert_eq!((elsewhere.discoveries(), elsewhere.key_fetches()), (0, 0));
}

#[tokio::test]
async fn issuer_that_does_not_answer_gives_a_timeout_and_holds_nobody_again() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    issuer.keys(Answer::Silence);
    let transport = transport().with_timeouts(Duration::from_millis(200), Duration::from_millis(300));
    let client = kube_authn_oidc::IssuerClient::new(issuer.issuer(), transport);
    let verifier = IdTokenVerifier::new(client, std::sync::Arc::new(support::clock()));
    let token = key.token(&issuer.claims(json!({})));

    let error = verifier.verify(&token, None).await.expect_err("silence");
    let second = verifier.verify(&token, None).await.expect_err("remembered");

    assert_eq!(
        (error.kind(), second.kind()),
        (ErrorKind::Timeout, ErrorKind::Timeout)
    );
    assert_eq!(second.retry_after(), Some(Duration::from_secs(5)));
    assert_eq!(issuer.key_fetches(), 1);
}

#[tokio::test]
async fn slow_issuer_never_holds_up_logins_whose_key_is_known() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let verifier = issuer.verifier();
    let token = key.token(&issuer.claims(json!({})));
    assert!(good(&verifier, &token).await);
    issuer.keys(Answer::Silence);
    wait(601).await;
    let began = std::time::Instant::now();

    // The first one waits for a moment, the others not at all; the fetch itself would take 15 seconds to fail.
    for _ in 0..100 {
        assert!(good(&verifier, &token).await);
    }

    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(issuer.key_fetches(), 2);
}

#[tokio::test]
async fn issuer_that_names_another_one_is_never_believed() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;

    for other in ["https://other.example/".to_owned(), format!("{}/", issuer.url())] {
        issuer.discovery(Answer::Json(support::document(&other)));
        let error = issuer
            .verifier()
            .verify(&key.token(&issuer.claims(json!({}))), None)
            .await
            .expect_err("lies");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    }
    assert_eq!(issuer.key_fetches(), 0);
}

#[tokio::test]
async fn issuer_that_was_down_is_found_again() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let verifier = issuer.verifier();
    let token = key.token(&issuer.claims(json!({})));
    issuer.discovery(Answer::Status(404, String::new()));
    assert!(!good(&verifier, &token).await);

    issuer.discovery(Answer::Json(support::document(issuer.url())));

    assert!(!good(&verifier, &token).await);
    wait(6).await;
    assert!(good(&verifier, &token).await);
}

#[tokio::test]
async fn token_without_key_id_verifies_with_a_key_that_fits() {
    let (rsa, first, second) = (Signer::rsa("r"), Signer::p256("a"), Signer::p256("b"));
    let issuer = FakeIssuer::start(&[&rsa, &first, &second]).await;
    let verifier = issuer.verifier();

    for key in [&rsa, &first, &second] {
        assert!(
            good(
                &verifier,
                &key.token_with_header(json!({"kid": null}), &issuer.claims(json!({})))
            )
            .await
        );
    }
    assert_eq!(issuer.key_fetches(), 1);
}
