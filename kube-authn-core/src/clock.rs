//! The one source of time.

use std::{fmt, sync::Arc};

use jiff::Timestamp;

/// Says what time it is: the only way the family learns it, so a test can stop, move or jump it.
///
/// Deadlines and intervals are monotonic (`tokio::time`); only expiry, which the outside world states as UTC instants,
/// is compared with this clock.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The current UTC instant.
    fn now(&self) -> Timestamp;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that stands still until it is moved; for tests and for replaying recorded data. Clones share the time.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<std::sync::atomic::AtomicI64>);

impl ManualClock {
    /// A clock that stands at this instant (milliseconds are kept, finer parts are cut).
    pub fn at(now: Timestamp) -> Self {
        Self(Arc::new(std::sync::atomic::AtomicI64::new(now.as_millisecond())))
    }

    /// Moves the clock forward, or backward with a negative number of seconds.
    pub fn advance_seconds(&self, seconds: i64) {
        self.0
            .fetch_add(seconds.saturating_mul(1000), std::sync::atomic::Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let millisecond = self.0.load(std::sync::atomic::Ordering::SeqCst);
        Timestamp::from_millisecond(millisecond).unwrap_or(Timestamp::MAX)
    }
}
