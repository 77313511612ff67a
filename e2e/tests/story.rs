//! `cargo xtask demo`, run as people run it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

use std::{path::Path, process::Stdio, time::Duration};

use bytes::Bytes;
use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube_authn_e2e::{Browser, Http, Issuer, TestCluster};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    sync::Mutex,
};
use url::Url;

#[tokio::test]
async fn every_step_of_the_story_holds() {
    let folder = tempfile::tempdir().unwrap();

    let (code, text) = run(demo(folder.path())).await;

    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains('✗'), "{text}");
    for shown in [
        "GET /api/cluster-auth/status: {\"authenticated\":true",
        "alice$ kubectl get pods -n team-a",
        "made-by-alice",
        "pods is forbidden: User \"bob@example.com\"",
        "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster.",
        "Cluster authentication expired. Please re-authenticate at Settings → Auth Providers.",
        "403 identity_mismatch",
        "impersonation is not offered here",
        "alice@example.com\" list",
        "bob@example.com\" list",
        "✓ her watch was cut",
        "All 14 steps hold",
    ] {
        assert!(text.contains(shown), "{shown} is not shown:\n{text}");
    }
    assert!(!text.contains("Serving at"), "nobody is there to try it:\n{text}");
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn service_stays_with_commands_that_work_until_it_is_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let mut told = Told::begin(demo(folder.path()).arg("--keep-serving"));

    let text = told.until("Ctrl-C ends everything").await;

    assert!(text.contains("All 14 steps hold"), "{text}");
    // How every token begins.
    assert!(!text.contains("eyJ"), "a token is shown:\n{text}");
    let commands: Vec<_> = text
        .lines()
        .filter(|line| line.contains("kubectl --kubeconfig") && !line.ends_with(" -w"))
        .collect();
    let expected = [
        (0, "alice@example.com"),
        (0, "web-0"),
        (0, "started"),
        (1, "User \"bob@example.com\" cannot list"),
    ];
    assert_eq!(commands.len(), expected.len(), "{text}");
    for (line, (code, shown)) in commands.into_iter().zip(expected) {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).env("HOME", folder.path());
        let (ended, printed) = run(shell).await;
        assert!(
            ended == Some(code) && printed.contains(shown),
            "{line}: {printed}"
        );
    }

    // What a shell's user has left there.
    std::fs::remove_dir_all(folder.path().join(".kube")).unwrap();
    let (code, text) = told.interrupted().await;
    assert_eq!(code, Some(0), "{text}");
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn interrupted_story_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut told = Told::begin(&mut demo(folder.path()));
    told.until("✓ the watch saw her pod").await;

    let (code, text) = told.interrupted().await;

    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Interrupted at step"), "{text}");
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn service_that_does_not_start_is_told_of_in_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = demo(folder.path());
    command.args(["--port", &port]);

    let (code, text) = run(command).await;

    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("another program listens there"), "{text}");
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn own_cluster_and_issuer_serve_as_well() {
    let cluster = TestCluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();

    let (code, text) = own_story(cluster, cluster.issuer_b(), folder.path()).await;

    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains('✗') && text.contains("steps hold"), "{text}");
    assert!(text.contains("alice@example.com, groups"), "{text}");
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn an_issuer_that_the_cluster_does_not_accept_ends_the_story_with_1() {
    let cluster = TestCluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();

    // The API server takes tokens of issuer A for the portal alone.
    let (code, text) = own_story(cluster, cluster.issuer_a(), folder.path()).await;

    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Unauthorized"), "{text}");
    let log = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("the service's log: "))
        .unwrap();
    assert!(
        std::fs::read_to_string(log).unwrap().contains("login_stored"),
        "{text}"
    );
}

#[tokio::test]
async fn interrupted_own_story_takes_its_namespace_along() {
    let cluster = TestCluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut told = Told::begin(&mut own_demo(cluster, cluster.issuer_b(), folder.path()).await);
    told.until("open this page in your browser").await;

    let (code, text) = told.interrupted().await;

    assert_eq!(code, Some(1), "{text}");
    let namespaces: Api<Namespace> = Api::all(cluster.client().await.unwrap());
    assert!(namespaces.get_opt(NAMESPACE).await.unwrap().is_none(), "{text}");
    nothing_is_left(folder.path());
}

#[tokio::test]
async fn a_kubeconfig_that_is_not_there_ends_the_story_with_one_line_and_1() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = demo(folder.path());
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
    let folder = tempfile::tempdir().unwrap();
    let mut command = demo(folder.path());
    command.args(["--kubeconfig", "no-such-file"]);

    let (code, text) = run(command).await;

    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--issuer"), "{text}");
}

/// The demo, with everything that it writes in this folder.
fn demo(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The cluster's folder goes when the last of its programs has ended.
fn nothing_is_left(folder: &Path) {
    let left: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A demo that runs, and what it has told so far.
struct Told {
    demo: Child,
    lines: Lines<BufReader<ChildStdout>>,
    text: String,
}

impl Told {
    fn begin(command: &mut Command) -> Self {
        let mut demo = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
        Self {
            demo,
            lines,
            text: String::new(),
        }
    }

    async fn line(&mut self) -> Option<String> {
        let line = self.lines.next_line().await.unwrap()?;
        self.text.push_str(&line);
        self.text.push('\n');
        Some(line)
    }

    /// Everything up to the line with this text.
    async fn until(&mut self, text: &str) -> String {
        let told = tokio::time::timeout(LIMIT, async {
            while let Some(line) = self.line().await {
                if line.contains(text) {
                    return true;
                }
            }
            false
        });
        assert!(told.await.unwrap(), "{text} is not told:\n{}", self.text);
        self.text.clone()
    }

    /// Ctrl-C, exit code, and all that was told.
    async fn interrupted(self) -> (Option<i32>, String) {
        let pid = Pid::from_raw(self.demo.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        self.end().await
    }

    async fn end(mut self) -> (Option<i32>, String) {
        let rest = async {
            while self.line().await.is_some() {}
            self.demo.wait().await.unwrap().code()
        };
        let code = tokio::time::timeout(LIMIT, rest).await.unwrap();
        (code, self.text)
    }
}

/// The story on the test cluster as if it were somebody's own, with a browser that signs alice in.
async fn own_story(cluster: &TestCluster, issuer: &Issuer, folder: &Path) -> (Option<i32>, String) {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut told = Told::begin(&mut own_demo(cluster, issuer, folder).await);
    while let Some(line) = told.line().await {
        if let Ok(page) = line.trim().parse::<Url>()
            && page.as_str().starts_with(issuer.url())
        {
            sign_in(cluster, &page).await;
        }
    }
    told.end().await
}

async fn own_demo(cluster: &TestCluster, issuer: &Issuer, folder: &Path) -> Command {
    let namespaces: Api<Namespace> = Api::all(cluster.client().await.unwrap());
    while namespaces.get_opt(NAMESPACE).await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut command = demo(folder);
    command
        .arg("--kubeconfig")
        .arg(cluster.admin_kubeconfig())
        .args(["--issuer", issuer.url(), "--client-id", "kubernetes"])
        .arg("--issuer-ca")
        .arg(cluster.ca_path());
    command
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

/// Of every demo on somebody's own cluster, which deletes it at its end.
const NAMESPACE: &str = "kube-authn-demo";
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A cluster starts, and its programs may have to be built first.
const LIMIT: Duration = Duration::from_secs(1200);
