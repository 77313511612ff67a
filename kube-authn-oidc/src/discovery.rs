//! An issuer and what it publishes about itself (OpenID Connect Discovery 1.0).

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use kube_authn_core::{
    Error, ErrorKind, Issuer, LoginConfig, Result, TlsTrust, Transport, rustls::crypto::CryptoProvider,
};
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};
use url::{Host, Url};

use crate::jwks::{KeyCache, KeySet};

/// An issuer with its metadata and its key set, both fetched when first needed and kept for a while.
///
/// Keys belong to this issuer alone: a key ID of another issuer means nothing here. Clones share what was fetched.
#[derive(Clone)]
pub struct IssuerClient(Arc<Inner>);

struct Inner {
    issuer: Issuer,
    transport: Transport,
    /// What the configuration says in place of a discovery document.
    fixed: Option<Arc<IssuerMetadata>>,
    metadata: RwLock<Option<(Arc<IssuerMetadata>, Instant)>>,
    /// One fetch at a time, and when the last one failed.
    fetching: Mutex<Option<(Error, Instant)>>,
    keys: KeyCache,
}

impl IssuerClient {
    /// An issuer reached over this transport; nothing is fetched yet.
    pub fn new(issuer: Issuer, transport: Transport) -> Self {
        Self::build(issuer, transport, None)
    }

    /// An issuer without discovery, whose key set is known to be at this URL; it has no other endpoint.
    pub fn with_key_set(issuer: Issuer, jwks_uri: Url, transport: Transport) -> Self {
        let metadata = IssuerMetadata {
            issuer: issuer.clone(),
            authorization_endpoint: None,
            token_endpoint: None,
            jwks_uri,
            revocation_endpoint: None,
            names_issuer_in_answers: false,
            secret_in_form_only: false,
        };
        Self::build(issuer, transport, Some(Arc::new(metadata)))
    }

    fn build(issuer: Issuer, transport: Transport, fixed: Option<Arc<IssuerMetadata>>) -> Self {
        Self(Arc::new(Inner {
            issuer,
            transport,
            fixed,
            metadata: RwLock::default(),
            fetching: Mutex::default(),
            keys: KeyCache::default(),
        }))
    }

    /// The issuer of a login, reached with the login's CA.
    ///
    /// # Errors
    /// `ConfigInvalid` if the CA cannot be read or holds no certificate.
    pub fn of_login(login: &LoginConfig, provider: Arc<CryptoProvider>) -> Result<Self> {
        let transport = Transport::new(provider, TlsTrust::new(login.ca.clone()))?;
        Ok(Self::new(login.issuer.clone(), transport))
    }

    /// The issuer identifier.
    pub fn issuer(&self) -> &Issuer {
        &self.0.issuer
    }

    /// The transport that reaches the issuer.
    pub fn transport(&self) -> &Transport {
        &self.0.transport
    }

    /// The issuer's metadata, at most an hour old; if the issuer is down, what it last said.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if the issuer does not answer and never did; `ConfigInvalid` if what answers is not this
    /// issuer or names an endpoint without https.
    pub async fn metadata(&self) -> Result<Arc<IssuerMetadata>> {
        if let Some(fixed) = &self.0.fixed {
            return Ok(fixed.clone());
        }
        if let Some((metadata, fetched)) = self.known()
            && fetched.elapsed() < METADATA_FRESH
        {
            return Ok(metadata);
        }
        // A task of its own: a caller who stops waiting does not stop the fetch that others wait for.
        let client = self.clone();
        tokio::spawn(async move { client.refetch().await })
            .await
            .map_err(|source| {
                Error::new(ErrorKind::Unexpected, "the discovery of the issuer broke off").with_source(source)
            })?
    }

    async fn refetch(&self) -> Result<Arc<IssuerMetadata>> {
        let mut failed = self.0.fetching.lock().await;
        let known = self.known();
        if let Some((metadata, fetched)) = &known
            && fetched.elapsed() < METADATA_FRESH
        {
            return Ok(metadata.clone());
        }
        let answer = match &*failed {
            Some((failure, at)) if at.elapsed() < FAILURE_KEPT => Err(failure.clone()),
            _ => self.discover().await.map_err(remembered),
        };
        match (answer, known) {
            (Ok(metadata), _) => {
                *failed = None;
                let metadata = Arc::new(metadata);
                *self.0.metadata.write().unwrap_or_else(PoisonError::into_inner) =
                    Some((metadata.clone(), Instant::now()));
                Ok(metadata)
            }
            (Err(failure), known) => {
                if failed.as_ref().is_none_or(|(_, at)| at.elapsed() >= FAILURE_KEPT) {
                    *failed = Some((failure.clone(), Instant::now()));
                }
                known.map(|(metadata, _)| metadata).ok_or(failure)
            }
        }
    }

    async fn discover(&self) -> Result<IssuerMetadata> {
        let issuer = self.issuer();
        let url = format!("{}{WELL_KNOWN}", issuer.as_str().trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|source| {
            Error::new(ErrorKind::ConfigInvalid, "the issuer is no URL").with_source(source)
        })?;
        let answer = self.fetch(&url, "discovery").await?;
        IssuerMetadata::parse(issuer, &answer)
    }

    /// The body that a GET of one of the issuer's documents gives.
    pub(crate) async fn fetch(&self, url: &Url, what: &str) -> Result<bytes::Bytes> {
        let answer = self.transport().get(url).await?;
        match answer.status() {
            http::StatusCode::OK => Ok(answer.into_body()),
            status => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the {what} of issuer {} failed: {} answered {}",
                    self.issuer(),
                    url.host_str().unwrap_or_default(),
                    status.as_u16()
                ),
            )),
        }
    }

    /// The key set, fetched now.
    pub(crate) async fn fetch_keys(&self) -> Result<KeySet> {
        let metadata = self.metadata().await?;
        KeySet::parse(self.issuer(), &self.fetch(&metadata.jwks_uri, "key set").await?)
    }

    pub(crate) fn keys(&self) -> &KeyCache {
        &self.0.keys
    }

    fn known(&self) -> Option<(Arc<IssuerMetadata>, Instant)> {
        self.0
            .metadata
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl fmt::Debug for IssuerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerClient")
            .field("issuer", &self.0.issuer)
            .finish_non_exhaustive()
    }
}

/// What an issuer publishes (OpenID Connect Discovery 1.0 section 3, RFC 8414, RFC 9207), as far as it is used here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IssuerMetadata {
    /// The issuer, byte for byte the one that was asked for.
    pub issuer: Issuer,
    /// Where a user logs in; an issuer of machine tokens has none.
    pub authorization_endpoint: Option<Url>,
    /// Where codes and refresh tokens are exchanged.
    pub token_endpoint: Option<Url>,
    /// Where the keys are.
    pub jwks_uri: Url,
    /// Where tokens are revoked (RFC 7009).
    pub revocation_endpoint: Option<Url>,
    /// Whether every authorization answer names its issuer in `iss` (RFC 9207 section 3).
    pub names_issuer_in_answers: bool,
    /// Whether the token endpoint takes a client secret in the form only, not in the `Authorization` header.
    pub secret_in_form_only: bool,
}

impl IssuerMetadata {
    fn parse(issuer: &Issuer, document: &[u8]) -> Result<Self> {
        let malformed = |why: &str| {
            Error::new(
                ErrorKind::ConfigInvalid,
                format!("the discovery document of issuer {issuer} cannot be used: {why}"),
            )
        };
        // The parser's own error may quote the document, so it is not kept.
        let wire: WireMetadata = serde_json::from_slice(document)
            .map_err(|_| malformed("it is not the JSON of OpenID Connect Discovery"))?;
        if wire.issuer != issuer.as_str() {
            return Err(malformed(
                "it names another issuer: configure the issuer exactly as it names itself, trailing slash included",
            ));
        }
        let endpoint = |name: &str, url: Option<String>| match url {
            None => Ok(None),
            Some(url) => match Url::parse(&url) {
                Ok(url) if may_call(issuer, &url) => Ok(Some(url)),
                _ => Err(malformed(&format!("{name} is not an https URL"))),
            },
        };
        let methods = wire.token_endpoint_auth_methods_supported;
        let offers = |method: &str| methods.iter().flatten().any(|offered| offered == method);
        Ok(Self {
            issuer: issuer.clone(),
            authorization_endpoint: endpoint("authorization_endpoint", wire.authorization_endpoint)?,
            token_endpoint: endpoint("token_endpoint", wire.token_endpoint)?,
            jwks_uri: endpoint("jwks_uri", wire.jwks_uri)?.ok_or_else(|| malformed("it has no jwks_uri"))?,
            revocation_endpoint: endpoint("revocation_endpoint", wire.revocation_endpoint)?,
            names_issuer_in_answers: wire.authorization_response_iss_parameter_supported,
            secret_in_form_only: offers("client_secret_post") && !offers("client_secret_basic"),
        })
    }
}

/// A failure that answers everybody for a while says for how long.
pub(crate) fn remembered(failure: Error) -> Error {
    match failure.is_retryable() {
        true => failure.with_retry_after(FAILURE_KEPT),
        false => failure,
    }
}

/// https always; http on loopback only if the issuer itself is reached that way.
fn may_call(issuer: &Issuer, url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    let plain = issuer.as_str().starts_with("http://");
    let clean = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    clean && (url.scheme() == "https" || (url.scheme() == "http" && plain && loopback))
}

#[derive(Deserialize)]
struct WireMetadata {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    jwks_uri: Option<String>,
    revocation_endpoint: Option<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

/// OpenID Connect Discovery 1.0 section 4: appended to the issuer without its trailing slash.
const WELL_KNOWN: &str = "/.well-known/openid-configuration";
/// Endpoints move with deployments, not with requests.
const METADATA_FRESH: Duration = Duration::from_secs(3600);
/// How long a failed fetch answers everybody: an issuer that is down is not asked by every request.
pub(crate) const FAILURE_KEPT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(issuer: &str, document: &str) -> Result<IssuerMetadata> {
        IssuerMetadata::parse(&Issuer::new(issuer).expect("an issuer"), document.as_bytes())
    }

    #[test]
    fn issuer_with_or_without_its_slash_is_another_issuer() {
        let document = r#"{"issuer":"https://a.example/","jwks_uri":"https://a.example/jwks"}"#;

        assert!(parse("https://a.example/", document).is_ok());
        let error = parse("https://a.example", document).expect_err("another issuer");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    }

    #[test]
    fn endpoint_without_https_is_refused() {
        for bad in [
            "http://a.example/jwks",
            "http://127.0.0.1/jwks",
            "file:///jwks",
            "https://u:p@a.example/",
            "/jwks",
        ] {
            let document = format!(r#"{{"issuer":"https://a.example","jwks_uri":"{bad}"}}"#);

            assert!(parse("https://a.example", &document).is_err(), "{bad}");
        }
        let document = r#"{"issuer":"http://127.0.0.1:1","jwks_uri":"http://127.0.0.1:1/jwks"}"#;
        assert!(parse("http://127.0.0.1:1", document).is_ok());
        let document = r#"{"issuer":"http://127.0.0.1:1","jwks_uri":"http://a.example/jwks"}"#;
        assert!(parse("http://127.0.0.1:1", document).is_err());
    }

    #[test]
    fn error_quotes_nothing_of_the_document() {
        let error = parse("https://a.example", r#"{"issuer":7,"x":"canary"}"#).expect_err("malformed");

        assert!(!format!("{error} {error:?}").contains("canary"));
    }
}
