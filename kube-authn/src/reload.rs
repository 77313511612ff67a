//! What a running service takes over from a configuration that changed.

use std::sync::Arc;

use kube_authn_clusters::{AppConfig, EffectiveConfig, InvalidConfig, Logins};
use kube_authn_core::{
    ClusterAccess, ClusterDetails, ClusterSet, Error, ErrorKind, Problem, Result, TokenVault,
    serde_json::Value,
};
use kube_authn_http::ClusterAuth;
use kube_authn_providers::ClusterAuthProvider;
use tokio::sync::Mutex;

use crate::{
    assemble::{located, read_effective, validated},
    service::logins,
};

/// Puts a configuration that was read anew in force: the list of clusters and what belongs to each of them. Clusters that
/// did not change keep their credentials and connections. Clones share the state.
#[derive(Clone, Debug)]
pub struct Reload {
    access: ClusterAccess,
    cluster_auth: Option<(ClusterAuth, TokenVault)>,
    state: Arc<Mutex<State>>,
}

/// No `Debug` of its own: the configuration holds secrets.
struct State {
    /// What the service was started with.
    fixed: Vec<(&'static str, Option<Value>)>,
    /// Those of it that were reported as changed.
    reported: Vec<&'static str>,
    config: Option<Value>,
    effective: EffectiveConfig,
    logins: Logins,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

impl Reload {
    pub(crate) fn new(
        config: &AppConfig,
        effective: EffectiveConfig,
        access: ClusterAccess,
        cluster_auth: Option<(ClusterAuth, TokenVault)>,
    ) -> Self {
        let state = State {
            fixed: fixed(config),
            reported: Vec::new(),
            config: config.root().json(),
            logins: effective.logins.clone(),
            effective,
        };
        Self {
            access,
            cluster_auth,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Takes the clusters of this configuration over, or, if it is the one in force, what its locators list now; says
    /// whether any cluster came, went or changed. Everything but clusters takes a restart; the log says so once.
    ///
    /// # Errors
    /// `ConfigInvalid` with all problems of the configuration; the old clusters stay in force.
    pub async fn apply(&self, config: &AppConfig) -> Result<bool> {
        let mut state = self.state.lock().await;
        state.report_fixed(config);
        let json = config.root().json();
        let effective = match json == state.config {
            true => state.effective.again(config).await,
            false => read_effective(config).await,
        };
        let effective = validated(effective, self.access.credentials().provider());
        self.refuse_logins_without_vault(&effective)?;
        let mut effective = effective.into_valid()?;
        // What is said of logins takes a restart.
        effective.logins = state.logins.clone();
        let clusters = located(&effective).collect::<Result<Vec<_>>>()?;
        let changed = !is_in_force(&clusters, &self.access.clusters().current());
        if changed {
            // Made before anything is put in force: it may fail.
            let logins = match &self.cluster_auth {
                Some((cluster_auth, vault)) => Some((cluster_auth, logins(&effective, vault)?)),
                None => None,
            };
            self.access.clusters().replace(&clusters);
            let now = self.access.clusters().current();
            self.access.credentials().retain_clusters(&now);
            if let Some((cluster_auth, logins)) = logins {
                cluster_auth.replace_logins(logins);
            }
        }
        state.config = json;
        state.effective = effective;
        Ok(changed)
    }

    /// A store is opened at the start alone.
    fn refuse_logins_without_vault(&self, effective: &EffectiveConfig) -> Result<()> {
        let takes_logins = |cluster: &&ClusterDetails| cluster.auth_provider() == ClusterAuthProvider::NAME;
        match (&self.cluster_auth, effective.clusters.iter().find(takes_logins)) {
            (None, Some(cluster)) => {
                let name = cluster.name().as_str();
                let text = format!(
                    "cluster '{name}' is the first one with authProvider \"clusterAuth\": that takes a restart"
                );
                let problem = Problem::new("kubernetes.clusterLocatorMethods", &text).with_cluster(name);
                Err(Error::new(ErrorKind::ConfigInvalid, text).with_source(InvalidConfig::new(vec![problem])))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the set in force is of these clusters, in this order.
fn is_in_force(clusters: &[ClusterDetails], current: &ClusterSet) -> bool {
    let pairs = || clusters.iter().zip(current.iter());
    clusters.len() == current.iter().len() && pairs().all(|(new, old)| new.same_content(old))
}

impl State {
    fn report_fixed(&mut self, config: &AppConfig) {
        for ((key, was), (_, is)) in self.fixed.iter().zip(fixed(config)) {
            let known = self.reported.contains(key);
            match *was == is {
                true => self.reported.retain(|reported| reported != key),
                false if !known => {
                    tracing::warn!("{key} changed: that takes a restart");
                    self.reported.push(key);
                }
                false => {}
            }
        }
    }
}

fn fixed(config: &AppConfig) -> Vec<(&'static str, Option<Value>)> {
    FIXED.iter().map(|key| (*key, config.value(key).json())).collect()
}

/// What is read at the start alone.
const FIXED: [&str; 6] = [
    "aws",
    "backend.baseUrl",
    "backend.listen",
    "clusterAuth",
    "kubeAuthn",
    "kubernetes.googleServiceAccountCredentials",
];
