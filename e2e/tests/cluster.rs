//! The test environment itself: what the other tests take for granted.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use kube_authn_e2e::{Authority, Browser, Http, Options, TestCluster, fixtures};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn alice_lists_pods_where_rbac_lets_her_and_bob_nowhere() {
    let cluster = TestCluster::shared().await.unwrap();
    let alice = user(cluster, "alice").await;
    let bob = user(cluster, "bob").await;

    let answers = [
        status_of_list(&alice, "team-a").await,
        status_of_list(&alice, "default").await,
        status_of_list(&bob, "team-a").await,
    ];

    assert_eq!(answers, [200, 403, 403]);
    for (name, code) in [
        ("alice@example.com", 200),
        ("alice@example.com", 403),
        ("bob@example.com", 403),
    ] {
        let event = cluster.audit_event(|event| {
            event["user"]["username"] == name
                && event["responseStatus"]["code"] == code
                && event["verb"] == "list"
        });
        event
            .await
            .unwrap_or_else(|error| panic!("{name} {code}: {error}"));
    }
}

#[tokio::test]
async fn alice_may_create_in_team_a_dev_only() {
    let cluster = TestCluster::shared().await.unwrap();
    let alice = user(cluster, "alice").await;
    let pod = fixtures::pod("by-alice").unwrap();

    let dev = Api::<Pod>::namespaced(alice.clone(), "team-a-dev")
        .create(&PostParams::default(), &pod)
        .await;
    let prod = Api::<Pod>::namespaced(alice, "team-a")
        .create(&PostParams::default(), &pod)
        .await;

    assert_eq!((code(dev), code(prod)), (200, 403));
}

#[tokio::test]
async fn a_portal_caller_is_known_by_its_login_name() {
    let cluster = TestCluster::shared().await.unwrap();
    let token = cluster.issuer_a().id_token("carol", "portal").await.unwrap();
    let carol = cluster.client_with_token(&token).await.unwrap();

    let answer = status_of_list(&carol, "default").await;

    assert_eq!(answer, 403);
    let event = cluster
        .audit_event(|event| event["user"]["username"] == "portal:carol")
        .await
        .unwrap();
    assert_eq!(event["objectRef"]["namespace"], "default");
}

#[tokio::test]
async fn a_token_of_the_wrong_issuer_audience_or_person_is_refused() {
    let cluster = TestCluster::shared().await.unwrap();
    let foreign_audience = cluster.issuer_b().id_token("alice", "portal").await.unwrap();
    let foreign_issuer = cluster.issuer_a().id_token("alice", "kubernetes").await.unwrap();
    let unverified_email = cluster
        .issuer_b()
        .id_token("mallory", "kubernetes")
        .await
        .unwrap();

    for token in [foreign_audience, foreign_issuer, unverified_email] {
        let client = cluster.client_with_token(&token).await.unwrap();
        assert_eq!(status_of_list(&client, "team-a").await, 401);
    }
}

#[tokio::test]
async fn a_token_of_the_short_client_is_refused_after_its_end() {
    let cluster = TestCluster::shared().await.unwrap();
    let token = async || {
        cluster
            .issuer_b()
            .id_token("alice", "kubernetes-short")
            .await
            .unwrap()
    };
    let (now, later) = (token().await, token().await);
    let now = status_of_list(&cluster.client_with_token(&now).await.unwrap(), "team-a").await;

    tokio::time::sleep(Options::default().short_id_token_lifetime + Duration::from_secs(1)).await;
    // Not the same token twice: the API server takes a token it has verified for ten more seconds without a look.
    let later = status_of_list(&cluster.client_with_token(&later).await.unwrap(), "team-a").await;

    assert_eq!((now, later), (200, 401));
}

#[tokio::test]
async fn a_refresh_token_works_once() {
    let cluster = TestCluster::shared().await.unwrap();
    let first = cluster.issuer_b().sign_in("carol", "kubernetes").await.unwrap();

    let (status, second) = refresh(cluster, &first).await;
    let (again, refusal) = refresh(cluster, &first).await;

    assert_eq!(status, 200);
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    assert!(second["id_token"].is_string());
    assert_eq!((again, &refusal["error"]), (400, &Value::from("invalid_grant")));
}

#[tokio::test]
async fn a_device_is_approved_without_a_browser() {
    let cluster = TestCluster::shared().await.unwrap();
    let issuer = cluster.issuer_b().url();
    let scope = ("scope", "openid email");
    let (_, device) = post(
        cluster,
        &format!("{issuer}/device/auth"),
        &[("client_id", "kubernetes"), scope],
    )
    .await;
    let page = device["verification_uri_complete"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();

    Browser::new(cluster.ca_pem())
        .unwrap()
        .approve_device(&page, "alice")
        .await
        .unwrap();

    let grant = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
        ("client_id", "kubernetes"),
        ("device_code", device["device_code"].as_str().unwrap()),
    ];
    let (status, tokens) = post(cluster, &format!("{issuer}/token"), &grant).await;
    let alice = cluster
        .client_with_token(tokens["id_token"].as_str().unwrap())
        .await
        .unwrap();
    assert_eq!((status, status_of_list(&alice, "team-a").await), (200, 200));
}

#[tokio::test]
async fn service_account_tokens_of_both_kinds_view_everything_and_change_nothing() {
    let cluster = TestCluster::shared().await.unwrap();
    let admin = cluster.client().await.unwrap();
    let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
    let secret = fixtures::secret_token(&admin, namespace, name).await.unwrap();
    let bound = fixtures::bound_token(&admin, namespace, name, Duration::from_secs(600))
        .await
        .unwrap();

    for token in [secret, bound] {
        let portal = cluster.client_with_token(&token).await.unwrap();
        assert_eq!(status_of_list(&portal, "team-a").await, 200);
        assert_eq!(status_of_list(&portal, "team-b").await, 200);
        let pod = fixtures::pod("by-portal").unwrap();
        let created = Api::<Pod>::namespaced(portal, "team-b")
            .create(&PostParams::default(), &pod)
            .await;
        assert_eq!(code(created), 403);
    }
}

#[tokio::test]
async fn kubectl_reads_logs() {
    let cluster = TestCluster::shared().await.unwrap();

    let all = kubectl(cluster, &["logs", "-n", "team-a", "web-1"], "").await;
    let last = kubectl(
        cluster,
        &["logs", "-n", "team-a", "web-1", "--tail=1", "--timestamps"],
        "",
    )
    .await;

    assert_eq!(all, (Some(0), "started\n".into()));
    assert!(last.1.ends_with("Z started\n"), "{last:?}");
}

#[tokio::test]
async fn kubectl_executes_over_websocket_and_spdy() {
    let cluster = TestCluster::shared().await.unwrap();
    for websocket in ["true", "false"] {
        let mut command = cluster.kubectl();
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket);
        command.args([
            "exec",
            "-i",
            "-n",
            "team-a",
            "web-0",
            "--",
            "sh",
            "-c",
            "echo $HOSTNAME; cat; exit 3",
        ]);

        let answer = run(command, "typed\n").await;

        assert_eq!(
            answer,
            (Some(3), "web-0\ntyped\n".into()),
            "websocket: {websocket}"
        );
    }
}

#[tokio::test]
async fn kubectl_attaches_to_a_container() {
    let cluster = TestCluster::shared().await.unwrap();
    let mut command = cluster.kubectl();
    command.args(["attach", "-i", "-q", "-n", "team-a", "shell"]);
    let mut kubectl = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answer = [0; 6];

    let (mut input, mut output) = (kubectl.stdin.take().unwrap(), kubectl.stdout.take().unwrap());
    input.write_all(b"hello\n").await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), output.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();

    assert_eq!(&answer, b"hello\n");
}

#[tokio::test]
async fn kubectl_forwards_a_port_over_websocket_and_spdy() {
    let cluster = TestCluster::shared().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"from the pod").await.unwrap();
        }
    });
    for websocket in ["true", "false"] {
        let mut command = cluster.kubectl();
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket);
        command.args([
            "port-forward",
            "-n",
            "team-a",
            "web-0",
            "--address=127.0.0.1",
            &format!(":{target}"),
        ]);
        let mut kubectl = command.stdout(Stdio::piped()).spawn().unwrap();

        let port = forwarded_port(kubectl.stdout.as_mut().unwrap()).await;
        let mut text = String::new();
        TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();

        assert_eq!(text, "from the pod", "websocket: {websocket}");
    }
}

#[tokio::test]
async fn a_namespace_and_its_pods_can_be_deleted() {
    let cluster = TestCluster::shared().await.unwrap();
    let admin = cluster.client().await.unwrap();
    fixtures::namespace(&admin, "short-lived").await.unwrap();
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "short-lived");
    pods.create(&PostParams::default(), &fixtures::pod("web-0").unwrap())
        .await
        .unwrap();

    let (code, _) = kubectl(
        cluster,
        &["delete", "namespace", "short-lived", "--timeout=30s"],
        "",
    )
    .await;

    assert_eq!(code, Some(0));
    assert!(
        Api::<Namespace>::all(admin)
            .get_opt("short-lived")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn the_api_server_comes_back_with_its_data_and_a_new_certificate() {
    let mut cluster = TestCluster::start(Options::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client().await.unwrap(), "team-a");
    let map = serde_json::from_str(r#"{"metadata":{"name":"kept"}}"#).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();

    cluster.restart_api_server().await.unwrap();
    let kept = cluster.client().await.unwrap();
    let kept = Api::<ConfigMap>::namespaced(kept, "team-a")
        .get_opt("kept")
        .await
        .unwrap();

    cluster.replace_serving_certificate().await.unwrap();
    let after = status_of_list(&cluster.client().await.unwrap(), "team-a").await;

    cluster
        .replace_serving_certificate_by(&Authority::new("stranger").unwrap())
        .await
        .unwrap();
    let distrusted = Api::<Pod>::all(cluster.client().await.unwrap())
        .list(&ListParams::default())
        .await;

    cluster.stop_api_server().await.unwrap();
    let refused = TcpStream::connect(cluster.api_server_url().trim_start_matches("https://")).await;

    assert!(kept.is_some());
    assert_eq!(after, 200);
    assert!(
        !matches!(distrusted, Ok(_) | Err(kube::Error::Api(_))),
        "{distrusted:?}"
    );
    assert!(refused.is_err());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn issuers_stop_start_wait_and_change_their_keys() {
    let cluster = TestCluster::start(Options::default()).await.unwrap();
    let issuer = cluster.issuer_b();
    let kid = |token: &str| token.split('.').next().unwrap().to_owned();
    let old = issuer.id_token("alice", "kubernetes").await.unwrap();

    issuer.stop().await.unwrap();
    let down = issuer.sign_in("alice", "kubernetes").await;
    issuer.start().await.unwrap();
    issuer.rotate_keys(true).await.unwrap();
    let new = issuer.id_token("alice", "kubernetes").await.unwrap();
    issuer.set_delay(Duration::from_millis(300)).await.unwrap();
    let begin = Instant::now();
    issuer.sign_in("alice", "kubernetes").await.unwrap();

    assert!(down.is_err());
    assert_ne!(kid(&old), kid(&new));
    assert!(begin.elapsed() > Duration::from_millis(900));
    for token in [old, new] {
        let alice = cluster.client_with_token(&token).await.unwrap();
        assert_eq!(status_of_list(&alice, "team-a").await, 200);
    }
    cluster.stop().await.unwrap();
}

#[test]
fn everything_ends_when_the_process_is_killed() {
    for signal in ["-KILL", "-TERM", "-INT"] {
        let state = tempfile::tempdir().unwrap();
        let program = env!("CARGO_BIN_EXE_test-cluster");
        let mut process = Command::new(program)
            .args(["up", "--foreground", "--state"])
            .arg(state.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let folder = running_cluster(program, state.path());
        assert!(
            processes_naming(&folder).len() >= 10,
            "five programs, each with its supervisor"
        );

        Command::new("kill")
            .args([signal, &process.id().to_string()])
            .status()
            .unwrap();
        process.wait().unwrap();

        assert_gone(&folder);
    }
}

#[test]
fn everything_ends_when_a_test_panics() {
    let (sender, receiver) = std::sync::mpsc::channel();

    // The sender goes too: a start that fails must not leave us waiting.
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let cluster = TestCluster::start(Options::default()).await.unwrap();
            sender.send(cluster.path().to_owned()).unwrap();
            panic!("as a failing test does");
        })
    }));

    assert!(panicked.is_err());
    assert_gone(&receiver.recv().unwrap());
}

async fn user(cluster: &TestCluster, login: &str) -> Client {
    let token = cluster.issuer_b().id_token(login, "kubernetes").await.unwrap();
    cluster.client_with_token(&token).await.unwrap()
}

async fn status_of_list(client: &Client, namespace: &str) -> u16 {
    code(
        Api::<Pod>::namespaced(client.clone(), namespace)
            .list(&ListParams::default())
            .await,
    )
}

fn code<T>(answer: Result<T, kube::Error>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("no answer: {error}"),
    }
}

async fn refresh(cluster: &TestCluster, tokens: &Value) -> (u16, Value) {
    let form = [
        ("grant_type", "refresh_token"),
        ("client_id", "kubernetes"),
        ("refresh_token", tokens["refresh_token"].as_str().unwrap()),
    ];
    post(cluster, &format!("{}/token", cluster.issuer_b().url()), &form).await
}

async fn post(cluster: &TestCluster, url: &str, form: &[(&str, &str)]) -> (u16, Value) {
    let form = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish();
    let request = Request::post(url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Bytes::from(form))
        .unwrap();
    let answer = Http::new(cluster.ca_pem()).unwrap().send(request).await.unwrap();
    (
        answer.status().as_u16(),
        serde_json::from_slice(answer.body()).unwrap(),
    )
}

async fn kubectl(cluster: &TestCluster, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let mut command = cluster.kubectl();
    command.args(arguments);
    run(command, input).await
}

async fn run(mut command: tokio::process::Command, input: &str) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .await
        .unwrap();
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// `Forwarding from 127.0.0.1:40001 -> 8080`
async fn forwarded_port(output: &mut tokio::process::ChildStdout) -> u16 {
    let mut line = String::new();
    while !line.contains(" -> ") {
        let mut buffer = [0; 256];
        let read = tokio::time::timeout(Duration::from_secs(20), output.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_ne!(read, 0, "kubectl ended: {line}");
        line.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    line.split(" -> ")
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

fn running_cluster(program: &str, state: &Path) -> PathBuf {
    let begin = Instant::now();
    loop {
        let output = Command::new(program)
            .args(["info", "--json", "--state"])
            .arg(state)
            .output()
            .unwrap();
        if output.status.success() {
            let info: Value = serde_json::from_slice(&output.stdout).unwrap();
            return info["folder"].as_str().unwrap().into();
        }
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "the cluster doesn't start"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn processes_naming(folder: &Path) -> Vec<String> {
    let output = Command::new("ps")
        .args(["-axww", "-o", "pid=,command="])
        .output()
        .unwrap();
    let all = String::from_utf8_lossy(&output.stdout).into_owned();
    all.lines()
        .filter(|line| line.contains(folder.to_str().unwrap()))
        .map(str::to_owned)
        .collect()
}

fn assert_gone(folder: &Path) {
    let begin = Instant::now();
    loop {
        let left = processes_naming(folder);
        if left.is_empty() && !folder.exists() {
            return;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(15),
            "left after 15 s: {left:?}, {}",
            folder.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
