//! The same for Redis: the sealed store, through the vault, against the bare command and script on the same server.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use ::redis::{Client, Script, aio::MultiplexedConnection};
use kube_authn_benches::{
    measure::{Rounds, micros, report},
    next_random,
};
use kube_authn_core::{
    Claim, Clock, Expected, Login, LoginId, Revision, Secret, SystemClock, TokenKey, TokenRecord, TokenStore,
    TokenVault,
};
use kube_authn_store::RedisTokenStore;
use kube_authn_test_servers::Redis;
use tokio::runtime::Runtime;

use super::{LOADS, LOGINS, SAVES, after, figure, key, login, ring, table};

pub(crate) fn run(runtime: &Runtime) {
    // As docs/deployment.md wants it: saves wait for the disk.
    let server = Redis::start_with(&[("appendfsync", "always")]);
    let mut bench = runtime.block_on(Bench::new(&server));
    bench.load(runtime);
    bench.save(runtime);
}

struct Bench {
    vault: TokenVault,
    store: RedisTokenStore,
    bare: MultiplexedConnection,
    script: Script,
}

impl Bench {
    async fn new(server: &Redis) -> Self {
        let store = RedisTokenStore::open(&server.url()).await.expect("a store");
        let vault = TokenVault::new(store.clone(), ring());
        let before = used_memory(server);
        for number in 0..LOGINS {
            vault.log_in(&key(number), login()).await.expect("a login");
        }
        let each = (used_memory(server) - before) / LOGINS;
        println!("Redis: {each} bytes of memory per login with 1.5 KB of tokens, indexes included");
        let client = Client::open(server.url()).expect("a URL");
        Self {
            vault,
            store,
            bare: client
                .get_multiplexed_async_connection()
                .await
                .expect("connected"),
            script: Script::new(include_str!("../../../kube-authn-store/src/redis/save.lua")),
        }
    }

    fn load(&mut self, runtime: &Runtime) {
        let mut random = 1;
        let rounds: Rounds<f64, 3> = Rounds::run(LOADS, |subject| {
            let key = key(next_random(&mut random) % LOGINS);
            runtime.block_on(async {
                let start = Instant::now();
                match subject {
                    0 => drop(black_box(self.bare_load(&key).await)),
                    1 => drop(black_box(self.store.load(&key).await.expect("a row"))),
                    _ => drop(black_box(self.vault.load(&key).await.expect("a login"))),
                }
                micros(start.elapsed())
            })
        });
        table("Redis: load", ["bare HMGET", "store.load", "vault.load"], &rounds);
        report(8, "load, sealed, Redis", &figure(&rounds, 2), "≤ 1.15 × bare");
    }

    fn save(&mut self, runtime: &Runtime) {
        let keys = [key(0), key(1), key(2)];
        let mut claimed = runtime.block_on(self.claim(&keys[2]));
        let rounds: Rounds<f64, 3> = Rounds::run(SAVES, |subject| {
            runtime.block_on(async {
                let key = &keys[subject];
                let present = self.store.load(key).await.expect("a row").expect("a login");
                let (before, next) = (present.revision, after(&present));
                let token = Secret::new("r".repeat(64));
                let start = Instant::now();
                match subject {
                    0 => self.bare_save(key, &next, before).await,
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
        });
        table(
            "Redis: save",
            ["bare EVALSHA", "store.save", "vault.save_refresh_token"],
            &rounds,
        );
        report(8, "save, sealed, Redis", &figure(&rounds, 2), "≤ 1.15 × bare");
    }

    async fn claim(&self, key: &TokenKey) -> Login {
        let login = self.vault.load(key).await.expect("a row").expect("a login");
        let until = SystemClock.now() + Duration::from_secs(3600);
        let owner = LoginId::from_bytes([1; 16]);
        match self.vault.claim_refresh(&login, owner, until).await {
            Ok(Claim::Ours(login)) => login,
            other => panic!("nobody else claims: {other:?}"),
        }
    }

    /// The command of the store with nothing around it: the sealed bytes are all that is taken from the row.
    async fn bare_load(&mut self, key: &TokenKey) -> Vec<u8> {
        let values: Vec<Vec<u8>> = ::redis::cmd("HMGET")
            .arg(row(key))
            .arg(&FIELDS)
            .query_async(&mut self.bare)
            .await
            .expect("a row");
        values.into_iter().next_back().expect("its last field")
    }

    async fn bare_save(&mut self, key: &TokenKey, record: &TokenRecord, before: Revision) {
        let metadata = &record.metadata;
        let mut save = self.script.prepare_invoke();
        save.key(row(key))
            .key("{kube-authn}:logins")
            .key("{kube-authn}:ends")
            .arg(member(key))
            .arg("{kube-authn}:events")
            .arg(&before.login.as_bytes()[..])
            .arg(before.number)
            .arg(metadata.expires_at.as_millisecond());
        let values: [Vec<u8>; 11] = [
            record.revision.login.as_bytes().to_vec(),
            record.revision.number.to_string().into(),
            metadata.subject.as_str().into(),
            metadata.expires_at.as_millisecond().to_string().into(),
            b"1".to_vec(),
            Vec::new(),
            Vec::new(),
            metadata.created_at.as_millisecond().to_string().into(),
            metadata.updated_at.as_millisecond().to_string().into(),
            record.key_id.as_str().into(),
            record.sealed.to_vec(),
        ];
        for (name, value) in FIELDS.iter().zip(&values) {
            save.arg(*name).arg(value);
        }
        let saved: bool = save.invoke_async(&mut self.bare).await.expect("saved");
        assert!(saved);
    }
}

fn member(key: &TokenKey) -> String {
    format!("{}\0{}\0{}\0", key.principal, key.issuer, key.client_id)
}

fn row(key: &TokenKey) -> String {
    format!("{{kube-authn}}:login:{}", member(key))
}

fn used_memory(server: &Redis) -> usize {
    let info = server.run(&["INFO", "memory"]);
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    line.and_then(|bytes| bytes.trim().parse().ok())
        .expect("a figure")
}

const FIELDS: [&str; 11] = [
    "login",
    "number",
    "subject",
    "expires_at",
    "refreshable",
    "refreshing_owner",
    "refreshing_until",
    "created_at",
    "updated_at",
    "key_id",
    "sealed",
];
