//! All locators of `kubernetes.clusterLocatorMethods`, in their order.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use kube_authn_core::{ClusterDetails, ClusterLocator, ClusterStamp, Located, Problem, Result};

use crate::{
    AppConfig, Cadence, ConfigLocator, ConfigValue, KubeconfigLocator, LocalKubectlProxyLocator, Outside,
    config::{Source, locator_methods},
    findings::Findings,
    refreshing::RefreshingLocator,
    transport_rules,
};

/// Lists the clusters of several locators, one locator after the other.
///
/// Of two clusters with one name from two locators both stay listed, with a warning; the first is the one that is found.
#[derive(Clone, Debug, Default)]
pub struct CombinedLocator {
    locators: Vec<Arc<dyn ClusterLocator>>,
    continue_on_error: bool,
    sources: Vec<Source>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl CombinedLocator {
    /// No locator yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The locators of the block `kubernetes`. What is wrong with the block is among the problems of `locate`.
    ///
    /// Without the block there are no clusters, and a warning.
    pub fn from_config(config: &AppConfig, outside: &Outside) -> Self {
        let mut combined = Self::new();
        let mut findings = Findings::default();
        let block = config.value("kubernetes");
        let there = block.unvanished().and_then(ConfigValue::optional_object);
        match findings.keep(there.map(|block| block.is_some())) {
            Some(true) => combined.read(config, &block, outside, &mut findings),
            Some(false) => {
                findings.warn("Failed to initialize kubernetes backend: valid kubernetes config is missing");
            }
            None => {}
        }
        combined.problems = findings.problems;
        combined.warnings = findings.warnings;
        combined
    }

    /// Adds a locator behind the others.
    pub fn with(mut self, locator: impl ClusterLocator) -> Self {
        self.locators.push(Arc::new(locator));
        self
    }

    fn read(
        &mut self,
        config: &AppConfig,
        block: &ConfigValue<'_>,
        outside: &Outside,
        findings: &mut Findings,
    ) {
        service_locator(block, findings);
        let continue_on_error = block.child("clusterLocatorContinueOnError").optional_bool();
        self.continue_on_error = findings.keep(continue_on_error).flatten().unwrap_or(false);
        let list = locator_methods(&config.root());
        let methods = list
            .optional_objects()
            .and_then(|methods| methods.ok_or_else(|| list.missing()));
        for method in findings.keep(methods).unwrap_or_default() {
            let Some(method) = findings.keep(method) else {
                continue;
            };
            self.add(config, &method, outside, findings);
        }
    }

    fn add(
        &mut self,
        config: &AppConfig,
        method: &ConfigValue<'_>,
        outside: &Outside,
        findings: &mut Findings,
    ) {
        let place = method.child("type");
        let Some(kind) = findings.keep(place.string()) else {
            return;
        };
        match kind {
            ConfigLocator::NAME => {
                let locator = ConfigLocator::new(config, method);
                self.sources.extend_from_slice(locator.sources());
                self.locators.push(Arc::new(locator));
            }
            LocalKubectlProxyLocator::NAME => {
                self.locators.push(Arc::new(LocalKubectlProxyLocator::new()));
            }
            KubeconfigLocator::NAME => {
                let locator = KubeconfigLocator::read(method, findings);
                self.refreshed(locator, method, KUBECONFIG_SECONDS, findings);
            }
            #[cfg(feature = "catalog")]
            crate::CatalogLocator::NAME if outside.catalog.is_some() => {
                let catalog = outside.catalog.clone();
                let locator =
                    catalog.and_then(|catalog| crate::CatalogLocator::read(catalog, method, findings));
                self.refreshed(locator, method, CATALOG_SECONDS, findings);
            }
            #[cfg(feature = "gke")]
            crate::GkeLocator::NAME if outside.google.is_some() => {
                let google = outside.google.clone();
                let locator = google.and_then(|google| crate::GkeLocator::read(google, method, findings));
                self.refreshed(locator, method, GKE_SECONDS, findings);
            }
            other => {
                let _ = outside;
                findings.push(place.problem(unsupported(other)));
            }
        }
    }

    /// Adds a locator that asks others, as often as its key `refresh` says.
    fn refreshed(
        &mut self,
        locator: Option<impl ClusterLocator>,
        method: &ConfigValue<'_>,
        seconds: u64,
        findings: &mut Findings,
    ) {
        let refresh = method.child("refresh");
        let cadence = match refresh.is_absent() {
            true => Ok(Cadence::Every(Duration::from_secs(seconds))),
            false => Cadence::read(&refresh),
        };
        if let (Some(locator), Some(cadence)) = (locator, findings.keep(cadence)) {
            self.locators
                .push(Arc::new(RefreshingLocator::new(locator, cadence)));
        }
    }

    pub(crate) fn source(&self, cluster: kube_authn_core::ClusterStamp) -> Option<&Source> {
        self.sources.iter().find(|source| source.cluster == cluster)
    }
}

#[async_trait]
impl ClusterLocator for CombinedLocator {
    fn name(&self) -> &str {
        "combined"
    }

    async fn locate(&self) -> Result<Located> {
        let mut all = Located::new(Vec::new(), self.problems.clone()).with_warnings(self.warnings.clone());
        let mut listed_by_others = HashSet::new();
        for (index, locator) in self.locators.iter().enumerate() {
            match locator.locate().await {
                Ok(located) => {
                    if locator.name() == CATALOG {
                        listed_by_others.extend(located.clusters.iter().map(ClusterDetails::stamp));
                    }
                    all.clusters.extend(located.clusters);
                    all.problems.extend(located.problems);
                    all.warnings.extend(located.warnings);
                }
                Err(error) if self.continue_on_error => {
                    tracing::error!(
                        locator = locator.name(),
                        error = %error,
                        "Failed to retrieve clusters from cluster locator method #{}",
                        index + 1
                    );
                    all.warnings.push(format!(
                        "Failed to retrieve clusters from cluster locator method #{}: {error}",
                        index + 1
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        let mut names = HashSet::new();
        let mut warnings = drop_shadowing(&mut all.clusters, &listed_by_others);
        for cluster in &all.clusters {
            if !names.insert(cluster.name()) {
                warnings.push(format!("Duplicate cluster name '{}'", cluster.name()));
            }
            warnings.extend(transport_rules::warnings(cluster));
        }
        all.warnings.extend(warnings);
        Ok(all)
    }
}

/// Whoever writes to the catalog must not put a cluster in the place of one that the operator configured, whatever the
/// order of the locators.
fn drop_shadowing(clusters: &mut Vec<ClusterDetails>, of_catalog: &HashSet<ClusterStamp>) -> Vec<String> {
    let configured: HashSet<_> = clusters
        .iter()
        .filter(|cluster| !of_catalog.contains(&cluster.stamp()))
        .map(|cluster| cluster.name().clone())
        .collect();
    let mut warnings = Vec::new();
    clusters.retain(|cluster| {
        let shadows = of_catalog.contains(&cluster.stamp()) && configured.contains(cluster.name());
        if shadows {
            let name = cluster.name();
            warnings.push(format!(
                "Duplicate cluster name '{name}': the catalog's is left out"
            ));
        }
        !shadows
    });
    warnings
}

/// Which clusters belong to an entity is Backstage's question; here only the setting is checked. Backstage demands it;
/// its own documentation leaves it out, so absence is `multiTenant` here.
fn service_locator(block: &ConfigValue<'_>, findings: &mut Findings) {
    let method = block.child("serviceLocatorMethod");
    if findings.keep(method.optional_object().map(|method| method.is_some())) != Some(true) {
        return;
    }
    let place = method.child("type");
    match findings.keep(place.string()) {
        Some("multiTenant" | "singleTenant" | "catalogRelation") | None => {}
        Some("http") => findings.push(place.problem("not implemented")),
        Some(other) => {
            findings.push(place.problem(format!("Unsupported kubernetes.serviceLocatorMethod \"{other}\"")))
        }
    }
}

fn unsupported(locator: &str) -> String {
    let hint = match locator {
        "catalog" | "gke" => {
            " (this program is built without it, or nobody is there to ask: see the other errors)"
        }
        _ => "",
    };
    format!("Unsupported kubernetes.clusterLocatorMethods: \"{locator}\"{hint}")
}

/// The name of the one locator whose list others than the operator write.
const CATALOG: &str = "catalog";
/// A kubeconfig costs a millisecond to read.
const KUBECONFIG_SECONDS: u64 = 5;
/// Backstage asks with every request; a new cluster may be a minute late.
#[cfg(feature = "catalog")]
const CATALOG_SECONDS: u64 = 60;
/// As Backstage.
#[cfg(feature = "gke")]
const GKE_SECONDS: u64 = 3_600;

#[cfg(test)]
mod tests;
