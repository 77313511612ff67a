//! Key sets of issuers (RFC 7517): parsed leniently, cached, rotated.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    crypto::aws_lc,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use kube_authn_core::{Error, ErrorKind, Issuer, Result};
use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Mutex, time::Instant};

use crate::discovery::{FAILURE_KEPT, IssuerClient, remembered};

/// The signature algorithms that are accepted (RFC 7518 section 3.1): asymmetric ones only, never `none`, never HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SignatureAlgorithm {
    /// One that jsonwebtoken knows.
    Known(Algorithm),
    /// ECDSA on P-521 with SHA-512, which jsonwebtoken leaves out.
    Es512,
}

impl SignatureAlgorithm {
    /// The algorithm of a token's `alg` header, `None` if it is not accepted.
    pub(crate) fn of(alg: &str) -> Option<Self> {
        Some(match alg {
            "RS256" => Self::Known(Algorithm::RS256),
            "RS384" => Self::Known(Algorithm::RS384),
            "RS512" => Self::Known(Algorithm::RS512),
            "PS256" => Self::Known(Algorithm::PS256),
            "PS384" => Self::Known(Algorithm::PS384),
            "PS512" => Self::Known(Algorithm::PS512),
            "ES256" => Self::Known(Algorithm::ES256),
            "ES384" => Self::Known(Algorithm::ES384),
            "ES512" => Self::Es512,
            _ => return None,
        })
    }

    /// The hash function of the algorithm, which `at_hash` uses too.
    pub(crate) fn digest(self) -> &'static aws_lc_rs::digest::Algorithm {
        match self {
            Self::Known(Algorithm::RS256 | Algorithm::PS256 | Algorithm::ES256) => &aws_lc_rs::digest::SHA256,
            Self::Known(Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384) => &aws_lc_rs::digest::SHA384,
            _ => &aws_lc_rs::digest::SHA512,
        }
    }
}

/// One public key with everything that restricts its use.
#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// `alg` of the key: then it verifies nothing else.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa(DecodingKey),
    P256(DecodingKey),
    P384(DecodingKey),
    P521(UnparsedPublicKey<Vec<u8>>),
}

impl Key {
    /// The key in this JSON, `None` if it is of no use for verifying signatures.
    fn parse(value: Value) -> Option<Self> {
        let algorithm = match value.get("alg") {
            None => None,
            Some(alg) => Some(alg.as_str()?.to_owned()),
        };
        let key: Jwk = serde_json::from_value(value).ok()?;
        if !matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        if let Some(operations) = &key.common.key_operations
            && !operations.contains(&KeyOperations::Verify)
        {
            return None;
        }
        let material = match &key.algorithm {
            AlgorithmParameters::RSA(_) => Material::Rsa(DecodingKey::from_jwk(&key).ok()?),
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => Material::P256(DecodingKey::from_jwk(&key).ok()?),
                EllipticCurve::P384 => Material::P384(DecodingKey::from_jwk(&key).ok()?),
                EllipticCurve::P521 => Material::P521(p521(&curve.x, &curve.y)?),
                _ => return None,
            },
            // A shared secret in a public document is none; other key types are not accepted.
            _ => return None,
        };
        Some(Self {
            id: key.common.key_id,
            algorithm,
            material,
        })
    }

    /// Whether this key may verify that algorithm: its type fits, and it names no other one.
    fn fits(&self, alg: &str, algorithm: SignatureAlgorithm) -> bool {
        let fits = match (&self.material, algorithm) {
            (Material::Rsa(_), SignatureAlgorithm::Known(known)) => {
                known.family() == jsonwebtoken::AlgorithmFamily::Rsa
            }
            (Material::P256(_), SignatureAlgorithm::Known(known)) => known == Algorithm::ES256,
            (Material::P384(_), SignatureAlgorithm::Known(known)) => known == Algorithm::ES384,
            (Material::P521(_), SignatureAlgorithm::Es512) => true,
            _ => false,
        };
        fits && self.algorithm.as_ref().is_none_or(|named| named == alg)
    }

    fn verifies(&self, algorithm: SignatureAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        match (&self.material, algorithm) {
            (
                Material::Rsa(key) | Material::P256(key) | Material::P384(key),
                SignatureAlgorithm::Known(algorithm),
            ) => {
                // The provider is named, never jsonwebtoken's process-wide default: that one panics if features clash.
                (aws_lc::DEFAULT_PROVIDER.verifier_factory)(&algorithm, key)
                    .is_ok_and(|verifier| verifier.verify(message, &signature.to_vec()).is_ok())
            }
            (Material::P521(key), SignatureAlgorithm::Es512) => key.verify(message, signature).is_ok(),
            _ => false,
        }
    }
}

/// The uncompressed point of two coordinates (SEC 1 section 2.3.3), each 66 bytes (RFC 7518 section 6.2.1.2).
fn p521(x: &str, y: &str) -> Option<UnparsedPublicKey<Vec<u8>>> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let coordinate = URL_SAFE_NO_PAD.decode(coordinate).ok()?;
        if coordinate.len() != P521_BYTES {
            return None;
        }
        point.extend(coordinate);
    }
    Some(UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point))
}

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
            None => Self::in_background(issuer, Need::Fresh).await?,
        };
        let verdict = known.keys.check(signed);
        // Keys fetched while this call waited are as new as keys can be.
        if verdict == Verdict::Verified || known.at >= asked || !self.may_force().await {
            return Ok(verdict);
        }
        let newer = Self::in_background(issuer, Need::NewerThan(known.at)).await?;
        Ok(newer.keys.check(signed))
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
/// More keys than any issuer has: the rest is not looked at.
const MAX_KEYS: usize = 100;
/// Keys tried for one token without key ID.
const MAX_TRIED: usize = 8;
const P521_BYTES: usize = 66;
