//! The rows in the cache, and what is known of changes.

use std::{collections::HashMap, hash::BuildHasher};

use foldhash::quality::RandomState;
use kube_authn_core::{LoginEvent, TokenKey, TokenRecord};

/// Two generations: a row that is used comes to the young one, and when that is half of what is allowed, it becomes the old
/// one and what was old goes.
#[derive(Debug)]
pub(super) struct Rows {
    young: Generation,
    old: Generation,
    max_rows: usize,
    max_bytes: usize,
    /// Whether changes are told at this moment.
    open: bool,
    now: u64,
    changed: [u64; SHARDS],
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Generation {
    rows: HashMap<TokenKey, TokenRecord, RandomState>,
    bytes: usize,
}

impl Generation {
    fn insert(&mut self, key: TokenKey, record: TokenRecord) {
        self.bytes += size(&key, &record);
        self.rows.insert(key, record);
    }

    fn remove(&mut self, key: &TokenKey) -> Option<(TokenKey, TokenRecord)> {
        let (key, record) = self.rows.remove_entry(key)?;
        self.bytes -= size(&key, &record);
        Some((key, record))
    }
}

impl Rows {
    pub(super) fn new(max_rows: usize, max_bytes: usize) -> Self {
        Self {
            young: Generation::default(),
            old: Generation::default(),
            max_rows,
            max_bytes,
            open: false,
            now: 0,
            changed: [0; SHARDS],
            hasher: RandomState::default(),
        }
    }

    /// The instant to take before a row is loaded, in the order in which changes are learnt.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn get(&mut self, key: &TokenKey) -> Option<TokenRecord> {
        if let Some(record) = self.young.rows.get(key) {
            return Some(record.clone());
        }
        let (key, record) = self.old.remove(key)?;
        self.insert(key, record.clone());
        Some(record)
    }

    #[cfg(test)]
    pub(super) fn peek(&self, key: &TokenKey) -> bool {
        self.young.rows.contains_key(key) || self.old.rows.contains_key(key)
    }

    /// Keeps a row whose load began at that instant, unless it may have changed since. Of two loads that found different rows
    /// nobody can tell which was first, so neither stays: an older row behind a newer one looks like one that was put back.
    pub(super) fn keep(&mut self, key: &TokenKey, record: &TokenRecord, began: u64) {
        if self.get(key).is_some_and(|kept| kept.revision != record.revision) {
            self.drop_row(key);
        }
        if self.open && self.changed[self.shard(key)] <= began && size(key, record) <= self.max_bytes / 2 {
            self.remove(key);
            self.insert(key.clone(), record.clone());
        }
    }

    fn insert(&mut self, key: TokenKey, record: TokenRecord) {
        let is_full = self.young.rows.len() >= self.max_rows / 2
            || self.young.bytes + size(&key, &record) > self.max_bytes / 2;
        if is_full {
            self.old = std::mem::take(&mut self.young);
        }
        if self.max_rows > 1 {
            self.young.insert(key, record);
        }
    }

    fn remove(&mut self, key: &TokenKey) {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Changes are told from now on.
    pub(super) fn open(&mut self) {
        self.drop_all();
        self.open = true;
    }

    /// Changes are no longer told.
    pub(super) fn close(&mut self) {
        self.drop_all();
        self.open = false;
    }

    pub(super) fn changed(&mut self, event: &LoginEvent) {
        match event {
            LoginEvent::Changed { key, .. } | LoginEvent::Ended { key, .. } => self.drop_row(key),
            _ => self.drop_all(),
        }
    }

    pub(super) fn drop_row(&mut self, key: &TokenKey) {
        self.now += 1;
        let shard = self.shard(key);
        self.changed[shard] = self.now;
        self.remove(key);
    }

    pub(super) fn drop_all(&mut self) {
        self.now += 1;
        self.changed = [self.now; SHARDS];
        self.young = Generation::default();
        self.old = Generation::default();
    }

    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below SHARDS")]
    fn shard(&self, key: &TokenKey) -> usize {
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }
}

fn size(key: &TokenKey, record: &TokenRecord) -> usize {
    let key = key.principal.as_str().len() + key.issuer.as_str().len() + key.client_id.as_str().len();
    2 * ENTRY + key + record.metadata.subject.as_str().len() + record.sealed.len()
}

/// What a row takes in the map beside its texts and bytes, and about as much for their allocations.
const ENTRY: usize = std::mem::size_of::<(TokenKey, TokenRecord)>();
/// Loads under way keep nothing for changes of a 64th of all keys.
const SHARDS: usize = 64;
