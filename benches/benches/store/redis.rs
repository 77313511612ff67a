//! A server on loopback, and a bare connection to it with the store's own script.

use ::redis::{Client, Script, aio::MultiplexedConnection};
use kube_authn_core::{Revision, TokenKey, TokenRecord};
use kube_authn_store::RedisTokenStore;
use kube_authn_test_servers::Redis;
use tokio::runtime::Runtime;

use super::{Bare, Bench, LOGINS};

pub(super) fn run(runtime: &Runtime) {
    // As docs/deployment.md wants it: saves wait for the disk.
    let server = Redis::start_with(&[("appendfsync", "always")]);
    let mut bench = runtime.block_on(async {
        let store = RedisTokenStore::open(&server.url()).await.expect("a store");
        let client = Client::open(server.url()).expect("a URL");
        let connection = client.get_multiplexed_async_connection().await;
        let bare = Connection {
            connection: connection.expect("connected"),
            script: Script::new(include_str!("../../../kube-authn-store/src/redis/save.lua")),
        };
        let before = used_memory(&server);
        let bench = Bench::new("Redis", store, bare).await;
        let each = (used_memory(&server) - before) / LOGINS;
        println!("Redis: {each} bytes of memory per login with 1.5 KB of tokens, indexes included");
        bench
    });
    bench.run(runtime);
}

struct Connection {
    connection: MultiplexedConnection,
    script: Script,
}

impl Bare for Connection {
    const NAMES: [&str; 2] = ["HMGET", "EVALSHA"];

    async fn load(&mut self, key: &TokenKey) -> Vec<u8> {
        let values: Vec<Vec<u8>> = ::redis::cmd("HMGET")
            .arg(row(key))
            .arg(&FIELDS)
            .query_async(&mut self.connection)
            .await
            .expect("a row");
        values.into_iter().next_back().expect("its last field")
    }

    async fn save(&mut self, key: &TokenKey, record: &TokenRecord, before: Revision) {
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
        let saved: bool = save.invoke_async(&mut self.connection).await.expect("saved");
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
