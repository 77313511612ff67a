//! The map below the cache: sharded, bounded, entries inline in their bucket.

use std::{
    collections::HashSet,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hashbrown::{HashTable, hash_table};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::Flight;
use crate::{ClusterStamp, Credential, Error, Principal};

/// Whose credential for which cluster; borrowed, so that looking it up allocates nothing.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    stamp: ClusterStamp,
    /// `None`: the application's own credential.
    principal: Option<&'a Principal>,
}

impl<'a> Key<'a> {
    pub(super) fn application(stamp: ClusterStamp) -> Self {
        Self {
            stamp,
            principal: None,
        }
    }

    pub(super) fn user(stamp: ClusterStamp, principal: &'a Principal) -> Self {
        Self {
            stamp,
            principal: Some(principal),
        }
    }

    pub(super) fn to_owned_key(self) -> OwnedKey {
        OwnedKey {
            stamp: self.stamp,
            principal: self.principal.cloned(),
        }
    }
}

#[derive(Clone)]
pub(super) struct OwnedKey {
    stamp: ClusterStamp,
    principal: Option<Principal>,
}

impl OwnedKey {
    pub(super) fn as_key(&self) -> Key<'_> {
        Key {
            stamp: self.stamp,
            principal: self.principal.as_ref(),
        }
    }

    fn is(&self, key: &Key<'_>) -> bool {
        self.stamp == key.stamp && self.principal.as_ref() == key.principal
    }
}

/// What one key is doing besides holding a credential.
#[derive(Default)]
pub(super) struct Slot(Mutex<SlotState>);

#[derive(Default)]
pub(super) struct SlotState {
    epoch: u64,
    flight: Option<Flight>,
    failure: Option<(Error, Instant)>,
    failures: u32,
    pub(super) refusal: Option<Refusal>,
}

/// A credential that the API server refused, and whether its strategy may have another one: asked once for everybody who
/// was refused it.
pub(super) struct Refusal {
    pub(super) generation: u64,
    pub(super) at: Instant,
    pub(super) another: watch::Receiver<Option<bool>>,
}

impl Slot {
    pub(super) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotState {
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// From here on the flight under way counts for nothing.
    pub(super) fn next_epoch(&mut self) {
        self.epoch += 1;
        self.flight = None;
    }

    /// The flight under way; one whose task is gone is none.
    pub(super) fn flight(&self) -> Option<Flight> {
        self.flight.clone().filter(|flight| flight.has_changed().is_ok())
    }

    pub(super) fn set_flight(&mut self, flight: Flight) {
        self.flight = Some(flight);
    }

    pub(super) fn clear_flight(&mut self) {
        self.flight = None;
    }

    pub(super) fn remember_failure(&mut self, error: Error) {
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.failures.min(5))
            .min(LONGEST_PAUSE);
        let pause = error
            .retry_after()
            .map_or(pause, |asked| asked.clamp(FIRST_PAUSE, LONGEST_PAUSE));
        self.failures = self.failures.saturating_add(1);
        self.failure = Some((error, Instant::now() + pause));
    }

    pub(super) fn clear_failure(&mut self) {
        self.failures = 0;
        self.failure = None;
    }

    pub(super) fn is_failing(&self) -> bool {
        self.remembered_failure().is_some()
    }

    pub(super) fn remembered_failure(&self) -> Option<Error> {
        self.failure
            .as_ref()
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(error, _)| error.clone())
    }
}

struct Entry {
    hash: u64,
    key: OwnedKey,
    credential: Option<(Credential, Timestamp)>,
    slot: Arc<Slot>,
    /// Seconds of the cache's life at the last use; for choosing what to evict.
    used: AtomicU32,
}

pub(super) struct Slots {
    shards: Box<[RwLock<HashTable<Entry>>]>,
    hasher: foldhash::quality::RandomState,
    capacity_per_shard: usize,
    born: Instant,
}

impl Slots {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: foldhash::quality::RandomState::default(),
            capacity_per_shard: capacity.div_ceil(SHARDS).max(1),
            born: Instant::now(),
        }
    }

    /// The credential if it is usable and no refresh is due.
    pub(super) fn fresh(&self, key: &Key<'_>, now: Timestamp) -> Option<Credential> {
        self.find(
            key,
            |credential, refresh_at| now < refresh_at && credential.usable(now),
            now,
        )
    }

    /// The credential if it is usable.
    pub(super) fn usable(&self, key: &Key<'_>, now: Timestamp) -> Option<Credential> {
        self.find(key, |credential, _| credential.usable(now), now)
    }

    fn find(
        &self,
        key: &Key<'_>,
        wanted: impl Fn(&Credential, Timestamp) -> bool,
        now: Timestamp,
    ) -> Option<Credential> {
        let hash = self.hash(key);
        let shard = self.read(hash);
        let entry = shard.find(hash, |entry| entry.key.is(key))?;
        let (credential, refresh_at) = entry.credential.as_ref()?;
        if !wanted(credential, *refresh_at) {
            return None;
        }
        let second = coarse_second(now);
        if entry.used.load(Ordering::Relaxed) != second {
            entry.used.store(second, Ordering::Relaxed);
        }
        Some(credential.clone())
    }

    /// The slot of this key, made if there is none.
    pub(super) fn slot(&self, key: &Key<'_>) -> Arc<Slot> {
        let hash = self.hash(key);
        if let Some(entry) = self.read(hash).find(hash, |entry| entry.key.is(key)) {
            return entry.slot.clone();
        }
        self.entry(&mut self.write(hash), hash, key).slot.clone()
    }

    /// Keeps the credential, unless the key has another slot by now: then this one was evicted, its epoch means nothing.
    pub(super) fn put(&self, key: &Key<'_>, slot: &Arc<Slot>, credential: Credential, refresh_at: Timestamp) {
        let hash = self.hash(key);
        let mut shard = self.write(hash);
        if let Some(entry) = shard.find_mut(hash, |entry| entry.key.is(key))
            && Arc::ptr_eq(&entry.slot, slot)
        {
            entry.credential = Some((credential, refresh_at));
        }
    }

    /// Drops exactly this credential; one that took its place meanwhile stays.
    pub(super) fn drop_generation(&self, key: &Key<'_>, generation: u64) {
        let hash = self.hash(key);
        let mut shard = self.write(hash);
        if let Some(entry) = shard.find_mut(hash, |entry| entry.key.is(key))
            && entry
                .credential
                .as_ref()
                .is_some_and(|(credential, _)| credential.generation() == generation)
        {
            entry.credential = None;
        }
    }

    pub(super) fn retain(&self, stamps: &HashSet<ClusterStamp>) {
        for shard in &self.shards {
            write(shard).retain(|entry| stamps.contains(&entry.key.stamp));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| read(shard).len()).sum()
    }

    fn entry<'t>(&self, shard: &'t mut HashTable<Entry>, hash: u64, key: &Key<'_>) -> &'t mut Entry {
        if shard.len() >= self.capacity_per_shard && shard.find(hash, |entry| entry.key.is(key)).is_none() {
            self.evict(shard, hash);
        }
        match shard.entry(hash, |entry| entry.key.is(key), |entry| entry.hash) {
            hash_table::Entry::Occupied(found) => found.into_mut(),
            hash_table::Entry::Vacant(vacant) => vacant
                .insert(Entry {
                    hash,
                    key: key.to_owned_key(),
                    credential: None,
                    slot: Arc::default(),
                    used: AtomicU32::new(u32::MAX),
                })
                .into_mut(),
        }
    }

    /// Evicts the least recently used of a few entries, taken from a place that nobody outside can predict.
    fn evict(&self, shard: &mut HashTable<Entry>, hash: u64) {
        let buckets = shard.num_buckets();
        let start =
            usize::try_from(self.hasher.hash_one((hash, self.born.elapsed().as_nanos())) >> 1).unwrap_or(0);
        let oldest = (0..buckets)
            .map(|step| start.wrapping_add(step) & (buckets - 1))
            .filter_map(|bucket| Some((bucket, shard.get_bucket(bucket)?.used.load(Ordering::Relaxed))))
            .take(SAMPLES)
            .min_by_key(|(_, used)| *used)
            .map(|(bucket, _)| bucket);
        if let Some(Ok(occupied)) = oldest.map(|bucket| shard.get_bucket_entry(bucket)) {
            occupied.remove();
        }
    }

    fn hash(&self, key: &Key<'_>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(key.stamp.get());
        hasher.write_u64(key.principal.map_or(0, Principal::precomputed_hash));
        hasher.finish()
    }

    fn read(&self, hash: u64) -> RwLockReadGuard<'_, HashTable<Entry>> {
        read(self.shard(hash))
    }

    fn write(&self, hash: u64) -> RwLockWriteGuard<'_, HashTable<Entry>> {
        write(self.shard(hash))
    }

    /// Bits that the table uses neither for its buckets (the lowest) nor for its tags (the highest seven).
    fn shard(&self, hash: u64) -> &RwLock<HashTable<Entry>> {
        #[allow(clippy::cast_possible_truncation, reason = "masked to eight bits")]
        let index = (hash >> 44) as usize & (SHARDS - 1);
        &self.shards[index]
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Wraps after 136 years; only differences of minutes matter.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "wraps on purpose"
)]
fn coarse_second(now: Timestamp) -> u32 {
    now.as_second() as u32
}

/// A power of two; with some 256 locks a few dozen threads hardly ever meet at one.
const SHARDS: usize = 256;

/// As many as Redis looks at: close to least recently used, at a bounded cost.
const SAMPLES: usize = 8;

/// A source that failed is asked again after a second, then two, four, eight, sixteen, and every thirty from then on.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
