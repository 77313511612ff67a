//! Spending a refresh token that is claimed: nothing that the issuer gave is lost, and nothing is written where it no longer
//! belongs.

use std::time::Duration;

use kube_authn_core::{Error, ErrorKind, Login, NewLogin, Result, Secret, TokenVault};
use kube_authn_oidc::{LoginVerifier, RefreshFailure, TokenClient};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{expired, no_login};

/// What a claim is spent with.
pub(super) struct Spending<'a> {
    pub(super) vault: &'a TokenVault,
    pub(super) verifier: &'a LoginVerifier,
    pub(super) client: &'a TokenClient,
    /// When the claim passes to somebody else.
    pub(super) deadline: Instant,
}

/// A write that the row's present state allows to none but the claim's owner.
enum Write {
    RefreshToken(Secret),
    Tokens(NewLogin),
    Release,
    End,
}

/// Why a write did not happen.
enum Unwritten {
    /// The claim is lost: the login was deleted, or this is what stands there now.
    Lost(Option<Box<Login>>),
    Failed(Error),
}

impl Spending<'_> {
    /// Asks the issuer and saves what it gives: the new refresh token before the rest is looked at, since the one that was
    /// spent is worth nothing any more.
    pub(super) async fn spend(&self, claimed: Login) -> Result<Login> {
        let Some(refresh_token) = claimed.tokens.refresh_token.clone() else {
            return Err(Error::new(
                ErrorKind::Unexpected,
                "a login without a refresh token was claimed",
            ));
        };
        let answer = match timeout_at(self.deadline, self.client.refresh(&refresh_token)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(RefreshFailure::Withdrawn(error))) => return self.end(claimed, error).await,
            Ok(Err(RefreshFailure::Unspent(error))) => return self.release(claimed, error).await,
            Ok(Err(RefreshFailure::Unknown(error))) => return Err(self.unknown(error)),
            Ok(Err(failure)) => return Err(self.unknown(failure.into())),
            Err(_) => {
                let text = format!("issuer {} did not answer in time", claimed.key.issuer);
                return Err(self.unknown(Error::new(ErrorKind::Timeout, text)));
            }
        };
        // The one to revoke should the login be gone: whoever deletes a login revokes the one that it held.
        let rotated = answer.refresh_token.clone();
        let saved = match &rotated {
            Some(new) => match self.write(claimed, &Write::RefreshToken(new.clone())).await {
                Ok(saved) => saved,
                Err(unwritten) => return self.unwritten(unwritten, new).await,
            },
            None => claimed,
        };
        let renewed = match self.verifier.verify_refreshed(&saved, answer).await {
            Ok(renewed) => renewed,
            Err(error) => return self.release(saved, refused(error)).await,
        };
        match self.write(saved, &Write::Tokens(renewed.clone())).await {
            Ok(finished) => Ok(finished),
            // It was written, and the store's word of it was lost.
            Err(Unwritten::Lost(Some(present)))
                if present.tokens.id_token == renewed.tokens.id_token
                    && present.tokens.access_token == renewed.tokens.access_token =>
            {
                Ok(*present)
            }
            Err(unwritten) => {
                self.unwritten(unwritten, rotated.as_ref().unwrap_or(&refresh_token))
                    .await
            }
        }
    }

    /// The grant is gone: so is the login, and the user is told.
    async fn end(&self, claimed: Login, error: Error) -> Result<Login> {
        match self.write(claimed, &Write::End).await {
            Ok(_) => Err(expired().with_source(error)),
            Err(Unwritten::Lost(Some(present))) => Ok(*present),
            Err(Unwritten::Lost(None)) => Err(no_login()),
            Err(Unwritten::Failed(failure)) => Err(failure),
        }
    }

    /// Gives the claim back: the refresh token in the row is good.
    async fn release(&self, claimed: Login, error: Error) -> Result<Login> {
        let config = self.verifier.login();
        let token = config.token_for_cluster(&claimed.tokens).cloned();
        match self.write(claimed, &Write::Release).await {
            Err(Unwritten::Lost(None)) => Err(no_login()),
            // Somebody else refreshed it or logged in anew.
            Err(Unwritten::Lost(Some(present)))
                if config.token_for_cluster(&present.tokens) != token.as_ref() =>
            {
                Ok(*present)
            }
            Ok(_) | Err(_) => Err(error),
        }
    }

    /// The claim stays until it is stale; nobody can try before that.
    fn unknown(&self, error: Error) -> Error {
        let left = self.deadline.saturating_duration_since(Instant::now());
        error.with_retryable(true).with_retry_after(left)
    }

    /// Tokens came for a login that is no more: they are worth something to whoever finds them, so they are revoked.
    async fn unwritten(&self, unwritten: Unwritten, refresh_token: &Secret) -> Result<Login> {
        let (outcome, issuer) = match unwritten {
            Unwritten::Failed(error) => return Err(error),
            Unwritten::Lost(Some(present))
                if present.tokens.refresh_token.as_ref() == Some(refresh_token) =>
            {
                return Ok(*present);
            }
            Unwritten::Lost(present) => (
                present.map(|present| *present).ok_or_else(no_login),
                self.verifier.login().issuer.clone(),
            ),
        };
        match timeout(REVOCATION_PATIENCE, self.client.revoke(refresh_token)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%issuer, %error, "the issuer did not revoke a refresh token"),
            Err(_) => tracing::warn!(%issuer, "the issuer is too slow to revoke a refresh token"),
        }
        outcome
    }

    /// Writes until the store takes it or the claim is lost. A claim that was only rewritten meanwhile, for example with
    /// another key, is not lost.
    async fn write(&self, mut claimed: Login, write: &Write) -> Result<Login, Unwritten> {
        let give_up = Instant::now() + STORE_PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut failure = match self.attempt(&claimed, write).await {
                Ok(written) => return Ok(written),
                Err(failure) => failure,
            };
            let mut again = failure.is_retryable();
            if failure.kind() == ErrorKind::Conflict {
                match self.vault.load(&claimed.key).await {
                    Ok(Some(present)) if is_same_claim(&present, &claimed) => {
                        (claimed, again) = (present, true);
                    }
                    Ok(present) => return Err(Unwritten::Lost(present.map(Box::new))),
                    Err(unread) => (again, failure) = (unread.is_retryable(), unread),
                }
            }
            if !again || Instant::now() + pause > give_up {
                return Err(Unwritten::Failed(failure));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, claimed: &Login, write: &Write) -> Result<Login> {
        match write {
            Write::RefreshToken(new) => self.vault.save_refresh_token(claimed, new.clone()).await,
            Write::Tokens(renewed) => self.vault.finish_refresh(claimed, renewed.clone()).await,
            Write::Release => self.vault.release_refresh(claimed).await,
            Write::End => match self.vault.end(claimed).await? {
                true => Ok(claimed.clone()),
                false => Err(Error::new(
                    ErrorKind::Conflict,
                    "the login changed before it was ended",
                )),
            },
        }
    }
}

/// Marks are unequal from claim to claim: owner and deadline.
fn is_same_claim(present: &Login, claimed: &Login) -> bool {
    present.revision.login == claimed.revision.login
        && present.metadata.refreshing.is_some()
        && present.metadata.refreshing == claimed.metadata.refreshing
}

/// What the issuer gave is not taken. An ID token that is missing is an end that its user has to hear of.
fn refused(error: Error) -> Error {
    match error.kind() {
        ErrorKind::LoginRequired => expired().with_source(error),
        _ => error,
    }
}

/// Longer than a restart of a database.
const STORE_PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The login is over whatever the issuer says.
const REVOCATION_PATIENCE: Duration = Duration::from_secs(10);
