//! Brings the schema of a database up to date.

use std::time::Duration;

use kube_authn_core::{Error, ErrorKind, Result};
use sqlx::{Connection, PgConnection, Row};

use super::{connections::Connections, error::PostgresError};

/// Runs the migrations that the schema has not seen. Migrations only add, so replicas of the version before go on beside
/// it. A schema that has seen more of them than we know is taken as long as its newest one says that we can live with it.
///
/// A schema that is up to date needs no right to change it.
pub(super) async fn migrate(connections: &Connections) -> Result<(), Failed> {
    let mut lease = connections.lease().await?;
    let connection = &mut lease.connection;
    let migrated = connections.in_time(MIGRATION_LIMIT, async {
        if version(connection)
            .await?
            .is_some_and(|(version, _)| version >= MIGRATIONS.len())
        {
            return Ok(());
        }
        run_unseen(connection).await
    });
    migrated.await?;
    let found = connections.in_time(MIGRATION_LIMIT, version(connection)).await?;
    lease.keep();
    match found {
        Some((version, compatible)) if compatible > MIGRATIONS.len() => {
            Err(Failed::Newer(newer(version, &connections.address.place)))
        }
        _ => Ok(()),
    }
}

/// Why a store is not ready.
#[derive(Debug)]
pub(super) enum Failed {
    Server(PostgresError),
    /// Another program's schema.
    Newer(Error),
}

impl From<PostgresError> for Failed {
    fn from(error: PostgresError) -> Self {
        Self::Server(error)
    }
}

fn newer(version: usize, place: &str) -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        format!(
            "the token store {place} has schema version {version}, which version {} that this program knows cannot be \
             used with: upgrade the program, or name another database or search_path in kubeAuthn.store.url",
            MIGRATIONS.len(),
        ),
    )
}

/// The newest migration that the schema has seen, and the first one that its programs must know.
async fn version(connection: &mut PgConnection) -> Result<Option<(usize, usize)>, sqlx::Error> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass('kube_authn_schema') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(None);
    }
    let newest =
        sqlx::query("SELECT version, compatible_since FROM kube_authn_schema ORDER BY version DESC LIMIT 1")
            .fetch_optional(connection)
            .await?;
    let Some(newest) = newest else { return Ok(None) };
    let count = |name| {
        newest
            .try_get::<i32, _>(name)
            .map(|number| usize::try_from(number).unwrap_or_default())
    };
    Ok(Some((count("version")?, count("compatible_since")?)))
}

/// Of several processes that start at once, one migrates and the others wait for it.
async fn run_unseen(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql("SET LOCAL statement_timeout = '60s'; SELECT pg_advisory_xact_lock(7237127438015624047)")
        .execute(&mut *transaction)
        .await?;
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS kube_authn_schema \
         (version integer PRIMARY KEY, compatible_since integer NOT NULL)",
    )
    .execute(&mut *transaction)
    .await?;
    let seen = version(&mut transaction).await?.map_or(0, |(version, _)| version);
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(seen) {
        sqlx::raw_sql(migration.statements)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO kube_authn_schema (version, compatible_since) VALUES ($1, $2)")
            .bind(i32::try_from(index + 1).unwrap_or(i32::MAX))
            .bind(migration.compatible_since)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

struct Migration {
    statements: &'static str,
    /// The oldest version of the schema whose programs can work on the migrated one.
    compatible_since: i32,
}

/// In order; the version of a schema is how many of them it has seen.
const MIGRATIONS: &[Migration] = &[Migration {
    statements: include_str!("../../migrations/postgres/0001_logins.sql"),
    compatible_since: 1,
}];

/// One replica may wait for another's migration.
const MIGRATION_LIMIT: Duration = Duration::from_secs(90);
