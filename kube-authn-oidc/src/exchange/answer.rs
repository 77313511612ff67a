//! Answers of a token endpoint. Nothing in them is verified, and the parser's own errors are not kept: they may quote tokens.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::Response;
use kube_authn_core::Secret;
use serde::Deserialize;

/// What a token endpoint gave. Nothing in it is verified.
#[derive(Clone)]
#[non_exhaustive]
pub struct TokenAnswer {
    /// The access token.
    pub access_token: Secret,
    /// The ID token; a refresh may come without.
    pub id_token: Option<Secret>,
    /// The refresh token, if the issuer gives one.
    pub refresh_token: Option<Secret>,
    /// Lifetime of the access token as the issuer recommends to count it.
    pub expires_in: Option<Duration>,
}

impl TokenAnswer {
    /// The parser's own errors may quote tokens, so there is only yes and no.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Wire {
            access_token: String,
            token_type: String,
            id_token: Option<String>,
            refresh_token: Option<String>,
            expires_in: Option<serde_json::Value>,
        }
        let wire: Wire = serde_json::from_slice(body).ok()?;
        if !wire.token_type.eq_ignore_ascii_case("bearer") || wire.access_token.is_empty() {
            return None;
        }
        // Some issuers write the number as text; one that is neither is left out, since it is a hint only.
        let expires_in = wire.expires_in.and_then(|value| match value {
            serde_json::Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        });
        let secret = |token: String| Some(Secret::new(token)).filter(|token| !token.is_empty());
        Some(Self {
            access_token: Secret::new(wire.access_token),
            id_token: wire.id_token.and_then(secret),
            refresh_token: wire.refresh_token.and_then(secret),
            expires_in: expires_in.map(Duration::from_secs),
        })
    }
}

impl fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenAnswer")
            .field("id_token", &self.id_token.is_some())
            .field("refresh_token", &self.refresh_token.is_some())
            .field("expires_in", &self.expires_in)
            .finish_non_exhaustive()
    }
}

/// The token in an answer to a token exchange, which is a JWT of some kind (RFC 8693 section 2.2.1).
pub(super) fn exchanged(body: &[u8]) -> Option<Secret> {
    #[derive(Deserialize)]
    struct Wire {
        access_token: String,
        issued_token_type: String,
        token_type: String,
    }
    let wire: Wire = serde_json::from_slice(body).ok()?;
    let usable_type = ["bearer", "n_a"]
        .iter()
        .any(|known| wire.token_type.eq_ignore_ascii_case(known));
    let jwt = [ACCESS_TOKEN, ID_TOKEN, JWT].contains(&wire.issued_token_type.as_str());
    (usable_type && jwt && !wire.access_token.is_empty()).then(|| Secret::new(wire.access_token))
}

/// The error of RFC 6749 section 5.2, as one of the texts that are known; its description is never read.
pub(super) fn error_code(answer: &Response<Bytes>) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Wire {
        error: String,
    }
    let wire: Wire = serde_json::from_slice(answer.body()).ok()?;
    KNOWN_ERRORS.iter().find(|known| **known == wire.error).copied()
}

/// RFC 8693 section 3.
pub(super) const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub(super) const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

const KNOWN_ERRORS: [&str; 9] = [
    "access_denied",
    "invalid_grant",
    "invalid_target",
    "invalid_client",
    "invalid_request",
    "invalid_scope",
    "unauthorized_client",
    "unsupported_grant_type",
    "unsupported_token_type",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_without_bearer_type_or_token_is_refused() {
        for bad in [
            r#"{"access_token":"a"}"#,
            r#"{"access_token":"a","token_type":"DPoP"}"#,
            r#"{"access_token":"","token_type":"Bearer"}"#,
            r#"{"token_type":"Bearer","id_token":"i"}"#,
            "<html>",
        ] {
            assert!(TokenAnswer::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn answer_is_read_and_shows_no_token() {
        let answer = TokenAnswer::parse(
            br#"{"access_token":"canary-a","token_type":"bearer","id_token":"canary-i","refresh_token":"","expires_in":"60"}"#,
        )
        .expect("an answer");

        assert_eq!(answer.expires_in, Some(Duration::from_secs(60)));
        assert_eq!(answer.refresh_token, None);
        assert!(!format!("{answer:?}").contains("canary"));
    }
}
