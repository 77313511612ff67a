//! Whether a cluster is still in force.

#[cfg(feature = "upstream")]
use std::time::Duration;
use std::{fmt, sync::OnceLock};

use tokio::{sync::Notify, time::Instant};

/// When a cluster was removed from the set in force, or replaced there by another content.
#[derive(Default)]
pub(super) struct Retirement {
    since: OnceLock<Instant>,
    told: Notify,
}

impl Retirement {
    pub(super) fn begin(&self) {
        let _ = self.since.set(Instant::now());
        self.told.notify_waiters();
    }

    /// Whether it began so long ago.
    #[cfg(feature = "upstream")]
    pub(super) fn lasts_for(&self, grace: Duration) -> bool {
        self.since.get().is_some_and(|since| since.elapsed() >= grace)
    }

    /// Returns when it began so long ago.
    #[cfg(feature = "upstream")]
    pub(super) async fn lasting(&self, grace: Duration) {
        let since = loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            match self.since.get() {
                Some(since) => break *since,
                None => told.await,
            }
        };
        tokio::time::sleep_until(since + grace).await;
    }
}

impl fmt::Debug for Retirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Retirement").field(&self.since.get()).finish()
    }
}
