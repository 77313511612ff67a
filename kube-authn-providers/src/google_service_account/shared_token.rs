//! Tokens that several clusters share, each asked for by one at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as SyncMutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kube_authn_core::{Credential, Error, ErrorKind, Result, Secret, refresh_margin};
use tokio::{sync::Mutex, time::Instant};

use super::{AccessToken, Current, TokenOf};

#[derive(Debug, Default)]
pub(super) struct SharedTokens(SyncMutex<HashMap<TokenOf, Arc<Mutex<State>>>>);

impl SharedTokens {
    pub(super) fn slot(&self, of: &TokenOf) -> Arc<Mutex<State>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(of) {
            return slot.clone();
        }
        if slots.len() >= MAX_TOKENS {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(of.clone()).or_default().clone()
    }
}

/// What is known of one token.
#[derive(Debug, Default)]
pub(super) struct State {
    held: Option<(Held, Current)>,
    failure: Option<(Error, Current, Instant)>,
}

/// A token that may be used. It keeps its credential, so the same token has the same generation.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) token: Secret,
    pub(super) credential: Credential,
    /// From when on whoever uses it should ask again.
    pub(super) due: Timestamp,
    renew_at: Timestamp,
}

impl State {
    /// What is to be said without asking anybody; `None`: ask.
    pub(super) fn answer(&self, current: &Current, now: Timestamp) -> Option<Result<Held>> {
        if let Some((held, of)) = &self.held
            && of.is(current)
            && now < held.renew_at
            && held.credential.usable(now)
        {
            return Some(Ok(held.due_by(current, now)));
        }
        let (error, of, at) = self.failure.as_ref()?;
        if !of.is(current) || at.elapsed() >= FAILURE_COUNTS_FOR {
            return None;
        }
        Some(self.old(current, now).ok_or_else(|| error.clone()))
    }

    /// Takes a new token over.
    pub(super) fn keep(&mut self, current: &Current, token: AccessToken, now: Timestamp) -> Result<Held> {
        let life = token.expires_at.duration_since(now).unsigned_abs();
        let margin = refresh_margin(life).min(life / 2);
        let held = Held {
            credential: Credential::bearer(&token.token)
                .map_err(|source| {
                    Error::new(ErrorKind::Unavailable, "Google's access token is no bearer token")
                        .with_source(source)
                })?
                .with_expires_at(token.expires_at),
            token: token.token,
            due: token.expires_at,
            renew_at: token.expires_at.checked_sub(margin).unwrap_or(now),
        };
        self.failure = None;
        self.held = Some((held.clone(), current.clone()));
        Ok(held.due_by(current, now))
    }

    /// Remembers a failure for those who wait behind, and gives the old token if it is still good.
    pub(super) fn failed(&mut self, current: &Current, error: Error, now: Timestamp) -> Option<Held> {
        self.failure = Some((error, current.clone(), Instant::now()));
        self.old(current, now)
    }

    pub(super) fn drop_refused(&mut self, refused: &Credential) {
        if self
            .held
            .as_ref()
            .is_some_and(|(held, _)| refused.carries(&held.token))
        {
            self.held = None;
        }
    }

    /// The token of an earlier key of the same account is as good; that of another account is never used.
    fn old(&self, current: &Current, now: Timestamp) -> Option<Held> {
        let (held, of) = self.held.as_ref()?;
        let mut held = held.clone();
        held.due = now.checked_add(FAILURE_COUNTS_FOR).unwrap_or(Timestamp::MAX);
        (of.is_same_identity(current) && held.credential.usable(now)).then_some(held)
    }
}

impl Held {
    /// Whoever uses it asks again when it is to be renewed, or when its file is to be looked at.
    fn due_by(&self, current: &Current, now: Timestamp) -> Self {
        let file = current
            .from_file
            .then(|| now.checked_add(LOOK_AGAIN_AFTER).unwrap_or(Timestamp::MAX));
        Self {
            due: file.map_or(self.renew_at, |at| at.min(self.renew_at)),
            ..self.clone()
        }
    }
}

/// More accounts than anybody impersonates. Beyond it the tokens that nobody is asking for now are dropped.
const MAX_TOKENS: usize = 1_000;

/// Those who waited for a call that failed do not repeat it one after the other.
const FAILURE_COUNTS_FOR: Duration = Duration::from_secs(5);

/// A new file of credentials is in force by then.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(60);
