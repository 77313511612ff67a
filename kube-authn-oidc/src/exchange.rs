//! The token endpoint: codes and refresh tokens become tokens, tokens are revoked (RFC 6749 sections 4.1.3 and 6, RFC 7009).

use std::{fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use kube_authn_core::{ClientId, Error, ErrorKind, Result, Secret};
use serde::Deserialize;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::{
    authorize::{AuthorizationCode, AuthorizationRequest},
    discovery::{IssuerClient, IssuerMetadata},
};

/// A client of an issuer's token endpoint. Clones share the issuer.
///
/// Nothing here is ever sent twice: a code or a rotating refresh token may be spent although the answer was lost. So once a
/// form was on its way, no error of [`TokenClient::exchange`] and [`TokenClient::refresh`] says that it can be tried again.
#[derive(Clone, Debug)]
pub struct TokenClient {
    issuer: IssuerClient,
    client_id: ClientId,
    client_secret: Option<Secret>,
}

impl TokenClient {
    /// A public client (RFC 6749 section 2.1): PKCE protects it.
    pub fn new(issuer: IssuerClient, client_id: ClientId) -> Self {
        Self {
            issuer,
            client_id,
            client_secret: None,
        }
    }

    /// Makes it a confidential client.
    pub fn with_client_secret(mut self, secret: Secret) -> Self {
        self.client_secret = Some(secret);
        self
    }

    /// The client's own identifier.
    pub fn client_id(&self) -> &ClientId {
        &self.client_id
    }

    /// The longest that one call takes, discovery included: who marks a refresh token as being spent marks it for this long.
    pub fn longest_call(&self) -> Duration {
        self.issuer.transport().total_timeout() * 2
    }

    /// Exchanges the code that came back to this request.
    ///
    /// # Errors
    /// `LoginRequired` if the issuer refuses the code; `Unavailable` or `Timeout` if it did not answer, in which case the
    /// code may be spent; `ConfigInvalid` if it does not know the client; `Unexpected` for an answer that is none.
    pub async fn exchange(
        &self,
        request: &AuthorizationRequest,
        code: &AuthorizationCode,
    ) -> Result<TokenAnswer> {
        self.tokens(&[
            ("grant_type", "authorization_code"),
            ("code", text(code.secret())?),
            ("redirect_uri", request.redirect_uri().as_str()),
            ("code_verifier", text(request.verifier().secret())?),
        ])
        .await
    }

    /// Exchanges a refresh token for a new set. The answer may lack an ID token and a refresh token; a missing refresh token
    /// means that the old one stays good (RFC 6749 section 6).
    ///
    /// # Errors
    /// `LoginRequired` only for `invalid_grant`: the grant is gone. Everything else as for [`TokenClient::exchange`]; the
    /// grant then is as it was, or spent.
    pub async fn refresh(&self, refresh_token: &Secret) -> Result<TokenAnswer> {
        self.tokens(&[
            ("grant_type", "refresh_token"),
            ("refresh_token", text(refresh_token)?),
        ])
        .await
    }

    /// Revokes a refresh token and with it the tokens made from it. `false` if the issuer offers no revocation.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if it did not answer, `ConfigInvalid` if it does not know the client.
    pub async fn revoke(&self, refresh_token: &Secret) -> Result<bool> {
        let metadata = self.issuer.metadata().await?;
        let Some(endpoint) = &metadata.revocation_endpoint else {
            return Ok(false);
        };
        let answer = self
            .post(
                &metadata,
                endpoint,
                &[
                    ("token", text(refresh_token)?),
                    ("token_type_hint", "refresh_token"),
                ],
            )
            .await?;
        match (answer.status(), error_code(&answer)) {
            (StatusCode::OK, _) => Ok(true),
            // RFC 7009 section 2.2.1: the issuer does not revoke this kind of token.
            (StatusCode::BAD_REQUEST, Some("unsupported_token_type")) => Ok(false),
            (status, code) => Err(self.failure(status, code)),
        }
    }

    async fn tokens(&self, grant: &[(&str, &str)]) -> Result<TokenAnswer> {
        let metadata = self.issuer.metadata().await?;
        let endpoint = metadata.token_endpoint.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::ConfigInvalid,
                format!("issuer {} has no token endpoint", metadata.issuer),
            )
        })?;
        let answer = self
            .post(&metadata, endpoint, grant)
            .await
            .map_err(|failure| failure.with_retryable(false))?;
        match answer.status() {
            StatusCode::OK => TokenAnswer::parse(answer.body()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Unexpected,
                    format!(
                        "what issuer {} answers is no token answer (RFC 6749 section 5.1)",
                        metadata.issuer
                    ),
                )
            }),
            status => Err(self.failure(status, error_code(&answer)).with_retryable(false)),
        }
    }

    /// Posts a form with the client's authentication (RFC 6749 section 2.3.1).
    async fn post(
        &self,
        metadata: &IssuerMetadata,
        endpoint: &Url,
        fields: &[(&str, &str)],
    ) -> Result<Response<Bytes>> {
        let mut fields = fields.to_vec();
        let mut authorization = None;
        match &self.client_secret {
            Some(secret) if metadata.secret_in_form_only => {
                fields.push(("client_id", self.client_id.as_str()));
                fields.push(("client_secret", text(secret)?));
            }
            Some(secret) => authorization = Some(basic(&self.client_id, secret)?),
            None => fields.push(("client_id", self.client_id.as_str())),
        }
        self.issuer
            .transport()
            .post_form(endpoint, authorization, &fields)
            .await
    }

    fn failure(&self, status: StatusCode, code: Option<&'static str>) -> Error {
        let issuer = self.issuer.issuer();
        match (status.as_u16(), code) {
            (400..=499, Some("invalid_grant")) => Error::new(
                ErrorKind::LoginRequired,
                format!("issuer {issuer} no longer accepts this login: log in again"),
            ),
            (429, _) => Error::new(
                ErrorKind::RateLimited,
                format!("issuer {issuer} asks for fewer requests"),
            ),
            (400..=499, Some(code)) => Error::new(
                ErrorKind::ConfigInvalid,
                format!(
                    "issuer {issuer} refuses client {} ({code}): compare the registration",
                    self.client_id
                ),
            ),
            (status, _) => Error::new(
                ErrorKind::Unavailable,
                format!("the token endpoint of issuer {issuer} answered {status}"),
            ),
        }
    }
}

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
    fn parse(body: &[u8]) -> Option<Self> {
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

/// The error of RFC 6749 section 5.2, as one of the texts that are known; its description is never read.
fn error_code(answer: &Response<Bytes>) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Wire {
        error: String,
    }
    let wire: Wire = serde_json::from_slice(answer.body()).ok()?;
    KNOWN_ERRORS.iter().find(|known| **known == wire.error).copied()
}

/// RFC 6749 section 2.3.1: both halves are form-encoded before they become a user name and a password.
fn basic(client_id: &ClientId, secret: &Secret) -> Result<HeaderValue> {
    let encode = |text: &[u8]| form_urlencoded::byte_serialize(text).collect::<String>();
    let pair = Zeroizing::new(format!(
        "{}:{}",
        encode(client_id.as_str().as_bytes()),
        encode(secret.expose())
    ));
    let line = Zeroizing::new(format!("Basic {}", STANDARD.encode(&*pair)));
    let mut value = HeaderValue::from_str(&line).map_err(|source| {
        Error::new(ErrorKind::ConfigInvalid, "the client secret is no header value").with_source(source)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn text(secret: &Secret) -> Result<&str> {
    secret
        .expose_str()
        .ok_or_else(|| Error::new(ErrorKind::RequestInvalid, "a code or token is not text"))
}

const KNOWN_ERRORS: [&str; 7] = [
    "invalid_grant",
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

    #[test]
    fn halves_of_basic_authentication_are_form_encoded() {
        let header =
            basic(&ClientId::new("a:b c").expect("a client"), &Secret::new("p%+ü")).expect("a header");

        let decoded = STANDARD
            .decode(&header.as_bytes()["Basic ".len()..])
            .expect("base64");
        assert_eq!(decoded, b"a%3Ab+c:p%25%2B%C3%BC");
        assert!(header.is_sensitive());
    }
}
