//! A hundred thousand logins: what looking after them costs in time and memory.
//!
//! A normal run takes 2,000, and with `KUBE_AUTHN_TEST_LONG=1` 10,000 and 100,000. Figures are printed (`--nocapture`); that
//! memory is bounded is asserted, speed is not.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests it"
)]
#![allow(clippy::print_stderr, reason = "figures are what a long run is for")]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use kube_authn_core::{
    KeyId, Rekeyed, Secret, Token, TokenStore, TokenVault,
    jiff::{SignedDuration, Timestamp},
};
use kube_authn_store::{KeyRing, PostgresTokenStore, RedisTokenStore, SqliteTokenStore};
use kube_authn_test_servers::{Postgres, Redis};
use support::{end, key, login_of};
use tokio::task::JoinSet;

/// What one step cost.
struct Cost {
    what: &'static str,
    took: Duration,
    /// By how much the process had grown at most since the step began, KiB.
    grew: u64,
}

/// Memory of this process: what it holds now, and the most it held since the last reset, KiB.
fn memory() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let of = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("a line");
        let number = line.split_whitespace().nth(1).expect("a number");
        number.parse().expect("a number")
    };
    (of("VmRSS:"), of("VmHWM:"))
}

async fn measured<T>(what: &'static str, costs: &mut Vec<Cost>, work: impl Future<Output = T>) -> T {
    // 5: the peak begins anew (proc_pid_clear_refs(5)).
    fs::write("/proc/self/clear_refs", "5").expect("our own process");
    let (before, begin) = (memory().0, Instant::now());
    let value = work.await;
    costs.push(Cost {
        what,
        took: begin.elapsed(),
        grew: memory().1.saturating_sub(before),
    });
    value
}

fn ring(ids: &[u8]) -> KeyRing {
    let keys = ids.iter().map(|id| {
        let name = KeyId::new(&format!("k{id}")).expect("an id");
        (name, Secret::new([*id; 32]))
    });
    KeyRing::new(keys.collect()).expect("a ring")
}

/// Half of the logins ended long ago; each has a token of the size that issuers make.
async fn fill(vault: &TokenVault, logins: usize) {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let vault = vault.clone();
        writers.spawn(async move {
            for number in (writer..logins).step_by(WRITERS) {
                let name = name(number);
                let mut login = login_of(&name);
                if number % 2 == 0 {
                    login.expires_at = Timestamp::UNIX_EPOCH;
                }
                login.tokens.id_token = Some(Token {
                    secret: Secret::new(vec![b'x'; TOKEN_BYTES]),
                    expires_at: end(),
                });
                vault.log_in(&key(&name), login).await.expect("stored");
            }
        });
    }
    writers.join_all().await;
}

fn name(number: usize) -> String {
    format!("user-{number:06}")
}

async fn rekey(vault: &TokenVault) -> Rekeyed {
    let (mut sum, mut after) = (Rekeyed::default(), None);
    loop {
        let (done, next) = vault.rekey(after.as_ref(), false).await.expect("rekeyed");
        sum += done;
        let Some(next) = next else { return sum };
        after = Some(next);
    }
}

async fn listed(vault: &TokenVault) -> usize {
    let (mut count, mut after) = (0, None);
    loop {
        let page = vault.logins(after.as_ref(), 500).await.expect("a page");
        let Some(last) = page.last() else { return count };
        after = Some(last.key.clone());
        count += page.len();
    }
}

/// What `GET /status` asks the store, of users all over it.
async fn statuses(vault: &TokenVault, logins: usize) -> usize {
    let mut seen = 0;
    for number in (0..STATUSES).map(|number| number * logins / STATUSES) {
        let user = key(&name(number)).principal;
        seen += vault.list(&user).await.expect("listed").len();
    }
    seen
}

async fn purge(vault: &TokenVault) -> usize {
    let long_ago = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1);
    let mut sum = 0;
    loop {
        let page = vault.purge(long_ago, 500).await.expect("purged");
        sum += page as usize;
        if page < 500 {
            return sum;
        }
    }
}

/// Every step over so many logins; what it gave is checked, and its cost told.
async fn looked_after(medium: &str, store: impl TokenStore + Clone, logins: usize) {
    let mut costs = Vec::new();
    let old = TokenVault::new(store.clone(), ring(&[1]));
    measured("fill", &mut costs, fill(&old, logins)).await;
    let vault = TokenVault::new(store, ring(&[2, 1]));

    let keys = measured("keys", &mut costs, vault.rows_by_key()).await;
    let seen = measured("list", &mut costs, listed(&vault)).await;
    let count = measured("count", &mut costs, vault.count(u32::MAX)).await;
    let status = measured("100 statuses", &mut costs, statuses(&vault, logins)).await;
    let done = measured("rekey", &mut costs, rekey(&vault)).await;
    let again = measured("rekey again", &mut costs, rekey(&vault)).await;
    let purged = measured("purge", &mut costs, purge(&vault)).await;

    let keys = keys.expect("counted");
    assert_eq!(keys.values().map(|key| key.rows).sum::<u64>(), logins as u64);
    assert_eq!((seen, status), (logins, STATUSES));
    let count = count.expect("counted");
    assert_eq!(count.usable + count.refreshable, logins as u64);
    assert_eq!((done.rewritten, done.damaged), (logins as u64, 0));
    assert_eq!((again.rewritten, again.current), (0, logins as u64));
    assert_eq!(purged, logins.div_ceil(2));
    assert_eq!(listed(&vault).await, logins / 2);
    assert!(vault.load(&key(&name(1))).await.expect("loaded").is_some());
    eprintln!("{medium}, {logins} logins");
    for cost in &costs {
        eprintln!("  {:<14} {:>9.1?}  +{} KiB", cost.what, cost.took, cost.grew);
        assert!(
            cost.grew < MOST_KIB,
            "{} of {logins} took {} KiB",
            cost.what,
            cost.grew
        );
    }
}

fn sizes() -> &'static [usize] {
    match std::env::var_os("KUBE_AUTHN_TEST_LONG") {
        None => &[2_000],
        Some(_) => &[10_000, 100_000],
    }
}

/// One after the other: they measure the same process. All three wait for the disk, as they are deployed.
#[tokio::test(flavor = "multi_thread")]
async fn looking_after_many_logins_takes_bounded_memory() {
    let postgres = Postgres::start_with(&[]);
    for logins in sizes() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}/logins.db", folder.path().display());
        let store = SqliteTokenStore::open(&url).await.expect("open");
        looked_after("SQLite", store, *logins).await;
        let store = PostgresTokenStore::open(&postgres.database())
            .await
            .expect("open");
        looked_after("PostgreSQL", store, *logins).await;
        let redis = Redis::start_with(&[("appendfsync", "always")]);
        let store = RedisTokenStore::open(&redis.url()).await.expect("open");
        looked_after("Redis", store, *logins).await;
    }
}

/// As many as a store takes at once.
const WRITERS: usize = 8;
/// Users whose status is asked for.
const STATUSES: usize = 100;
/// An ID token with a few groups.
const TOKEN_BYTES: usize = 1_500;
/// Pages, the pools' buffers, the database's cache, and what the vault remembers of logins (10 MB): a hundred thousand rows are
/// more than 200 MB.
const MOST_KIB: u64 = 64 * 1_024;
