//! `kube-authn serve` between kubectl and a real API server: people work as themselves, over https.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::{fs, path::Path, process::Stdio, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Request;
use kube_authn_core::{Secret, secrecy::ExposeSecret};
use kube_authn_e2e::{Caller, NODE, Serve, Served, TestCluster, fixtures};
use kube_authn_store::KeyRing;
use serde_json::{Value, json};
use support::{NO_LOGIN, OPENPORTAL, app_config, within};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command},
};

#[tokio::test]
async fn kubectl_reads_as_alice_and_as_nobody_else() {
    let stage = Stage::new().await;
    stage.log_in().await;

    let (code, pods, errors) = stage
        .kubectl(&["get", "pods", "-n", "team-a", "-o", "name"])
        .await;
    assert_eq!(
        (code, pods.as_str()),
        (0, "pod/shell\npod/web-0\npod/web-1\n"),
        "{errors}"
    );

    let (code, who, errors) = stage.kubectl(&["auth", "whoami", "-o", "json"]).await;
    assert_eq!(code, 0, "{errors}");
    let who: Value = serde_json::from_str(&who).unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "alice@example.com");

    let (code, _, errors) = stage.kubectl(&["get", "pods", "-n", "team-b"]).await;
    assert_eq!(code, 1);
    assert!(
        errors.contains("User \"alice@example.com\" cannot list resource"),
        "{errors}"
    );

    let (code, pods, errors) = stage
        .kubectl(&["get", "pods", "-n", "team-a", "--as=bob@example.com"])
        .await;
    assert_eq!((code, pods.as_str()), (1, ""));
    assert!(errors.contains("impersonation is not offered here"), "{errors}");
}

#[tokio::test]
async fn kubectl_works_where_alice_may_edit() {
    let stage = Stage::new().await;
    stage.log_in().await;
    let (_watching, mut seen) = stage.lines(&["get", "pods", "-n", "team-a-dev", "-w", "-o", "name"]);
    let manifest = stage.folder.path().join("pod.json");
    fs::write(&manifest, POD.replace("NODE", NODE)).unwrap();

    let (code, _, errors) = stage
        .kubectl(&["create", "-n", "team-a-dev", "-f", manifest.to_str().unwrap()])
        .await;
    assert_eq!(code, 0, "{errors}");
    until(&mut seen, "pod/by-kubectl").await;
    fixtures::running(&stage.cluster.client().await.unwrap(), "team-a-dev", "by-kubectl")
        .await
        .unwrap();

    for websocket in ["true", "false"] {
        let mut exec = stage.command(&["exec", "-i", "-n", "team-a-dev", "by-kubectl", "--"]);
        exec.args(["sh", "-c", "echo $HOSTNAME; cat; exit 3"])
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket);
        let (code, text, errors) = run(exec, "typed\n").await;
        assert_eq!(
            (code, text.as_str()),
            (3, "by-kubectl\ntyped\n"),
            "{websocket}: {errors}"
        );
    }

    stage.copies_a_file().await;
    for websocket in ["true", "false"] {
        stage.forwards_a_port(websocket).await;
    }
    let (_following, mut log) = stage.lines(&["logs", "-f", "-n", "team-a-dev", "by-kubectl"]);
    until(&mut log, "started").await;

    let (code, _, errors) = stage
        .kubectl(&["delete", "pod", "-n", "team-a-dev", "by-kubectl", "--timeout=30s"])
        .await;
    assert_eq!(code, 0, "{errors}");
    let by_alice = stage.cluster.audit_event(|event| {
        event["verb"] == "create"
            && event["objectRef"]["subresource"] == "exec"
            && event["objectRef"]["name"] == "by-kubectl"
            && event["user"]["username"] == "alice@example.com"
    });
    by_alice.await.unwrap();
}

#[tokio::test]
async fn after_the_logout_the_next_request_says_how_to_log_in_again() {
    let stage = Stage::new().await;
    stage.log_in().await;
    let arguments = ["get", "pods", "-n", "team-a"];
    let (code, _, errors) = stage.kubectl(&arguments).await;
    assert_eq!(code, 0, "{errors}");

    let logout = Request::delete("/api/cluster-auth/tokens");
    let (status, answer) = stage.alice.send(logout, &Value::Null).await.unwrap();
    assert_eq!(
        (status, &answer["message"]),
        (200, &"Tokens deleted successfully".into())
    );

    let path = format!("/api/kubernetes/clusters/{OPENPORTAL}/proxy/api/v1/namespaces/team-a/pods");
    let (status, refusal) = stage.alice.get(&path).await.unwrap();
    assert_eq!(
        (status, &refusal["message"]),
        (401, &NO_LOGIN.into()),
        "{refusal}"
    );
    let (code, _, errors) = stage.kubectl(&arguments).await;
    assert_eq!(code, 1);
    assert!(errors.contains(NO_LOGIN), "{errors}");
}

/// The program with seed 004's configuration, https, and alice's token of issuer A as a caller.
struct Stage {
    cluster: &'static TestCluster,
    folder: TempDir,
    alice: Caller,
    _served: Served,
}

impl Stage {
    async fn new() -> Self {
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
        let file = folder.path().join("app-config.yaml");
        fs::write(&file, config.to_string()).unwrap();
        let key = KeyRing::random_key_base64().unwrap();
        let serve = Serve {
            program: Path::new(env!("CARGO_BIN_EXE_kube-authn-program")),
            config: &file,
            environment: vec![
                ("FOLDER", folder.path().display().to_string()),
                ("CA_DATA", STANDARD.encode(cluster.ca_pem())),
                ("K8S_SA_TOKEN", "unused".to_owned()),
                ("KUBE_AUTHN_KEY", key.expose_secret().to_owned()),
            ],
            drain: Duration::from_secs(1),
            cluster: Some(cluster),
        };
        let served = serve.start().await.unwrap();
        let token = cluster.issuer_a().id_token("alice", "portal").await.unwrap();
        let alice = Caller::new(&served, cluster.ca_pem(), Secret::new(token)).unwrap();
        Self {
            cluster,
            folder,
            alice,
            _served: served,
        }
    }

    /// Posts alice's tokens of issuer B.
    async fn log_in(&self) {
        let tokens = self
            .cluster
            .issuer_b()
            .sign_in("alice", "kubernetes")
            .await
            .unwrap();
        let request = Request::post("/api/cluster-auth/tokens");
        let (status, answer) = self.alice.send(request, &tokens).await.unwrap();
        assert_eq!(
            (status, &answer["user"]),
            (200, &"user:default/alice".into()),
            "{answer}"
        );
    }

    /// The cluster's kubectl with a kubeconfig that knows the proxy and the caller's token alone.
    fn command(&self, arguments: &[&str]) -> Command {
        let kubeconfig = self.folder.path().join("kubeconfig");
        self.alice.write_kubeconfig(&kubeconfig, OPENPORTAL).unwrap();
        let mut command = self.cluster.kubectl();
        command
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", self.folder.path())
            .args(arguments);
        command
    }

    async fn kubectl(&self, arguments: &[&str]) -> (i32, String, String) {
        run(self.command(arguments), "").await
    }

    /// A kubectl that keeps running, and what it prints.
    fn lines(&self, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut command = self.command(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }

    async fn copies_a_file(&self) {
        let (from, to) = (self.folder.path().join("from"), self.folder.path().join("to"));
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(&from, &content).unwrap();
        let target = format!("team-a-dev/by-kubectl:{}", to.display());
        let (code, _, errors) = self.kubectl(&["cp", from.to_str().unwrap(), &target]).await;
        assert_eq!(code, 0, "{errors}");
        assert!(fs::read(&to).unwrap() == content, "the copy differs");
    }

    async fn forwards_a_port(&self, websocket: &str) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = format!(":{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"from the pod").await.unwrap();
            }
        });
        let mut command = self.command(&["port-forward", "-n", "team-a-dev", "by-kubectl"]);
        command
            .args(["--address=127.0.0.1", &target])
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // `Forwarding from 127.0.0.1:40001 -> 8080`
        let line = until(&mut lines, " -> ").await;
        let (from, _) = line.split_once(" -> ").unwrap();
        let (_, port) = from.rsplit_once(':').unwrap();
        let mut text = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap()))
            .await
            .unwrap();
        within(LIMIT, "the pod's answer", stream.read_to_string(&mut text))
            .await
            .unwrap();
        assert_eq!(text, "from the pod", "websocket: {websocket}");
    }
}

async fn until(lines: &mut Lines<BufReader<ChildStdout>>, text: &str) -> String {
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
async fn run(mut command: Command, input: &str) -> (i32, String, String) {
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

const POD: &str = r#"{
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": { "name": "by-kubectl" },
    "spec": { "nodeName": "NODE", "containers": [{ "name": "main", "image": "echo", "stdin": true }] }
}"#;

/// Twenty times what anything here takes on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);
