//! A hundred clusters of thirteen strategies behind one `kube-authn serve`. One after the other is broken, each in a way of
//! its own: the others answer as ever, at once, and the broken one says what is wrong.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use futures_util::future::join_all;
use http::{Request, header};
use kube_authn_core::Secret;
use kube_authn_e2e::{Authority, Caller, Serve, Served, TestCluster};
use kube_authn_store::sqlx::{self, Connection, SqliteConnection};
use serde_json::{Value, json};
use support::{
    pod::{self, Mount, in_pod, service_account, write_program},
    stage::{LIMIT, Prepared, alice},
    stand_in::{self, StandIn},
    way::{Route, Way},
    *,
};
use tokio::task::JoinHandle;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_that_is_broken_in_any_way_keeps_no_other_one_from_answering_and_names_the_cause() {
    let mut hundred = Hundred::start().await;
    hundred.broken_before_the_first_request().await;
    hundred.broken_on_the_way().await;
    hundred.broken_logins().await;
    hundred.broken_configuration().await;
}

/// What a broken cluster has to say.
#[derive(Clone, Copy, Debug)]
struct Expected {
    status: u16,
    code: &'static str,
    /// A part of the message.
    cause: &'static str,
}

const fn says(status: u16, code: &'static str, cause: &'static str) -> Expected {
    Expected { status, code, cause }
}

struct Hundred {
    cluster: &'static TestCluster,
    prepared: Prepared,
    config: Value,
    clusters: Vec<Cluster>,
    mount: Mount,
    entra: Entra,
    google: Way,
    google_port: u16,
    /// What callers offer with each request: header and token.
    offers: Vec<(&'static str, String)>,
    alice: Caller,
    served: Served,
    /// Not asked before it is their turn to be broken, since a credential that is cached would hide it; nor while they hang.
    unasked: BTreeSet<String>,
    hanging: Vec<(String, JoinHandle<Answer>, Expected)>,
}

struct Cluster {
    name: String,
    way: Way,
    /// Where the way leads while it isn't broken.
    port: u16,
    /// Who the API server says we are, as alice.
    identity: (u16, String),
}

/// Status and body; or why there is none.
type Answer = Result<(u16, Value), String>;

impl Hundred {
    /// Strategies whose credential does not come before the first request: each of these is broken then.
    async fn broken_before_the_first_request(&mut self) {
        let azure = self.of("azure");
        let azure_cases = [
            ("hangs", says(504, "timeout", "config: 127.0.0.1")),
            ("closes", says(503, "unavailable", "the connection broke off")),
            (
                "garbage",
                says(500, "unexpected", "gave something that is no token"),
            ),
            ("fails", says(503, "unavailable", "answers with status 500")),
        ];
        for (name, (mood, expected)) in azure.iter().zip(azure_cases) {
            self.entra.mood(name, mood);
            self.round(&[name], expected).await;
        }

        let google = self.of("google-account");
        self.google.route(Route::Refused).await;
        let names: Vec<_> = google.iter().map(String::as_str).collect();
        self.round(&names, says(503, "unavailable", "accepts a connection"))
            .await;
        self.google.route(Route::To(self.google_port)).await;

        let exec = self.of("exec");
        let exec_cases = [
            ("hangs", says(504, "timeout", "took longer than 8 s")),
            ("garbage", says(503, "unavailable", "not the JSON")),
            ("fails", says(503, "unavailable", "ended with exit code 7")),
        ];
        for (name, (mood, expected)) in exec.iter().zip(exec_cases) {
            fs::write(self.file(&format!("{name}.mood")), mood).unwrap();
            self.round(&[name], expected).await;
        }

        let name = self.of("certificate").remove(0);
        let file = self.file(&format!("{name}.pem"));
        let certificate = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        self.round(
            &[&name],
            says(500, "config_invalid", ".pem cannot be used: it is not there"),
        )
        .await;
        fs::write(&file, certificate).unwrap();

        let token = self.mount.path().join("token");
        let target = fs::canonicalize(&token).unwrap();
        let held = fs::read(&target).unwrap();
        fs::remove_file(&target).unwrap();
        let missing = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        self.round(&["mounted-0"], says(500, "config_invalid", missing))
            .await;
        fs::write(&target, held).unwrap();

        // Everybody else was answered while these waited. What was broken recovers by itself.
        self.those_that_hang(2).await;
        for name in &azure {
            self.entra.mood(name, "");
        }
        for name in &exec {
            fs::write(self.file(&format!("{name}.mood")), "").unwrap();
        }
        let recovering = std::mem::take(&mut self.unasked);
        for name in &recovering {
            let expected = self.identity(name);
            eventually(LIMIT, format!("{name} again"), async || {
                (self.whoami(&self.alice, name).await == Ok(expected.clone())).then_some(())
            })
            .await;
        }
        self.all_answer().await;
    }

    /// All of them are at work.
    async fn broken_on_the_way(&mut self) {
        let serving = self.cluster.authority().serving("kube-apiserver").unwrap();
        let stranger = Authority::new("another CA")
            .unwrap()
            .serving("kube-apiserver")
            .unwrap();
        let review = || stand_in::json(201, &json!({}));
        let by_stranger = StandIn::start(Some(&stranger), move |_| async move { review() }).await;
        let closing = StandIn::start(Some(&serving), |_| async { None }).await;
        let breaking_off = StandIn::start(Some(&serving), |_| async { stand_in::broken_off() }).await;
        let unauthorized = StandIn::start(Some(&serving), |_| async {
            stand_in::json(
                401,
                &json!({ "kind": "Status", "message": "Unauthorized", "code": 401 }),
            )
        })
        .await;
        let silent = self.of("oidc").remove(0);
        self.way(&silent).route(Route::Silent).await;
        self.round(&[&silent], says(504, "timeout", "no connection within 10s"))
            .await;
        self.unasked.insert(silent.clone());

        let unreachable = |cause| says(502, "upstream_unreachable", cause);
        for (label, route, expected) in [
            (
                "service-account",
                Route::Refused,
                unreachable("connection refused"),
            ),
            (
                "impersonation",
                Route::To(by_stranger.port()),
                unreachable("certificate is signed by an authority that"),
            ),
            (
                "aks",
                Route::To(closing.port()),
                unreachable("the connection broke off"),
            ),
        ] {
            let name = self.of(label).remove(0);
            self.way(&name).route(route).await;
            self.round(&[&name], expected).await;
            self.mend(&name).await;
        }

        let name = self.of("google-user").remove(0);
        self.way(&name).route(Route::To(breaking_off.port())).await;
        let broken = self.ask_beside_all_others(&name).await;
        assert!(broken.unwrap_err().contains("body"));
        self.mend(&name).await;

        for label in ["minted", "login", "aws", "service-account"] {
            let name = self.of(label).remove(0);
            self.way(&name).route(Route::To(unauthorized.port())).await;
            for _ in 0..2 {
                let broken = self.ask_beside_all_others(&name).await;
                // The API server's own words; of a token that cannot be minted we say it ourselves.
                let (status, body) = broken.unwrap();
                match label {
                    "minted" if status == 503 => assert_eq!(body["details"]["name"], *name, "{body}"),
                    _ => assert_eq!((status, &body["message"]), (401, &json!("Unauthorized"))),
                }
            }
            self.mend(&name).await;
        }

        self.those_that_hang(1).await;
        self.mend(&silent).await;
        self.unasked.clear();
        self.all_answer().await;
    }

    /// Logins of other people, so that alice can tell whether they disturb her.
    async fn broken_logins(&mut self) {
        let name = self.of("login").remove(0);
        let login = |cause| says(401, "no_tokens", cause);
        let [carol, dave, erin] = ["carol", "dave", "erin"];
        for (person, client) in [(carol, "kubernetes-short"), (erin, "kubernetes")] {
            let mut tokens = self.cluster.issuer_b().sign_in(person, client).await.unwrap();
            // Nobody can make this login last.
            tokens.as_object_mut().unwrap().remove("refresh_token");
            let caller = self.caller(person).await;
            let posted = caller
                .send(Request::post("/api/cluster-auth/tokens"), &tokens)
                .await;
            assert_eq!(posted.unwrap().0, 200);
        }
        self.login_is_broken(dave, &name, login(NO_LOGIN)).await;

        let database = self.file("kube-authn.db").display().to_string();
        let mut sql = SqliteConnection::connect(&database).await.unwrap();
        let damage = "UPDATE kube_authn_logins SET sealed = zeroblob(length(sealed)) WHERE principal = 'user:default/erin'";
        let changed = sqlx::raw_sql(damage).execute(&mut sql).await.unwrap();
        assert_eq!(changed.rows_affected(), 1);
        sql.close().await.unwrap();
        self.login_is_broken(
            erin,
            &name,
            says(500, "record_damaged", "its row was changed outside"),
        )
        .await;

        let caller = self.caller(carol).await;
        eventually(LIMIT, "the end of carol's login", async || {
            let (status, body) = self.ask(&caller, &name).await.unwrap();
            (status == 401 && body["details"]["causes"][0]["reason"] == "expired").then_some(())
        })
        .await;
        self.login_is_broken(carol, &name, says(401, "expired", EXPIRED_LOGIN))
            .await;
    }

    async fn login_is_broken(&self, person: &str, name: &str, expected: Expected) {
        let caller = self.caller(person).await;
        let (broken, ()) = tokio::join!(self.ask(&caller, name), self.others_answer(&[]));
        holds(name, &broken, expected);
    }

    /// `check` and the start name what is wrong; a running service goes on with what it has.
    async fn broken_configuration(&mut self) {
        let mut all = self.config.clone();
        for (label, key, value, said) in [
            ("exec", "caData", json!("bm8gY2VydGlmaWNhdGU="), "caData"),
            (
                "anonymous",
                "authProvider",
                json!("magic"),
                "authProvider \"magic\"",
            ),
            ("aks", "url", Value::Null, "url"),
        ] {
            let name = self.of(label).remove(0);
            let mut config = self.config.clone();
            let index = self
                .clusters
                .iter()
                .position(|cluster| cluster.name == name)
                .unwrap();
            for config in [&mut config, &mut all] {
                config["kubernetes"]["clusterLocatorMethods"][0]["clusters"][index][key] = value.clone();
            }
            let file = self.file("wrong.yaml");
            fs::write(&file, config.to_string()).unwrap();
            for command in ["check", "serve"] {
                let (success, text) = self.program(command, &file).await;
                let place = format!("clusters[{index}]");
                assert!(
                    !success && text.contains(&place) && text.contains(said),
                    "{command}: {text}"
                );
            }
        }

        fs::write(self.prepared.config(), all.to_string()).unwrap();
        let log = eventually(LIMIT, "the problems in the log", async || {
            let log = fs::read_to_string(self.served.log()).unwrap();
            log.contains("the configuration is not taken over, the old one stays")
                .then_some(log)
        })
        .await;
        assert!(
            log.contains("authProvider \"magic\"") && log.contains("caData"),
            "{log}"
        );
        self.all_answer().await;
        fs::write(self.prepared.config(), self.config.to_string()).unwrap();
        eventually(LIMIT, "the end of the problems in the log", async || {
            let log = fs::read_to_string(self.served.log()).unwrap();
            log.contains("the configuration can be used again").then_some(())
        })
        .await;
    }

    async fn those_that_hang(&mut self, count: usize) {
        let hanging = std::mem::take(&mut self.hanging);
        assert_eq!(hanging.len(), count);
        for (name, answer, expected) in hanging {
            let answer = within(LIMIT, &name, answer).await.unwrap();
            holds(&name, &answer, expected);
        }
    }

    /// Asks these, which are broken, and all others that may be asked at the same time. One whose answer takes its time is
    /// asked first, and must still wait when all others have theirs.
    async fn round(&mut self, broken: &[&str], expected: Expected) {
        let asked: Vec<_> = broken
            .iter()
            .map(|name| (name.to_string(), self.spawn(name)))
            .collect();
        self.others_answer(broken).await;
        for (name, answer) in asked {
            if expected.status == 504 {
                assert!(!answer.is_finished(), "{name} did not hang");
                self.hanging.push((name.clone(), answer, expected));
            } else {
                let answer = within(LIMIT, &name, answer).await.unwrap();
                holds(&name, &answer, expected);
            }
        }
    }

    async fn ask_beside_all_others(&self, name: &str) -> Answer {
        let broken = [name];
        tokio::join!(self.ask(&self.alice, name), self.others_answer(&broken)).0
    }

    async fn all_answer(&self) {
        assert!(self.unasked.is_empty());
        self.others_answer(&[]).await;
    }

    /// All at once, each as who it should be.
    async fn others_answer(&self, broken: &[&str]) {
        let others = self.clusters.iter().filter(|cluster| {
            !broken.contains(&cluster.name.as_str()) && !self.unasked.contains(&cluster.name)
        });
        let wrong: Vec<_> = join_all(others.map(async |cluster| {
            let answer = self.whoami(&self.alice, &cluster.name).await;
            (answer != Ok(cluster.identity.clone())).then(|| (cluster.name.clone(), answer))
        }))
        .await
        .into_iter()
        .flatten()
        .collect();
        assert!(wrong.is_empty(), "while {broken:?} is broken: {wrong:#?}");
    }

    /// Status, and the name that the API server knows us by, or its message.
    async fn whoami(&self, caller: &Caller, name: &str) -> Result<(u16, String), String> {
        self.ask(caller, name).await.map(|(status, body)| {
            let user = &body["status"]["userInfo"]["username"];
            let text = user.as_str().or(body["message"].as_str()).unwrap_or_default();
            (status, text.to_owned())
        })
    }

    async fn ask(&self, caller: &Caller, name: &str) -> Answer {
        ask(caller.clone(), name.to_owned(), self.offers.clone()).await
    }

    fn spawn(&self, name: &str) -> JoinHandle<Answer> {
        tokio::spawn(ask(self.alice.clone(), name.to_owned(), self.offers.clone()))
    }

    async fn caller(&self, person: &str) -> Caller {
        let token = self.cluster.issuer_a().id_token(person, "portal").await.unwrap();
        self.alice.with_token(Secret::new(token))
    }

    fn of(&self, label: &str) -> Vec<String> {
        let names = self.clusters.iter().map(|cluster| cluster.name.clone());
        names
            .filter(|name| name.rsplit_once('-').is_some_and(|(of, _)| of == label))
            .collect()
    }

    fn find(&self, name: &str) -> &Cluster {
        self.clusters.iter().find(|cluster| cluster.name == name).unwrap()
    }

    fn identity(&self, name: &str) -> (u16, String) {
        self.find(name).identity.clone()
    }

    fn way(&self, name: &str) -> &Way {
        &self.find(name).way
    }

    async fn mend(&self, name: &str) {
        self.way(name).route(Route::To(self.find(name).port)).await;
        let expected = self.identity(name);
        eventually(LIMIT, format!("{name} again"), async || {
            (self.whoami(&self.alice, name).await == Ok(expected.clone())).then_some(())
        })
        .await;
    }

    fn file(&self, name: &str) -> PathBuf {
        self.prepared.folder.path().join(name)
    }

    /// Success, and what it said.
    async fn program(&self, command: &str, config: &Path) -> (bool, String) {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kube-authn-program"))
            .arg(command)
            .arg("--config")
            .arg(config)
            .envs(
                self.prepared
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .kill_on_drop(true)
            .output();
        let output = within(LIMIT, command, output).await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

async fn ask(caller: Caller, name: String, offers: Vec<(&'static str, String)>) -> Answer {
    let path =
        format!("/api/kubernetes/clusters/{name}/proxy/apis/authentication.k8s.io/v1/selfsubjectreviews");
    let mut request = Request::post(path);
    for (provider, token) in &offers {
        request = request.header(format!("Backstage-Kubernetes-Authorization-{provider}"), token);
    }
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    caller.send(request, &review).await.map_err(|error| chain(&error))
}

/// In the documented form, with the cluster's name and the cause.
fn holds(name: &str, answer: &Answer, expected: Expected) {
    let (status, body) = answer.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
    let details = &body["details"];
    let code = details["causes"][0]["reason"].as_str().unwrap_or_default();
    let message = body["message"].as_str().unwrap_or_default();
    assert!(
        *status == expected.status
            && code == expected.code
            && details["name"] == *name
            && message.contains(expected.cause),
        "{name}: expected {expected:?}, got {status}: {body}"
    );
}

impl Hundred {
    async fn start() -> Self {
        let prepared = Prepared::new().await;
        let cluster = prepared.cluster;
        apply_accounts(cluster).await;
        let serving = cluster.authority().serving("stand-in").unwrap();
        let entra = Entra::start(&serving, pod::token(cluster, "by-azure", None).await).await;
        let google_token = pod::token(cluster, "by-google-account", None).await;
        let google = StandIn::start(None, move |_| {
            let answer = json!({ "access_token": google_token, "expires_in": 3600, "token_type": "Bearer" });
            async move { stand_in::json(200, &answer) }
        })
        .await;
        let google_way = Way::to(google.port()).await;
        let eks = StandIn::start(Some(&serving), |request| async move {
            let signer = signer(request.headers());
            stand_in::json(201, &json!({ "status": { "userInfo": { "username": signer } } }))
        })
        .await;
        let mount = Mount::new();
        let mounted = pod::token(cluster, "by-mounted", None).await;
        mount.publish(&service_account(cluster, &mounted));

        let maker = Maker::new(cluster, prepared.folder.path(), &entra).await;
        let api_server = cluster
            .api_server_url()
            .rsplit_once(':')
            .unwrap()
            .1
            .parse()
            .unwrap();
        let (mut clusters, mut entries) = (Vec::new(), Vec::new());
        for index in 0..100 {
            let label = match index {
                0 => "mounted",
                _ => LABELS[index % LABELS.len()],
            };
            let port = if label == "aws" { eks.port() } else { api_server };
            let way = Way::to(port).await;
            let name = format!("{label}-{index}");
            entries.push(maker.entry(label, &name, way.port()));
            clusters.push(Cluster {
                name,
                way,
                port,
                identity: identity(label),
            });
        }
        let config = maker.config(&prepared, &entries, google_way.port());
        fs::write(prepared.config(), config.to_string()).unwrap();
        let mut environment = prepared.environment.clone();
        environment.push(("KUBERNETES_SERVICE_HOST", "127.0.0.1".to_owned()));
        environment.push(("KUBERNETES_SERVICE_PORT", clusters[0].way.port().to_string()));
        let program = env!("CARGO_BIN_EXE_kube-authn-program");
        let serve = Serve {
            program: &in_pod(&mount, prepared.folder.path(), program).await,
            config: &prepared.config(),
            environment,
            drain: Duration::from_secs(1),
            cluster: None,
        };
        let served = serve.start().await.unwrap();
        let alice = alice(cluster, served.url()).await;
        stage::log_in(cluster, &alice).await;
        let mut this = Self {
            offers: vec![
                ("google", pod::token(cluster, "by-google-user", None).await),
                ("aks", pod::token(cluster, "by-aks", None).await),
                (
                    "oidc-okta",
                    cluster.issuer_b().id_token("alice", "kubernetes").await.unwrap(),
                ),
            ],
            cluster,
            prepared,
            config,
            clusters,
            mount,
            entra,
            google: google_way,
            google_port: google.port(),
            alice,
            served,
            unasked: BTreeSet::new(),
            hanging: Vec::new(),
        };
        this.unasked = this.unasked_at_first();
        this
    }

    fn unasked_at_first(&self) -> BTreeSet<String> {
        let broken = [
            ("azure", 4),
            ("google-account", 100),
            ("exec", 3),
            ("certificate", 1),
            ("mounted", 1),
        ];
        let names = broken
            .iter()
            .flat_map(|(label, count)| self.of(label).into_iter().take(*count));
        names.collect()
    }
}

/// Writes clusters down.
struct Maker {
    folder: PathBuf,
    ca_data: String,
    configured: String,
    minter: String,
    carrier: String,
    entra: String,
}

impl Maker {
    async fn new(cluster: &TestCluster, folder: &Path, entra: &Entra) -> Self {
        let exec = pod::token(cluster, "by-exec", None).await;
        let answer = json!({ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
                             "status": { "token": exec } });
        let script = format!(
            "case \"$(cat \"$1\")\" in\nhangs) sleep 60;;\ngarbage) echo garbage;;\nfails) exit 7;;\n*) echo '{answer}';;\nesac"
        );
        write_program(&folder.join("plugin"), &script);
        let robot = cluster.authority().client("robot", None).unwrap();
        for index in 0..100 {
            robot.write(folder, &format!("certificate-{index}")).unwrap();
        }
        Self {
            folder: folder.to_owned(),
            ca_data: STANDARD.encode(cluster.ca_pem()),
            configured: pod::token(cluster, "by-service-account", None).await,
            minter: pod::token(cluster, "minter", None).await,
            carrier: pod::token(cluster, "carrier", None).await,
            entra: entra.server.https(),
        }
    }

    fn entry(&self, label: &str, name: &str, port: u16) -> Value {
        let file = |name: String| self.folder.join(name);
        let (strategy, rest) = match label {
            "mounted" => ("serviceAccount", json!({})),
            "service-account" => (
                "serviceAccount",
                json!({ "serviceAccountToken": self.configured }),
            ),
            "minted" => {
                let asked = json!({ "namespace": "backstage", "serviceAccount": "by-minted" });
                let block = json!({ "tokenRequest": asked });
                (
                    "serviceAccount",
                    json!({ "serviceAccountToken": self.minter, "kubeAuthn": block }),
                )
            }
            "anonymous" => ("localKubectlProxy", json!({})),
            "aws" => (
                "aws",
                json!({ "kubeAuthn": { "aws": { "region": "eu-west-1" } } }),
            ),
            "azure" => ("azure", json!({ "kubeAuthn": { "azure": { "tenantId": name } } })),
            "google-account" => ("googleServiceAccount", json!({})),
            "google-user" => ("google", json!({})),
            "aks" => ("aks", json!({})),
            "oidc" => ("oidc", json!({ "oidcTokenProvider": "okta" })),
            "login" => ("clusterAuth", json!({})),
            "impersonation" => ("impersonation", json!({ "serviceAccountToken": self.carrier })),
            "certificate" => {
                let files = json!({ "certFile": file(format!("{name}.pem")), "keyFile": file(format!("{name}.key")) });
                (
                    "clientCertificate",
                    json!({ "kubeAuthn": { "clientCertificate": files } }),
                )
            }
            "exec" => {
                let mood = file(format!("{name}.mood"));
                fs::write(&mood, "").unwrap();
                let block = json!({ "command": file("plugin".to_owned()), "args": [mood] });
                ("exec", json!({ "kubeAuthn": { "exec": block } }))
            }
            other => panic!("{other}"),
        };
        let mut entry = json!({ "name": name, "url": format!("https://127.0.0.1:{port}"), "authProvider": strategy,
                                "caData": self.ca_data });
        entry
            .as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        entry
    }

    fn config(&self, prepared: &Prepared, entries: &[Value], google: u16) -> Value {
        let base: Value = serde_json::from_str(&fs::read_to_string(prepared.config()).unwrap()).unwrap();
        let google = json!({ "type": "authorized_user", "client_id": "portal", "client_secret": "unused",
                             "refresh_token": "unused", "token_uri": format!("http://127.0.0.1:{google}") });
        let mut config = json!({
            "backend": base["backend"],
            "clusterAuth": base["clusterAuth"],
            "aws": { "mainAccount": { "accessKeyId": SIGNER, "secretAccessKey": "wJalrXUtnFEMI" } },
            "kubernetes": {
                "googleServiceAccountCredentials": google.to_string(),
                "clusterLocatorMethods": [{ "type": "config", "clusters": entries }],
            },
            "kubeAuthn": base["kubeAuthn"],
        });
        // Tokens of both clients of the issuer are taken.
        config["clusterAuth"].as_object_mut().unwrap().remove("clientId");
        config["kubeAuthn"]["strategies"] = json!({
            "azure": { "authorityHost": self.entra, "caFile": prepared.cluster.ca_path(), "tenantId": "home",
                       "clientId": "portal", "clientSecret": "secret" },
            "exec": { "allow": [self.folder.join("plugin")], "timeout": "8s" },
            "impersonation": { "user": "{name}@example.com" },
        });
        config
    }
}

/// Entra, in a mood of its own for each tenant.
struct Entra {
    server: StandIn,
    moods: Arc<Mutex<HashMap<String, &'static str>>>,
}

impl Entra {
    async fn start(identity: &kube_authn_e2e::Identity, token: String) -> Self {
        let moods: Arc<Mutex<HashMap<String, &'static str>>> = Arc::default();
        let known = moods.clone();
        let server = StandIn::start(Some(identity), move |request| {
            let tenant = request.uri().path().split('/').nth(1).unwrap_or_default();
            let mood = known.lock().unwrap().get(tenant).copied().unwrap_or_default();
            let answer = json!({ "access_token": token, "expires_in": 3600, "token_type": "Bearer" });
            async move {
                match mood {
                    "hangs" => std::future::pending().await,
                    "closes" => None,
                    "garbage" => stand_in::reply(200, "application/json", "<html>"),
                    "fails" => stand_in::json(500, &json!({ "error": "server_error" })),
                    _ => stand_in::json(200, &answer),
                }
            }
        })
        .await;
        Self { server, moods }
    }

    fn mood(&self, tenant: &str, mood: &'static str) {
        self.moods.lock().unwrap().insert(tenant.to_owned(), mood);
    }
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

/// Who alice is at a cluster that is reached in this way.
fn identity(label: &str) -> (u16, String) {
    match label {
        "anonymous" => (403, ANONYMOUS.to_owned()),
        "aws" => (201, SIGNER.to_owned()),
        "oidc" | "login" | "impersonation" => (201, "alice@example.com".to_owned()),
        "certificate" => (201, "robot".to_owned()),
        label => (201, format!("system:serviceaccount:backstage:by-{label}")),
    }
}

/// A service account for each way, so that no two of them are the same person.
async fn apply_accounts(cluster: &TestCluster) {
    let accounts = LABELS.map(|label| format!("by-{label}"));
    let others = ["by-mounted", "minter", "carrier"].map(str::to_owned);
    let accounts = accounts.iter().chain(&others).map(|name| {
        format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{ name: {name}, namespace: backstage }}\n---\n"
        )
    });
    cluster.apply(accounts.collect::<String>() + RULES).await.unwrap();
}

/// The ways to thirteen kinds of credential; the first cluster of all is that of the pod itself.
const LABELS: [&str; 13] = [
    "service-account",
    "minted",
    "anonymous",
    "aws",
    "azure",
    "google-account",
    "google-user",
    "aks",
    "oidc",
    "login",
    "impersonation",
    "certificate",
    "exec",
];
const SIGNER: &str = "AKIAIOSFODNN7EXAMPLE";
const ANONYMOUS: &str = "selfsubjectreviews.authentication.k8s.io is forbidden: User \"system:anonymous\" cannot create \
    resource \"selfsubjectreviews\" in API group \"authentication.k8s.io\" at the cluster scope";
const RULES: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: hundred }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin }
subjects:
- { kind: ServiceAccount, name: minter, namespace: backstage }
- { kind: ServiceAccount, name: carrier, namespace: backstage }
";
