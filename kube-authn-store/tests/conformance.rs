//! The contracts of stores and of the vault, run over every store.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};

use kube_authn_core::{
    KeyId,
    conformance::{
        store::{self, StoreFixture},
        vault::{self, VaultFixture},
    },
};
use kube_authn_store::{
    CachingTokenStore, KeyRing, MemoryTokenStore, PostgresTokenStore, RedisTokenStore, SqliteTokenStore,
};
use kube_authn_test_servers::{Cluster, Postgres, Redis};

#[tokio::test(flavor = "multi_thread")]
async fn memory_store_keeps_the_contract() {
    store::all(|| async { StoreFixture::new(MemoryTokenStore::new()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_memory_keeps_its_contract() {
    vault::all(|| async { VaultFixture::new(MemoryTokenStore::new(), keys()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_store_keeps_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Files::new(&folder);
    store::all(|| async {
        let url = files.next();
        let unreachable = open(&files.next()).await;
        unreachable.close().await;
        StoreFixture::new(open(&url).await)
            .with_other(open(&url).await)
            .with_unreachable(unreachable)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_sqlite_keeps_its_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Files::new(&folder);
    vault::all(|| async {
        let url = files.next();
        VaultFixture::new(open(&url).await, keys()).with_other(open(&url).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_store_keeps_the_contract() {
    let server = Postgres::start();
    store::all(|| async {
        let url = server.database();
        let unreachable = open_postgres(&server.database()).await;
        unreachable.close().await;
        StoreFixture::new(open_postgres(&url).await)
            .with_other(open_postgres(&url).await)
            .with_unreachable(unreachable)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_postgres_keeps_its_contract() {
    let server = Postgres::start();
    vault::all(|| async {
        let url = server.database();
        VaultFixture::new(open_postgres(&url).await, keys()).with_other(open_postgres(&url).await)
    })
    .await;
}

// Another process may read an old row until it hears of the change, so what stands for one here has no cache: the checks
// look right after a write. A clone shares the cache.

#[tokio::test(flavor = "multi_thread")]
async fn cached_memory_store_keeps_the_contract() {
    store::all(|| async {
        let cached = CachingTokenStore::new(MemoryTokenStore::new());
        StoreFixture::new(cached.clone()).with_other(cached)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_cached_memory_keeps_its_contract() {
    vault::all(|| async { VaultFixture::new(CachingTokenStore::new(MemoryTokenStore::new()), keys()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_sqlite_store_keeps_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Files::new(&folder);
    store::all(|| async {
        let url = files.next();
        let unreachable = open(&files.next()).await;
        unreachable.close().await;
        StoreFixture::new(CachingTokenStore::new(open(&url).await))
            .with_other(open(&url).await)
            .with_unreachable(CachingTokenStore::new(unreachable))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_cached_sqlite_keeps_its_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = Files::new(&folder);
    vault::all(|| async {
        let url = files.next();
        VaultFixture::new(CachingTokenStore::new(open(&url).await), keys()).with_other(open(&url).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_postgres_store_keeps_the_contract() {
    let server = Postgres::start();
    store::all(|| async {
        let url = server.database();
        let unreachable = open_postgres(&server.database()).await;
        unreachable.close().await;
        StoreFixture::new(CachingTokenStore::new(open_postgres(&url).await))
            .with_other(open_postgres(&url).await)
            .with_unreachable(CachingTokenStore::new(unreachable))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_cached_postgres_keeps_its_contract() {
    let server = Postgres::start();
    vault::all(|| async {
        let url = server.database();
        let cached = CachingTokenStore::new(open_postgres(&url).await);
        VaultFixture::new(cached, keys()).with_other(open_postgres(&url).await)
    })
    .await;
}

async fn open_postgres(url: &str) -> PostgresTokenStore {
    PostgresTokenStore::open(url).await.expect("a store")
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_store_keeps_the_contract() {
    let redis = Redis::start();
    store::all(|| async { redis_fixture(&redis.url()).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_redis_keeps_its_contract() {
    let redis = Redis::start();
    vault::all(|| async { redis_vault_fixture(&redis.url()).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cluster_keeps_the_contract() {
    let cluster = Cluster::start();
    store::all(|| async { redis_fixture(&cluster.url()).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_a_redis_cluster_keeps_its_contract() {
    let cluster = Cluster::start();
    vault::all(|| async { redis_vault_fixture(&cluster.url()).await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_redis_store_keeps_the_contract() {
    let redis = Redis::start();
    store::all(|| async {
        let url = with_new_prefix(&redis.url());
        let unreachable = open_redis(&url).await;
        unreachable.close();
        StoreFixture::new(CachingTokenStore::new(open_redis(&url).await))
            .with_other(open_redis(&url).await)
            .with_unreachable(CachingTokenStore::new(unreachable))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_over_cached_redis_keeps_its_contract() {
    let redis = Redis::start();
    vault::all(|| async {
        let url = with_new_prefix(&redis.url());
        let cached = CachingTokenStore::new(open_redis(&url).await);
        VaultFixture::new(cached, keys()).with_other(open_redis(&url).await)
    })
    .await;
}

async fn redis_fixture(url: &str) -> StoreFixture {
    let url = with_new_prefix(url);
    let unreachable = open_redis(&url).await;
    unreachable.close();
    StoreFixture::new(open_redis(&url).await)
        .with_other(open_redis(&url).await)
        .with_unreachable(unreachable)
}

async fn redis_vault_fixture(url: &str) -> VaultFixture {
    let url = with_new_prefix(url);
    VaultFixture::new(open_redis(&url).await, keys()).with_other(open_redis(&url).await)
}

/// An empty store for every fixture.
fn with_new_prefix(url: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!(
        "{url}?prefix=kube-authn-{}",
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

async fn open_redis(url: &str) -> RedisTokenStore {
    RedisTokenStore::open(url).await.expect("a store")
}

/// A new file for every fixture.
struct Files<'a> {
    folder: &'a tempfile::TempDir,
    count: std::cell::Cell<usize>,
}

impl<'a> Files<'a> {
    fn new(folder: &'a tempfile::TempDir) -> Self {
        Self {
            folder,
            count: std::cell::Cell::new(0),
        }
    }

    fn next(&self) -> String {
        self.count.set(self.count.get() + 1);
        format!(
            "sqlite://{}/{}.db",
            self.folder.path().display(),
            self.count.get()
        )
    }
}

async fn open(url: &str) -> SqliteTokenStore {
    SqliteTokenStore::open(url).await.expect("a store")
}

fn keys() -> KeyRing {
    let id = KeyId::new("k1").expect("an id");
    KeyRing::new(vec![(id, KeyRing::random_key().expect("a key"))]).expect("a ring")
}
