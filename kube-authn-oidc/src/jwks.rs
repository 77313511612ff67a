//! Key sets of issuers (RFC 7517): parsed leniently, cached, rotated.

mod key;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use kube_authn_core::{Error, ErrorKind, Issuer, Result};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use self::key::Key;
pub(crate) use self::key::SignatureAlgorithm;
use crate::discovery::{FAILURE_KEPT, IssuerClient, remembered};

/// The public keys of one issuer. Keys that cannot verify signatures are left out, not errors.
#[derive(Debug)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    /// Reads a key set.
    ///
    /// # Errors
    /// `Unavailable` if the document is not a key set.
    pub(crate) fn parse(issuer: &Issuer, document: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Wire {
            keys: Vec<Value>,
        }
        let wire: Wire = serde_json::from_slice(document).map_err(|_| {
            Error::new(
                ErrorKind::Unavailable,
                format!("what issuer {issuer} gives as its key set is none (RFC 7517)"),
            )
        })?;
        let keys = wire
            .keys
            .into_iter()
            .take(MAX_KEYS)
            .filter_map(Key::parse)
            .collect();
        Ok(Self { keys })
    }

    /// What the keys say about a signature.
    pub(crate) fn check(&self, signed: &Signed<'_>) -> Verdict {
        let mut fitting = self.keys.iter().filter(|key| {
            key.fits(signed.alg, signed.algorithm)
                && signed.key_id.is_none_or(|id| key.id.as_deref() == Some(id))
        });
        let Some(first) = fitting.next() else {
            return Verdict::NoKey;
        };
        match [first]
            .into_iter()
            .chain(fitting)
            .take(MAX_TRIED)
            .any(|key| key.verifies(signed.algorithm, signed.message, signed.signature))
        {
            true => Verdict::Verified,
            false => Verdict::Forged,
        }
    }
}

/// The parts of a token that its signature is about.
#[derive(Clone, Copy)]
pub(crate) struct Signed<'a> {
    pub(crate) alg: &'a str,
    pub(crate) algorithm: SignatureAlgorithm,
    pub(crate) key_id: Option<&'a str>,
    pub(crate) message: &'a [u8],
    pub(crate) signature: &'a [u8],
}

/// What a key set says about a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A key of the issuer made it.
    Verified,
    /// There is no such key.
    NoKey,
    /// There is such a key, and it did not make it.
    Forged,
}

/// The key set of one issuer over time.
///
/// A set is fresh for [`KEYS_FRESH`]. An unknown key ID, or a signature that no known key made, forces one fetch, but
/// only one per [`FORCED_EVERY`]: within that window the answer is no at once, whoever asks and however often. A failed
/// fetch changes nothing for as long as [`KEYS_KEPT`]; a successful one replaces the set whole, so a withdrawn key is
/// gone. Intervals are monotonic: a jump of the wall clock changes nothing.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    current: RwLock<Option<Fetched>>,
    gate: Mutex<Gate>,
}

#[derive(Clone, Debug)]
struct Fetched {
    keys: Arc<KeySet>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Gate {
    forced: Option<Instant>,
    failed: Option<(Instant, Error)>,
}

impl KeyCache {
    /// Whether a key of the issuer made the signature.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if there is no key set and none can be fetched.
    pub(crate) async fn verify(&self, issuer: &IssuerClient, signed: &Signed<'_>) -> Result<Verdict> {
        let asked = Instant::now();
        let known = match self.known(KEYS_FRESH) {
            Some(fetched) => fetched,
            None => self.renewed(issuer).await?,
        };
        let verdict = known.keys.check(signed);
        // Keys fetched while this call waited are as new as keys can be.
        if verdict == Verdict::Verified || known.at >= asked || !self.may_force().await {
            return Ok(verdict);
        }
        let newer = Self::in_background(issuer, Need::NewerThan(known.at)).await?;
        Ok(newer.keys.check(signed))
    }

    /// A set that was fresh when it was asked for. While the issuer is slow the known one serves: only one caller waits, and
    /// not for long.
    async fn renewed(&self, issuer: &IssuerClient) -> Result<Fetched> {
        let fetch = Self::in_background(issuer, Need::Fresh);
        match self.known(KEYS_KEPT) {
            None => fetch.await,
            Some(known) if self.gate.try_lock().is_err() => Ok(known),
            Some(known) => timeout(PATIENCE, fetch).await.unwrap_or(Ok(known)),
        }
    }

    /// Fetches in a task of its own: a caller who stops waiting does not stop the fetch that others wait for.
    async fn in_background(issuer: &IssuerClient, need: Need) -> Result<Fetched> {
        let issuer = issuer.clone();
        tokio::spawn(async move { issuer.keys().refetch(&issuer, need).await })
            .await
            .map_err(|source| {
                Error::new(ErrorKind::Unexpected, "the fetch of the key set broke off").with_source(source)
            })?
    }

    async fn refetch(&self, issuer: &IssuerClient, need: Need) -> Result<Fetched> {
        let mut gate = self.gate.lock().await;
        let known = self.known(KEYS_KEPT);
        if let Some(known) = &known
            && need.is_met_by(known)
        {
            return Ok(known.clone());
        }
        let allowed = match need {
            Need::Fresh => Ok(()),
            Need::NewerThan(_) => gate.allow_forced(),
        };
        let answer = match (allowed, gate.recent_failure()) {
            (Err(Closed), _) => Err(None),
            (Ok(()), Some(failure)) => Err(Some(failure)),
            (Ok(()), None) => issuer.fetch_keys().await.map_err(|failure| {
                let failure = remembered(failure);
                tracing::warn!(issuer = %issuer.issuer(), %failure, "cannot fetch the key set");
                gate.failed = Some((Instant::now(), failure.clone()));
                Some(failure)
            }),
        };
        match (answer, known) {
            (Ok(keys), _) => {
                gate.failed = None;
                let fetched = Fetched {
                    keys: Arc::new(keys),
                    at: Instant::now(),
                };
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(fetched.clone());
                Ok(fetched)
            }
            (Err(_), Some(known)) => Ok(known),
            (Err(failure), None) => Err(failure.unwrap_or_else(|| {
                Error::new(
                    ErrorKind::Unavailable,
                    "the key set of the issuer is not known yet",
                )
            })),
        }
    }

    fn known(&self, max_age: Duration) -> Option<Fetched> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .filter(|fetched| fetched.at.elapsed() < max_age)
    }

    /// Whether a forced fetch is worth waiting for: one may begin, or one is under way.
    async fn may_force(&self) -> bool {
        match self.gate.try_lock() {
            Ok(gate) => gate.forced_is_open(),
            Err(_) => true,
        }
    }
}

/// Why a set is fetched.
#[derive(Clone, Copy, Debug)]
enum Need {
    /// The known one is too old, or there is none.
    Fresh,
    /// The known one, of this instant, did not verify a token.
    NewerThan(Instant),
}

impl Need {
    fn is_met_by(self, known: &Fetched) -> bool {
        match self {
            Self::Fresh => known.at.elapsed() < KEYS_FRESH,
            Self::NewerThan(at) => known.at > at,
        }
    }
}

/// The window of forced fetches is closed.
struct Closed;

impl Gate {
    fn forced_is_open(&self) -> bool {
        self.forced.is_none_or(|at| at.elapsed() >= FORCED_EVERY)
    }

    fn allow_forced(&mut self) -> Result<(), Closed> {
        if !self.forced_is_open() {
            return Err(Closed);
        }
        self.forced = Some(Instant::now());
        Ok(())
    }

    fn recent_failure(&self) -> Option<Error> {
        self.failed
            .as_ref()
            .filter(|(at, _)| at.elapsed() < FAILURE_KEPT)
            .map(|(_, failure)| failure.clone())
    }
}

/// Age at which a set is fetched again without a reason.
pub(crate) const KEYS_FRESH: Duration = Duration::from_secs(600);
/// Age up to which a set serves while the issuer is down: a key withdrawn in that time would otherwise live for ever.
pub(crate) const KEYS_KEPT: Duration = Duration::from_secs(24 * 3600);
/// One forced fetch per issuer in this time, however many tokens with unknown key IDs arrive.
pub(crate) const FORCED_EVERY: Duration = Duration::from_secs(10);
/// How long somebody waits for a newer set while there is an older one.
const PATIENCE: Duration = Duration::from_secs(1);
/// More keys than any issuer has: the rest is not looked at.
const MAX_KEYS: usize = 100;
/// Keys tried for one token without key ID.
const MAX_TRIED: usize = 8;
