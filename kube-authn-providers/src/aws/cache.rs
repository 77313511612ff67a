//! Credentials by link: each loaded once for all who wait, ahead of its end, and again after a failure.

use std::{future::Future, sync::Mutex, time::Duration};

use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::identity::Identity;
use jiff::Timestamp;
use kube_authn_core::{Clock, Error, usable};
use tokio::{sync::Mutex as AsyncMutex, time::timeout};
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};

use super::{accounts::Link, error::AwsError};
use crate::shared_slots::{Failure, SharedSlots, lock, seconds};

/// Credentials as the signer wants them.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) identity: Identity,
    pub(super) credentials: Credentials,
    pub(super) expires_at: Option<Timestamp>,
}

/// All slots.
pub(super) type Slots = SharedSlots<Link, Slot>;

/// The credentials of one link.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    /// Held while loading.
    failure: AsyncMutex<Option<Failure>>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    loaded_at: Timestamp,
    /// When to load again.
    due: Timestamp,
}

impl Slot {
    /// What can be used without loading.
    pub(super) fn fresh(&self, now: Timestamp) -> Option<Held> {
        let state = lock(&self.state);
        let held = state.held.as_ref()?;
        (now < state.due && held.serves(now)).then(|| held.clone())
    }

    /// Makes the next call load, if what is held was loaded a while ago.
    pub(super) fn refuse(&self, now: Timestamp) -> bool {
        let mut state = lock(&self.state);
        let is_old = now.duration_since(state.loaded_at) >= seconds(RELOAD_PAUSE);
        if is_old {
            state.due = Timestamp::MIN;
        }
        is_old
    }

    /// Loads unless somebody else did meanwhile. While loading fails, what is held serves until its end.
    pub(super) async fn fill(
        &self,
        clock: &dyn Clock,
        load: impl Future<Output = Result<Credentials, Error>>,
    ) -> Result<Held, Error> {
        let Some(mut failure) = self.turn(clock).await else {
            return self.serving(clock.now()).ok_or_else(|| AwsError::Lost.into());
        };
        if let Some(held) = self.fresh(clock.now()) {
            return Ok(held);
        }
        if let Some(known) = failure.as_ref().filter(|known| known.counts()) {
            return self.serving(clock.now()).ok_or_else(|| known.error.clone());
        }
        match self.load(clock, load).await {
            Ok(held) => {
                *failure = None;
                Ok(held)
            }
            Err(error) => {
                *failure = Some(Failure::after(failure.as_ref(), &error));
                let serving = self.serving(clock.now()).ok_or_else(|| error.clone())?;
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot renew AWS credentials: the last ones are used until their end",
                );
                Ok(serving)
            }
        }
    }

    /// The right to load; at once, with nothing, if another loads and what is held still serves.
    async fn turn(&self, clock: &dyn Clock) -> Option<tokio::sync::MutexGuard<'_, Option<Failure>>> {
        match self.failure.try_lock() {
            Ok(turn) => Some(turn),
            Err(_) if self.serving(clock.now()).is_some() => None,
            Err(_) => Some(self.failure.lock().await),
        }
    }

    async fn load(
        &self,
        clock: &dyn Clock,
        load: impl Future<Output = Result<Credentials, Error>>,
    ) -> Result<Held, Error> {
        // The SDK logs whole answers and what child processes wrote; the error says what matters.
        let silent = load.with_subscriber(NoSubscriber::default());
        let credentials = timeout(LOAD_LIMIT, silent).await.map_err(|_| {
            Error::from(AwsError::TooSlow {
                what: "reading AWS credentials".to_owned(),
                seconds: LOAD_LIMIT.as_secs(),
            })
        })??;
        let now = clock.now();
        let held = Held::new(credentials);
        if !held.serves(now) {
            return Err(AwsError::Expired.into());
        }
        let mut state = lock(&self.state);
        state.due = held.due(now);
        state.loaded_at = now;
        state.held = Some(held.clone());
        Ok(held)
    }

    fn serving(&self, now: Timestamp) -> Option<Held> {
        let state = lock(&self.state);
        state.held.as_ref().filter(|held| held.serves(now)).cloned()
    }
}

impl Held {
    fn new(credentials: Credentials) -> Self {
        let expires_at = credentials
            .expiry()
            .map(|expiry| Timestamp::try_from(expiry).unwrap_or(Timestamp::MAX));
        Self {
            identity: credentials.clone().into(),
            credentials,
            expires_at,
        }
    }

    fn serves(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| usable(end, now))
    }

    /// Early enough that a token signed before it lives its whole life; half of the life if that is shorter. Keys without
    /// an end are read again now and then, since an administrator replaces them in place.
    fn due(&self, now: Timestamp) -> Timestamp {
        let wait = match self.expires_at {
            None => seconds(READ_AGAIN_AFTER),
            Some(end) => {
                let life = end.duration_since(now);
                (life - seconds(MARGIN)).max(life / 2)
            }
        };
        now.checked_add(wait.max(seconds(RELOAD_PAUSE)))
            .unwrap_or(Timestamp::MAX)
    }
}

/// A token lives 14 minutes.
const MARGIN: Duration = Duration::from_secs(16 * 60);
const READ_AGAIN_AFTER: Duration = Duration::from_secs(15 * 60);

/// Between two loads of one link, whatever is refused and however short the credentials live.
const RELOAD_PAUSE: Duration = Duration::from_secs(60);

/// Longer than the SDK's own limits together, which do not hold for child processes.
const LOAD_LIMIT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
