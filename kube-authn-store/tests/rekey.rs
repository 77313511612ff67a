//! How rows are written under the newest key: a few at a time, and none more once a save has failed.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kube_authn_core::{
    EntityRef, Error, ErrorKind, Expected, KeyId, LoginEvents, LoginMetadata, Rekeyed, Result, Revision,
    Secret, TokenKey, TokenRecord, TokenStore, TokenVault, async_trait, jiff::Timestamp,
};
use kube_authn_store::{KeyRing, MemoryTokenStore};
use support::{key, login_of};
use tokio::sync::Barrier;

/// A memory whose saves meet before they are done, and which takes so many and then no more.
#[derive(Clone, Debug)]
struct Meeting {
    store: MemoryTokenStore,
    together: Arc<Barrier>,
    begun: Arc<AtomicUsize>,
    takes: usize,
}

#[async_trait]
impl TokenStore for Meeting {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        self.store.load(key).await
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        let begun = self.begun.fetch_add(1, Ordering::Relaxed);
        self.together.wait().await;
        match begun < self.takes {
            true => self.store.save(key, record, expected).await,
            false => Err(Error::new(ErrorKind::Unavailable, "the disk is full")),
        }
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
        self.store.scan(after, limit).await
    }

    async fn events(&self) -> Result<LoginEvents> {
        self.store.events().await
    }
}

/// Logins under key `k1`, and a vault that writes `k2` into a store whose saves meet in groups.
async fn filled(logins: usize, group: usize, takes: usize) -> (MemoryTokenStore, Meeting, TokenVault) {
    let store = MemoryTokenStore::new();
    let old = TokenVault::new(store.clone(), ring(&[1]));
    for number in 0..logins {
        let name = format!("user-{number}");
        old.log_in(&key(&name), login_of(&name)).await.expect("stored");
    }
    let meeting = Meeting {
        store: store.clone(),
        together: Arc::new(Barrier::new(group)),
        begun: Arc::default(),
        takes,
    };
    let vault = TokenVault::new(meeting.clone(), ring(&[2, 1]));
    (store, meeting, vault)
}

fn ring(ids: &[u8]) -> KeyRing {
    let keys = ids.iter().map(|id| {
        let name = KeyId::new(&format!("k{id}")).expect("an id");
        (name, Secret::new([*id; 32]))
    });
    KeyRing::new(keys.collect()).expect("a ring")
}

/// No save is done before eight are under way, so this ends only if eight are.
#[tokio::test]
async fn rows_of_a_page_are_written_eight_at_a_time() {
    let (_, meeting, vault) = filled(24, 8, usize::MAX).await;

    let done = tokio::time::timeout(Duration::from_secs(30), vault.rekey(None, false)).await;

    let (done, _) = done.expect("eight meet").expect("rekeyed");
    let mut expected = Rekeyed::default();
    expected.rewritten = 24;
    assert_eq!(done, expected);
    assert_eq!(meeting.begun.load(Ordering::Relaxed), 24);
}

#[tokio::test]
async fn failed_save_ends_a_page_and_what_is_left_is_done_by_the_next_run() {
    let (store, meeting, vault) = filled(24, 1, 5).await;

    let error = vault.rekey(None, false).await.expect_err("the disk is full");
    let begun = meeting.begun.load(Ordering::Relaxed);
    let again = TokenVault::new(store, ring(&[2, 1]));
    let (done, _) = again.rekey(None, false).await.expect("rekeyed");

    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(begun < 5 + 8 + 1, "{begun} saves were begun");
    assert_eq!((done.current, done.rewritten), (5, 19));
}
