//! The calls to Google: a grant each for a key and for a login, and the metadata server.

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use kube_authn_core::{
    CaBundle, Clock, Secret, TlsTrust, Transport,
    bytes::Bytes,
    http::{Request, Response, StatusCode},
    rustls::{SignatureScheme, crypto::CryptoProvider},
    serde_json::{self, Value, json},
};
use tokio::sync::OnceCell;
use url::Url;

#[cfg(feature = "google-federation")]
use super::executable::Executables;
use super::{
    account::{AuthorizedUser, Fields, ServiceAccountKey},
    error::{GoogleError, known_code},
};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scopes {
    /// Clusters: without `userinfo.email` the API server sees a number, not the e-mail address.
    Clusters,
    /// Asking for a token of another account.
    #[cfg_attr(
        not(feature = "google-federation"),
        allow(dead_code, reason = "only impersonation asks for it")
    )]
    Impersonation,
}

impl Scopes {
    pub(super) fn list(self) -> &'static [&'static str] {
        match self {
            Self::Clusters => &[
                "https://www.googleapis.com/auth/cloud-platform",
                "https://www.googleapis.com/auth/userinfo.email",
            ],
            Self::Impersonation => &["https://www.googleapis.com/auth/iam"],
        }
    }
}

/// A token as it comes from Google.
pub(super) struct AccessToken {
    pub(super) token: Secret,
    pub(super) expires_at: Timestamp,
}

/// Our way to Google. Clones share its TLS settings, which are made when they are needed first.
#[derive(Clone)]
pub(super) struct Calls {
    crypto: Arc<CryptoProvider>,
    transport: Arc<OnceCell<Transport>>,
    #[cfg(feature = "google-federation")]
    pub(super) executables: Executables,
}

impl Calls {
    #[cfg_attr(
        not(feature = "google-federation"),
        allow(unused_variables, reason = "only subjects of federation look there")
    )]
    pub(super) fn new(crypto: Arc<CryptoProvider>, env: &impl Fn(&str) -> Option<String>) -> Self {
        Self {
            crypto,
            transport: Arc::default(),
            #[cfg(feature = "google-federation")]
            executables: Executables::new(env(OPT_IN).as_deref() == Some("1")),
        }
    }

    pub(super) async fn transport(&self) -> Result<&Transport, GoogleError> {
        let make = async || {
            let crypto = self.crypto.clone();
            // The system's certificates are read from disk.
            let made =
                tokio::task::spawn_blocking(move || Transport::new(crypto, TlsTrust::new(CaBundle::System)));
            made.await.unwrap_or_else(|lost| {
                let text = "the system's certificates could not be read";
                Err(
                    kube_authn_core::Error::new(kube_authn_core::ErrorKind::Unexpected, text)
                        .with_source(lost),
                )
            })
        };
        self.transport
            .get_or_try_init(make)
            .await
            .map_err(GoogleError::Call)
    }

    /// A service account's key: an assertion signed with it is exchanged for a token (RFC 7523).
    pub(super) async fn assertion(
        &self,
        clock: &dyn Clock,
        key: &ServiceAccountKey,
        scopes: Scopes,
    ) -> Result<AccessToken, GoogleError> {
        let assertion = signed(key, scopes, clock.now())?;
        let assertion = assertion.expose_str().unwrap_or_default();
        self.grant(
            clock,
            &key.token_uri,
            &[("grant_type", JWT_BEARER), ("assertion", assertion)],
        )
        .await
    }

    /// A login of gcloud: its refresh token is used (RFC 6749 section 6).
    pub(super) async fn refresh(
        &self,
        clock: &dyn Clock,
        user: &AuthorizedUser,
        scopes: Scopes,
    ) -> Result<AccessToken, GoogleError> {
        let scope = scopes.list().join(" ");
        let mut fields = vec![
            ("grant_type", "refresh_token"),
            ("client_id", &user.client_id),
            (
                "client_secret",
                user.client_secret.expose_str().unwrap_or_default(),
            ),
            (
                "refresh_token",
                user.refresh_token.expose_str().unwrap_or_default(),
            ),
        ];
        // The login was not made for the scope that impersonates alone: its own ones include it.
        if scopes == Scopes::Clusters {
            fields.push(("scope", &scope));
        }
        self.grant(clock, &user.token_uri, &fields).await
    }

    async fn grant(
        &self,
        clock: &dyn Clock,
        url: &Url,
        fields: &[(&str, &str)],
    ) -> Result<AccessToken, GoogleError> {
        let begun = clock.now();
        let transport = self.transport().await?;
        let answer = transport.post_form(url, None, fields).await;
        token(url, &answer.map_err(GoogleError::Call)?, begun)
    }

    /// The service account of this machine or pod.
    pub(super) async fn metadata(
        &self,
        clock: &dyn Clock,
        server: &Url,
        scopes: Scopes,
    ) -> Result<AccessToken, GoogleError> {
        let mut url = server.clone();
        url.set_path(METADATA_TOKEN);
        url.query_pairs_mut()
            .append_pair("scopes", &scopes.list().join(","));
        let request = Request::get(url.as_str()).header(FLAVOR, GOOGLE);
        let request = request
            .body(Bytes::new())
            .map_err(|_| GoogleError::MetadataHost)?;
        let begun = clock.now();
        let transport = self.transport().await?.clone().with_link_local_http();
        let transport = transport.with_timeouts(METADATA_CONNECT, METADATA_TOTAL);
        let answer = transport.send(request).await.map_err(GoogleError::Call)?;
        let flavor = answer.headers().get(FLAVOR).map(|flavor| flavor.as_bytes());
        match flavor == Some(GOOGLE.as_bytes()) {
            true => token(&url, &answer, begun),
            false => Err(GoogleError::NoMetadataServer(host(&url))),
        }
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}

/// A JWS in compact form (RFC 7515 section 7.1).
fn signed(key: &ServiceAccountKey, scopes: Scopes, now: Timestamp) -> Result<Secret, GoogleError> {
    let mut header = json!({ "alg": "RS256", "typ": "JWT" });
    if let Some(id) = &key.key_id {
        header["kid"] = id.as_str().into();
    }
    let claims = json!({
        "iss": key.email,
        "aud": key.token_uri.as_str(),
        "scope": scopes.list().join(" "),
        "iat": now.as_second(),
        "exp": now.as_second() + ASSERTION_SECONDS,
    });
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let text = format!("{header}.{claims}");
    let signer = key.key.choose_scheme(&[RS256]).ok_or(GoogleError::Signature)?;
    let signature = signer.sign(text.as_bytes()).map_err(|_| GoogleError::Signature)?;
    Ok(Secret::new(format!(
        "{text}.{}",
        URL_SAFE_NO_PAD.encode(signature)
    )))
}

/// Reads `access_token` and `expires_in` (RFC 6749 section 5.1). `begun` is when the call began: the token ends no later.
pub(super) fn token(
    url: &Url,
    answer: &Response<Bytes>,
    begun: Timestamp,
) -> Result<AccessToken, GoogleError> {
    let mut fields = answered(url, answer)?;
    let mut read = || {
        let kind = fields.optional_text("token_type").ok()?;
        if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return None;
        }
        let token = Secret::new(fields.text("access_token").ok()?);
        let seconds = match fields.optional("expires_in")? {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let seconds = seconds.filter(|seconds| *seconds > 0)?.min(MAX_TOKEN_SECONDS);
        let expires_at = begun.checked_add(SignedDuration::from_secs(seconds)).ok()?;
        Some(AccessToken { token, expires_at })
    };
    usable(url, read())
}

/// A token that can be sent, or the failure that it is none.
pub(super) fn usable(url: &Url, token: Option<AccessToken>) -> Result<AccessToken, GoogleError> {
    token
        .filter(|found| found.token.len() <= MAX_TOKEN_BYTES && found.token.to_bearer().is_ok())
        .ok_or_else(|| GoogleError::NoToken(host(url)))
}

/// The fields of an answer with status 200; of any other the status and, if it is a registered one, the error code.
pub(super) fn answered(url: &Url, answer: &Response<Bytes>) -> Result<Fields, GoogleError> {
    let body = serde_json::from_slice::<Value>(answer.body());
    if answer.status() == StatusCode::OK {
        let fields = body.ok().and_then(|body| Fields::of(body).ok());
        return fields.ok_or_else(|| GoogleError::NoToken(host(url)));
    }
    let code = body.ok().and_then(|body| {
        let error = &body["error"];
        error
            .as_str()
            .or_else(|| error["status"].as_str())
            .and_then(known_code)
    });
    Err(GoogleError::Refused {
        host: host(url),
        status: answer.status(),
        code,
    })
}

/// `host[:port]`, for errors.
pub(super) fn host(url: &Url) -> String {
    url[url::Position::BeforeHost..url::Position::AfterPort].to_owned()
}

/// `RS256` of RFC 7518 section 3.3.
pub(super) const RS256: SignatureScheme = SignatureScheme::RSA_PKCS1_SHA256;

/// RFC 7523 section 2.1.
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// The longest that Google takes (<https://developers.google.com/identity/protocols/oauth2/service-account>).
const ASSERTION_SECONDS: i64 = 3600;

/// <https://cloud.google.com/compute/docs/access/authenticate-workloads#applications>
const METADATA_TOKEN: &str = "/computeMetadata/v1/instance/service-accounts/default/token";
const FLAVOR: &str = "metadata-flavor";
const GOOGLE: &str = "Google";
/// It is on this machine or one hop away; elsewhere nothing may answer at all.
const METADATA_CONNECT: Duration = Duration::from_secs(2);
/// A new pod's identity takes some seconds to be there.
const METADATA_TOTAL: Duration = Duration::from_secs(10);

/// Google's live an hour, twelve at most; an answer that says more is believed for a day.
const MAX_TOKEN_SECONDS: i64 = 24 * 3600;
/// Google's documented limit is 2,048 bytes, 12 KiB for federated ones.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// What Google's libraries ask for before they start a program.
#[cfg(feature = "google-federation")]
const OPT_IN: &str = "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES";
