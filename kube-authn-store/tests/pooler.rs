//! The PostgreSQL store by way of `PgBouncer`: which ways of pooling it can live with.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use kube_authn_core::{
    ErrorKind, KeyId,
    conformance::{
        store::{self, StoreFixture},
        vault::{self, VaultFixture},
    },
};
use kube_authn_store::{KeyRing, PostgresTokenStore};
use kube_authn_test_servers::{PgBouncer, Postgres};

#[tokio::test(flavor = "multi_thread")]
async fn pooler_that_keeps_sessions_changes_nothing() {
    let server = Postgres::start();
    let pooler = PgBouncer::before(&server, "session");
    let open = async |database: &str| {
        PostgresTokenStore::open(&pooler.url(database))
            .await
            .expect("a store")
    };

    store::all(|| async {
        let database = server.database();
        let unreachable = open(&server.database()).await;
        unreachable.close().await;
        StoreFixture::new(open(&database).await)
            .with_other(open(&database).await)
            .with_unreachable(unreachable)
    })
    .await;
    vault::all(|| async {
        let database = server.database();
        let key = (
            KeyId::new("k1").expect("an id"),
            KeyRing::random_key().expect("a key"),
        );
        let keys = KeyRing::new(vec![key]).expect("a ring");
        VaultFixture::new(open(&database).await, keys).with_other(open(&database).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pooler_that_changes_connections_between_transactions_is_refused_at_the_start() {
    let server = Postgres::start();
    let pooler = PgBouncer::before(&server, "transaction");
    let error = PostgresTokenStore::open(&pooler.url(&server.database()))
        .await
        .expect_err("nothing is heard");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(
        error
            .to_string()
            .contains("a pooler is between that does not keep sessions"),
        "{error:?} {}",
        pooler.log()
    );
}
