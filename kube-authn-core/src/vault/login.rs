//! What comes into a vault and what comes out.

use jiff::Timestamp;

use super::row::Extra;
use crate::{Issuer, LoginHandle, LoginMetadata, Principal, Revision, Subject, TokenKey, TokenSet};

/// What a user brings to log in, or an issuer gives for a refresh token.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewLogin {
    /// Whom the issuer named.
    pub subject: Subject,
    /// The tokens.
    pub tokens: TokenSet,
    /// UTC instant at which the token that clusters get ends.
    pub expires_at: Timestamp,
    /// UTC instant at which the issuer made the tokens (`iat`), if it said so; decides which of two logins is newer.
    pub issued_at: Option<Timestamp>,
    /// The service that brings it on the user's behalf, for the audit log.
    pub actor: Option<Principal>,
    /// Whom the caller's own token names that brings it, and who issued that token. Sealed with the tokens: should the name
    /// pass on to somebody else, her token names another subject.
    pub owner: Option<(Issuer, Subject)>,
}

impl NewLogin {
    /// Tokens of this subject, of which the one for clusters ends at `expires_at`.
    pub fn new(subject: Subject, tokens: TokenSet, expires_at: Timestamp) -> Self {
        Self {
            subject,
            tokens,
            expires_at,
            issued_at: None,
            actor: None,
            owner: None,
        }
    }

    /// States when the issuer made the tokens (`iat`).
    pub fn with_issued_at(mut self, issued_at: Timestamp) -> Self {
        self.issued_at = Some(issued_at);
        self
    }

    /// Names the service that brings it on the user's behalf.
    pub fn with_actor(mut self, actor: Principal) -> Self {
        self.actor = Some(actor);
        self
    }

    /// States whom the caller's own token names that brings it, and who issued that token.
    pub fn with_owner(mut self, issuer: Issuer, subject: Subject) -> Self {
        self.owner = Some((issuer, subject));
        self
    }
}

/// A stored login, opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Login {
    /// Whose login, at which issuer, for which client.
    pub key: TokenKey,
    /// Which state of which login.
    pub revision: Revision,
    /// Subject, end, and whether it can be or is being refreshed.
    pub metadata: LoginMetadata,
    /// The tokens; empty once the issuer withdrew the grant ([`TokenVault::end`](crate::TokenVault::end)).
    pub tokens: TokenSet,
    /// The life of this login: to be put into every credential made from it.
    pub handle: LoginHandle,
    pub(super) extra: Extra,
}

impl Login {
    /// UTC instant at which the issuer made the tokens, if it said so.
    pub fn issued_at(&self) -> Option<Timestamp> {
        self.extra.issued_at
    }

    /// Whom the caller's own token named that brought the login, and who issued that token, if that was known.
    pub fn owner(&self) -> Option<(&Issuer, &Subject)> {
        self.extra
            .owner
            .as_ref()
            .map(|(issuer, subject)| (issuer, subject))
    }
}
