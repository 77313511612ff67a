//! What an API server receives: ready-made header lines and, perhaps, a client certificate. The only writer of
//! identity headers.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use subtle::ConstantTimeEq;

use crate::{Error, ErrorKind, LoginHandle, Result, Secret, UnverifiedClaims, secret::BEARER, token::usable};

mod client_certificate;
mod impersonation;

pub use client_certificate::ClientCertificate;
pub use impersonation::Impersonation;

/// A credential for one API server: a bearer token, a client certificate, or nothing. Clones share it.
///
/// The header lines are made once; applying them to a request copies nothing.
#[derive(Clone)]
pub struct Credential(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    generation: u64,
    authorization: Option<HeaderValue>,
    certificate: Option<ClientCertificate>,
    impersonation: Option<Impersonation>,
    expires_at: Option<Timestamp>,
    refresh_at: Option<Timestamp>,
    login: Option<LoginHandle>,
}

impl Credential {
    /// No credential: the API server sees `system:anonymous`, or a local kubectl proxy adds its own.
    pub fn anonymous() -> Self {
        Self::build(None, None)
    }

    /// A bearer token (RFC 6750).
    ///
    /// # Errors
    /// `TokenRejected` if the token cannot stand in a header.
    pub fn bearer(token: &Secret) -> Result<Self> {
        Ok(Self::build(Some(token.to_bearer()?), None))
    }

    /// An `Authorization` line that the caller brought, scheme included. A bearer token that is a JWT ends when it says.
    ///
    /// # Errors
    /// `TokenRejected` if the line cannot stand in a header.
    #[cfg_attr(
        not(feature = "upstream"),
        allow(dead_code, reason = "only the request path takes such a line")
    )]
    pub(crate) fn verbatim(line: &Secret) -> Result<Self> {
        let credential = Self::build(Some(line.to_header()?), None);
        let end = line
            .expose()
            .strip_prefix(BEARER)
            .and_then(UnverifiedClaims::of)
            .and_then(|claims| claims.expires_at());
        Ok(match end {
            Some(end) => credential.with_expires_at(end),
            None => credential,
        })
    }

    /// A client certificate. Its connections carry nobody's bearer token: the API server would believe the certificate.
    pub fn certificate(certificate: ClientCertificate) -> Self {
        Self::build(None, Some(certificate))
    }

    fn build(authorization: Option<HeaderValue>, certificate: Option<ClientCertificate>) -> Self {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Inner {
            generation,
            authorization,
            certificate,
            impersonation: None,
            expires_at: None,
            refresh_at: None,
            login: None,
        }))
    }

    /// Lets it speak for somebody else. It keeps its generation: what the API server refuses with 401 is what carries the
    /// name, not the name.
    ///
    /// # Errors
    /// `ConfigInvalid` if nothing is sent that could carry the name.
    pub fn with_impersonation(self, impersonation: Impersonation) -> Result<Self> {
        if self.is_anonymous() {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "impersonation needs a credential to carry the user's name, and the carrier sends none",
            ));
        }
        Ok(self.edit(|inner| inner.impersonation = Some(impersonation)))
    }

    /// States the UTC instant from which the API server refuses the credential.
    pub fn with_expires_at(self, expires_at: Timestamp) -> Self {
        self.edit(|inner| inner.expires_at = Some(expires_at))
    }

    /// States the UTC instant from which its source should be asked again, though the credential is good until its end:
    /// a source that may change at any time, such as a file, is looked at more often than its tokens end.
    pub fn with_refresh_at(self, refresh_at: Timestamp) -> Self {
        self.edit(|inner| inner.refresh_at = Some(refresh_at))
    }

    /// Ties the credential to a login: it dies with it.
    pub fn with_login(self, login: LoginHandle) -> Self {
        self.edit(|inner| inner.login = Some(login))
    }

    /// A number that no other credential of this process has: "is it the one that was refused?"
    pub fn generation(&self) -> u64 {
        self.0.generation
    }

    /// UTC instant from which the API server refuses it; `None` if it states no end.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.0.expires_at
    }

    /// UTC instant from which its source should be asked again; `None`: shortly before the end.
    pub fn refresh_at(&self) -> Option<Timestamp> {
        self.0.refresh_at
    }

    /// Whether this token is what it sends; compared in constant time.
    pub fn carries(&self, token: &Secret) -> bool {
        self.0
            .authorization
            .as_ref()
            .and_then(|line| line.as_bytes().strip_prefix(BEARER))
            .is_some_and(|sent| sent.ct_eq(token.expose()).into())
    }

    /// The login that it was made from.
    pub fn login(&self) -> Option<&LoginHandle> {
        self.0.login.as_ref()
    }

    /// The certificate to show in the TLS handshake, if it is one.
    pub fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.0.certificate.as_ref()
    }

    /// Whether nothing is sent.
    pub fn is_anonymous(&self) -> bool {
        self.0.authorization.is_none() && self.0.certificate.is_none()
    }

    /// Whether it is worth sending at this instant: not about to expire, and its login has not ended.
    pub fn usable(&self, now: Timestamp) -> bool {
        let inner = &*self.0;
        inner.expires_at.is_none_or(|end| usable(end, now))
            && inner.login.as_ref().is_none_or(|login| !login.is_ended())
    }

    /// Removes every identity header from a request, then sets this credential's own.
    pub fn apply(&self, headers: &mut HeaderMap) {
        strip_identity(headers);
        if let Some(authorization) = &self.0.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        if let Some(impersonation) = &self.0.impersonation {
            impersonation.apply(headers);
        }
    }

    fn kind(&self) -> &'static str {
        match (&self.0.authorization, &self.0.certificate) {
            (Some(_), _) => "bearer token",
            (None, Some(_)) => "client certificate",
            (None, None) => "anonymous",
        }
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("generation", &self.0.generation)
            .field("kind", &self.kind())
            .field("impersonation", &self.0.impersonation)
            .field("expires_at", &self.0.expires_at)
            .field("login", &self.0.login)
            .finish_non_exhaustive()
    }
}

/// Removes every header by which an API server or something in front of it could be told who is calling.
///
/// `Impersonate-*` and `X-Remote-*` go in any spelling that a gateway may fold into them, underscores included
/// (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/>). So do `Backstage-Kubernetes-Authorization*`,
/// by which a portal's front end offers tokens, those for other clusters among them. Of the WebSocket subprotocols only the
/// one that carries a bearer token goes (`k8s.io/apiserver/pkg/authentication/request/websocket`).
pub fn strip_identity(headers: &mut HeaderMap) {
    let doomed = |name: &str| {
        let folded = |prefix: &str| {
            name.len() >= prefix.len()
                && name
                    .bytes()
                    .zip(prefix.bytes())
                    .all(|(a, b)| a == b || (a == b'_' && b == b'-'))
        };
        matches!(name, "authorization" | "proxy-authorization" | "cookie")
            || IDENTITY_PREFIXES.into_iter().any(folded)
    };
    if headers.keys().any(|name| doomed(name.as_str())) {
        let names: Vec<_> = headers
            .keys()
            .filter(|name| doomed(name.as_str()))
            .cloned()
            .collect();
        for name in names {
            headers.remove(name);
        }
    }
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        strip_bearer_subprotocol(headers);
    }
}

fn strip_bearer_subprotocol(headers: &mut HeaderMap) {
    // Anywhere, not only in front: the API server trims white space of all Unicode first.
    let carries_token = |protocol: &[u8]| {
        protocol
            .windows(BEARER_SUBPROTOCOL.len())
            .any(|part| part.eq_ignore_ascii_case(BEARER_SUBPROTOCOL))
    };
    let lines: Vec<_> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .cloned()
        .collect();
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    for line in lines {
        let kept: Vec<_> = line
            .as_bytes()
            .split(|byte| *byte == b',')
            .filter(|protocol| !carries_token(protocol))
            .collect();
        if let Ok(line) = HeaderValue::from_bytes(kept.join(&b',').trim_ascii())
            && !line.is_empty()
        {
            headers.append(header::SEC_WEBSOCKET_PROTOCOL, line);
        }
    }
}

const IDENTITY_PREFIXES: [&str; 3] = ["impersonate-", "x-remote-", "backstage-kubernetes-authorization"];

/// What follows the dot is base64url of a bearer token.
const BEARER_SUBPROTOCOL: &[u8] = b"base64url.bearer.authorization.k8s.io.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoginId;

    #[test]
    fn client_sent_identity_headers_never_survive() {
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "cookie",
            "proxy-authorization",
            "impersonate-user",
            "impersonate_user",
            "impersonate-extra-scopes",
            "x-remote-user",
            "x_remote-group",
            "x-remote-extra-a",
        ] {
            headers.append(name, HeaderValue::from_static("root"));
            headers.append(name, HeaderValue::from_static("other"));
        }
        headers.insert("accept", HeaderValue::from_static("application/json"));

        Credential::bearer(&Secret::new("t"))
            .expect("a credential")
            .apply(&mut headers);

        assert_eq!(headers.len(), 2, "{headers:?}");
        assert_eq!(headers[header::AUTHORIZATION], "Bearer t");
    }

    #[test]
    fn token_offered_for_one_cluster_never_reaches_another() {
        let mut headers = HeaderMap::new();
        for name in [
            "backstage-kubernetes-authorization",
            "backstage-kubernetes-authorization-google",
            "Backstage-Kubernetes-Authorization-oidc-corpsso",
            "backstage_kubernetes_authorization_aks",
        ] {
            let name = header::HeaderName::try_from(name).expect("a name");
            headers.append(name, HeaderValue::from_static("canary"));
        }

        strip_identity(&mut headers);

        assert!(headers.is_empty(), "{headers:?}");
    }

    #[test]
    fn bearer_subprotocol_of_a_client_never_survives() {
        let mut headers = HeaderMap::new();
        headers.append(
            "sec-websocket-protocol",
            HeaderValue::from_static("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.Y2FuYXJ5"),
        );
        headers.append(
            "sec-websocket-protocol",
            HeaderValue::from_static("BASE64URL.bearer.authorization.k8s.io.Y2FuYXJ5"),
        );

        for space in ["\u{a0}", "\u{85}", "\u{2003}", "\t"] {
            let hidden = format!("{space}base64url.bearer.authorization.k8s.io.Y2FuYXJ5");
            headers.append(
                "sec-websocket-protocol",
                HeaderValue::from_bytes(hidden.as_bytes()).expect("a header"),
            );
        }

        strip_identity(&mut headers);

        let kept: Vec<_> = headers.get_all("sec-websocket-protocol").iter().collect();
        assert_eq!(kept, ["v5.channel.k8s.io"]);
    }

    #[test]
    fn credential_dies_with_its_login() {
        let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
        let credential = Credential::anonymous().with_login(login.clone());
        assert!(credential.usable(Timestamp::UNIX_EPOCH));

        login.end();

        assert!(!credential.clone().usable(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn credential_carries_its_token_and_no_other() {
        let credential = Credential::bearer(&Secret::new("abc")).expect("a credential");

        let carried = |token| credential.carries(&Secret::new(token));
        assert!(carried("abc"));
        assert!(!carried("abd") && !carried("ab") && !carried(""));
        assert!(!Credential::anonymous().carries(&Secret::new("")));
    }

    #[test]
    fn offered_line_is_sent_as_it_is_and_ends_with_its_token() {
        // {"alg":"none"} . {"exp":1}
        let jwt = "Bearer eyJhbGciOiJub25lIn0.eyJleHAiOjF9.x";
        let verbatim = |line: &str| Credential::verbatim(&Secret::new(line)).expect("a credential");
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer caller"));

        verbatim("Basic  YTpi").apply(&mut headers);

        assert_eq!(headers[header::AUTHORIZATION], "Basic  YTpi");
        assert!(headers[header::AUTHORIZATION].is_sensitive());
        assert_eq!(verbatim("Basic  YTpi").expires_at(), None);
        assert_eq!(verbatim(jwt).expires_at(), Timestamp::from_second(1).ok());
        assert!(Credential::verbatim(&Secret::new("Bearer a\r\nImpersonate-User: b")).is_err());
    }

    #[test]
    fn debug_of_credential_shows_no_secret() {
        for credential in [
            Credential::bearer(&Secret::new("canary")),
            Credential::verbatim(&Secret::new("Basic canary")),
        ] {
            assert!(!format!("{:?}", credential.expect("a credential")).contains("canary"));
        }
    }
}
