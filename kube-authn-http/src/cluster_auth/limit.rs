//! How often one user may post tokens: each post costs a verification, and may cost a call to the issuer.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube_authn_core::{EntityRef, Error, ErrorKind, Result};

/// A token bucket per user, kept as the instant at which it is full again (the generic cell rate algorithm): a user who
/// paused long enough needs no entry.
#[derive(Debug, Default)]
pub(super) struct PostLimit {
    full_at: Mutex<HashMap<EntityRef, Timestamp>>,
}

impl PostLimit {
    /// Counts a post.
    ///
    /// # Errors
    /// `RateLimited` with the time until the next one; it isn't counted then.
    pub(super) fn count(&self, user: &EntityRef, now: Timestamp) -> Result<()> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        // An instant later than that is of a clock that was set back since.
        let latest = after(now, REFILL * BURST);
        let full = full_at.get(user).map_or(now, |full| (*full).clamp(now, latest));
        let next = after(full, REFILL);
        if next > latest {
            full_at.insert(user.clone(), full);
            return Err(limited(next.duration_since(latest)));
        }
        if full_at.len() >= MAX_USERS && !full_at.contains_key(user) {
            full_at.retain(|_, full| now < *full && *full <= latest);
            if full_at.len() >= MAX_USERS {
                return Err(limited(SignedDuration::try_from(REFILL).unwrap_or_default()));
            }
        }
        full_at.insert(user.clone(), next);
        Ok(())
    }
}

fn after(instant: Timestamp, time: Duration) -> Timestamp {
    instant.checked_add(time).unwrap_or(Timestamp::MAX)
}

fn limited(wait: SignedDuration) -> Error {
    // Whole seconds, rounded up: whoever waits as long gets through.
    let seconds = wait.as_millis().div_euclid(1000) + i128::from(wait.as_millis() % 1000 != 0);
    let wait = Duration::from_secs(u64::try_from(seconds).unwrap_or_default().max(1));
    Error::new(
        ErrorKind::RateLimited,
        format!("tokens were posted too often: try again in {} s", wait.as_secs()),
    )
    .with_retry_after(wait)
}

/// A person logs in to some clusters in a row and mistypes once or twice.
const BURST: u32 = 10;
/// Ten a minute for good: a login daemon hands over once per lifetime of a token, which is minutes at the least, while
/// somebody who floods costs less than a millisecond of CPU (RS256 verification: 20 µs) and one fetch of keys in ten seconds.
const REFILL: Duration = Duration::from_secs(6);
/// Users who post within one minute: 100 bytes each, so 1 MiB. More at once are turned away until the first have paused.
const MAX_USERS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_700_000_000, 0);

    fn user(name: impl std::fmt::Display) -> EntityRef {
        EntityRef::parse(&format!("user:default/{name}")).expect("a reference")
    }

    fn waits(limit: &PostLimit, name: &str, seconds: i64) -> Option<u64> {
        let at = NOW + SignedDuration::from_secs(seconds);
        let error = limit.count(&user(name), at).err()?;
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        Some(error.retry_after().expect("a time").as_secs())
    }

    #[test]
    fn eleventh_post_in_a_row_waits_six_seconds() {
        let limit = PostLimit::default();

        for _ in 0..10 {
            assert_eq!(waits(&limit, "alice", 0), None);
        }

        assert_eq!(waits(&limit, "alice", 0), Some(6));
        assert_eq!(waits(&limit, "alice", 5), Some(1));
        assert_eq!(waits(&limit, "alice", 6), None);
        assert_eq!(waits(&limit, "alice", 6), Some(6));
        assert_eq!(waits(&limit, "bob", 6), None);
    }

    #[test]
    fn pause_of_a_minute_gives_all_posts_back() {
        let limit = PostLimit::default();
        (0..10).for_each(|_| assert_eq!(waits(&limit, "alice", 0), None));

        (0..10).for_each(|_| assert_eq!(waits(&limit, "alice", 60), None));

        assert_eq!(waits(&limit, "alice", 60), Some(6));
    }

    #[test]
    fn clock_that_was_set_back_locks_nobody_out() {
        let limit = PostLimit::default();
        (0..10).for_each(|_| assert_eq!(waits(&limit, "alice", 1_000_000), None));

        assert_eq!(waits(&limit, "alice", 0), Some(6));
        assert_eq!(waits(&limit, "alice", 6), None);
    }

    #[test]
    fn memory_is_bounded_and_users_who_paused_make_room() {
        let limit = PostLimit::default();
        for number in 0..MAX_USERS {
            assert!(limit.count(&user(number), NOW).is_ok());
        }

        assert_eq!(waits(&limit, "one-more", 0), Some(6));
        assert_eq!(waits(&limit, "0", 0), None);
        assert_eq!(waits(&limit, "one-more", 6), None);
        assert_eq!(limit.full_at.lock().expect("whole").len(), 2);
    }
}
