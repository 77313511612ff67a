//! Where logins are kept. A store sees sealed bytes and metadata, never a token.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::{EntityRef, KeyId, LoginId, LoginMetadata, Result, Revision, Secret, TokenKey, TokenRecord};

/// What must stand in the row for a save to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "complete: a row is absent or at a revision"
)]
pub enum Expected {
    /// No row with this key.
    Absent,
    /// A row at exactly this revision.
    At(Revision),
}

/// Keeps sealed logins. Clones of a store share its content.
///
/// # Contract
/// Each line is a check of the conformance suite (feature `conformance`).
///
/// 1. What was saved is loaded back equal, all fields, to the millisecond.
/// 2. Keys are compared exactly and completely: keys that differ in one character of one part never meet, whatever
///    separators or wildcards they hold.
/// 3. `save` with [`Expected::Absent`] on a present row, or [`Expected::At`] another revision or an absent row, changes
///    nothing and gives `Conflict`. Of several writers that expect the same, exactly one succeeds.
/// 4. A save is whole or not there, also when the process dies in the middle.
/// 5. `delete` says whether there was a row; a deleted row is absent for everybody from then on.
/// 6. `list` gives the metadata of all logins of one principal and of nobody else.
/// 7. `purge` deletes rows whose `expires_at` lies before the instant, at most `limit`, and says how many. A row with a
///    refresh mark whose deadline has not passed that instant stays.
/// 8. `scan` visits every row that is there throughout exactly once, in ascending order of keys, in pages.
/// 9. `events` tells of every change made by anybody after the call returned, within a second: `Changed` for a save,
///    `Ended` for a login that was deleted, purged, or replaced by another login; `Gap` when some may have been lost.
///    A receiver that is slow or gone stops no writer.
/// 10. Every failure of the medium is `Unavailable` (or `Timeout`) and leaves rows as they were.
#[async_trait]
pub trait TokenStore: fmt::Debug + Send + Sync + 'static {
    /// The row under this key.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if the medium does not answer; `RecordDamaged` if a row is there and is no row of ours.
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>>;

    /// Writes the row if what stands there is as expected.
    ///
    /// # Errors
    /// `Conflict` if it is not; else as [`TokenStore::load`].
    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()>;

    /// Deletes the row and says whether there was one.
    ///
    /// # Errors
    /// As [`TokenStore::load`].
    async fn delete(&self, key: &TokenKey) -> Result<bool>;

    /// What may be known of the logins of one principal.
    ///
    /// # Errors
    /// As [`TokenStore::load`].
    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>>;

    /// Deletes at most `limit` rows that ended before this instant, and says how many.
    ///
    /// # Errors
    /// As [`TokenStore::load`].
    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32>;

    /// At most `limit` rows behind this key, in ascending order of keys.
    ///
    /// # Errors
    /// As [`TokenStore::load`].
    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>>;

    /// A subscription to changes, made here or by another process on the same medium.
    ///
    /// # Errors
    /// As [`TokenStore::load`].
    async fn events(&self) -> Result<LoginEvents>;
}

#[async_trait]
impl<S: TokenStore + ?Sized> TokenStore for std::sync::Arc<S> {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        (**self).load(key).await
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        (**self).save(key, record, expected).await
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        (**self).delete(key).await
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        (**self).list(principal).await
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        (**self).purge(ended_before, limit).await
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        (**self).scan(after, limit).await
    }

    async fn events(&self) -> Result<LoginEvents> {
        (**self).events().await
    }
}

/// Something happened to a login.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoginEvent {
    /// A row was written.
    Changed {
        /// Which row.
        key: TokenKey,
        /// The revision that stands there now.
        revision: Revision,
    },
    /// A login is no more: its row was deleted, purged, or now holds another login.
    Ended {
        /// Which row.
        key: TokenKey,
        /// The login that ended.
        login: LoginId,
    },
    /// Events may have been lost: whatever was learnt from them must be learnt again.
    Gap,
}

/// A subscription to [`LoginEvent`]s; dropping it ends it.
#[derive(Debug)]
pub struct LoginEvents(mpsc::Receiver<LoginEvent>);

impl LoginEvents {
    /// A subscription fed from the other end of the channel.
    pub fn new(receiver: mpsc::Receiver<LoginEvent>) -> Self {
        Self(receiver)
    }

    /// The next event; `None` once the subscription ended, since the store is gone or its connection broke. What happens
    /// from then on is lost: who subscribes again has missed what came between.
    pub async fn next(&mut self) -> Option<LoginEvent> {
        self.0.recv().await
    }
}

/// Seals and opens: authenticated encryption with associated data.
///
/// Opening with another associated data, another key, or one changed bit fails; nothing is ever returned unverified.
pub trait Sealer: fmt::Debug + Send + Sync + 'static {
    /// Seals `plain`, bound to `bound_to`, and says with which key.
    ///
    /// # Errors
    /// `Unexpected` if the system has no random numbers.
    fn seal(&self, bound_to: &[u8], plain: &[u8]) -> Result<(KeyId, Bytes)>;

    /// Opens what was sealed with this key and bound to the same bytes.
    ///
    /// # Errors
    /// `RecordDamaged` if the key is not in the ring or the bytes do not verify.
    fn open(&self, key_id: &KeyId, bound_to: &[u8], sealed: &[u8]) -> Result<Secret>;

    /// Whether this key is gone for good and somebody said so: what it sealed counts as not there. Without an answer of your
    /// own, no key is.
    fn is_lost(&self, _key_id: &KeyId) -> bool {
        false
    }
}

impl<S: Sealer + ?Sized> Sealer for std::sync::Arc<S> {
    fn seal(&self, bound_to: &[u8], plain: &[u8]) -> Result<(KeyId, Bytes)> {
        (**self).seal(bound_to, plain)
    }

    fn open(&self, key_id: &KeyId, bound_to: &[u8], sealed: &[u8]) -> Result<Secret> {
        (**self).open(key_id, bound_to, sealed)
    }

    fn is_lost(&self, key_id: &KeyId) -> bool {
        (**self).is_lost(key_id)
    }
}
