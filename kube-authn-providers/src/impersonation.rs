//! Strategy `impersonation`: an application's credential that speaks for the user.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use kube_authn_core::{
    CachingProvider, ClusterDetails, ClusterSet, Credential, CredentialRequest, CredentialScope, Error,
    ErrorKind, KubernetesAuthProvider, Metadata, Problem, ProviderRegistry, Result, SystemClock,
};

mod mapping;
mod rules;

pub use mapping::ImpersonationConfig;

use crate::options::invalid;
use mapping::Mapping;

/// The user is named in `Impersonate-*` headers, which an application's credential carries: the API server decides by the
/// user's rights, and its audit log names both. Clones share the carriers and their credentials.
///
/// The application needs the right to impersonate, which [`ImpersonationProvider::rules`] writes down. Whoever holds that
/// credential can be anybody the rules name: keep them narrow.
#[derive(Clone, Debug)]
pub struct ImpersonationProvider {
    defaults: Arc<ImpersonationConfig>,
    carriers: Arc<HashMap<String, CachingProvider<Arc<dyn KubernetesAuthProvider>>>>,
}

impl ImpersonationProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "impersonation";

    /// With these settings for all clusters, and the strategies that may carry users' names. A cluster's own
    /// `kubeAuthn.impersonation` goes before the settings, key by key.
    pub fn new(defaults: ImpersonationConfig, carriers: &ProviderRegistry) -> Self {
        let cached = |name: &str| {
            let carrier = carriers.named(name)?.clone();
            let clock = Arc::new(SystemClock);
            let cache = CachingProvider::with_clock_and_capacity(carrier, clock, CLUSTERS);
            Some((name.to_owned(), cache))
        };
        Self {
            defaults: Arc::new(defaults),
            carriers: Arc::new(carriers.names().filter_map(cached).collect()),
        }
    }

    /// The strategy that carries users' names to this cluster, `serviceAccount` by default; `None` for a cluster of another
    /// strategy.
    pub fn carrier(&self, cluster: &ClusterDetails) -> Option<String> {
        (cluster.auth_provider() == Self::NAME)
            .then(|| Mapping::of(cluster, &self.defaults).ok())
            .flatten()
            .map(|mapping| mapping.carrier)
    }

    /// The least that the carrier must be allowed on this cluster, as YAML of a ClusterRole with remarks; `None` for a
    /// cluster of another strategy, or with settings that cannot work.
    pub fn rules(&self, cluster: &ClusterDetails) -> Option<String> {
        (cluster.auth_provider() == Self::NAME)
            .then(|| Mapping::of(cluster, &self.defaults).ok())
            .flatten()
            .map(|mapping| rules::cluster_role(&mapping))
    }

    /// Drops carriers' credentials of clusters that are no longer in the set, or whose content changed.
    pub fn retain_clusters(&self, clusters: &ClusterSet) {
        for carrier in self.carriers.values() {
            carrier.retain_clusters(clusters);
        }
    }

    fn carrying(
        &self,
        mapping: &Mapping,
        cluster: &ClusterDetails,
    ) -> Result<&CachingProvider<Arc<dyn KubernetesAuthProvider>>, String> {
        let name = &mapping.carrier;
        let carrier = self
            .carriers
            .get(name)
            .ok_or_else(|| format!("no strategy \"{name}\" is there to carry users' names"))?;
        match carrier.provider().scope(cluster) {
            CredentialScope::Application => Ok(carrier),
            CredentialScope::User | CredentialScope::Request => Err(format!(
                "strategy \"{name}\" cannot carry users' names: its credential is a user's own"
            )),
        }
    }
}

#[async_trait]
impl KubernetesAuthProvider for ImpersonationProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::User
    }

    /// Those of the mapping, and those that the carrier finds.
    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        let mapping = match Mapping::of(cluster, &self.defaults) {
            Ok(mapping) => mapping,
            Err(problems) => return problems,
        };
        match self.carrying(&mapping, cluster) {
            Ok(carrier) => carrier.provider().validate(cluster),
            Err(text) => vec![Problem::new(mapping::CARRIER_KEY, text)],
        }
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let cluster = &request.cluster;
        let mapping = Mapping::of(cluster, &self.defaults).map_err(|problems| invalid(&problems))?;
        // First, so that nothing is fetched for somebody who is refused anyway.
        let impersonation = mapping.impersonation(&request.principal)?;
        let carrier = self
            .carrying(&mapping, cluster)
            .map_err(|text| Error::new(ErrorKind::ConfigInvalid, text))?;
        let credential = match carrier.peek(request) {
            Some(credential) => credential,
            None => carrier.credential(request).await.map_err(|error| {
                // What the carrier lacks is no login that the user could mend.
                error.with_provider(mapping.carrier.as_str())
            })?,
        };
        credential.with_impersonation(impersonation)
    }

    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        let Ok(mapping) = Mapping::of(&request.cluster, &self.defaults) else {
            return false;
        };
        match self.carrying(&mapping, &request.cluster) {
            Ok(carrier) => carrier.invalidate(request, refused).await,
            Err(_) => false,
        }
    }
}

/// One credential of a carrier per cluster.
const CLUSTERS: usize = 10_000;

#[cfg(test)]
mod tests;
