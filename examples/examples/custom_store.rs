//! A token store of your own, and the conformance suites over it: here, a map behind a lock, where yours talks to the
//! database that you run anyway.
//!
//! ```sh
//! cargo run -p kube-authn-examples --example custom_store
//! ```
#![allow(missing_docs, clippy::print_stdout, reason = "an example")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube_authn::kube_authn_store::KeyRing;
use kube_authn_core::{
    EntityRef, Error, ErrorKind, Expected, KeyId, LoginEvent, LoginEvents, LoginMetadata, Result, Revision,
    TokenKey, TokenRecord, TokenStore, async_trait,
    conformance::{
        store::{self, StoreFixture},
        vault::{self, VaultFixture},
    },
    jiff::Timestamp,
};
use tokio::sync::{broadcast, mpsc};

/// Rows in order of their keys. A row is sealed before it comes here: nothing in it is a secret of yours to keep.
#[derive(Clone, Debug)]
struct MapStore {
    rows: Arc<Mutex<BTreeMap<TokenKey, TokenRecord>>>,
    changes: broadcast::Sender<LoginEvent>,
}

impl MapStore {
    fn new() -> Self {
        Self {
            rows: Arc::default(),
            changes: broadcast::channel(1_024).0,
        }
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<TokenKey, TokenRecord>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told whether anybody listens or not, and without waiting for who does.
    fn tell(&self, event: LoginEvent) {
        let _ = self.changes.send(event);
    }

    fn tell_ended(&self, key: &TokenKey, row: &TokenRecord) {
        self.tell(LoginEvent::Ended {
            key: key.clone(),
            login: row.revision.login,
        });
    }
}

#[async_trait]
impl TokenStore for MapStore {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        Ok(self.rows().get(key).cloned())
    }

    /// Compares and writes in one step: `UPDATE ... WHERE revision = ?` in a database, never a read and then a write.
    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        let mut rows = self.rows();
        let as_expected = match (rows.get(key), expected) {
            (None, Expected::Absent) => true,
            (Some(row), Expected::At(revision)) => row.revision == revision,
            _ => false,
        };
        if !as_expected {
            let text = "another writer saved this login first: load it again";
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        if let Some(before) = rows.insert(key.clone(), record.clone())
            && before.revision.login != record.revision.login
        {
            self.tell_ended(key, &before);
        }
        self.tell(LoginEvent::Changed {
            key: key.clone(),
            revision: record.revision,
        });
        Ok(())
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        let deleted = self.rows().remove(key);
        if let Some(row) = &deleted {
            self.tell_ended(key, row);
        }
        Ok(deleted.is_some())
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        let rows = self.rows();
        let own = rows.iter().filter(|(key, _)| key.principal == *principal);
        Ok(own
            .map(|(key, row)| (key.clone(), row.revision, row.metadata.clone()))
            .collect())
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        let mut rows = self.rows();
        let is_over = |row: &TokenRecord| {
            let refreshing = row.metadata.refreshing.as_ref();
            row.metadata.expires_at < ended_before && refreshing.is_none_or(|mark| mark.until <= ended_before)
        };
        let over: Vec<TokenKey> = rows
            .iter()
            .filter(|(_, row)| is_over(row))
            .map(|(key, _)| key.clone())
            .take(limit as usize)
            .collect();
        for key in &over {
            if let Some(row) = rows.remove(key) {
                self.tell_ended(key, &row);
            }
        }
        Ok(over.len() as u32)
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        let rows = self.rows();
        let behind = rows
            .iter()
            .filter(|(key, _)| after.is_none_or(|after| *key > after));
        Ok(behind
            .take(limit as usize)
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect())
    }

    async fn events(&self) -> Result<LoginEvents> {
        let mut changes = self.changes.subscribe();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let event = match changes.recv().await {
                    Ok(event) => event,
                    // Slower than the writers: some are lost, and whoever listens must know.
                    Err(broadcast::error::RecvError::Lagged(_)) => LoginEvent::Gap,
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(LoginEvents::new(receiver))
    }
}

/// Every line of the contract of [`TokenStore`], and of the vault over it; a check that fails panics and names the line.
/// In your crate this is a test.
pub(crate) async fn check() -> Result<()> {
    let keys = KeyRing::new(vec![(KeyId::new("k1")?, KeyRing::random_key()?)])?;

    store::all(|| async { StoreFixture::new(MapStore::new()) }).await;
    println!("the store keeps its contract");

    vault::all(|| async { VaultFixture::new(MapStore::new(), keys.clone()) }).await;
    println!("the vault over it keeps its own");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    check().await
}
