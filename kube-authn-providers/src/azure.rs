//! Strategy `azure`: an Entra token of the application, for the AKS server application.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, KubernetesAuthProvider, Metadata,
    Problem, Result, SystemClock, rustls::crypto::CryptoProvider,
};

mod assertion;
mod chain;
mod cli;
mod credentials;
mod entra;
mod error;
mod managed_identity;
mod options;
mod settings;
mod tokens;

pub use self::settings::{AzureCloud, AzureConfig, AzureSource, ManagedIdentity};

use crate::options::invalid;

use self::{chain::Chain, credentials::Environment, options::wanted, tokens::Tokens};

/// The application authenticates with an Entra token for the AKS server application. Clones share the tokens.
///
/// # Who is authenticated
/// One identity of the application for every caller: a service principal, a managed identity, or whoever is logged in to
/// the Azure CLI. A cluster may name another tenant or client (`kubeAuthn.azure` of the cluster).
///
/// # Configuration
/// [`AzureConfig`], key `kubeAuthn.strategies.azure`. Without any, the environment decides.
///
/// # Where the credential comes from
/// From the first of [`AzureConfig::sources`] that is set up here. A source that is set up and refused ends the search:
/// the ones after it may be somebody else. Once a source has given a token it alone is asked.
///
/// # Lifetime and caching
/// One token per tenant, client and server application, shared by all clusters, obtained anew a quarter of an hour before
/// its end (at half of its life if that is short). While that fails, the old one is used until its end.
///
/// # Failures
/// `ConfigInvalid` if no source is set up or Entra refuses the client; `RateLimited`, `Unavailable` or `Timeout` if the
/// source does not answer. The text has the reason of every source that was asked, and no answer's body.
#[derive(Clone)]
pub struct AzureProvider(Arc<Inner>);

struct Inner {
    config: AzureConfig,
    chain: Arc<Chain>,
    tokens: Tokens,
    clock: Arc<dyn Clock>,
}

impl AzureProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "azure";

    /// With these settings. `env` reads a variable of the environment; call this once, when the configuration is read.
    ///
    /// What cannot be used is found by [`validate`](KubernetesAuthProvider::validate), at each cluster.
    pub fn new(
        config: AzureConfig,
        crypto: Arc<CryptoProvider>,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Self {
        Self::with_clock(config, crypto, env, SystemClock)
    }

    /// With another clock.
    pub fn with_clock(
        config: AzureConfig,
        crypto: Arc<CryptoProvider>,
        env: &impl Fn(&str) -> Option<String>,
        clock: impl Clock,
    ) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let chain = Chain::new(&config, crypto, Environment::read(env), clock.clone());
        Self(Arc::new(Inner {
            config,
            chain: Arc::new(chain),
            tokens: Tokens::default(),
            clock,
        }))
    }
}

#[async_trait]
impl KubernetesAuthProvider for AzureProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        let (_, mut problems) = wanted(cluster, &self.0.config);
        if let Err(error) = self.0.chain.usable() {
            problems.push(Problem::new("", error.to_string()));
        }
        problems
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let inner = &self.0;
        let (wanted, problems) = wanted(&request.cluster, &inner.config);
        if !problems.is_empty() {
            return Err(invalid(&problems));
        }
        inner.tokens.credential(wanted, &inner.chain, &inner.clock).await
    }

    /// Obtains a new token, unless the refused one is new itself.
    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        let inner = &self.0;
        let (wanted, _) = wanted(&request.cluster, &inner.config);
        inner.tokens.refuse(&wanted, refused, inner.clock.now())
    }
}

impl fmt::Debug for AzureProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureProvider")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
