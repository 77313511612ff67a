//! Logins and the tokens in them: keys, rows, revisions, and the arithmetic of expiry.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use crate::{ClientId, EntityRef, Error, ErrorKind, Issuer, Result, Secret, Subject};

/// Which login: one user, one issuer, one client. One login serves every cluster of that issuer and client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenKey {
    /// Whose login.
    pub principal: EntityRef,
    /// Who issued the tokens.
    pub issuer: Issuer,
    /// For which client.
    pub client_id: ClientId,
}

/// One token and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub secret: Secret,
    /// UTC instant from which nobody accepts it any more.
    pub expires_at: Timestamp,
}

impl Token {
    /// Whether it is still worth sending at this instant: it lives for at least [`USABLE_MARGIN`] more.
    pub fn usable(&self, now: Timestamp) -> bool {
        usable(self.expires_at, now)
    }
}

/// Whether something that ends at `expires_at` is still worth sending: it lives for at least [`USABLE_MARGIN`] more.
/// This one function decides for the provider, for status and for handing tokens out.
pub fn usable(expires_at: Timestamp, now: Timestamp) -> bool {
    expires_at.duration_since(now) > SignedDuration::from_secs(USABLE_MARGIN.as_secs() as i64)
}

/// How long before its end something with this lifetime should be renewed: a fifth of the lifetime, at least a minute.
pub fn refresh_margin(lifetime: Duration) -> Duration {
    (lifetime / 5).max(Duration::from_secs(60))
}

/// A request takes a while to arrive, and clocks differ by seconds.
pub const USABLE_MARGIN: Duration = Duration::from_secs(30);

/// What an issuer gave: at least one of ID token and access token, perhaps a refresh token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenSet {
    /// The ID token (OpenID Connect Core section 2).
    pub id_token: Option<Token>,
    /// The access token (RFC 6749 section 1.4).
    pub access_token: Option<Token>,
    /// The refresh token (RFC 6749 section 1.5).
    pub refresh_token: Option<Secret>,
}

impl TokenSet {
    /// A set with nothing in it yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the ID token.
    pub fn with_id_token(mut self, token: Token) -> Self {
        self.id_token = Some(token);
        self
    }

    /// Adds the access token.
    pub fn with_access_token(mut self, token: Token) -> Self {
        self.access_token = Some(token);
        self
    }

    /// Adds the refresh token.
    pub fn with_refresh_token(mut self, token: Secret) -> Self {
        self.refresh_token = Some(token);
        self
    }
}

/// Which login a row belongs to, chosen at random at each login: an old refresh cannot pass for a new login.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoginId([u8; 16]);

impl LoginId {
    /// A new identifier from the operating system's random numbers.
    ///
    /// # Errors
    /// `Unexpected` if there are none.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|source| Error::new(ErrorKind::Unexpected, "no random numbers").with_source(source))?;
        Ok(Self(bytes))
    }

    /// The identifier that a store kept.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes that a store keeps.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for LoginId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LoginId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which state of which login: the writer chooses the next one before it seals, so what is sealed is bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Revision {
    /// The login.
    pub login: LoginId,
    /// Counts the writes of this login, from 1.
    pub number: u64,
}

impl Revision {
    /// The first revision of a new login.
    ///
    /// # Errors
    /// `Unexpected` if the system has no random numbers.
    pub fn first() -> Result<Self> {
        Ok(Self {
            login: LoginId::random()?,
            number: 1,
        })
    }

    /// The revision after this one.
    pub fn next(self) -> Self {
        Self {
            number: self.number.saturating_add(1),
            ..self
        }
    }
}

/// What may be known of a login without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoginMetadata {
    /// Whom the issuer named.
    pub subject: Subject,
    /// UTC instant at which the token that clusters get ends.
    pub expires_at: Timestamp,
    /// Whether there is a refresh token in the sealed part.
    pub refreshable: bool,
    /// Set while somebody spends the refresh token.
    pub refreshing: Option<RefreshMark>,
    /// UTC instant of the login.
    pub created_at: Timestamp,
    /// UTC instant of the last write.
    pub updated_at: Timestamp,
}

impl LoginMetadata {
    /// Metadata of a login made at `now`.
    pub fn new(subject: Subject, expires_at: Timestamp, refreshable: bool, now: Timestamp) -> Self {
        Self {
            subject,
            expires_at,
            refreshable,
            refreshing: None,
            created_at: now,
            updated_at: now,
        }
    }
}

/// Who is spending the refresh token, and until when: lease, fence and crash mark in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshMark {
    /// A name for the process, random at its start.
    pub owner: LoginId,
    /// UTC instant after which the owner must be taken for dead: the deadline of its own token call.
    pub until: Timestamp,
}

/// A row as a store sees it: sealed bytes and metadata, no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Which state of which login.
    pub revision: Revision,
    /// What may be known without opening it.
    pub metadata: LoginMetadata,
    /// Which key of the key ring sealed it.
    pub key_id: KeyId,
    /// The tokens, sealed and bound to key, revision and metadata.
    pub sealed: Bytes,
}

/// The name of a key in the key ring: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// Checks and takes the name.
    ///
    /// # Errors
    /// `ConfigInvalid` if it is empty, too long or holds other characters.
    pub fn new(id: &str) -> Result<Self> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        match !id.is_empty() && id.len() <= 64 && id.bytes().all(legal) {
            true => Ok(Self(id.into())),
            false => Err(Error::new(
                ErrorKind::ConfigInvalid,
                "not a key id: expected 1 to 64 characters of A-Z a-z 0-9 . _ -",
            )),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The life of one login in this process. Every credential made from it holds a clone, so its end is seen at once
/// wherever the credential lies: one atomic read, no search.
#[derive(Clone)]
pub struct LoginHandle(Arc<LoginLife>);

struct LoginLife {
    id: LoginId,
    ended: AtomicBool,
    changed: Notify,
}

impl LoginHandle {
    /// A handle of a login that lives.
    pub fn new(id: LoginId) -> Self {
        Self(Arc::new(LoginLife {
            id,
            ended: AtomicBool::new(false),
            changed: Notify::new(),
        }))
    }

    /// Which login.
    pub fn id(&self) -> LoginId {
        self.0.id
    }

    /// Whether the login has ended.
    pub fn is_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// Ends the login for every holder, for good.
    pub fn end(&self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// Returns when the login has ended; used to cut open streams.
    pub async fn ended(&self) {
        let mut changed = std::pin::pin!(self.0.changed.notified());
        changed.as_mut().enable();
        if !self.is_ended() {
            changed.await;
        }
    }

    /// A handle that does not keep the login's state alive.
    pub fn downgrade(&self) -> WeakLoginHandle {
        WeakLoginHandle(Arc::downgrade(&self.0))
    }
}

impl fmt::Debug for LoginHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginHandle")
            .field("id", &self.0.id)
            .field("ended", &self.is_ended())
            .finish()
    }
}

/// A [`LoginHandle`] that does not keep the login's state alive.
#[derive(Clone)]
pub struct WeakLoginHandle(std::sync::Weak<LoginLife>);

impl WeakLoginHandle {
    /// The handle, if anybody still holds one.
    pub fn upgrade(&self) -> Option<LoginHandle> {
        self.0.upgrade().map(LoginHandle)
    }
}

impl fmt::Debug for WeakLoginHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakLoginHandle")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_ends_half_a_minute_early() {
        let end = Timestamp::from_second(1_000).expect("an instant");

        assert!(usable(end, Timestamp::from_second(969).expect("an instant")));
        assert!(!usable(end, Timestamp::from_second(970).expect("an instant")));
        assert!(!usable(Timestamp::MIN, Timestamp::MAX));
    }

    #[test]
    fn margin_is_a_fifth_but_at_least_a_minute() {
        assert_eq!(
            refresh_margin(Duration::from_secs(3600)),
            Duration::from_secs(720)
        );
        assert_eq!(refresh_margin(Duration::from_secs(10)), Duration::from_secs(60));
    }

    #[tokio::test]
    async fn end_of_a_login_wakes_every_holder() {
        let login = LoginHandle::new(LoginId::from_bytes([7; 16]));
        let waiting = tokio::spawn({
            let login = login.clone();
            async move { login.ended().await }
        });

        login.end();

        waiting.await.expect("woken");
        login.ended().await;
        assert!(login.is_ended());
    }
}
