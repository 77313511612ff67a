//! The outer form of a token: a JWS in compact serialization (RFC 7515 section 7.1), nothing else.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kube_authn_core::{MAX_JWT_BYTES, Result};
use serde_json::{Map, Value};

use crate::{
    jwks::{SignatureAlgorithm, Signed},
    verify::rejected,
};

/// A token taken apart; its signature is not verified.
///
/// Of its header only `alg`, `kid` and `typ` are read: keys and addresses of keys in it (`jwk`, `jku`, `x5c`, `x5u`) are the
/// sender's own and mean nothing.
pub(crate) struct Jws<'a> {
    message: &'a [u8],
    payload: &'a [u8],
    signature: Vec<u8>,
    alg: String,
    algorithm: SignatureAlgorithm,
    key_id: Option<String>,
    typ: Option<String>,
}

impl<'a> Jws<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// `TokenRejected` if it is too long, not of three parts, or signed in a way that is not accepted.
    pub(crate) fn parse(token: &'a [u8]) -> Result<Self> {
        if token.len() > MAX_JWT_BYTES {
            return Err(rejected("Invalid JWT format: longer than 16 KiB"));
        }
        let mut parts = token.split(|byte| *byte == b'.');
        let (header, payload, signature) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(header), Some(payload), Some(signature), None) => (header, payload, signature),
            _ => {
                return Err(rejected(
                    "Invalid JWT format: opaque and encrypted tokens cannot be verified",
                ));
            }
        };
        let message = &token[..header.len() + 1 + payload.len()];
        let header: Map<String, Value> = decode(header)
            .and_then(|header| serde_json::from_slice(&header).ok())
            .ok_or_else(|| rejected("Invalid JWT format: malformed header"))?;
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(rejected("Invalid JWT format: malformed header")),
        };
        // RFC 7515 section 4.1.11: what must be understood and is not makes the token invalid. Nothing is understood here.
        if header.contains_key("crit") {
            return Err(rejected(
                "Invalid JWT format: the header demands an extension (crit)",
            ));
        }
        let alg = text("alg")?.unwrap_or_default();
        let algorithm = SignatureAlgorithm::of(&alg)
            .ok_or_else(|| rejected("Signature verification failed: the algorithm is not allowed"))?;
        Ok(Self {
            message,
            payload,
            signature: decode(signature)
                .ok_or_else(|| rejected("Invalid JWT format: malformed signature"))?,
            key_id: text("kid")?,
            typ: text("typ")?,
            alg,
            algorithm,
        })
    }

    /// What the signature is about.
    pub(crate) fn signed(&self) -> Signed<'_> {
        Signed {
            alg: &self.alg,
            algorithm: self.algorithm,
            key_id: self.key_id.as_deref(),
            message: self.message,
            signature: &self.signature,
        }
    }

    pub(crate) fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// `typ` of the header.
    pub(crate) fn typ(&self) -> Option<&str> {
        self.typ.as_deref()
    }

    /// Whether the header says that this is another kind of token, such as `at+jwt` or `logout+jwt` (RFC 8725 section 3.11).
    pub(crate) fn is_typed_as_another_token(&self) -> bool {
        self.typ.as_deref().is_some_and(|typ| {
            let typ = typ.to_ascii_lowercase();
            typ.ends_with("+jwt") && typ != "id+jwt"
        })
    }

    /// The payload.
    ///
    /// # Errors
    /// `TokenRejected` if it is not base64url.
    pub(crate) fn payload(&self) -> Result<Vec<u8>> {
        decode(self.payload).ok_or_else(|| rejected("Invalid JWT format: malformed payload"))
    }
}

fn decode(part: &[u8]) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str) -> Vec<u8> {
        format!("{}.e30.c2ln", URL_SAFE_NO_PAD.encode(header)).into_bytes()
    }

    #[test]
    fn algorithm_none_and_shared_secrets_are_refused() {
        for alg in [
            "none", "None", "NONE", "nOnE", "HS256", "HS384", "HS512", "EdDSA", "rs256", "RS1", "",
        ] {
            assert!(
                Jws::parse(&token(&format!(r#"{{"alg":"{alg}"}}"#))).is_err(),
                "{alg}"
            );
        }
        for header in [
            "{}",
            r#"{"alg":null}"#,
            r#"{"alg":["RS256"]}"#,
            r#"["RS256"]"#,
            r#"{"alg":"RS256","kid":7}"#,
        ] {
            assert!(Jws::parse(&token(header)).is_err(), "{header}");
        }
        for alg in [
            "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
        ] {
            assert!(
                Jws::parse(&token(&format!(r#"{{"alg":"{alg}"}}"#))).is_ok(),
                "{alg}"
            );
        }
    }

    #[test]
    fn critical_extension_is_refused() {
        for header in [
            r#"{"alg":"RS256","crit":["b64"],"b64":false}"#,
            r#"{"alg":"RS256","crit":[]}"#,
            r#"{"alg":"RS256","crit":null}"#,
        ] {
            assert!(Jws::parse(&token(header)).is_err(), "{header}");
        }
    }

    #[test]
    fn bomb_is_refused_before_it_is_parsed() {
        let deep = format!(r#"{{"alg":"RS256","x":{}}}"#, "[".repeat(8_000));
        let bombs = [
            vec![b'a'; 1024 * 1024],
            vec![b'.'; 100_000],
            [token(r#"{"alg":"RS256"}"#), vec![b'.'; 10_000]].concat(),
            token(&deep),
            b"a.b.c.d.e".to_vec(),
            b"opaque".to_vec(),
            b"".to_vec(),
            b"..".to_vec(),
        ];

        for bomb in bombs {
            assert!(Jws::parse(&bomb).is_err());
        }
    }

    #[test]
    fn padded_and_non_canonical_base64_is_refused() {
        for signature in ["c2ln=", "c2lnZ=", "c2l+", "c2lnZZ"] {
            let token = format!("{}.e30.{signature}", URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#));

            assert!(Jws::parse(token.as_bytes()).is_err(), "{signature}");
        }
    }
}
