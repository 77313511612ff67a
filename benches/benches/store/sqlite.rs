//! A file, and pools of bare connections to it, opened as the store opens it.

use std::time::Duration;

use kube_authn_core::{Revision, TokenKey, TokenRecord};
use kube_authn_store::SqliteTokenStore;
use sqlx::{
    ConnectOptions, Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::runtime::Runtime;

use super::{Bare, Bench};

pub(super) fn run(runtime: &Runtime) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("logins.db");
    let mut bench = runtime.block_on(async {
        let url = format!("sqlite://{}", file.display());
        let store = SqliteTokenStore::open(&url).await.expect("a store");
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .test_before_acquire(false)
                .connect_lazy_with(options.clone())
        };
        let bare = Pools {
            reader: pool(4),
            writer: pool(1),
        };
        Bench::new("SQLite", store, bare).await
    });
    bench.run(runtime);
}

struct Pools {
    reader: SqlitePool,
    writer: SqlitePool,
}

impl Bare for Pools {
    const NAMES: [&str; 2] = ["SELECT", "UPDATE"];

    async fn load(&mut self, key: &TokenKey) -> Vec<u8> {
        let row = sqlx::query(
            "SELECT login, number, subject, expires_at, refreshable, refreshing_owner, refreshing_until, \
                    created_at, updated_at, key_id, sealed \
             FROM kube_authn_logins WHERE principal = ? AND issuer = ? AND client_id = ?",
        )
        .bind(key.principal.as_str())
        .bind(key.issuer.as_str())
        .bind(key.client_id.as_str())
        .fetch_one(&self.reader)
        .await;
        row.expect("a row").get("sealed")
    }

    async fn save(&mut self, key: &TokenKey, record: &TokenRecord, before: Revision) {
        let number = |revision: Revision| i64::try_from(revision.number).expect("a small number");
        let done = sqlx::query(
            "UPDATE kube_authn_logins \
             SET login = ?, number = ?, subject = ?, expires_at = ?, refreshable = ?, refreshing_owner = ?, \
                 refreshing_until = ?, created_at = ?, updated_at = ?, key_id = ?, sealed = ? \
             WHERE principal = ? AND issuer = ? AND client_id = ? AND login = ? AND number = ?",
        )
        .bind(&record.revision.login.as_bytes()[..])
        .bind(number(record.revision))
        .bind(record.metadata.subject.as_str())
        .bind(record.metadata.expires_at.as_millisecond())
        .bind(record.metadata.refreshable)
        .bind(None::<Vec<u8>>)
        .bind(None::<i64>)
        .bind(record.metadata.created_at.as_millisecond())
        .bind(record.metadata.updated_at.as_millisecond())
        .bind(record.key_id.as_str())
        .bind(&record.sealed[..])
        .bind(key.principal.as_str())
        .bind(key.issuer.as_str())
        .bind(key.client_id.as_str())
        .bind(&before.login.as_bytes()[..])
        .bind(number(before))
        .execute(&self.writer)
        .await;
        assert_eq!(done.expect("saved").rows_affected(), 1);
    }
}
