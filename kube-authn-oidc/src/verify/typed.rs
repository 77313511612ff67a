//! Tokens that are no ID tokens, told apart by `typ` of their header (RFC 8725 section 3.11).

use std::fmt;

use jiff::Timestamp;
use kube_authn_core::{MAX_JWT_BYTES, Result, Secret, Subject};

use crate::verify::{IdTokenVerifier, Purpose, claims::Claims, jws::Jws, rejected};

/// What a JWT says of itself before anything is verified: to choose who verifies it, never to decide anything.
#[derive(Clone)]
pub struct UnverifiedToken {
    typ: Option<String>,
    claims: Claims,
}

impl UnverifiedToken {
    /// Reads a token of at most 16 KiB; `None` if it is no signed JWT, or not signed in a way that anybody here verifies.
    pub fn read(token: &[u8]) -> Option<Self> {
        if token.len() > MAX_JWT_BYTES {
            return None;
        }
        let jws = Jws::parse(token).ok()?;
        Some(Self {
            typ: jws.typ().map(str::to_owned),
            claims: Claims::parse(jws.payload().ok()?).ok()?,
        })
    }

    /// `typ` of the header.
    pub fn typ(&self) -> Option<&str> {
        self.typ.as_deref()
    }

    /// `iss`, if it is text.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.text("iss").ok().flatten()
    }

    /// `sub`, if it is text.
    pub fn subject(&self) -> Option<&str> {
        self.claims.text("sub").ok().flatten()
    }
}

impl fmt::Debug for UnverifiedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnverifiedToken")
    }
}

impl IdTokenVerifier {
    /// What a token of another kind says: `typ` of its header is exactly this one, a key of the issuer signed it, it has a
    /// `sub`, and it is in force (`exp`, `nbf`, `iat`). Issuer and audience are the caller's to check: such tokens need not
    /// have them.
    ///
    /// # Errors
    /// As [`IdTokenVerifier::verify`].
    pub async fn verify_typed(&self, token: &Secret, typ: &str) -> Result<TypedToken> {
        // The signature is over the header too.
        if Jws::parse(token.expose())?.typ() != Some(typ) {
            return Err(rejected("the token is of another type than expected"));
        }
        let (claims, _) = self.signed_claims(token, Purpose::Other).await?;
        let subject = claims.subject()?;
        let expires_at = self.expect_time(&claims)?;
        Ok(TypedToken {
            subject,
            expires_at,
            claims,
        })
    }
}

/// A token of a kind of its own that verified. `Debug` shows no claim but its end.
#[derive(Clone)]
pub struct TypedToken {
    subject: Subject,
    expires_at: Timestamp,
    claims: Claims,
}

impl TypedToken {
    /// `sub`.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// UTC instant at which the token ends.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Whether the token is for this audience, alone or among others.
    pub fn is_for(&self, audience: &str) -> bool {
        self.claims
            .audience()
            .is_ok_and(|all| all.iter().any(|one| one == audience))
    }

    /// A text claim.
    ///
    /// # Errors
    /// `TokenRejected` if it has another type.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        self.claims.text(name)
    }
}

impl fmt::Debug for TypedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedToken")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
