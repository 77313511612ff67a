//! Strategy `google`: the Google access token that the caller offers, passed on.

use std::sync::Arc;

use async_trait::async_trait;
use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, KubernetesAuthProvider, Metadata,
    Problem, Result, SystemClock,
};

use crate::offered::{pass_on, present};

/// The user authenticates at GKE with an access token that the caller offers under `auth.google`. Clones share the clock;
/// there is nothing else.
#[derive(Clone, Debug)]
pub struct GoogleProvider {
    clock: Arc<dyn Clock>,
}

impl GoogleProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "google";

    /// With the machine's clock.
    pub fn new() -> Self {
        Self {
            clock: Arc::new(SystemClock),
        }
    }

    /// With another clock.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

impl Default for GoogleProvider {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl KubernetesAuthProvider for GoogleProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Request
    }

    /// A cluster needs no settings for it.
    fn validate(&self, _: &ClusterDetails) -> Vec<Problem> {
        Vec::new()
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let token = present(request.auth.token(Self::NAME), MISSING)?;
        pass_on(token, &*self.clock, PLACE, "Google")
    }

    /// The caller offered this one token; another try would send it again.
    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        false
    }
}

const PLACE: &str = "auth.google";

/// Backstage's text.
const MISSING: &str = "Google token not found under auth.google in request body";

#[cfg(test)]
mod tests {
    use kube_authn_core::{
        ErrorKind, ManualClock, RequestAuth, Secret, conformance::provider::ProviderFixture,
    };

    use super::*;
    use crate::test_support::*;

    const NOW: i64 = 1_000_000;

    fn offering(name: &str, token: Secret) -> CredentialRequest {
        let cluster = cluster(GoogleProvider::NAME).build().expect("a cluster");
        request(name, &cluster).with_auth(RequestAuth::new().with_token("google", token))
    }

    fn strategy() -> GoogleProvider {
        GoogleProvider::new().with_clock(ManualClock::at(at(NOW)))
    }

    #[tokio::test]
    async fn keeps_the_contract() {
        let (alice, bob) = (jwt("alice", NOW + 600), jwt("bob", NOW + 600));
        let expired = jwt("carol", NOW - 1);
        let nothing = cluster(GoogleProvider::NAME).build().expect("a cluster");
        let fixture = ProviderFixture::new(
            strategy(),
            offering("alice", alice.clone()),
            offering("bob", bob.clone()),
        )
        .with_clock(ManualClock::at(at(NOW)))
        .with_expires_at(at(NOW + 600))
        .refusing(request("alice", &nothing), ErrorKind::LoginRequired)
        .refusing(offering("carol", Secret::new(" \n")), ErrorKind::LoginRequired)
        .refusing(offering("carol", expired.clone()), ErrorKind::TokenExpired)
        .refusing(
            offering("carol", Secret::new("canary\r\nx: y")),
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
        let nothing = cluster(GoogleProvider::NAME).build().expect("a cluster");
        let other = RequestAuth::new().with_token("other", Secret::new("t"));

        let error = strategy()
            .credential(&request("alice", &nothing).with_auth(other))
            .await
            .expect_err("refused");

        assert_eq!(
            error.to_string(),
            "Google token not found under auth.google in request body"
        );
    }

    #[tokio::test]
    async fn opaque_token_goes_on_as_it_is_and_states_no_end() {
        let credential = strategy()
            .credential(&offering("alice", Secret::new("ya29.opaque-token")))
            .await
            .expect("a credential");

        assert_eq!(
            (sent(&credential), credential.expires_at()),
            (Secret::new("ya29.opaque-token"), None)
        );
    }
}
