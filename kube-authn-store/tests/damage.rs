//! Rows that somebody changes behind a store's back, in every SQL store: a typed error each, and no other row is harmed.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::sync::{Arc, OnceLock};

use kube_authn_core::{EntityRef, ErrorKind, TokenKey, TokenStore, TokenVault};
use kube_authn_store::{
    PostgresTokenStore, SqliteTokenStore,
    sqlx::{self, ConnectOptions, Connection, sqlite::SqliteConnectOptions},
};
use kube_authn_test_servers::Postgres;
use support::{CANARY, id_token_of, key, key_of, keys, log_in, login_of};

/// Runs each behaviour over each database.
macro_rules! over_every_database {
    ($($behaviour:ident: $sqlite:ident, $postgres:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $sqlite() {
                $behaviour(Medium::sqlite()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn $postgres() {
                $behaviour(Medium::postgres()).await;
            }
        )*
    };
}

over_every_database! {
    moved_or_swapped_columns_never_give_somebody_elses_token: moved_or_swapped_columns_never_give_somebody_elses_token_in_sqlite, moved_or_swapped_columns_never_give_somebody_elses_token_in_postgres;
    row_moved_to_another_user_or_issuer_never_opens: row_moved_to_another_user_or_issuer_never_opens_in_sqlite, row_moved_to_another_user_or_issuer_never_opens_in_postgres;
    old_row_put_back_never_serves_who_saw_a_newer_one: old_row_put_back_never_serves_who_saw_a_newer_one_in_sqlite, old_row_put_back_never_serves_who_saw_a_newer_one_in_postgres;
    separators_and_wildcards_in_names_never_reach_another_row: separators_and_wildcards_in_names_never_reach_another_row_in_sqlite, separators_and_wildcards_in_names_never_reach_another_row_in_postgres;
    row_that_nobody_of_us_wrote_stops_no_scan: row_that_nobody_of_us_wrote_stops_no_scan_in_sqlite, row_that_nobody_of_us_wrote_stops_no_scan_in_postgres;
}

/// A database that a store and somebody else write.
enum Medium {
    Sqlite(tempfile::TempDir),
    Postgres { server: &'static Postgres, url: String },
}

impl Medium {
    fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().expect("a folder"))
    }

    fn postgres() -> Self {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        let server = SERVER.get_or_init(Postgres::start);
        Self::Postgres {
            server,
            url: server.database(),
        }
    }

    async fn open(&self) -> Arc<dyn TokenStore> {
        match self {
            Self::Sqlite(folder) => {
                let url = format!("sqlite://{}/logins.db", folder.path().display());
                Arc::new(SqliteTokenStore::open(&url).await.expect("a store"))
            }
            Self::Postgres { url, .. } => Arc::new(PostgresTokenStore::open(url).await.expect("a store")),
        }
    }

    async fn run(&self, statement: impl Into<String>) {
        match self {
            Self::Sqlite(folder) => {
                let options = SqliteConnectOptions::new().filename(folder.path().join("logins.db"));
                let mut sql = options.connect().await.expect("connected");
                let statement = sqlx::AssertSqlSafe(statement.into());
                sqlx::raw_sql(statement)
                    .execute(&mut sql)
                    .await
                    .expect("a statement");
                sql.close().await.expect("closed");
            }
            Self::Postgres { server, url } => {
                server.run_in(url.rsplit('/').next().expect("a database"), &statement.into());
            }
        }
    }

    /// These bytes as a literal.
    fn bytes(&self, hex: &str) -> String {
        match self {
            Self::Sqlite(_) => format!("x'{hex}'"),
            Self::Postgres { .. } => format!("'\\x{hex}'::bytea"),
        }
    }

    fn no(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "0",
            Self::Postgres { .. } => "false",
        }
    }
}

async fn moved_or_swapped_columns_never_give_somebody_elses_token(medium: Medium) {
    let (alice, bob) = (key("alice"), key("bob"));
    let elsewhere = key_of("alice", "https://other.example.com/", "kubernetes");
    let logins = [(&alice, "alice"), (&bob, "bob"), (&elsewhere, "alice-elsewhere")];
    let ring = keys();
    let vault = TokenVault::new(medium.open().await, ring.clone());
    vault
        .log_in(&alice, login_of("alice-before"))
        .await
        .expect("stored");
    medium
        .run("CREATE TABLE old AS SELECT * FROM kube_authn_logins")
        .await;
    for (key, owner) in logins {
        vault.log_in(key, login_of(owner)).await.expect("stored");
    }
    medium
        .run("CREATE TABLE good AS SELECT * FROM kube_authn_logins")
        .await;
    let alices = "principal = 'user:default/alice' AND issuer = 'https://issuer.example.com/'";
    let of = |column: &str, table: &str, principal: &str| {
        format!("{column} = (SELECT {column} FROM {table} WHERE principal = '{principal}' LIMIT 1)")
    };
    let (bobs, old) = ("user:default/bob", "user:default/alice");
    let edits = [
        of("sealed", "good", bobs),
        of("sealed", "old", old),
        of("login", "old", old),
        of("login", "good", bobs),
        of("subject", "good", bobs),
        format!("{}, {}", of("sealed", "good", bobs), of("login", "good", bobs)),
        "number = number + 1".to_owned(),
        "expires_at = expires_at + 1".to_owned(),
        "created_at = created_at + 1".to_owned(),
        format!("refreshable = {}", medium.no()),
        "refreshing_owner = login, refreshing_until = 1".to_owned(),
        "sealed = substr(sealed, 1, length(sealed) - 1)".to_owned(),
        format!("sealed = {}", medium.bytes("")),
        format!("sealed = {}", medium.bytes(&"5a".repeat(300))),
        "key_id = 'k2'".to_owned(),
        "key_id = ''".to_owned(),
        "subject = '\n'".to_owned(),
        "expires_at = 9223372036854775807".to_owned(),
        "number = -1".to_owned(),
    ];

    for edit in edits {
        medium
            .run(format!("UPDATE kube_authn_logins SET {edit} WHERE {alices}"))
            .await;
        let vault = TokenVault::new(medium.open().await, ring.clone());

        let error = vault.load(&alice).await.expect_err(&edit);

        assert_eq!(error.kind(), ErrorKind::RecordDamaged, "{edit}");
        assert!(!format!("{error} {error:?}").contains(CANARY), "{edit}");
        for (key, owner) in &logins[1..] {
            assert_eq!(id_token(&vault, key).await, Some(id_token_of(owner)), "{edit}");
        }
        medium
            .run(format!("DELETE FROM kube_authn_logins WHERE {alices}"))
            .await;
        medium
            .run(format!(
                "INSERT INTO kube_authn_logins SELECT * FROM good WHERE {alices}"
            ))
            .await;
    }
    let vault = TokenVault::new(medium.open().await, ring);
    assert_eq!(id_token(&vault, &alice).await, Some(id_token_of("alice")));
}

async fn row_moved_to_another_user_or_issuer_never_opens(medium: Medium) {
    let ring = keys();
    let vault = TokenVault::new(medium.open().await, ring.clone());
    for (column, value, moved) in [
        ("principal", "user:default/mallory", key("mallory")),
        (
            "issuer",
            "https://evil.example.com/",
            key_of("alice", "https://evil.example.com/", "kubernetes"),
        ),
        (
            "client_id",
            "another",
            key_of("alice", "https://issuer.example.com/", "another"),
        ),
    ] {
        log_in(&vault, "alice").await;
        medium
            .run(format!("UPDATE kube_authn_logins SET {column} = '{value}'"))
            .await;

        let error = TokenVault::new(medium.open().await, ring.clone())
            .load(&moved)
            .await;

        assert_eq!(
            error.expect_err("moved").kind(),
            ErrorKind::RecordDamaged,
            "{column}"
        );
        assert!(vault.load(&key("alice")).await.expect("loaded").is_none());
        medium.run("DELETE FROM kube_authn_logins").await;
    }
}

async fn old_row_put_back_never_serves_who_saw_a_newer_one(medium: Medium) {
    let vault = TokenVault::new(medium.open().await, keys());
    vault
        .log_in(&key("alice"), login_of("before"))
        .await
        .expect("stored");
    medium
        .run("CREATE TABLE old AS SELECT * FROM kube_authn_logins")
        .await;
    vault
        .log_in(&key("alice"), login_of("after"))
        .await
        .expect("stored");

    medium.run("DELETE FROM kube_authn_logins").await;
    medium
        .run("INSERT INTO kube_authn_logins SELECT * FROM old")
        .await;

    let error = vault.load(&key("alice")).await.expect_err("put back");
    assert_eq!(error.kind(), ErrorKind::RecordDamaged);
}

async fn separators_and_wildcards_in_names_never_reach_another_row(medium: Medium) {
    let store = medium.open().await;
    let vault = TokenVault::new(store.clone(), keys());
    let names = [
        "a", "%", "_", "a%", "*", "?", "a'--", "a';drop", "\"", "a\"b", "\\", "a\\", "${a}", "[a]", "(a)",
        "a,b", "a|b", "a&b", "a=b", "a#b", "a;b", "a+b", "a.b", "~", "`a`", "''", "a''b", "{}", "<a>", "@a",
        "!a", "^a",
    ];
    for name in names {
        log_in(&vault, name).await;
        let key = key_of(name, "https://issuer.example.com/'%_*:", "c'%_*: \";--");
        vault
            .log_in(&key, login_of(&format!("{name}-two")))
            .await
            .expect("stored");
    }

    for (index, name) in names.into_iter().enumerate() {
        assert_eq!(id_token(&vault, &key(name)).await, Some(id_token_of(name)));
        assert_eq!(
            vault.list(&key(name).principal).await.expect("listed").len(),
            2,
            "{name}"
        );

        assert_eq!(
            vault.log_out_all(&key(name).principal).await.expect("deleted"),
            2,
            "{name}"
        );

        let left = store.scan(None, 1_000).await.expect("scanned").len();
        assert_eq!(left, 2 * (names.len() - index - 1), "{name}");
    }
}

async fn row_that_nobody_of_us_wrote_stops_no_scan(medium: Medium) {
    let store = medium.open().await;
    let vault = TokenVault::new(store.clone(), keys());
    for name in ["a", "b", "c", "d"] {
        log_in(&vault, name).await;
    }
    medium
        .run("UPDATE kube_authn_logins SET key_id = '' WHERE principal < 'user:default/c'")
        .await;

    let mut names = Vec::new();
    let mut after = None;
    loop {
        let page = store.scan(after.as_ref(), 1).await.expect("scanned");
        let Some((last, _)) = page.last() else { break };
        names.push(last.principal.name().to_owned());
        after = Some(last.clone());
    }

    assert_eq!(names, ["c", "d"]);
    let error = store.load(&key("a")).await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::RecordDamaged);
}

async fn id_token(vault: &TokenVault, key: &TokenKey) -> Option<kube_authn_core::Secret> {
    let login = vault.load(key).await.expect("loaded")?;
    let owner: &EntityRef = &login.key.principal;
    assert_eq!(owner, &key.principal);
    login.tokens.id_token.map(|token| token.secret)
}
