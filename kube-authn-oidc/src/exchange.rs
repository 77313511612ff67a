//! The token endpoint: codes and refresh tokens become tokens, tokens of one audience become tokens of another, tokens are
//! revoked (RFC 6749 sections 4.1.3 and 6, RFC 8693, RFC 7009).

mod answer;

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use kube_authn_core::{ClientId, Error, ErrorKind, Result, Secret, TokenForCluster};
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

pub use self::answer::TokenAnswer;
use self::answer::{ACCESS_TOKEN, ID_TOKEN, error_code, exchanged};
use crate::{
    authorize::{AuthorizationCode, AuthorizationRequest},
    discovery::{IssuerClient, IssuerMetadata},
};

/// A client of an issuer's token endpoint. Clones share the issuer.
///
/// Nothing here is ever sent twice: a code or a rotating refresh token may be spent although the answer was lost. So once a
/// form was on its way, no error of [`TokenClient::exchange`] says that it can be tried again, and a [`RefreshFailure`] says
/// what became of the refresh token.
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

    /// The longest that one refresh takes once the issuer's metadata is known: who marks a refresh token as being spent marks
    /// it for this long.
    pub fn longest_call(&self) -> Duration {
        self.issuer.transport().connect_timeout() + REFRESH_PATIENCE
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
    /// What it says of the refresh token: gone, as it was, or perhaps spent.
    pub async fn refresh(&self, refresh_token: &Secret) -> Result<TokenAnswer, RefreshFailure> {
        let ready = async {
            let metadata = self.issuer.metadata().await?;
            let connection = self
                .issuer
                .transport()
                .connect(token_endpoint(&metadata)?)
                .await?;
            let fields = [
                ("grant_type", "refresh_token"),
                ("refresh_token", text(refresh_token)?),
            ];
            Ok((connection, self.authenticated(&metadata, &fields)?))
        };
        let (connection, form) = ready.await.map_err(RefreshFailure::Unspent)?;
        let answer = connection
            .post_form(form.authorization, &form.fields, REFRESH_PATIENCE)
            .await
            .map_err(|failure| RefreshFailure::Unknown(failure.with_retryable(false)))?;
        match (answer.status(), error_code(&answer)) {
            (StatusCode::OK, _) => TokenAnswer::parse(answer.body()).ok_or_else(|| {
                RefreshFailure::Unknown(self.no_answer("token answer (RFC 6749 section 5.1)"))
            }),
            (status, Some("invalid_grant")) if status.is_client_error() => Err(RefreshFailure::Withdrawn(
                self.failure(status, Some("invalid_grant")),
            )),
            // An issuer that says so gave nothing. Should it have spent the token before it failed, it says that next time.
            (status, code) => Err(RefreshFailure::Unspent(self.failure(status, code))),
        }
    }

    /// Exchanges a token of a login for one of this audience (RFC 8693): an ID token for an ID token, an access token for an
    /// access token. Nothing in it is verified.
    ///
    /// # Errors
    /// `ConfigInvalid` with the issuer's error code if it refuses; `LoginRequired` if it no longer accepts the token;
    /// `Unavailable`, `RateLimited` or `Timeout` if it did not answer; `Unexpected` for an answer that is none.
    pub async fn exchange_token(
        &self,
        token: &Secret,
        kind: TokenForCluster,
        audience: &ClientId,
    ) -> Result<Secret> {
        let metadata = self.issuer.metadata().await?;
        let kind = match kind {
            TokenForCluster::AccessToken => ACCESS_TOKEN,
            _ => ID_TOKEN,
        };
        let fields = [
            ("grant_type", TOKEN_EXCHANGE),
            ("subject_token", text(token)?),
            ("subject_token_type", kind),
            ("requested_token_type", kind),
            ("audience", audience.as_str()),
        ];
        let answer = self.post(&metadata, token_endpoint(&metadata)?, &fields).await?;
        match (answer.status(), error_code(&answer)) {
            (StatusCode::OK, _) => exchanged(answer.body())
                .ok_or_else(|| self.no_answer("answer to a token exchange (RFC 8693 section 2.2.1)")),
            (status, Some(code)) if status.is_client_error() && code != "invalid_grant" => Err(Error::new(
                ErrorKind::ConfigInvalid,
                format!(
                    "issuer {} makes no token for audience {audience} ({code}): allow client {} to exchange its tokens for it",
                    metadata.issuer, self.client_id
                ),
            )),
            (status, code) => Err(self.failure(status, code)),
        }
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
        let answer = self
            .post(&metadata, token_endpoint(&metadata)?, grant)
            .await
            .map_err(|failure| failure.with_retryable(false))?;
        match answer.status() {
            StatusCode::OK => TokenAnswer::parse(answer.body())
                .ok_or_else(|| self.no_answer("token answer (RFC 6749 section 5.1)")),
            status => Err(self.failure(status, error_code(&answer)).with_retryable(false)),
        }
    }

    /// Posts a form with the client's authentication.
    async fn post(
        &self,
        metadata: &IssuerMetadata,
        endpoint: &Url,
        fields: &[(&str, &str)],
    ) -> Result<Response<Bytes>> {
        let form = self.authenticated(metadata, fields)?;
        self.issuer
            .transport()
            .post_form(endpoint, form.authorization, &form.fields)
            .await
    }

    /// The form with the client's authentication (RFC 6749 section 2.3.1).
    fn authenticated<'a>(
        &'a self,
        metadata: &IssuerMetadata,
        fields: &[(&'a str, &'a str)],
    ) -> Result<Form<'a>> {
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
        Ok(Form {
            authorization,
            fields,
        })
    }

    fn no_answer(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Unexpected,
            format!("what issuer {} answers is no {what}", self.issuer.issuer()),
        )
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

/// A form with the client's authentication.
struct Form<'a> {
    authorization: Option<HeaderValue>,
    fields: Vec<(&'a str, &'a str)>,
}

/// Why a refresh gave no tokens, by what that says of the refresh token.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RefreshFailure {
    /// The issuer said `invalid_grant`: the grant is gone, and the login with it.
    Withdrawn(Error),
    /// The refresh token is as it was: nothing was sent, or the issuer answered that it gives nothing.
    Unspent(Error),
    /// The form was on its way, and no answer came that can be read: the refresh token may be spent.
    Unknown(Error),
}

impl RefreshFailure {
    /// What went wrong: `LoginRequired` for [`RefreshFailure::Withdrawn`] and for nothing else.
    pub fn error(&self) -> &Error {
        let (Self::Withdrawn(error) | Self::Unspent(error) | Self::Unknown(error)) = self;
        error
    }
}

impl From<RefreshFailure> for Error {
    fn from(failure: RefreshFailure) -> Self {
        failure.error().clone()
    }
}

fn token_endpoint(metadata: &IssuerMetadata) -> Result<&Url> {
    metadata.token_endpoint.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::ConfigInvalid,
            format!("issuer {} has no token endpoint", metadata.issuer),
        )
    })
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

/// Issuers that take half a minute exist; whoever gives up on one earlier may have spent the refresh token for nothing.
const REFRESH_PATIENCE: Duration = Duration::from_secs(35);
/// RFC 8693 sections 2.1 and 3.
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

#[cfg(test)]
mod tests {
    use super::*;

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
