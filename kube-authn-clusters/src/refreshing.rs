//! A locator that is asked again only when its list is due.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;
use kube_authn_core::{Clock, ClusterLocator, Located, Result, SystemClock};

use crate::Cadence;

/// Keeps what a locator listed until the next run of a cadence. A listing that fails leaves the old list in force, with a
/// warning, and is tried again a minute later; the first one's failure is an error.
pub(crate) struct RefreshingLocator<L> {
    inner: L,
    cadence: Cadence,
    clock: Arc<dyn Clock>,
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    located: Located,
    /// `None`: never again.
    due: Option<Timestamp>,
}

impl<L: ClusterLocator> RefreshingLocator<L> {
    pub(crate) fn new(inner: L, cadence: Cadence) -> Self {
        Self {
            inner,
            cadence,
            clock: Arc::new(SystemClock),
            kept: Mutex::new(None),
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl<L: ClusterLocator> ClusterLocator for RefreshingLocator<L> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn locate(&self) -> Result<Located> {
        let begun = self.clock.now();
        if let Some(kept) = &*self.kept()
            && kept.due.is_none_or(|due| begun < due)
        {
            return Ok(kept.located.clone());
        }
        let listed = self.inner.locate().await;
        let now = self.clock.now();
        let mut kept = self.kept();
        match (listed, &mut *kept) {
            (Ok(located), kept) => {
                *kept = Some(Kept {
                    located: located.clone(),
                    due: self.cadence.next(begun, now),
                });
                Ok(located)
            }
            (Err(error), Some(kept)) => {
                let text = format!(
                    "the clusters of locator {} stay as they were: {error}",
                    self.name()
                );
                tracing::warn!("{text}");
                kept.due = now
                    .checked_add(jiff::SignedDuration::from_secs(RETRY_SECONDS))
                    .ok();
                let mut located = kept.located.clone();
                located.warnings.push(text);
                Ok(located)
            }
            (Err(error), None) => Err(error),
        }
    }
}

impl<L: fmt::Debug> fmt::Debug for RefreshingLocator<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshingLocator")
            .field("inner", &self.inner)
            .field("cadence", &self.cadence)
            .finish_non_exhaustive()
    }
}

/// Soon enough for a source that comes back, seldom enough for one that limits us.
const RETRY_SECONDS: i64 = 60;

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use kube_authn_core::{ClusterDetails, Error, ErrorKind, ManualClock};

    use super::*;

    /// Lists one cluster named after the number of the listing; the second and third listings fail.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    #[async_trait]
    impl ClusterLocator for Counting {
        fn name(&self) -> &str {
            "counting"
        }

        async fn locate(&self) -> Result<Located> {
            let number = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            if matches!(number, 2 | 3) {
                return Err(Error::new(ErrorKind::Unavailable, "the source is down"));
            }
            let cluster = ClusterDetails::builder(format!("c{number}"), "https://a").auth_provider("x");
            Ok(Located::new(
                vec![cluster.build().expect("a cluster")],
                Vec::new(),
            ))
        }
    }

    #[tokio::test]
    async fn list_is_kept_until_it_is_due_and_while_the_source_is_down() {
        let clock = ManualClock::at(Timestamp::from_second(1_000).expect("an instant"));
        let mut locator =
            RefreshingLocator::new(Counting::default(), Cadence::Every(Duration::from_secs(600)));
        locator.clock = Arc::new(clock.clone());
        let locate = async || {
            let located = locator.locate().await.expect("a list");
            (located.clusters[0].name().as_str().to_owned(), located.warnings)
        };

        assert_eq!(locate().await, ("c1".to_owned(), Vec::new()));
        clock.advance_seconds(599);
        assert_eq!(locate().await, ("c1".to_owned(), Vec::new()));
        clock.advance_seconds(1);
        let warning = "the clusters of locator counting stay as they were: the source is down".to_owned();
        assert_eq!(locate().await, ("c1".to_owned(), vec![warning.clone()]));
        clock.advance_seconds(59);
        assert_eq!(locate().await, ("c1".to_owned(), Vec::new()));
        clock.advance_seconds(1);
        assert_eq!(locate().await, ("c1".to_owned(), vec![warning]));
        clock.advance_seconds(60);
        assert_eq!(locate().await, ("c4".to_owned(), Vec::new()));
    }

    #[tokio::test]
    async fn first_failure_is_an_error() {
        let locator = RefreshingLocator::new(Counting(AtomicUsize::new(1)), Cadence::Manual);

        assert_eq!(
            locator.locate().await.expect_err("down").to_string(),
            "the source is down"
        );
    }
}
