//! What is PostgreSQL's alone: the server, its roles, its schema, its faults.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a relay of the test connects")]

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kube_authn_core::{
    Error, ErrorKind, Expected, LoginEvent, LoginEvents, TokenRecord, TokenStore, TokenVault,
};
use kube_authn_store::PostgresTokenStore;
use kube_authn_test_servers::Postgres;
use support::{CANARY, end, key, keys, log_in, login_of};

/// The promise for a server that is back.
const BACK: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn restart_of_the_server_is_over_within_two_seconds_of_its_return() {
    let mut server = Postgres::start();
    let store = open(&server.database()).await;
    let vault = TokenVault::new(store.clone(), keys());
    for name in ["a", "b", "c"] {
        log_in(&vault, name).await;
    }

    for crash in [false, true, false] {
        match crash {
            true => server.kill(),
            false => server.stop(),
        }
        let down = vault.load(&key("a")).await.expect_err("the server is down");
        assert_down(&down);
        assert_down(&vault.log_in(&key("d"), login_of("d")).await.expect_err("down"));
        server.start_again();

        let begin = Instant::now();
        while vault.log_in(&key("d"), login_of("d")).await.is_err() {
            assert!(
                begin.elapsed() < BACK,
                "no login {BACK:?} after the server's return"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for name in ["a", "b", "c", "d"] {
            assert!(
                vault.load(&key(name)).await.expect("loaded").is_some(),
                "{name} is gone"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_died_while_idle_cost_a_reader_no_error() {
    let mut server = Postgres::start();
    let store = open(&server.database()).await;
    let loading: Vec<_> = (0..20)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.load(&key("a")).await })
        })
        .collect();
    for load in loading {
        load.await.expect("joined").expect("loaded");
    }

    server.restart();

    for _ in 0..20 {
        assert_eq!(store.load(&key("a")).await.expect("loaded"), None);
    }
}

/// The server logs how it runs each statement, so what is looked at are the store's own.
#[tokio::test(flavor = "multi_thread")]
async fn no_statement_reads_more_of_the_table_than_it_gives() {
    let server = Postgres::start_with(&[
        ("fsync", "off"),
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
    ]);
    let url = server.database();
    let database = url.rsplit('/').next().expect("its name");
    let store = open(&url).await;
    // A few megabytes: less is read faster than it is searched.
    server.run_in(
        database,
        "INSERT INTO kube_authn_logins \
         SELECT 'user:default/u' || n, 'https://issuer.example.com/', 'kubernetes', decode(md5(n::text), 'hex'), 1, 's', \
                n, true, NULL, NULL, 0, 0, 'k1', convert_to(repeat('x', 1500), 'UTF8') \
         FROM generate_series(1001, 3000) AS n",
    );
    server.run_in(database, "ANALYZE kube_authn_logins");

    let middle = key("u2000");
    let page = store.scan(Some(&middle), 50).await.expect("a page");
    let listed = store.list(&middle.principal).await.expect("listed");
    let loaded = store.load(&middle).await.expect("loaded");
    let deleted = store.delete(&middle).await.expect("deleted");
    let purged = store.purge(end(), 50).await.expect("purged");
    store.close().await;

    assert_eq!((page.len(), listed.len(), purged), (50, 1, 50));
    assert!(loaded.is_some() && deleted);
    let log = server.log();
    for index in ["kube_authn_logins_pkey", "kube_authn_logins_by_end"] {
        assert!(log.contains(&format!("using {index}")), "{index} is not used");
    }
    for plan in log.split("Query Text:").skip(1) {
        assert!(
            !plan.contains("Seq Scan on kube_authn_logins"),
            "reads all rows: {plan}"
        );
        // Those of one user are put in order once they are read.
        let of_one = plan.contains("WHERE principal = $1 ORDER");
        assert!(of_one || !plan.contains("Sort Key"), "sorts: {plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_down_at_the_start_is_used_once_it_is_there() {
    let mut server = Postgres::start();
    let url = server.database();
    server.stop();

    let store = open(&url).await;
    assert_down(&store.load(&key("a")).await.expect_err("down"));
    assert_down(&store.events().await.expect_err("down"));
    server.start_again();

    assert_eq!(store.load(&key("a")).await.expect("loaded"), None);
    store.events().await.expect("subscribed");
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_server_refuses_writes_by_name_and_serves_reads() {
    let server = Postgres::start();
    let vault = TokenVault::new(open(&server.database()).await, keys());
    log_in(&vault, "a").await;

    server.set_read_only(true);
    let error = vault
        .log_in(&key("b"), login_of("b"))
        .await
        .expect_err("read-only");
    assert!(vault.load(&key("a")).await.expect("loaded").is_some());
    server.set_read_only(false);

    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("takes no writes"), "{error}");
    assert!(error.is_retryable() && error.retry_after().is_some());
    log_in(&vault, "b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standby_serves_nobody_until_it_is_the_primary() {
    let mut primary = Postgres::start();
    let url = primary.database();
    let single = TokenVault::new(open(&url).await, keys());
    log_in(&single, "a").await;
    let standby = primary.standby();
    let database = url.rsplit('/').next().expect("a database");
    let both = url.replace(
        &format!(":{}/", primary.port()),
        &format!(":{},127.0.0.1:{}/", primary.port(), standby.port()),
    );
    let store = open(&both).await;
    store
        .save(&key("x"), &record(&store, 1).await, Expected::Absent)
        .await
        .expect("saved");
    let until_there = Instant::now();
    while standby
        .run_in(database, "SELECT count(*) FROM kube_authn_logins")
        .trim()
        != "2"
    {
        assert!(
            until_there.elapsed() < Duration::from_secs(20),
            "the standby does not follow"
        );
        std::thread::sleep(Duration::from_millis(50));
    }

    primary.stop();
    let error = store.load(&key("x")).await.expect_err("no primary");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("is a standby"), "{error}");
    standby.promote();

    let begin = Instant::now();
    while store.delete(&key("x")).await.is_err() {
        assert!(
            begin.elapsed() < BACK,
            "nothing works {BACK:?} after the promotion"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(store.load(&key("x")).await.expect("loaded"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_ends_with_its_connection_and_a_new_one_hears_again() {
    let mut server = Postgres::start();
    let store = open(&server.database()).await;
    let mut events = store.events().await.expect("subscribed");

    server.restart();
    assert_eq!(events.next().await, None);

    let row = record(&store, 1).await;
    let mut events = subscribed(&store).await;
    store
        .save(&key("a"), &row, Expected::Absent)
        .await
        .expect("saved");
    let expected = LoginEvent::Changed {
        key: key("a"),
        revision: row.revision,
    };
    // What happened before the subscription may be told too.
    while events.next().await.expect("an event") != expected {}
}

#[tokio::test(flavor = "multi_thread")]
async fn server_whose_notifications_are_lost_is_never_subscribed_to() {
    let server = Postgres::start();
    let relay = Relay::before(server.port());
    let store = open(&relay.url(&server.database())).await;

    relay.deliver(false);
    let error = store.events().await.expect_err("nothing is heard");
    relay.deliver(true);

    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("not a pooler"), "{error}");
    assert!(error.is_retryable());
    subscribed(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_never_outlives_the_delivery_of_notifications() {
    let server = Postgres::start();
    let relay = Relay::before(server.port());
    let store = open(&relay.url(&server.database())).await;
    let mut events = store.events().await.expect("subscribed");

    relay.deliver(false);

    let end = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    assert_eq!(end.expect("the end"), None);
    assert_eq!(store.load(&key("a")).await.expect("all else works"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_never_stays_with_a_server_that_is_not_the_primary_any_more() {
    let server = Postgres::start();
    let relay = Relay::before(server.port());
    let both = relay.url(&server.database()).replace(
        &format!(":{}/", relay.port),
        &format!(":{},127.0.0.1:{}/", relay.port, server.port()),
    );
    let store = open(&both).await;
    let mut events = store.events().await.expect("subscribed");

    relay.accepts.store(false, Ordering::SeqCst);
    server.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = 'kube-authn' AND query NOT LIKE 'LISTEN%'",
    );
    assert_eq!(store.load(&key("a")).await.expect("loaded"), None);

    let end = tokio::time::timeout(Duration::from_secs(20), events.next()).await;
    assert_eq!(end.expect("the end"), None);
    subscribed(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn login_that_ended_during_an_outage_never_lives_on() {
    let mut server = Postgres::start();
    let url = server.database();
    let ring = keys();
    let vault = TokenVault::new(open(&url).await, ring.clone());
    log_in(&vault, "a").await;
    let login = vault.load(&key("a")).await.expect("loaded").expect("a login");

    server.restart();
    let elsewhere = TokenVault::new(open(&url).await, ring);
    assert!(elsewhere.log_out(&key("a")).await.expect("deleted"));

    tokio::time::timeout(Duration::from_secs(20), login.handle.ended())
        .await
        .expect("the other process's logout is seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_table_is_a_gap() {
    let server = Postgres::start();
    let url = server.database();
    let store = open(&url).await;
    let mut events = store.events().await.expect("subscribed");

    server.run_in(database(&url), "TRUNCATE kube_authn_logins");

    assert_eq!(events.next().await, Some(LoginEvent::Gap));
}

#[tokio::test(flavor = "multi_thread")]
async fn row_too_long_for_a_notification_is_a_gap_and_no_failure() {
    let server = Postgres::start();
    let url = server.database();
    let store = open(&url).await;
    let mut events = store.events().await.expect("subscribed");

    // Text that compresses is not too long for the index.
    server.run_in(
        database(&url),
        "INSERT INTO kube_authn_logins SELECT 'user:default/' || repeat('a', 9000), 'https://i/', 'c', \
         decode(repeat('00', 16), 'hex'), 1, 's', 0, false, NULL, NULL, 0, 0, 'k1', ''",
    );

    assert_eq!(events.next().await, Some(LoginEvent::Gap));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_schemas_of_one_database_never_share_rows_or_events() {
    let server = Postgres::start();
    let url = server.database();
    server.run_in(database(&url), "CREATE SCHEMA one; CREATE SCHEMA two");
    let one = open(&format!("{url}?options[search_path]=one")).await;
    let two = open(&format!("{url}?options[search_path]=two")).await;
    let row = record(&one, 1).await;
    let mut heard = two.events().await.expect("subscribed");

    one.save(&key("a"), &row, Expected::Absent).await.expect("saved");
    two.save(&key("b"), &row, Expected::Absent).await.expect("saved");

    assert_eq!(two.load(&key("a")).await.expect("loaded"), None);
    let Some(LoginEvent::Changed { key: changed, .. }) = heard.next().await else {
        panic!("an event of ours");
    };
    assert_eq!(changed, key("b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_migrate_once() {
    let server = Postgres::start();
    let url = server.database();
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { open(&url).await })
        })
        .collect();

    for store in opening {
        let store = store.await.expect("joined");
        assert_eq!(store.load(&key("a")).await.expect("loaded"), None);
    }
    let versions = server.run_in(database(&url), "SELECT count(*) FROM kube_authn_schema");
    assert_eq!(versions.trim(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_schema_is_used_as_long_as_it_says_so_and_else_refused_by_name() {
    let server = Postgres::start();
    let url = server.database();
    let old = TokenVault::new(open(&url).await, keys());
    log_in(&old, "a").await;

    // As the next version would: more columns, with defaults.
    server.run_in(
        database(&url),
        "ALTER TABLE kube_authn_logins ADD COLUMN note text; INSERT INTO kube_authn_schema VALUES (2, 1)",
    );
    let beside = open(&url).await;
    assert!(beside.load(&key("a")).await.expect("loaded").is_some());
    assert!(old.load(&key("a")).await.expect("loaded").is_some());
    log_in(&old, "b").await;

    server.run_in(database(&url), "INSERT INTO kube_authn_schema VALUES (3, 2)");
    let error = PostgresTokenStore::open(&url).await.expect_err("newer");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    let text = error.to_string();
    assert!(
        text.contains("schema version 3") && text.contains(database(&url)),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn user_who_may_only_write_rows_works_on_a_schema_that_is_there() {
    let server = Postgres::start();
    let (made, empty) = (server.database(), server.database());
    open(&made).await.close().await;
    server.run("CREATE ROLE clerk LOGIN PASSWORD 'pw'");
    server.run_in(
        database(&made),
        "GRANT SELECT, INSERT, UPDATE, DELETE ON kube_authn_logins TO clerk; GRANT SELECT ON kube_authn_schema TO clerk",
    );
    let as_clerk = |url: &str| {
        url.replace(
            &format!("{}:{}@", Postgres::USER, Postgres::PASSWORD),
            "clerk:pw@",
        )
    };

    let vault = TokenVault::new(open(&as_clerk(&made)).await, keys());
    log_in(&vault, "a").await;
    assert!(vault.log_out(&key("a")).await.expect("deleted"));

    let error = PostgresTokenStore::open(&as_clerk(&empty))
        .await
        .expect_err("no table, no right to make it");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("may not make the tables"), "{error}");

    server.run_in(database(&made), "REVOKE INSERT ON kube_authn_logins FROM clerk");
    let error = vault
        .log_in(&key("a"), login_of("a"))
        .await
        .expect_err("no right");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("grant its user"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_who_may_only_read_counts_rows_and_never_migrates() {
    let server = Postgres::start();
    let made = server.database();
    let store = open(&made).await;
    log_in(&TokenVault::new(store.clone(), keys()), "a").await;
    server.run("CREATE ROLE reader LOGIN PASSWORD 'pw'");
    server.run_in(
        database(&made),
        "GRANT SELECT ON kube_authn_logins, kube_authn_schema TO reader",
    );
    let as_reader = made.replace(
        &format!("{}:{}@", Postgres::USER, Postgres::PASSWORD),
        "reader:pw@",
    );

    let vault = TokenVault::new(open(&as_reader).await, keys());
    let rows = vault.rows_by_key().await.expect("counted");
    assert_eq!(rows.into_values().map(|key| key.rows).collect::<Vec<_>>(), [1]);

    // As if the program were newer than the schema.
    server.run_in(database(&made), "DELETE FROM kube_authn_schema");
    let error = PostgresTokenStore::open(&as_reader).await.expect_err("older");
    assert!(error.to_string().contains("may not make the tables"), "{error}");
    let versions = server.run_in(database(&made), "SELECT count(*) FROM kube_authn_schema");
    assert_eq!(versions.trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_the_url_are_told_and_no_text_shows_the_password() {
    let server = Postgres::start();
    let good = server.database();
    let store = open(&good).await;
    let long = "x".repeat(3_000);
    let wrong = [
        (
            good.replace(Postgres::USER, "nobody"),
            "refuses the user or the password",
        ),
        (good.replace(database(&good), "missing"), "no such database"),
        (
            format!("{good}?sslmode=verify-full"),
            "it has no TLS, and sslmode asks for it",
        ),
        (format!("{good}?options[search_path]=missing"), "no schema"),
        (
            format!("{good}?pasword={}", Postgres::PASSWORD),
            "does not know: pasword",
        ),
        (
            format!("{good}?sslmode={}", Postgres::PASSWORD),
            "sslmode must be one of",
        ),
        (
            format!("postgres://u:{}@h:port/d", Postgres::PASSWORD),
            "expected postgres://",
        ),
        (format!("mysql://u:{}@h/d", Postgres::PASSWORD), "begin with"),
        (format!("{good}?host={long}&sslmode=x"), "sslmode must be one of"),
    ];

    for (url, text) in wrong {
        let error = PostgresTokenStore::open(&url).await.expect_err(&url);
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}: {error:?}");
        assert!(error.to_string().contains(text), "{url}: {error}");
        assert!(
            !format!("{error} {error:?}").contains(Postgres::PASSWORD),
            "{error:?}"
        );
    }
    assert!(!format!("{store:?}").contains(Postgres::PASSWORD), "{store:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_of_another_ca_is_refused_and_the_right_one_is_reached_over_tls() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let another = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let ca = |name: &str, pem: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).expect("written");
        path.display().to_string()
    };
    let (right, wrong) = (
        ca("right", certificate.cert.pem()),
        ca("wrong", another.cert.pem()),
    );
    let server = Postgres::start_with_tls(&certificate.cert.pem(), &certificate.signing_key.serialize_pem());
    let url = server.database();

    for mode in ["verify-full", "verify-ca", "require"] {
        let store = open(&format!("{url}?sslmode={mode}&sslrootcert={right}")).await;
        let _events = store.events().await.expect("subscribed");
        assert_eq!(server.run(ENCRYPTED).trim(), "t", "{mode}");
        let error = PostgresTokenStore::open(&format!("{url}?sslmode={mode}&sslrootcert={wrong}"))
            .await
            .expect_err(mode);
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{mode}: {error}");
        let text = error.to_string();
        assert!(
            text.contains("an authority that sslrootcert does not hold"),
            "{text}"
        );
    }
    let elsewhere = url.replace("127.0.0.1", "localhost");
    let error = PostgresTokenStore::open(&format!("{elsewhere}?sslmode=verify-full&sslrootcert={right}"))
        .await
        .expect_err("another name");
    assert!(error.to_string().contains("is for another name"), "{error}");
    let error = PostgresTokenStore::open(&format!("{url}?sslmode=verify-full&sslrootcert=/nowhere.pem"))
        .await
        .expect_err("no file");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
    assert!(
        error.to_string().contains("/nowhere.pem of sslrootcert"),
        "{error}"
    );
}

/// Whether each connection of a store is.
const ENCRYPTED: &str = "SELECT count(*) > 0 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                         WHERE application_name = 'kube-authn'";

#[tokio::test(flavor = "multi_thread")]
async fn database_never_holds_a_readable_token() {
    let server = Postgres::start();
    let url = server.database();
    let vault = TokenVault::new(open(&url).await, keys());
    for index in 0..20 {
        vault
            .log_in(&key(&format!("u{index}")), login_of("x"))
            .await
            .expect("stored");
    }

    let rows = server.run_in(
        database(&url),
        "SELECT kube_authn_logins::text || encode(sealed, 'escape') FROM kube_authn_logins",
    );

    let count = server.run_in(database(&url), "SELECT count(*) FROM kube_authn_logins");
    assert_eq!(count.trim(), "20");
    assert!(!rows.contains(CANARY) && !server.log().contains(CANARY));
}

/// Stands before a server, and may keep its notifications to itself, as a pooler does that hands out connections by
/// transaction.
struct Relay {
    port: u16,
    accepts: Arc<AtomicBool>,
    delivers: Arc<AtomicBool>,
}

impl Relay {
    fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let delivers = Arc::new(AtomicBool::new(true));
        let accepts = Arc::new(AtomicBool::new(true));
        let (open, shared) = (Arc::clone(&accepts), Arc::clone(&delivers));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(std::io::Result::ok) {
                if !open.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
                    continue;
                };
                let (mut to_server, mut from_client) = (
                    server.try_clone().expect("a clone"),
                    client.try_clone().expect("a clone"),
                );
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(Shutdown::Both);
                });
                let delivers = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let _ = answers(&server, &client, &delivers);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Self {
            port,
            accepts,
            delivers,
        }
    }

    /// The way to this database through the relay, which reads what passes.
    fn url(&self, url: &str) -> String {
        let (before, database) = url.rsplit_once('/').expect("a database");
        let (login, _) = before.rsplit_once(':').expect("a port");
        format!("{login}:{}/{database}?sslmode=disable", self.port)
    }

    fn deliver(&self, delivers: bool) {
        self.delivers.store(delivers, Ordering::SeqCst);
    }
}

/// Passes on the server's messages: a letter, and the length of what follows.
fn answers(mut server: &TcpStream, mut client: &TcpStream, delivers: &AtomicBool) -> std::io::Result<()> {
    loop {
        let mut head = [0; 5];
        server.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut message = vec![0; length - 4];
        server.read_exact(&mut message)?;
        let is_notification = head[0] == b'A';
        if !is_notification || delivers.load(Ordering::SeqCst) {
            client.write_all(&[&head[..], &message].concat())?;
        }
    }
}

fn assert_down(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.is_retryable() && error.retry_after().is_some());
    assert!(!format!("{error} {error:?}").contains(Postgres::PASSWORD));
}

/// A row as the vault would write it.
async fn record(store: &PostgresTokenStore, number: u64) -> TokenRecord {
    let vault = TokenVault::new(store.clone(), keys());
    log_in(&vault, "template").await;
    let mut row = store
        .load(&key("template"))
        .await
        .expect("loaded")
        .expect("a row");
    store.delete(&key("template")).await.expect("deleted");
    row.revision.number = number;
    row
}

async fn subscribed(store: &PostgresTokenStore) -> LoginEvents {
    let begin = Instant::now();
    loop {
        match store.events().await {
            Ok(events) => return events,
            Err(error) => assert!(begin.elapsed() < BACK, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn database(url: &str) -> &str {
    url.rsplit('/')
        .next()
        .and_then(|name| name.split('?').next())
        .expect("a database")
}

async fn open(url: &str) -> PostgresTokenStore {
    PostgresTokenStore::open(url).await.expect("a store")
}
