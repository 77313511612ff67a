use kube_authn_core::{
    MAX_JWT_BYTES, ManualClock, Principal, RequestAuth, Secret, conformance::provider::ProviderFixture,
};

use super::*;
use crate::test_support::*;

const NOW: i64 = 1_000_000;

fn okta() -> ClusterDetails {
    cluster(OidcProvider::NAME)
        .auth_metadata(metadata(TOKEN_PROVIDER, "okta"))
        .build()
        .expect("a cluster")
}

fn strategy() -> OidcProvider {
    OidcProvider::new().with_clock(ManualClock::at(at(NOW)))
}

fn offering(name: &str, token: Secret) -> CredentialRequest {
    request(name, &okta()).with_auth(RequestAuth::new().with_oidc_token("okta", token))
}

async fn refusal(request: CredentialRequest) -> (ErrorKind, String) {
    let error = strategy().credential(&request).await.expect_err("refused");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn keeps_the_contract() {
    let (alice, bob, expired) = (
        jwt("alice", NOW + 600),
        jwt("bob", NOW + 600),
        jwt("carol", NOW - 1),
    );
    let no_provider = cluster(OidcProvider::NAME).build().expect("a cluster");
    let fixture = ProviderFixture::new(
        strategy(),
        offering("alice", alice.clone()),
        offering("bob", bob.clone()),
    )
    .with_clock(ManualClock::at(at(NOW)))
    .with_expires_at(at(NOW + 600))
    .refusing(request("alice", &okta()), ErrorKind::LoginRequired)
    .refusing(offering("carol", expired.clone()), ErrorKind::TokenExpired)
    .refusing(
        offering("carol", Secret::new("canary\r\nx: y")),
        ErrorKind::TokenRejected,
    )
    .refusing(
        request("carol", &no_provider).with_auth(RequestAuth::new().with_oidc_token("okta", alice.clone())),
        ErrorKind::ConfigInvalid,
    )
    .with_unworkable(no_provider, &["oidcTokenProvider"])
    .with_canary(alice)
    .with_canary(bob)
    .with_canary(expired)
    .with_canary(Secret::new("canary"));

    bare_registered_and_cached(fixture).await;
}

#[tokio::test]
async fn offered_token_is_passed_on_whatever_the_case_of_its_provider() {
    let token = jwt("alice", NOW + 600);
    let auth = RequestAuth::new().with_oidc_token("OKTA", token.clone());

    let credential = strategy()
        .credential(&request("alice", &okta()).with_auth(auth))
        .await
        .expect("a credential");

    assert_eq!(sent(&credential), token);
}

#[tokio::test]
async fn texts_are_the_peers() {
    let unconfigured = CredentialRequest::new(
        Principal::anonymous(),
        cluster(OidcProvider::NAME).build().expect("a cluster"),
    );

    assert_eq!(
        refusal(unconfigured.clone()).await,
        (
            ErrorKind::ConfigInvalid,
            "oidc authProvider requires a configured oidcTokenProvider".to_owned()
        )
    );
    assert_eq!(
        refusal(request("alice", &okta())).await,
        (
            ErrorKind::LoginRequired,
            "Auth token not found under oidc.okta in request body".to_owned()
        )
    );
    assert_eq!(
        strategy().validate(&unconfigured.cluster),
        [Problem::new(
            "oidcTokenProvider",
            "Must specify a token provider for 'oidc' strategy"
        )]
    );
}

#[tokio::test]
async fn blank_or_foreign_token_is_none() {
    for auth in [
        RequestAuth::new().with_oidc_token("okta", Secret::new(" \n")),
        RequestAuth::new().with_oidc_token("other", jwt("alice", NOW + 600)),
        RequestAuth::new().with_token("google", jwt("alice", NOW + 600)),
    ] {
        let (kind, _) = refusal(request("alice", &okta()).with_auth(auth)).await;

        assert_eq!(kind, ErrorKind::LoginRequired);
    }
}

#[tokio::test]
async fn expired_token_never_reaches_the_api_server() {
    for exp in [NOW - 1, NOW, NOW + 30, 0, i64::MIN] {
        let (kind, _) = refusal(offering("alice", jwt("alice", exp))).await;

        assert_eq!(kind, ErrorKind::TokenExpired, "exp {exp}");
    }
    let credential = strategy()
        .credential(&offering("alice", jwt("alice", NOW + 31)))
        .await
        .expect("a credential");
    assert_eq!(credential.expires_at(), Some(at(NOW + 31)));
}

#[tokio::test]
async fn expiry_cannot_be_hidden_by_size() {
    let huge = jwt(&"a".repeat(MAX_JWT_BYTES), NOW - 1);

    assert_eq!(refusal(offering("alice", huge)).await.0, ErrorKind::TokenRejected);
}

#[tokio::test]
async fn opaque_token_is_passed_on_without_an_end() {
    let credential = strategy()
        .credential(&offering("alice", Secret::new("opaque")))
        .await
        .expect("a credential");

    assert_eq!(
        (sent(&credential), credential.expires_at()),
        (Secret::new("opaque"), None)
    );
}
