use kube_authn_core::{ManualClock, RequestAuth, conformance::provider::ProviderFixture};

use super::*;
use crate::{aks::Aks, google::Google, test_support::*};

const NOW: i64 = 1_000_000;

fn nothing_offered<S: Offered>(name: &str) -> CredentialRequest {
    request(name, &cluster(S::NAME).build().expect("a cluster"))
}

fn offering<S: Offered>(name: &str, token: Secret) -> CredentialRequest {
    nothing_offered::<S>(name).with_auth(RequestAuth::new().with_token(S::NAME, token))
}

fn strategy<S: Offered>() -> OfferedTokenProvider<S> {
    OfferedTokenProvider::new().with_clock(ManualClock::at(at(NOW)))
}

#[tokio::test]
async fn aks_keeps_the_contract() {
    keeps_the_contract::<Aks>().await;
}

#[tokio::test]
async fn google_keeps_the_contract() {
    keeps_the_contract::<Google>().await;
}

async fn keeps_the_contract<S: Offered>() {
    let (alice, bob) = (jwt("alice", NOW + 600), jwt("bob", NOW + 600));
    let expired = jwt("carol", NOW - 1);
    let fixture = ProviderFixture::new(
        strategy::<S>(),
        offering::<S>("alice", alice.clone()),
        offering::<S>("bob", bob.clone()),
    )
    .with_clock(ManualClock::at(at(NOW)))
    .with_expires_at(at(NOW + 600))
    .refusing(nothing_offered::<S>("alice"), ErrorKind::LoginRequired)
    .refusing(
        offering::<S>("carol", Secret::new(" \n")),
        ErrorKind::LoginRequired,
    )
    .refusing(offering::<S>("carol", expired.clone()), ErrorKind::TokenExpired)
    .refusing(
        offering::<S>("carol", Secret::new("canary\r\nx: y")),
        ErrorKind::TokenRejected,
    )
    .with_canary(alice)
    .with_canary(bob)
    .with_canary(expired)
    .with_canary(Secret::new("canary"));

    bare_registered_and_cached(fixture).await;
}

#[tokio::test]
async fn missing_token_is_named_and_never_becomes_anonymous() {
    async fn refusal<S: Offered>() -> String {
        let other = RequestAuth::new().with_token("other", Secret::new("t"));
        let error = strategy::<S>()
            .credential(&nothing_offered::<S>("alice").with_auth(other))
            .await
            .expect_err("refused");
        error.to_string()
    }

    assert_eq!(
        refusal::<Aks>().await,
        "AKS token not found under auth.aks in request body"
    );
    assert_eq!(
        refusal::<Google>().await,
        "Google token not found under auth.google in request body"
    );
}

#[tokio::test]
async fn opaque_token_goes_on_as_it_is_and_states_no_end() {
    async fn passed_on<S: Offered>() -> Credential {
        strategy::<S>()
            .credential(&offering::<S>("alice", Secret::new("ya29.opaque-token")))
            .await
            .expect("a credential")
    }

    for credential in [passed_on::<Aks>().await, passed_on::<Google>().await] {
        assert_eq!(
            (sent(&credential), credential.expires_at()),
            (Secret::new("ya29.opaque-token"), None)
        );
    }
}
