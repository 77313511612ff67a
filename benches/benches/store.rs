//! What does sealing cost a login that is loaded or saved?
//!
//! Row 8: the sealed SQLite and PostgreSQL stores, through the vault, against the bare sqlx statement on the same database
//! with the same settings, the Redis one against the bare command and script; and sealing alone, AES-256-GCM-SIV against
//! AES-256-GCM.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench: criterion makes the functions"
)]

#[path = "store/postgres.rs"]
mod postgres;
#[path = "store/redis.rs"]
mod redis;
#[path = "store/sqlite.rs"]
mod sqlite;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, AES_256_GCM_SIV, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey},
    rand,
};
use criterion::Criterion;
use kube_authn_benches::{
    measure::{Rounds, micros, report},
    next_random,
};
use kube_authn_core::{
    Claim, ClientId, Clock, EntityRef, Expected, Issuer, KeyId, Login, LoginId, NewLogin, Revision, Sealer,
    Secret, Subject, SystemClock, Token, TokenKey, TokenRecord, TokenSet, TokenStore, TokenVault,
};
use kube_authn_store::KeyRing;
use tokio::runtime::Runtime;

const ROUNDS: usize = 15;
/// Loads and saves of each subject.
const LOADS: usize = 6_000;
const SAVES: usize = 600;
/// Logins in each store.
const LOGINS: usize = 1_000;

fn main() {
    let runtime = Runtime::new().expect("a runtime");
    runtime.spawn(tick());
    sqlite::run(&runtime);
    postgres::run(&runtime);
    redis::run(&runtime);
    seal();
    let mut criterion = kube_authn_benches::criterion();
    criterion_benches(&mut criterion);
    criterion.final_summary();
}

/// A service always has a timer running. In a runtime that has none, the first deadline that is set wakes the thread that
/// waits for the network, which is no part of the question.
async fn tick() {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
    }
}

/// The statements of a store with nothing around them, on the same database with the same settings.
trait Bare {
    /// What the statements are called, load and save.
    const NAMES: [&str; 2];

    /// Reads the row; the sealed bytes are all that is taken from it.
    async fn load(&mut self, key: &TokenKey) -> Vec<u8>;

    /// Writes the row if it is at this revision.
    async fn save(&mut self, key: &TokenKey, record: &TokenRecord, before: Revision);
}

/// A store, its bare statements, and the vault over it.
struct Bench<S, B> {
    medium: &'static str,
    vault: TokenVault,
    store: S,
    bare: B,
}

impl<S: TokenStore + Clone, B: Bare> Bench<S, B> {
    /// Fills the store.
    async fn new(medium: &'static str, store: S, bare: B) -> Self {
        let vault = TokenVault::new(store.clone(), ring());
        for number in 0..LOGINS {
            vault.log_in(&key(number), login()).await.expect("a login");
        }
        Self {
            medium,
            vault,
            store,
            bare,
        }
    }

    fn run(&mut self, runtime: &Runtime) {
        let loads = self.load(runtime);
        self.tell("load", B::NAMES[0], "vault.load", &loads);
        let saves = self.save(runtime);
        self.tell("save", B::NAMES[1], "vault.save_refresh_token", &saves);
    }

    /// One load at a time, like saves: a batch of one subject may meet a busier machine than the next one's.
    fn load(&mut self, runtime: &Runtime) -> Rounds<f64, 3> {
        let mut random = 1;
        Rounds::run(LOADS, |subject| {
            let key = key(next_random(&mut random) % LOGINS);
            runtime.block_on(async {
                let start = Instant::now();
                match subject {
                    0 => drop(black_box(self.bare.load(&key).await)),
                    1 => drop(black_box(self.store.load(&key).await.expect("a row"))),
                    _ => drop(black_box(self.vault.load(&key).await.expect("a login"))),
                }
                micros(start.elapsed())
            })
        })
    }

    /// One save at a time, each subject of a login of its own: a save waits for the disk, whose moods change by the
    /// second. `save_refresh_token` is the vault's save of one statement.
    fn save(&mut self, runtime: &Runtime) -> Rounds<f64, 3> {
        let keys = [key(0), key(1), key(2)];
        let mut claimed = runtime.block_on(claim(&self.vault, &keys[2]));
        Rounds::run(SAVES, |subject| {
            runtime.block_on(async {
                let key = &keys[subject];
                let present = self.store.load(key).await.expect("a row").expect("a login");
                let (before, next) = (present.revision, after(&present));
                let token = Secret::new("r".repeat(64));
                let start = Instant::now();
                match subject {
                    0 => self.bare.save(key, &next, before).await,
                    1 => {
                        let saved = self.store.save(key, &next, Expected::At(before)).await;
                        saved.expect("saved");
                    }
                    _ => {
                        let saved = self.vault.save_refresh_token(&claimed, token).await;
                        claimed = saved.expect("saved");
                    }
                }
                micros(start.elapsed())
            })
        })
    }

    fn tell(&self, verb: &str, bare: &str, vault: &str, rounds: &Rounds<f64, 3>) {
        let (bare, store) = (format!("bare {bare}"), format!("store.{verb}"));
        table(
            &format!("{}: {verb}", self.medium),
            [&bare, &store, vault],
            rounds,
        );
        let what = format!("{verb}, sealed, {}", self.medium);
        report(8, &what, &figure(rounds, 2), "≤ 1.15 × bare");
    }
}

async fn claim(vault: &TokenVault, key: &TokenKey) -> Login {
    let login = vault.load(key).await.expect("a row").expect("a login");
    let until = SystemClock.now() + Duration::from_secs(3600);
    let owner = LoginId::from_bytes([1; 16]);
    match vault.claim_refresh(&login, owner, until).await {
        Ok(Claim::Ours(login)) => login,
        other => panic!("nobody else claims: {other:?}"),
    }
}

/// Sealing and opening 1.5 KB: the bare ciphers in place, then the key ring.
fn seal() {
    let (gcm, siv, ring) = (cipher(&AES_256_GCM), cipher(&AES_256_GCM_SIV), ring());
    let rounds: Rounds<f64, 3> = Rounds::run(ROUNDS, |subject| {
        let start = Instant::now();
        for _ in 0..2_000 {
            match subject {
                0 => in_place(&gcm),
                1 => in_place(&siv),
                _ => through(&ring),
            }
        }
        micros(start.elapsed() / 2_000)
    });
    table(
        "seal and open 1.5 KB",
        ["AES-256-GCM", "AES-256-GCM-SIV", "KeyRing"],
        &rounds,
    );
    report(
        8,
        "KeyRing, 1.5 KB, / AES-256-GCM",
        &figure(&rounds, 2),
        "0.8 µs was GCM",
    );
}

fn in_place(key: &LessSafeKey) {
    let mut nonce = [0; 12];
    rand::fill(&mut nonce).expect("random numbers");
    let mut buffer = Vec::with_capacity(PLAIN.len() + 16);
    buffer.extend_from_slice(&PLAIN);
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(BOUND_TO),
        &mut buffer,
    )
    .expect("sealed");
    let opened = key.open_in_place(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(BOUND_TO),
        &mut buffer,
    );
    black_box(opened.expect("opened"));
}

fn through(ring: &KeyRing) {
    let (id, sealed) = ring.seal(BOUND_TO, &PLAIN).expect("sealed");
    black_box(ring.open(&id, BOUND_TO, &sealed).expect("opened"));
}

fn criterion_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal and open 1.5 KB");
    for (name, algorithm) in [
        ("AES-256-GCM", &AES_256_GCM),
        ("AES-256-GCM-SIV", &AES_256_GCM_SIV),
    ] {
        let key = cipher(algorithm);
        group.bench_function(name, |bencher| bencher.iter(|| in_place(&key)));
    }
    let ring = ring();
    group.bench_function("KeyRing", |bencher| bencher.iter(|| through(&ring)));
}

fn cipher(algorithm: &'static Algorithm) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).expect("a key"))
}

fn ring() -> KeyRing {
    let id = KeyId::new("bench").expect("an id");
    KeyRing::new(vec![(id, Secret::new([7; 32]))]).expect("a ring")
}

fn key(number: usize) -> TokenKey {
    TokenKey {
        principal: EntityRef::parse(&format!("user:default/user-{number}")).expect("a reference"),
        issuer: Issuer::new("https://issuer.example.com").expect("an issuer"),
        client_id: ClientId::new("kubernetes").expect("a client"),
    }
}

/// ID token and refresh token, 1.5 KB together.
fn login() -> NewLogin {
    let expires_at = SystemClock.now() + Duration::from_secs(3600);
    let tokens = TokenSet::new()
        .with_id_token(Token {
            secret: Secret::new("i".repeat(1_400)),
            expires_at,
        })
        .with_refresh_token(Secret::new("r".repeat(64)));
    NewLogin::new(Subject::new("subject").expect("a subject"), tokens, expires_at)
}

/// The state that follows this one; its sealed bytes don't open, which no store looks at.
fn after(record: &TokenRecord) -> TokenRecord {
    let mut next = record.clone();
    next.revision.number += 1;
    next
}

fn table(what: &str, names: [&str; 3], rounds: &Rounds<f64, 3>) {
    for (index, name) in names.iter().enumerate() {
        let (median, ratio) = (
            rounds.median(index, |time| *time),
            rounds.ratio(index, 0, |time| *time),
        );
        println!("{what}: {name}: {median:.2} µs, {ratio:.3} of {}", names[0]);
    }
}

fn figure(rounds: &Rounds<f64, 3>, subject: usize) -> String {
    format!(
        "{:.2} µs, {:.3} × bare",
        rounds.median(subject, |time| *time),
        rounds.ratio(subject, 0, |time| *time)
    )
}

/// What is sealed, and what it is bound to.
const PLAIN: [u8; 1_500] = [b'x'; 1_500];
const BOUND_TO: &[u8] = &[b'k'; 200];
