//! Logins in the memory of this process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;
use kube_authn_core::{
    EntityRef, Error, ErrorKind, Expected, LoginEvent, LoginEvents, LoginMetadata, Result, Revision,
    TokenKey, TokenRecord, TokenStore,
};
use tokio::sync::mpsc;

/// Keeps logins in memory, for one process: they are gone when it ends. Clones share the content.
///
/// # Layout
/// An ordered map from principal to the principal's rows. Rows are sealed here too, so a memory dump shows no token that nobody used.
///
/// # Atomicity
/// One lock around the map, held for the look-up and the change and never over an await.
///
/// # Expiry
/// Rows stay until they are deleted or purged.
///
/// # Example
/// ```
/// use kube_authn_core::{KeyId, Secret, TokenVault};
/// use kube_authn_store::{KeyRing, MemoryTokenStore};
///
/// # fn main() -> kube_authn_core::Result<()> {
/// let keys = KeyRing::new(vec![(KeyId::new("k1")?, KeyRing::random_key()?)])?;
/// let vault = TokenVault::new(MemoryTokenStore::new(), keys);
/// # let _ = vault;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryTokenStore(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    rows: BTreeMap<EntityRef, BTreeMap<TokenKey, TokenRecord>>,
    subscribers: Vec<mpsc::Sender<LoginEvent>>,
}

impl MemoryTokenStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl TokenStore for MemoryTokenStore {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        Ok(self.state().row(key).cloned())
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        let mut state = self.state();
        let present = state.row(key).map(|row| row.revision);
        let as_expected = match expected {
            Expected::Absent => present.is_none(),
            Expected::At(revision) => present == Some(revision),
        };
        if !as_expected {
            return Err(Error::new(
                ErrorKind::Conflict,
                "another writer saved this login first: load it again",
            ));
        }
        state
            .rows
            .entry(key.principal.clone())
            .or_default()
            .insert(key.clone(), record.clone());
        if let Some(present) = present.filter(|present| present.login != record.revision.login) {
            state.ended(key, present);
        }
        state.publish(&LoginEvent::Changed {
            key: key.clone(),
            revision: record.revision,
        });
        Ok(())
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        Ok(self.state().remove(key))
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        let state = self.state();
        let rows = state.rows.get(principal).into_iter().flatten();
        Ok(rows
            .map(|(key, row)| (key.clone(), row.revision, row.metadata.clone()))
            .collect())
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        let mut state = self.state();
        // Rows keep milliseconds.
        let ended_before = ended_before.as_millisecond();
        let ended: Vec<_> = state
            .rows
            .values()
            .flatten()
            .filter(|(_, row)| {
                let refreshing = row.metadata.refreshing.as_ref();
                row.metadata.expires_at.as_millisecond() < ended_before
                    && refreshing.is_none_or(|mark| mark.until.as_millisecond() <= ended_before)
            })
            .take(at_most(limit))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &ended {
            state.remove(key);
        }
        Ok(u32::try_from(ended.len()).unwrap_or(limit))
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        let state = self.state();
        let principals = match after {
            Some(after) => state.rows.range(&after.principal..),
            None => state.rows.range::<EntityRef, _>(..),
        };
        Ok(principals
            .flat_map(|(_, rows)| rows)
            .filter(|(key, _)| after.is_none_or(|after| *key > after))
            .take(at_most(limit))
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect())
    }

    async fn events(&self) -> Result<LoginEvents> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.state().subscribers.push(sender);
        Ok(LoginEvents::new(receiver))
    }
}

impl State {
    fn row(&self, key: &TokenKey) -> Option<&TokenRecord> {
        self.rows.get(&key.principal)?.get(key)
    }

    fn remove(&mut self, key: &TokenKey) -> bool {
        let Some(rows) = self.rows.get_mut(&key.principal) else {
            return false;
        };
        let removed = rows.remove(key);
        if rows.is_empty() {
            self.rows.remove(&key.principal);
        }
        if let Some(row) = &removed {
            self.ended(key, row.revision);
        }
        removed.is_some()
    }

    fn ended(&mut self, key: &TokenKey, revision: Revision) {
        self.publish(&LoginEvent::Ended {
            key: key.clone(),
            login: revision.login,
        });
    }

    /// The last free place of a channel is for a gap: whatever finds the channel full comes before the receiver reads
    /// that gap, so it is covered by it.
    fn publish(&mut self, event: &LoginEvent) {
        self.subscribers.retain(|subscriber| {
            let sent = match subscriber.capacity() {
                0 => Ok(()),
                1 => subscriber.try_send(LoginEvent::Gap),
                _ => subscriber.try_send(event.clone()),
            };
            !subscriber.is_closed() && sent.is_ok()
        });
    }
}

fn at_most(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Events that a slow receiver may be behind before it has to start over.
const EVENTS: usize = 1_024;
