//! Tokens that the caller offers with a request, passed on.

use std::{fmt, marker::PhantomData, sync::Arc};

use async_trait::async_trait;
use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, Error, ErrorKind,
    KubernetesAuthProvider, MAX_JWT_BYTES, Metadata, Problem, Result, Secret, SystemClock, UnverifiedClaims,
};

/// What tells strategies apart whose token the caller offers under their own name, `auth.<NAME>`.
pub trait Offered: fmt::Debug + Send + Sync + 'static {
    /// The wire value of `authProvider`.
    const NAME: &'static str;
    /// The vendor's name in the text for a missing token.
    const VENDOR: &'static str;
    /// Where a new token comes from.
    const ISSUER: &'static str;
}

/// The user authenticates with a token that the caller offers under the strategy's own name. Clones share the clock; there
/// is nothing else.
pub struct OfferedTokenProvider<S> {
    clock: Arc<dyn Clock>,
    strategy: PhantomData<S>,
}

impl<S: Offered> OfferedTokenProvider<S> {
    /// The wire value of `authProvider`.
    pub const NAME: &'static str = S::NAME;

    /// With the machine's clock.
    pub fn new() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            strategy: PhantomData,
        }
    }

    /// With another clock.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

impl<S: Offered> Default for OfferedTokenProvider<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Clone for OfferedTokenProvider<S> {
    fn clone(&self) -> Self {
        Self {
            clock: self.clock.clone(),
            strategy: PhantomData,
        }
    }
}

impl<S: Offered> fmt::Debug for OfferedTokenProvider<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfferedTokenProvider")
            .field("name", &S::NAME)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl<S: Offered> KubernetesAuthProvider for OfferedTokenProvider<S> {
    fn name(&self) -> &str {
        S::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Request
    }

    /// A cluster needs no settings for it.
    fn validate(&self, _: &ClusterDetails) -> Vec<Problem> {
        Vec::new()
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let place = format!("auth.{}", S::NAME);
        // Backstage's text for Google.
        let missing = format!("{} token not found under {place} in request body", S::VENDOR);
        let token = present(request.auth.token(S::NAME), &missing)?;
        pass_on(token, &*self.clock, &place, S::ISSUER)
    }

    /// The caller offered this one token; another try would send it again.
    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        false
    }
}

/// The credential that an offered token makes. `place` is where it was offered, `auth.google`, `issuer` where a new one
/// comes from.
///
/// Tokens may be opaque, as Google's are; one that is a JWT ends when it says, and never travels afterwards.
///
/// # Errors
/// `TokenRejected` if it is larger than 16 KiB or cannot stand in a header; `TokenExpired`.
pub(crate) fn pass_on(token: &Secret, clock: &dyn Clock, place: &str, issuer: &str) -> Result<Credential> {
    if token.len() > MAX_JWT_BYTES {
        return Err(Error::new(
            ErrorKind::TokenRejected,
            "the offered token is larger than 16 KiB",
        ));
    }
    let credential = Credential::bearer(token)?;
    let end = UnverifiedClaims::of(token.expose()).and_then(|claims| claims.expires_at());
    let credential = match end {
        Some(end) => credential.with_expires_at(end),
        None => credential,
    };
    match credential.usable(clock.now()) {
        true => Ok(credential),
        false => Err(Error::new(
            ErrorKind::TokenExpired,
            format!("the token under {place} has expired: log in again at {issuer}"),
        )),
    }
}

/// The token, unless it is missing or blank.
///
/// # Errors
/// `LoginRequired` with this text.
pub(crate) fn present<'a>(token: Option<&'a Secret>, missing: &str) -> Result<&'a Secret> {
    token
        .filter(|token| !token.expose().trim_ascii().is_empty())
        .ok_or_else(|| Error::new(ErrorKind::LoginRequired, missing.to_owned()))
}

#[cfg(test)]
mod tests;
