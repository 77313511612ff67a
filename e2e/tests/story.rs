//! `cargo xtask demo`, run as people run it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

use std::{process::Stdio, time::Duration};

use bytes::Bytes;
use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube_authn_e2e::{Browser, Http, Issuer, TestCluster};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    sync::Mutex,
};
use url::Url;

#[tokio::test]
async fn every_step_of_the_story_holds() {
    let (code, text) = run(demo()).await;

    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains('✗'), "{text}");
    assert!(text.contains("steps hold"), "{text}");
    for shown in [
        "web-0, web-1",
        "made-by-alice",
        "pods is forbidden: User \"bob@example.com\"",
        "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster.",
        "Cluster authentication expired. Please re-authenticate at Settings → Auth Providers.",
        "alice@example.com\" list",
        "bob@example.com\" list",
    ] {
        assert!(text.contains(shown), "{shown} is not shown:\n{text}");
    }
}

#[tokio::test]
async fn own_cluster_and_issuer_serve_as_well() {
    let cluster = TestCluster::shared().await.unwrap();

    let (code, text) = own_story(cluster, cluster.issuer_b()).await;

    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains('✗') && text.contains("steps hold"), "{text}");
    assert!(text.contains("alice@example.com, groups"), "{text}");
}

#[tokio::test]
async fn an_issuer_that_the_cluster_does_not_accept_ends_the_story_with_1() {
    let cluster = TestCluster::shared().await.unwrap();

    // The API server takes tokens of issuer A for the portal alone.
    let (code, text) = own_story(cluster, cluster.issuer_a()).await;

    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Unauthorized"), "{text}");
}

#[tokio::test]
async fn a_kubeconfig_that_is_not_there_ends_the_story_with_one_line_and_1() {
    let mut command = demo();
    command.args(["--kubeconfig", "no-such-file", "--issuer", "https://127.0.0.1:1"]);

    let (code, text) = run(command).await;

    assert_eq!(code, Some(1), "{text}");
    let failed: Vec<_> = text.lines().filter(|line| line.contains('✗')).collect();
    assert!(
        matches!(failed[..], [line] if line.contains("no-such-file")),
        "{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

#[tokio::test]
async fn a_kubeconfig_without_an_issuer_is_wrong_usage() {
    let mut command = demo();
    command.args(["--kubeconfig", "no-such-file"]);

    let (code, text) = run(command).await;

    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--issuer"), "{text}");
}

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// The story on the test cluster as if it were somebody's own, with a browser that signs alice in.
async fn own_story(cluster: &TestCluster, issuer: &Issuer) -> (Option<i32>, String) {
    // All runs use the same namespace, and delete it at their end.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;
    let namespaces: Api<Namespace> = Api::all(cluster.client().await.unwrap());
    while namespaces.get_opt("kube-authn-demo").await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let mut command = demo();
    command
        .arg("--kubeconfig")
        .arg(cluster.admin_kubeconfig())
        .args([
            "--issuer",
            issuer.url(),
            "--client-id",
            "kubernetes",
            "--issuer-ca",
        ])
        .arg(cluster.ca_path())
        .stdout(Stdio::piped());
    let mut demo = command.spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut text = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        text.push_str(&line);
        text.push('\n');
        if let Ok(page) = line.trim().parse::<Url>()
            && page.as_str().starts_with(issuer.url())
        {
            sign_in(cluster, &page).await;
        }
    }
    (demo.wait().await.unwrap().code(), text)
}

/// What a person does in the browser: sign in, and let it open the page that it is sent to.
async fn sign_in(cluster: &TestCluster, url: &Url) {
    let callback = Browser::new(cluster.ca_pem())
        .unwrap()
        .follow_login(url, "alice")
        .await
        .unwrap();
    let request = Request::get(callback.as_str()).body(Bytes::new()).unwrap();
    let answer = Http::new(cluster.ca_pem()).unwrap().send(request).await.unwrap();
    assert_eq!(answer.status(), 200);
}

async fn run(mut command: Command) -> (Option<i32>, String) {
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .unwrap()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// A cluster starts, and its programs may have to be built first.
const LIMIT: Duration = Duration::from_secs(1200);
