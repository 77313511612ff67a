//! The stored logins for whoever looks after them, and the rule that no key is retired while it is in use.

use std::{collections::BTreeMap, time::Duration};

use kube_authn_clusters::{AppConfig, InvalidConfig, KubeAuthnConfig, StoreConfig};
use kube_authn_core::{Error, ErrorKind, KeyId, KeyRows, Result, Sealer, Secret, TokenVault, async_trait};
use kube_authn_store::{KeyProvider, KeyRing};

use crate::assemble::store;

/// The logins of a configuration and the keys that protect them. Made of the block `kubeAuthn` alone: no locator is asked,
/// and no cluster has to take logins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Administration {
    /// The logins.
    pub vault: TokenVault,
    /// The keys, the first one writes; and which are lost for good (`kubeAuthn.encryption.lost`).
    pub keys: KeyRing,
}

impl Administration {
    /// Opens the store of a configuration. An SQLite file must be there: whoever looks after one that is not looks into
    /// the wrong folder.
    ///
    /// # Errors
    /// `ConfigInvalid` with all problems of the block, if there is no key, or if the store is of type `memory`, has no file
    /// or cannot be opened; `Unavailable` or `Timeout` if the store's file is locked or its server does not answer.
    pub async fn open(config: &AppConfig) -> Result<Self> {
        Self::of_config(config, false).await
    }

    /// As [`Administration::open`], and makes an SQLite file that is not there, as the service does.
    ///
    /// # Errors
    /// As [`Administration::open`].
    pub async fn open_or_make(config: &AppConfig) -> Result<Self> {
        Self::of_config(config, true).await
    }

    async fn of_config(config: &AppConfig, may_make: bool) -> Result<Self> {
        let block = KubeAuthnConfig::of(config)?;
        let mut problems = store::problems(config, &block);
        if problems.is_empty() {
            problems.extend(match may_make {
                true => store::file_problem(config, block.store.as_ref()),
                false => store::missing_file(config, block.store.as_ref()),
            });
        }
        if !problems.is_empty() {
            return Err(InvalidConfig::new(problems).into());
        }
        if block.store == Some(StoreConfig::Memory) {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "kubeAuthn.store.type is memory: its logins are in the service's own process, where nobody else can reach them",
            ));
        }
        Self::of_block(&block, true).await
    }

    /// For a service, which starts without a server that does not answer.
    pub(crate) async fn of(block: &KubeAuthnConfig) -> Result<Self> {
        Self::of_block(block, false).await
    }

    async fn of_block(block: &KubeAuthnConfig, must_answer: bool) -> Result<Self> {
        let keys = KeyRing::from_provider(&Configured::of(block)).await?;
        let keys = keys.with_lost(block.lost_keys.clone());
        let vault = store::vault(block.store.as_ref(), keys.clone(), must_answer).await?;
        Ok(Self { vault, keys })
    }

    /// Refuses if a row is sealed with a key that is not there: the ring has to hold every key in use, and under its id.
    ///
    /// # Errors
    /// `ConfigInvalid` that names the keys and how many rows they protect; `Unavailable` or `Timeout` if the store does not
    /// answer.
    pub async fn refuse_retired_keys(&self) -> Result<()> {
        self.refuse_without(&self.keys).await
    }

    /// Refuses if no row of a key opens, where that key has rows: it is another one of that name, and whoever goes on with
    /// it leaves all of them unreadable. `rows` is what [`TokenVault::rows_by_key`] gave.
    ///
    /// # Errors
    /// `ConfigInvalid` that names the first of them and how many rows it has.
    pub fn refuse_changed_keys(&self, rows: &BTreeMap<KeyId, KeyRows>) -> Result<()> {
        refuse_changed(&self.keys.ids(), rows)
    }

    /// The keys that rows are sealed with and that are neither here nor lost, with how many rows each has; `None` if there
    /// are none. `rows` is what [`TokenVault::rows_by_key`] gave.
    pub fn missing_keys(&self, rows: &BTreeMap<KeyId, KeyRows>) -> Option<String> {
        self.missing_but(&self.keys.ids(), rows)
    }

    fn missing_but(&self, ids: &[KeyId], rows: &BTreeMap<KeyId, KeyRows>) -> Option<String> {
        let missing: Vec<_> = rows
            .iter()
            .filter(|(id, _)| !ids.contains(id) && !self.keys.is_lost(id))
            .map(|(id, key)| format!("\"{id}\" ({} rows)", key.rows))
            .collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    }

    async fn refuse_without(&self, keys: &KeyRing) -> Result<()> {
        let ids = keys.ids();
        let rows = self.rows(keys).await?;
        refuse_changed(&ids, &rows)?;
        for (id, key) in &rows {
            if !ids.contains(id) && self.keys.is_lost(id) {
                tracing::warn!(key = %id, rows = key.rows, "rows of the token store are sealed with a key that is lost");
            }
        }
        let Some(missing) = self.missing_but(&ids, &rows) else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!(
                "the token store holds rows sealed with keys that are not in kubeAuthn.encryption.keys: {missing}: put the \
                 key back behind the others, and take it out when `kube-authn rekey` has written its rows anew and \
                 `kube-authn keys` shows none"
            ),
        ))
    }

    /// What the store holds of each key, as a service with these keys would find it.
    async fn rows(&self, keys: &KeyRing) -> Result<BTreeMap<KeyId, KeyRows>> {
        self.vault.clone().with_sealer(keys.clone()).rows_by_key().await
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
    /// `ConfigInvalid` if there is none, if one has another's id, here or in the store, or if one that is taken out is in
    /// use or writes; else as [`Administration::refuse_retired_keys`]. The keys stay as they were.
    pub(crate) async fn renew(&self, block: &KubeAuthnConfig) -> Result<bool> {
        let new = KeyRing::from_provider(&Configured::of(block)).await?;
        self.take_over(&new).await
    }

    /// A key is in use as long as somebody may write under it. So no key goes together with a change of the one that writes,
    /// and rows are counted before and after: what was written in between would be lost.
    async fn take_over(&self, new: &KeyRing) -> Result<bool> {
        let (new_ids, ids) = (new.ids(), self.keys.ids());
        if ids.iter().all(|id| new_ids.contains(id)) {
            if ids.len() < new_ids.len() {
                refuse_changed(&new_ids, &self.rows(new).await?)?;
            }
            return self.keys.renew(new);
        }
        self.refuse_without(new).await?;
        if let (Some(writes), false) = (ids.first(), new_ids.first() == ids.first()) {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                format!(
                    "the first of kubeAuthn.encryption.keys, \"{writes}\", writes until now: put another one in front of it, \
                     and take keys out with a later change"
                ),
            ));
        }
        let before = self.keys.snapshot();
        let changed = self.keys.renew(new)?;
        if let Err(error) = self.refuse_without(new).await {
            self.keys.renew(&before)?;
            return Err(error);
        }
        Ok(changed)
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

fn refuse_changed(ids: &[KeyId], rows: &BTreeMap<KeyId, KeyRows>) -> Result<()> {
    let Some((id, key)) = rows.iter().find(|(id, key)| ids.contains(id) && !key.opens) else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::ConfigInvalid,
        format!(
            "key \"{id}\" of kubeAuthn.encryption.keys is not the one that its rows are sealed with: none of its {} rows in \
             the token store opens: put the key back that had this id, and give the new one an id of its own; if the old \
             one is lost for good, name its id in kubeAuthn.encryption.lost then",
            key.rows
        ),
    ))
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

/// A database that comes back does so within seconds or much later.
const ASK_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kube_authn_core::{
        ClientId, EntityRef, Expected, Issuer, LoginEvents, LoginMetadata, NewLogin, Revision, Subject,
        TokenKey, TokenRecord, TokenSet, TokenStore, jiff::Timestamp,
    };
    use kube_authn_store::MemoryTokenStore;

    use super::*;

    /// A store into which another replica writes a row right after the rows were counted.
    #[derive(Clone, Debug)]
    struct Busy {
        store: MemoryTokenStore,
        other: Arc<Mutex<Option<TokenVault>>>,
    }

    #[async_trait]
    impl TokenStore for Busy {
        async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
            self.store.load(key).await
        }

        async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
            self.store.save(key, record, expected).await
        }

        async fn delete(&self, key: &TokenKey) -> Result<bool> {
            self.store.delete(key).await
        }

        async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
            self.store.list(principal).await
        }

        async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
            self.store.purge(ended_before, limit).await
        }

        async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
            let page = self.store.scan(after, limit).await?;
            let other = self.other.lock().expect("lock").take();
            if let Some(other) = other {
                log_in(&other).await;
            }
            Ok(page)
        }

        async fn events(&self) -> Result<LoginEvents> {
            self.store.events().await
        }
    }

    fn key() -> TokenKey {
        TokenKey {
            principal: EntityRef::parse("user:default/alice").expect("a user"),
            issuer: Issuer::new("https://i/").expect("an issuer"),
            client_id: ClientId::new("c").expect("a client"),
        }
    }

    async fn log_in(vault: &TokenVault) {
        let login = NewLogin::new(
            Subject::new("s").expect("a subject"),
            TokenSet::new(),
            Timestamp::MAX,
        );
        vault.log_in(&key(), login).await.expect("logged in");
    }

    fn ring(ids: &[u8]) -> KeyRing {
        ring_of(ids.iter().map(|id| (*id, *id)))
    }

    /// Keys by number and content.
    fn ring_of(keys: impl IntoIterator<Item = (u8, u8)>) -> KeyRing {
        let keys = keys.into_iter().map(|(id, byte)| {
            let name = KeyId::new(&format!("k{id}")).expect("an id");
            (name, Secret::new([byte; 32]))
        });
        KeyRing::new(keys.collect()).expect("a ring")
    }

    fn administration(ids: &[u8], other: Option<(MemoryTokenStore, KeyRing)>) -> Administration {
        let (store, other) = match other {
            Some((store, ring)) => (store.clone(), Some(TokenVault::new(store, ring))),
            None => (MemoryTokenStore::new(), None),
        };
        let keys = ring(ids);
        let busy = Busy {
            store,
            other: Arc::new(Mutex::new(other)),
        };
        Administration {
            vault: TokenVault::new(busy, keys.clone()),
            keys,
        }
    }

    #[tokio::test]
    async fn key_that_got_a_row_while_rows_were_counted_is_never_retired() {
        let late = (MemoryTokenStore::new(), ring(&[1]));
        let administration = administration(&[2, 1], Some(late));

        let error = administration.take_over(&ring(&[2])).await.expect_err("in use");

        assert!(error.to_string().contains("\"k1\" (1 rows)"), "{error}");
        assert_eq!(administration.keys.ids(), ring(&[2, 1]).ids());
        let read = administration.vault.load(&key()).await.expect("readable");
        assert!(read.is_some());
    }

    #[tokio::test]
    async fn key_whose_rows_are_sealed_with_another_one_of_its_id_is_never_taken_over() {
        let store = MemoryTokenStore::new();
        log_in(&TokenVault::new(store.clone(), ring_of([(2, 9)]))).await;
        let keys = ring(&[1]);
        let administration = Administration {
            vault: TokenVault::new(store, keys.clone()),
            keys,
        };

        for with_k2 in [ring(&[1, 2]), ring(&[2, 1]), ring(&[2, 3])] {
            let error = administration.take_over(&with_k2).await.expect_err("another k2");
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert!(error.to_string().contains("key \"k2\""), "{error}");
            assert_eq!(administration.keys.ids(), ring(&[1]).ids());
        }
        let found = ring_of([(1, 1), (2, 9)]);
        assert!(administration.take_over(&found).await.expect("taken over"));
    }

    #[tokio::test]
    async fn key_that_writes_is_never_retired_in_one_step() {
        let administration = administration(&[1, 2], None);

        for at_once in [&[2][..], &[2, 3], &[3, 1]] {
            let error = administration
                .take_over(&ring(at_once))
                .await
                .expect_err("k1 writes");
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert_eq!(administration.keys.ids(), ring(&[1, 2]).ids());
        }
        for step in [&[2, 1][..], &[2]] {
            assert!(administration.take_over(&ring(step)).await.expect("taken over"));
        }
    }
}
