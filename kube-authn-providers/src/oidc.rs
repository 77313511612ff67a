//! Strategy `oidc`: the ID token that the caller offers, passed on.

use std::sync::Arc;

use async_trait::async_trait;
use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, Error, ErrorKind,
    KubernetesAuthProvider, Metadata, Problem, Result, SystemClock,
};

use crate::offered::{pass_on, present};

/// The user authenticates with an ID token that the caller offers for the cluster's `oidcTokenProvider`. Clones share the
/// clock; there is nothing else.
#[derive(Clone, Debug)]
pub struct OidcProvider {
    clock: Arc<dyn Clock>,
}

impl OidcProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "oidc";

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

impl Default for OidcProvider {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl KubernetesAuthProvider for OidcProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Request
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        match token_provider(cluster) {
            Some(_) => Vec::new(),
            None => vec![Problem::new(
                "oidcTokenProvider",
                "Must specify a token provider for 'oidc' strategy",
            )],
        }
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let name = token_provider(&request.cluster).ok_or_else(|| {
            Error::new(
                ErrorKind::ConfigInvalid,
                "oidc authProvider requires a configured oidcTokenProvider",
            )
        })?;
        let missing = format!("Auth token not found under oidc.{name} in request body");
        let token = present(request.auth.oidc_token(name), &missing)?;
        pass_on(token, &*self.clock, &format!("oidc.{name}"), name)
    }

    /// The caller offered this one token; another try would send it again.
    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        false
    }
}

fn token_provider(cluster: &ClusterDetails) -> Option<&str> {
    cluster
        .auth_metadata()
        .get(TOKEN_PROVIDER)
        .filter(|name| !name.trim().is_empty())
}

/// Backstage's key for `oidcTokenProvider` (`ANNOTATION_KUBERNETES_OIDC_TOKEN_PROVIDER`).
const TOKEN_PROVIDER: &str = "kubernetes.io/oidc-token-provider";

#[cfg(test)]
mod tests;
