//! A server on loopback, and a bare connection to it.

use kube_authn_core::{Revision, TokenKey, TokenRecord};
use kube_authn_store::PostgresTokenStore;
use kube_authn_test_servers::Postgres;
use sqlx::{ConnectOptions, PgConnection, Row, postgres::PgConnectOptions};
use tokio::runtime::Runtime;

use super::{Bare, Bench};

pub(super) fn run(runtime: &Runtime) {
    // With PostgreSQL's own care for the disk.
    let server = Postgres::start_with(&[]);
    let mut bench = runtime.block_on(async {
        let url = server.database();
        let store = PostgresTokenStore::open(&url).await.expect("a store");
        let options: PgConnectOptions = url.parse().expect("a URL");
        let bare = options.disable_statement_logging().connect().await;
        Bench::new("PostgreSQL", store, Connection(bare.expect("a connection"))).await
    });
    bench.run(runtime);
}

struct Connection(PgConnection);

impl Bare for Connection {
    const NAMES: [&str; 2] = ["SELECT", "UPDATE"];

    async fn load(&mut self, key: &TokenKey) -> Vec<u8> {
        let row = sqlx::query(
            "SELECT login, number, subject, expires_at, refreshable, refreshing_owner, refreshing_until, \
                    created_at, updated_at, key_id, sealed \
             FROM kube_authn_logins WHERE principal = $1 AND issuer = $2 AND client_id = $3",
        )
        .bind(key.principal.as_str())
        .bind(key.issuer.as_str())
        .bind(key.client_id.as_str())
        .fetch_one(&mut self.0)
        .await;
        row.expect("a row").get("sealed")
    }

    async fn save(&mut self, key: &TokenKey, record: &TokenRecord, before: Revision) {
        let number = |revision: Revision| i64::try_from(revision.number).expect("a small number");
        let done = sqlx::query(
            "UPDATE kube_authn_logins \
             SET login = $4, number = $5, subject = $6, expires_at = $7, refreshable = $8, refreshing_owner = $9, \
                 refreshing_until = $10, created_at = $11, updated_at = $12, key_id = $13, sealed = $14 \
             WHERE principal = $1 AND issuer = $2 AND client_id = $3 AND login = $15 AND number = $16",
        )
        .bind(key.principal.as_str())
        .bind(key.issuer.as_str())
        .bind(key.client_id.as_str())
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
        .bind(&before.login.as_bytes()[..])
        .bind(number(before))
        .execute(&mut self.0)
        .await;
        assert_eq!(done.expect("saved").rows_affected(), 1);
    }
}
