//! `kube-authn serve` over a database server that comes and goes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use kube_authn_test_servers::Postgres;
use serde_json::{Value, json};
use support::{LIMIT, Program, refused};

#[test]
fn service_waits_for_a_store_that_is_down_and_is_ready_within_two_seconds_of_its_return() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Postgres::start();
    let url = server.database();
    server.stop();

    let program = Program::start(&folder, &config(&url));
    assert!(program.told("starting without the token store"));
    assert_down(&program);
    server.start_again();
    assert_serves(&program);

    server.kill();
    assert_down(&program);
    server.start_again();
    assert_serves(&program);
}

#[test]
fn url_that_is_none_refuses_the_start_and_no_line_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = config("postgres://portal:canary-7f3a@db:port/portal");

    let (code, text) = refused(&folder, &config);

    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("kubeAuthn.store.url") && text.contains("not the URL of a PostgreSQL database"),
        "{text}"
    );
    assert!(!text.contains("canary-7f3a"), "{text}");
}

#[test]
fn user_whom_the_server_refuses_refuses_the_start_and_no_line_shows_the_password() {
    let folder = tempfile::tempdir().unwrap();
    let server = Postgres::start();
    let config = config(&server.url().replace(Postgres::USER, "nobody"));

    let (code, text) = refused(&folder, &config);

    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("refuses the user or the password"), "{text}");
    assert!(!text.contains(Postgres::PASSWORD), "{text}");
}

fn config(url: &str) -> Value {
    json!({
        "backend": { "listen": "127.0.0.1:0" },
        "clusterAuth": { "issuer": "https://login.example.com/", "clientId": "kubernetes" },
        "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [
            { "name": "a", "url": "https://a.example.com", "authProvider": "clusterAuth" },
        ]}]},
        "kubeAuthn": {
            "callers": [{ "type": "header", "trustedPeers": ["127.0.0.1/32"], "user": "X-Forwarded-User" }],
            "store": { "type": "postgres", "url": url },
            "encryption": { "keys": [{ "id": "k1", "key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=" }] },
        },
    })
}

fn status(program: &Program) -> String {
    program.get("/api/cluster-auth/status", &["X-Forwarded-User: alice"])
}

fn assert_down(program: &Program) {
    let answer = status(program);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.to_lowercase().contains("retry-after: 2"), "{answer}");
    assert!(!answer.contains(Postgres::PASSWORD), "{answer}");
    // The report of a moment ago may still say otherwise.
    let begin = Instant::now();
    while !program.get("/readyz", &[]).starts_with("HTTP/1.1 503 ") {
        assert!(begin.elapsed() < LIMIT, "ready without a store");
        thread::sleep(Duration::from_millis(200));
    }
}

fn assert_serves(program: &Program) {
    let begin = Instant::now();
    loop {
        let answer = status(program);
        if answer.starts_with("HTTP/1.1 200 ") {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(2), "{answer}");
        thread::sleep(Duration::from_millis(50));
    }
}
