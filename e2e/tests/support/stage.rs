//! `kube-authn serve` between people with kubectl and the test cluster.

use std::{fs, path::Path, path::PathBuf, process::Stdio, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Request;
use kube_authn_core::{Secret, secrecy::ExposeSecret};
use kube_authn_e2e::{Caller, Serve, Served, TestCluster};
use kube_authn_store::KeyRing;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{OPENPORTAL, app_config, within};

/// What the program needs: seed 004's configuration, https, and callers of issuer A.
pub(crate) struct Prepared {
    pub(crate) cluster: &'static TestCluster,
    pub(crate) folder: TempDir,
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Prepared {
    pub(crate) async fn new() -> Self {
        let cluster = TestCluster::shared().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let serving = cluster.authority().serving("kube-authn").unwrap();
        serving.write(folder.path(), "serving").unwrap();
        let mut config = app_config(cluster);
        config["backend"] = json!({
            "listen": "127.0.0.1:0",
            "https": { "certificate": { "cert": { "$file": "serving.pem" }, "key": { "$file": "serving.key" } } },
        });
        config["kubeAuthn"]["callers"] = json!([{
            "type": "oidc",
            "issuer": cluster.issuer_a().url(),
            "audience": "portal",
            "caFile": cluster.ca_path(),
            "principal": { "claim": "preferred_username" },
        }]);
        let key = KeyRing::random_key_base64().unwrap();
        let environment = vec![
            ("FOLDER", folder.path().display().to_string()),
            ("CA_DATA", STANDARD.encode(cluster.ca_pem())),
            ("K8S_SA_TOKEN", "unused".to_owned()),
            ("KUBE_AUTHN_KEY", key.expose_secret().to_owned()),
        ];
        let this = Self {
            cluster,
            folder,
            environment,
        };
        fs::write(this.config(), config.to_string()).unwrap();
        this
    }

    /// The app-config.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("app-config.yaml")
    }
}

/// Alice, who calls with a token of issuer A.
pub(crate) async fn alice(cluster: &TestCluster, url: &str) -> Caller {
    let token = cluster.issuer_a().id_token("alice", "portal").await.unwrap();
    Caller::at(url, cluster.ca_pem(), Secret::new(token)).unwrap()
}

/// The program with seed 004's configuration, https, and alice's token of issuer A as a caller.
pub(crate) struct Stage {
    pub(crate) cluster: &'static TestCluster,
    pub(crate) folder: TempDir,
    pub(crate) alice: Caller,
    pub(crate) served: Served,
}

impl Stage {
    /// The program ends with the cluster, whatever happens to us.
    pub(crate) async fn new() -> Self {
        let prepared = Prepared::new().await;
        let supervisor = Some(prepared.cluster);
        Self::start(prepared, supervisor).await
    }

    /// With logins kept elsewhere: the value of `kubeAuthn.store`.
    pub(crate) async fn with_store(store: Value) -> Self {
        let prepared = Prepared::new().await;
        let mut config: Value = serde_json::from_slice(&fs::read(prepared.config()).unwrap()).unwrap();
        config["kubeAuthn"]["store"] = store;
        fs::write(prepared.config(), config.to_string()).unwrap();
        let supervisor = Some(prepared.cluster);
        Self::start(prepared, supervisor).await
    }

    /// Without a supervisor: the process is the program itself.
    pub(crate) async fn alone() -> Self {
        Self::start(Prepared::new().await, None).await
    }

    async fn start(prepared: Prepared, supervisor: Option<&TestCluster>) -> Self {
        let serve = Serve {
            program: Path::new(env!("CARGO_BIN_EXE_kube-authn-program")),
            config: &prepared.config(),
            environment: prepared.environment.clone(),
            drain: Duration::from_secs(1),
            cluster: supervisor,
        };
        let served = serve.start().await.unwrap();
        let Prepared { cluster, folder, .. } = prepared;
        let alice = alice(cluster, served.url()).await;
        Self {
            cluster,
            folder,
            alice,
            served,
        }
    }

    pub(crate) async fn log_in(&self) {
        log_in(self.cluster, &self.alice).await;
    }

    /// The cluster's kubectl with a kubeconfig that knows the proxy and the caller's token alone.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let kubeconfig = self.folder.path().join("kubeconfig");
        self.alice.write_kubeconfig(&kubeconfig, OPENPORTAL).unwrap();
        let mut command = self.cluster.kubectl();
        command
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", self.folder.path())
            .args(arguments);
        command
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> (i32, String, String) {
        run(self.command(arguments), "").await
    }

    /// A kubectl that keeps running, and what it prints.
    pub(crate) fn lines(&self, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut command = self.command(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }
}

/// Posts alice's tokens of issuer B.
pub(crate) async fn log_in(cluster: &TestCluster, alice: &Caller) {
    let tokens = cluster.issuer_b().sign_in("alice", "kubernetes").await.unwrap();
    let request = Request::post("/api/cluster-auth/tokens");
    let (status, answer) = alice.send(request, &tokens).await.unwrap();
    assert_eq!(
        (status, &answer["user"]),
        (200, &"user:default/alice".into()),
        "{answer}"
    );
}

pub(crate) async fn until(lines: &mut Lines<BufReader<ChildStdout>>, text: &str) -> String {
    within(LIMIT, text, async {
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if line.contains(text) {
                return line;
            }
        }
    })
    .await
}

/// Exit code, standard output and standard error.
pub(crate) async fn run(mut command: Command, input: &str) -> (i32, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Not every command reads it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let output = within(LIMIT, "kubectl", child.wait_with_output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Twenty times what anything here takes on an idle machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
