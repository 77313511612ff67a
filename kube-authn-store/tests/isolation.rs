//! No answer ever belongs to another user, whatever is near it or happens beside it.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use kube_authn_core::{TokenStore, TokenVault};
use kube_authn_store::{MemoryTokenStore, RedisTokenStore, SqliteTokenStore};
use kube_authn_test_servers::Redis;
use support::{id_token_of, key_of, keys, login_of};

const USERS: usize = 1_000;
const TASKS: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_users_of_the_memory_store_never_get_each_others_tokens() {
    never_cross(MemoryTokenStore::new(), 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_users_of_the_sqlite_store_never_get_each_others_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/logins.db", folder.path().display());
    never_cross(SqliteTokenStore::open(&url).await.expect("a store"), 40).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_users_of_the_redis_store_never_get_each_others_tokens() {
    let redis = Redis::start();
    never_cross(RedisTokenStore::open(&redis.url()).await.expect("a store"), 40).await;
}

/// Loads, logins and logouts of users with near-equal names, all at once and in no order.
async fn never_cross(store: impl TokenStore, steps: usize) {
    let vault = TokenVault::new(store, keys());
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let vault = vault.clone();
            tokio::spawn(async move {
                let mut random = task as u64 + 1;
                let mut found = 0;
                for _ in 0..steps {
                    // Numerical Recipes' linear congruential generator: any order will do, as long as it is not sorted.
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % (1 << 32);
                    found += usize::from(step(&vault, random as usize >> 8).await);
                }
                found
            })
        })
        .collect();
    let mut found = 0;
    for task in tasks {
        found += task.await.expect("a task");
    }

    assert!(found > TASKS, "hardly any load found a login: {found}");
}

/// One load of one user, after a login or a logout now and then; says whether there was a login.
async fn step(vault: &TokenVault, random: usize) -> bool {
    let user = random % USERS;
    let owner = near_equal_name(user);
    let client = ["c", "c ", "C"][user % 3];
    let key = key_of(&owner, "https://issuer.example.com/", client);
    match random / USERS % 16 {
        0 => drop(vault.log_out(&key).await.expect("deleted")),
        1..=8 => {
            // A race of two logins of one user may be lost; it must not be crossed.
            let _ = vault.log_in(&key, login_of(&owner)).await;
        }
        _ => {}
    }
    let Some(login) = vault.load(&key).await.expect("loaded") else {
        return false;
    };
    assert_eq!(login.key, key);
    assert_eq!(login.metadata.subject.as_str(), owner);
    assert_eq!(
        login.tokens.id_token.map(|token| token.secret),
        Some(id_token_of(&owner))
    );
    true
}

/// Names that differ in a digit, a length or a separator.
fn near_equal_name(user: usize) -> String {
    let separator = ["", ".", "-", "_", "%"][user % 5];
    format!("a{separator}{}", user / 5)
}
