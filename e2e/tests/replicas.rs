//! Several processes of `kube-authn serve` over one store: what one of them is told, all of them do.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::{
    fs,
    path::Path,
    pin::Pin,
    time::{Duration, Instant},
};

use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt, future::join_all};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, LogParams, WatchParams},
};
use kube_authn_e2e::{Caller, Serve, Served};
use kube_authn_test_servers::{Postgres, Redis};
use serde_json::{Value, json};
use support::{
    EXPIRED_LOGIN, NO_LOGIN, OPENPORTAL, eventually,
    stage::{LIMIT, Prepared, alice, log_in, run},
    within,
};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, process::Command};

const NAMESPACE: &str = "team-a-dev";
const POD: &str = "web-0";
const PROGRAM: &str = env!("CARGO_BIN_EXE_kube-authn-program");

/// A process and alice, who calls it.
struct Replica {
    alice: Caller,
    #[allow(dead_code, reason = "ends when it is dropped")]
    served: Served,
    folder: TempDir,
}

/// Two processes of one configuration.
struct Replicas {
    prepared: Prepared,
    one: Replica,
    other: Replica,
}

impl Replicas {
    async fn new(change: impl FnOnce(&mut Value)) -> Self {
        let mut prepared = Prepared::new().await;
        prepared.environment.push(("RUST_LOG", "info".to_owned()));
        let mut config: Value =
            serde_json::from_str(&fs::read_to_string(prepared.config()).unwrap()).unwrap();
        change(&mut config);
        fs::write(prepared.config(), config.to_string()).unwrap();
        let one = Replica::start(&prepared).await;
        let other = Replica::start(&prepared).await;
        Self { prepared, one, other }
    }

    async fn log_in(&self) {
        log_in(self.prepared.cluster, &self.one.alice).await;
    }

    /// Without a refresh token: the login ends with its tokens.
    async fn log_in_for_once(&self) {
        let issuer = self.prepared.cluster.issuer_b();
        let mut tokens = issuer.sign_in("alice", "kubernetes").await.unwrap();
        tokens.as_object_mut().unwrap().remove("refresh_token");
        let request = Request::post("/api/cluster-auth/tokens");
        let (status, answer) = self.one.alice.send(request, &tokens).await.unwrap();
        assert_eq!(status, 200, "{answer}");
    }

    fn both(&self) -> [&Replica; 2] {
        [&self.one, &self.other]
    }

    /// The program, run to its end by whoever looks after the service.
    async fn program(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.prepared.config())
            .env_clear()
            .envs(
                self.prepared
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            );
        run(command, "").await
    }
}

impl Replica {
    /// In a folder of its own, with the store and the keys of all.
    async fn start(prepared: &Prepared) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["app-config.yaml", "serving.pem", "serving.key"] {
            fs::copy(prepared.folder.path().join(file), folder.path().join(file)).unwrap();
        }
        let serve = Serve {
            program: Path::new(PROGRAM),
            config: &folder.path().join("app-config.yaml"),
            environment: prepared.environment.clone(),
            drain: Duration::from_secs(1),
            cluster: Some(prepared.cluster),
        };
        let served = serve.start().await.unwrap();
        Self {
            alice: alice(prepared.cluster, served.url()).await,
            served,
            folder,
        }
    }

    /// What the next request is told.
    async fn told(&self) -> (u16, String) {
        let path = format!("/api/kubernetes/clusters/{OPENPORTAL}/proxy/api/v1/namespaces/{NAMESPACE}/pods");
        let (status, answer) = self.alice.get(&path).await.unwrap();
        (status, answer["message"].as_str().unwrap_or_default().to_owned())
    }

    /// An exec, a followed log and a watch that run; each resolves when it has ended.
    async fn streams(&self) -> Vec<Pin<Box<dyn Future<Output = &'static str>>>> {
        let pods: Api<Pod> = Api::namespaced(self.alice.client(OPENPORTAL).unwrap(), NAMESPACE);
        let mut watch = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        within(LIMIT, "the first event", watch.next())
            .await
            .unwrap()
            .unwrap();
        let follow = LogParams {
            follow: true,
            ..LogParams::default()
        };
        let mut log = pods.log_stream(POD, &follow).await.unwrap().lines();
        let first = within(LIMIT, "the log", log.try_next()).await.unwrap();
        assert_eq!(first.as_deref(), Some("started"));
        let parameters = AttachParams::default().stderr(false);
        let inside = ["sh", "-c", "echo begun; sleep 600"];
        let mut exec = pods.exec(POD, inside, &parameters).await.unwrap();
        let mut output = exec.stdout().unwrap();
        within(LIMIT, "the exec", output.read_exact(&mut [0; 6]))
            .await
            .unwrap();
        vec![
            Box::pin(async move {
                while watch.next().await.is_some_and(|event| event.is_ok()) {}
                "watch"
            }),
            Box::pin(async move {
                while log.try_next().await.is_ok_and(|line| line.is_some()) {}
                "log"
            }),
            Box::pin(async move {
                let _ = exec.join().await;
                "exec"
            }),
        ]
    }
}

/// A logout by one replica, then an end by the program: each time the other replica cuts what is open and says why.
async fn end_of_a_login_is_everybody_s(store: Value) {
    let replicas = Replicas::new(|config| config["kubeAuthn"]["store"] = store).await;
    replicas.log_in().await;
    for replica in replicas.both() {
        assert_eq!(replica.told().await.0, 200);
    }
    let open = replicas.other.streams().await;

    let logout = Request::delete("/api/cluster-auth/tokens");
    let (status, answer) = replicas.one.alice.send(logout, &Value::Null).await.unwrap();
    assert_eq!(status, 200, "{answer}");

    // The contract's second, and another one for a machine that is busy.
    within(
        Duration::from_secs(2),
        "the end of the streams elsewhere",
        join_all(open),
    )
    .await;
    for replica in replicas.both() {
        assert_eq!(replica.told().await, (401, NO_LOGIN.to_owned()));
    }

    replicas.log_in().await;
    let mut open = Vec::new();
    for replica in replicas.both() {
        assert_eq!(replica.told().await.0, 200, "a new login is another one");
        open.extend(replica.streams().await);
    }
    let (code, out, errors) = replicas
        .program(&["logins", "end", "--user", "user:default/alice"])
        .await;
    assert_eq!((code, out.as_str()), (0, "1 ended\n"), "{errors}");

    within(Duration::from_secs(2), "the end of all streams", join_all(open)).await;
    for replica in replicas.both() {
        assert_eq!(replica.told().await, (401, NO_LOGIN.to_owned()));
    }
}

#[tokio::test]
async fn logout_at_one_replica_is_the_others_too_over_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/logins.db", folder.path().display());

    end_of_a_login_is_everybody_s(json!({ "type": "sqlite", "url": url })).await;
}

#[tokio::test]
async fn logout_at_one_replica_is_the_others_too_over_postgres() {
    let server = Postgres::start();

    end_of_a_login_is_everybody_s(json!({ "type": "postgres", "url": server.database() })).await;
}

#[tokio::test]
async fn logout_at_one_replica_is_the_others_too_over_redis() {
    let server = Redis::start();

    end_of_a_login_is_everybody_s(json!({ "type": "redis", "url": server.url() })).await;
}

#[tokio::test]
async fn stream_lives_on_for_the_grace_of_its_credential_and_no_longer() {
    // Tokens are sent until half a minute before their end.
    let (life, grace) = (Duration::from_secs(36), Duration::from_secs(4));
    let replicas = Replicas::new(|config| {
        let lifetimes =
            json!({ "max": format!("{}s", life.as_secs()), "streamGrace": format!("{}s", grace.as_secs()) });
        config["clusterAuth"]["lifetimes"] = lifetimes;
    })
    .await;
    let begin = Instant::now();
    replicas.log_in_for_once().await;
    let logged_in = Instant::now();
    let open = replicas.other.streams().await;

    for replica in replicas.both() {
        eventually(life, "the end of the login", async || {
            (replica.told().await == (401, EXPIRED_LOGIN.to_owned())).then_some(())
        })
        .await;
    }
    within(life + grace, "the end of the streams", join_all(open)).await;

    // Instants of tokens are whole seconds.
    let second = Duration::from_secs(1);
    assert!(
        begin.elapsed() + second >= life + grace,
        "cut too early: {:?}",
        begin.elapsed()
    );
    assert!(
        logged_in.elapsed() <= life + grace + 5 * second,
        "cut too late: {:?}",
        logged_in.elapsed()
    );
}

#[tokio::test]
async fn keys_are_rotated_under_open_streams_and_nobody_notices() {
    let mut replicas = Replicas::new(|_| {}).await;
    replicas.log_in().await;
    let open = replicas.other.streams().await;
    let key = kube_authn_store::KeyRing::random_key_base64().unwrap();
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(replicas.prepared.config()).unwrap()).unwrap();
    let keys = &mut config["kubeAuthn"]["encryption"]["keys"];
    let new = json!({ "id": "k2", "key": kube_authn_core::secrecy::ExposeSecret::expose_secret(&key) });
    keys.as_array_mut().unwrap().insert(0, new);
    // Every replica reads it while it runs.
    for folder in [
        replicas.prepared.folder.path(),
        replicas.one.folder.path(),
        replicas.other.folder.path(),
    ] {
        fs::write(folder.join("app-config.yaml"), config.to_string()).unwrap();
    }
    for replica in [&replicas.one, &replicas.other] {
        let log = replica.folder.path().join("kube-authn.log");
        eventually(LIMIT, "the new key", async || {
            fs::read_to_string(&log)
                .unwrap()
                .contains("the encryption keys changed")
                .then_some(())
        })
        .await;
    }

    let (code, _, errors) = replicas.program(&["rekey"]).await;
    assert!(code == 1 && errors.contains("--key k2"), "{errors}");
    let (code, out, errors) = replicas.program(&["rekey", "--key", "k2"]).await;
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.starts_with("1 written under the newest key"), "{out}");
    let (code, out, _) = replicas.program(&["keys"]).await;
    assert_eq!(code, 0);
    assert!(
        out.contains("k1          0 rows  reads: no row is under it"),
        "{out}"
    );

    config["kubeAuthn"]["encryption"]["keys"]
        .as_array_mut()
        .unwrap()
        .pop();
    fs::write(replicas.prepared.config(), config.to_string()).unwrap();
    replicas.one = Replica::start(&replicas.prepared).await;
    for replica in replicas.both() {
        assert_eq!(replica.told().await.0, 200, "logged out by a rotation");
    }
    let ended = futures_util::future::select_all(open);
    assert!(
        tokio::time::timeout(Duration::from_secs(2), ended).await.is_err(),
        "a rotation cut a stream"
    );
}
