//! Seed 000 as it was deployed: `examples/in_cluster.rs` in a pod's surroundings, with a token that the kubelet rotates.
//!
//! The service account's folder is mounted where Kubernetes mounts it, in a mount namespace of the program's own. That
//! needs Linux, and root or user namespaces; without them the tests fail.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use kube_authn_e2e::{TestCluster, fixtures};
use serde_json::{Value, json};
use support::{
    pod::{Mount, service_account},
    *,
};
use tokio::{process::Command, sync::OnceCell};

/// The kubelet replaces the token, and nothing tells the service: it reads the file again after a minute.
#[tokio::test]
async fn a_rotated_token_is_taken_up_under_load_and_no_request_fails() {
    let cluster = cluster().await;
    let (first, second) = (token(cluster, None).await, token(cluster, None).await);
    let mount = Mount::new();
    mount.publish(&service_account(cluster, &first));
    let running = start(example_in_pod(cluster, &mount).await.args(["--watch", "64"]));
    used(cluster, &first).await;

    mount.publish(&service_account(cluster, &second));
    let (success, text) = running.await.unwrap();

    assert!(success && text.contains("calls, none failed"), "{text}");
    assert!(text.contains("team-a/web-0"), "{text}");
    used(cluster, &second).await;
}

/// A token dies with the object it is bound to, its pod above all. The API server refuses it, and that is noticed.
#[tokio::test]
async fn a_token_that_dies_early_is_replaced_by_the_new_one_in_the_file_and_no_request_fails() {
    let cluster = cluster().await;
    let admin = cluster.client().await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(admin, BACKSTAGE);
    let bound = serde_json::from_value(json!({ "metadata": { "name": "lives-shorter" } })).unwrap();
    let bound = secrets.create(&PostParams::default(), &bound).await.unwrap();
    let first = token(cluster, Some(&bound)).await;
    let second = token(cluster, None).await;
    let mount = Mount::new();
    mount.publish(&service_account(cluster, &first));
    let running = start(example_in_pod(cluster, &mount).await.args(["--watch", "20"]));
    used(cluster, &first).await;

    mount.publish(&service_account(cluster, &second));
    // From here on it takes the API server ten seconds to forget that it knew the token.
    secrets
        .delete("lives-shorter", &DeleteParams::default())
        .await
        .unwrap();
    let (success, text) = running.await.unwrap();

    assert!(success && text.contains("calls, none failed"), "{text}");
    used(cluster, &second).await;
    assert_eq!(
        status_of_list(&cluster.client_with_token(&first).await.unwrap()).await,
        401
    );
}

#[tokio::test]
async fn a_token_file_that_ends_with_a_line_break_of_any_kind_works() {
    let cluster = cluster().await;
    for line_break in ["\n", "\r\n"] {
        let token = token(cluster, None).await;
        let mount = Mount::new();
        mount.publish(&service_account(cluster, &format!("{token}{line_break}")));

        let (success, text) = start(&mut example_in_pod(cluster, &mount).await).await.unwrap();

        assert!(
            success && text.contains("1 calls, none failed"),
            "{line_break:?}: {text}"
        );
        used(cluster, &token).await;
    }
}

#[tokio::test]
async fn outside_of_a_cluster_a_token_from_a_secret_does() {
    let cluster = cluster().await;
    let secrets: Api<Secret> = Api::namespaced(cluster.client().await.unwrap(), BACKSTAGE);
    let token = eventually(PATIENCE, "the Secret's token", async || {
        let secret = secrets.get("backstage-sa-token").await.unwrap();
        secret.data.and_then(|mut data| data.remove("token"))
    });
    let token = String::from_utf8(token.await.0).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_in_cluster"));
    program
        .arg(example("app-config.out-of-cluster.yaml"))
        .env("K8S_URL", cluster.api_server_url())
        .env("K8S_CA_DATA", STANDARD.encode(cluster.ca_pem()))
        // As `base64 -d` in a shell script leaves it.
        .env("K8S_SA_TOKEN", format!("{token}\n"));

    let (success, text) = start(&mut program).await.unwrap();

    assert!(success && text.contains("team-a/web-0"), "{text}");
    let identity = cluster.audit_event(|event| {
        event["user"]["username"] == "system:serviceaccount:backstage:backstage"
            && event["user"]["extra"].get(CREDENTIAL_ID).is_none()
    });
    identity.await.unwrap();
}

#[tokio::test]
async fn outside_of_a_pod_the_missing_token_is_named_and_nothing_is_sent() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_in_cluster"));
    program.arg(example("app-config.in-cluster.yaml")).env_clear();

    let (success, text) = start(&mut program).await.unwrap();

    assert!(!success);
    let missing =
        "ENOENT: no such file or directory, open '/var/run/secrets/kubernetes.io/serviceaccount/token'";
    assert!(text.contains(missing) && !text.contains("panicked"), "{text}");
}

#[tokio::test]
async fn the_manifest_allows_what_the_example_does_and_nothing_else() {
    let cluster = cluster().await;
    let token = token(cluster, None).await;
    let client = cluster.client_with_token(&token).await.unwrap();

    let pods = status_of_list(&client).await;
    let secrets = Api::<Secret>::all(client.clone())
        .list(&ListParams::default())
        .await;
    let create = Api::<Pod>::namespaced(client.clone(), BACKSTAGE)
        .create(&PostParams::default(), &fixtures::pod("by-backstage").unwrap())
        .await;
    let one = Api::<Pod>::namespaced(client, "team-a").get("web-0").await;

    assert_eq!(
        (pods, code(secrets), code(create), code(one)),
        (200, 403, 403, 403)
    );
}

/// Shared by the tests of this file, with the example's manifest applied.
async fn cluster() -> &'static TestCluster {
    static APPLIED: OnceCell<()> = OnceCell::const_new();
    let cluster = TestCluster::shared().await.unwrap();
    let apply = || async {
        let manifest = std::fs::read(example("manifests/in_cluster.yaml")).unwrap();
        cluster.apply(manifest).await.unwrap();
    };
    APPLIED.get_or_init(apply).await;
    cluster
}

/// The example with seed 000's configuration, as it finds itself in a pod.
async fn example_in_pod(cluster: &TestCluster, mount: &Mount) -> Command {
    let url = cluster.api_server_url();
    let (host, port) = url.trim_start_matches("https://").split_once(':').unwrap();
    let unshare = pod::unshare(mount).await;
    let mut command = Command::new(&unshare[0]);
    command
        .args(&unshare[1..])
        .arg(env!("CARGO_BIN_EXE_in_cluster"))
        .arg(example("app-config.in-cluster.yaml"))
        .env("KUBERNETES_SERVICE_HOST", host)
        .env("KUBERNETES_SERVICE_PORT", port);
    command
}

/// Starts at once; success, and everything it said.
fn start(command: &mut Command) -> tokio::task::JoinHandle<(bool, String)> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    tokio::spawn(async move {
        match child {
            Ok(child) => {
                let output = within(LIMIT, "a program", child.wait_with_output())
                    .await
                    .unwrap();
                let text = [output.stdout, output.stderr].concat();
                (output.status.success(), String::from_utf8(text).unwrap())
            }
            Err(error) => (false, error.to_string()),
        }
    })
}

async fn token(cluster: &TestCluster, bound_to: Option<&Secret>) -> String {
    pod::token(cluster, BACKSTAGE, bound_to).await
}

/// Waits until the audit log names this very token for a list that succeeded.
async fn used(cluster: &TestCluster, token: &str) {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    let id = json!([format!("JTI={}", claims["jti"].as_str().unwrap())]);
    let event = cluster.audit_event(|event| {
        event["user"]["extra"][CREDENTIAL_ID] == id
            && event["verb"] == "list"
            && event["responseStatus"]["code"] == 200
    });
    event.await.unwrap();
}

async fn status_of_list(client: &Client) -> u16 {
    code(Api::<Pod>::all(client.clone()).list(&ListParams::default()).await)
}

fn code<T>(answer: kube::Result<T>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("no answer: {error}"),
    }
}

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(file)
}

/// Namespace and name of the example's service account.
const BACKSTAGE: &str = "backstage";
/// <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens>
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
const PATIENCE: Duration = Duration::from_secs(20);
const LIMIT: Duration = Duration::from_secs(120);
