//! `kube-authn serve` between kubectl and a real API server: people work as themselves, over https.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::{fs, process::Stdio};

use http::Request;
use kube_authn_e2e::{NODE, fixtures};
use serde_json::Value;
use support::{
    NO_LOGIN, OPENPORTAL,
    stage::{LIMIT, Stage, run, until},
    within,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
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

    copies_a_file(&stage).await;
    for websocket in ["true", "false"] {
        forwards_a_port(&stage, websocket).await;
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

async fn copies_a_file(stage: &Stage) {
    let (from, to) = (stage.folder.path().join("from"), stage.folder.path().join("to"));
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&from, &content).unwrap();
    let target = format!("team-a-dev/by-kubectl:{}", to.display());
    let (code, _, errors) = stage.kubectl(&["cp", from.to_str().unwrap(), &target]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(fs::read(&to).unwrap() == content, "the copy differs");
}

async fn forwards_a_port(stage: &Stage, websocket: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!(":{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"from the pod").await.unwrap();
        }
    });
    let mut command = stage.command(&["port-forward", "-n", "team-a-dev", "by-kubectl"]);
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

const POD: &str = r#"{
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": { "name": "by-kubectl" },
    "spec": { "nodeName": "NODE", "containers": [{ "name": "main", "image": "echo", "stdin": true }] }
}"#;
