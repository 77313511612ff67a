//! What is SQLite's alone: the file, its schema, its faults.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "the file is looked at from outside")]

mod support;

use std::path::{Path, PathBuf};

use kube_authn_core::{
    EntityRef, ErrorKind, Expected, Result, TokenKey, TokenRecord, TokenStore, TokenVault,
};
use kube_authn_store::{
    SqliteTokenStore,
    sqlx::{self, ConnectOptions, Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions},
};
use proptest::prelude::*;
use support::{CANARY, fixed_keys, id_token_of, key, keys, log_in, login_of};

#[tokio::test]
async fn file_never_holds_a_readable_token() {
    let (folder, path) = file();
    let vault = TokenVault::new(open(&path).await, keys());
    for index in 0..50 {
        let key = key(&format!("u{index}"));
        vault.log_in(&key, login_of("first")).await.expect("stored");
        vault.log_in(&key, login_of("second")).await.expect("stored");
        if index % 2 == 0 {
            vault.log_out(&key).await.expect("deleted");
        }
    }

    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder.path()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a file");
        names.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        let found = bytes
            .windows(CANARY.len())
            .any(|window| window == CANARY.as_bytes());
        assert!(!found, "{} holds a token", path.display());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = entry_mode(&path).permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
    names.sort();
    assert_eq!(names, ["logins.db", "logins.db-shm", "logins.db-wal"]);
}

#[tokio::test]
async fn full_disk_fails_the_write_and_nothing_else() {
    let (_folder, path) = file();
    drop(open(&path).await);
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .pragma("max_page_count", "64");
    let store = SqliteTokenStore::open_with(options).await.expect("a store");
    let vault = TokenVault::new(store, keys());

    let mut stored = Vec::new();
    let error = loop {
        let name = format!("u{}", stored.len());
        match vault.log_in(&key(&name), login_of(&name)).await {
            Ok(_) => stored.push(name),
            Err(error) => break error,
        }
        assert!(stored.len() < 10_000, "the disk never filled");
    };

    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("is full"), "{error}");
    assert!(error.retry_after().is_some());
    assert!(!stored.is_empty());
    for name in &stored {
        assert_eq!(id_token(&vault, &key(name)).await, Some(id_token_of(name)));
    }
    let refused = format!("u{}", stored.len());
    assert!(
        vault.load(&key(&refused)).await.expect("loaded").is_none(),
        "half a row"
    );
    assert_sound(&path).await;
    vault
        .log_out(&key("u0"))
        .await
        .expect("a full disk can be emptied");
}

/// By what the store's statements choose rows, and in which order.
#[tokio::test]
async fn indexes_serve_pages_lists_and_purges_without_sorting() {
    let (_folder, path) = file();
    open(&path).await.close().await;
    let mut sql = connect(&path).await;
    for (chosen, index) in [
        ("principal = ?1 AND issuer = ?2 AND client_id = ?3", BY_KEY),
        ("principal = ?1 ORDER BY issuer, client_id", BY_KEY),
        (
            "(principal, issuer, client_id) > (?1, ?2, ?3) ORDER BY principal, issuer, client_id LIMIT ?4",
            BY_KEY,
        ),
        (
            "expires_at < ?1 AND (refreshing_until IS NULL OR refreshing_until <= ?1) ORDER BY expires_at LIMIT ?2",
            "kube_authn_logins_by_end",
        ),
    ] {
        let explained = format!("EXPLAIN QUERY PLAN SELECT sealed FROM kube_authn_logins WHERE {chosen}");
        let steps = sqlx::query(sqlx::AssertSqlSafe(explained))
            .fetch_all(&mut sql)
            .await;

        let steps: Vec<String> = steps
            .expect("a plan")
            .iter()
            .map(|step| step.get("detail"))
            .collect();
        let [step] = &steps[..] else {
            panic!("{chosen} takes more than a search: {steps:?}");
        };
        assert!(
            step.starts_with(&format!("SEARCH kube_authn_logins USING INDEX {index} ")),
            "{chosen}: {step}"
        );
    }
}

#[tokio::test]
async fn subscription_never_outlives_what_it_reads() {
    let (_folder, path) = file();
    let store = open(&path).await;
    let mut events = store.events().await.expect("subscribed");

    let mut sql = connect(&path).await;
    run(&mut sql, "ALTER TABLE kube_authn_events RENAME TO hidden").await;

    let end = tokio::time::timeout(std::time::Duration::from_secs(20), events.next()).await;
    assert_eq!(end.expect("the end"), None);
}

#[tokio::test]
async fn newer_schema_is_refused_by_name() {
    let (_folder, path) = file();
    open(&path).await.close().await;
    let mut sql = connect(&path).await;
    run(&mut sql, "INSERT INTO kube_authn_schema (version) VALUES (99)").await;

    let error = open_url(&path).await.expect_err("newer");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    let text = error.to_string();
    assert!(
        text.contains("schema version 99") && text.contains("logins.db"),
        "{text}"
    );
}

#[tokio::test]
async fn file_that_cannot_be_opened_is_named() {
    let (folder, path) = file();
    std::fs::write(&path, "this is no database, however long it may be".repeat(100)).expect("written");
    let missing_folder = folder.path().join("missing").join("logins.db");

    for (path, why) in [
        (path.as_path(), "it is no SQLite database"),
        (&missing_folder, "its folder is not there"),
        (folder.path(), "it is a folder"),
    ] {
        let error = open_url(path).await.expect_err("unusable");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
        let says = format!("{}: {why}", path.display());
        assert!(error.to_string().contains(&says), "{error}");
    }
    for url in [
        "",
        "logins.db",
        "sqlite://",
        "sqlite://:memory:",
        "sqlite://a.db?mode=ro",
        "postgres://a/b",
    ] {
        let error = SqliteTokenStore::open(url).await.expect_err("no URL of ours");
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
    }
}

#[tokio::test]
async fn lost_note_of_the_schema_is_told_as_that_and_changes_nothing() {
    for lose in ["DELETE FROM kube_authn_schema", "DROP TABLE kube_authn_schema"] {
        let (_folder, path) = file();
        open(&path).await.close().await;
        let mut sql = connect(&path).await;
        run(&mut sql, lose).await;

        for _ in 0..2 {
            let error = open_url(&path).await.expect_err("lost");

            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{lose}");
            let text = error.to_string();
            assert!(
                text.contains("kube_authn_schema") && !text.contains("writable"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn looking_for_a_file_never_makes_it() {
    let (_folder, path) = file();
    let url = format!("sqlite://{}", path.display());

    assert!(!SqliteTokenStore::is_there(&url).expect("a folder"));
    assert!(!path.exists());
    open(&path).await.close().await;
    assert!(SqliteTokenStore::is_there(&url).expect("a file"));
}

#[tokio::test]
async fn tables_of_another_program_in_the_same_file_are_left_alone() {
    let (_folder, path) = file();
    std::fs::write(&path, "").expect("made");
    let mut sql = connect(&path).await;
    run(
        &mut sql,
        "CREATE TABLE cluster_tokens (user TEXT); INSERT INTO cluster_tokens VALUES ('alice')",
    )
    .await;
    run(&mut sql, "PRAGMA user_version = 7").await;

    let vault = TokenVault::new(open(&path).await, keys());
    log_in(&vault, "alice").await;

    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM cluster_tokens")
        .fetch_one(&mut sql)
        .await
        .expect("counted");
    assert_eq!(
        (count, id_token(&vault, &key("alice")).await),
        (1, Some(id_token_of("alice")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_at_once_migrate_once() {
    let (_folder, path) = file();
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { open_url(&path).await })
        })
        .collect();

    for store in opening {
        store.await.expect("joined").expect("opened");
    }
    assert_sound(&path).await;
}

#[test]
fn any_bytes_in_a_row_never_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (_folder, path) = file();
    let (store, vault) = runtime.block_on(async {
        let store = open(&path).await;
        let vault = TokenVault::new(store.clone(), fixed_keys());
        log_in(&vault, "alice").await;
        (store, vault)
    });
    let good = runtime
        .block_on(store.load(&key("alice")))
        .expect("loaded")
        .expect("a row");
    let strategy = (
        proptest::collection::vec(any::<u8>(), 0..200),
        any::<bool>(),
        any::<u16>(),
    );

    proptest!(ProptestConfig::with_cases(64), |((bytes, whole, at) in strategy)| {
        let mut row = good.clone();
        row.sealed = match whole {
            true => bytes.into(),
            false => {
                let mut sealed = good.sealed.to_vec();
                let at = usize::from(at) % sealed.len();
                sealed[at] ^= 1 << (at % 8);
                sealed.into()
            }
        };
        let loaded = runtime.block_on(async {
            put(&store, &key("alice"), &row).await.expect("written");
            vault.load(&key("alice")).await
        });

        prop_assert_eq!(loaded.expect_err("damage").kind(), ErrorKind::RecordDamaged);
    });
}

async fn put(store: &SqliteTokenStore, key: &TokenKey, row: &TokenRecord) -> Result<()> {
    let present = store.load(key).await?;
    let expected = present.map_or(Expected::Absent, |row| Expected::At(row.revision));
    store.save(key, row, expected).await
}

async fn id_token(vault: &TokenVault, key: &TokenKey) -> Option<kube_authn_core::Secret> {
    let login = vault.load(key).await.expect("loaded")?;
    let owner: &EntityRef = &login.key.principal;
    assert_eq!(owner, &key.principal);
    login.tokens.id_token.map(|token| token.secret)
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("logins.db");
    (folder, path)
}

async fn open(path: &Path) -> SqliteTokenStore {
    open_url(path).await.expect("a store")
}

async fn open_url(path: &Path) -> Result<SqliteTokenStore> {
    SqliteTokenStore::open(&format!("sqlite://{}", path.display())).await
}

async fn connect(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .connect()
        .await
        .expect("connected")
}

async fn run(sql: &mut SqliteConnection, statement: impl Into<String>) {
    let statement = sqlx::AssertSqlSafe(statement.into());
    sqlx::raw_sql(statement).execute(sql).await.expect("a statement");
}

async fn assert_sound(path: &Path) {
    let mut sql = connect(path).await;
    let verdict: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut sql)
        .await
        .expect("checked");
    sql.close().await.expect("closed");
    assert_eq!(verdict, "ok");
}

#[cfg(unix)]
fn entry_mode(path: &Path) -> std::fs::Metadata {
    std::fs::metadata(path).expect("metadata")
}

/// The index that SQLite makes for the primary key.
const BY_KEY: &str = "sqlite_autoindex_kube_authn_logins_1";
