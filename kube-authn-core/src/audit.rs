//! Every audit event of the family, its name and its fields, in one place.

use jiff::Timestamp;
use tracing::{info, warn};

use crate::{ClientId, EntityRef, Issuer, Subject};

/// Something that somebody will want to find in an audit log later. No event carries a token, a claim set or an e-mail.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditEvent<'a> {
    /// A user's tokens were verified, bound to the user and stored.
    LoginStored {
        /// Whose login.
        principal: &'a EntityRef,
        /// Who issued the tokens.
        issuer: &'a Issuer,
        /// For which client.
        client_id: &'a ClientId,
        /// Whom the issuer named.
        subject: &'a Subject,
        /// UTC instant at which the token for the cluster ends.
        expires_at: Timestamp,
    },
    /// A login was refused: the tokens belong to somebody else, or a rule forbids it.
    LoginRefused {
        /// Who asked.
        principal: &'a EntityRef,
        /// Whose tokens were offered, as far as it is known.
        issuer: Option<&'a Issuer>,
        /// Stable code of the reason, such as `identity_mismatch`.
        reason: &'static str,
    },
    /// First use bound a subject of an issuer to a principal for good.
    IdentityPinned {
        /// The principal.
        principal: &'a EntityRef,
        /// The issuer of the subject.
        issuer: &'a Issuer,
        /// The subject that is now the principal's alone.
        subject: &'a Subject,
    },
    /// A login ended by logout, or because the issuer withdrew the grant.
    LoginEnded {
        /// Whose login.
        principal: &'a EntityRef,
        /// Issuer of the login.
        issuer: &'a Issuer,
        /// Client of the login.
        client_id: &'a ClientId,
        /// Stable code of the reason: `logout`, `invalid_grant`, `purged`.
        reason: &'static str,
    },
    /// A stored row did not open.
    RecordDamaged {
        /// Whose row.
        principal: &'a EntityRef,
        /// Issuer of the row.
        issuer: &'a Issuer,
    },
}

impl AuditEvent<'_> {
    /// Writes the event to `tracing`, target `kube_authn::audit`: refusals and damage as warnings, the rest as information.
    pub fn emit(&self) {
        match self {
            Self::LoginStored {
                principal,
                issuer,
                client_id,
                subject,
                expires_at,
            } => info!(
                target: TARGET, event = "login_stored", %principal, %issuer, %client_id, %subject, %expires_at,
            ),
            Self::LoginRefused {
                principal,
                issuer,
                reason,
            } => warn!(
                target: TARGET, event = "login_refused", %principal, issuer = issuer.map(tracing::field::display), reason,
            ),
            Self::IdentityPinned {
                principal,
                issuer,
                subject,
            } => {
                info!(target: TARGET, event = "identity_pinned", %principal, %issuer, %subject);
            }
            Self::LoginEnded {
                principal,
                issuer,
                client_id,
                reason,
            } => {
                info!(target: TARGET, event = "login_ended", %principal, %issuer, %client_id, reason);
            }
            Self::RecordDamaged { principal, issuer } => {
                warn!(target: TARGET, event = "record_damaged", %principal, %issuer);
            }
        }
    }
}

/// Target of all audit events, so that a subscriber can route them to a sink of their own.
const TARGET: &str = "kube_authn::audit";
