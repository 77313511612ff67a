//! What strategies share that keep something for several clusters: slots by key, and the pause after a failure.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube_authn_core::Error;
use tokio::time::Instant;

/// A slot for each key, bounded at [`MAX_SLOTS`]: the one longest unasked makes room.
#[derive(Debug)]
pub(crate) struct SharedSlots<K, S>(Mutex<HashMap<K, Entry<S>>>);

#[derive(Debug)]
struct Entry<S> {
    used: Timestamp,
    slot: Arc<S>,
}

impl<K: Clone + Eq + Hash, S: Default> SharedSlots<K, S> {
    /// The key's slot, a new one if there is none.
    pub(crate) fn slot(&self, key: &K, now: Timestamp) -> Arc<S> {
        let mut slots = lock(&self.0);
        if !slots.contains_key(key) && slots.len() >= MAX_SLOTS {
            let longest_unasked = slots.iter().min_by_key(|(_, entry)| entry.used);
            let longest_unasked = longest_unasked.map(|(key, _)| key.clone());
            longest_unasked.and_then(|key| slots.remove(&key));
        }
        let entry = slots.entry(key.clone()).or_insert_with(|| Entry {
            used: now,
            slot: Arc::default(),
        });
        entry.used = now;
        entry.slot.clone()
    }

    /// The key's slot if there is one.
    pub(crate) fn get(&self, key: &K) -> Option<Arc<S>> {
        lock(&self.0).get(key).map(|entry| entry.slot.clone())
    }
}

impl<K, S> Default for SharedSlots<K, S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Why a source gave nothing, and for how long it is not asked again.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pause: Duration,
    until: Instant,
}

impl Failure {
    /// Each failure in a row doubles the pause; a source may ask for a longer one.
    pub(crate) fn after(last: Option<&Self>, error: &Error) -> Self {
        let pause = last.map_or(FIRST_PAUSE, |last| (last.pause * 2).min(LONGEST_PAUSE));
        let pause = error
            .retry_after()
            .map_or(pause, |asked| asked.clamp(pause, LONGEST_PAUSE));
        Self {
            error: error.clone(),
            pause,
            until: Instant::now() + pause,
        }
    }

    /// Whether the pause still lasts.
    pub(crate) fn counts(&self) -> bool {
        Instant::now() < self.until
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn seconds(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// Accounts or tenants times roles or clients times regions: far more than a configuration names.
const MAX_SLOTS: usize = 1024;

pub(crate) const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: usize) -> Timestamp {
        Timestamp::from_second(second as i64).expect("an instant")
    }

    #[test]
    fn the_slot_longest_unasked_makes_room() {
        let slots = SharedSlots::<usize, ()>::default();
        for number in 0..MAX_SLOTS {
            slots.slot(&number, at(number));
        }
        slots.slot(&0, at(5000));

        slots.slot(&MAX_SLOTS, at(5001));

        let kept = lock(&slots.0);
        assert_eq!(kept.len(), MAX_SLOTS);
        assert!(kept.contains_key(&0) && !kept.contains_key(&1));
    }
}
