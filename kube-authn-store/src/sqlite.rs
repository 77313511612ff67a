//! Logins in one SQLite file.

mod error;
mod events;
mod schema;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use kube_authn_core::{
    EntityRef, Error, ErrorKind, Expected, LoginEvents, LoginMetadata, Result, Revision, TokenKey,
    TokenRecord, TokenStore,
};
use sqlx::{
    ConnectOptions, SqlitePool,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow,
        SqliteSynchronous,
    },
};
use tokio::sync::Notify;

use self::error::SqliteError;
use crate::row::{self, key, metadata, number, record, revision};

/// Keeps logins in one SQLite file, for one machine: any number of processes may have it open. Clones share the file.
///
/// # Layout
/// Table `kube_authn_logins` holds one row per login: key, revision and metadata in columns, the tokens sealed.
/// `kube_authn_events` holds the last 10,000 changes, written by triggers; every process polls it. The schema is
/// `migrations/sqlite`. The file is made with mode 0600, and SQLite gives its `-wal` and `-shm` files the same. Keep it on a
/// local disk: SQLite's locks do not hold on network file systems.
///
/// # Atomicity
/// A save is one statement that compares the revision and writes the row. Write-ahead log with `synchronous = FULL`: a
/// commit is on the disk before it is acknowledged, so neither a killed process nor a power cut loses a rotated refresh
/// token or brings a deleted login back (`NORMAL` would lose the last commits at a power cut, and logins are rare enough
/// to wait for a disk). Writers queue for one connection, and for at most [`BUSY_TIMEOUT`] behind other processes; readers
/// wait for nobody.
///
/// # Expiry
/// Rows stay until they are deleted or purged; an index on their end makes a purge as long as what it deletes.
///
/// # Example
/// ```no_run
/// use kube_authn_core::{KeyId, Secret, TokenVault};
/// use kube_authn_store::{KeyRing, SqliteTokenStore};
///
/// # async fn example(keys: KeyRing) -> kube_authn_core::Result<()> {
/// let store = SqliteTokenStore::open("sqlite://kube-authn.db").await?;
/// let vault = TokenVault::new(store, keys);
/// # let _ = vault;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SqliteTokenStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// One connection: writers of one process queue here, in order, and not at SQLite's lock, where they would poll.
    writer: SqlitePool,
    readers: SqlitePool,
    /// Tells the subscriptions of this process that there is something to read, or that the store is gone.
    written: Arc<Notify>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.written.notify_waiters();
    }
}

impl SqliteTokenStore {
    /// Opens the file of a URL `sqlite://path` (relative to the working directory, or absolute as in
    /// `sqlite:///var/lib/kube-authn.db`), makes it if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// `ConfigInvalid` if the URL is none, or the file is no database, has a newer schema, or can't be opened for writing;
    /// the text names the path. `Unavailable` if another process keeps it locked.
    pub async fn open(url: &str) -> Result<Self> {
        let path = Self::path_of(url)?;
        Self::open_with(SqliteConnectOptions::new().filename(path)).await
    }

    /// The path in a URL of a store. Looks at no file.
    ///
    /// # Errors
    /// `ConfigInvalid` if the URL is none.
    pub fn path_of(url: &str) -> Result<&Path> {
        url.strip_prefix("sqlite://")
            .filter(|path| !path.is_empty() && !path.contains(['?', '#']) && *path != ":memory:")
            .map(Path::new)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::ConfigInvalid,
                    "not the URL of an SQLite store: expected sqlite://path/to/file.db without parameters",
                )
            })
    }

    /// Whether the file of a URL is there; [`SqliteTokenStore::open`] would make it. Opens and makes nothing.
    ///
    /// # Errors
    /// `ConfigInvalid` if the URL is none, if something else than a file has this path, or if it has no folder; the text
    /// names the path.
    pub fn is_there(url: &str) -> Result<bool> {
        let path = Self::path_of(url)?;
        is_there(path).map_err(|error| error.opening(path))
    }

    /// Opens the file of these options, for settings that the URL has no words for. What the promises of this store rest
    /// on (journal, durability, time limit) is set over them.
    ///
    /// # Errors
    /// As [`SqliteTokenStore::open`].
    pub async fn open_with(options: SqliteConnectOptions) -> Result<Self> {
        let path = options.get_filename().to_owned();
        if path.as_os_str().is_empty() || path.starts_with(":memory:") {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                "an SQLite store needs a file: use the memory store to keep nothing",
            ));
        }
        let cannot_open = |error: SqliteError| error.opening(&path);
        is_there(&path).map_err(cannot_open)?;
        create_private(&path).map_err(|source| cannot_open(SqliteError::File(source)))?;
        let options = options
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                // A connection is a file handle of this process: it neither goes stale nor has to be asked.
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let writer = pool(1)
            .connect_with(options.clone())
            .await
            .map_err(|source| cannot_open(source.into()))?;
        schema::migrate(&writer, &path).await?;
        let readers = pool(READERS).connect_lazy_with(options);
        Ok(Self(Arc::new(Inner {
            path,
            writer,
            readers,
            written: Arc::new(Notify::new()),
        })))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Closes all connections of this store and its clones; every call after that is `Unavailable`.
    pub async fn close(&self) {
        self.0.writer.close().await;
        self.0.readers.close().await;
    }

    /// Runs one statement that writes, and says how many rows it wrote.
    async fn write(&self, statement: sqlx::query::Query<'_, sqlx::Sqlite, SqliteArguments>) -> Result<u64> {
        let done = statement
            .execute(&self.0.writer)
            .await
            .map_err(|source| self.failed(source))?;
        if done.rows_affected() > 0 {
            self.0.written.notify_waiters();
        }
        Ok(done.rows_affected())
    }

    async fn page(&self, after: &[String; 3], limit: u32) -> Result<Vec<SqliteRow>> {
        sqlx::query(
            "SELECT principal, issuer, client_id, login, number, subject, expires_at, refreshable, \
                    refreshing_owner, refreshing_until, created_at, updated_at, key_id, sealed \
             FROM kube_authn_logins WHERE (principal, issuer, client_id) > (?, ?, ?) \
             ORDER BY principal, issuer, client_id LIMIT ?",
        )
        .bind(&after[0])
        .bind(&after[1])
        .bind(&after[2])
        .bind(limit)
        .fetch_all(&self.0.readers)
        .await
        .map_err(|source| self.failed(source))
    }

    fn failed(&self, source: sqlx::Error) -> Error {
        SqliteError::Statement(source).at(&self.0.path)
    }
}

#[async_trait]
impl TokenStore for SqliteTokenStore {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        sqlx::query(
            "SELECT login, number, subject, expires_at, refreshable, refreshing_owner, refreshing_until, \
                    created_at, updated_at, key_id, sealed \
             FROM kube_authn_logins WHERE principal = ? AND issuer = ? AND client_id = ?",
        )
        .bind(key.principal.as_str())
        .bind(key.issuer.as_str())
        .bind(key.client_id.as_str())
        .fetch_optional(&self.0.readers)
        .await
        .map_err(|source| self.failed(source))?
        .map(|row| record(&row))
        .transpose()
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        let number = number(record.revision)?;
        let mark = record.metadata.refreshing.as_ref();
        let columns = |statement: &'static str| {
            sqlx::query(statement)
                .bind(record.revision.login.as_bytes().to_vec())
                .bind(number)
                .bind(record.metadata.subject.as_str())
                .bind(record.metadata.expires_at.as_millisecond())
                .bind(record.metadata.refreshable)
                .bind(mark.map(|mark| mark.owner.as_bytes().to_vec()))
                .bind(mark.map(|mark| mark.until.as_millisecond()))
                .bind(record.metadata.created_at.as_millisecond())
                .bind(record.metadata.updated_at.as_millisecond())
                .bind(record.key_id.as_str())
                .bind(&record.sealed[..])
                .bind(key.principal.as_str())
                .bind(key.issuer.as_str())
                .bind(key.client_id.as_str())
        };
        let statement = match expected {
            Expected::Absent => columns(
                "INSERT INTO kube_authn_logins \
                 (login, number, subject, expires_at, refreshable, refreshing_owner, refreshing_until, \
                  created_at, updated_at, key_id, sealed, principal, issuer, client_id) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            ),
            Expected::At(revision) => columns(
                "UPDATE kube_authn_logins \
                 SET login = ?, number = ?, subject = ?, expires_at = ?, refreshable = ?, refreshing_owner = ?, \
                     refreshing_until = ?, created_at = ?, updated_at = ?, key_id = ?, sealed = ? \
                 WHERE principal = ? AND issuer = ? AND client_id = ? AND login = ? AND number = ?",
            )
            .bind(revision.login.as_bytes().to_vec())
            .bind(row::number(revision)?),
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
        let statement =
            sqlx::query("DELETE FROM kube_authn_logins WHERE principal = ? AND issuer = ? AND client_id = ?")
                .bind(key.principal.as_str())
                .bind(key.issuer.as_str())
                .bind(key.client_id.as_str());
        Ok(self.write(statement).await? > 0)
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        let rows = sqlx::query(
            "SELECT principal, issuer, client_id, login, number, subject, expires_at, refreshable, \
                    refreshing_owner, refreshing_until, created_at, updated_at \
             FROM kube_authn_logins WHERE principal = ? ORDER BY issuer, client_id",
        )
        .bind(principal.as_str())
        .fetch_all(&self.0.readers)
        .await
        .map_err(|source| self.failed(source))?;
        rows.iter()
            .map(|row| Ok((key(row)?, revision(row)?, metadata(row)?)))
            .collect()
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        let statement = sqlx::query(
            "DELETE FROM kube_authn_logins WHERE rowid IN ( \
                 SELECT rowid FROM kube_authn_logins \
                 WHERE expires_at < ?1 AND (refreshing_until IS NULL OR refreshing_until <= ?1) \
                 ORDER BY expires_at LIMIT ?2)",
        )
        .bind(ended_before.as_millisecond())
        .bind(limit);
        Ok(u32::try_from(self.write(statement).await?).unwrap_or(limit))
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        row::scan(after, |after| async move { self.page(&after, limit).await }).await
    }

    async fn events(&self) -> Result<LoginEvents> {
        events::subscribe(self).await
    }
}

/// Whether the file is there. Opens nothing: closing it would drop the locks that this process holds on it.
#[allow(clippy::disallowed_methods, reason = "the store looks at its own file")]
fn is_there(path: &Path) -> Result<bool, SqliteError> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => return Ok(true),
        Ok(_) => return Err(SqliteError::NoFile),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(SqliteError::File(error)),
        Err(_) => {}
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match std::fs::metadata(folder.unwrap_or(Path::new("."))) {
        Ok(folder) if folder.is_dir() => Ok(false),
        Ok(_) => Err(SqliteError::NoFolder),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(SqliteError::NoFolder),
        Err(error) => Err(SqliteError::File(error)),
    }
}

/// Makes the file, readable by its owner alone: it would otherwise be made with what the process's mask allows.
#[allow(clippy::disallowed_methods, reason = "the store makes its own file")]
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            warn_if_others_can_read(path);
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Tokens are sealed, but who logs in where is not.
fn warn_if_others_can_read(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = std::fs::metadata(path)
        && std::os::unix::fs::MetadataExt::mode(&metadata) & 0o077 != 0
    {
        tracing::warn!(
            path = %path.display(),
            "other users of this machine can read the token store: give it mode 0600",
        );
    }
}

/// How long a statement waits for other processes that write.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call waits for a connection: a little longer than the one before it may wait for the lock.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(8);
/// Reads take tens of microseconds and each connection is a thread: more of them serve nobody faster.
const READERS: u32 = 4;
