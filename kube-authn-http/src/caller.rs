//! Who is calling: HTTP request → [`Caller`].

use std::{fmt, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use http::{Extensions, HeaderMap};
use kube_authn_core::{Error, ErrorKind, Principal, Result};

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
}

/// What an authenticator may look at.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallerRequest<'a> {
    /// The request's header lines.
    pub headers: &'a HeaderMap,
    /// The address of the connection's other end; `None` if the server does not tell (axum's `ConnectInfo`).
    pub peer: Option<SocketAddr>,
}

/// Verifies one kind of caller credential.
#[async_trait]
pub trait CallerAuthenticator: fmt::Debug + Send + Sync + 'static {
    /// The caller, or `None` if the request carries no credential of this kind.
    ///
    /// # Errors
    /// `CallerUnknown` if it carries one that is not valid; `Unavailable` or `Timeout` if it cannot be verified now.
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>>;
}

/// Authenticators in the order in which they are tried: the first that knows the credential decides.
#[derive(Clone, Debug, Default)]
pub struct Callers(Vec<Arc<dyn CallerAuthenticator>>);

impl Callers {
    /// Nobody is known: every request is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an authenticator behind the others.
    pub fn with(mut self, authenticator: impl CallerAuthenticator) -> Self {
        self.0.push(Arc::new(authenticator));
        self
    }

    /// The caller of a request.
    ///
    /// # Errors
    /// `CallerUnknown` if nobody is known by it; else that of the first authenticator that refused.
    pub async fn authenticate(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller> {
        let peer = extensions
            .get::<axum::extract::ConnectInfo<SocketAddr>>()
            .map(|info| info.0);
        let request = CallerRequest { headers, peer };
        let mut refused = None;
        for authenticator in &self.0 {
            match authenticator.authenticate(&request).await {
                Ok(Some(caller)) => return Ok(caller),
                Ok(None) => {}
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        Err(refused.unwrap_or_else(|| Error::new(ErrorKind::CallerUnknown, "Missing credentials")))
    }
}
