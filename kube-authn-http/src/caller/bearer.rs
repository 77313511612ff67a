//! Bearer tokens of callers, and those that verified already.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::digest;
use http::{HeaderMap, header::AUTHORIZATION};
use jiff::Timestamp;
use kube_authn_core::{Error, ErrorKind, MAX_JWT_BYTES, Result, Secret};

use super::{Caller, ILLEGAL_TOKEN};

/// The bearer token of a request (RFC 6750 section 2.1) and its SHA-256. `Debug` shows neither.
pub struct BearerToken<'a> {
    token: &'a [u8],
    digest: TokenDigest,
}

impl<'a> BearerToken<'a> {
    /// The token in `Authorization`; `None` without the header or with another scheme. The scheme's case does not matter
    /// (RFC 9110 section 11.1).
    ///
    /// # Errors
    /// `CallerUnknown` if the header stands there twice, or if the token is empty, longer than 16 KiB or not visible ASCII.
    pub(super) fn of(headers: &'a HeaderMap) -> Result<Option<Self>> {
        let mut lines = headers.get_all(AUTHORIZATION).iter();
        let line = match (lines.next(), lines.next()) {
            (None, _) => return Ok(None),
            (Some(line), None) => line.as_bytes(),
            (Some(_), Some(_)) => return Err(illegal()),
        };
        let (scheme, token) = match line.iter().position(|byte| *byte == b' ') {
            Some(space) => (&line[..space], line[space..].trim_ascii()),
            None => (line, &[][..]),
        };
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Ok(None);
        }
        if token.is_empty() || token.len() > MAX_JWT_BYTES || !token.iter().all(u8::is_ascii_graphic) {
            return Err(illegal());
        }
        Ok(Some(Self {
            token,
            digest: digest_of(token),
        }))
    }

    /// The token's bytes: visible ASCII, at most 16 KiB.
    pub fn expose(&self) -> &'a [u8] {
        self.token
    }

    /// A copy of the token.
    pub fn to_secret(&self) -> Secret {
        Secret::new(self.token)
    }

    /// SHA-256 of the token.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl fmt::Debug for BearerToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken")
    }
}

fn digest_of(token: &[u8]) -> TokenDigest {
    let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
    bytes
}

fn illegal() -> Error {
    Error::new(ErrorKind::CallerUnknown, ILLEGAL_TOKEN)
}

type TokenDigest = [u8; digest::SHA256_OUTPUT_LEN];

/// Tokens that verified, by hash, until they end: at most [`SHARDS`] × 2 × [`GENERATION`] of them.
///
/// Each shard has two generations. When the younger one is full the older one is dropped, so what is used stays.
#[derive(Default)]
pub(super) struct VerifiedTokens {
    shards: [Mutex<Generations>; SHARDS],
}

#[derive(Default)]
struct Generations {
    young: HashMap<TokenDigest, Caller>,
    old: HashMap<TokenDigest, Caller>,
}

impl VerifiedTokens {
    /// Whose token this is, if it verified before and has not ended.
    pub(super) fn get(&self, token: &BearerToken<'_>, now: Timestamp) -> Option<Caller> {
        let mut shard = self.shard(token);
        let caller = match shard.young.get(token.digest()) {
            Some(caller) => caller.clone(),
            None => {
                let caller = shard.old.remove(token.digest())?;
                shard.insert(*token.digest(), caller.clone());
                caller
            }
        };
        caller
            .principal
            .expires_at()
            .is_some_and(|end| end > now)
            .then_some(caller)
    }

    /// Remembers a token until its caller's `expires_at`; one without end is not remembered.
    pub(super) fn put(&self, token: &BearerToken<'_>, caller: &Caller) {
        if caller.principal.expires_at().is_some() {
            self.shard(token).insert(*token.digest(), caller.clone());
        }
    }

    fn shard(&self, token: &BearerToken<'_>) -> std::sync::MutexGuard<'_, Generations> {
        let shard = &self.shards[usize::from(token.digest()[0]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn insert(&mut self, digest: TokenDigest, caller: Caller) {
        if self.young.len() >= GENERATION {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(digest, caller);
    }
}

impl fmt::Debug for VerifiedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifiedTokens")
    }
}

const SCHEME: &[u8] = b"Bearer";
/// Enough that callers on a few dozen processors rarely wait for each other.
const SHARDS: usize = 16;
/// Tokens per generation of a shard: 65,536 in all, at some 600 bytes each.
const GENERATION: usize = 2048;

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use kube_authn_core::{EntityRef, Principal};

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines
            .iter()
            .map(|line| (AUTHORIZATION, HeaderValue::from_str(line).expect("a value")))
            .collect()
    }

    fn alice(expires_at: i64) -> Caller {
        let alice = Principal::user(EntityRef::parse("user:default/alice").expect("a reference"));
        Caller::new(alice.with_expires_at(Timestamp::from_second(expires_at).expect("an instant")))
    }

    #[test]
    fn scheme_is_read_in_any_case_and_other_schemes_are_left_alone() {
        for line in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            let headers = headers(&[line]);
            let token = BearerToken::of(&headers).expect("legal").expect("a token");
            assert_eq!(token.expose(), b"abc", "{line}");
        }
        for line in ["Basic abc", "Bearerabc", ""] {
            assert!(
                BearerToken::of(&headers(&[line])).expect("legal").is_none(),
                "{line}"
            );
        }
    }

    #[test]
    fn second_authorization_line_or_a_token_that_is_none_is_refused() {
        let long = format!("Bearer {}", "a".repeat(1024 * 1024));
        for lines in [
            &["Bearer a", "Bearer b"][..],
            &["Basic a", "Bearer b"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer a b"],
            &["Bearer a\tb"],
            &[long.as_str()],
        ] {
            assert!(BearerToken::of(&headers(lines)).is_err(), "{:.40?}", lines);
        }
    }

    #[test]
    fn token_that_has_ended_is_never_served_from_memory() {
        let headers = headers(&["Bearer abc"]);
        let token = BearerToken::of(&headers).expect("legal").expect("a token");
        let verified = VerifiedTokens::default();
        verified.put(&token, &alice(100));
        let at = |second| Timestamp::from_second(second).expect("an instant");

        assert!(verified.get(&token, at(99)).is_some());
        assert!(verified.get(&token, at(100)).is_none());
    }

    #[test]
    fn memory_of_tokens_is_bounded_and_keeps_what_is_used() {
        let verified = VerifiedTokens::default();
        let used = headers(&["Bearer used"]);
        let used = BearerToken::of(&used).expect("legal").expect("a token");
        verified.put(&used, &alice(100));
        for number in 0..(SHARDS * GENERATION * 4) {
            let line = headers(&[&format!("Bearer {number}")]);
            let token = BearerToken::of(&line).expect("legal").expect("a token");
            verified.put(&token, &alice(100));
            if number % 1000 == 0 {
                assert!(verified.get(&used, Timestamp::UNIX_EPOCH).is_some(), "{number}");
            }
        }

        let kept: usize = verified
            .shards
            .iter()
            .map(|shard| shard.lock().expect("lock"))
            .map(|shard| shard.young.len() + shard.old.len())
            .sum();
        assert!(kept <= SHARDS * GENERATION * 2, "{kept}");
    }
}
