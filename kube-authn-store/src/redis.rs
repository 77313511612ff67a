//! Logins in Redis or Valkey.

mod advice;
mod connection;
mod error;
mod events;
mod link;
mod primary;
mod row;
mod url;

use std::sync::{Arc, LazyLock};

use ::redis::{Cmd, FromRedisValue, Script};
use async_trait::async_trait;
use jiff::Timestamp;
use kube_authn_core::{
    EntityRef, Error, ErrorKind, Expected, LoginEvents, LoginMetadata, Result, Revision, TokenKey,
    TokenRecord, TokenStore,
};
use tokio::sync::OnceCell;

pub use self::url::RedisOptions;
use self::{
    connection::Request,
    error::Failure,
    link::Link,
    primary::Place,
    row::{FIELDS, Keys, METADATA_FIELDS, Values},
};

/// Keeps logins in Redis 7 or Valkey, for any number of processes on any number of machines: one server, the primary that
/// sentinels name, or a cluster. Clones share one connection.
///
/// # Layout
/// `{kube-authn}:login:<principal>\0<issuer>\0<client>\0` is a hash, one per login: revision and metadata in fields, the
/// tokens sealed. `{kube-authn}:logins` indexes them by key, `{kube-authn}:ends` by their end, both sorted sets.
/// `{kube-authn}:layout` is the version of all this, `{kube-authn}:events` the channel that tells of changes. The name in
/// braces is the prefix of [`RedisOptions`].
///
/// # Atomicity
/// A save is one Lua script, sent once: it compares the revision, writes row and indexes, and tells of it. For that, all
/// keys are in one slot: a cluster gives the store failover and no more memory or speed than one of its nodes.
///
/// # Primary and replicas
/// The primary alone is read and written: each request goes out behind a question for the server's role, in one round
/// trip, and what a replica answers is dropped, errors too, since it may be old. Then every call is `Unavailable` until the
/// address, the sentinels or the cluster lead to a primary; subscriptions end. A primary that was replaced and has not heard
/// of it, being cut off from the others, is believed by whoever can reach it.
///
/// A replica refuses writes unless it has `replica-read-only no`. Such a one carries out what still reaches it over a
/// connection from before its demotion, and over a new one the note of the layout; its next full synchronisation undoes
/// that, and if it is made the primary without one, it stands, though the call said `Unavailable`.
///
/// # Durability
/// As durable as Redis is configured to be, which is to forget: [`RedisTokenStore::open`] warns unless it has
/// `appendonly yes`, `appendfsync always` and `maxmemory-policy noeviction`. Replicas are written to after the save was
/// acknowledged, so a failover may lose the last ones; `min-replicas-to-write` bounds that.
///
/// # Expiry
/// Rows stay until they are deleted or purged; none has a time to live of Redis's, which would tell nobody.
///
/// # Example
/// ```no_run
/// use kube_authn_core::{KeyId, Secret, TokenVault};
/// use kube_authn_store::{KeyRing, RedisTokenStore};
///
/// # async fn example(keys: KeyRing) -> kube_authn_core::Result<()> {
/// let store = RedisTokenStore::open("rediss://kube-authn:password@redis.example.com/").await?;
/// let vault = TokenVault::new(store, keys);
/// # let _ = vault;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RedisTokenStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: Link,
    advised: OnceCell<()>,
}

impl Inner {
    async fn call<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T> {
        let answer = async {
            self.reached().await?;
            self.link.asked(request).await
        };
        answer.await.map_err(|failure| failure.at(self.link.place()))
    }

    /// Warns of a Redis that forgets, once it can be reached.
    async fn reached(&self) -> Result<(), Failure> {
        if !self.advised.initialized() {
            // While Redis is down, callers wait for one attempt together, and not for each other.
            self.link.connection().await?;
            self.advised.get_or_init(|| advice::warn(&self.link)).await;
        }
        Ok(())
    }

    fn keys(&self) -> &Keys {
        &self.link.place().keys
    }
}

impl RedisTokenStore {
    /// Opens the store of a URL; [`RedisOptions`] says which there are.
    ///
    /// A Redis that does not answer is no error here: a warning says so, and every call is `Unavailable` until it does.
    ///
    /// # Errors
    /// `ConfigInvalid` if the URL is none, if Redis refuses user and password or does not let the user do what the store
    /// needs, or if what is there has a newer layout.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_with(RedisOptions::parse(url)?).await
    }

    /// Opens the store of these options.
    ///
    /// # Errors
    /// As [`RedisTokenStore::open`]; also `ConfigInvalid` if the CA cannot be used.
    pub async fn open_with(options: RedisOptions) -> Result<Self> {
        let (store, outage) = Self::reached(options).await?;
        if let Some(error) = outage {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "starting without the token store"
            );
        }
        Ok(store)
    }

    /// As [`RedisTokenStore::open_with`], for whoever has no use for a store that comes later.
    ///
    /// # Errors
    /// As [`RedisTokenStore::open_with`], and `Unavailable` or `Timeout` if Redis does not answer.
    pub async fn connect_with(options: RedisOptions) -> Result<Self> {
        let (store, outage) = Self::reached(options).await?;
        outage.map_or(Ok(store), Err)
    }

    /// A store, and why it does not answer if it does not.
    async fn reached(options: RedisOptions) -> Result<(Self, Option<Error>)> {
        if options.is_readable_on_the_way() {
            tracing::warn!(
                store = %options,
                "the token store is reached without TLS: who reads the network learns the password and who logs in where, \
                 use rediss",
            );
        }
        let store = Self(Arc::new(Inner {
            link: Link::new(Place::new(options)?),
            advised: OnceCell::new(),
        }));
        match store.0.reached().await {
            Ok(()) => {}
            Err(failure) if failure.is_configuration() => {
                return Err(failure.opening(store.0.link.place()));
            }
            Err(failure) => {
                let error = failure.at(store.0.link.place());
                return Ok((store, Some(error)));
            }
        }
        Ok((store, None))
    }

    /// Closes the connections of this store and its clones; every call after that is `Unavailable`.
    pub fn close(&self) {
        self.0.link.close();
    }

    /// Rows of a range of the index, as they are.
    async fn rows(&self, range: [&[u8]; 2], limit: i64, fields: usize) -> Result<Vec<(Vec<u8>, Values)>> {
        let keys = self.0.keys();
        let mut read = READ.prepare_invoke();
        read.key(&keys.members)
            .arg(&keys.rows)
            .arg(range[0])
            .arg(range[1])
            .arg(limit)
            .arg(&FIELDS[..fields]);
        self.0.call(Request::ReadScript(&read)).await
    }
}

#[async_trait]
impl TokenStore for RedisTokenStore {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        let keys = self.0.keys();
        let mut read = Cmd::new();
        read.arg("HMGET").arg(keys.row(&row::member(key))).arg(&FIELDS);
        row::record(self.0.call(Request::Read(&read)).await?)
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        let keys = self.0.keys();
        let member = row::member(key);
        let mut save = SAVE.prepare_invoke();
        save.key(keys.row(&member))
            .key(&keys.members)
            .key(&keys.ends)
            .arg(&member)
            .arg(&keys.events);
        match expected {
            Expected::Absent => save.arg("").arg(""),
            Expected::At(revision) => save.arg(&revision.login.as_bytes()[..]).arg(revision.number),
        };
        save.arg(row::purgeable_from(&record.metadata));
        row::push_fields(record, &mut save);
        match self.0.call(Request::WriteScript(&save)).await? {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Conflict,
                "another writer saved this login first: load it again",
            )),
        }
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        let keys = self.0.keys();
        let member = row::member(key);
        let mut delete = DELETE.prepare_invoke();
        delete
            .key(keys.row(&member))
            .key(&keys.members)
            .key(&keys.ends)
            .arg(&member)
            .arg(&keys.events);
        self.0.call(Request::WriteScript(&delete)).await
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        let part = row::principal_part(principal);
        // No issuer begins with FF, so this is behind all members of the principal and before those of anybody else.
        let (from, to) = ([b"[", &part[..]].concat(), [b"(", &part[..], b"\xff"].concat());
        let rows = self.rows([&from, &to], ALL, METADATA_FIELDS).await?;
        rows.iter()
            .filter(|(_, values)| !row::is_absent(values))
            .map(|(member, values)| Ok((row::key(member)?, row::revision(values)?, row::metadata(values)?)))
            .collect()
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        let keys = self.0.keys();
        let mut purged = 0;
        while purged < limit {
            let page = PAGE.min(limit - purged);
            let mut purge = PURGE.prepare_invoke();
            purge
                .key(&keys.members)
                .key(&keys.ends)
                .arg(&keys.rows)
                .arg(&keys.events)
                .arg(ended_before.as_millisecond())
                .arg(page);
            let (taken, deleted): (u32, u32) = self.0.call(Request::WriteScript(&purge)).await?;
            purged += deleted;
            if taken < page {
                break;
            }
        }
        Ok(purged)
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        let behind = |member: &[u8]| [b"(", member].concat();
        let mut from = after.map_or_else(|| b"-".to_vec(), |key| behind(&row::member(key)));
        loop {
            let rows = self
                .rows([&from, b"+"], PAGE.min(limit).into(), FIELDS.len())
                .await?;
            let Some((last, _)) = rows.last() else {
                return Ok(Vec::new());
            };
            from = behind(last);
            let page: Vec<_> = rows
                .into_iter()
                .filter_map(|(member, values)| scanned(&member, values))
                .collect();
            if !page.is_empty() {
                return Ok(page);
            }
        }
    }

    async fn events(&self) -> Result<LoginEvents> {
        events::subscribe(&self.0).await
    }
}

/// One row of a scan. A row that none of us wrote stops nobody from scanning the others; loading it says what it is.
fn scanned(member: &[u8], values: Values) -> Option<(TokenKey, TokenRecord)> {
    match row::key(member).and_then(|key| Ok(row::record(values)?.map(|record| (key, record)))) {
        Ok(row) => row,
        Err(error) => {
            tracing::warn!(%error, "left a row of the token store out of a scan");
            None
        }
    }
}

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/read.lua")));
static SAVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/save.lua")));
static DELETE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/delete.lua")));
static PURGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/purge.lua")));

/// Rows that one script reads or deletes: Redis serves nobody else meanwhile, and this many take it a few milliseconds.
const PAGE: u32 = 500;
/// Redis's word for a limit that there is none of.
const ALL: i64 = -1;
