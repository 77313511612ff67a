//! `authProvider` name → strategy. Puts provider and cluster on errors, once.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    ClusterDetails, Credential, CredentialRequest, CredentialScope, Error, ErrorKind, KubernetesAuthProvider,
    Metadata, Problem, Result,
};

/// The strategies that are known, found by name. Itself a provider: it passes each call to the cluster's own strategy.
///
/// Registering adds a strategy beside the others; one of the same name replaces that one alone. Clones share the
/// strategies.
#[derive(Clone, Debug, Default)]
pub struct ProviderRegistry(Vec<Arc<dyn KubernetesAuthProvider>>);

impl ProviderRegistry {
    /// A registry without strategies.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a strategy under its name.
    pub fn with(mut self, provider: impl KubernetesAuthProvider) -> Self {
        self.0.retain(|known| known.name() != provider.name());
        self.0.push(Arc::new(provider));
        self
    }

    /// The cluster's strategy.
    ///
    /// # Errors
    /// `ConfigInvalid` with Backstage's text if there is none of that name. Names are case-sensitive.
    pub fn get(&self, cluster: &ClusterDetails) -> Result<&Arc<dyn KubernetesAuthProvider>> {
        let name = cluster.auth_provider();
        self.find(name).ok_or_else(|| {
            Error::new(
                ErrorKind::ConfigInvalid,
                format!("authProvider \"{name}\" has no AuthenticationStrategy associated with it"),
            )
            .with_cluster(cluster.name().as_str())
        })
    }

    /// The names of all strategies, in the order of registration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|provider| provider.name())
    }

    /// The strategy of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<dyn KubernetesAuthProvider>> {
        self.find(name)
    }

    /// A dozen names of a dozen bytes: comparing them in turn is faster than hashing one.
    fn find(&self, name: &str) -> Option<&Arc<dyn KubernetesAuthProvider>> {
        self.0.iter().find(|provider| provider.name() == name)
    }
}

#[async_trait]
impl KubernetesAuthProvider for ProviderRegistry {
    /// The registry stands for many strategies and has no wire name of its own.
    fn name(&self) -> &str {
        "registry"
    }

    /// The strategy's scope; the strictest one for a cluster whose strategy is unknown.
    fn scope(&self, cluster: &ClusterDetails) -> CredentialScope {
        self.find(cluster.auth_provider())
            .map_or(CredentialScope::Request, |provider| provider.scope(cluster))
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        let problems = match self.find(cluster.auth_provider()) {
            Some(provider) => provider.validate(cluster),
            None => vec![Problem::new(
                "authProvider",
                format!(
                    "authProvider \"{}\" has no config associated with it",
                    cluster.auth_provider()
                ),
            )],
        };
        problems
            .into_iter()
            .map(|problem| problem.with_cluster(cluster.name().as_str()))
            .collect()
    }

    fn public_metadata(&self, cluster: &ClusterDetails) -> Metadata {
        self.find(cluster.auth_provider())
            .map(|provider| provider.public_metadata(cluster))
            .unwrap_or_default()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let provider = self.get(&request.cluster)?;
        provider.credential(request).await.map_err(|error| {
            error
                .with_provider(provider.name())
                .with_cluster(request.cluster.name().as_str())
        })
    }

    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        match self.find(request.cluster.auth_provider()) {
            Some(provider) => provider.invalidate(request, refused).await,
            None => false,
        }
    }
}
