//! The only way from tokens to a stored row and back.

mod count;
mod keys;
mod live;
mod login;
mod page;
mod pin;
mod refresh;
mod row;
mod taken_over;

use std::{cmp::Reverse, fmt, sync::Arc};

use jiff::Timestamp;

pub use self::{
    count::LoginCount,
    keys::{KeyRows, Rekeyed},
    login::{Login, NewLogin},
    page::StoredLogin,
    refresh::Claim,
};
use self::{
    live::{Admission, LiveLogins},
    row::Extra,
};
use crate::{
    AuditEvent, ClientId, Clock, EntityRef, Error, ErrorKind, Expected, Issuer, LoginMetadata, Principal,
    Result, Revision, Sealer, SystemClock, TokenKey, TokenRecord, TokenSet, TokenStore, usable,
};

/// Keeps logins in a [`TokenStore`], sealed by a [`Sealer`]. Clones share everything.
///
/// # Contract
/// Each line is a check of the conformance suite (feature `conformance`), run over every store.
///
/// 1. A login comes back with its tokens, here and in every other process with the same keys.
/// 2. Of two logins the one that the issuer made later stays, in whatever order they arrive.
/// 3. A row that was moved, swapped, edited, truncated, or whose sealed part or revision alone was put back is
///    `RecordDamaged`, never "no login", and harms no other row. A login replaces it, a logout deletes it.
/// 4. A whole old row that was put back is refused by a process that saw a newer one or the end of its login.
/// 5. All credentials of a login share its [`LoginHandle`](crate::LoginHandle). Logout, a newer login, purge and a
///    withdrawn grant end it before they return; what another process did ends it within a second. When events were
///    lost, the store is asked, and one that does not answer ends nobody.
/// 6. A load that began before a logout hands out nothing that outlives it.
/// 7. A refresh token is claimed by one process at a time. A claim whose owner vanished allows one attempt, then the
///    login is used to its end.
/// 8. A refresh in flight never writes a deleted login back and never overwrites a new one.
/// 9. First use pins one subject to one principal and one principal to one subject of an issuer, for good, whoever
///    races; no login lies under a pin's name.
/// 10. No `Debug`, error or row shows a token.
/// 11. That a login was taken over from elsewhere is noted for good; such a note is no login, however many there are.
/// 12. Writing rows under the newest key ends no login and takes none from a refresh; a row that does not open stays.
/// 13. What a lost key sealed ([`Sealer::is_lost`]) is no login and no pin, and gives way; notes stay.
#[derive(Clone)]
pub struct TokenVault(Arc<Inner>);

struct Inner {
    store: Arc<dyn TokenStore>,
    sealer: Arc<dyn Sealer>,
    clock: Arc<dyn Clock>,
    live: Arc<LiveLogins>,
}

impl TokenVault {
    /// A vault over this store, sealed by this sealer.
    pub fn new(store: impl TokenStore, sealer: impl Sealer) -> Self {
        Self(Arc::new(Inner {
            store: Arc::new(store),
            sealer: Arc::new(sealer),
            clock: Arc::new(SystemClock),
            live: Arc::new(LiveLogins::new()),
        }))
    }

    /// The same vault with another source of time.
    pub fn with_clock(self, clock: impl Clock) -> Self {
        Self(Arc::new(Inner {
            store: Arc::clone(&self.0.store),
            sealer: Arc::clone(&self.0.sealer),
            clock: Arc::new(clock),
            live: Arc::clone(&self.0.live),
        }))
    }

    /// The login under this key; `None` if there is none. It may have expired: see [`LoginMetadata::expires_at`].
    ///
    /// # Errors
    /// `RecordDamaged` if the row does not open; `Unavailable` or `Timeout` if the store does not answer.
    pub async fn load(&self, key: &TokenKey) -> Result<Option<Login>> {
        refuse_reserved(&key.principal)?;
        self.0.live.watch(&self.0.store);
        for _ in 0..ATTEMPTS {
            let began = self.0.live.begin();
            let record = match self.0.store.load(key).await {
                Ok(Some(record)) if !self.is_lost(&record) => record,
                Ok(_) => return Ok(None),
                Err(error) => return Err(noted(key, error)),
            };
            let (tokens, extra) = self.open(key, &record)?;
            let expires_at = record.metadata.expires_at;
            match self.0.live.admit(key, record.revision, expires_at, began) {
                Admission::Lives(handle) => {
                    return Ok(Some(Login {
                        key: key.clone(),
                        revision: record.revision,
                        metadata: record.metadata,
                        tokens,
                        handle,
                        extra,
                    }));
                }
                Admission::ReadAgain => {}
                Admission::PutBack => return Err(noted(key, row::damaged())),
            }
        }
        Err(contended("load the login"))
    }

    /// The login of this user at this issuer. Without a client: the newest one that is usable, and if none is, the
    /// newest.
    ///
    /// # Errors
    /// As [`TokenVault::load`].
    pub async fn find(
        &self,
        principal: &EntityRef,
        issuer: &Issuer,
        client_id: Option<&ClientId>,
    ) -> Result<Option<Login>> {
        if let Some(client_id) = client_id {
            return self
                .load(&TokenKey {
                    principal: principal.clone(),
                    issuer: issuer.clone(),
                    client_id: client_id.clone(),
                })
                .await;
        }
        let now = self.0.clock.now();
        let mut candidates = self.list(principal).await?;
        candidates.retain(|(key, ..)| key.issuer == *issuer);
        candidates.sort_by_key(|(.., metadata)| {
            Reverse((
                usable(metadata.expires_at, now),
                metadata.created_at,
                metadata.expires_at,
            ))
        });
        for (key, ..) in candidates {
            if let Some(login) = self.load(&key).await? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// Stores a login in place of the one that stands there, which ends. If both are of one subject and the new one
    /// brings no refresh token, the old one's is kept. Emits [`AuditEvent::LoginStored`].
    ///
    /// # Errors
    /// `Conflict` if the login that stands there is newer: by the instant at which the issuer made the tokens, or
    /// where that is not known, by the instant at which they end. Else as [`TokenVault::load`], but a damaged row is
    /// replaced.
    pub async fn log_in(&self, key: &TokenKey, login: NewLogin) -> Result<Revision> {
        refuse_reserved(&key.principal)?;
        self.0.live.watch(&self.0.store);
        for _ in 0..ATTEMPTS {
            let present = match self.0.store.load(key).await {
                Ok(present) => present,
                Err(error) if error.kind() == ErrorKind::RecordDamaged => {
                    let _ = noted(key, error);
                    self.0.store.delete(key).await?;
                    None
                }
                Err(error) => return Err(error),
            };
            match self.replace(key, present.as_ref(), login.clone()).await {
                Ok(revision) => return Ok(revision),
                Err(Replace::Lost) => {}
                Err(Replace::Failed(error)) => return Err(error),
            }
        }
        Err(contended("log in"))
    }

    async fn replace(
        &self,
        key: &TokenKey,
        present: Option<&TokenRecord>,
        mut login: NewLogin,
    ) -> Result<Revision, Replace> {
        // A row that does not open decides nothing about the login that replaces it.
        let readable = present.filter(|row| !self.is_lost(row));
        if let Some((record, (tokens, extra))) =
            readable.and_then(|row| Some((row, self.open(key, row).ok()?)))
        {
            let older = match (login.issued_at, extra.issued_at) {
                (Some(new), Some(old)) => new.as_millisecond() < old.as_millisecond(),
                _ => login.expires_at.as_millisecond() < record.metadata.expires_at.as_millisecond(),
            };
            if older {
                return Err(Replace::Failed(Error::new(
                    ErrorKind::Conflict,
                    "a newer login of this user is stored: log in again to replace it",
                )));
            }
            // A refresh token that somebody spends at this moment is worth nothing any more.
            let kept = record.metadata.subject == login.subject && record.metadata.refreshing.is_none();
            if kept && login.tokens.refresh_token.is_none() {
                login.tokens.refresh_token = tokens.refresh_token;
            }
        }
        let refreshable = login.tokens.refresh_token.is_some();
        let metadata = LoginMetadata::new(login.subject, login.expires_at, refreshable, self.0.clock.now());
        let extra = Extra {
            issued_at: login.issued_at,
            owner: login.owner,
            ..Extra::default()
        };
        let actor = login.actor;
        let revision = Revision::first()?;
        let expected = present.map_or(Expected::Absent, |row| Expected::At(row.revision));
        let record = self.seal(key, revision, metadata, &login.tokens, &extra)?;
        self.0.store.save(key, &record, expected).await?;
        self.0
            .live
            .wrote(key, revision, present.map(|row| row.revision.login));
        AuditEvent::LoginStored {
            principal: &key.principal,
            issuer: &key.issuer,
            client_id: &key.client_id,
            subject: &record.metadata.subject,
            actor: actor.as_ref(),
            expires_at: record.metadata.expires_at,
        }
        .emit();
        Ok(revision)
    }

    /// Deletes the login under this key and says whether there was one. Its handle has ended when this returns. Emits
    /// [`AuditEvent::LoginEnded`].
    ///
    /// # Errors
    /// As [`TokenVault::load`], but a damaged row is deleted like any other.
    pub async fn log_out(&self, key: &TokenKey) -> Result<bool> {
        self.log_out_by(key, None).await
    }

    /// The same, with the service that asks for it on the user's behalf.
    ///
    /// # Errors
    /// As [`TokenVault::log_out`].
    pub async fn log_out_by(&self, key: &TokenKey, actor: Option<&Principal>) -> Result<bool> {
        self.delete(key, actor, "logout").await
    }

    /// The same by whoever looks after the service; the audit log says so (`administrator`).
    ///
    /// # Errors
    /// As [`TokenVault::log_out`].
    pub async fn revoke(&self, key: &TokenKey) -> Result<bool> {
        self.delete(key, None, "administrator").await
    }

    async fn delete(&self, key: &TokenKey, actor: Option<&Principal>, reason: &'static str) -> Result<bool> {
        refuse_reserved(&key.principal)?;
        let known = self.0.live.of(key);
        let deleted = self.0.store.delete(key).await?;
        self.0.live.deleted(key, &known);
        if deleted {
            ended(key, actor, reason);
        }
        Ok(deleted)
    }

    /// Deletes all logins of this user and says how many there were.
    ///
    /// # Errors
    /// As [`TokenVault::log_out`]; logins that were not reached stay.
    pub async fn log_out_all(&self, principal: &EntityRef) -> Result<usize> {
        let mut deleted = 0;
        for (key, ..) in self.list(principal).await? {
            deleted += usize::from(self.log_out(&key).await?);
        }
        Ok(deleted)
    }

    /// What the store says of the logins of this user, unopened: for display. Only [`TokenVault::load`] proves it.
    ///
    /// # Errors
    /// As [`TokenStore::list`].
    pub async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        refuse_reserved(principal)?;
        self.0.store.list(principal).await
    }

    /// Deletes at most `limit` logins that ended before this instant, also those that could still be refreshed, and
    /// says how many. First-use pins stay for good.
    ///
    /// # Errors
    /// As [`TokenStore::purge`].
    pub async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        // A pin never ends: the end of its row must not be a fraction of a millisecond before the end of time.
        let ended_before = row::whole_milliseconds(ended_before);
        let purged = self.0.store.purge(ended_before, limit).await?;
        for (key, login) in self.0.live.ended_before(ended_before) {
            let present = self.0.store.load(&key).await;
            if present.is_ok_and(|record| record.is_none_or(|record| record.revision.login != login)) {
                self.0.live.end(&key, login);
                ended(&key, None, "purged");
            }
        }
        Ok(purged)
    }

    fn seal(
        &self,
        key: &TokenKey,
        revision: Revision,
        metadata: LoginMetadata,
        tokens: &TokenSet,
        extra: &Extra,
    ) -> Result<TokenRecord> {
        row::seal(&*self.0.sealer, key, revision, metadata, tokens, extra)
    }

    fn open(&self, key: &TokenKey, record: &TokenRecord) -> Result<(TokenSet, Extra)> {
        row::open(&*self.0.sealer, key, record).map_err(|error| noted(key, error))
    }
}

impl fmt::Debug for TokenVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVault")
            .field("store", &self.0.store)
            .field("sealer", &self.0.sealer)
            .finish_non_exhaustive()
    }
}

/// Why a login did not replace what stands there.
enum Replace {
    /// Another writer was first.
    Lost,
    Failed(Error),
}

impl From<Error> for Replace {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Conflict => Self::Lost,
            _ => Self::Failed(error),
        }
    }
}

/// Puts damage into the audit log and passes the error on.
fn noted(key: &TokenKey, error: Error) -> Error {
    if error.kind() == ErrorKind::RecordDamaged {
        AuditEvent::RecordDamaged {
            principal: &key.principal,
            issuer: &key.issuer,
        }
        .emit();
    }
    error
}

fn ended(key: &TokenKey, actor: Option<&Principal>, reason: &'static str) {
    AuditEvent::LoginEnded {
        principal: &key.principal,
        issuer: &key.issuer,
        client_id: &key.client_id,
        actor,
        reason,
    }
    .emit();
}

fn contended(what: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("could not {what}: it changed under every attempt, try again"),
    )
    .with_retryable(true)
}

fn refuse_reserved(principal: &EntityRef) -> Result<()> {
    match principal.kind() {
        pin::KIND => Err(Error::new(
            ErrorKind::Refused,
            format!("\"{}\" is a reserved kind, no user has a login there", pin::KIND),
        )),
        _ => Ok(()),
    }
}

/// Writers of one login are a user's browser tabs and a refresh or two: losing this often means something is wrong.
const ATTEMPTS: usize = 16;
