//! The stored logins for whoever looks after them, and the rule that no key is retired while it is in use.

use std::time::Duration;

use kube_authn_clusters::{AppConfig, KubeAuthnConfig, StoreConfig};
use kube_authn_core::{Error, ErrorKind, KeyId, Result, Secret, TokenVault, async_trait};
use kube_authn_store::{KeyProvider, KeyRing};

use crate::assemble::store;

/// The logins of a configuration and the keys that protect them. Made of the block `kubeAuthn` alone: no locator is asked,
/// and no cluster has to take logins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Administration {
    /// The logins.
    pub vault: TokenVault,
    /// The keys; the first one writes.
    pub keys: KeyRing,
    /// Keys that are lost for good (`kubeAuthn.encryption.lost`).
    pub lost: Vec<KeyId>,
}

impl Administration {
    /// Opens the store of a configuration.
    ///
    /// # Errors
    /// `ConfigInvalid` with all problems of the block, if there is no key, or if the store is of type `memory` or cannot be
    /// opened; `Unavailable` or `Timeout` if the store's file is locked.
    pub async fn open(config: &AppConfig) -> Result<Self> {
        let block = KubeAuthnConfig::of(config)?;
        if block.store == Some(StoreConfig::Memory) {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "kubeAuthn.store.type is memory: its logins are in the service's own process, where nobody else can reach them",
            ));
        }
        Self::of(&block).await
    }

    pub(crate) async fn of(block: &KubeAuthnConfig) -> Result<Self> {
        let keys = KeyRing::from_provider(&Configured::of(block)).await?;
        let vault = store::vault(block.store.as_ref(), keys.clone()).await?;
        Ok(Self {
            vault,
            keys,
            lost: block.lost_keys.clone(),
        })
    }

    /// Refuses if a row is sealed with a key that is not there: the ring has to hold every key in use.
    ///
    /// # Errors
    /// `ConfigInvalid` that names the keys and how many rows they protect; `Unavailable` or `Timeout` if the store does not
    /// answer.
    pub async fn refuse_retired_keys(&self) -> Result<()> {
        self.refuse_without(&self.keys.ids()).await
    }

    async fn refuse_without(&self, ids: &[KeyId]) -> Result<()> {
        let mut missing = self.vault.rows_by_key().await?;
        missing.retain(|id, _| !ids.contains(id));
        for (id, rows) in missing.iter().filter(|(id, _)| self.lost.contains(id)) {
            tracing::warn!(key = %id, rows, "rows of the token store are sealed with a key that is lost");
        }
        missing.retain(|id, _| !self.lost.contains(id));
        if missing.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = missing
            .iter()
            .map(|(id, rows)| format!("\"{id}\" ({rows} rows)"))
            .collect();
        Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!(
                "the token store holds rows sealed with keys that are not in kubeAuthn.encryption.keys: {}: put the key \
                 back behind the others, and take it out when `kube-authn rekey` has written its rows anew and `kube-authn \
                 keys` shows none",
                keys.join(", ")
            ),
        ))
    }

    /// As [`Administration::refuse_retired_keys`] at the start of a service: a store that does not answer is asked again in
    /// the background, and what it says then is an error of the log.
    pub(crate) async fn refuse_start(&self) -> Result<()> {
        match self.refuse_retired_keys().await {
            Err(error) if is_outage(&error) => {
                tracing::warn!(%error, "cannot tell yet whether every encryption key in use is there");
                let later = self.clone();
                tokio::spawn(async move { later.tell_when_possible().await });
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn tell_when_possible(&self) {
        loop {
            tokio::time::sleep(ASK_AGAIN).await;
            match self.refuse_retired_keys().await {
                Err(error) if is_outage(&error) => {}
                Err(error) => return tracing::error!("{error}"),
                Ok(()) => return,
            }
        }
    }

    /// Takes over the keys of a configuration that was read anew; says whether anything changed.
    ///
    /// # Errors
    /// `ConfigInvalid` if there is none, if one has another's id, or if one that is taken out is in use; else as
    /// [`Administration::refuse_retired_keys`]. The keys stay as they were.
    pub(crate) async fn renew(&self, block: &KubeAuthnConfig) -> Result<bool> {
        let new = KeyRing::from_provider(&Configured::of(block)).await?;
        let (new_ids, ids) = (new.ids(), self.keys.ids());
        if ids.iter().any(|id| !new_ids.contains(id)) {
            self.refuse_without(&new_ids).await?;
        }
        self.keys.renew(&new)
    }
}

/// `kubeAuthn.encryption.keys`.
#[derive(Debug)]
struct Configured(Vec<(KeyId, Secret)>);

impl Configured {
    fn of(block: &KubeAuthnConfig) -> Self {
        let keys = block.encryption_keys.iter();
        Self(keys.map(|key| (key.id.clone(), key.key.clone())).collect())
    }
}

#[async_trait]
impl KeyProvider for Configured {
    async fn keys(&self) -> Result<Vec<(KeyId, Secret)>> {
        self.0.keys().await
    }
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

/// A database that comes back does so within seconds or much later.
const ASK_AGAIN: Duration = Duration::from_secs(5);
