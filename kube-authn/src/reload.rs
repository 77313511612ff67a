//! What a running service takes over from a configuration that changed.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kube_authn_clusters::{AppConfig, EffectiveConfig, InvalidConfig, Logins};
use kube_authn_core::{
    ClusterAccess, ClusterDetails, ClusterSet, Error, ErrorKind, KeyId, Problem, Result, serde_json::Value,
};
use kube_authn_http::ClusterAuth;
use kube_authn_providers::ClusterAuthProvider;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    Administration,
    assemble::{
        credential_source,
        in_force::{Changes, Strategies},
        located, read_effective, validated,
    },
    service::logins,
};

/// Puts a configuration that was read anew in force: the list of clusters, what belongs to each of them, and the settings of
/// strategies. Clusters keep their credentials and connections if neither they nor their strategy changed. Clones share
/// the state.
#[derive(Clone, Debug)]
pub struct Reload {
    access: ClusterAccess,
    strategies: Strategies,
    cluster_auth: Option<(ClusterAuth, Administration)>,
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
    /// Keys that could not be taken over, why, and when.
    refused: Option<(Vec<KeyId>, Error, Instant)>,
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
        strategies: Strategies,
        cluster_auth: Option<(ClusterAuth, Administration)>,
    ) -> Self {
        let state = State {
            fixed: fixed(config),
            reported: Vec::new(),
            config: config.root().json(),
            logins: effective.logins.clone(),
            effective,
            refused: None,
        };
        Self {
            access,
            strategies,
            cluster_auth,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Takes the clusters, the settings of strategies and the encryption keys of this configuration over, or, if it is the
    /// one in force, what its locators list now; says whether any cluster came, went or changed, or its strategy did.
    /// Everything else takes a restart; the log says so once.
    ///
    /// # Errors
    /// `ConfigInvalid` with all problems of the configuration, or if an encryption key is taken out that is in use; the old
    /// clusters and keys stay in force.
    pub async fn apply(&self, config: &AppConfig) -> Result<bool> {
        let mut state = self.state.lock().await;
        state.report_fixed(config);
        let json = config.root().json();
        let effective = match json == state.config {
            true => state.effective.again(config).await,
            false => read_effective(config).await,
        };
        let changes = self.strategies.changes(&state.effective, &effective);
        let effective = validated(effective, &changes.upon(self.access.credentials().provider()));
        self.refuse_logins_without_vault(&effective)?;
        let mut effective = effective.into_valid()?;
        // What is said of logins takes a restart.
        effective.logins = state.logins.clone();
        let clusters = located(&effective).collect::<Result<Vec<_>>>()?;
        let renewed = renewed(&effective, &changes);
        let changed = !renewed.is_empty() || !is_in_force(&clusters, &self.access.clusters().current());
        // Made before anything is put in force: it may fail.
        let logins = match &self.cluster_auth {
            Some((cluster_auth, opened)) if changed => {
                Some((cluster_auth, logins(&effective, &opened.vault)?))
            }
            Some(_) | None => None,
        };
        // The last step that may fail: keys that are taken over never belong to a configuration that is refused.
        self.renew_keys(&effective, &mut state).await?;
        // Before the clusters: what is cached for the new ones is of the new strategies.
        changes.put_in_force();
        if changed {
            let is_renewed = |cluster: &ClusterDetails| renewed.contains(cluster.name().as_str());
            self.access.clusters().replace_but(&clusters, is_renewed);
            let now = self.access.clusters().current();
            self.access.credentials().retain_clusters(&now);
            self.strategies.retain_clusters(&now);
            if let Some((cluster_auth, logins)) = logins {
                cluster_auth.replace_logins(logins);
            }
        }
        state.config = json;
        state.effective = effective;
        Ok(changed)
    }

    /// Whether this is the configuration that was taken over last, down to its secrets.
    pub async fn knows(&self, config: &AppConfig) -> bool {
        self.state.lock().await.config == config.root().json()
    }

    /// The files of keys are read with every configuration, so their content may change where its text does not.
    async fn renew_keys(&self, effective: &EffectiveConfig, state: &mut State) -> Result<()> {
        let Some((_, opened)) = &self.cluster_auth else {
            return Ok(());
        };
        let keys = effective.kube_authn.encryption_keys.iter();
        let ids: Vec<_> = keys.map(|key| key.id.clone()).collect();
        if let Some((refused, error, at)) = &state.refused
            && *refused == ids
            && at.elapsed() < COUNT_AGAIN
        {
            return Err(error.clone());
        }
        state.refused = None;
        match opened.renew(&effective.kube_authn).await {
            Ok(true) => {
                let ids: Vec<_> = ids.iter().map(KeyId::as_str).collect();
                tracing::info!(keys = %ids.join(", "), "the encryption keys changed; the first one writes");
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                state.refused = Some((ids, error.clone(), Instant::now()));
                Err(error)
            }
        }
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

/// The clusters whose credentials come from a strategy that changed, by name.
fn renewed(effective: &EffectiveConfig, changes: &Changes) -> HashSet<String> {
    let source = credential_source(effective);
    let clusters = effective.clusters.iter();
    clusters
        .filter(|cluster| changes.concern(cluster.auth_provider()) || changes.concern(&source(cluster)))
        .map(|cluster| cluster.name().to_string())
        .collect()
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

/// Whether a key is in use takes a look at every row.
const COUNT_AGAIN: Duration = Duration::from_secs(60);
/// What is read at the start alone.
const FIXED: [&str; 7] = [
    "backend.baseUrl",
    "backend.listen",
    "clusterAuth",
    "kubeAuthn.callers",
    "kubeAuthn.encryption.lost",
    "kubeAuthn.purge",
    "kubeAuthn.store",
];
