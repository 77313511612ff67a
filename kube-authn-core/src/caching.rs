//! The cache over all strategies: the strategy names its scope, the key is made here; one fetch for many waiting callers.
//!
//! ```text
//! warm   peek: hash, one bucket, compare, clone a handle                        no await, no allocation
//! cold   look · lock the slot · look again · join the flight, or start one      the flight is a task of its own
//! ```
//!
//! A flight outlives the caller that started it. It carries the epoch of its slot: a credential fetched under an epoch
//! that has passed (because the API server refused its predecessor) is neither kept nor handed out.

use std::{fmt, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::watch, time::Instant};

use crate::{
    Clock, ClusterSet, Credential, CredentialRequest, CredentialScope, Error, ErrorKind,
    KubernetesAuthProvider, Result, SystemClock, refresh_margin,
};

mod slots;

use slots::{Key, Refusal, Slot, SlotState, Slots};

/// Caches credentials over any provider, usually a [`ProviderRegistry`](crate::ProviderRegistry). Clones share the cache.
///
/// - A cached credential is served until [`USABLE_MARGIN`](crate::USABLE_MARGIN) before its end, and no longer than its
///   login lives.
/// - Ahead of the end ([`refresh_margin`], or [`Credential::refresh_at`] if that is sooner) one fetch runs in the background; callers are served from the old one.
/// - When a fetch fails, the old credential is kept while it is usable; failures that may pass are remembered for
///   seconds, longer each time. That a user must log in is never remembered: the next request may come after the login.
/// - A credential that the API server refused is fetched anew at most once per key and [`REFETCH_PAUSE`].
pub struct CachingProvider<P>(Arc<Inner<P>>);

struct Inner<P> {
    provider: P,
    clock: Arc<dyn Clock>,
    slots: Slots,
}

/// What a flight brings to everybody who waits for it.
#[derive(Clone)]
enum Landing {
    Done(Result<Credential>),
    /// The epoch passed meanwhile: look again.
    Stale,
}

type Flight = watch::Receiver<Option<Landing>>;

impl<P: KubernetesAuthProvider> CachingProvider<P> {
    /// A cache with the machine's clock, bounded at [`DEFAULT_CAPACITY`] credentials.
    pub fn new(provider: P) -> Self {
        Self::build(provider, Arc::new(SystemClock), DEFAULT_CAPACITY)
    }

    /// A cache with another clock and another bound, in credentials.
    pub fn with_clock_and_capacity(provider: P, clock: Arc<dyn Clock>, capacity: usize) -> Self {
        Self::build(provider, clock, capacity)
    }

    fn build(provider: P, clock: Arc<dyn Clock>, capacity: usize) -> Self {
        Self(Arc::new(Inner {
            provider,
            clock,
            slots: Slots::new(capacity),
        }))
    }

    /// The provider below the cache.
    pub fn provider(&self) -> &P {
        &self.0.provider
    }

    /// The cached credential if it can be sent as it is and nothing is due: the warm path.
    pub fn peek(&self, request: &CredentialRequest) -> Option<Credential> {
        let key = self.key(request)?;
        self.0.slots.fresh(&key, self.0.clock.now())
    }

    /// A credential that is valid now, from the cache or from the strategy.
    ///
    /// # Errors
    /// Those of the strategy; every caller that waited for the same fetch gets the same one.
    pub async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let Some(key) = self.key(request) else {
            return self.0.provider.credential(request).await;
        };
        for _ in 0..MAX_STALE_LANDINGS {
            let slot = self.0.slots.slot(&key);
            let mut flight = match self.board(&key, &slot, request) {
                Boarding::Served(answer) => return answer,
                Boarding::Waiting(flight) => flight,
            };
            match flight
                .wait_for(Option::is_some)
                .await
                .map(|landing| landing.clone())
            {
                Ok(Some(Landing::Done(answer))) => return answer,
                Ok(Some(Landing::Stale)) => {}
                Ok(None) | Err(_) => return Err(lost_flight()),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the credential was refused again and again while it was fetched",
        ))
    }

    /// The API server refused this credential: may another try give another one? Says no when the same key was fetched
    /// anew less than [`REFETCH_PAUSE`] ago, so that a credential that is truly refused does not double the load.
    pub async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        let Some(key) = self.key(request) else {
            return self.0.provider.invalidate(request, refused).await;
        };
        let now = self.0.clock.now();
        if let Some(cached) = self.0.slots.usable(&key, now)
            && cached.generation() != refused.generation()
        {
            return true;
        }
        let slot = self.0.slots.slot(&key);
        let mut another = {
            let mut state = slot.lock();
            match &state.refusal {
                Some(last) if last.at.elapsed() < REFETCH_PAUSE => {
                    if last.generation < refused.generation() {
                        return false;
                    }
                    last.another.clone()
                }
                _ => {
                    let another = self.ask_for_another(&key, &slot, request, refused);
                    state.refusal = Some(Refusal {
                        generation: refused.generation(),
                        at: Instant::now(),
                        another: another.clone(),
                    });
                    another
                }
            }
        };
        let answer = another.wait_for(Option::is_some).await;
        answer.is_ok_and(|another| *another == Some(true))
    }

    /// Asks in a task of its own: whoever asked first may go away.
    fn ask_for_another(
        &self,
        key: &Key<'_>,
        slot: &Arc<Slot>,
        request: &CredentialRequest,
        refused: &Credential,
    ) -> watch::Receiver<Option<bool>> {
        let (answered, another) = watch::channel(None);
        let (cache, slot, key) = (self.clone(), slot.clone(), key.to_owned_key());
        let (request, refused) = (request.clone(), refused.clone());
        tokio::spawn(async move {
            let another = cache.0.provider.invalidate(&request, &refused).await;
            if another {
                slot.lock().next_epoch();
                cache.0.slots.drop_generation(&key.as_key(), refused.generation());
            }
            answered.send_replace(Some(another));
        });
        another
    }

    /// Drops what belongs to clusters that are no longer in the set, or whose content changed.
    pub fn retain_clusters(&self, clusters: &ClusterSet) {
        let stamps = clusters.iter().map(|cluster| cluster.stamp()).collect();
        self.0.slots.retain(&stamps);
    }

    /// How many keys are held; for metrics.
    pub fn len(&self) -> usize {
        self.0.slots.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one place where a cache key is made; `None` is never cached.
    fn key<'r>(&self, request: &'r CredentialRequest) -> Option<Key<'r>> {
        let stamp = request.cluster.stamp();
        match self.0.provider.scope(&request.cluster) {
            CredentialScope::Application => Some(Key::application(stamp)),
            CredentialScope::User => Some(Key::user(stamp, &request.principal)),
            CredentialScope::Request => None,
        }
    }

    /// Under the slot's lock: serve what is usable (starting a refresh if one is due), repeat a remembered failure, join
    /// the flight that is under way, or start one.
    fn board(&self, key: &Key<'_>, slot: &Arc<Slot>, request: &CredentialRequest) -> Boarding {
        let mut state = slot.lock();
        let now = self.0.clock.now();
        if let Some(credential) = self.0.slots.usable(key, now) {
            if self.0.slots.fresh(key, now).is_none() && state.flight().is_none() && !state.is_failing() {
                self.start(&mut state, key, slot, request);
            }
            return Boarding::Served(Ok(credential));
        }
        if let Some(flight) = state.flight() {
            return Boarding::Waiting(flight);
        }
        match state.remembered_failure() {
            Some(error) => Boarding::Served(Err(error)),
            None => Boarding::Waiting(self.start(&mut state, key, slot, request)),
        }
    }

    fn start(
        &self,
        state: &mut SlotState,
        key: &Key<'_>,
        slot: &Arc<Slot>,
        request: &CredentialRequest,
    ) -> Flight {
        let (landed, flight) = watch::channel(None);
        state.set_flight(flight.clone());
        let (epoch, key, slot) = (state.epoch(), key.to_owned_key(), slot.clone());
        let (cache, request) = (self.clone(), request.clone());
        tokio::spawn(async move {
            let answer = cache.0.provider.credential(&request).await;
            let landing = cache.land(answer, &key.as_key(), &slot, epoch);
            landed.send_replace(Some(landing));
        });
        flight
    }

    fn land(&self, answer: Result<Credential>, key: &Key<'_>, slot: &Arc<Slot>, epoch: u64) -> Landing {
        let mut state = slot.lock();
        if state.epoch() != epoch {
            return Landing::Stale;
        }
        state.clear_flight();
        let now = self.0.clock.now();
        let answer = answer.and_then(|credential| match credential.usable(now) {
            true => Ok(credential),
            false => Err(unusable(&credential)),
        });
        match &answer {
            Ok(credential) => {
                state.clear_failure();
                self.0
                    .slots
                    .put(key, slot, credential.clone(), refresh_at(credential, now));
            }
            Err(error) if may_pass(error) => state.remember_failure(error.clone()),
            Err(_) => state.clear_failure(),
        }
        Landing::Done(answer)
    }
}

enum Boarding {
    Served(Result<Credential>),
    Waiting(Flight),
}

/// When a credential fetched now is due: when its strategy says so, at the latest ahead of its end.
fn refresh_at(credential: &Credential, now: Timestamp) -> Timestamp {
    let ahead_of_end = ahead_of_end(credential, now);
    credential
        .refresh_at()
        .map_or(ahead_of_end, |stated| stated.min(ahead_of_end))
}

/// The margin before the end, but not before half of the life has passed, so a credential with a short life is not
/// fetched without pause.
fn ahead_of_end(credential: &Credential, now: Timestamp) -> Timestamp {
    let Some(end) = credential.expires_at() else {
        return Timestamp::MAX;
    };
    let life = Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO);
    let margin = refresh_margin(life).min(life / 2);
    SignedDuration::try_from(margin)
        .ok()
        .and_then(|margin| end.checked_sub(margin).ok())
        .unwrap_or(now)
}

/// Whether a failure is worth remembering: a user's next request may come after the login, so only failures that the
/// user cannot mend are.
fn may_pass(error: &Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::CallerUnknown
            | ErrorKind::LoginRequired
            | ErrorKind::TokenExpired
            | ErrorKind::TokenRejected
            | ErrorKind::Refused
            | ErrorKind::Conflict
    )
}

fn unusable(credential: &Credential) -> Error {
    match credential.login() {
        Some(login) if login.is_ended() => Error::new(
            ErrorKind::LoginRequired,
            "the login ended while its token was read",
        ),
        _ => Error::new(
            ErrorKind::TokenExpired,
            "the credential had expired when it was obtained",
        ),
    }
}

fn lost_flight() -> Error {
    Error::new(
        ErrorKind::Unexpected,
        "the fetch of the credential ended without an answer",
    )
}

impl<P> Clone for CachingProvider<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: fmt::Debug> fmt::Debug for CachingProvider<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachingProvider")
            .field("provider", &self.0.provider)
            .finish_non_exhaustive()
    }
}

/// Credentials held at most: some 100 MiB with tokens of 1 KiB.
pub const DEFAULT_CAPACITY: usize = 100_000;

/// Between two forced fetches of one key: an API server remembers a token it accepted for 10 s, so asking more often
/// cannot learn more.
pub const REFETCH_PAUSE: Duration = Duration::from_secs(10);

/// Each stale landing needs an invalidation of its own, and those are [`REFETCH_PAUSE`] apart.
const MAX_STALE_LANDINGS: usize = 3;

#[cfg(test)]
mod tests;
