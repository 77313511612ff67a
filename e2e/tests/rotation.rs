//! What somebody replaces while `kube-authn serve` is at work: the mounted token, a CA file, the files behind `$file`.
//! People call all the while, and every call is answered with 200.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use kube_authn_e2e::{Authority, Caller, Http, Serve, Served, TestCluster};
use serde_json::{Value, json};
use support::{
    pod::{self, Mount, in_pod, service_account, write_program},
    stage::{LIMIT, Prepared, alice},
    stand_in::{self, StandIn},
    *,
};

/// The kubelet replaces the token, and nothing tells the service: it reads the file again after a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounted_token_that_is_replaced_costs_no_request() {
    let running = InPod::start().await;
    let second = pod::token(running.cluster, "portal", None).await;
    let load = Load::on(&running.alice, &[("mounted", "limit=3")]);
    used(running.cluster, &running.first, "limit=3").await;

    running.mount.publish(&service_account(running.cluster, &second));
    used(running.cluster, &second, "limit=3").await;

    load.none_failed(20).await;
}

/// A token dies with the object that it is bound to. The API server refuses it, and the file has another one by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounted_token_that_dies_early_costs_no_request() {
    let running = InPod::start().await;
    let second = pod::token(running.cluster, "portal", None).await;
    let load = Load::on(&running.alice, &[("mounted", "limit=4")]);
    used(running.cluster, &running.first, "limit=4").await;

    running.mount.publish(&service_account(running.cluster, &second));
    // From here on it takes the API server ten seconds to forget that it knew the token.
    delete(running.cluster, &running.bound).await;
    used(running.cluster, &second, "limit=4").await;

    load.none_failed(20).await;
    let refused = |event: &Value| event["responseStatus"]["code"] == 401 && asks(event, "limit=4");
    assert!(running.cluster.audit_lines().unwrap().iter().any(refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ca_that_is_rotated_by_way_of_both_costs_no_request() {
    let prepared = Prepared::new().await;
    let cluster = prepared.cluster;
    let [old, new] = ["old CA", "new CA"].map(|name| Authority::new(name).unwrap());
    let [by_old, by_new] = [&old, &new].map(|ca| ca.serving("kube-apiserver").unwrap());
    let front = front(cluster, &by_old).await;
    let file = prepared.folder.path().join("api-server-ca.pem");
    replace(&file, old.pem());
    let token = pod::token(cluster, "portal", None).await;
    let entry = json!({ "name": "front", "url": front.https(), "authProvider": "serviceAccount",
                        "serviceAccountToken": token, "caFile": file });
    let (_served, alice) = serve(&prepared, &json!({}), &[entry], None, Vec::new()).await;
    let load = Load::on(&alice, &[("front", "limit=5")]);
    load.answers(20).await;

    // Both are trusted before the server shows the new one; a handshake that fails has the file read at once.
    replace(&file, &format!("{}{}", old.pem(), new.pem()));
    let before = front.handshakes();
    front.show(&by_new);
    eventually(LIMIT, "a connection under the new certificate", async || {
        (front.handshakes() > before).then_some(())
    })
    .await;
    load.answers(20).await;
    // Connections under what was trusted before take no new request.
    let before = front.handshakes();
    replace(&file, new.pem());
    eventually(LIMIT, "a connection that trusts the new CA alone", async || {
        (front.handshakes() > before).then_some(())
    })
    .await;

    load.none_failed(20).await;
    front.show(&by_old);
    let (status, answer) = alice.get(&pods("front", "limit=5")).await.unwrap();
    let reason = &answer["details"]["causes"][0]["reason"];
    assert_eq!(
        (status, reason),
        (502, &json!("upstream_unreachable")),
        "{answer}"
    );
}

/// Secrets of clusters and of strategies, all in one mounted Secret that is swapped. The old ones die afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_behind_file_that_are_replaced_cost_no_request_and_only_the_new_ones_are_used() {
    let prepared = Prepared::new().await;
    let cluster = prepared.cluster;
    cluster.apply(RULES).await.unwrap();
    let (old, new) = (
        Generation::make(cluster, "old").await,
        Generation::make(cluster, "new").await,
    );
    let sources = Sources::start(cluster, &[&old, &new]).await;
    let mount = Mount::new();
    mount.publish(&old.files(&sources));
    let (block, entries) = sources.config(cluster, prepared.folder.path(), mount.path());
    let (served, alice) = serve(&prepared, &block, &entries, None, Vec::new()).await;
    let names: Vec<_> = entries
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    let targets: Vec<_> = names.iter().map(|name| (*name, "limit=6")).collect();
    let load = Load::on(&alice, &targets);
    sources.all_used(cluster, &old).await;

    mount.publish(&new.files(&sources));
    sources.all_used(cluster, &new).await;
    load.answers(50).await;
    let events = cluster.audit_lines().unwrap().len();
    sources.signers.lock().unwrap().clear();
    delete(cluster, &old.bound).await;
    eventually(LIMIT, "the end of the old token", async || {
        let client = Http::new(cluster.ca_pem()).unwrap();
        let answer = client
            .send(forwarded(cluster, "/version", &bearer(&old.tokens["configured"])))
            .await;
        (answer.unwrap().status() == 401).then_some(())
    })
    .await;
    load.answers(50).await;

    load.none_failed(200).await;
    let later = cluster.audit_lines().unwrap().split_off(events);
    let used: BTreeSet<_> = later
        .iter()
        .filter(|event| asks(event, "limit=6"))
        .map(credential_of)
        .collect();
    let dead: BTreeSet<_> = old.tokens.values().map(|token| id(token)).collect();
    assert!(used.is_disjoint(&dead) && !used.contains("old"), "{used:?}");
    assert_eq!(
        *sources.signers.lock().unwrap(),
        BTreeSet::from(["AKIAnew".to_owned()])
    );
    let log = fs::read_to_string(served.log()).unwrap();
    assert!(!log.contains("takes a restart"), "{log}");
}

/// As by an editor, or a copy over the network: every look at the file finds another part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_that_is_still_being_written_is_never_taken_over() {
    let prepared = Prepared::new().await;
    let cluster = prepared.cluster;
    let (old, new) = (
        pod::token(cluster, "portal", None).await,
        pod::token(cluster, "portal", None).await,
    );
    let file = prepared.folder.path().join("token");
    replace(&file, &old);
    let entry = json!({ "name": "one", "url": cluster.api_server_url(), "authProvider": "serviceAccount",
                        "serviceAccountToken": { "$file": file }, "caData": STANDARD.encode(cluster.ca_pem()) });
    let (_served, alice) = serve(&prepared, &json!({}), &[entry], None, Vec::new()).await;
    let load = Load::on(&alice, &[("one", "limit=8")]);
    used(cluster, &old, "limit=8").await;

    // Three looks long, and never the same for as long as one takes.
    for length in new.len() - 120..new.len() {
        fs::write(&file, &new[..length]).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fs::write(&file, &new).unwrap();
    used(cluster, &new, "limit=8").await;

    load.none_failed(20).await;
}

/// What takes a restart says so, and costs nobody anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_that_changes_takes_a_restart_and_the_log_says_so() {
    let prepared = Prepared::new().await;
    let url = prepared.folder.path().join("url");
    replace(&url, "sqlite://one.db");
    let store = json!({ "kubeAuthn": { "store": { "type": "sqlite", "url": { "$file": url } } } });
    let token = pod::token(prepared.cluster, "portal", None).await;
    let entry = json!({ "name": "one", "url": prepared.cluster.api_server_url(), "authProvider": "serviceAccount",
                        "serviceAccountToken": token, "caData": STANDARD.encode(prepared.cluster.ca_pem()) });
    let (served, alice) = serve(&prepared, &store, &[entry], None, Vec::new()).await;
    let load = Load::on(&alice, &[("one", "limit=7")]);

    replace(&url, "sqlite://two.db");
    eventually(LIMIT, "the line in the log", async || {
        let log = fs::read_to_string(served.log()).unwrap();
        log.contains("kubeAuthn.store changed: that takes a restart")
            .then_some(())
    })
    .await;

    load.none_failed(5).await;
}

/// The service in a pod, with the mounted service account.
struct InPod {
    cluster: &'static TestCluster,
    mount: Mount,
    first: String,
    bound: String,
    alice: Caller,
    _served: Served,
    _prepared: Prepared,
}

impl InPod {
    async fn start() -> Self {
        let prepared = Prepared::new().await;
        let cluster = prepared.cluster;
        let bound = secret(cluster).await;
        let first = pod::token(cluster, "portal", Some(&bound)).await;
        let mount = Mount::new();
        mount.publish(&service_account(cluster, &first));
        let url = cluster.api_server_url();
        let (host, port) = url.trim_start_matches("https://").split_once(':').unwrap();
        let environment = vec![
            ("KUBERNETES_SERVICE_HOST", host.to_owned()),
            ("KUBERNETES_SERVICE_PORT", port.to_owned()),
        ];
        let entry = json!({ "name": "mounted", "url": url, "authProvider": "serviceAccount" });
        let (served, alice) = serve(&prepared, &json!({}), &[entry], Some(&mount), environment).await;
        Self {
            cluster,
            mount,
            first,
            bound: bound.metadata.name.unwrap(),
            alice,
            _served: served,
            _prepared: prepared,
        }
    }
}

/// People who ask on and on, each one cluster.
struct Load {
    over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    people: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// Two for each cluster, or eight for a single one; each with this query.
    fn on(caller: &Caller, targets: &[(&str, &str)]) -> Self {
        let mut load = Self {
            over: Arc::default(),
            answers: Arc::default(),
            failures: Arc::default(),
            people: Vec::new(),
        };
        let each = if targets.len() == 1 { 8 } else { 2 };
        for (cluster, query) in targets
            .iter()
            .flat_map(|target| std::iter::repeat_n(target, each))
        {
            let (caller, path) = (caller.clone(), pods(cluster, query));
            let (over, answers, failures) = (load.over.clone(), load.answers.clone(), load.failures.clone());
            load.people.push(tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    match caller.get(&path).await {
                        Ok((200, _)) => {
                            answers.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok((status, answer)) => failures
                            .lock()
                            .unwrap()
                            .push(format!("{path}: {status} {answer}")),
                        Err(error) => failures
                            .lock()
                            .unwrap()
                            .push(format!("{path}: {}", chain(&error))),
                    }
                }
            }));
        }
        load
    }

    /// Waits for so many more.
    async fn answers(&self, more: usize) {
        let before = self.answers.load(Ordering::SeqCst);
        eventually(LIMIT, "more answers", async || {
            assert_eq!(self.failed(), Vec::<String>::new());
            (self.answers.load(Ordering::SeqCst) >= before + more).then_some(())
        })
        .await;
    }

    /// After so many more.
    async fn none_failed(self, more: usize) {
        self.answers(more).await;
        self.over.store(true, Ordering::SeqCst);
        for person in self.people {
            within(LIMIT, "the last answer", person).await.unwrap();
        }
        assert_eq!(*self.failures.lock().unwrap(), Vec::<String>::new());
    }

    fn failed(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }
}

/// One set of secrets, and the object that all its tokens die with.
struct Generation {
    name: &'static str,
    bound: String,
    /// By cluster.
    tokens: BTreeMap<&'static str, String>,
    certificate: String,
    key: String,
}

impl Generation {
    async fn make(cluster: &TestCluster, name: &'static str) -> Self {
        let bound = secret(cluster).await;
        let mut tokens = BTreeMap::new();
        for used_by in ["configured", "carried", "minted", "azure", "google", "exec"] {
            tokens.insert(used_by, pod::token(cluster, ACCOUNT, Some(&bound)).await);
        }
        let pair = cluster.authority().client(name, Some("system:masters")).unwrap();
        Self {
            name,
            bound: bound.metadata.name.unwrap(),
            tokens,
            certificate: STANDARD.encode(pair.certificate),
            key: STANDARD.encode(pair.key),
        }
    }

    /// The mounted Secret.
    fn files<'a>(&'a self, sources: &'a Sources) -> Vec<(&'a str, &'a str)> {
        let mut files: Vec<_> = ["configured", "carried", "minted", "exec"]
            .map(|name| (name, self.tokens[name].as_str()))
            .into();
        let google = &sources.google_files[self.name];
        files.extend([
            ("azure", self.name),
            ("google.json", google),
            ("aws-id", if self.name == "old" { "AKIAold" } else { "AKIAnew" }),
            ("aws-secret", "wJalrXUtnFEMI"),
            ("certificate", &self.certificate),
            ("key", &self.key),
        ]);
        files
    }
}

/// Where strategies get their credentials, and an API server that knows AWS keys.
struct Sources {
    entra: StandIn,
    _google: StandIn,
    eks: StandIn,
    /// Credentials files by generation.
    google_files: BTreeMap<&'static str, String>,
    /// Whose keys signed what the API server got.
    signers: Arc<Mutex<BTreeSet<String>>>,
}

impl Sources {
    async fn start(cluster: &'static TestCluster, generations: &[&Generation]) -> Self {
        let by_secret = |used_by: &str| -> BTreeMap<String, String> {
            let pairs = generations.iter();
            pairs
                .map(|generation| (generation.name.to_owned(), generation.tokens[used_by].clone()))
                .collect()
        };
        let serving = cluster.authority().serving("stand-in").unwrap();
        let entra = token_endpoint(Some(&serving), "client_secret", by_secret("azure")).await;
        let google = token_endpoint(None, "refresh_token", by_secret("google")).await;
        let google_file = |name: &str| {
            json!({ "type": "authorized_user", "client_id": "portal", "client_secret": "unused",
                    "refresh_token": name, "token_uri": google.http() })
            .to_string()
        };
        let google_files = generations
            .iter()
            .map(|generation| (generation.name, google_file(generation.name)))
            .collect();
        let signers: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let eks = StandIn::start(Some(&serving), {
            let signers = signers.clone();
            move |request| {
                let signer = signer(request.headers());
                signers.lock().unwrap().insert(signer);
                async { stand_in::json(200, &json!({ "kind": "PodList" })) }
            }
        })
        .await;
        Self {
            entra,
            _google: google,
            eks,
            google_files,
            signers,
        }
    }

    /// The blocks of strategies, and the clusters.
    fn config(&self, cluster: &TestCluster, folder: &Path, mount: &Path) -> (Value, Vec<Value>) {
        let file = |name: &str| json!({ "$file": mount.join(name) });
        let plugin = folder.join("plugin");
        let answer = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}"#;
        write_program(&plugin, &format!("printf '{answer}' \"$TOKEN\""));
        let block = json!({
            "aws": { "mainAccount": { "accessKeyId": file("aws-id"), "secretAccessKey": file("aws-secret") } },
            "kubernetes": { "googleServiceAccountCredentials": file("google.json") },
            "kubeAuthn": { "strategies": {
                "azure": { "authorityHost": self.entra.https(), "caFile": cluster.ca_path(), "tenantId": "home",
                           "clientId": "portal", "clientSecret": file("azure") },
                "exec": { "allow": [plugin] },
            }},
        });
        let token = json!({ "namespace": "backstage", "serviceAccount": "portal" });
        let pair = json!({ "certData": file("certificate"), "keyData": file("key") });
        let exec = json!({ "command": plugin, "env": [{ "name": "TOKEN", "value": file("exec") }] });
        let entry = |name: &str, strategy: &str, rest: Value| {
            let mut entry = json!({ "name": name, "url": cluster.api_server_url(), "authProvider": strategy,
                                    "caData": STANDARD.encode(cluster.ca_pem()) });
            for (key, value) in rest.as_object().unwrap() {
                entry[key] = value.clone();
            }
            entry
        };
        let entries = vec![
            entry(
                "configured",
                "serviceAccount",
                json!({ "serviceAccountToken": file("configured") }),
            ),
            entry(
                "minted",
                "serviceAccount",
                json!({ "serviceAccountToken": file("minted"), "kubeAuthn": { "tokenRequest": token } }),
            ),
            entry(
                "carried",
                "impersonation",
                json!({ "serviceAccountToken": file("carried"),
                          "kubeAuthn": { "impersonation": { "user": "{name}@example.com" } } }),
            ),
            entry(
                "certificate",
                "clientCertificate",
                json!({ "kubeAuthn": { "clientCertificate": pair } }),
            ),
            entry("exec", "exec", json!({ "kubeAuthn": { "exec": exec } })),
            entry("azure", "azure", json!({})),
            entry("google", "googleServiceAccount", json!({})),
            entry(
                "aws",
                "aws",
                json!({ "url": self.eks.https(), "kubeAuthn": { "aws": { "region": "eu-west-1" } } }),
            ),
        ];
        (block, entries)
    }

    /// Waits until every cluster was reached with what this generation holds.
    async fn all_used(&self, cluster: &TestCluster, generation: &Generation) {
        for (used_by, token) in &generation.tokens {
            match *used_by {
                "minted" => used(cluster, token, "/serviceaccounts/portal/token").await,
                _ => used(cluster, token, "limit=6").await,
            }
        }
        let by_name = cluster
            .audit_event(|event| event["user"]["username"] == generation.name && asks(event, "limit=6"));
        by_name.await.unwrap();
        eventually(LIMIT, "a signature", async || {
            let signers = self.signers.lock().unwrap();
            signers
                .contains(&format!("AKIA{}", generation.name))
                .then_some(())
        })
        .await;
    }
}

/// OAuth 2.0, as far as a token for a secret goes.
async fn token_endpoint(
    identity: Option<&kube_authn_e2e::Identity>,
    field: &'static str,
    tokens: BTreeMap<String, String>,
) -> StandIn {
    StandIn::start(identity, move |request| {
        let form: BTreeMap<String, String> =
            url::form_urlencoded::parse(request.body()).into_owned().collect();
        let token = form.get(field).and_then(|secret| tokens.get(secret)).cloned();
        async move {
            match token {
                Some(token) => {
                    let answer = json!({ "access_token": token, "expires_in": 3600, "token_type": "Bearer" });
                    stand_in::json(200, &answer)
                }
                None => stand_in::json(401, &json!({ "error": "invalid_client" })),
            }
        }
    })
    .await
}

/// Passes everything on to the API server, one connection per request.
async fn front(cluster: &'static TestCluster, identity: &kube_authn_e2e::Identity) -> StandIn {
    let http = Http::new(cluster.ca_pem()).unwrap();
    StandIn::start(Some(identity), move |request| {
        let http = http.clone();
        async move {
            let target = request.uri().path_and_query().unwrap().as_str();
            let line = &request.headers()[header::AUTHORIZATION];
            let answer = http.send(forwarded(cluster, target, line)).await.unwrap();
            let status = answer.status().as_u16();
            stand_in::reply(status, "application/json", answer.into_body())
        }
    })
    .await
}

fn forwarded(cluster: &TestCluster, target: &str, line: &HeaderValue) -> Request<Bytes> {
    Request::get(format!("{}{target}", cluster.api_server_url()))
        .header(header::AUTHORIZATION, line)
        .body(Bytes::new())
        .unwrap()
}

fn bearer(token: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("Bearer {token}")).unwrap()
}

/// Whose key signed an EKS token.
fn signer(headers: &http::HeaderMap) -> String {
    let line = headers[header::AUTHORIZATION].to_str().unwrap();
    let signed = URL_SAFE_NO_PAD
        .decode(line.strip_prefix("Bearer k8s-aws-v1.").unwrap())
        .unwrap();
    let signed = String::from_utf8(signed).unwrap();
    let scope = signed.split("X-Amz-Credential=").nth(1).unwrap();
    scope.split(['%', '/']).next().unwrap().to_owned()
}

/// The service with these blocks and clusters, in a pod with this service account if there is one.
async fn serve(
    prepared: &Prepared,
    block: &Value,
    entries: &[Value],
    mount: Option<&Mount>,
    mut environment: Vec<(&'static str, String)>,
) -> (Served, Caller) {
    let text = fs::read_to_string(prepared.config()).unwrap();
    let base: Value = serde_json::from_str(&text).unwrap();
    let mut config = block.clone();
    config["backend"] = base["backend"].clone();
    config["kubeAuthn"]["callers"] = base["kubeAuthn"]["callers"].clone();
    config["kubernetes"]["clusterLocatorMethods"] = json!([{ "type": "config", "clusters": entries }]);
    fs::write(prepared.config(), config.to_string()).unwrap();
    let program = env!("CARGO_BIN_EXE_kube-authn-program");
    let program = match mount {
        Some(mount) => in_pod(mount, prepared.folder.path(), program).await,
        None => program.into(),
    };
    environment.extend(prepared.environment.clone());
    let serve = Serve {
        program: &program,
        config: &prepared.config(),
        environment,
        drain: Duration::from_secs(1),
        cluster: None,
    };
    let served = serve.start().await.unwrap();
    let alice = alice(prepared.cluster, served.url()).await;
    (served, alice)
}

fn pods(cluster: &str, query: &str) -> String {
    format!("/api/kubernetes/clusters/{cluster}/proxy/api/v1/namespaces/team-a/pods?{query}")
}

/// Waits until the audit log has this very token with a request of ours that succeeded.
async fn used(cluster: &TestCluster, token: &str, asked: &str) {
    let id = id(token);
    eventually(LIMIT, "a request with the token", async || {
        let events = cluster.audit_lines().unwrap();
        let with_it = |event: &Value| {
            let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
            (200..300).contains(&code) && asks(event, asked) && credential_of(event) == id
        };
        events.iter().any(with_it).then_some(())
    })
    .await;
}

fn asks(event: &Value, what: &str) -> bool {
    event["requestURI"]
        .as_str()
        .is_some_and(|uri| uri.ends_with(what))
}

/// The token's id, or the name where there is none.
fn credential_of(event: &Value) -> String {
    let user = &event["user"];
    let id = user["extra"][CREDENTIAL_ID][0]
        .as_str()
        .or(user["username"].as_str());
    id.unwrap_or_default().to_owned()
}

/// As the audit log names a token.
fn id(token: &str) -> String {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    format!("JTI={}", claims["jti"].as_str().unwrap())
}

/// An object for tokens to be bound to.
async fn secret(cluster: &TestCluster) -> Secret {
    let secrets: Api<Secret> = Api::namespaced(cluster.client().await.unwrap(), "backstage");
    let secret = serde_json::from_value(json!({ "metadata": { "generateName": "bound-" } })).unwrap();
    secrets.create(&PostParams::default(), &secret).await.unwrap()
}

async fn delete(cluster: &TestCluster, secret: &str) {
    let secrets: Api<Secret> = Api::namespaced(cluster.client().await.unwrap(), "backstage");
    secrets.delete(secret, &DeleteParams::default()).await.unwrap();
}

/// In one step, as whoever looks after such files does.
fn replace(file: &Path, content: &str) {
    let new = file.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, file).unwrap();
}

const ACCOUNT: &str = "rotating";
/// May do everything: read, mint, impersonate.
const RULES: &str = "apiVersion: v1
kind: ServiceAccount
metadata: { name: rotating, namespace: backstage }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: rotating }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin }
subjects: [{ kind: ServiceAccount, name: rotating, namespace: backstage }]
";
/// <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens>
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
