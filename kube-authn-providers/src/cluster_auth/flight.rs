//! One refresh in this process: who waits for it, and for how long its outcome counts.

use std::{sync::Arc, time::Duration};

use kube_authn_core::{Error, ErrorKind, Login, LoginId, Result};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::refresh::Refreshes;

/// One refresh: under way, or in vain and remembered for a while.
#[derive(Clone)]
pub(super) struct Flight {
    pub(super) login: LoginId,
    pub(super) landing: watch::Receiver<Option<Landing>>,
}

#[derive(Clone)]
pub(super) struct Landing {
    pub(super) outcome: Result<Login>,
    /// Went well, and the login's end is the old one.
    pub(super) is_vain: bool,
    pub(super) failures: u32,
    pub(super) again_at: Instant,
}

impl Flight {
    pub(super) fn landing(&self) -> Option<Landing> {
        self.landing.borrow().clone()
    }

    /// Whether it is under way, or was in vain so short a time ago that it is not begun again. What gave nothing new counts
    /// for those alone whose token is usable still.
    pub(super) fn counts(&self, usable: bool) -> bool {
        match &*self.landing.borrow() {
            Some(landing) => (usable || !landing.is_vain) && Instant::now() < landing.again_at,
            None => self.landing.has_changed().is_ok(),
        }
    }

    /// The memory of a flight that landed so: without tokens, which would outlive a logout here.
    pub(super) fn remembered(&self, landing: Landing) -> Self {
        let outcome = landing.outcome.and(Err(Error::new(
            ErrorKind::Unavailable,
            "the login was not refreshed",
        )));
        let (_, landing) = watch::channel(Some(Landing { outcome, ..landing }));
        Self { landing, ..*self }
    }

    /// When its outcome is worth asking for.
    pub(super) fn pause(&self) -> Duration {
        let left = |landing: Landing| landing.again_at.saturating_duration_since(Instant::now());
        self.landing().map_or(LOOK_AGAIN, left).max(LOOK_AGAIN)
    }

    /// What it brings.
    pub(super) async fn landed(mut self) -> Result<Login> {
        let landing = timeout(WAITING_PATIENCE, self.landing.wait_for(Option::is_some)).await;
        match landing.map(|landed| landed.map(|landing| landing.clone())) {
            Ok(Ok(Some(landing))) => landing.outcome,
            Ok(Ok(None) | Err(_)) => Err(Error::new(
                ErrorKind::Unexpected,
                "the refresh of the login broke off",
            )),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "the issuer takes long to refresh the login: try again",
            )),
        }
    }
}

/// Counts a flight for as long as it is under way, however it ends.
pub(super) struct UnderWay(pub(super) Arc<Refreshes>);

impl UnderWay {
    pub(super) fn new(refreshes: &Arc<Refreshes>) -> Self {
        refreshes.under_way.send_modify(|flights| *flights += 1);
        Self(Arc::clone(refreshes))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|flights| *flights -= 1);
    }
}

/// A refresh takes a fraction of a second as a rule.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longer than one refresh: a request may have come when another process had just begun.
const WAITING_PATIENCE: Duration = Duration::from_secs(45);
