//! Verification of ID tokens (OpenID Connect Core section 3.1.3.7): signature, then the claims, one after the other.

use std::{fmt, sync::Arc, time::Duration};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use kube_authn_core::{
    ClientId, Clock, Error, ErrorKind, Issuer, Lifetimes, Result, Secret, Subject, VerifiedEmail,
};
use serde_json::Value;
use subtle::ConstantTimeEq;

use crate::{
    authorize::Nonce,
    discovery::IssuerClient,
    jwks::{SignatureAlgorithm, Verdict},
    verify::{claims::Claims, jws::Jws},
};

pub(crate) mod claims;
pub(crate) mod jws;
mod typed;

pub use self::typed::{TypedToken, UnverifiedToken};

/// Verifies tokens of one issuer.
///
/// Nothing is remembered between calls but the issuer's keys: who sees the same token again and again remembers the
/// outcome himself. Clones share the issuer.
#[derive(Clone, Debug)]
pub struct IdTokenVerifier {
    issuer: IssuerClient,
    clock: Arc<dyn Clock>,
    client_id: Option<ClientId>,
    lifetimes: Lifetimes,
    verify_signature: bool,
    accept_ended: bool,
}

impl IdTokenVerifier {
    /// A verifier for tokens of this issuer, for any client.
    pub fn new(issuer: IssuerClient, clock: Arc<dyn Clock>) -> Self {
        Self {
            issuer,
            clock,
            client_id: None,
            lifetimes: Lifetimes::default(),
            verify_signature: true,
            accept_ended: false,
        }
    }

    /// Accepts only tokens that are issued for this client.
    pub fn with_client_id(mut self, client_id: ClientId) -> Self {
        self.client_id = Some(client_id);
        self
    }

    /// Sets what is believed of a token's lifetime.
    pub fn with_lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.lifetimes = lifetimes;
        self
    }

    /// Believes every signature: whoever can post a token can be anybody.
    pub fn dangerously_without_signatures(mut self) -> Self {
        self.verify_signature = false;
        self
    }

    /// Accepts tokens that have ended: they show whose a refresh token is said to be, and give access to nothing.
    pub(crate) fn accepting_ended(mut self) -> Self {
        self.accept_ended = true;
        self
    }

    /// The issuer whose tokens are verified.
    pub fn issuer(&self) -> &IssuerClient {
        &self.issuer
    }

    /// What a verified ID token says. The checks run in this order: form (16 KiB, three parts), signature, `iss`, `sub`,
    /// `aud`, `azp`, `exp`, `nbf`, `iat`, `nonce`. A nonce is compared when the flow was ours.
    ///
    /// # Errors
    /// `TokenRejected` with the first check that failed; `Unavailable` or `Timeout` if the issuer's keys cannot be fetched.
    pub async fn verify(&self, token: &Secret, nonce: Option<&Nonce>) -> Result<VerifiedIdToken> {
        let (claims, algorithm) = self.signed_claims(token, Purpose::IdToken).await?;
        let issuer = self.expect_issuer(&claims)?;
        let subject = claims.subject()?;
        let (audience, client_id) = self.expect_audience(&claims)?;
        let expires_at = self.expect_time(&claims)?;
        if let Some(nonce) = nonce {
            let same = claims.text("nonce")?.is_some_and(|claim| nonce.is(claim));
            if !same {
                return Err(rejected(
                    "the ID token does not carry the nonce of this login: log in again",
                ));
            }
        }
        Ok(VerifiedIdToken {
            issuer,
            subject,
            client_id,
            audience,
            email: claims.verified_email()?,
            issued_at: claims.instant("iat")?,
            expires_at,
            digest: algorithm.digest(),
            claims,
        })
    }

    /// Verifies an access token that is a signed JWT (RFC 9068) and belongs to this subject and client: signature, `iss`,
    /// `sub`, `azp` or `client_id` or `aud`, `exp`, `nbf`, `iat`. Gives the UTC instant at which it ends.
    ///
    /// # Errors
    /// As [`IdTokenVerifier::verify`]; `Refused` with code `identity_mismatch` if it is somebody else's.
    pub async fn verify_access_token(
        &self,
        token: &Secret,
        subject: &Subject,
        client_id: &ClientId,
    ) -> Result<Timestamp> {
        let (claims, _) = self.signed_claims(token, Purpose::AccessToken).await?;
        self.expect_issuer(&claims)?;
        expect_subject(&claims, subject)?;
        let client = client_id.as_str();
        let named: Vec<_> = [claims.text("azp")?, claims.text("client_id")?]
            .into_iter()
            .flatten()
            .collect();
        let for_client = match named.is_empty() {
            true => claims.audience()?.iter().any(|audience| audience == client),
            false => named.iter().all(|named| *named == client),
        };
        if !for_client {
            return Err(rejected(format!(
                "the access token is not issued for client {client_id}"
            )));
        }
        self.expect_time(&claims)
    }

    /// As [`IdTokenVerifier::verify_access_token`], for a token of this audience, whoever it is issued to (RFC 8693).
    ///
    /// # Errors
    /// The same.
    pub async fn verify_exchanged(
        &self,
        token: &Secret,
        subject: &Subject,
        audience: &ClientId,
    ) -> Result<Timestamp> {
        let (claims, _) = self.signed_claims(token, Purpose::AccessToken).await?;
        self.expect_issuer(&claims)?;
        expect_subject(&claims, subject)?;
        match claims.audience()?.iter().any(|named| named == audience.as_str()) {
            true => self.expect_time(&claims),
            false => Err(rejected(format!("the token is not for audience {audience}"))),
        }
    }

    /// The claims of a token whose signature verified.
    async fn signed_claims(&self, token: &Secret, purpose: Purpose) -> Result<(Claims, SignatureAlgorithm)> {
        let jws = Jws::parse(token.expose())?;
        if purpose == Purpose::IdToken && jws.is_typed_as_another_token() {
            return Err(rejected(
                "the token is no ID token: its type says that it is another one",
            ));
        }
        if self.verify_signature {
            match self.issuer.keys().verify(&self.issuer, &jws.signed()).await {
                Ok(Verdict::Verified) => {}
                Ok(Verdict::NoKey) => {
                    return Err(rejected(format!(
                        "Failed to get signing key: issuer {} publishes no key that fits this token",
                        self.issuer.issuer()
                    )));
                }
                Ok(Verdict::Forged) => {
                    return Err(rejected(format!(
                        "Signature verification failed: no key of issuer {} made it",
                        self.issuer.issuer()
                    )));
                }
                Err(failure) => return Err(no_keys(failure)),
            }
        }
        Ok((Claims::parse(jws.payload()?)?, jws.algorithm()))
    }

    fn expect_issuer(&self, claims: &Claims) -> Result<Issuer> {
        let expected = self.issuer.issuer();
        match claims.text("iss")? {
            Some(issuer) if issuer == expected.as_str() => Ok(expected.clone()),
            // A well-formed issuer is a public name; anything else is not repeated.
            Some(issuer) => Err(rejected(match Issuer::new(issuer) {
                Ok(other) => format!("Invalid issuer: expected {expected}, got {other}"),
                Err(_) => format!("Invalid issuer: expected {expected}, got something that is no issuer"),
            })),
            None => Err(rejected(format!("Invalid issuer: expected {expected}, got none"))),
        }
    }

    /// The audience, and the client that the token is issued for.
    fn expect_audience(&self, claims: &Claims) -> Result<(Vec<String>, ClientId)> {
        let audience = claims.audience()?;
        let authorized = claims.text("azp")?;
        let client_id = match &self.client_id {
            Some(client_id) => {
                if !audience.iter().any(|audience| audience == client_id.as_str()) {
                    return Err(rejected(format!(
                        "the token is not issued for client {client_id}"
                    )));
                }
                if authorized.is_none() && audience.len() > 1 {
                    return Err(rejected("the token has several audiences and no azp claim"));
                }
                if authorized.is_some_and(|authorized| authorized != client_id.as_str()) {
                    return Err(rejected(format!(
                        "the token is issued to another client than {client_id}"
                    )));
                }
                client_id.clone()
            }
            None => {
                let client = match (authorized, audience.as_slice()) {
                    (Some(authorized), _) => authorized,
                    (None, [only]) => only,
                    (None, _) => {
                        return Err(rejected(
                            "the token has several audiences and no azp claim: configure the client id",
                        ));
                    }
                };
                ClientId::new(client)
                    .map_err(|_| rejected("the client that the token is issued for is malformed"))?
            }
        };
        Ok((audience, client_id))
    }

    /// The UTC instant at which the token ends, as far as it is believed.
    fn expect_time(&self, claims: &Claims) -> Result<Timestamp> {
        let now = self.clock.now();
        let issued_at = claims.instant("iat")?;
        let counted_from = issued_at.unwrap_or(now).min(now);
        let stated = match (claims.instant("exp")?, self.lifetimes.assume) {
            (Some(expires_at), _) => expires_at,
            (None, Some(assume)) => after(counted_from, assume),
            (None, None) => return Err(rejected("the token has no exp claim and would never end")),
        };
        let expires_at = match self.lifetimes.max {
            Some(max) => stated.min(after(counted_from, max)),
            None => stated,
        };
        if !self.accept_ended && now >= after(expires_at, LEEWAY) {
            return Err(rejected("Token expired"));
        }
        let latest = after(now, LEEWAY);
        if claims
            .instant("nbf")?
            .is_some_and(|not_before| not_before > latest)
        {
            return Err(rejected("the token is not valid yet: compare the clocks"));
        }
        if issued_at.is_some_and(|issued_at| issued_at > latest) {
            return Err(rejected("the token is issued in the future: compare the clocks"));
        }
        Ok(expires_at)
    }
}

/// Which of an issuer's tokens is expected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    IdToken,
    AccessToken,
    /// One with a type of its own, which its reader compares.
    Other,
}

/// An ID token that verified, and what it says. `Debug` shows no claim but issuer, client and end.
#[derive(Clone)]
pub struct VerifiedIdToken {
    issuer: Issuer,
    subject: Subject,
    client_id: ClientId,
    audience: Vec<String>,
    email: Option<VerifiedEmail>,
    issued_at: Option<Timestamp>,
    expires_at: Timestamp,
    digest: &'static digest::Algorithm,
    claims: Claims,
}

impl VerifiedIdToken {
    /// `iss`.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// `sub`.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The client that the token is issued for: the pinned one, else `azp`, else the only audience.
    pub fn client_id(&self) -> &ClientId {
        &self.client_id
    }

    /// `aud`, never empty.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// `email`, lower-cased, if `email_verified` says so.
    pub fn email(&self) -> Option<&VerifiedEmail> {
        self.email.as_ref()
    }

    /// `iat`, UTC.
    pub fn issued_at(&self) -> Option<Timestamp> {
        self.issued_at
    }

    /// UTC instant at which the token ends: `exp`, within the configured lifetimes.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Any other claim. Text at the top level holds no control characters.
    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name)
    }

    /// Whether `at_hash`, if there is one, is this access token's (OpenID Connect Core section 3.1.3.6), and whether an
    /// access token that is a JWT has the same subject.
    ///
    /// # Errors
    /// `TokenRejected` for another hash, `Refused` with code `identity_mismatch` for another subject.
    pub fn expect_own(&self, access_token: &Secret) -> Result<()> {
        if let Some(expected) = self.claims.text("at_hash")? {
            let hash = digest::digest(self.digest, access_token.expose());
            let left_half = URL_SAFE_NO_PAD.encode(&hash.as_ref()[..hash.as_ref().len() / 2]);
            if !bool::from(left_half.as_bytes().ct_eq(expected.as_bytes())) {
                return Err(rejected(
                    "the access token is not the one that the ID token was issued with",
                ));
            }
        }
        match Claims::unverified(access_token.expose()) {
            Some(claims) => expect_subject(&claims, &self.subject),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for VerifiedIdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedIdToken")
            .field("issuer", &self.issuer)
            .field("client_id", &self.client_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

fn expect_subject(claims: &Claims, subject: &Subject) -> Result<()> {
    match claims.text("sub")? {
        Some(claimed) if claimed == subject.as_str() => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Refused,
            "the access token belongs to another subject than the ID token: log in again",
        )
        .with_code("identity_mismatch")),
    }
}

fn no_keys(failure: Error) -> Error {
    let text = format!("Failed to get signing key: {failure}");
    let error = Error::new(failure.kind(), text).with_retryable(failure.is_retryable());
    let error = match failure.retry_after() {
        Some(after) => error.with_retry_after(after),
        None => error,
    };
    error.with_source(failure)
}

/// A verification that failed; the message never repeats what the token holds.
pub(crate) fn rejected(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::TokenRejected, message)
}

/// The instant this much later, or the end of time.
fn after(instant: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| instant.checked_add(duration).ok())
        .unwrap_or(Timestamp::MAX)
}

/// Clocks of issuer and verifier differ by this much at most (NTP keeps them within seconds).
pub const LEEWAY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
