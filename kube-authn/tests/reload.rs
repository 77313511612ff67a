//! A running service whose configuration changes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests it"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use kube_authn::{
    Service,
    kube_authn_clusters::AppConfig,
    kube_authn_core::{EntityRef, Principal, Result, async_trait, http::Request},
    kube_authn_http::{
        Caller, CallerAuthenticator, CallerRequest, Callers,
        axum::body::{Body, to_bytes},
    },
    service_for,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower_service::Service as _;

/// Everybody is alice.
#[derive(Debug)]
struct Alice;

#[async_trait]
impl CallerAuthenticator for Alice {
    async fn authenticate(&self, _: &CallerRequest<'_>) -> Result<Option<Caller>> {
        let alice = Principal::user(EntityRef::parse("user:default/alice")?);
        Ok(Some(Caller::new(alice)))
    }
}

struct Running {
    folder: TempDir,
    service: Service,
}

impl Running {
    async fn start(clusters: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("token"), "one").unwrap();
        write(folder.path(), clusters);
        let config = AppConfig::load(&[path(folder.path())]).unwrap();
        let service = service_for(&config, Callers::new().with(Alice), false)
            .await
            .unwrap();
        Self { folder, service }
    }

    async fn reload(&self) -> Result<bool> {
        let config = AppConfig::load(&[path(self.folder.path())])?;
        self.service.reload.apply(&config).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = self.service.router.clone().call(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn names(&self) -> Vec<String> {
        let (_, list) = self.get("/api/kubernetes/clusters").await;
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("app-config.yaml")
}

fn write(folder: &Path, clusters: &Value) {
    let config =
        json!({ "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": clusters }] } });
    fs::write(path(folder), config.to_string()).unwrap();
}

fn cluster(name: &str) -> Value {
    json!({ "name": name, "url": format!("https://{name}.invalid"), "authProvider": "localKubectlProxy" })
}

/// An API server that answers everything with `{}` and keeps the `Authorization` lines.
fn api_server() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let keeps = heard.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let keeps = keeps.clone();
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let mut stream = stream;
                while let Some(Ok(line)) = lines.next() {
                    if let Some(token) = line.strip_prefix("authorization: ") {
                        keeps.lock().unwrap().push(token.to_owned());
                    }
                    if line.is_empty() {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                            .unwrap();
                    }
                }
            });
        }
    });
    (url, heard)
}

#[tokio::test]
async fn list_of_clusters_follows_the_file() {
    let running = Running::start(&json!([cluster("a"), cluster("b")])).await;
    assert_eq!(running.names().await, ["a", "b"]);
    assert!(!running.reload().await.unwrap());

    write(running.folder.path(), &json!([cluster("b"), cluster("c")]));

    assert!(running.reload().await.unwrap());
    assert_eq!(running.names().await, ["b", "c"]);
    assert!(!running.reload().await.unwrap());
}

#[tokio::test]
async fn file_that_is_wrong_leaves_the_old_list_in_force_and_names_every_problem() {
    let running = Running::start(&json!([cluster("a")])).await;
    let mut wrong = cluster("b");
    wrong["url"] = "nowhere".into();
    let mut unknown = cluster("c");
    unknown["authProvider"] = "magic".into();

    write(running.folder.path(), &json!([wrong, unknown]));
    let error = running.reload().await.unwrap_err().to_string();

    assert!(
        error.contains("the url is no URL") && error.contains("authProvider \"magic\""),
        "{error}"
    );
    assert_eq!(running.names().await, ["a"]);

    fs::write(path(running.folder.path()), "kubernetes: [").unwrap();
    running.reload().await.unwrap_err();
    assert_eq!(running.names().await, ["a"]);

    write(running.folder.path(), &json!([cluster("d")]));
    assert!(running.reload().await.unwrap());
    assert_eq!(running.names().await, ["d"]);
}

#[tokio::test]
async fn name_that_two_locators_list_is_no_change_at_every_look() {
    let running = Running::start(&json!([cluster("a")])).await;
    let mut other = cluster("a");
    other["url"] = "https://other.invalid".into();
    let methods = [cluster("a"), other].map(|cluster| json!({ "type": "config", "clusters": [cluster] }));
    let config = json!({ "kubernetes": { "clusterLocatorMethods": methods } });
    fs::write(path(running.folder.path()), config.to_string()).unwrap();

    assert!(running.reload().await.unwrap());
    assert!(!running.reload().await.unwrap());
}

#[tokio::test]
async fn secret_in_a_file_of_its_own_follows_the_file() {
    let (url, heard) = api_server();
    let running = Running::start(&json!([{
        "name": "a", "url": url, "authProvider": "serviceAccount", "serviceAccountToken": { "$file": "token" },
    }]))
    .await;
    let version = "/api/kubernetes/clusters/a/proxy/version";
    assert_eq!(running.get(version).await.0, 200);

    fs::write(running.folder.path().join("token"), "two\n").unwrap();
    assert!(running.reload().await.unwrap());

    assert_eq!(running.get(version).await.0, 200);
    assert_eq!(*heard.lock().unwrap(), ["Bearer one", "Bearer two"]);
}

#[tokio::test]
async fn first_cluster_that_takes_logins_takes_a_restart() {
    let running = Running::start(&json!([cluster("a")])).await;
    let config = json!({
        "clusterAuth": { "issuer": "https://login.example.com/", "clientId": "kubernetes" },
        "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [
            { "name": "b", "url": "https://b.invalid", "authProvider": "clusterAuth" },
        ]}]},
    });
    fs::write(path(running.folder.path()), config.to_string()).unwrap();

    let error = running.reload().await.unwrap_err().to_string();

    assert!(
        error.contains("'b' is the first one") && error.contains("takes a restart"),
        "{error}"
    );
    assert_eq!(running.names().await, ["a"]);
}

/// Two clusters that AWS keys sign for, one of them on users' behalf, and one that has nothing to do with AWS.
#[cfg(feature = "aws")]
fn with_aws_keys(folder: &Path, url: &str) {
    let aws = json!({ "aws": { "region": "eu-west-1" } });
    let carried = json!({ "aws": { "region": "eu-west-1" }, "impersonation": { "carrier": "aws" } });
    let config = json!({
        "aws": { "mainAccount": { "accessKeyId": { "$file": "id" }, "secretAccessKey": { "$file": "secret" } } },
        "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [
            { "name": "aws", "url": url, "authProvider": "aws", "kubeAuthn": aws },
            { "name": "carried", "url": url, "authProvider": "impersonation", "kubeAuthn": carried,
              "dangerouslyAllowInsecureUserCredentials": true },
            { "name": "other", "url": url, "authProvider": "serviceAccount", "serviceAccountToken": "other" },
        ]}]},
    });
    fs::write(folder.join("secret"), "wJalrXUtnFEMI").unwrap();
    fs::write(path(folder), config.to_string()).unwrap();
}

#[cfg(feature = "aws")]
#[tokio::test]
async fn secret_of_a_strategy_follows_its_file_and_nobody_is_served_from_the_old_one() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let (url, heard) = api_server();
    let signer = |line: &String| {
        let token = line.strip_prefix("Bearer k8s-aws-v1.").unwrap_or_default();
        let signed = String::from_utf8(URL_SAFE_NO_PAD.decode(token).unwrap()).unwrap();
        let of_key = |part: &str| part.split(['%', '/']).next().unwrap().to_owned();
        signed
            .split("X-Amz-Credential=")
            .nth(1)
            .map(of_key)
            .unwrap_or_default()
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("id"), "AKIAFIRST").unwrap();
    with_aws_keys(folder.path(), &url);
    let config = AppConfig::load(&[path(folder.path())]).unwrap();
    let service = service_for(&config, Callers::new().with(Alice), false)
        .await
        .unwrap();
    let running = Running { folder, service };
    let all = async || {
        for cluster in ["aws", "carried", "other"] {
            let version = format!("/api/kubernetes/clusters/{cluster}/proxy/version");
            assert_eq!(running.get(&version).await.0, 200, "{cluster}");
        }
        heard
            .lock()
            .unwrap()
            .drain(..)
            .map(|line| signer(&line))
            .collect::<Vec<_>>()
    };
    assert_eq!(all().await, ["AKIAFIRST", "AKIAFIRST", ""]);

    fs::write(running.folder.path().join("id"), "AKIASECOND\n").unwrap();
    assert!(running.reload().await.unwrap());

    assert_eq!(all().await, ["AKIASECOND", "AKIASECOND", ""]);
    assert!(!running.reload().await.unwrap());

    // Half a pair: what is in force stays.
    fs::write(running.folder.path().join("id"), "").unwrap();
    running.reload().await.unwrap_err();
    assert_eq!(all().await, ["AKIASECOND", "AKIASECOND", ""]);
}

#[tokio::test]
async fn plugin_is_started_as_soon_as_it_is_allowed() {
    let running = Running::start(&json!([cluster("a")])).await;
    let allow = |allowed: &[&str]| {
        let exec = json!({ "exec": { "command": "/bin/true" } });
        let carried = json!({ "exec": { "command": "/bin/true" }, "impersonation": { "carrier": "exec" } });
        let config = json!({
            "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [
                { "name": "p", "url": "https://p.invalid", "authProvider": "exec", "kubeAuthn": exec },
                { "name": "c", "url": "https://c.invalid", "authProvider": "impersonation", "kubeAuthn": carried },
            ]}]},
            "kubeAuthn": { "strategies": { "exec": { "allow": allowed } } },
        });
        fs::write(path(running.folder.path()), config.to_string()).unwrap();
    };

    allow(&[]);
    let refused = running.reload().await.unwrap_err().to_string();
    assert!(refused.contains("/bin/true"), "{refused}");
    assert_eq!(running.names().await, ["a"]);

    allow(&["/bin/true"]);
    assert!(running.reload().await.unwrap());
    assert_eq!(running.names().await, ["p", "c"]);
    let (status, answer) = running.get("/api/kubernetes/clusters/p/proxy/version").await;
    assert_eq!(status, 503, "{answer}");
}
