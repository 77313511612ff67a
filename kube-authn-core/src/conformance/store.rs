//! The contract of [`TokenStore`], one function or more per line.
//!
//! ```no_run
//! # async fn example<MyStore: kube_authn_core::TokenStore>(fresh: fn() -> MyStore) {
//! use kube_authn_core::conformance::store::{self, StoreFixture};
//!
//! store::all(|| async { StoreFixture::new(fresh()) }).await;
//! # }
//! ```

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    sample::{alice, at, conflict, entity, held, joined, key, near_equal_keys, numbered, record},
    store_changes,
};
use crate::{ErrorKind, Expected, LoginId, RefreshMark, TokenStore};

/// An empty store, and what else the checks can use. Clones share the store.
#[derive(Clone, Debug)]
pub struct StoreFixture {
    pub(super) store: Arc<dyn TokenStore>,
    pub(super) other: Arc<dyn TokenStore>,
    pub(super) unreachable: Option<Arc<dyn TokenStore>>,
}

impl StoreFixture {
    /// A fixture over this store, which must be empty.
    pub fn new(store: impl TokenStore) -> Self {
        let store: Arc<dyn TokenStore> = Arc::new(store);
        Self {
            other: Arc::clone(&store),
            store,
            unreachable: None,
        }
    }

    /// Adds a second way to the same medium, as another process would have one.
    pub fn with_other(mut self, other: impl TokenStore) -> Self {
        self.other = Arc::new(other);
        self
    }

    /// Adds a store of this kind whose medium does not answer.
    pub fn with_unreachable(mut self, store: impl TokenStore) -> Self {
        self.unreachable = Some(Arc::new(store));
        self
    }
}

/// Every check, each on a fixture of its own.
pub async fn all<F: Future<Output = StoreFixture>>(fresh: impl Fn() -> F) {
    saved_row_is_loaded_back_equal(&fresh().await).await;
    near_equal_keys_never_meet(&fresh().await).await;
    save_happens_only_on_what_was_expected(&fresh().await).await;
    exactly_one_of_several_writers_succeeds(&fresh().await).await;
    nobody_sees_half_a_save(&fresh().await).await;
    deleted_row_is_absent_for_everybody(&fresh().await).await;
    list_gives_one_principal_and_nobody_else(&fresh().await).await;
    store_changes::purge_deletes_what_ended_and_nothing_else(&fresh().await).await;
    store_changes::scan_visits_every_row_once_in_order(&fresh().await).await;
    store_changes::scan_visits_rows_that_stay_while_others_change(&fresh().await).await;
    store_changes::events_tell_of_every_change(&fresh().await).await;
    store_changes::slow_receiver_stops_no_writer_and_learns_of_the_gap(&fresh().await).await;
    store_changes::unreachable_medium_is_unavailable(&fresh().await).await;
}

/// Line 1.
pub async fn saved_row_is_loaded_back_equal(fixture: &StoreFixture) {
    let mut full = record(1, 1);
    full.metadata.refreshing = Some(RefreshMark {
        owner: LoginId::from_bytes([0xff; 16]),
        until: at(1_700_000_000_123),
    });
    let mut plain = record(2, u64::from(u32::MAX) + 7);
    plain.metadata.refreshable = false;
    plain.metadata.expires_at = at(Timestamp::MAX.as_millisecond());
    plain.metadata.created_at = at(-62_135_596_800_001);
    plain.sealed = Bytes::new();

    for (name, record) in [("full", full), ("plain", plain)] {
        let key = key(name, "https://issuer.example.com/", "client");
        let absent = held(1, fixture.store.load(&key).await);
        held(1, fixture.store.save(&key, &record, Expected::Absent).await);

        assert_eq!(absent, None, "line 1: an empty store had a row");
        assert_eq!(
            held(1, fixture.store.load(&key).await).as_ref(),
            Some(&record),
            "line 1"
        );
        assert_eq!(held(1, fixture.other.load(&key).await), Some(record), "line 1");
    }
}

/// Line 2.
pub async fn near_equal_keys_never_meet(fixture: &StoreFixture) {
    let keys = near_equal_keys();
    for (index, key) in keys.iter().enumerate() {
        held(
            2,
            fixture.store.save(key, &numbered(index), Expected::Absent).await,
        );
    }

    for (index, key) in keys.iter().enumerate() {
        assert_eq!(
            held(2, fixture.other.load(key).await),
            Some(numbered(index)),
            "line 2: {key:?} met another key"
        );
    }
    for (index, key) in keys.iter().enumerate() {
        assert!(
            held(2, fixture.store.delete(key).await),
            "line 2: deleting another key took {key:?} along"
        );
        for (rest, key) in keys.iter().enumerate().skip(index + 1) {
            assert_eq!(
                held(2, fixture.store.load(key).await),
                Some(numbered(rest)),
                "line 2"
            );
        }
    }
}

/// Line 3.
pub async fn save_happens_only_on_what_was_expected(fixture: &StoreFixture) {
    let store = &fixture.store;
    let key = alice();
    let other_login = record(9, 1).revision;

    conflict(
        "a revision, but no row",
        store.save(&key, &record(1, 2), Expected::At(other_login)).await,
    );
    assert_eq!(
        held(3, store.load(&key).await),
        None,
        "line 3: a refused save wrote"
    );

    held(3, store.save(&key, &record(1, 1), Expected::Absent).await);
    for (what, expected) in [
        ("absent, but a row", Expected::Absent),
        ("another number", Expected::At(record(1, 2).revision)),
        ("another login", Expected::At(other_login)),
    ] {
        conflict(what, store.save(&key, &record(7, 7), expected).await);
        assert_eq!(
            held(3, store.load(&key).await),
            Some(record(1, 1)),
            "line 3: a refused save wrote"
        );
    }

    held(
        3,
        store
            .save(&key, &record(1, 2), Expected::At(record(1, 1).revision))
            .await,
    );
    assert_eq!(held(3, store.load(&key).await), Some(record(1, 2)), "line 3");
}

/// Line 3.
pub async fn exactly_one_of_several_writers_succeeds(fixture: &StoreFixture) {
    let key = alice();
    let mut expected = Expected::Absent;
    for round in 0..4 {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let store = match writer % 2 {
                    0 => Arc::clone(&fixture.store),
                    _ => Arc::clone(&fixture.other),
                };
                let (key, record) = (key.clone(), record(writer + 1, round + 1));
                tokio::spawn(async move { (store.save(&key, &record, expected).await, record) })
            })
            .collect();
        let mut winners = Vec::new();
        for writer in writers {
            match joined(writer.await) {
                (Ok(()), record) => winners.push(record),
                (Err(error), _) => assert_eq!(error.kind(), ErrorKind::Conflict, "line 3: {error}"),
            }
        }

        assert_eq!(winners.len(), 1, "line 3: several writers, one may win");
        let winner = winners.remove(0);
        expected = Expected::At(winner.revision);
        assert_eq!(held(3, fixture.other.load(&key).await), Some(winner), "line 3");
    }
}

/// Line 4, as far as it can be seen without killing a process.
pub async fn nobody_sees_half_a_save(fixture: &StoreFixture) {
    let key = alice();
    held(4, fixture.store.save(&key, &numbered(0), Expected::Absent).await);
    let writer = tokio::spawn({
        let (store, key) = (Arc::clone(&fixture.store), key.clone());
        async move {
            for index in 1..60 {
                let expected = Expected::At(numbered(index - 1).revision);
                held(4, store.save(&key, &numbered(index), expected).await);
            }
        }
    });

    while !writer.is_finished() {
        let seen = held(4, fixture.other.load(&key).await);
        let index = seen
            .as_ref()
            .and_then(|row| usize::try_from(row.revision.number).ok());
        assert_eq!(
            seen,
            index.map(|number| numbered(number - 1)),
            "line 4: a row of two saves"
        );
        tokio::task::yield_now().await;
    }
    joined(writer.await);
}

/// Line 5.
pub async fn deleted_row_is_absent_for_everybody(fixture: &StoreFixture) {
    let key = alice();
    assert!(
        !held(5, fixture.store.delete(&key).await),
        "line 5: nothing was there"
    );
    held(5, fixture.store.save(&key, &record(1, 1), Expected::Absent).await);

    assert!(
        held(5, fixture.store.delete(&key).await),
        "line 5: a row was there"
    );

    for store in [&fixture.store, &fixture.other] {
        assert_eq!(held(5, store.load(&key).await), None, "line 5");
        assert!(!held(5, store.delete(&key).await), "line 5: deleted twice");
    }
    conflict(
        "a revision that was deleted",
        fixture
            .other
            .save(&key, &record(1, 2), Expected::At(record(1, 1).revision))
            .await,
    );
}

/// Line 6.
pub async fn list_gives_one_principal_and_nobody_else(fixture: &StoreFixture) {
    let keys = near_equal_keys();
    for (index, key) in keys.iter().enumerate() {
        held(
            6,
            fixture.store.save(key, &numbered(index), Expected::Absent).await,
        );
    }

    let principals: BTreeSet<_> = keys.iter().map(|key| &key.principal).collect();
    for principal in principals {
        let mut listed = held(6, fixture.other.list(principal).await);
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        let mut expected: Vec<_> = keys
            .iter()
            .enumerate()
            .filter(|(_, key)| key.principal == *principal)
            .map(|(index, key)| (key.clone(), numbered(index).revision, numbered(index).metadata))
            .collect();
        expected.sort_by(|a, b| a.0.cmp(&b.0));

        assert_eq!(listed, expected, "line 6: {principal}");
    }
    let nobody = entity("user:default/nobody");
    assert_eq!(held(6, fixture.store.list(&nobody).await), [], "line 6");
}
