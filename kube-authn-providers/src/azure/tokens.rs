//! Tokens by what is wanted: each obtained once for all who wait, ahead of its end, and again after a failure.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use kube_authn_core::{Clock, Credential, Error, ErrorKind, Result, Secret};
use tokio::sync::Mutex as AsyncMutex;

use super::{
    chain::Chain,
    error::{AzureError, ChainError},
    options::Wanted,
    settings::AzureSource,
};
use crate::shared_slots::{Failure, SharedSlots, lock, seconds};

/// A token as a source gave it.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) token: Secret,
    pub(super) expires_at: Timestamp,
}

/// All tokens.
#[derive(Debug, Default)]
pub(super) struct Tokens(SharedSlots<Wanted, Slot>);

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    /// Held while a token is obtained.
    turn: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    /// The source that gave a token: from then on no other is asked, it may be somebody else.
    source: Option<AzureSource>,
    failure: Option<Failure>,
}

#[derive(Clone, Debug)]
struct Held {
    credential: Credential,
    obtained_at: Timestamp,
    /// When to obtain the next one.
    due: Timestamp,
}

impl Tokens {
    /// A token that is valid now.
    pub(super) async fn credential(
        &self,
        wanted: Wanted,
        chain: &Arc<Chain>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Credential> {
        let slot = self.0.slot(&wanted, clock.now());
        if let Some(credential) = slot.fresh(clock.now()) {
            return Ok(credential);
        }
        if slot.turn.try_lock().is_err()
            && let Some(credential) = slot.usable(clock.now())
        {
            return Ok(credential);
        }
        let (chain, clock) = (chain.clone(), clock.clone());
        // A task of its own: whoever stops waiting stops nobody else.
        let task = tokio::spawn(async move { slot.fill(&wanted, &chain, &*clock).await });
        task.await.unwrap_or_else(|lost| {
            Err(Error::new(
                ErrorKind::Unexpected,
                "the fetch of the Azure token ended without an answer",
            )
            .with_source(lost))
        })
    }

    /// The API server refused this one. Whether another try may give another one.
    pub(super) fn refuse(&self, wanted: &Wanted, refused: &Credential, now: Timestamp) -> bool {
        self.0.get(wanted).is_some_and(|slot| slot.refuse(refused, now))
    }
}

impl Slot {
    /// What can be used and is not due.
    fn fresh(&self, now: Timestamp) -> Option<Credential> {
        let state = lock(&self.state);
        let held = state.held.as_ref()?;
        (now < held.due && held.credential.usable(now)).then(|| held.credential.clone())
    }

    fn usable(&self, now: Timestamp) -> Option<Credential> {
        let state = lock(&self.state);
        let held = state.held.as_ref()?;
        held.credential.usable(now).then(|| held.credential.clone())
    }

    /// Obtains a token unless somebody did meanwhile. While that fails, the last one serves until its end.
    async fn fill(&self, wanted: &Wanted, chain: &Chain, clock: &dyn Clock) -> Result<Credential> {
        let _turn = self.turn.lock().await;
        let now = clock.now();
        if let Some(credential) = self.fresh(now) {
            return Ok(credential);
        }
        let (source, known_failure) = {
            let state = lock(&self.state);
            let failure = state.failure.as_ref().filter(|failure| failure.counts());
            (state.source, failure.map(|failure| failure.error.clone()))
        };
        if let Some(error) = known_failure {
            return self.usable(now).ok_or(error);
        }
        let answer = chain.fetch(wanted, source).await;
        let now = clock.now();
        let answer = answer.and_then(|(source, fetched)| {
            Ok((
                source,
                Held::new(&fetched, now).map_err(|error| ChainError(vec![(source, error)]))?,
            ))
        });
        match answer {
            Ok((source, held)) => {
                let credential = held.credential.clone();
                let mut state = lock(&self.state);
                state.held = Some(held);
                state.source = Some(source);
                state.failure = None;
                Ok(credential)
            }
            Err(failed) => self.failed(&failed.into(), now),
        }
    }

    fn failed(&self, error: &Error, now: Timestamp) -> Result<Credential> {
        {
            let mut state = lock(&self.state);
            state.failure = Some(Failure::after(state.failure.as_ref(), error));
        }
        let credential = self.usable(now).ok_or_else(|| error.clone())?;
        tracing::warn!(
            error = error as &dyn std::error::Error,
            "cannot renew the Azure token: the last one is used until its end",
        );
        Ok(credential)
    }

    fn refuse(&self, refused: &Credential, now: Timestamp) -> bool {
        let mut state = lock(&self.state);
        let Some(held) = &state.held else { return true };
        if held.credential.generation() != refused.generation() {
            return held.credential.usable(now);
        }
        let is_old = now.duration_since(held.obtained_at) >= seconds(RENEWAL_PAUSE);
        if is_old {
            state.held = None;
        }
        is_old
    }
}

impl Held {
    /// The cache above obeys the same instant, so it asks when there is a new token to be had.
    fn new(fetched: &Fetched, now: Timestamp) -> Result<Self, AzureError> {
        let life = fetched.expires_at.duration_since(now);
        let wait = (life - seconds(MARGIN)).max(life / 2);
        let due = now.checked_add(wait).unwrap_or(fetched.expires_at);
        let bearer =
            Credential::bearer(&fetched.token).map_err(|_| AzureError::NoToken("the source".to_owned()))?;
        let credential = bearer.with_expires_at(fetched.expires_at).with_refresh_at(due);
        match credential.usable(now) {
            true => Ok(Self {
                credential,
                obtained_at: now,
                due,
            }),
            false => Err(AzureError::Expired("the source".to_owned())),
        }
    }
}

/// Backstage's strategy renews with as much life left; tokens live an hour or a day.
const MARGIN: Duration = Duration::from_secs(15 * 60);

/// A token that is refused although it is younger than this is refused for another reason than its age.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
