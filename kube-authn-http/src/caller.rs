//! Who is calling: HTTP request → [`Caller`].

mod backstage;
mod bearer;
mod header;
mod oidc;

use std::{fmt, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use axum::extract::ConnectInfo;
use http::{Extensions, HeaderMap};
use kube_authn_core::{Error, ErrorKind, Principal, Result};

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

/// What an authenticator may look at.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallerRequest<'a> {
    /// The request's header lines.
    pub headers: &'a HeaderMap,
    /// The address of the connection's other end; `None` if the server does not tell (axum's `ConnectInfo`).
    pub peer: Option<SocketAddr>,
    /// The bearer token in `Authorization`, if there is one.
    pub bearer: Option<BearerToken<'a>>,
    /// What the server and the host program's own layers left beside the request: its session, say.
    pub extensions: &'a Extensions,
}

impl<'a> CallerRequest<'a> {
    /// What these header lines, and what stands beside them, say.
    ///
    /// # Errors
    /// `CallerUnknown` if `Authorization` stands there twice, or holds something that no bearer token can be.
    pub fn new(headers: &'a HeaderMap, extensions: &'a Extensions) -> Result<Self> {
        Ok(Self {
            headers,
            peer: extensions
                .get::<ConnectInfo<SocketAddr>>()
                .map(|connection| connection.0),
            bearer: BearerToken::of(headers)?,
            extensions,
        })
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
}

/// Authenticators in the order in which they are tried: the first that accepts a credential decides.
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

    /// Whether there is no authenticator, so that every request is refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The caller of a request.
    ///
    /// # Errors
    /// `CallerUnknown` if nobody is known by it; else that of the first authenticator that refused.
    pub async fn authenticate(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller> {
        let request = CallerRequest::new(headers, extensions)?;
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

// Backstage's own texts.
const MISSING_CREDENTIALS: &str = "Missing credentials";
const ILLEGAL_TOKEN: &str = "Illegal token";
