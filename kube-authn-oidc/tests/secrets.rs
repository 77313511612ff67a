//! Tokens never show: one test, in a process of its own, since the subscriber of logs is process-wide.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests read better so"
)]

mod support;

use std::sync::{Arc, Mutex};

use kube_authn_core::{EntityRef, LoginConfig, Principal, Secret};
use kube_authn_oidc::{LoginVerifier, PostedTokens, TokenClient};
use serde_json::json;
use support::{Answer, FakeIssuer, Signer, client_id};

/// Everything that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_and_no_claim_ever_shows_in_a_log_an_error_or_debug() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).expect("the only subscriber");
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let alice = Principal::user(EntityRef::parse("user:default/alice").expect("an entity reference"));
    let login = LoginConfig::new(issuer.issuer()).with_client_id(client_id());
    let verifier = LoginVerifier::new(
        login,
        issuer.client(),
        Arc::new(support::clock()),
        support::vault(),
    );
    let client = TokenClient::new(issuer.client(), client_id()).with_client_secret(Secret::new("canary"));
    let mut shown = format!("{verifier:?} {client:?}");
    let canary = "canary-0123456789";

    for claims in [
        json!({"name": canary, "groups": [canary]}),
        json!({"iss": canary}),
        json!({"aud": canary}),
        json!({"exp": canary}),
        json!({"nonce": canary, "email": canary, "email_verified": true}),
        json!({"sub": format!("{canary}\n")}),
    ] {
        let token = key.token(&issuer.claims(claims));
        let mut posted = PostedTokens::new(token.clone())
            .with_access_token(Secret::new(format!("{canary}.access")))
            .with_refresh_token(Secret::new(format!("{canary}.refresh")));
        shown += &format!("{posted:?}");
        shown += &format!(
            "{:?}",
            verifier
                .verify(&alice, posted.clone())
                .await
                .map(|login| login.key)
        );
        posted.id_token = Secret::new(token.expose_str().expect("text").replace('.', "x.canary."));
        let failure = verifier.verify(&alice, posted).await.expect_err("malformed");
        shown += &format!("{failure} {failure:?}");
    }
    issuer.tokens(Answer::Status(
        400,
        format!(r#"{{"error":"{canary}","error_description":"{canary}"}}"#),
    ));
    shown += &format!("{:?}", client.refresh(&Secret::new(canary)).await);
    issuer.tokens(Answer::Json(
        json!({"access_token": canary, "token_type": "Bearer", "expires_in": canary}),
    ));
    shown += &format!("{:?}", client.refresh(&Secret::new(canary)).await);

    let logged = String::from_utf8(log.0.lock().expect("lock").clone()).expect("UTF-8");
    assert!(!logged.is_empty() && logged.contains("login_refused"));
    assert!(!logged.contains("canary"), "{logged}");
    assert!(!shown.contains("canary"), "{shown}");
}
