//! Spending a refresh token once over all replicas.
//!
//! The order is: [`TokenVault::claim_refresh`], then ask the issuer with a deadline at or before `until`, then
//! [`TokenVault::save_refresh_token`] before anything can fail, then verify, then [`TokenVault::finish_refresh`]. A call
//! that surely did not reach the issuer is given back with [`TokenVault::release_refresh`]; `invalid_grant` ends the
//! login with [`TokenVault::end`]; a call whose outcome is unknown is left alone: the mark goes stale, and whoever finds
//! it has one attempt.

use std::time::Duration;

use jiff::Timestamp;

use super::{ATTEMPTS, Login, NewLogin, TokenVault, contended, ended, row::Extra};
use crate::{
    AuditEvent, Error, ErrorKind, Expected, LoginId, LoginMetadata, RefreshMark, Result, Revision, Secret,
    TokenSet,
};

/// The answer to "may I spend the refresh token of this login?"
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Claim {
    /// Yes, and nobody else before `until`. The login as it stands now, mark included: pass it to what follows.
    Ours(Login),
    /// Somebody is at it, until this UTC instant at the latest: wait for a change, then load again.
    Running {
        /// The deadline of whoever is at it.
        until: Timestamp,
    },
    /// The login changed since it was read: refreshed, or replaced by a newer one.
    Done(Login),
    /// There is no refresh token, or it may be spent and the one attempt after that was made: what the login holds may
    /// be used to its end, then the user has to log in.
    Impossible(Login),
    /// There is no login any more.
    Ended,
}

impl TokenVault {
    /// Claims the refresh of this login by a mark in its row. `owner` names this process, random at its start; `until`
    /// is the deadline of the call to the issuer. A mark that was written although the store's word of it was lost is ours.
    ///
    /// # Errors
    /// As [`TokenVault::load`].
    pub async fn claim_refresh(&self, login: &Login, owner: LoginId, until: Timestamp) -> Result<Claim> {
        for _ in 0..ATTEMPTS {
            let Some(present) = self.load(&login.key).await? else {
                return Ok(Claim::Ended);
            };
            if present.revision.login != login.revision.login {
                return Ok(Claim::Done(present));
            }
            let stale = match &present.metadata.refreshing {
                Some(mark) if mark.until > self.0.clock.now() => {
                    return Ok(Claim::Running { until: mark.until });
                }
                Some(_) => true,
                None if is_news(&present, login) => return Ok(Claim::Done(present)),
                None => false,
            };
            if !present.metadata.refreshable || (stale && present.extra.retried) {
                return Ok(Claim::Impossible(present));
            }
            let mark = RefreshMark { owner, until };
            let metadata = LoginMetadata {
                refreshing: Some(mark.clone()),
                ..present.metadata.clone()
            };
            let extra = Extra {
                retried: stale,
                ..present.extra.clone()
            };
            match self
                .rewrite(&present, metadata, present.tokens.clone(), extra)
                .await
            {
                Ok(ours) => return Ok(Claim::Ours(ours)),
                Err(failure) => {
                    if let Some(ours) = self.marked_after_all(&present, &mark, failure).await? {
                        return Ok(Claim::Ours(ours));
                    }
                }
            }
        }
        Err(contended("claim the refresh of the login"))
    }

    /// The login if it carries this mark although the store did not say so: else the mark of a process that lives would look
    /// like that of a dead one. `None` if another writer was first.
    async fn marked_after_all(
        &self,
        login: &Login,
        mark: &RefreshMark,
        failure: Error,
    ) -> Result<Option<Login>> {
        let was_first = failure.kind() == ErrorKind::Conflict;
        if !was_first && !failure.is_retryable() {
            return Err(failure);
        }
        match self.load(&login.key).await {
            Ok(Some(present)) if is_marked(&present, login, mark) => Ok(Some(present)),
            Ok(_) if was_first => Ok(None),
            _ => Err(failure),
        }
    }

    /// Returns when this login changed after it was read, as soon as this process learns of it, and after `at_most` in any
    /// case: that somebody else changed it is told within a second, and may be lost.
    pub async fn changed(&self, login: &Login, at_most: Duration) {
        self.0.live.watch(&self.0.store);
        // Either way the caller looks for himself.
        let _ = tokio::time::timeout(at_most, self.0.live.passed(login.revision)).await;
    }

    /// Saves the refresh token that the issuer gave, before anything else that it gave is looked at: the one that was
    /// spent is worth nothing any more. The claim stands; should it go stale, the new one allows an attempt of its own.
    ///
    /// # Errors
    /// `Conflict` if the claim was lost or the login ended: revoke what came. Else as [`TokenVault::load`].
    pub async fn save_refresh_token(&self, claimed: &Login, refresh_token: Secret) -> Result<Login> {
        let tokens = claimed.tokens.clone().with_refresh_token(refresh_token);
        let extra = Extra {
            retried: false,
            ..claimed.extra.clone()
        };
        self.rewrite(claimed, claimed.metadata.clone(), tokens, extra)
            .await
    }

    /// Saves what the issuer gave and lifts the claim. A set without a refresh token keeps the present one (RFC 6749
    /// section 6). Emits [`AuditEvent::LoginRefreshed`].
    ///
    /// # Errors
    /// `Conflict` if the claim was lost or the login ended: revoke what came. `Refused` with code `identity_mismatch`
    /// if the tokens are of another subject (OpenID Connect Core section 12.2). Else as [`TokenVault::load`].
    pub async fn finish_refresh(&self, claimed: &Login, refreshed: NewLogin) -> Result<Login> {
        if refreshed.subject != claimed.metadata.subject {
            return Err(Error::new(
                ErrorKind::Refused,
                "the issuer refreshed the login with tokens of another subject: log in again",
            )
            .with_code("identity_mismatch"));
        }
        let mut tokens = refreshed.tokens;
        tokens.refresh_token = tokens
            .refresh_token
            .or_else(|| claimed.tokens.refresh_token.clone());
        let metadata = LoginMetadata {
            expires_at: refreshed.expires_at,
            refreshable: tokens.refresh_token.is_some(),
            refreshing: None,
            ..claimed.metadata.clone()
        };
        let extra = Extra {
            issued_at: refreshed.issued_at.or(claimed.extra.issued_at),
            retried: false,
            ..claimed.extra.clone()
        };
        let refreshed = self.rewrite(claimed, metadata, tokens, extra).await?;
        AuditEvent::LoginRefreshed {
            principal: &refreshed.key.principal,
            issuer: &refreshed.key.issuer,
            client_id: &refreshed.key.client_id,
            expires_at: refreshed.metadata.expires_at,
        }
        .emit();
        Ok(refreshed)
    }

    /// Lifts the claim of a call that surely spent nothing.
    ///
    /// # Errors
    /// As [`TokenVault::save_refresh_token`].
    pub async fn release_refresh(&self, claimed: &Login) -> Result<Login> {
        let metadata = LoginMetadata {
            refreshing: None,
            ..claimed.metadata.clone()
        };
        let extra = Extra {
            retried: false,
            ..claimed.extra.clone()
        };
        self.rewrite(claimed, metadata, claimed.tokens.clone(), extra)
            .await
    }

    /// Ends this login because the issuer withdrew the grant (`invalid_grant`), and says whether it still stood there.
    /// A row without tokens that expired now takes its place, so the user learns that the login is over and not that
    /// there was none. A login that replaced it meanwhile is not touched. Its handle has ended when this returns.
    ///
    /// # Errors
    /// As [`TokenVault::load`].
    pub async fn end(&self, login: &Login) -> Result<bool> {
        let now = self.0.clock.now();
        let metadata = LoginMetadata {
            expires_at: login.metadata.expires_at.min(now),
            refreshable: false,
            refreshing: None,
            updated_at: now,
            ..login.metadata.clone()
        };
        // Another login, so that every replica is told that this one ended.
        let revision = Revision::first()?;
        let record = self.seal(&login.key, revision, metadata, &TokenSet::new(), &login.extra)?;
        let saved = self
            .0
            .store
            .save(&login.key, &record, Expected::At(login.revision))
            .await;
        match saved {
            Ok(()) => {
                self.0
                    .live
                    .wrote(&login.key, revision, Some(login.revision.login));
                ended(&login.key, None, "invalid_grant");
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the next revision of this login, if it still stands as it was read.
    async fn rewrite(
        &self,
        login: &Login,
        metadata: LoginMetadata,
        tokens: TokenSet,
        extra: Extra,
    ) -> Result<Login> {
        let metadata = LoginMetadata {
            updated_at: self.0.clock.now(),
            ..metadata
        };
        let revision = login.revision.next();
        let record = self.seal(&login.key, revision, metadata, &tokens, &extra)?;
        self.0
            .store
            .save(&login.key, &record, Expected::At(login.revision))
            .await?;
        self.0.live.wrote(&login.key, revision, None);
        Ok(Login {
            key: login.key.clone(),
            revision,
            metadata: record.metadata,
            tokens,
            handle: login.handle.clone(),
            extra,
        })
    }
}

/// Whether the login changed since it was read. A row written under another key alone is no news: whoever took it for a
/// refresh would tell the user that the login has expired.
fn is_news(present: &Login, read: &Login) -> bool {
    present.revision != read.revision && (present.metadata != read.metadata || present.tokens != read.tokens)
}

/// Rows keep milliseconds.
fn is_marked(present: &Login, login: &Login, mark: &RefreshMark) -> bool {
    let of = |mark: &RefreshMark| (mark.owner, mark.until.as_millisecond());
    present.revision.login == login.revision.login
        && present.metadata.refreshing.as_ref().map(of) == Some(of(mark))
}
