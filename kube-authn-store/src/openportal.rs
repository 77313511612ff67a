//! Reads the plain table in which openportal keeps its users' tokens, to take them over.

#[cfg(feature = "sqlite")]
use std::str::FromStr;

use kube_authn_core::{Error, ErrorKind, Result, Secret};
use sqlx::{AssertSqlSafe, ColumnIndex, ConnectOptions, Decode, Row, Type};

#[cfg(feature = "postgres")]
use crate::postgres::address::Address;

/// A table `cluster_tokens` of openportal, opened for reading.
pub struct OpenportalTable {
    connection: Connection,
    table: String,
    /// Table and database, for errors.
    place: String,
}

enum Connection {
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::SqliteConnection),
    #[cfg(feature = "postgres")]
    Postgres(sqlx::PgConnection),
}

/// One row, as it stands there: nothing of it was looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PlainLogin {
    /// `user_entity_ref`.
    pub user: String,
    /// `access_token`.
    pub access_token: Secret,
    /// `id_token`.
    pub id_token: Secret,
    /// `refresh_token`.
    pub refresh_token: Option<Secret>,
    /// `issuer`; openportal writes `unknown` where it did not know.
    pub issuer: String,
}

impl OpenportalTable {
    /// Opens the table of a database: `sqlite://path` (for reading alone; the file must be there) or `postgres://...`, as
    /// [`PostgresTokenStore::open`](crate::PostgresTokenStore::open) takes it, but without a password: the URL is an argument
    /// of a command, which every user of the machine can see. `PGPASSWORD` or `~/.pgpass` holds it.
    ///
    /// # Errors
    /// `ConfigInvalid` if the URL is none of these, holds a password or does not say how a server elsewhere is verified, or if
    /// the table's name is none; `Unavailable` if the database cannot be opened. No text shows the URL's password.
    pub async fn open(url: &str, table: &str) -> Result<Self> {
        let (name, table) = (table, quoted(table)?);
        let (connection, place) = match url.split_once(':') {
            #[cfg(feature = "sqlite")]
            Some(("sqlite", _)) => {
                let options = sqlx::sqlite::SqliteConnectOptions::from_str(url).map_err(|_| no_url())?;
                let place = format!("{name} in {}", options.get_filename().display());
                let connected = options.read_only(true).connect().await;
                let connected = connected.map_err(|error| failed(&error, &place))?;
                (Connection::Sqlite(connected), place)
            }
            #[cfg(feature = "postgres")]
            Some(("postgres" | "postgresql", _)) => {
                refuse_password(url)?;
                let address = Address::parse(url)
                    .map_err(|error| Error::new(error.kind(), format!("openportal's database: {error}")))?;
                let place = format!("{name} in {}", address.place);
                let connected = connected(&address, &place).await?;
                (Connection::Postgres(connected), place)
            }
            _ => return Err(no_url()),
        };
        Ok(Self {
            connection,
            table,
            place,
        })
    }

    /// The next rows behind this user, in the order of users, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable` if the database does not answer, or the table is not there or not openportal's.
    pub async fn page(&mut self, after: &str, limit: u16) -> Result<Vec<PlainLogin>> {
        let (table, place) = (&self.table, &self.place);
        // The name is quoted, and consists of letters, digits and underscores.
        let statement = AssertSqlSafe(format!(
            "SELECT user_entity_ref, access_token, id_token, refresh_token, issuer FROM {table} \
             WHERE user_entity_ref > $1 ORDER BY user_entity_ref LIMIT $2"
        ));
        let limit = i64::from(limit);
        match &mut self.connection {
            #[cfg(feature = "sqlite")]
            Connection::Sqlite(connection) => {
                let query = sqlx::query(statement).bind(after).bind(limit);
                let rows = query
                    .fetch_all(connection)
                    .await
                    .map_err(|error| failed(&error, place))?;
                rows.iter().map(|row| plain(row, place)).collect()
            }
            #[cfg(feature = "postgres")]
            Connection::Postgres(connection) => {
                let query = sqlx::query(statement).bind(after).bind(limit);
                let rows = query
                    .fetch_all(connection)
                    .await
                    .map_err(|error| failed(&error, place))?;
                rows.iter().map(|row| plain(row, place)).collect()
            }
        }
    }
}

impl std::fmt::Debug for OpenportalTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenportalTable")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

fn plain<'r, R>(row: &'r R, place: &str) -> Result<PlainLogin>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    Option<String>: Decode<'r, R::Database> + Type<R::Database>,
{
    let failed = |error| failed(&error, place);
    let text = |name: &'static str| row.try_get::<String, _>(name).map_err(failed);
    let refresh_token: Option<String> = row.try_get("refresh_token").map_err(failed)?;
    Ok(PlainLogin {
        user: text("user_entity_ref")?,
        access_token: Secret::new(text("access_token")?),
        id_token: Secret::new(text("id_token")?),
        refresh_token: refresh_token.filter(|token| !token.is_empty()).map(Secret::new),
        issuer: text("issuer")?,
    })
}

/// The first server that answers.
#[cfg(feature = "postgres")]
async fn connected(address: &Address, place: &str) -> Result<sqlx::PgConnection> {
    if let Some(server) = address.unverified() {
        tracing::warn!(
            "openportal's server {server} is not verified: add sslmode=verify-full and sslrootcert"
        );
    }
    let mut outcome = Err(no_url());
    for server in &address.servers {
        outcome = server.connect().await.map_err(|error| failed(&error, place));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

#[cfg(feature = "postgres")]
fn refuse_password(url: &str) -> Result<()> {
    let (before, query) = url.split_once('?').unwrap_or((url, ""));
    let user = before
        .rsplit_once('@')
        .and_then(|(user, _)| user.split_once("://"))
        .map_or("", |(_, user)| user);
    let in_query = query.split(['&', '#']).any(|pair| pair.starts_with("password"));
    match user.contains(':') || in_query {
        false => Ok(()),
        true => Err(Error::new(
            ErrorKind::ConfigInvalid,
            "the URL of openportal's database holds a password, which everybody sees who lists processes: leave it out, and \
             set it in the variable PGPASSWORD or in ~/.pgpass",
        )),
    }
}

/// `cluster_tokens` or `schema.cluster_tokens`, each part in quotes.
fn quoted(table: &str) -> Result<String> {
    let is_name = |part: &&str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let parts: Vec<_> = table.split('.').collect();
    match parts.len() <= 2 && parts.iter().all(is_name) {
        true => Ok(format!("\"{}\"", parts.join("\".\""))),
        false => Err(Error::new(
            ErrorKind::ConfigInvalid,
            "not the name of a table: expected letters, digits and underscores, with a schema and a dot before it or not",
        )),
    }
}

fn no_url() -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        "not the URL of openportal's database: expected sqlite://path or postgres://user@host/database",
    )
}

/// Without the details that PostgreSQL sends along: they may hold a row.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

fn failed(source: &sqlx::Error, place: &str) -> Error {
    let said = match source {
        sqlx::Error::Database(error) => Said(format!("the database said: {}", error.message())),
        sqlx::Error::ColumnNotFound(_) | sqlx::Error::ColumnDecode { .. } => {
            Said("a column is not as openportal made it".to_owned())
        }
        sqlx::Error::Io(error) => Said(format!("the connection failed: {}", error.kind())),
        _ => Said("the connection failed".to_owned()),
    };
    Error::new(
        ErrorKind::Unavailable,
        format!("cannot read openportal's table {place}: {said}"),
    )
    .with_source(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_table_is_quoted_and_nothing_else_gets_into_a_statement() {
        assert_eq!(quoted("cluster_tokens").expect("a name"), "\"cluster_tokens\"");
        assert_eq!(
            quoted("portal.cluster_tokens").expect("a name"),
            "\"portal\".\"cluster_tokens\""
        );
        for name in ["", "a.b.c", ".a", "a;b", "a\"b", "a b", "a-b"] {
            assert_eq!(
                quoted(name).expect_err("no name").kind(),
                ErrorKind::ConfigInvalid,
                "{name}"
            );
        }
    }

    #[tokio::test]
    async fn url_that_is_none_is_refused_without_its_password() {
        for url in [
            "mysql://u:canary@h/d",
            "canary",
            "postgres://u:canary@h:port/d",
            "postgres://h:port/canary",
        ] {
            let error = OpenportalTable::open(url, "cluster_tokens")
                .await
                .expect_err("no URL");
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn password_never_stands_in_the_url_nor_goes_to_a_server_that_nobody_verifies() {
        for (url, says) in [
            ("postgres://u:canary@localhost/d", "PGPASSWORD"),
            ("postgresql://u:can@ary@localhost/d", "PGPASSWORD"),
            ("postgres://u@localhost/d?password=canary", "PGPASSWORD"),
            (
                "postgres://u@localhost/d?sslmode=require&password=canary",
                "PGPASSWORD",
            ),
            (
                "postgres://u@db/d",
                "openportal's database: not the URL of a PostgreSQL database: it does not say how db:5432 is verified: write \
                 ?sslmode=verify-full",
            ),
        ] {
            let error = OpenportalTable::open(url, "cluster_tokens")
                .await
                .expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            let text = format!("{error} {error:?}");
            assert!(text.contains(says) && !text.contains("canary"), "{text}");
            assert!(!text.contains("kubeAuthn.store"), "another database: {text}");
        }
    }
}
