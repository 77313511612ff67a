//! Every audit event of the family, its name and its fields, in one place.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{field, info, warn};

use crate::{ClientId, ClusterName, EntityRef, Issuer, Principal, Subject};

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
        /// The service that brought them on the user's behalf.
        actor: Option<&'a Principal>,
        /// UTC instant at which the token for the cluster ends.
        expires_at: Timestamp,
    },
    /// The issuer gave new tokens for a login's refresh token.
    LoginRefreshed {
        /// Whose login.
        principal: &'a EntityRef,
        /// Issuer of the login.
        issuer: &'a Issuer,
        /// Client of the login.
        client_id: &'a ClientId,
        /// UTC instant at which the token for the cluster ends.
        expires_at: Timestamp,
    },
    /// A login was refused: the tokens belong to somebody else, or a rule forbids it.
    LoginRefused {
        /// Who asked.
        principal: &'a EntityRef,
        /// The service that asked on the user's behalf.
        actor: Option<&'a Principal>,
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
        /// The service that ended it on the user's behalf.
        actor: Option<&'a Principal>,
        /// Stable code of the reason: `logout`, `administrator`, `invalid_grant`, `purged`.
        reason: &'static str,
    },
    /// A stored token was handed out, and what is done with it from now on is in no log of ours.
    TokenExposed {
        /// Whose login.
        principal: &'a EntityRef,
        /// The service that got it on the user's behalf; `None`: the user.
        actor: Option<&'a Principal>,
        /// Issuer of the login.
        issuer: &'a Issuer,
        /// Client of the login.
        client_id: &'a ClientId,
        /// UTC instant at which the token ends.
        expires_at: Timestamp,
    },
    /// A stored login was not used: who has its name now is somebody else.
    LoginWithheld {
        /// The name.
        principal: &'a EntityRef,
        /// Issuer of the login, and of the caller's own token.
        issuer: &'a Issuer,
        /// Whose login it is.
        subject: &'a Subject,
        /// Who is calling.
        caller: &'a Subject,
    },
    /// A request came through the Kubernetes proxy, and was answered by the API server or refused by us.
    Proxied {
        /// Who asked; `None` if nobody knows.
        caller: Option<&'a Principal>,
        /// The service that asked on the caller's behalf.
        actor: Option<&'a Principal>,
        /// For which cluster, if one was found.
        cluster: Option<&'a ClusterName>,
        /// Method of the request.
        method: &'a http::Method,
        /// Path of the request, without query.
        path: &'a str,
        /// Status of the answer.
        status: u16,
        /// From the request's head to the answer's; a stream may go on for hours.
        duration: Duration,
        /// Under which the API server's audit log has it, or would have it had the request arrived.
        audit_id: Option<&'a str>,
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
                actor,
                expires_at,
            } => info!(
                target: TARGET, event = "login_stored", %principal, %issuer, %client_id, %subject, actor = actor.map(field::display),
                %expires_at,
            ),
            Self::LoginRefreshed {
                principal,
                issuer,
                client_id,
                expires_at,
            } => {
                info!(target: TARGET, event = "login_refreshed", %principal, %issuer, %client_id, %expires_at)
            }
            Self::LoginRefused {
                principal,
                actor,
                issuer,
                reason,
            } => warn!(
                target: TARGET, event = "login_refused", %principal, actor = actor.map(field::display), issuer = issuer.map(field::display),
                reason,
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
                actor,
                reason,
            } => info!(
                target: TARGET, event = "login_ended", %principal, %issuer, %client_id, actor = actor.map(field::display), reason,
            ),
            Self::TokenExposed {
                principal,
                actor,
                issuer,
                client_id,
                expires_at,
            } => info!(
                target: TARGET, event = "token_exposed", %principal, actor = actor.map(field::display), %issuer, %client_id,
                %expires_at,
            ),
            Self::LoginWithheld {
                principal,
                issuer,
                subject,
                caller,
            } => {
                warn!(target: TARGET, event = "login_withheld", %principal, %issuer, %subject, %caller);
            }
            Self::Proxied {
                caller,
                actor,
                cluster,
                method,
                path,
                status,
                duration,
                audit_id,
            } => info!(
                target: TARGET,
                event = "proxied",
                caller = caller.map(field::display),
                actor = actor.map(field::display),
                cluster = cluster.map(field::display),
                %method,
                // A path that was refused may hold anything.
                path = %path.escape_debug(),
                status,
                duration_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
                audit_id,
            ),
            Self::RecordDamaged { principal, issuer } => {
                warn!(target: TARGET, event = "record_damaged", %principal, %issuer);
            }
        }
    }
}

/// Target of all audit events, so that a subscriber can route them to a sink of their own.
const TARGET: &str = "kube_authn::audit";
