//! Everything that an app-config says about clusters and logins, checked as a whole.

use kube_authn_core::{ClusterDetails, ClusterLocator, Error, Problem};

use crate::{
    AWS, AppConfig, AwsAccounts, CLUSTER_AUTH, CombinedLocator, InvalidConfig, KubeAuthnConfig, Logins,
    Outside, findings::Findings,
};

/// What is in force: clusters that can be used, how users log in to them, and everything that is wrong or doubtful.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EffectiveConfig {
    /// The clusters that can be used, in their order. A cluster with a problem is not among them.
    pub clusters: Vec<ClusterDetails>,
    /// How users log in to the clusters of strategy `clusterAuth`.
    pub logins: Logins,
    /// Callers, store, encryption and strategies.
    pub kube_authn: KubeAuthnConfig,
    /// AWS accounts of the application.
    pub aws: AwsAccounts,
    /// What works and should be looked at.
    pub warnings: Vec<String>,
    /// What is wrong; empty if everything can be used.
    pub problems: Vec<Problem>,
    locator: CombinedLocator,
}

impl EffectiveConfig {
    /// Reads all blocks and reports all their problems in one go. Never fails: what is wrong is in `problems`.
    pub async fn read(config: &AppConfig) -> Self {
        Self::read_with(config, &Outside::default()).await
    }

    /// As [`EffectiveConfig::read`], with parties that locators ask.
    pub async fn read_with(config: &AppConfig, outside: &Outside) -> Self {
        Self::with_locator(config, CombinedLocator::from_config(config, outside)).await
    }

    /// The same configuration with what its locators list now; those that are not due are not asked.
    pub async fn again(&self, config: &AppConfig) -> Self {
        Self::with_locator(config, self.locator.clone()).await
    }

    async fn with_locator(config: &AppConfig, locator: CombinedLocator) -> Self {
        let mut findings = Findings::default();
        let clusters = match locator.locate().await {
            Ok(located) => {
                findings.extend(located.problems);
                findings.warnings.extend(located.warnings);
                located.clusters
            }
            Err(error) => {
                findings.push(unlisted(&error));
                Vec::new()
            }
        };
        let logins = Logins::read(config, &mut findings);
        let kube_authn = KubeAuthnConfig::read(config, &mut findings);
        let uses_aws = clusters.iter().any(|cluster| cluster.auth_provider() == AWS);
        let aws = AwsAccounts::read(config, uses_aws, &mut findings);
        let mut effective = Self {
            clusters,
            logins,
            kube_authn,
            aws,
            warnings: findings.warnings,
            problems: findings.problems,
            locator,
        };
        effective.require_issuers(config);
        effective.look_at_logins();
        effective.look_at_keys(config);
        effective
    }

    /// Whether any cluster takes stored logins, so that a store and a key are needed.
    pub fn uses_cluster_auth(&self) -> bool {
        self.clusters
            .iter()
            .any(|cluster| cluster.auth_provider() == CLUSTER_AUTH)
    }

    /// Lets the strategies check their clusters, `|cluster| registry.validate(cluster)`. Their problems get file, full
    /// key path and Backstage's text, and their clusters are taken out.
    pub fn validate_with(&mut self, mut validate: impl FnMut(&ClusterDetails) -> Vec<Problem>) {
        let mut found = Vec::new();
        let locator = &self.locator;
        self.clusters.retain(|cluster| {
            let problems = validate(cluster);
            let usable = problems.is_empty();
            found.extend(
                problems
                    .into_iter()
                    .map(|problem| place(locator, cluster, problem)),
            );
            usable
        });
        self.problems.extend(found);
    }

    /// The configuration if nothing is wrong with it.
    ///
    /// # Errors
    /// All problems.
    pub fn into_valid(self) -> Result<Self, InvalidConfig> {
        match self.problems.is_empty() {
            true => Ok(self),
            false => Err(InvalidConfig::new(self.problems)),
        }
    }

    /// A cluster of strategy `clusterAuth` is of no use without an issuer.
    fn require_issuers(&mut self, config: &AppConfig) {
        let place = config.value("clusterAuth").child("issuer");
        let reported = self
            .problems
            .iter()
            .any(|problem| problem.key.starts_with("clusterAuth"));
        let mut problems = Vec::new();
        self.clusters.retain(|cluster| {
            let name = cluster.name().as_str();
            let usable = cluster.auth_provider() != CLUSTER_AUTH || self.logins.for_cluster(name).is_some();
            if !usable && !reported {
                let text = format!(
                    "cluster '{name}' uses authProvider \"{CLUSTER_AUTH}\", but no issuer is configured for it: set \
                     'clusterAuth.issuer'"
                );
                problems.push(place.problem(text).with_cluster(name));
            }
            usable
        });
        self.problems.extend(problems);
    }

    fn look_at_logins(&mut self) {
        for (name, _) in self.logins.by_cluster() {
            let known = |cluster: &ClusterDetails| {
                cluster.name().as_str() == name && cluster.auth_provider() == CLUSTER_AUTH
            };
            let failed = |problem: &Problem| problem.cluster.as_deref() == Some(name);
            if !self.clusters.iter().any(known) && !self.problems.iter().any(failed) {
                self.warnings.push(format!(
                    "clusterAuth.clusters names '{name}', but no cluster of that name uses authProvider \"{CLUSTER_AUTH}\""
                ));
            }
        }
    }

    /// Without a key the service refuses to start. Whoever wrote no list of keys may have a vault of their own; whoever
    /// wrote an empty one has none.
    fn look_at_keys(&mut self, config: &AppConfig) {
        let failed = |problem: &Problem| problem.key.starts_with("kubeAuthn.encryption");
        let has_keys = !self.kube_authn.encryption_keys.is_empty() || self.problems.iter().any(failed);
        if !self.uses_cluster_auth() || has_keys {
            return;
        }
        let place = config.value("kubeAuthn.encryption.keys");
        match place.is_absent() {
            true => self
                .warnings
                .push(format!("kubeAuthn.encryption.keys is not set: {NO_KEY}")),
            false => self
                .problems
                .push(place.problem(format!("the list is empty: {NO_KEY}"))),
        }
    }
}

const NO_KEY: &str =
    "logins cannot be stored, and the service refuses to start; make a key with 'kube-authn keygen'";

fn place(locator: &CombinedLocator, cluster: &ClusterDetails, problem: Problem) -> Problem {
    let message = format!("Invalid cluster '{}': {}", cluster.name(), problem.message);
    let placed = match locator.source(cluster.stamp()) {
        Some(source) if problem.key.is_empty() => Problem::new(&source.key, message).with_file(&source.file),
        Some(source) => {
            Problem::new(format!("{}.{}", source.key, problem.key), message).with_file(&source.file)
        }
        None => Problem::new(problem.key, message),
    };
    placed.with_cluster(cluster.name().as_str())
}

fn unlisted(error: &Error) -> Problem {
    let problem = Problem::new("kubernetes.clusterLocatorMethods", error.to_string());
    match error.cluster() {
        Some(cluster) => problem.with_cluster(cluster),
        None => problem,
    }
}
