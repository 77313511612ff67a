//! Claims read without trust: for display and for expiry hints, never for a decision in somebody's favour.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Deserialize;

/// What a JWT says about itself, unverified.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct UnverifiedClaims {
    /// `exp`, seconds since 1970 UTC (RFC 7519 section 4.1.4); fractions are cut.
    #[serde(default, deserialize_with = "seconds")]
    exp: Option<i64>,
}

impl UnverifiedClaims {
    /// The claims of a compact JWS, `None` if the text is none (opaque and encrypted tokens are not).
    pub fn of(token: &[u8]) -> Option<Self> {
        if token.len() > MAX_JWT_BYTES {
            return None;
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// The UTC instant at which the token says it ends; `None` for one that ends beyond the year 9999 or never.
    pub fn expires_at(&self) -> Option<Timestamp> {
        let seconds = self.exp?.max(Timestamp::MIN.as_second());
        Timestamp::from_second(seconds).ok()
    }
}

fn seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let number = Option::<serde_json::Number>::deserialize(deserializer)?;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "saturates, which is what a far future means"
    )]
    Ok(number.and_then(|number| {
        number
            .as_i64()
            .or_else(|| number.as_f64().map(|float| float as i64))
    }))
}

/// Longest JWT that anybody reads, bytes: larger ones are attacks (API servers refuse headers of that size).
pub const MAX_JWT_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> Vec<u8> {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)).into_bytes()
    }

    #[test]
    fn expiry_is_read_from_integers_and_fractions() {
        let at = |claims| UnverifiedClaims::of(&token(claims)).and_then(|claims| claims.expires_at());

        assert_eq!(at(r#"{"exp":1000}"#), Timestamp::from_second(1000).ok());
        assert_eq!(at(r#"{"exp":1000.9}"#), Timestamp::from_second(1000).ok());
        assert_eq!(at("{}"), None);
        assert_eq!(at(r#"{"exp":1e300}"#), None);
        assert_eq!(
            at(r#"{"exp":-1e300}"#),
            Timestamp::from_second(Timestamp::MIN.as_second()).ok()
        );
        assert_eq!(UnverifiedClaims::of(&token(r#"{"exp":"soon"}"#)), None);
    }

    #[test]
    fn opaque_and_oversized_tokens_have_no_claims() {
        for opaque in [
            b"opaque".to_vec(),
            b"a.b".to_vec(),
            b"a.b.c.d.e".to_vec(),
            vec![b'.'; 100_000],
        ] {
            assert_eq!(UnverifiedClaims::of(&opaque), None);
        }
    }
}
