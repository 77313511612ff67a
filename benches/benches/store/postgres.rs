//! A server on loopback, and a bare connection to it with the statements of the store.

use std::{hint::black_box, time::Instant};

use kube_authn_benches::{
    measure::{Rounds, micros, report},
    next_random,
};
use kube_authn_core::{Expected, Revision, Secret, TokenKey, TokenRecord, TokenStore, TokenVault};
use kube_authn_store::PostgresTokenStore;
use kube_authn_test_servers::Postgres;
use sqlx::{ConnectOptions, PgConnection, Row, postgres::PgConnectOptions};
use tokio::runtime::Runtime;

use super::{LOADS, LOGINS, SAVES, after, claim, figure, key, login, ring, table};

pub(super) fn run(runtime: &Runtime) {
    // With PostgreSQL's own care for the disk.
    let server = Postgres::start_with(&[]);
    let mut bench = runtime.block_on(Bench::new(&server.database()));
    bench.load(runtime);
    bench.save(runtime);
}

struct Bench {
    vault: TokenVault,
    store: PostgresTokenStore,
    bare: PgConnection,
}

impl Bench {
    async fn new(url: &str) -> Self {
        let store = PostgresTokenStore::open(url).await.expect("a store");
        let vault = TokenVault::new(store.clone(), ring());
        for number in 0..LOGINS {
            vault.log_in(&key(number), login()).await.expect("a login");
        }
        let options: PgConnectOptions = url.parse().expect("a URL");
        let bare = options.disable_statement_logging().connect().await;
        Self {
            vault,
            store,
            bare: bare.expect("a connection"),
        }
    }

    fn load(&mut self, runtime: &Runtime) {
        let mut random = 1;
        let rounds: Rounds<f64, 3> = Rounds::run(LOADS, |subject| {
            let key = key(next_random(&mut random) % LOGINS);
            runtime.block_on(async {
                let start = Instant::now();
                match subject {
                    0 => drop(black_box(self.bare_load(&key).await)),
                    1 => drop(black_box(self.store.load(&key).await.expect("a row"))),
                    _ => drop(black_box(self.vault.load(&key).await.expect("a login"))),
                }
                micros(start.elapsed())
            })
        });
        table(
            "PostgreSQL load",
            ["bare SELECT", "store.load", "vault.load"],
            &rounds,
        );
        report(
            8,
            "load, sealed, PostgreSQL",
            &figure(&rounds, 2),
            "≤ 1.15 × bare",
        );
    }

    fn save(&mut self, runtime: &Runtime) {
        let keys = [key(0), key(1), key(2)];
        let mut claimed = runtime.block_on(claim(&self.vault, &keys[2]));
        let rounds: Rounds<f64, 3> = Rounds::run(SAVES, |subject| {
            runtime.block_on(async {
                let key = &keys[subject];
                let present = self.store.load(key).await.expect("a row").expect("a login");
                let (before, next) = (present.revision, after(&present));
                let token = Secret::new("r".repeat(64));
                let start = Instant::now();
                match subject {
                    0 => self.bare_save(key, &next, before).await,
                    1 => {
                        let saved = self.store.save(key, &next, Expected::At(before)).await;
                        saved.expect("saved");
                    }
                    _ => {
                        let saved = self.vault.save_refresh_token(&claimed, token).await;
                        claimed = saved.expect("saved");
                    }
                }
                micros(start.elapsed())
            })
        });
        table(
            "PostgreSQL save",
            ["bare UPDATE", "store.save", "vault.save_refresh_token"],
            &rounds,
        );
        report(
            8,
            "save, sealed, PostgreSQL",
            &figure(&rounds, 2),
            "≤ 1.15 × bare",
        );
    }

    async fn bare_load(&mut self, key: &TokenKey) -> Vec<u8> {
        let row = sqlx::query(
            "SELECT login, number, subject, expires_at, refreshable, refreshing_owner, refreshing_until, \
                    created_at, updated_at, key_id, sealed \
             FROM kube_authn_logins WHERE principal = $1 AND issuer = $2 AND client_id = $3",
        )
        .bind(key.principal.as_str())
        .bind(key.issuer.as_str())
        .bind(key.client_id.as_str())
        .fetch_one(&mut self.bare)
        .await;
        row.expect("a row").get("sealed")
    }

    async fn bare_save(&mut self, key: &TokenKey, record: &TokenRecord, before: Revision) {
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
        .execute(&mut self.bare)
        .await;
        assert_eq!(done.expect("saved").rows_affected(), 1);
    }
}
