//! Logins in PostgreSQL.

pub(crate) mod address;
mod connections;
mod error;
mod events;
mod files;
mod schema;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use kube_authn_core::{
    EntityRef, Error, ErrorKind, Expected, LoginEvents, LoginMetadata, Result, Revision, TokenKey,
    TokenRecord, TokenStore,
};
use sqlx::postgres::{PgConnectOptions, PgRow};
use tokio::sync::{OnceCell, watch};

use self::{
    address::Address,
    connections::{Connections, Statement},
    error::PostgresError,
    schema::Failed,
};
use crate::row::{self, key, metadata, number, record, revision};

/// Keeps logins in a PostgreSQL database (13 or later), for any number of replicas. Clones share the connections.
///
/// # Layout
/// Table `kube_authn_logins` holds one row per login: key, revision and metadata in columns, the tokens sealed.
/// `kube_authn_schema` tells which migrations (`migrations/postgres`) the schema has seen; the first schema of `search_path`
/// holds both. A process holds at most eleven connections: ten that run one statement each, one that listens.
///
/// # Atomicity
/// Load and save are one statement and one round trip each; a save compares the revision in the statement that writes.
/// A save is acknowledged once it is on the server's disk. Triggers notify every process of each change, in the order of
/// commits; a subscription ends when its connection does. Reads and writes go to the primary alone, since a standby may be
/// behind and would serve users who have logged out. A read that finds its connection broken is tried once on a new one;
/// a write is not, it may have happened.
///
/// # Expiry
/// Rows stay until they are deleted or purged; an index on their end makes a purge as long as what it deletes.
///
/// # Example
/// ```no_run
/// use kube_authn_core::TokenVault;
/// use kube_authn_store::{KeyRing, PostgresTokenStore};
///
/// # async fn example(keys: KeyRing) -> kube_authn_core::Result<()> {
/// let url = "postgres://portal:secret@db.example.com/portal?sslmode=verify-full&sslrootcert=/etc/db-ca.pem";
/// let vault = TokenVault::new(PostgresTokenStore::open(url).await?, keys);
/// # let _ = vault;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PostgresTokenStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: Arc<Connections>,
    migrated: OnceCell<()>,
    hub: events::Hub,
    /// False, or gone, once the store is.
    open: watch::Sender<bool>,
}

impl PostgresTokenStore {
    /// Whether this is the URL of a store, its certificates and key included, without connecting: what a check of the
    /// configuration asks.
    ///
    /// # Errors
    /// `ConfigInvalid` if it is not; the text shows nothing of it but a parameter's name, a host and a file's path.
    pub fn validate(url: &str) -> Result<()> {
        Address::parse(url).map(drop)
    }

    /// Opens the database of a URL `postgres://user:password@host:port/database` and brings its schema up to date.
    ///
    /// Several servers, `@one:5432,two:5432/`, are asked in turn for the one that is the primary. `sslmode`
    /// (required off loopback, best `verify-full`), `sslrootcert`, `sslcert` and `sslkey` are as in libpq;
    /// `options[search_path]=name` chooses the schema. What the URL leaves out comes from `PGHOST` and its kin, and the
    /// password from `~/.pgpass`.
    ///
    /// A server that does not answer is no error here: a warning says so, and every call is `Unavailable` until it does.
    ///
    /// # Errors
    /// `ConfigInvalid` if the URL is none, the server refuses the user or has no such database, the user may not make the
    /// tables, the schema is newer than this program can use, or a pooler is between that does not keep sessions. No text
    /// shows the password.
    pub async fn open(url: &str) -> Result<Self> {
        Self::start(Address::parse(url)?).await
    }

    /// As [`PostgresTokenStore::open`], for whoever has no use for a store that comes later.
    ///
    /// # Errors
    /// As [`PostgresTokenStore::open`], and `Unavailable` or `Timeout` if the server does not answer.
    pub async fn connect(url: &str) -> Result<Self> {
        let (store, outage) = Self::reached(Address::parse(url)?).await?;
        outage.map_or(Ok(store), Err)
    }

    /// Opens the database of these options, for settings that the URL has no words for.
    ///
    /// # Errors
    /// As [`PostgresTokenStore::open`].
    pub async fn open_with(options: PgConnectOptions) -> Result<Self> {
        Self::start(Address::of(vec![options])).await
    }

    async fn start(address: Address) -> Result<Self> {
        let (store, outage) = Self::reached(address).await?;
        if let Some(error) = outage {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "starting without the token store"
            );
        }
        Ok(store)
    }

    /// A store, and why it does not answer if it does not.
    async fn reached(address: Address) -> Result<(Self, Option<Error>)> {
        if let Some(server) = address.unverified() {
            tracing::warn!(
                "the token store's server {server} is not verified: add sslmode=verify-full and sslrootcert to \
                 kubeAuthn.store.url"
            );
        }
        let store = Self(Arc::new(Inner {
            connections: Arc::new(Connections::new(address)),
            migrated: OnceCell::new(),
            hub: events::Hub::default(),
            open: watch::Sender::new(true),
        }));
        match store.migrated().await {
            Ok(()) => {}
            Err(Failed::Newer(error)) => return Err(error),
            Err(Failed::Server(error)) if error.is_of_the_configuration() => {
                return Err(error.opening(&store.0.connections.address.place));
            }
            Err(Failed::Server(error)) => {
                let error = store.failed(error);
                return Ok((store, Some(error)));
            }
        }
        Ok((store, None))
    }

    /// Closes all connections of this store and its clones; every call after that is `Unavailable`.
    pub async fn close(&self) {
        self.0.open.send_replace(false);
        self.0.connections.close();
    }

    /// Brings the schema up to date if that could not be done before.
    async fn ready(&self) -> Result<()> {
        self.migrated().await.map_err(|failed| match failed {
            Failed::Server(error) => self.failed(error),
            Failed::Newer(error) => error,
        })
    }

    async fn migrated(&self) -> Result<(), Failed> {
        let migrate = async || {
            schema::migrate(&self.0.connections).await?;
            // Between a pooler's transactions a prepared statement is another client's.
            events::prove_once(&self.0).await.map_err(Failed::Server)
        };
        self.0.migrated.get_or_try_init(migrate).await?;
        Ok(())
    }

    async fn read<'q>(&self, statement: impl Fn() -> Statement<'q>) -> Result<Vec<PgRow>> {
        self.ready().await?;
        let rows = self.0.connections.read(statement).await;
        rows.map_err(|error| self.failed(error))
    }

    async fn write(&self, statement: Statement<'_>) -> Result<u64> {
        self.ready().await?;
        let written = self.0.connections.write(statement).await;
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: PostgresError) -> Error {
        error.at(&self.0.connections.address.place)
    }

    async fn page(&self, after: &[String; 3], limit: u32) -> Result<Vec<PgRow>> {
        self.read(|| {
            sqlx::query(
                "SELECT principal, issuer, client_id, login, number, subject, expires_at, refreshable, \
                        refreshing_owner, refreshing_until, created_at, updated_at, key_id, sealed \
                 FROM kube_authn_logins WHERE (principal, issuer, client_id) > ($1, $2, $3) \
                 ORDER BY principal, issuer, client_id LIMIT $4",
            )
            .bind(&after[0])
            .bind(&after[1])
            .bind(&after[2])
            .bind(i64::from(limit))
        })
        .await
    }
}

#[async_trait]
impl TokenStore for PostgresTokenStore {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        let rows = self.read(|| {
            sqlx::query(
                "SELECT login, number, subject, expires_at, refreshable, refreshing_owner, refreshing_until, \
                        created_at, updated_at, key_id, sealed \
                 FROM kube_authn_logins WHERE principal = $1 AND issuer = $2 AND client_id = $3",
            )
            .bind(key.principal.as_str())
            .bind(key.issuer.as_str())
            .bind(key.client_id.as_str())
        });
        rows.await?.first().map(record).transpose()
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        let mark = record.metadata.refreshing.as_ref();
        let number_written = number(record.revision)?;
        let columns = |statement: &'static str| {
            sqlx::query(statement)
                .bind(key.principal.as_str())
                .bind(key.issuer.as_str())
                .bind(key.client_id.as_str())
                .bind(&record.revision.login.as_bytes()[..])
                .bind(number_written)
                .bind(record.metadata.subject.as_str())
                .bind(record.metadata.expires_at.as_millisecond())
                .bind(record.metadata.refreshable)
                .bind(mark.map(|mark| &mark.owner.as_bytes()[..]))
                .bind(mark.map(|mark| mark.until.as_millisecond()))
                .bind(record.metadata.created_at.as_millisecond())
                .bind(record.metadata.updated_at.as_millisecond())
                .bind(record.key_id.as_str())
                .bind(&record.sealed[..])
        };
        let statement = match &expected {
            Expected::Absent => columns(
                "INSERT INTO kube_authn_logins \
                 (principal, issuer, client_id, login, number, subject, expires_at, refreshable, refreshing_owner, \
                  refreshing_until, created_at, updated_at, key_id, sealed) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT DO NOTHING",
            ),
            Expected::At(revision) => columns(
                "UPDATE kube_authn_logins \
                 SET login = $4, number = $5, subject = $6, expires_at = $7, refreshable = $8, refreshing_owner = $9, \
                     refreshing_until = $10, created_at = $11, updated_at = $12, key_id = $13, sealed = $14 \
                 WHERE principal = $1 AND issuer = $2 AND client_id = $3 AND login = $15 AND number = $16",
            )
            .bind(&revision.login.as_bytes()[..])
            .bind(number(*revision)?),
        };
        match self.write(statement).await? {
            0 => Err(Error::new(
                ErrorKind::Conflict,
                "another writer saved this login first: load it again",
            )),
            _ => Ok(()),
        }
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        let statement = sqlx::query(
            "DELETE FROM kube_authn_logins WHERE principal = $1 AND issuer = $2 AND client_id = $3",
        )
        .bind(key.principal.as_str())
        .bind(key.issuer.as_str())
        .bind(key.client_id.as_str());
        Ok(self.write(statement).await? > 0)
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        let rows = self.read(|| {
            sqlx::query(
                "SELECT principal, issuer, client_id, login, number, subject, expires_at, refreshable, \
                        refreshing_owner, refreshing_until, created_at, updated_at \
                 FROM kube_authn_logins WHERE principal = $1 ORDER BY issuer, client_id",
            )
            .bind(principal.as_str())
        });
        let rows = rows.await?;
        rows.iter()
            .map(|row| Ok((key(row)?, revision(row)?, metadata(row)?)))
            .collect()
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        // Locked and looked at again before it goes: a row that a refresh has just saved or claimed stays, and two
        // purges share the work.
        let statement = sqlx::query(
            "DELETE FROM kube_authn_logins WHERE ctid = ANY (ARRAY( \
                 SELECT ctid FROM kube_authn_logins \
                 WHERE expires_at < $1 AND (refreshing_until IS NULL OR refreshing_until <= $1) \
                 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))",
        )
        .bind(ended_before.as_millisecond())
        .bind(i64::from(limit));
        Ok(u32::try_from(self.write(statement).await?).unwrap_or(limit))
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        row::scan(after, |after| async move { self.page(&after, limit).await }).await
    }

    async fn events(&self) -> Result<LoginEvents> {
        events::subscribe(self).await
    }
}
