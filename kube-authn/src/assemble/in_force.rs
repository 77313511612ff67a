//! The strategies in force, and what a reload puts in the place of those whose settings changed.

use std::sync::Arc;

use arc_swap::ArcSwap;
use kube_authn_clusters::EffectiveConfig;
use kube_authn_core::{
    ClusterDetails, ClusterSet, Credential, CredentialRequest, CredentialScope, KubernetesAuthProvider,
    Metadata, Problem, ProviderRegistry, Result, UpstreamPool, async_trait,
};
use kube_authn_providers::ImpersonationProvider;

use super::strategies::{Configured, configured, impersonation, without_settings};

/// All strategies but `clusterAuth`, which needs a vault. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Strategies {
    /// All but `impersonation`: they may carry users' names for it.
    carriers: ProviderRegistry,
    impersonation: Replaceable<ImpersonationProvider>,
    configured: Vec<(Configured, Replaceable)>,
}

/// Strategies whose settings changed, made and not yet in force.
pub(crate) struct Changes {
    made: Vec<(Replaceable, Arc<dyn KubernetesAuthProvider>)>,
    impersonation: Option<(Replaceable<ImpersonationProvider>, Arc<ImpersonationProvider>)>,
    /// Those that check clusters: what is in force then.
    checking: Vec<Arc<dyn KubernetesAuthProvider>>,
}

impl Strategies {
    /// `pool` has the connections of the program.
    pub(crate) fn new(effective: &EffectiveConfig, pool: &UpstreamPool) -> Self {
        let configured: Vec<_> = configured()
            .into_iter()
            .map(|strategy| {
                let provider = Replaceable::new(strategy.name, (strategy.build)(effective));
                (strategy, provider)
            })
            .collect();
        let carriers = configured
            .iter()
            .fold(without_settings(pool), |registry, (_, provider)| {
                registry.with(provider.clone())
            });
        let impersonation = Arc::new(impersonation(effective, &carriers));
        Self {
            impersonation: Replaceable::new(ImpersonationProvider::NAME, impersonation),
            carriers,
            configured,
        }
    }

    /// All of them, by name.
    pub(crate) fn registry(&self) -> ProviderRegistry {
        self.carriers.clone().with(self.impersonation.clone())
    }

    /// What other settings make of them.
    pub(crate) fn changes(&self, before: &EffectiveConfig, now: &EffectiveConfig) -> Changes {
        let made: Vec<_> = self
            .configured
            .iter()
            .filter(|(strategy, _)| !(strategy.same)(before, now))
            .map(|(strategy, provider)| (provider.clone(), (strategy.build)(now)))
            .collect();
        let mut checking: Vec<_> = made.iter().map(|(_, provider)| provider.clone()).collect();
        let carriers = checking.iter().cloned().fold(self.carriers.clone(), with);
        checking.push(Arc::new(impersonation(now, &carriers)));

        let (was, is) = (&before.kube_authn.strategies, &now.kube_authn.strategies);
        let impersonation = (was.impersonation != is.impersonation).then(|| {
            let provider = Arc::new(impersonation(now, &self.carriers));
            (self.impersonation.clone(), provider)
        });
        Changes {
            made,
            impersonation,
            checking,
        }
    }

    /// Drops what strategies keep themselves of clusters that are no longer in the set, or whose content changed.
    pub(crate) fn retain_clusters(&self, clusters: &ClusterSet) {
        self.impersonation.current.load().retain_clusters(clusters);
    }
}

impl Changes {
    /// These strategies once the changes are in force, to check clusters with.
    pub(crate) fn upon(&self, registry: &ProviderRegistry) -> ProviderRegistry {
        self.checking.iter().cloned().fold(registry.clone(), with)
    }

    /// Whether the strategy of this name is another one now.
    pub(crate) fn concern(&self, strategy: &str) -> bool {
        let mut names = self.made.iter().map(|(provider, _)| provider.name);
        names.any(|name| name == strategy)
            || (self.impersonation.is_some() && strategy == ImpersonationProvider::NAME)
    }

    /// What is under way ends with the old ones.
    pub(crate) fn put_in_force(self) {
        for (provider, made) in self.made {
            provider.replace(made);
        }
        if let Some((provider, made)) = self.impersonation {
            provider.replace(made);
        }
    }
}

fn with(registry: ProviderRegistry, provider: Arc<dyn KubernetesAuthProvider>) -> ProviderRegistry {
    registry.with(provider)
}

/// The strategy of one name, with the settings in force. Clones share it.
#[derive(Debug)]
struct Replaceable<P: ?Sized = dyn KubernetesAuthProvider> {
    name: &'static str,
    current: Arc<ArcSwap<Arc<P>>>,
}

impl<P: ?Sized> Replaceable<P> {
    fn new(name: &'static str, provider: Arc<P>) -> Self {
        Self {
            name,
            current: Arc::new(ArcSwap::from_pointee(provider)),
        }
    }

    fn replace(&self, provider: Arc<P>) {
        tracing::info!("settings of strategy {} changed", self.name);
        self.current.store(Arc::new(provider));
    }
}

impl<P: ?Sized> Clone for Replaceable<P> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            current: self.current.clone(),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: KubernetesAuthProvider + ?Sized> KubernetesAuthProvider for Replaceable<P> {
    fn name(&self) -> &str {
        self.name
    }

    fn scope(&self, cluster: &ClusterDetails) -> CredentialScope {
        self.current.load().scope(cluster)
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        self.current.load().validate(cluster)
    }

    fn public_metadata(&self, cluster: &ClusterDetails) -> Metadata {
        self.current.load().public_metadata(cluster)
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        self.current.load_full().credential(request).await
    }

    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        self.current.load_full().invalidate(request, refused).await
    }
}
