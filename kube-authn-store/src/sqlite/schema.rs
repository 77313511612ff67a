//! Brings the schema of a file up to date.

use std::path::Path;

use kube_authn_core::{Error, ErrorKind, Result};
use sqlx::{SqliteConnection, SqlitePool};

use super::SqliteError;

/// Runs the migrations that the file has not seen. A file that has seen more of them than we know is refused: its rows
/// may mean something else.
pub(super) async fn migrate(pool: &SqlitePool, path: &Path) -> Result<()> {
    let failed = |source: sqlx::Error| SqliteError::from(source).opening(path);
    // Immediate: of several processes that start at once, one migrates and the others wait for it.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let version = version(&mut transaction).await.map_err(failed)?;
    let Some(unseen) = MIGRATIONS.get(version..) else {
        return Err(Error::new(
            ErrorKind::ConfigInvalid,
            format!(
                "the token store {} has schema version {version}, newer than version {} that this program knows: \
                 upgrade the program, or name another file in kubeAuthn.store.url",
                path.display(),
                MIGRATIONS.len(),
            ),
        ));
    };
    for (index, migration) in unseen.iter().enumerate() {
        run(&mut transaction, migration, version + index + 1)
            .await
            .map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

/// How many migrations the file has seen. A table of our own, since `user_version` belongs to the whole file, and the
/// file may be shared.
async fn version(connection: &mut SqliteConnection) -> Result<usize, sqlx::Error> {
    sqlx::query("CREATE TABLE IF NOT EXISTS kube_authn_schema (version INTEGER PRIMARY KEY) STRICT")
        .execute(&mut *connection)
        .await?;
    let version: i64 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM kube_authn_schema")
        .fetch_one(connection)
        .await?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

async fn run(
    connection: &mut SqliteConnection,
    migration: &'static str,
    version: usize,
) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(migration).execute(&mut *connection).await?;
    sqlx::query("INSERT INTO kube_authn_schema (version) VALUES (?)")
        .bind(i64::try_from(version).unwrap_or(i64::MAX))
        .execute(connection)
        .await?;
    Ok(())
}

/// In order; the version of a file is how many of them it has seen.
const MIGRATIONS: &[&str] = &[include_str!("../../migrations/sqlite/0001_logins.sql")];
