//! A process killed while it saves, and a Redis killed after it, leave rows whole, acknowledged logins there, indexes true,
//! and nobody crossed.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    reason = "a process can only be killed if there is one"
)]

mod support;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use kube_authn_core::{Claim, LoginId, Secret, TokenStore, TokenVault, jiff::Timestamp};
use kube_authn_store::RedisTokenStore;
use kube_authn_test_servers::{Redis, Signal};
use support::{end, fixed_keys, id_token_of, key, login_of};

const URL: &str = "KUBE_AUTHN_TEST_URL";
const USERS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_never_leaves_half_a_row_a_crossed_user_or_a_false_index() {
    let rounds = match std::env::var_os("KUBE_AUTHN_TEST_LONG") {
        Some(_) => 1_000,
        None => 20,
    };
    let mut redis = Redis::start();
    let mut acknowledged = [0_u64; USERS];
    let mut saves = 0;

    for round in 0..rounds {
        let before_the_kill = Duration::from_millis(5 + round * 37 % 200);
        for (user, count) in killed_while_saving(&redis.url(), before_the_kill) {
            acknowledged[user] = acknowledged[user].max(count);
            saves += 1;
        }
        if round % 5 == 4 {
            redis.end(Signal::Kill);
            redis.start_again();
        }

        let store = RedisTokenStore::open(&redis.url()).await.expect("a store");
        let vault = TokenVault::new(store.clone(), fixed_keys());
        let rows = store.scan(None, 1_000).await.expect("scanned");
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
        assert_eq!(indexed(&redis, "logins").await, rows.len(), "round {round}");
        assert_eq!(indexed(&redis, "ends").await, rows.len(), "round {round}");
        assert_eq!(stored(&redis).await, rows.len(), "round {round}");
    }
    assert!(saves > rounds, "the children saved {saves} times only");
    println!("{rounds} kills, {saves} saves");

    // The index of ends is true too: a purge takes each row, and leaves nothing behind.
    let store = RedisTokenStore::open(&redis.url()).await.expect("a store");
    let rows = store.scan(None, 1_000).await.expect("scanned").len();
    let purged = store.purge(Timestamp::MAX, 1_000).await.expect("purged");
    assert_eq!(usize::try_from(purged), Ok(rows));
    for index in ["logins", "ends"] {
        assert_eq!(indexed(&redis, index).await, 0);
    }
    assert_eq!(stored(&redis).await, 0);
}

/// How many entries an index has.
async fn indexed(redis: &Redis, index: &str) -> usize {
    let index = format!("{{kube-authn}}:{index}");
    redis.run(&["ZCARD", &index]).parse().expect("a count")
}

/// How many rows there are: all keys but the two indexes and the layout.
async fn stored(redis: &Redis) -> usize {
    let keys = redis.run(&["KEYS", "{kube-authn}:login:*"]);
    keys.lines().filter(|line| !line.is_empty()).count()
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
    let Ok(url) = std::env::var(URL) else {
        return;
    };
    let vault = TokenVault::new(RedisTokenStore::open(&url).await.expect("a store"), fixed_keys());
    let tasks: Vec<_> = (0..USERS)
        .map(|user| {
            let vault = vault.clone();
            tokio::spawn(async move {
                let key = key(&format!("u{user}"));
                if vault.load(&key).await.expect("loaded").is_none() {
                    vault
                        .log_in(&key, login_of(&format!("u{user}")))
                        .await
                        .expect("stored");
                }
                loop {
                    let login = vault.load(&key).await.expect("loaded").expect("a login");
                    let next = count(login.tokens.refresh_token.as_ref()) + 1;
                    let owner = LoginId::from_bytes([user as u8; 16]);
                    // A mark left by the last child looks like a running refresh: saving goes on past it.
                    let claimed = match vault.claim_refresh(&login, owner, end()).await.expect("claimed") {
                        Claim::Ours(claimed) => claimed,
                        Claim::Running { .. } => login,
                        other => panic!("{other:?}"),
                    };
                    let token = Secret::new(format!("{next}.{}", "x".repeat(2_000)));
                    let saved = vault.save_refresh_token(&claimed, token).await.expect("saved");
                    vault.release_refresh(&saved).await.expect("released");
                    println!("saved {user} {next}");
                }
            })
        })
        .collect();
    for task in tasks {
        let _: Result<(), _> = task.await;
    }
}

/// How often a refresh token was saved, as the token itself says.
fn count(token: Option<&Secret>) -> u64 {
    token
        .and_then(Secret::expose_str)
        .and_then(|text| text.split_once('.'))
        .and_then(|(count, _)| count.parse().ok())
        .unwrap_or(0)
}
