//! Tokens that the caller offers with a request, passed on.

use kube_authn_core::{Clock, Credential, Error, ErrorKind, MAX_JWT_BYTES, Result, Secret, UnverifiedClaims};

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
