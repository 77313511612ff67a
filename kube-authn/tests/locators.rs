//! Clusters that others list, as `kube-authn check` shows them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::Command,
    sync::mpsc::{Receiver, channel},
    thread,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// A catalog on loopback that gives one answer, whatever it is asked; it tells the path and the authorization of each call.
fn catalog(status: &'static str, answer: &Value) -> (String, Receiver<(String, Option<String>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, asked) = channel();
    let answer = answer.to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map(Result::unwrap);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let path = head[0].split(' ').nth(1).unwrap().to_owned();
            let authorization = head.iter().find_map(|line| line.strip_prefix("authorization: "));
            let _gone = tell.send((path, authorization.map(str::to_owned)));
            let length = answer.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{answer}"
            )
            .unwrap();
        }
    });
    (url, asked)
}

#[test]
fn bare_plugin_name_that_nobody_allowed_is_told_with_context_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = json!({
        "contexts": [
            { "name": "eks", "context": { "cluster": "c", "user": "aws" } },
            { "name": "other", "context": { "cluster": "c", "user": "other" } },
        ],
        "clusters": [{ "name": "c", "cluster": { "server": "https://a" } }],
        "users": [
            { "name": "aws", "user": { "exec": { "command": "aws" } } },
            { "name": "other", "user": { "exec": { "command": "plugin" } } },
        ],
    });
    fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
    fs::write(folder.path().join("plugin"), "").unwrap();
    let config = json!({
        "kubernetes": { "clusterLocatorMethods": [{ "type": "kubeconfig", "path": folder.path().join("kubeconfig") }] },
        "kubeAuthn": { "strategies": { "exec": { "allow": [folder.path().join("plugin")] } } },
    });
    fs::write(folder.path().join("app-config.yaml"), config.to_string()).unwrap();

    let output = Command::new(env!("CARGO_BIN_EXE_kube-authn"))
        .args(["check", "--json"])
        .current_dir(folder.path())
        .env_clear()
        .output()
        .unwrap();

    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["clusters"][0]["name"], "other", "{report}");
    assert_eq!(report["errors"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["errors"][0]["cluster"], "eks");
    assert_eq!(
        report["errors"][0]["message"],
        "Invalid cluster 'eks': exec plugin aws: no allowed program has that name, and PATH is not searched: add its \
         absolute path to kubeAuthn.strategies.exec.allow"
    );
}

fn entity(name: &str, url: &str) -> Value {
    json!({
        "kind": "Resource",
        "metadata": {
            "name": name,
            "annotations": {
                "kubernetes.io/api-server": url,
                "kubernetes.io/api-server-certificate-authority": ca_data(),
                "kubernetes.io/auth-provider": "oidc",
                "kubernetes.io/oidc-token-provider": "okta",
            },
        },
        "spec": { "type": "kubernetes-cluster" },
    })
}

fn ca_data() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
    STANDARD.encode(parameters.self_signed(&key).unwrap().pem())
}

/// `check --json` of this configuration, and whether it found nothing wrong.
fn check(config: &str) -> (Value, bool) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("app-config.yaml"), config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kube-authn"))
        .args(["check", "--config", "app-config.yaml", "--json"])
        .current_dir(folder.path())
        .env_clear()
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout).expect("one JSON object on standard output");
    (report, output.status.success())
}

fn texts(report: &Value, key: &str) -> Vec<String> {
    let list = report[key].as_array().unwrap().iter();
    list.map(|entry| entry["message"].as_str().or(entry.as_str()).unwrap().to_owned())
        .collect()
}

fn names(report: &Value) -> Vec<&str> {
    let clusters = report["clusters"].as_array().unwrap().iter();
    clusters
        .map(|cluster| cluster["name"].as_str().unwrap())
        .collect()
}

#[test]
fn clusters_of_the_portal_s_catalog_are_listed_with_its_token() {
    let entities =
        json!({ "items": [entity("listed", "https://1.1.1.1"), entity("inside", "https://10.0.0.1")] });
    let (url, asked) = catalog("200 OK", &entities);

    let (report, fine) = check(&format!(
        "backend: {{ baseUrl: '{url}' }}\n\
         kubeAuthn: {{ callers: [], catalog: {{ token: canary-token }} }}\n\
         kubernetes: {{ clusterLocatorMethods: [{{ type: catalog }}] }}"
    ));

    assert!(fine, "{report}");
    assert_eq!(names(&report), ["listed"]);
    assert_eq!(report["clusters"][0]["url"], "https://1.1.1.1");
    let ignored = "Ignoring kubernetes-cluster Resource \"inside\": Kubernetes cluster API server URL must not use a \
                   non-public IP address";
    assert!(
        texts(&report, "warnings").contains(&ignored.to_owned()),
        "{report}"
    );
    let (path, authorization) = asked.recv().unwrap();
    assert!(
        path.starts_with("/api/catalog/entities/by-query?filter=kind"),
        "{path}"
    );
    assert_eq!(authorization.as_deref(), Some("Bearer canary-token"));
}

#[test]
fn catalog_that_refuses_us_takes_the_other_clusters_with_it_only_without_continue_on_error() {
    let (url, _asked) = catalog("401 Unauthorized", &json!({}));
    let config = |continue_on_error: bool| {
        format!(
            "kubeAuthn: {{ catalog: {{ baseUrl: '{url}/api/catalog' }} }}\n\
             kubernetes:\n  \
               clusterLocatorContinueOnError: {continue_on_error}\n  \
               clusterLocatorMethods:\n  \
               - {{ type: catalog }}\n  \
               - {{ type: localKubectlProxy }}\n"
        )
    };
    let refused = "cannot read the catalog at 127.0.0.1: it refuses us: configure kubeAuthn.catalog.token with a token of its \
                   backend.auth.externalAccess";

    let (report, fine) = check(&config(false));
    assert!(!fine);
    assert_eq!(
        (names(&report).len(), texts(&report, "errors")),
        (0, vec![refused.to_owned()])
    );

    let (report, fine) = check(&config(true));
    assert!(fine, "{report}");
    assert_eq!(names(&report), ["local"]);
    let warning = format!("Failed to retrieve clusters from cluster locator method #1: {refused}");
    assert!(texts(&report, "warnings").contains(&warning), "{report}");
}

#[test]
fn catalog_of_unknown_place_is_reported_by_the_key_that_says_it() {
    let (report, fine) = check("kubernetes: { clusterLocatorMethods: [{ type: catalog }] }");

    assert!(!fine);
    let keys: Vec<_> = report["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| &error["key"])
        .collect();
    assert_eq!(
        keys,
        [
            "kubernetes.clusterLocatorMethods[0].type",
            "kubeAuthn.catalog.baseUrl"
        ]
    );
}

#[test]
fn mistakes_in_the_catalog_s_block_are_reported_though_nobody_asks_it() {
    let (report, fine) = check("kubeAuthn: { catalog: { baseURL: 'https://portal.example.com' } }");

    assert!(!fine);
    assert_eq!(
        texts(&report, "errors"),
        ["unknown key 'kubeAuthn.catalog.baseURL': did you mean 'baseUrl'?"]
    );
}

#[test]
fn project_s_clusters_cannot_be_listed_with_broken_credentials_and_the_error_says_so() {
    let (report, fine) = check(
        "kubernetes:\n  \
           googleServiceAccountCredentials: '{\"canary\":'\n  \
           clusterLocatorMethods: [{ type: gke, projectId: portal }]\n",
    );

    assert!(!fine);
    let text = "There was an error retrieving clusters from GKE for projectId=portal region=-; caused by Error: Failed to \
                parse Google Service Account credentials from config: EOF while parsing a value at line 1 column 10";
    assert_eq!(texts(&report, "errors"), [text]);
}

#[test]
fn cluster_with_credentials_that_cannot_be_parsed_is_reported_where_it_stands() {
    let (report, fine) = check(
        "kubernetes:\n  \
           googleServiceAccountCredentials: '{}'\n  \
           clusterLocatorMethods:\n  \
           - type: config\n    \
             clusters: [{ name: prod, url: 'https://a.example.com', authProvider: googleServiceAccount }]\n",
    );

    assert!(!fine);
    assert_eq!(
        report["errors"][0]["key"],
        "kubernetes.clusterLocatorMethods[0].clusters[0]"
    );
    assert_eq!(
        texts(&report, "errors"),
        ["Invalid cluster 'prod': The incoming JSON object does not contain a client_email field"]
    );
}
