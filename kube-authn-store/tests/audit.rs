//! What the vault writes into the audit log, and what nobody writes into any log.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use kube_authn_core::{Claim, EntityRef, Expected, Issuer, LoginId, Subject, TokenStore, TokenVault};
use kube_authn_store::SqliteTokenStore;
use support::{CANARY, end, key, keys, log_in};
use tracing_subscriber::fmt::MakeWriter;

/// One test, since the log is the whole process's.
#[tokio::test]
async fn audit_log_tells_each_event_once_and_no_log_tells_a_token() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(log.clone())
        .init();
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/logins.db", folder.path().display());
    let store = SqliteTokenStore::open(&url).await.expect("a store");
    let vault = TokenVault::new(store.clone(), keys());
    let (alice, issuer, subject) = (
        EntityRef::parse("user:default/alice").expect("a reference"),
        Issuer::new("https://issuer.example.com/").expect("an issuer"),
        Subject::new("alice").expect("a subject"),
    );

    for _ in 0..3 {
        vault.pin(&alice, &issuer, &subject).await.expect("pinned");
    }
    log_in(&vault, "alice").await;
    let login = vault.load(&key("alice")).await.expect("loaded").expect("a login");
    let owner = LoginId::random().expect("an owner");
    let Claim::Ours(claimed) = vault.claim_refresh(&login, owner, end()).await.expect("claimed") else {
        panic!("nobody else is there");
    };
    vault.end(&claimed).await.expect("ended");
    log_in(&vault, "alice").await;
    let mut row = store.load(&key("alice")).await.expect("loaded").expect("a row");
    let revision = row.revision;
    row.metadata.expires_at = end() - kube_authn_core::jiff::SignedDuration::from_secs(1);
    store
        .save(&key("alice"), &row, Expected::At(revision))
        .await
        .expect("edited");
    let error = vault.load(&key("alice")).await.expect_err("damaged");
    vault.log_out(&key("alice")).await.expect("deleted");

    let log = log.text();
    let told = |event: &str| log.matches(event).count();
    assert_eq!(told("event=\"identity_pinned\""), 1, "{log}");
    assert_eq!(told("event=\"login_stored\""), 2, "{log}");
    assert_eq!(told("reason=\"invalid_grant\""), 1, "{log}");
    assert_eq!(told("event=\"record_damaged\""), 1, "{log}");
    assert_eq!(told("reason=\"logout\""), 1, "{log}");
    assert!(!log.contains(CANARY), "a token is in the log: {log}");
    assert!(!format!("{error} {error:?} {login:?} {row:?} {vault:?}").contains(CANARY));
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("unpoisoned")).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("unpoisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
