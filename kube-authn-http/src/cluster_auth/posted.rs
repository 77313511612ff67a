//! The body of `POST /tokens`: read within limits, field by field.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use kube_authn_core::{Error, ErrorKind, Secret};
use kube_authn_oidc::PostedTokens;
use serde_json::{Map, Value};

use super::answer::Refusal;

/// What was posted.
pub(super) struct PostedBody {
    pub(super) tokens: PostedTokens,
    pub(super) cluster: Option<String>,
}

impl PostedBody {
    /// Reads the body: a JSON object, at most 64 KiB. Unknown fields are ignored, known ones must be of their type.
    pub(super) async fn read(headers: &HeaderMap, body: Body) -> Result<Self, Refusal> {
        let too_large = || {
            Refusal::with_status(
                StatusCode::PAYLOAD_TOO_LARGE,
                invalid("the body is larger than 64 KiB"),
            )
        };
        let stated = headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if stated.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
            return Err(too_large());
        }
        let bytes = match tokio::time::timeout(BODY_PATIENCE, to_bytes(body, MAX_BODY_BYTES)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) if is_length_limit(&error) => return Err(too_large()),
            Ok(Err(_)) => return Err(invalid("the body broke off").into()),
            Err(_) => {
                return Err(Refusal::with_status(
                    StatusCode::REQUEST_TIMEOUT,
                    invalid("the body did not arrive within 30 seconds"),
                ));
            }
        };
        // The parser's own error may quote the body.
        let fields: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|_| invalid("the body is no JSON object"))?;
        Self::parse(fields).map_err(Refusal::from)
    }

    fn parse(mut fields: Map<String, Value>) -> Result<Self, Error> {
        let mut text = |name: &str| match fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(_) => Err(invalid(format!("{name} must be a string"))),
        };
        let (access_token, id_token) = (text("access_token")?, text("id_token")?);
        let refresh_token = text("refresh_token")?;
        let cluster = text("cluster")?;
        for ignored in ["token_type", "scope"] {
            text(ignored)?;
        }
        if !matches!(
            fields.get("expires_in"),
            None | Some(Value::Null | Value::Number(_))
        ) {
            return Err(invalid("expires_in must be a number"));
        }
        let (Some(access_token), Some(id_token)) = (access_token, id_token) else {
            return Err(invalid("access_token and id_token are required"));
        };
        let mut tokens =
            PostedTokens::new(Secret::new(id_token)).with_access_token(Secret::new(access_token));
        tokens.refresh_token = refresh_token.map(Secret::new);
        Ok(Self { tokens, cluster })
    }
}

/// The body is said to be JSON, which a browser sends for a page of another site only if we allow it to.
pub(super) fn expect_json(headers: &HeaderMap) -> Result<(), Refusal> {
    match is_json(headers) {
        true => Ok(()),
        false => Err(Refusal::with_status(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            invalid("the body must be JSON: send Content-Type: application/json"),
        )),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(CONTENT_TYPE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return false;
    };
    let essence = line
        .as_bytes()
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn is_length_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::RequestInvalid, message)
}

/// Three tokens of 16 KiB with room for the rest.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// 64 KiB on the slowest line that a login is possible over.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[allow(clippy::needless_pass_by_value, reason = "JSON literals read better so")]
    fn parse(body: Value) -> Result<PostedBody, String> {
        let fields = body.as_object().expect("an object").clone();
        PostedBody::parse(fields).map_err(|error| error.to_string())
    }

    #[test]
    fn field_of_the_wrong_type_is_named() {
        for (field, wrong, text) in [
            ("access_token", json!(7), "access_token must be a string"),
            ("id_token", json!({}), "id_token must be a string"),
            ("refresh_token", json!([]), "refresh_token must be a string"),
            ("token_type", json!(1), "token_type must be a string"),
            ("scope", json!(true), "scope must be a string"),
            ("cluster", json!(["a"]), "cluster must be a string"),
            ("expires_in", json!("60"), "expires_in must be a number"),
        ] {
            let mut body = json!({ "access_token": "a", "id_token": "i" });
            body[field] = wrong;
            assert_eq!(parse(body).err().as_deref(), Some(text));
        }
    }

    #[test]
    fn both_tokens_are_required_and_the_rest_is_not() {
        for body in [
            json!({}),
            json!({ "access_token": "a" }),
            json!({ "id_token": "i" }),
            json!({ "access_token": "", "id_token": "i" }),
            json!({ "access_token": "a", "id_token": null }),
        ] {
            assert_eq!(
                parse(body).err().as_deref(),
                Some("access_token and id_token are required")
            );
        }
        let body =
            json!({ "access_token": "a", "id_token": "i", "refresh_token": null, "extra": { "deep": 1 } });
        assert!(parse(body).is_ok());
    }
}
