//! Typed reading of claims (RFC 7519 section 4.1): a claim of the wrong type is an error, never an absent one.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use kube_authn_core::{MAX_JWT_BYTES, Result, Subject, VerifiedEmail};
use serde_json::{Map, Value};

use crate::verify::rejected;

/// The claims of a token.
#[derive(Clone)]
pub(crate) struct Claims(Map<String, Value>);

impl Claims {
    /// Reads the payload of a token.
    ///
    /// # Errors
    /// `TokenRejected` if it is no JSON object, is nested too deeply, or holds control characters in text at its top level:
    /// such text ends up in headers and log lines.
    pub(crate) fn parse(payload: impl AsRef<[u8]>) -> Result<Self> {
        let claims: Map<String, Value> = serde_json::from_slice(payload.as_ref())
            .map_err(|_| rejected("Invalid JWT format: the claims are no JSON object"))?;
        let clean = claims.iter().all(|(name, value)| {
            is_clean(name)
                && match value {
                    Value::String(text) => is_clean(text),
                    Value::Array(items) => items.iter().filter_map(Value::as_str).all(is_clean),
                    _ => true,
                }
        });
        match clean {
            true => Ok(Self(claims)),
            false => Err(rejected("a claim of the token holds control characters")),
        }
    }

    /// The claims of a JWT whose signature nobody verified; `None` if the text is no JWT.
    pub(crate) fn unverified(token: &[u8]) -> Option<Self> {
        if token.len() > MAX_JWT_BYTES {
            return None;
        }
        let parts: Vec<_> = token.splitn(4, |byte| *byte == b'.').collect();
        let [header, payload, _] = parts.as_slice() else {
            return None;
        };
        let _: Map<String, Value> = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?)
            .ok()
            .map(Self)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A text claim.
    ///
    /// # Errors
    /// `TokenRejected` if it has another type.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong_type(name)),
        }
    }

    /// A NumericDate claim (RFC 7519 section 2): seconds since 1970 UTC, fractions cut.
    ///
    /// # Errors
    /// `TokenRejected` if it is no number, negative, or beyond the year 9999.
    pub(crate) fn instant(&self, name: &str) -> Result<Option<Timestamp>> {
        let number = match self.get(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number,
            Some(_) => return Err(wrong_type(name)),
        };
        let out_of_range = || rejected(format!("the {name} claim of the token is out of range"));
        #[allow(
            clippy::cast_possible_truncation,
            reason = "guarded by the range, and fractions are to be cut"
        )]
        let seconds = match (number.as_i64(), number.as_f64()) {
            (Some(seconds), _) => seconds,
            (None, Some(float)) if (0.0..LAST_SECOND).contains(&float) => float as i64,
            _ => return Err(out_of_range()),
        };
        if seconds < 0 {
            return Err(out_of_range());
        }
        Timestamp::from_second(seconds)
            .map(Some)
            .map_err(|_| out_of_range())
    }

    /// `sub`.
    ///
    /// # Errors
    /// `TokenRejected` if it is missing or malformed.
    pub(crate) fn subject(&self) -> Result<Subject> {
        match self.text("sub")? {
            None | Some("") => Err(rejected("Missing sub claim")),
            Some(subject) => {
                Subject::new(subject).map_err(|_| rejected("the sub claim of the token is malformed"))
            }
        }
    }

    /// `aud`: one text or a list of texts, at least one.
    ///
    /// # Errors
    /// `TokenRejected` if it is missing, empty, or has another type anywhere.
    pub(crate) fn audience(&self) -> Result<Vec<String>> {
        let audience = match self.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => many
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| wrong_type("aud"))?,
            None => Vec::new(),
            Some(_) => return Err(wrong_type("aud")),
        };
        match audience.iter().any(|one| !one.is_empty()) {
            true => Ok(audience),
            false => Err(rejected("the token has no audience (aud)")),
        }
    }

    /// `email`, lower-cased, if `email_verified` is true; some issuers write that as text.
    pub(crate) fn verified_email(&self) -> Result<Option<VerifiedEmail>> {
        let verified = match self.get("email_verified") {
            Some(Value::Bool(verified)) => *verified,
            Some(Value::String(text)) => text == "true",
            _ => false,
        };
        Ok(match self.text("email")? {
            Some(email) if verified => VerifiedEmail::new(email.to_ascii_lowercase()).ok(),
            _ => None,
        })
    }
}

fn is_clean(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn wrong_type(name: &str) -> kube_authn_core::Error {
    rejected(format!("the {name} claim of the token has the wrong type"))
}

/// 9999-12-31, the last day that instants reach.
const LAST_SECOND: f64 = 253_402_200_000.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "JSON literals read better so")]
    fn claims(claims: Value) -> Claims {
        Claims::parse(claims.to_string()).expect("claims")
    }

    #[test]
    fn instant_of_wrong_type_never_counts_as_absent() {
        for wrong in [
            json!("1000"),
            json!(null),
            json!(true),
            json!([1000]),
            json!({"exp": 1000}),
        ] {
            assert!(claims(json!({ "exp": wrong })).instant("exp").is_err());
        }
        for out_of_range in [
            json!(-1),
            json!(-0.5),
            json!(u64::MAX),
            json!(i64::MAX),
            json!(1e300),
            json!(253_402_300_800_i64),
        ] {
            assert!(
                claims(json!({ "exp": out_of_range })).instant("exp").is_err(),
                "{out_of_range}"
            );
        }
        assert!(Claims::parse(r#"{"exp":1e400}"#).is_err());
        assert!(Claims::parse(r#"{"exp":NaN}"#).is_err());
    }

    #[test]
    fn fractions_of_seconds_are_cut() {
        let read = |value| {
            claims(json!({ "exp": value }))
                .instant("exp")
                .expect("an instant")
        };

        assert_eq!(read(json!(1000.9)), Timestamp::from_second(1000).ok());
        assert_eq!(read(json!(0)), Timestamp::from_second(0).ok());
        assert_eq!(read(json!(1e9)), Timestamp::from_second(1_000_000_000).ok());
    }

    #[test]
    fn audience_of_wrong_type_is_refused() {
        for wrong in [
            json!([]),
            json!(""),
            json!([""]),
            json!(["a", 7]),
            json!([["a"]]),
            json!({"a": 1}),
            json!(null),
            json!(7),
        ] {
            assert!(claims(json!({ "aud": wrong })).audience().is_err(), "{wrong}");
        }
        assert!(claims(json!({})).audience().is_err());
    }

    #[test]
    fn claim_with_a_line_break_is_refused() {
        for bad in [
            json!({ "groups": ["dev", "a\r\nImpersonate-Group: system:masters"] }),
            json!({ "name": "a\nb" }),
            json!({ "name": "a\0" }),
            json!({ "a\n": 1 }),
        ] {
            assert!(Claims::parse(bad.to_string()).is_err(), "{bad}");
        }
        assert!(Claims::parse(json!({ "name": "Jürgen Groß" }).to_string()).is_ok());
    }

    #[test]
    fn deep_json_is_refused() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(5_000), "]".repeat(5_000));

        assert!(Claims::parse(deep).is_err());
    }

    #[test]
    fn unverified_email_never_counts_as_verified() {
        let email = |claims_json| claims(claims_json).verified_email().expect("typed");

        for unverified in [
            json!({ "email": "a@b.example" }),
            json!({ "email": "a@b.example", "email_verified": false }),
            json!({ "email": "a@b.example", "email_verified": "false" }),
            json!({ "email": "a@b.example", "email_verified": 1 }),
            json!({ "email_verified": true }),
        ] {
            assert_eq!(email(unverified), None);
        }
        let verified = email(json!({ "email": "A@B.example", "email_verified": true })).expect("verified");
        assert_eq!(verified.as_str(), "a@b.example");
    }

    proptest! {
        #[test]
        fn any_json_gives_an_answer_and_no_panic(text in ".{0,200}", number in proptest::num::f64::ANY, whole in any::<i64>()) {
            for claims in [
                text.clone(),
                json!({ "exp": number, "aud": text, "sub": text, "email": text }).to_string(),
                json!({ "exp": whole, "aud": [text], "sub": whole }).to_string(),
            ] {
                if let Ok(claims) = Claims::parse(claims) {
                    let _ = (claims.subject().is_ok(), claims.audience().is_ok(), claims.verified_email().is_ok());
                    if let Ok(Some(instant)) = claims.instant("exp") {
                        prop_assert!(instant >= Timestamp::UNIX_EPOCH);
                    }
                }
            }
        }
    }
}
