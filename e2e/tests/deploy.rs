//! `deploy/kubernetes*` on a real API server: every object is accepted, and the service account may do nothing. And the
//! kubeconfig that users are told to write.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

use std::{path::Path, process::Stdio};

use kube_authn_e2e::{TestCluster, fixtures};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

const NAMESPACE: &str = "kube-authn";
const SERVICE_ACCOUNT: &str = "--as=system:serviceaccount:kube-authn:kube-authn";

#[tokio::test]
async fn manifests_are_accepted_and_so_is_the_pod_that_they_describe() {
    let cluster = applied().await;

    let objects = kubectl_json(
        cluster,
        &["get", "-n", NAMESPACE, "-o", "json", "deploy,svc,pvc,netpol,sa"],
    )
    .await;

    let mut kinds: Vec<_> = objects["items"]
        .as_array()
        .unwrap()
        .iter()
        // Every namespace has one.
        .filter(|object| object["metadata"]["name"] != "default")
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            "Deployment",
            "NetworkPolicy",
            "PersistentVolumeClaim",
            "Service",
            "ServiceAccount"
        ]
    );
    let deployment = kubectl_json(
        cluster,
        &["get", "-n", NAMESPACE, "-o", "json", "deploy/kube-authn"],
    )
    .await;
    let pod = pod(&deployment);
    let (accepted, said) = dry_run(cluster, &pod).await;
    assert!(accepted, "{said}");
    let mut root = pod.clone();
    root["spec"]["securityContext"]["runAsNonRoot"] = false.into();
    let (accepted, said) = dry_run(cluster, &root).await;
    assert!(
        !accepted && said.contains("PodSecurity"),
        "the namespace lets anything in: {said}"
    );
}

#[tokio::test]
async fn pod_finds_its_configuration_and_has_time_to_stop() {
    let cluster = applied().await;

    let deployment = kubectl_json(
        cluster,
        &["get", "-n", NAMESPACE, "-o", "json", "deploy/kube-authn"],
    )
    .await;

    let spec = &deployment["spec"]["template"]["spec"];
    let arguments = spec["containers"][0]["args"].as_array().unwrap();
    let after = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag).unwrap();
        arguments[at + 1].as_str().unwrap()
    };
    let config = spec["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|volume| volume["configMap"]["name"].as_str())
        .unwrap();
    let config = kubectl_json(
        cluster,
        &["get", "-n", NAMESPACE, "-o", "json", "configmap", config],
    )
    .await;
    let (folder, file) = after("--config").rsplit_once('/').unwrap();
    assert!(config["data"][file].as_str().unwrap().contains("kubeAuthn:"));
    let mounted = |path: &str| {
        let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
        mounts.iter().any(|mount| mount["mountPath"] == path)
    };
    assert!(mounted(folder) && mounted("/var/lib/kube-authn"));
    let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap();
    // A refresh that is under way may take as long.
    assert!(grace >= after("--drain").parse::<u64>().unwrap() + 45);
    assert_eq!(
        (
            &deployment["spec"]["replicas"],
            &deployment["spec"]["strategy"]["type"]
        ),
        (&json!(1), &json!("Recreate"))
    );
}

#[tokio::test]
async fn service_account_may_do_nothing_but_ask_what_it_may_do() {
    let cluster = applied().await;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": { "namespace": NAMESPACE },
    });

    let (created, review) = create(
        cluster,
        &review,
        &[SERVICE_ACCOUNT, "--validate=false", "-o", "json"],
    )
    .await;

    assert!(created, "{review}");
    let review: Value = serde_json::from_str(&review).unwrap();
    assert_eq!(review["status"]["incomplete"], json!(false));
    let rules = |name: &str| review["status"][name].as_array().unwrap().clone();
    let about_oneself = [
        "selfsubjectreviews",
        "selfsubjectaccessreviews",
        "selfsubjectrulesreviews",
    ];
    for rule in rules("resourceRules") {
        let resources = rule["resources"].as_array().unwrap();
        assert!(
            rule["verbs"] == json!(["create"])
                && resources
                    .iter()
                    .all(|resource| about_oneself.contains(&resource.as_str().unwrap())),
            "{rule}"
        );
    }
    let public = [
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/readyz",
        "/version",
        "/openapi",
        "/openid",
        "/.well-known",
    ];
    for rule in rules("nonResourceRules") {
        let urls = rule["nonResourceURLs"].as_array().unwrap();
        let is_public = |url: &Value| public.iter().any(|path| url.as_str().unwrap().starts_with(path));
        assert!(
            rule["verbs"] == json!(["get"]) && urls.iter().all(is_public),
            "{rule}"
        );
    }
    for what in [
        &["get", "secrets"][..],
        &["list", "pods"],
        &["create", "serviceaccounts/token"],
        &["impersonate", "users"],
    ] {
        let arguments = [&["auth", "can-i"], what, &["-n", NAMESPACE, SERVICE_ACCOUNT]].concat();
        let (_, answer) = kubectl(cluster, &arguments, None).await;
        assert!(answer.starts_with("no"), "{what:?}: {answer}");
    }
}

#[tokio::test]
async fn pod_gets_no_token_of_the_service_account() {
    let cluster = applied().await;

    let account = kubectl_json(cluster, &["get", "-n", NAMESPACE, "-o", "json", "sa/kube-authn"]).await;
    let deployment = kubectl_json(
        cluster,
        &["get", "-n", NAMESPACE, "-o", "json", "deploy/kube-authn"],
    )
    .await;
    let (accepted, pod) = create(cluster, &pod(&deployment), &["--dry-run=server", "-o", "json"]).await;

    assert_eq!(account["automountServiceAccountToken"], json!(false));
    assert!(accepted, "{pod}");
    assert!(!pod.contains("serviceAccountToken"), "{pod}");
}

#[tokio::test]
async fn kubeconfig_of_the_documentation_finds_the_token_and_the_ca_beside_it() {
    let cluster = TestCluster::shared().await.unwrap();
    let docs = include_str!("../../docs/http.md");
    let kubeconfig = docs
        .split("```yaml\n")
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains("kind: Config"))
        .unwrap();
    let portal = "https://kube-authn.example.com/api/kubernetes/clusters/openportal/proxy";
    assert!(kubeconfig.contains(portal));
    let folder = tempfile::tempdir().unwrap();
    let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
    let (made, token) = kubectl(cluster, &["create", "token", name, "-n", namespace], None).await;
    assert!(made, "{token}");
    for (file, text) in [
        (
            "kubeconfig",
            &*kubeconfig.replace(portal, &cluster.api_server_url()),
        ),
        ("kube-authn-ca.pem", cluster.ca_pem()),
        ("portal-token", &token),
    ] {
        std::fs::write(folder.path().join(file), text).unwrap();
    }

    let kubeconfig = folder.path().join("kubeconfig");
    let arguments = ["--kubeconfig", kubeconfig.to_str().unwrap(), "auth", "whoami"];
    let (known, who) = kubectl(cluster, &arguments, None).await;

    assert!(
        known && who.contains(&format!("system:serviceaccount:{namespace}:{name}")),
        "{who}"
    );
}

#[tokio::test]
async fn manifests_for_replicas_are_accepted_and_need_no_volume_of_their_own() {
    let cluster = applied().await;

    let list = apply(
        cluster,
        "kubernetes-replicas",
        &["--dry-run=server", "-o", "json"],
    )
    .await;

    let list: Value = serde_json::from_str(&list).unwrap();
    let of_kind = |kind| {
        let items = list["items"].as_array().unwrap();
        items.iter().find(move |object| object["kind"] == kind)
    };
    assert!(of_kind("PersistentVolumeClaim").is_none());
    assert!(of_kind("PodDisruptionBudget").is_some());
    let deployment = of_kind("Deployment").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["spec"]["strategy"]["type"], "RollingUpdate");
    let volumes = &deployment["spec"]["template"]["spec"]["volumes"];
    assert!(
        !volumes.to_string().contains("persistentVolumeClaim"),
        "{volumes}"
    );
    let (accepted, said) = dry_run(cluster, &pod(deployment)).await;
    assert!(accepted, "{said}");
}

/// The cluster, everything for one replica applied.
async fn applied() -> &'static TestCluster {
    let cluster = TestCluster::shared().await.unwrap();
    apply(cluster, "kubernetes", &[]).await;
    cluster
}

/// Applies what a folder of `deploy` has; nobody may have anything to say of it.
async fn apply(cluster: &TestCluster, folder: &str, flags: &[&str]) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(folder);
    let folder = folder.to_str().unwrap();
    let arguments = ["apply", "--server-side", "--validate=strict", "-k", folder];
    let (accepted, said) = kubectl(cluster, &[&arguments, flags].concat(), None).await;
    assert!(accepted && !said.contains("Warning"), "{said}");
    said
}

/// The pod that the Deployment's controller would make.
fn pod(deployment: &Value) -> Value {
    let template = &deployment["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    metadata["name"] = "kube-authn-0".into();
    metadata["namespace"] = NAMESPACE.into();
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] })
}

async fn dry_run(cluster: &TestCluster, object: &Value) -> (bool, String) {
    create(cluster, object, &["--dry-run=server"]).await
}

async fn create(cluster: &TestCluster, object: &Value, flags: &[&str]) -> (bool, String) {
    kubectl(cluster, &[&["create", "-f", "-"], flags].concat(), Some(object)).await
}

async fn kubectl_json(cluster: &TestCluster, arguments: &[&str]) -> Value {
    let (success, text) = kubectl(cluster, arguments, None).await;
    assert!(success, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Whether it succeeded, and what it said.
async fn kubectl(cluster: &TestCluster, arguments: &[&str], input: Option<&Value>) -> (bool, String) {
    let mut command = cluster.kubectl();
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    if let Some(object) = input {
        stdin.write_all(object.to_string().as_bytes()).await.unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout) + &text(output.stderr),
    )
}
