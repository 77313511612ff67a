//! Deletes logins that ended long ago, again and again.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use kube_authn_clusters::{Cadence, PurgeConfig, jiff};
use kube_authn_core::{Clock, Error, ErrorKind, Result, SystemClock, TokenVault};

/// Runs [`TokenVault::purge`] on the schedule of `kubeAuthn.purge`. Every replica runs its own: each deletes what it finds,
/// a page at a time, and what two of them find is deleted once.
#[derive(Clone, Debug)]
pub struct Purge {
    vault: TokenVault,
    config: PurgeConfig,
    clock: Arc<dyn Clock>,
}

impl Purge {
    /// A purge of this vault.
    pub fn new(vault: TokenVault, config: PurgeConfig) -> Self {
        Self {
            vault,
            config,
            clock: Arc::new(SystemClock),
        }
    }

    /// The same with another source of time.
    pub fn with_clock(self, clock: impl Clock) -> Self {
        Self {
            clock: Arc::new(clock),
            ..self
        }
    }

    /// Purges until the process ends, or returns at once if the schedule is `manual`: a duration runs after the initial
    /// delay, a cron pattern at its times. A run that fails is logged, and the next one comes.
    pub async fn run(self) {
        let now = self.clock.now();
        let first = match self.config.schedule.frequency {
            Cadence::Every(_) => Some(now),
            _ => self.config.schedule.frequency.next(now, now),
        };
        let Some(mut due) = first else { return };
        tokio::time::sleep(self.config.schedule.initial_delay).await;
        loop {
            self.wait_until(due).await;
            let begun = self.clock.now();
            match self.once().await {
                Ok(0) => tracing::debug!("no login ended long ago"),
                Ok(logins) => tracing::info!(logins, "deleted logins that ended long ago"),
                Err(error) => tracing::warn!(%error, "cannot delete the logins that ended long ago"),
            }
            let Some(next) = self.config.schedule.frequency.next(begun, self.clock.now()) else {
                return;
            };
            due = next;
        }
    }

    /// Deletes what ended long ago now, and says how many logins that were.
    ///
    /// # Errors
    /// `Timeout` if it takes longer than the schedule's `timeout`; else as [`TokenVault::purge`]. What was deleted stays so.
    pub async fn once(&self) -> Result<u64> {
        let keep = jiff::SignedDuration::try_from(self.config.keep).unwrap_or(jiff::SignedDuration::MAX);
        let Ok(ended_before) = self.clock.now().checked_sub(keep) else {
            return Ok(0);
        };
        let pages = async {
            let mut purged = 0;
            loop {
                let page = self.vault.purge(ended_before, PAGE).await?;
                kube_authn_http::count_purged(page.into());
                purged += u64::from(page);
                if page < PAGE {
                    return Ok(purged);
                }
                // Others write too.
                tokio::task::yield_now().await;
            }
        };
        let timeout = self.config.schedule.timeout;
        tokio::time::timeout(timeout, pages).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Timeout,
                format!("it took longer than {timeout:?} (kubeAuthn.purge.timeout): the next run goes on"),
            ))
        })
    }

    /// In steps, since a clock may be set; a little late, since all replicas wait for the same instant.
    async fn wait_until(&self, due: jiff::Timestamp) {
        while let Ok(left) = Duration::try_from(due.duration_since(self.clock.now()))
            && !left.is_zero()
        {
            tokio::time::sleep(left.min(STEP)).await;
        }
        let most = match &self.config.schedule.frequency {
            Cadence::Every(every) => (*every / 10).min(JITTER),
            _ => JITTER,
        };
        // Seeded from the operating system, which is all the chance this takes.
        let chance = RandomState::new().hash_one(()) % 1_000;
        tokio::time::sleep(most * u32::try_from(chance).unwrap_or_default() / 1_000).await;
    }
}

/// Rows deleted at once: a writer behind it waits for milliseconds.
const PAGE: u32 = 500;
const STEP: Duration = Duration::from_secs(60);
/// Replicas that start together need not purge together.
const JITTER: Duration = Duration::from_secs(60);
