//! Secrets go in by every door, and a subscriber listens to every crate below us at trace level. Alone in its binary, so
//! that it hears all of it and nothing else.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use kube::{
    Api,
    api::{AttachParams, ListParams, PostParams, WatchParams},
};
use kube_authn::kube_authn_clusters::{AppConfig, Environment};
use kube_authn_core::{Body, Error, ErrorKind, RequestAuth, Secret};
use kube_authn_e2e::{Authority, TestCluster};
use kube_authn_oidc::PostedTokens;
use kube_authn_store::KeyRing;
use serde_json::json;
use support::{log::Log, *};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CANARY: &str = "canary-3f9a77c1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_of_any_input_ever_shows_in_a_log_an_error_a_debug_text_or_the_database() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(log.clone())
        .init();
    let cluster = TestCluster::shared().await.unwrap();
    let portal = Portal::with_config(cluster, &config(cluster)).await;
    let mut shown = Shown::default();

    let mut secrets = alice_works(&portal, &mut shown).await;
    secrets.extend(caller_offers_tokens(cluster, &portal, &mut shown).await);
    clusters_refuse_or_are_not_there(&portal, &mut shown).await;
    secrets.extend(forged_logins(&portal, &mut shown).await);
    another_key(&portal, &mut shown).await;
    broken_configurations(&mut shown).await;
    shown.debug(&(&portal.access, &portal.vault, &portal.config));
    portal
        .vault
        .log_out_all(user("alice").entity_ref().unwrap())
        .await
        .unwrap();

    let log = log.text();
    for heard in ["h2::", "rustls::", "kube_authn_core::", "kube_authn::audit"] {
        assert!(log.contains(heard), "{heard} was not listened to");
    }
    let database: Vec<u8> = std::fs::read_dir(portal.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("kube-authn.db"))
        .flat_map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(!database.is_empty() && secrets.len() >= 5 && shown.0.len() > 2_000);
    for secret in parts(&secrets) {
        let told: Vec<_> = log
            .lines()
            .filter(|line| line.contains(&secret))
            .take(3)
            .collect();
        assert!(told.is_empty(), "in the log: {told:#?}");
        let told: Vec<_> = shown
            .0
            .lines()
            .filter(|line| line.contains(&secret))
            .take(3)
            .collect();
        assert!(told.is_empty(), "shown: {told:#?}");
        let stored = database
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!stored, "the database holds a secret in clear");
    }
}

/// Beside the usual clusters: one that refuses its token, one that another CA vouches for, one that is not there.
fn config(cluster: &TestCluster) -> serde_json::Value {
    let mut config = app_config(cluster);
    let url = cluster.api_server_url();
    let stranger = STANDARD.encode(Authority::new("another CA").unwrap().pem());
    let more = [
        json!({ "name": "refusing", "url": url, "authProvider": "serviceAccount", "caData": "${CA_DATA}",
                "serviceAccountToken": format!("{CANARY}-configured") }),
        json!({ "name": "strange", "url": url, "authProvider": "clusterAuth", "caData": stranger }),
        json!({ "name": "absent", "url": "https://127.0.0.1:9", "authProvider": "clusterAuth", "caData": "${CA_DATA}",
                "authMetadata": { "example.com/token": format!("{CANARY}-metadata") } }),
    ];
    config["kubernetes"]["clusterLocatorMethods"][0]["clusters"]
        .as_array_mut()
        .unwrap()
        .extend(more);
    config
}

/// All that goes well, and the secrets that it went through.
async fn alice_works(portal: &Portal, shown: &mut Shown) -> Vec<Secret> {
    let (alice, stored) = portal.sign_in("alice").await;
    let client = portal.access.client(&alice, OPENPORTAL).await.unwrap();
    let pods = portal.pods(&alice, OPENPORTAL, "team-a-dev").await;
    let secret = json!({ "metadata": { "name": "canary" }, "stringData": { "password": CANARY } });
    let secrets: Api<KubeSecret> = Api::namespaced(client, "team-a-dev");
    secrets
        .create(&PostParams::default(), &serde_json::from_value(secret).unwrap())
        .await
        .unwrap();
    secrets.get("canary").await.unwrap();
    let mut watch = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    watch.next().await.unwrap().unwrap();
    let mut exec = pods
        .exec(
            "web-0",
            ["cat"],
            &AttachParams::default().stdin(true).stderr(false),
        )
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (exec.stdin().unwrap(), exec.stdout().unwrap());
    // No canary: kube's WebSocket library writes what it carries into the log at trace level.
    stdin.write_all(b"hello").await.unwrap();
    stdout.read_exact(&mut [0; 5]).await.unwrap();
    let forbidden = portal.pods(&alice, OPENPORTAL, "default").await;
    shown.error(&forbidden.list(&ListParams::default()).await.unwrap_err());

    let post = Request::post("/api/v1/namespaces/team-a-dev/configmaps")
        .header("authorization", format!("Bearer {CANARY}"))
        .header("cookie", CANARY)
        .header("x-forwarded-access-token", CANARY)
        .body(Body::from(Bytes::from(CANARY)))
        .unwrap();
    let request = portal.access.request(&alice, OPENPORTAL).unwrap();
    shown.debug(&(&request, portal.access.credential(&request).await.unwrap()));
    shown.debug(&portal.access.send(&request, post).await.unwrap());
    shown.debug(&portal.vault.load(&stored.key).await.unwrap());

    let robot = portal.access.request(&alice, RANCHER_DESKTOP).unwrap();
    let credential = portal.access.credential(&robot).await.unwrap();
    shown.debug(&credential);
    let token = robot.cluster.service_account_token().unwrap().clone();
    assert!(credential.carries(&token));
    portal.list(&alice, RANCHER_DESKTOP, "team-a").await.unwrap();
    [stored.secrets, vec![token, portal.encryption_key.clone()]].concat()
}

async fn caller_offers_tokens(cluster: &TestCluster, portal: &Portal, shown: &mut Shown) -> Vec<Secret> {
    let good = cluster.issuer_b().id_token("alice", "kubernetes").await.unwrap();
    // As it should be, of another audience, no token at all, and nothing that can stand in a header.
    let foreign = cluster.issuer_b().id_token("alice", "portal").await.unwrap();
    let (signature_cut, broken) = (
        &good[..good.len() - 40],
        format!("{CANARY}\r\nimpersonate-user: x"),
    );
    for token in [&*good, &foreign, signature_cut, CANARY, &broken] {
        let auth = RequestAuth::new()
            .with_oidc_token(OFFERED, Secret::new(token))
            .with_token("oidc", Secret::new(CANARY));
        shown.debug(&auth);
        let request = portal
            .access
            .request(&user("alice"), PASS_THROUGH)
            .unwrap()
            .with_auth(auth);
        match portal
            .access
            .send(&request, get("/api/v1/namespaces/team-a/pods"))
            .await
        {
            Ok(answer) => shown.debug(&answer),
            Err(error) => shown.error(&error),
        }
    }
    vec![Secret::new(good), Secret::new(foreign)]
}

async fn clusters_refuse_or_are_not_there(portal: &Portal, shown: &mut Shown) {
    for name in ["refusing", "strange", "absent"] {
        let pods = portal.pods(&user("alice"), name, "team-a").await;
        shown.error(&pods.list(&ListParams::default()).await.unwrap_err());
        let exec = pods.exec("web-0", ["true"], &AttachParams::default()).await;
        shown.error(&exec.map(drop).unwrap_err());
    }
}

async fn forged_logins(portal: &Portal, shown: &mut Shown) -> Vec<Secret> {
    let of_alice = portal.tokens_of("alice").await.unwrap();
    let of_mallory = portal.tokens_of("mallory").await.unwrap();
    let made_up = PostedTokens::new(Secret::new(format!("{CANARY}.{CANARY}.{CANARY}")))
        .with_access_token(Secret::new(CANARY))
        .with_refresh_token(Secret::new(CANARY));
    let mut offered = Vec::new();
    for (posted, whose) in [(of_alice, "bob"), (of_mallory, "alice"), (made_up, "alice")] {
        shown.debug(&posted);
        offered.extend([
            Some(posted.id_token.clone()),
            posted.access_token.clone(),
            posted.refresh_token.clone(),
        ]);
        let refused = portal
            .hand_over(&user(whose), posted)
            .await
            .map(drop)
            .unwrap_err();
        shown.error(&refused);
    }
    offered.into_iter().flatten().collect()
}

/// The same rows under another key ring: nothing opens.
async fn another_key(portal: &Portal, shown: &mut Shown) {
    let url = format!("sqlite://{}/kube-authn.db", portal.folder.path().display());
    let keys = KeyRing::random_key_base64().unwrap();
    let environment = Environment::of([(
        "KEY",
        kube_authn_core::secrecy::ExposeSecret::expose_secret(&keys).to_owned(),
    )]);
    let config = json!({
        "clusterAuth": { "issuer": "https://login.example.com/", "clientId": "kubernetes" },
        "kubernetes": { "serviceLocatorMethod": { "type": "multiTenant" }, "clusterLocatorMethods": [
            { "type": "config", "clusters": [{ "name": "a", "url": "https://a", "authProvider": "clusterAuth" }] }] },
        "kubeAuthn": { "store": { "type": "sqlite", "url": url },
                       "encryption": { "keys": [{ "id": "k1", "key": "${KEY}" }] } },
    });
    let config = AppConfig::from_texts(&[("app-config.yaml", &config.to_string())], &environment).unwrap();
    let vault = kube_authn::vault(&config).await.unwrap().unwrap();
    for (key, ..) in vault.list(user("alice").entity_ref().unwrap()).await.unwrap() {
        let error = vault.load(&key).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RecordDamaged);
        shown.error(&error);
    }
}

async fn broken_configurations(shown: &mut Shown) {
    let cluster = |entry: serde_json::Value| {
        json!({ "kubernetes": { "serviceLocatorMethod": { "type": "multiTenant" }, "clusterLocatorMethods": [
            { "type": "config", "clusters": [entry] }] } })
    };
    for config in [
        cluster(json!({ "name": "a", "url": format!("https://me:{CANARY}@a"), "authProvider": "aws" })),
        cluster(
            json!({ "name": "a", "url": "https://a", "authProvider": "serviceAccount",
                        "serviceAccountToken": [CANARY] }),
        ),
        cluster(
            json!({ "name": "a", "url": "https://a", "authProvider": "serviceAccount",
                        "serviceAccountToken": format!("{CANARY}\nx") }),
        ),
        json!({ "kubeAuthn": { "encryption": { "keys": [{ "id": "k1", "key": CANARY }] } } }),
        json!({ "kubeAuthn": { "encryption": { "keys": [CANARY] } } }),
    ] {
        let config = AppConfig::from_texts(
            &[("app-config.yaml", &config.to_string())],
            &Environment::of([("A", "a")]),
        )
        .unwrap();
        shown.debug(&config);
        let effective = kube_authn::effective_config(&config).await;
        assert!(!effective.problems.is_empty());
        shown.debug(&effective);
        shown.error(
            &kube_authn::cluster_access(&config, None)
                .await
                .map(drop)
                .unwrap_err(),
        );
    }
}

/// Every text that a program might print.
#[derive(Default)]
struct Shown(String);

impl Shown {
    fn debug(&mut self, value: &impl std::fmt::Debug) {
        self.0.push_str(&format!("{value:?}\n{value:#?}\n"));
    }

    fn error(&mut self, error: &(impl std::error::Error + 'static)) {
        self.debug(error);
        self.0.push_str(&chain(error));
        if let Some(ours) = Error::find(error) {
            self.debug(ours);
        }
        self.0.push('\n');
    }
}

/// The canary, and every part of a secret that is long enough to be known again.
fn parts(secrets: &[Secret]) -> Vec<String> {
    let parts = secrets
        .iter()
        .flat_map(|secret| secret.expose_str().unwrap().split('.'))
        .filter(|part| part.len() >= 16)
        .map(str::to_owned);
    parts.chain([CANARY.to_owned()]).collect()
}
