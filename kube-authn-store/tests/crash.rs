//! A process killed while it saves, and a server killed under it, leave rows whole, acknowledged logins there, indexes true,
//! and nobody crossed.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "figures are what a long run is for")]
#![allow(
    clippy::disallowed_methods,
    reason = "a process can only be killed if there is one"
)]

mod support;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use kube_authn_core::{Claim, LoginId, Secret, TokenStore, TokenVault, jiff::Timestamp};
use kube_authn_store::{
    PostgresTokenStore, RedisTokenStore, SqliteTokenStore,
    sqlx::{self, ConnectOptions, sqlite::SqliteConnectOptions},
};
use kube_authn_test_servers::{Postgres, Redis, Signal};
use support::{end, fixed_keys, id_token_of, key, login_of};

const URL: &str = "KUBE_AUTHN_TEST_URL";
const USERS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_never_leaves_half_a_row_or_a_crossed_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("logins.db");
    survives_kills(&format!("sqlite://{}", path.display())).await;

    let mut sql = SqliteConnectOptions::new()
        .filename(&path)
        .connect()
        .await
        .expect("connected");
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut sql)
        .await
        .expect("checked");
    assert_eq!(verdict, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_never_leaves_half_a_row_or_a_crossed_user_in_postgres() {
    let server = Postgres::start();
    survives_kills(&server.database()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_postgres_never_loses_a_save_that_it_acknowledged() {
    let mut server = Postgres::start();
    let url = server.database();
    let mut acknowledged = [0_u64; USERS];

    for round in 0..rounds() / 4 {
        let store = open(&url).await;
        let vault = TokenVault::new(store, fixed_keys());
        let saving: Vec<_> = (0..USERS)
            .map(|user| {
                let vault = vault.clone();
                tokio::spawn(async move {
                    let mut last = 0;
                    while let Some(count) = save_once(&vault, user).await {
                        last = count;
                    }
                    last
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(40 + u64::from(round) * 37 % 400)).await;
        server.kill();
        for (user, saving) in saving.into_iter().enumerate() {
            let last = saving.await.expect("joined");
            acknowledged[user] = acknowledged[user].max(last);
        }
        server.start_again();

        check(&url, &acknowledged, round).await;
    }
    assert!(acknowledged.iter().sum::<u64>() > 0, "nothing was ever saved");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_or_redis_never_leaves_half_a_row_a_crossed_user_or_a_false_index() {
    let mut redis = Redis::start();
    let url = redis.url();
    let mut acknowledged = [0_u64; USERS];
    for round in 0..rounds() {
        save_and_be_killed(&url, round, &mut acknowledged);
        if round % 5 == 4 {
            redis.end(Signal::Kill);
            redis.start_again();
        }
        let rows = check(&url, &acknowledged, round).await;
        assert_eq!(indexed(&redis, "logins"), rows, "round {round}");
        assert_eq!(indexed(&redis, "ends"), rows, "round {round}");
        assert_eq!(stored(&redis), rows, "round {round}");
    }
    let saves: u64 = acknowledged.iter().sum();
    assert!(saves > 0, "nothing was ever saved");
    println!("{} kills, {saves} saves acknowledged", rounds());

    // The index of ends is true too: a purge takes each row, and leaves nothing behind.
    let store = open(&url).await;
    let rows = store.scan(None, 1_000).await.expect("scanned").len();
    let purged = store.purge(Timestamp::MAX, 1_000).await.expect("purged");
    assert_eq!(usize::try_from(purged), Ok(rows));
    assert_eq!((indexed(&redis, "logins"), indexed(&redis, "ends")), (0, 0));
    assert_eq!(stored(&redis), 0);
}

/// How many entries an index has.
fn indexed(redis: &Redis, index: &str) -> usize {
    let index = format!("{{kube-authn}}:{index}");
    redis.run(&["ZCARD", &index]).parse().expect("a count")
}

/// How many rows there are.
fn stored(redis: &Redis) -> usize {
    let keys = redis.run(&["KEYS", "{kube-authn}:login:*"]);
    keys.lines().filter(|line| !line.is_empty()).count()
}

/// Kills children while they save, and looks at what they left.
async fn survives_kills(url: &str) {
    let mut acknowledged = [0_u64; USERS];
    let mut saves = 0;
    for round in 0..rounds() {
        saves += save_and_be_killed(url, round, &mut acknowledged);
        check(url, &acknowledged, round).await;
    }
    assert!(saves >= 200, "the children saved {saves} times only");
    println!("{} kills, {saves} saves", rounds());
}

/// One child that saves until it is killed; how many saves it was told of.
fn save_and_be_killed(url: &str, round: u32, acknowledged: &mut [u64; USERS]) -> usize {
    let saved = killed_while_saving(url, Duration::from_millis(5 + u64::from(round) * 37 % 215));
    for (user, count) in &saved {
        acknowledged[*user] = acknowledged[*user].max(*count);
    }
    saved.len()
}

/// Every acknowledged save is there, whole, and its user's. How many rows there are.
async fn check(url: &str, acknowledged: &[u64; USERS], round: u32) -> usize {
    let store = open(url).await;
    let vault = TokenVault::new(Arc::clone(&store), fixed_keys());
    let rows = store.scan(None, 1_000).await.expect("scanned");
    assert!(rows.len() <= USERS);
    for (user, acknowledged) in acknowledged.iter().enumerate() {
        let name = format!("u{user}");
        let login = vault.load(&key(&name)).await.expect("a whole row");
        let Some(login) = login else {
            assert_eq!(*acknowledged, 0, "round {round}: an acknowledged login is gone");
            continue;
        };
        assert_eq!(
            login.tokens.id_token.map(|token| token.secret),
            Some(id_token_of(&name))
        );
        assert!(
            count(login.tokens.refresh_token.as_ref()) >= *acknowledged,
            "round {round}: a save is gone"
        );
    }
    rows.len()
}

/// A sample, or all with `cargo xtask test --long`.
fn rounds() -> u32 {
    match std::env::var_os("KUBE_AUTHN_TEST_LONG") {
        Some(_) => 1_000,
        None => 20,
    }
}

/// Runs this program again as [`saves_until_it_is_killed`], kills it, and gives what it said it had saved.
fn killed_while_saving(url: &str, after_the_first: Duration) -> Vec<(usize, u64)> {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", "saves_until_it_is_killed", "--nocapture"])
        .env(URL, url)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut saved = Vec::new();
    let mut killer = Some(child);
    let mut waiting = None;
    for line in lines {
        let Ok(line) = line else { break };
        // The test harness writes its own words before the first line of ours.
        let Some((_, said)) = line.split_once("saved ") else {
            continue;
        };
        let Some((user, count)) = said.split_once(' ') else {
            continue;
        };
        saved.push((user.parse().expect("a user"), count.parse().expect("a count")));
        if let Some(mut child) = killer.take() {
            waiting = Some(std::thread::spawn(move || {
                std::thread::sleep(after_the_first);
                child.kill().expect("killed");
                child.wait().expect("gone");
            }));
        }
    }
    waiting.expect("the child saved nothing").join().expect("killed");
    saved
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of the test above; never ends by itself"]
async fn saves_until_it_is_killed() {
    let Some(url) = std::env::var_os(URL) else {
        return;
    };
    let vault = TokenVault::new(open(&url.to_string_lossy()).await, fixed_keys());
    let tasks: Vec<_> = (0..USERS)
        .map(|user| {
            let vault = vault.clone();
            tokio::spawn(async move {
                while let Some(next) = save_once(&vault, user).await {
                    println!("saved {user} {next}");
                }
            })
        })
        .collect();
    for task in tasks {
        let _: Result<(), _> = task.await;
    }
}

/// Saves the next refresh token of this user, as a refresh does, and says which one it was; `None` once the store is gone.
async fn save_once(vault: &TokenVault, user: usize) -> Option<u64> {
    let name = format!("u{user}");
    let login = match vault.load(&key(&name)).await.ok()? {
        Some(login) => login,
        None => {
            vault.log_in(&key(&name), login_of(&name)).await.ok()?;
            vault.load(&key(&name)).await.ok()??
        }
    };
    let next = count(login.tokens.refresh_token.as_ref()) + 1;
    let owner = LoginId::from_bytes([user as u8; 16]);
    // A mark left by the last child looks like a running refresh: saving goes on past it.
    let claimed = match vault.claim_refresh(&login, owner, end()).await.ok()? {
        Claim::Ours(claimed) => claimed,
        Claim::Running { .. } => login,
        other => panic!("{other:?}"),
    };
    let token = Secret::new(format!("{next}.{}", "x".repeat(2_000)));
    let saved = vault.save_refresh_token(&claimed, token).await.ok()?;
    vault.release_refresh(&saved).await.ok()?;
    Some(next)
}

/// How often a refresh token was saved, as the token itself says.
fn count(token: Option<&Secret>) -> u64 {
    token
        .and_then(Secret::expose_str)
        .and_then(|text| text.split_once('.'))
        .and_then(|(count, _)| count.parse().ok())
        .unwrap_or(0)
}

async fn open(url: &str) -> Arc<dyn TokenStore> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("sqlite") => Arc::new(SqliteTokenStore::open(url).await.expect("a store")),
        Some("redis") => Arc::new(RedisTokenStore::open(url).await.expect("a store")),
        _ => Arc::new(PostgresTokenStore::open(url).await.expect("a store")),
    }
}
