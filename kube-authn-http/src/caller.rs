//! Who is calling: HTTP request → [`Caller`].

mod backstage;
mod bearer;
mod header;
mod oidc;

use std::{fmt, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use axum::extract::ConnectInfo;
use http::{
    Extensions, HeaderMap, HeaderName,
    header::{HOST, ORIGIN},
    request::Parts,
};
use kube_authn_core::{Error, ErrorKind, Principal, Result};
use url::Url;

pub use self::{
    backstage::BackstageCallers,
    bearer::BearerToken,
    header::HeaderCallers,
    oidc::{OidcCallers, PrincipalMapping},
};

/// An authenticated caller.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Caller {
    /// On whose behalf the request is made.
    pub principal: Principal,
    /// The service that calls on the user's behalf, if one does.
    pub actor: Option<Principal>,
    /// Whether the credential may only read: a Backstage limited user token.
    pub limited: bool,
}

impl Caller {
    /// A caller who speaks for itself.
    pub fn new(principal: Principal) -> Self {
        Self {
            principal,
            actor: None,
            limited: false,
        }
    }

    /// Names the service that calls on the principal's behalf.
    pub fn with_actor(mut self, actor: Principal) -> Self {
        self.actor = Some(actor);
        self
    }

    /// Says that the credential may only read.
    pub fn limited(mut self) -> Self {
        self.limited = true;
        self
    }
}

/// What an authenticator may look at. `Debug` shows the names of header lines and no value.
#[non_exhaustive]
pub struct CallerRequest<'a> {
    /// The request's header lines.
    pub headers: &'a HeaderMap,
    /// The name and port that the request is for: `:authority`, else `Host`.
    pub host: Option<&'a str>,
    /// The address of the connection's other end; `None` if the server does not tell (axum's `ConnectInfo`).
    pub peer: Option<SocketAddr>,
    /// The bearer token in `Authorization`, if there is one.
    pub bearer: Option<BearerToken<'a>>,
    /// What the server and the host program's own layers left beside the request: its session, say.
    pub extensions: &'a Extensions,
}

impl<'a> CallerRequest<'a> {
    /// What the head of a request, and what stands beside it, says.
    ///
    /// # Errors
    /// `CallerUnknown` if `Authorization` stands there twice, or holds something that no bearer token can be.
    pub fn new(head: &'a Parts) -> Result<Self> {
        let (headers, extensions) = (&head.headers, &head.extensions);
        let authority = head.uri.authority().map(http::uri::Authority::as_str);
        Ok(Self {
            headers,
            host: authority.or_else(|| headers.get(HOST)?.to_str().ok()),
            peer: extensions
                .get::<ConnectInfo<SocketAddr>>()
                .map(|connection| connection.0),
            bearer: BearerToken::of(headers)?,
            extensions,
        })
    }
}

impl CallerRequest<'_> {
    /// Whether a page of another site made a browser send this: then a credential that browsers attach by themselves, such as
    /// a cookie or what a gateway asked for, says nothing about who wants it.
    ///
    /// `Sec-Fetch-Site` decides, where it is there, by anything but `same-origin` and `none`
    /// (<https://www.w3.org/TR/fetch-metadata/>); else `Origin` does, by another host or port than the request is for. Programs
    /// such as kubectl send neither, nor does an old browser that follows a link or fetches an image: a `GET` without both
    /// must change nothing.
    pub fn is_cross_site(&self) -> bool {
        if self.headers.contains_key(SEC_FETCH_SITE) {
            return !matches!(self.only(SEC_FETCH_SITE), Some("same-origin" | "none"));
        }
        self.headers.contains_key(ORIGIN) && !self.is_of_own_origin()
    }

    fn is_of_own_origin(&self) -> bool {
        let origin = self
            .only(ORIGIN.as_str())
            .and_then(|origin| Url::parse(origin).ok());
        let (Some(origin), Some(host)) = (origin, self.host) else {
            return false;
        };
        // TLS may end in front of us: the scheme is taken from the page, and with it the port that nobody writes.
        let own = Url::parse(&format!("{}://{host}/", origin.scheme()));
        own.is_ok_and(|own| own.origin() == origin.origin())
    }

    /// The line of this name, unless there are several.
    fn only(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.get_all(name).iter();
        match (lines.next(), lines.next()) {
            (Some(line), None) => line.to_str().ok(),
            _ => None,
        }
    }
}

impl fmt::Debug for CallerRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerRequest")
            .field("headers", &self.headers.keys())
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Verifies one kind of caller credential.
#[async_trait]
pub trait CallerAuthenticator: fmt::Debug + Send + Sync + 'static {
    /// The caller, or `None` if the request carries no credential of this kind.
    ///
    /// # Errors
    /// `CallerUnknown` if it carries one that is not valid; `Unavailable` or `Timeout` if it cannot be verified now.
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>>;

    /// The headers of its own that it believes, none by default. What they say is meant for us: no cluster gets them, whoever
    /// sent them. `Authorization` and `Cookie` go anyway.
    fn headers(&self) -> Vec<HeaderName> {
        Vec::new()
    }
}

/// Authenticators in the order in which they are tried: the first that accepts a credential decides.
#[derive(Clone, Debug, Default)]
pub struct Callers {
    authenticators: Vec<Arc<dyn CallerAuthenticator>>,
    headers: Arc<[HeaderName]>,
}

impl Callers {
    /// Nobody is known: every request is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an authenticator behind the others.
    pub fn with(mut self, authenticator: impl CallerAuthenticator) -> Self {
        self.headers = self
            .headers
            .iter()
            .cloned()
            .chain(authenticator.headers())
            .collect();
        self.authenticators.push(Arc::new(authenticator));
        self
    }

    /// Whether there is no authenticator, so that every request is refused.
    pub fn is_empty(&self) -> bool {
        self.authenticators.is_empty()
    }

    /// The headers that authenticators believe, which are for nobody behind us.
    pub(crate) fn headers(&self) -> Arc<[HeaderName]> {
        Arc::clone(&self.headers)
    }

    /// The caller of a request.
    ///
    /// # Errors
    /// `CallerUnknown` if nobody is known by it; else that of the first authenticator that refused.
    pub async fn authenticate(&self, head: &Parts) -> Result<Caller> {
        let request = CallerRequest::new(head)?;
        let mut refused = None;
        for authenticator in &self.authenticators {
            match authenticator.authenticate(&request).await {
                Ok(Some(caller)) => return Ok(caller),
                Ok(None) => {}
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        let error = refused.unwrap_or_else(|| match request.bearer {
            Some(_) => Error::new(ErrorKind::CallerUnknown, ILLEGAL_TOKEN),
            None => Error::new(ErrorKind::CallerUnknown, MISSING_CREDENTIALS),
        });
        tracing::debug!(%error, "caller refused");
        Err(error)
    }
}

/// A token of a known kind that did not verify; whatever kept us from verifying it is passed on as it is.
fn illegal(reason: Error) -> Error {
    match reason.kind() {
        ErrorKind::TokenRejected | ErrorKind::RequestInvalid => {
            Error::new(ErrorKind::CallerUnknown, format!("{ILLEGAL_TOKEN}: {reason}")).with_source(reason)
        }
        _ => reason,
    }
}

const SEC_FETCH_SITE: &str = "sec-fetch-site";

// Backstage's own texts.
const MISSING_CREDENTIALS: &str = "Missing credentials";
const ILLEGAL_TOKEN: &str = "Illegal token";

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn is_cross_site(uri: &str, lines: &[(&str, &str)]) -> bool {
        let mut request = Request::get(uri);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        CallerRequest::new(&head).expect("readable").is_cross_site()
    }

    #[test]
    fn page_of_another_site_is_never_taken_for_our_own() {
        let host = ("host", "portal.example.com");
        for lines in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "")],
            &[
                ("sec-fetch-site", "same-origin"),
                ("sec-fetch-site", "cross-site"),
            ],
            &[
                ("sec-fetch-site", "cross-site"),
                ("origin", "https://portal.example.com"),
            ],
            &[("origin", "https://evil.example")],
            &[("origin", "https://portal.example.com.evil.example")],
            &[("origin", "https://portal.example.com:8443")],
            &[("origin", "https://sub.portal.example.com")],
            &[
                ("origin", "https://portal.example.com"),
                ("origin", "https://evil.example"),
            ],
            &[("origin", "null")],
            &[("origin", "")],
            &[("origin", "chrome-extension://portal.example.com")],
        ] {
            let with_host: Vec<_> = [&[host], lines].concat();
            assert!(is_cross_site("/api", &with_host), "{lines:?}");
            assert!(
                is_cross_site("https://portal.example.com/api", lines),
                "{lines:?}"
            );
        }
        assert!(is_cross_site("/api", &[("origin", "https://portal.example.com")]));
    }

    #[test]
    fn own_pages_and_programs_are_of_this_site() {
        for lines in [
            &[][..],
            &[
                ("sec-fetch-site", "same-origin"),
                ("origin", "https://behind.a.gateway"),
            ],
            &[("sec-fetch-site", "none")],
            &[("origin", "https://portal.example.com")],
            &[("origin", "http://portal.example.com")],
            &[("origin", "https://Portal.Example.com:443")],
        ] {
            let with_host: Vec<_> = [&[("host", "portal.example.com")], lines].concat();
            assert!(!is_cross_site("/api", &with_host), "{lines:?}");
            assert!(
                !is_cross_site("https://portal.example.com/api", lines),
                "{lines:?}"
            );
        }
        let with_port = [("host", "localhost:7007"), ("origin", "http://localhost:7007")];
        assert!(!is_cross_site("/api", &with_port));
    }
}
