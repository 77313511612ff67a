//! What is Redis's alone: rows changed by hand, restarts, failovers, rights, TLS.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use ::redis::{Cmd, FromRedisValue, aio::MultiplexedConnection};
use kube_authn_core::{
    CaBundle, Error, ErrorKind, Expected, LoginEvent, LoginEvents, Result, Secret, TokenKey, TokenStore,
    TokenVault,
};
use kube_authn_store::{CachingTokenStore, KeyRing, RedisOptions, RedisTokenStore};
use kube_authn_test_servers::{COMMANDS, Cluster, Redis, Sentinels, Signal};
use support::{CANARY, id_token_of, key, key_of, keys, log_in, login_of};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn moved_or_swapped_fields_never_give_somebody_elses_token() {
    let redis = Redis::start();
    let mut admin = Admin::of(&redis).await;
    let ring = keys();
    let vault = vault(&redis, &ring).await;
    let (alice, bob) = (key("alice"), key("bob"));
    let elsewhere = key_of("alice", "https://other.example.com/", "kubernetes");
    let logins = [(&alice, "alice"), (&bob, "bob"), (&elsewhere, "alice-elsewhere")];
    vault
        .log_in(&alice, login_of("alice-before"))
        .await
        .expect("stored");
    let old = admin.row(&alice).await;
    for (key, owner) in logins {
        vault.log_in(key, login_of(owner)).await.expect("stored");
    }
    let (good, bobs) = (admin.row(&alice).await, admin.row(&bob).await);
    let field = |row: &Row, name: &str| {
        let value = row.iter().find(|(field, _)| field == name);
        vec![(name.to_owned(), value.expect("a field").1.clone())]
    };
    let set = |name: &str, value: &[u8]| vec![(name.to_owned(), value.to_vec())];
    let sealed = field(&good, "sealed").remove(0).1;
    let mut flipped = sealed.clone();
    flipped[sealed.len() / 2] ^= 1;
    let later = |name: &str| {
        let text = String::from_utf8(field(&good, name).remove(0).1).expect("a number");
        set(
            name,
            (text.parse::<i64>().expect("a number") + 1)
                .to_string()
                .as_bytes(),
        )
    };
    let edits = [
        field(&bobs, "sealed"),
        field(&old, "sealed"),
        field(&old, "login"),
        field(&bobs, "login"),
        field(&bobs, "subject"),
        [field(&bobs, "sealed"), field(&bobs, "login")].concat(),
        later("number"),
        later("expires_at"),
        later("created_at"),
        set("refreshable", b"0"),
        [set("refreshing_owner", &[7; 16]), set("refreshing_until", b"1")].concat(),
        set("sealed", &sealed[..sealed.len() - 1]),
        set("sealed", b""),
        set("sealed", &flipped),
        set("key_id", b"k2"),
        set("key_id", b""),
        set("subject", b"\n"),
        set("subject", b"\xff"),
        set("expires_at", b"9223372036854775807"),
        set("expires_at", b"soon"),
        set("number", b"-1"),
        set("number", b"01"),
        set("login", b"short"),
        set("refreshing_owner", &[7; 16]),
    ];

    for edit in edits {
        let what = format!("{:?}", edit.iter().map(|(name, _)| name).collect::<Vec<_>>());
        admin.put(&alice, &edit).await;
        let vault = self::vault(&redis, &ring).await;

        let error = vault.load(&alice).await.expect_err(&what);

        assert_eq!(error.kind(), ErrorKind::RecordDamaged, "{what}");
        assert!(!format!("{error} {error:?}").contains(CANARY), "{what}");
        for (key, owner) in &logins[1..] {
            assert_eq!(id_token(&vault, key).await, Some(id_token_of(owner)), "{what}");
        }
        admin.put(&alice, &good).await;
    }
    let vault = self::vault(&redis, &ring).await;
    assert_eq!(id_token(&vault, &alice).await, Some(id_token_of("alice")));
}

#[tokio::test]
async fn row_moved_to_another_user_issuer_or_client_never_opens() {
    let redis = Redis::start();
    let mut admin = Admin::of(&redis).await;
    let ring = keys();
    let vault = vault(&redis, &ring).await;
    for moved in [
        key("mallory"),
        key_of("alice", "https://evil.example.com/", "kubernetes"),
        key_of("alice", "https://issuer.example.com/", "another"),
    ] {
        log_in(&vault, "alice").await;
        admin
            .ask::<()>(&[b"RENAME", &name(&key("alice")), &name(&moved)])
            .await;

        let error = self::vault(&redis, &ring).await.load(&moved).await;

        assert_eq!(error.expect_err("moved").kind(), ErrorKind::RecordDamaged);
        assert!(vault.load(&key("alice")).await.expect("loaded").is_none());
        admin.ask::<()>(&[b"FLUSHALL"]).await;
    }
}

#[tokio::test]
async fn old_row_put_back_never_serves_who_saw_a_newer_one() {
    let redis = Redis::start();
    let mut admin = Admin::of(&redis).await;
    let vault = vault(&redis, &keys()).await;
    vault
        .log_in(&key("alice"), login_of("alice-before"))
        .await
        .expect("stored");
    let old = admin.row(&key("alice")).await;
    log_in(&vault, "alice").await;

    admin.put(&key("alice"), &old).await;

    let error = vault.load(&key("alice")).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::RecordDamaged);
}

#[tokio::test]
async fn what_is_no_row_of_ours_is_damaged_and_hides_nobody_elses_row() {
    let redis = Redis::start();
    let mut admin = Admin::of(&redis).await;
    let store = open(&redis.url()).await;
    let vault = TokenVault::new(store.clone(), keys());
    let row = name(&key("bob"));
    let garbage: [&[&[u8]]; 4] = [
        &[b"SET", &row, b"garbage"],
        &[b"HSET", &row, b"login", b"garbage"],
        &[b"RPUSH", &row, b"garbage"],
        &[b"SADD", &row, b"garbage"],
    ];
    for garbage in garbage {
        for name in ["alice", "bob", "carol"] {
            log_in(&vault, name).await;
        }
        admin.ask::<()>(&[b"DEL", &row]).await;
        admin.ask::<()>(garbage).await;

        let loaded = store.load(&key("bob")).await.expect_err("garbage");
        let listed = store.list(&key("bob").principal).await.expect_err("garbage");
        let scanned = store.scan(None, 10).await.expect("a page");
        let first = store.scan(None, 1).await.expect("a page");
        let second = store.scan(Some(&key("alice")), 1).await.expect("a page");

        assert_eq!(loaded.kind(), ErrorKind::RecordDamaged);
        assert_eq!(listed.kind(), ErrorKind::RecordDamaged);
        assert_eq!(keys_of(&scanned), [key("alice"), key("carol")]);
        assert_eq!(keys_of(&first), [key("alice")]);
        assert_eq!(keys_of(&second), [key("carol")]);
        assert_eq!(
            store.list(&key("alice").principal).await.expect("a list").len(),
            1
        );
        assert!(store.delete(&key("bob")).await.expect("deleted"));
        assert_eq!(store.load(&key("bob")).await.expect("loaded"), None);
    }
}

#[tokio::test]
async fn index_entry_without_a_row_is_nobodys_login() {
    let redis = Redis::start();
    let mut admin = Admin::of(&redis).await;
    let store = open(&redis.url()).await;
    let vault = TokenVault::new(store.clone(), keys());
    for name in ["alice", "bob"] {
        log_in(&vault, name).await;
    }

    // As an eviction does.
    admin.ask::<()>(&[b"DEL", &name(&key("alice"))]).await;

    assert_eq!(store.list(&key("alice").principal).await.expect("a list"), []);
    assert_eq!(keys_of(&store.scan(None, 1).await.expect("a page")), [key("bob")]);
    let end = support::end()
        .checked_add(Duration::from_secs(1))
        .expect("an instant");
    assert_eq!(store.purge(end, 10).await.expect("purged"), 1);
    assert_eq!(admin.ask::<u32>(&[b"ZCARD", b"{kube-authn}:logins"]).await, 0);
    assert_eq!(admin.ask::<u32>(&[b"ZCARD", b"{kube-authn}:ends"]).await, 0);
}

#[tokio::test]
async fn stores_with_different_prefixes_share_nothing() {
    let redis = Redis::start();
    let (one, other) = (redis.url(), format!("{}?prefix=kube-authn-b", redis.url()));
    let (one, other) = (open(&one).await, open(&other).await);
    let mut events = other.events().await.expect("events");

    TokenVault::new(one.clone(), keys())
        .log_in(&key("alice"), login_of("alice"))
        .await
        .expect("stored");

    assert_eq!(other.load(&key("alice")).await.expect("loaded"), None);
    assert_eq!(other.scan(None, 10).await.expect("a page"), []);
    let heard = tokio::time::timeout(Duration::from_millis(200), events.next()).await;
    assert!(heard.is_err(), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_of_redis_is_unavailable_and_then_over() {
    let (mut redis, store, vault) = alice_logged_in().await;
    let before = vault.load(&key("alice")).await.expect("loaded").expect("a login");
    let mut events = store.events().await.expect("events");

    redis.end(Signal::Kill);
    let down = [
        store.load(&key("alice")).await.map(drop),
        vault.log_in(&key("bob"), login_of("bob")).await.map(drop),
        store.delete(&key("alice")).await.map(drop),
        store.events().await.map(drop),
    ];
    redis.start_again();
    let (took, back) = until_it_works(async || vault.load(&key("alice")).await).await;

    for error in down {
        is_told_to_try_again(&error.expect_err("it was down"));
    }
    assert_eq!(back.map(|login| login.revision), Some(before.revision));
    assert!(took < RETURN, "the first success took {took:?}");
    assert!(!before.handle.is_ended());
    ends(&mut events).await;
    let (_, mut events) = until_it_works(async || store.events().await).await;
    hears_of_a_logout(&store, &mut events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_never_serves_a_row_while_redis_is_out_of_reach() {
    let mut redis = Redis::start();
    let vault = vault(&redis, &keys()).await;
    log_in(&vault, "alice").await;
    let cache = CachingTokenStore::new(open(&redis.url()).await);
    let begin = Instant::now();
    // Kept once the cache hears what changes: then it is served without Redis for as long as that takes to find out.
    cache.load(&key("alice")).await.expect("loaded");
    let mut events = cache.events().await.expect("subscribed");
    cache.load(&key("alice")).await.expect("loaded");

    redis.end(Signal::Kill);
    ends(&mut events).await;

    while cache.load(&key("alice")).await.is_ok() {
        assert!(begin.elapsed() < PATIENCE, "the cache serves on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_of_sentinels_needs_no_restart_of_ours() {
    let mut sentinels = Sentinels::start();
    let store = open(&sentinels.url()).await;
    let vault = TokenVault::new(store.clone(), keys());
    log_in(&vault, "alice").await;
    let before = vault.load(&key("alice")).await.expect("loaded").expect("a login");
    let mut events = store.events().await.expect("events");
    sentinels.primary().wait_for_replica();

    // A crash, seen by two of three sentinels: the third is gone too.
    sentinels.sentinel(0).end(Signal::Kill);
    sentinels.primary().end(Signal::Kill);
    is_told_to_try_again(&store.load(&key("alice")).await.expect_err("it was down"));
    sentinels.wait_for_failover();
    let (took, _) = until_it_works(async || vault.log_in(&key("bob"), login_of("bob")).await).await;

    assert!(took < RETURN, "the first success took {took:?}");
    let back = vault.load(&key("alice")).await.expect("loaded");
    assert_eq!(back.map(|login| login.revision), Some(before.revision));
    assert!(!before.handle.is_ended());
    ends(&mut events).await;
    let (_, mut events) = until_it_works(async || store.events().await).await;
    hears_of_a_logout(&store, &mut events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn demoted_primary_that_lives_on_gets_no_more_writes_of_ours() {
    let mut sentinels = Sentinels::start();
    let store = open(&sentinels.url()).await;
    let vault = TokenVault::new(store.clone(), keys());
    log_in(&vault, "alice").await;

    sentinels.primary().wait_for_replica();
    sentinels.swap();
    let (took, _) = until_it_works(async || vault.log_in(&key("alice"), login_of("alice")).await).await;

    assert!(took < RETURN, "the first success took {took:?}");
    assert_eq!(sentinels.primary().run(&["EXISTS", "{kube-authn}:logins"]), "1");
    assert_eq!(id_token(&vault, &key("alice")).await, Some(id_token_of("alice")));
}

#[tokio::test(flavor = "multi_thread")]
async fn primary_that_is_demoted_in_place_is_never_read_again_until_it_is_one() {
    let (redis, store, _) = alice_logged_in().await;
    let row = store.load(&key("alice")).await.expect("loaded").expect("a row");
    let mut next = row.clone();
    next.revision.number += 1;
    let mut events = store.events().await.expect("events");

    demote(&redis);
    let refused = [
        store.load(&key("alice")).await.map(drop),
        store.load(&key("nobody")).await.map(drop),
        store.list(&key("alice").principal).await.map(drop),
        store.scan(None, 10).await.map(drop),
        store.save(&key("alice"), &row, Expected::Absent).await,
        store.save(&key("alice"), &next, Expected::At(row.revision)).await,
        store.delete(&key("alice")).await.map(drop),
        store.delete(&key("nobody")).await.map(drop),
        store.purge(support::end(), 10).await.map(drop),
        store.events().await.map(drop),
    ];
    let started = open(&redis.url()).await.load(&key("alice")).await;
    ends(&mut events).await;

    for refused in refused.into_iter().chain([started.map(drop)]) {
        is_a_replica(&refused.expect_err("it is a replica"));
    }
    redis.run(&["REPLICAOF", "NO", "ONE"]);
    let (took, back) = until_it_works(async || store.load(&key("alice")).await).await;
    assert_eq!(back, Some(row));
    assert!(took < RETURN, "the first success took {took:?}");
    let (_, mut events) = until_it_works(async || store.events().await).await;
    hears_of_a_logout(&store, &mut events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_a_replica_tells_of_never_ends_a_login() {
    let (redis, store, vault) = alice_logged_in().await;
    let mut admin = Admin::of(&redis).await;
    let row = name(&key("alice"));
    admin.ask::<()>(&[b"DEL", &row]).await;
    admin.ask::<()>(&[b"SET", &row, b"garbage"]).await;

    demote(&redis);
    let loaded = store.load(&key("alice")).await;
    let stored = vault.log_in(&key("alice"), login_of("alice")).await;

    is_a_replica(&loaded.expect_err("it is a replica"));
    is_a_replica(&stored.expect_err("it is a replica"));
    assert_eq!(admin.ask::<String>(&[b"GET", &row]).await, "garbage");
}

#[tokio::test(flavor = "multi_thread")]
async fn write_that_a_replica_took_is_never_believed() {
    let (redis, store, vault) = alice_logged_in().await;

    redis.run(&["CONFIG", "SET", "replica-read-only", "no"]);
    demote(&redis);
    // The first one gets there over the connection from before, the others over none.
    let deleted = store.delete(&key("alice")).await;
    let saved = vault.log_in(&key("alice"), login_of("alice")).await;

    is_a_replica(&deleted.expect_err("its primary knows nothing of it"));
    is_a_replica(&saved.expect_err("nobody would keep it"));
    is_a_replica(&store.load(&key("alice")).await.expect_err("it is a replica"));
    let row = String::from_utf8(name(&key("alice"))).expect("text");
    assert_eq!(
        Admin::of(&redis)
            .await
            .ask::<u8>(&[b"EXISTS", row.as_bytes()])
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_never_serves_on_beside_a_demoted_primary() {
    let redis = Redis::start();
    let vault = vault(&redis, &keys()).await;
    log_in(&vault, "alice").await;
    let cache = CachingTokenStore::new(open(&redis.url()).await);
    cache.load(&key("alice")).await.expect("loaded");
    let mut events = cache.events().await.expect("subscribed");
    cache.load(&key("alice")).await.expect("loaded");

    // Nothing is asked of Redis after this: the subscription has to find it out.
    demote(&redis);
    ends(&mut events).await;

    let begin = Instant::now();
    while cache.load(&key("alice")).await.is_ok() {
        assert!(begin.elapsed() < PATIENCE, "the cache serves on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn address_that_leads_to_a_replica_after_a_reconnect_is_never_read() {
    let (primary, replica) = (Redis::start(), Redis::start());
    replica.run(&["REPLICAOF", "127.0.0.1", &primary.port().to_string()]);
    let address = Crossing::new(&primary).await;
    let store = open(&address.url()).await;
    let vault = TokenVault::new(store.clone(), keys());
    log_in(&vault, "alice").await;
    // Once it follows, which it may not have done when alice logged in.
    until(|| replica.run(&["EXISTS", "{kube-authn}:logins"]) == "1").await;
    // The logout never gets there.
    demote(&replica);
    vault.log_out(&key("alice")).await.expect("deleted");

    address.lead_to(&replica);
    primary.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    let error = store.load(&key("alice")).await.expect_err("it is a replica");

    is_a_replica(&error);
    address.lead_to(&primary);
    let (took, row) = until_it_works(async || store.load(&key("alice")).await).await;
    assert_eq!(row, None);
    assert!(took < RETURN, "the first success took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_never_stays_with_a_server_that_the_address_left() {
    let (former, now) = (Redis::start(), Redis::start());
    let address = Crossing::new(&former).await;
    let store = open(&address.url()).await;
    let mut events = store.events().await.expect("events");

    // The subscription's connection lives on, and the former server believes to be a primary.
    address.lead_to(&now);
    former.run(&["CLIENT", "KILL", "TYPE", "normal"]);

    ends(&mut events).await;
    let (_, mut events) = until_it_works(async || store.events().await).await;
    hears_of_a_logout(&open(&now.url()).await, &mut events).await;
}

#[tokio::test]
async fn subscription_that_hears_nothing_of_what_is_told_is_refused() {
    let (here, elsewhere) = (Redis::start(), Redis::start());
    let address = Crossing::new(&here).await;
    let store = open(&address.url()).await;

    // Commands stay where they go; and another process connects and subscribes again and again where the subscription goes.
    address.lead_to(&elsewhere);
    let url = elsewhere.url();
    let talk = tokio::spawn(async move {
        loop {
            let other = open(&url).await;
            other.events().await.expect("events");
        }
    });
    let error = store.events().await.expect_err("it would hear of no logout");

    talk.abort();
    assert!(talk.await.is_err_and(|ended| ended.is_cancelled()));
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("does not tell who logged out"),
        "{error}"
    );
    is_told_to_try_again(&error);
    address.lead_to(&here);
    let mut events = store.events().await.expect("events");
    hears_of_a_logout(&store, &mut events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_may_not_write_is_still_read_over_a_new_connection() {
    let (redis, _, vault) = alice_logged_in().await;
    for (setting, before, hint) in [
        ("maxmemory", "0", "raise maxmemory"),
        ("min-replicas-to-write", "0", "min-replicas-to-write"),
    ] {
        redis.run(&["CONFIG", "SET", setting, "1"]);
        redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);

        let loaded = id_token(&vault, &key("alice")).await;
        let saved = vault.log_in(&key("bob"), login_of("bob")).await;

        assert_eq!(loaded, Some(id_token_of("alice")), "{setting}");
        let error = saved.expect_err(setting);
        is_told_to_try_again(&error);
        assert!(error.to_string().contains(hint), "{error}");
        redis.run(&["CONFIG", "SET", setting, before]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_of_a_cluster_needs_no_restart_of_ours() {
    let mut cluster = Cluster::start();
    let store = open(&cluster.url()).await;
    let vault = TokenVault::new(store.clone(), keys());
    log_in(&vault, "alice").await;
    let mut events = store.events().await.expect("events");
    cluster.primary().wait_for_replica();

    cluster.primary().end(Signal::Kill);
    is_told_to_try_again(&store.load(&key("alice")).await.expect_err("it was down"));
    cluster.wait_for_failover();
    let (took, back) = until_it_works(async || vault.load(&key("alice")).await).await;

    assert!(back.is_some());
    assert!(took < RETURN, "the first success took {took:?}");
    ends(&mut events).await;
    let (_, mut events) = until_it_works(async || store.events().await).await;
    hears_of_a_logout(&store, &mut events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_still_names_the_former_primary_makes_nobody_wait_for_it() {
    let (former, now) = (Redis::start(), Redis::start());
    open(&former.url()).await;
    former.run(&["REPLICAOF", "127.0.0.1", "1"]);
    // The stale one answers first.
    let stale = node_that_names(&former, Duration::ZERO).await;
    let fresh = node_that_names(&now, Duration::from_millis(100)).await;
    let url = format!(
        "redis+cluster://{}:{}@127.0.0.1:{stale},127.0.0.1:{fresh}",
        Redis::USER,
        Redis::PASSWORD
    );

    let store = open(&url).await;

    assert_eq!(store.load(&key("alice")).await.expect("loaded"), None);
    log_in(&TokenVault::new(store, keys()), "alice").await;
    assert_eq!(now.run(&["EXISTS", "{kube-authn}:logins"]), "1");
}

#[tokio::test]
async fn handed_over_slot_is_followed_without_an_error() {
    let mut cluster = Cluster::start();
    let store = open(&cluster.url()).await;
    let vault = TokenVault::new(store.clone(), keys());
    log_in(&vault, "alice").await;

    cluster.hand_over();

    log_in(&vault, "alice").await;
    assert_eq!(id_token(&vault, &key("alice")).await, Some(id_token_of("alice")));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_stalls_costs_a_time_limit_and_no_more() {
    let (redis, store, _) = alice_logged_in().await;

    redis.run(&["CLIENT", "PAUSE", "3000", "ALL"]);
    let error = store.load(&key("alice")).await.expect_err("it stalls");

    assert_eq!(error.kind(), ErrorKind::Timeout);
    is_told_to_try_again(&error);
    let (_, back) = until_it_works(async || store.load(&key("alice")).await).await;
    assert!(back.is_some());
}

#[tokio::test]
async fn full_redis_refuses_a_save_and_leaves_the_row_as_it_was() {
    let (redis, store, _) = alice_logged_in().await;
    let row = store.load(&key("alice")).await.expect("loaded").expect("a row");
    let mut next = row.clone();
    next.revision.number += 1;

    redis.run(&["CONFIG", "SET", "maxmemory", "1"]);
    let saved = store.save(&key("alice"), &next, Expected::At(row.revision)).await;
    let new = store.save(&key("bob"), &row, Expected::Absent).await;

    for error in [saved, new] {
        let error = error.expect_err("it is full");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("raise maxmemory"), "{error}");
    }
    assert_eq!(
        store.load(&key("alice")).await.expect("loaded"),
        Some(row.clone())
    );
    redis.run(&["CONFIG", "SET", "maxmemory", "0"]);
    store
        .save(&key("alice"), &next, Expected::At(row.revision))
        .await
        .expect("saved");
    assert_eq!(
        keys_of(&store.scan(None, 10).await.expect("a page")),
        [key("alice")]
    );
}

#[tokio::test]
async fn wrong_password_is_refused_and_shown_nowhere() {
    let redis = Redis::start();
    let (log, _guard) = logged();
    let url = |user: &str| format!("redis://{user}:canary-typo@{}/", redis.address());

    for user in [Redis::USER, "nobody"] {
        let error = RedisTokenStore::open(&url(user)).await.expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(
            error
                .to_string()
                .contains("does not accept the user or the password"),
            "{error}"
        );
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
    let store = open(&redis.url()).await;
    assert!(!format!("{store:?}").contains("canary"), "{store:?}");
    assert!(!log.text().contains("canary"), "{}", log.text());
}

#[tokio::test]
async fn url_of_another_kind_of_redis_is_refused_by_name() {
    let redis = Redis::start();
    let login = format!("{}:{}", Redis::USER, Redis::PASSWORD);
    let address = redis.address();

    for (url, told) in [
        (format!("redis+cluster://{login}@{address}"), "is no cluster"),
        (
            format!(
                "redis+sentinel://{login}@{address}/mymaster?sentinelUser={}&sentinelPassword={}",
                Redis::USER,
                Redis::PASSWORD
            ),
            "is no sentinel",
        ),
        (
            format!("redis://{login}@{address}/99"),
            "has no database of this number",
        ),
    ] {
        let error = RedisTokenStore::open(&url).await.expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[tokio::test]
async fn user_with_the_documented_rights_suffices_and_with_less_the_start_is_refused() {
    let redis = Redis::start();
    let rights = format!("on >word ~{{kube-authn}}:* &{{kube-authn}}:* {COMMANDS}");
    let with_less = |name: &str, less: &str| {
        let rights: Vec<&str> = rights.split(' ').chain(less.split(' ')).collect();
        redis.run(&[&["ACL", "SETUSER", name][..], &rights].concat());
        format!("redis://{name}:word@{}", redis.address())
    };

    let store = open(&with_less("enough", "+ping")).await;
    let vault = TokenVault::new(store.clone(), keys());
    let mut events = store.events().await.expect("events");
    log_in(&vault, "alice").await;
    log_in(&vault, "alice").await;
    assert_eq!(
        store.list(&key("alice").principal).await.expect("a list").len(),
        1
    );
    assert_eq!(store.purge(support::end(), 10).await.expect("purged"), 0);
    assert_eq!(store.scan(None, 10).await.expect("a page").len(), 1);
    hears_of_a_logout(&store, &mut events).await;

    for less in ["-publish", "-evalsha", "resetchannels", "resetkeys"] {
        let error = RedisTokenStore::open(&with_less("less", less))
            .await
            .expect_err(less);
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{less}");
        assert!(error.to_string().contains("ACL"), "{less}: {error}");
    }
}

#[tokio::test]
async fn start_warns_of_a_redis_that_forgets_also_where_its_settings_are_hidden() {
    let (log, _guard) = logged();
    let redis = Redis::start_with(&[("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]);

    open(&redis.url()).await;
    let open_to_us = log.take();
    redis.run(&["ACL", "SETUSER", Redis::USER, "-config|get"]);
    open(&redis.url()).await;
    let hidden = log.take();
    redis.run(&["ACL", "SETUSER", Redis::USER, "-info"]);
    open(&redis.url()).await;
    let dark = log.take();
    let durable = Redis::start_with(&[("appendfsync", "always")]);
    open(&durable.url()).await;

    for text in [open_to_us, hidden] {
        assert!(text.contains("set appendonly yes"), "{text}");
        assert!(
            text.contains("allkeys-lru") && text.contains("set maxmemory-policy noeviction"),
            "{text}"
        );
    }
    assert!(dark.contains("can't see whether Redis keeps logins"), "{dark}");
    assert_eq!(log.take(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn store_that_starts_before_redis_works_once_redis_does() {
    let mut redis = Redis::start();
    redis.end(Signal::Kill);
    let store = open(&redis.url()).await;
    let down = store.load(&key("alice")).await.expect_err("it is down");

    redis.start_again();
    let (took, row) = until_it_works(async || store.load(&key("alice")).await).await;

    is_told_to_try_again(&down);
    assert_eq!(row, None);
    assert!(took < RETURN, "the first success took {took:?}");
    assert_eq!(redis.run(&["GET", "{kube-authn}:layout"]), "1");
}

#[tokio::test]
async fn store_of_a_newer_program_is_refused() {
    let redis = Redis::start();
    open(&redis.url()).await;
    assert_eq!(redis.run(&["GET", "{kube-authn}:layout"]), "1");

    redis.run(&["SET", "{kube-authn}:layout", "2"]);
    let error = RedisTokenStore::open(&redis.url()).await.expect_err("refused");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("upgrade"), "{error}");
}

#[tokio::test]
async fn layout_of_a_newer_program_is_seen_by_every_new_connection() {
    let redis = Redis::start();
    let store = open(&redis.url()).await;
    assert_eq!(store.load(&key("alice")).await.expect("loaded"), None);

    redis.run(&["SET", "{kube-authn}:layout", "2"]);
    redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    let error = store.load(&key("alice")).await.expect_err("refused");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("upgrade"), "{error}");
}

#[tokio::test]
async fn server_is_trusted_by_its_certificate_alone() {
    let (ca, certificate, private_key) = certificate();
    let (stranger, ..) = self::certificate();
    let (_redis, port) = Redis::start_with_tls(&certificate, &private_key);
    let url = format!("rediss://{}:{}@127.0.0.1:{port}/", Redis::USER, Redis::PASSWORD);
    let options = |ca: String| {
        RedisOptions::parse(&url)
            .expect("a URL")
            .with_ca(CaBundle::Pem(Arc::from(ca.into_bytes())))
            .with_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
    };

    let store = RedisTokenStore::open_with(options(ca)).await.expect("a store");
    let error = RedisTokenStore::open_with(options(stranger))
        .await
        .expect("a store that waits")
        .load(&key("alice"))
        .await
        .expect_err("a stranger");

    let mut events = store.events().await.expect("events");
    hears_of_a_logout(&store, &mut events).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("kubeAuthn.store.caFile"), "{error}");
}

#[tokio::test]
async fn closed_store_is_unavailable_and_ends_its_subscriptions() {
    let redis = Redis::start();
    let store = open(&redis.url()).await;
    let mut events = store.events().await.expect("events");
    drop(store);

    let end = tokio::time::timeout(PATIENCE, events.next()).await;

    assert_eq!(end.expect("the end"), None);
}

/// Somebody who may do everything, and sees the bytes.
struct Admin(MultiplexedConnection);

/// Fields and values.
type Row = Vec<(String, Vec<u8>)>;

impl Admin {
    async fn of(redis: &Redis) -> Self {
        let client = ::redis::Client::open(format!("redis://{}/", redis.address())).expect("a client");
        Self(
            client
                .get_multiplexed_async_connection()
                .await
                .expect("connected"),
        )
    }

    async fn ask<T: FromRedisValue>(&mut self, words: &[&[u8]]) -> T {
        let mut command = Cmd::new();
        command.arg(words);
        command.query_async(&mut self.0).await.expect("an answer")
    }

    async fn row(&mut self, key: &TokenKey) -> Row {
        self.ask(&[b"HGETALL", &name(key)]).await
    }

    async fn put(&mut self, key: &TokenKey, fields: &[(String, Vec<u8>)]) {
        let name = name(key);
        let mut words: Vec<&[u8]> = vec![b"HSET", &name];
        for (field, value) in fields {
            words.extend([field.as_bytes(), value]);
        }
        self.ask::<()>(&words).await;
    }
}

/// An address that leads to one server now and to another one later, as a name or a balancer does.
struct Crossing {
    port: u16,
    target: Arc<AtomicU16>,
}

impl Crossing {
    #[allow(
        clippy::disallowed_methods,
        reason = "the doors are those of the crates, not of what tests them"
    )]
    async fn new(redis: &Redis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let target = Arc::new(AtomicU16::new(redis.port()));
        let leads_to = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let to = leads_to.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(("127.0.0.1", to)).await?;
                    tokio::io::copy_bidirectional(&mut from, &mut to).await
                });
            }
        });
        Self { port, target }
    }

    /// Connections that are there stay where they are.
    fn lead_to(&self, redis: &Redis) {
        self.target.store(redis.port(), Ordering::SeqCst);
    }

    fn url(&self) -> String {
        format!(
            "redis://{}:{}@127.0.0.1:{}/",
            Redis::USER,
            Redis::PASSWORD,
            self.port
        )
    }
}

/// A node of a cluster that owns no slot and says who does, after a while.
#[allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]
async fn node_that_names(owner: &Redis, after: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let slots = format!(
        "*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:{}\r\n$2\r\nid\r\n",
        owner.port()
    );
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let slots = slots.clone();
            tokio::spawn(async move {
                let mut asked = [0; 1_024];
                // One question at a time, the password first.
                loop {
                    let length = from.read(&mut asked).await?;
                    let question = String::from_utf8_lossy(&asked[..length]);
                    let answer = if question.is_empty() {
                        return std::io::Result::Ok(());
                    } else if question.contains("SLOTS") {
                        tokio::time::sleep(after).await;
                        &slots
                    } else if question.contains("KEYSLOT") {
                        ":1\r\n"
                    } else {
                        "+OK\r\n"
                    };
                    from.write_all(answer.as_bytes()).await?;
                }
            });
        }
    });
    port
}

/// Makes a replica of it that never hears of its primary, and serves what it has to whoever asks.
fn demote(redis: &Redis) {
    redis.run(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(redis.run(&["EXISTS", "{kube-authn}:logins"]), "1");
}

#[track_caller]
fn is_a_replica(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("is a replica"), "{error}");
    is_told_to_try_again(error);
}

async fn until(is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "it never came to that");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The name of a row, as the store's documentation gives it.
fn name(key: &TokenKey) -> Vec<u8> {
    format!(
        "{{kube-authn}}:login:{}\0{}\0{}\0",
        key.principal, key.issuer, key.client_id
    )
    .into_bytes()
}

async fn open(url: &str) -> RedisTokenStore {
    RedisTokenStore::open(url).await.expect("a store")
}

/// A server, a store in it, and a vault that alice has logged in to.
async fn alice_logged_in() -> (Redis, RedisTokenStore, TokenVault) {
    let redis = Redis::start();
    let store = open(&redis.url()).await;
    let vault = TokenVault::new(store.clone(), keys());
    log_in(&vault, "alice").await;
    (redis, store, vault)
}

async fn vault(redis: &Redis, ring: &KeyRing) -> TokenVault {
    TokenVault::new(open(&redis.url()).await, ring.clone())
}

async fn id_token(vault: &TokenVault, key: &TokenKey) -> Option<Secret> {
    let login = vault.load(key).await.expect("loaded");
    login.and_then(|login| Some(login.tokens.id_token?.secret))
}

fn keys_of<T>(rows: &[(TokenKey, T)]) -> Vec<TokenKey> {
    rows.iter().map(|(key, _)| key.clone()).collect()
}

#[track_caller]
fn is_told_to_try_again(error: &Error) {
    assert!(
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout),
        "{error:?}"
    );
    assert!(error.is_retryable() && error.retry_after().is_some(), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
}

/// Tries again and again, and says how long it took.
async fn until_it_works<T>(call: impl AsyncFn() -> Result<T>) -> (Duration, T) {
    let begin = Instant::now();
    loop {
        match call().await {
            Ok(value) => return (begin.elapsed(), value),
            Err(error) => is_told_to_try_again(&error),
        }
        assert!(begin.elapsed() < PATIENCE, "it works no more");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn hears(events: &mut LoginEvents, expected: &LoginEvent) {
    let heard = async {
        loop {
            let event = events.next().await.expect("the subscription goes on");
            if event == *expected {
                return;
            }
        }
    };
    let heard = tokio::time::timeout(PATIENCE, heard).await;
    heard.unwrap_or_else(|_| panic!("never heard {expected:?}"));
}

async fn ends(events: &mut LoginEvents) {
    let end = async { while events.next().await.is_some() {} };
    let end = tokio::time::timeout(PATIENCE, end).await;
    end.expect("the subscription ends");
}

async fn hears_of_a_logout(store: &RedisTokenStore, events: &mut LoginEvents) {
    let carol = key("carol");
    let vault = TokenVault::new(store.clone(), keys());
    let revision = vault.log_in(&carol, login_of("carol")).await.expect("stored");
    vault.log_out(&carol).await.expect("deleted");
    let ended = LoginEvent::Ended {
        key: carol,
        login: revision.login,
    };
    hears(events, &ended).await;
}

/// The CA, and a certificate of it for loopback with its key, as PEM.
fn certificate() -> (String, String, String) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = ca.self_signed(&ca_key).expect("a CA").pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .and_then(|certificate| certificate.signed_by(&key, &issuer))
        .expect("a certificate");
    (pem, certificate.pem(), key.serialize_pem())
}

/// What this thread logs from warnings on.
fn logged() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("a log").clone()).expect("text")
    }

    fn take(&self) -> String {
        let text = self.text();
        self.0.lock().expect("a log").clear();
        text
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("a log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is promised: the first success so soon after the return.
const RETURN: Duration = Duration::from_secs(2);
/// Generous: a machine that runs tests is busy.
const PATIENCE: Duration = Duration::from_secs(20);
