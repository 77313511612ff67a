//! Strategies that need nothing but this API server: `exec`, `clientCertificate`, `impersonation`, and `serviceAccount` with
//! `tokenRequest`. What an API server says we are is what counts.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use std::{fs, path::Path, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, UserInfo},
    core::v1::Pod,
};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use kube_authn::{
    kube_authn_clusters::{AppConfig, Environment},
    kube_authn_providers::ClientCertificateProvider,
};
use kube_authn_core::{
    CachingProvider, ClusterAccess, ClusterDetails, Clusters, ErrorKind, Issuer, ManualClock, Principal,
    ProviderRegistry, StrategyOptions, Subject, UpstreamPool,
    jiff::{SignedDuration, Timestamp},
};
use kube_authn_e2e::{Identity, TestCluster, fixtures};
use serde_json::{Value, json};
use support::{pod::write_program, *};

#[tokio::test]
async fn api_server_knows_us_by_what_an_exec_plugin_prints() {
    let cluster = TestCluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let token = bound_token(cluster, "portal").await;
    let robot = cluster.authority().client("robot", Some("robots")).unwrap();
    let status = [
        ("token", json!({ "token": token })),
        (
            "certificate",
            json!({ "clientCertificateData": robot.certificate, "clientKeyData": robot.key }),
        ),
        ("refused", json!({ "token": "nobody-knows-this-one" })),
    ];
    let entries = status.map(|(name, status)| {
        let plugin = folder.path().join(name);
        let answer = json!({ "apiVersion": V1, "kind": "ExecCredential", "status": status });
        write_program(
            &plugin,
            &format!("echo run >> \"$0.runs\"\ncat <<'END'\n{answer}\nEND"),
        );
        (
            name,
            "exec",
            json!({ "kubeAuthn": { "exec": { "command": plugin } } }),
        )
    });
    let allowed: Vec<_> = status_names(&entries)
        .map(|name| folder.path().join(name))
        .collect();
    let strategies = json!({ "exec": { "allow": allowed, "timeout": "10s" } });
    let access = access(cluster, &entries, &strategies).await;

    assert_eq!(
        whoami(&access, &nobody(), "token")
            .await
            .unwrap()
            .username
            .unwrap(),
        PORTAL
    );
    let certificate = whoami(&access, &nobody(), "certificate").await.unwrap();
    assert_eq!(certificate.username.as_deref(), Some("robot"));
    assert!(certificate.groups.unwrap().contains(&"robots".to_owned()));
    assert_eq!(
        whoami(&access, &nobody(), "token")
            .await
            .unwrap()
            .username
            .unwrap(),
        PORTAL
    );
    assert_eq!(runs(folder.path(), "token"), 1);

    // Refused with 401: asked once more, and not again for a while.
    let refused = whoami(&access, &nobody(), "refused").await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 401));
    assert_eq!(runs(folder.path(), "refused"), 2);
}

#[tokio::test]
async fn api_server_knows_us_by_common_name_and_organization_and_a_replaced_pair_is_taken_up() {
    let cluster = TestCluster::shared().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pair = |name: &str| cluster.authority().client(name, Some("robots")).unwrap();
    pair("first").write(folder.path(), "client").unwrap();
    let (details, clock) = (
        certificate_cluster(cluster, folder.path()),
        ManualClock::at(now()),
    );
    let crypto = Arc::new(kube_authn_core::rustls::crypto::aws_lc_rs::default_provider());
    let provider = ClientCertificateProvider::new()
        .with_key_check(crypto.clone())
        .with_clock(clock.clone());
    let cache = CachingProvider::with_clock_and_capacity(
        ProviderRegistry::new().with(provider),
        Arc::new(clock.clone()),
        10,
    );
    let access = ClusterAccess::new(Clusters::new(vec![details]), cache, UpstreamPool::new(crypto))
        .with_clock(Arc::new(clock.clone()));
    let first = whoami(&access, &nobody(), "certificate").await.unwrap();
    assert_eq!(first.username.as_deref(), Some("first"));
    assert!(first.groups.unwrap().contains(&"robots".to_owned()));

    pair("second").write(folder.path(), "client").unwrap();
    clock.advance_seconds(61);

    eventually(PATIENCE, "the second pair", async || {
        let user = whoami(&access, &nobody(), "certificate")
            .await
            .unwrap()
            .username
            .unwrap();
        (user == "second").then_some(())
    })
    .await;
}

#[tokio::test]
async fn certificate_and_key_may_stand_in_the_configuration() {
    let cluster = TestCluster::shared().await.unwrap();
    let Identity { certificate, key, .. } = cluster.authority().client("inline", None).unwrap();
    let block = json!({ "certData": STANDARD.encode(certificate), "keyData": STANDARD.encode(key) });
    let entry = json!({ "kubeAuthn": { "clientCertificate": block } });
    let access = access(cluster, &[("inline", "clientCertificate", entry)], &json!({})).await;

    let user = whoami(&access, &nobody(), "inline").await.unwrap();

    assert_eq!(user.username.as_deref(), Some("inline"));
}

#[tokio::test]
async fn with_the_rules_that_check_prints_users_are_themselves_and_nobody_else() {
    let cluster = TestCluster::shared().await.unwrap();
    let token = account(cluster, "impersonator").await;
    let entry =
        |mapping: Value| json!({ "serviceAccountToken": token, "kubeAuthn": { "impersonation": mapping } });
    let mapping = json!({ "user": "{name}@example.com", "groups": ["portal-users"] });
    let entries = [
        ("mapped", "impersonation", entry(mapping)),
        (
            "other-groups",
            "impersonation",
            entry(json!({ "groups": ["cluster-ops"] })),
        ),
        (
            "by-subject",
            "impersonation",
            entry(json!({ "user": "{subject}" })),
        ),
    ];
    let config = config(cluster, &entries, &json!({}));
    let effective = kube_authn::effective_config(&config).await;
    let rules = kube_authn::impersonation_rules(&effective);
    let (_, rules) = rules.iter().find(|(name, _)| name == "mapped").unwrap();
    let binding = "\n---\n\
        apiVersion: rbac.authorization.k8s.io/v1\n\
        kind: ClusterRoleBinding\n\
        metadata: { name: kube-authn-impersonation }\n\
        roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kube-authn-impersonation }\n\
        subjects: [{ kind: ServiceAccount, name: impersonator, namespace: backstage }]\n";
    cluster.apply(format!("{rules}{binding}")).await.unwrap();
    let access = kube_authn::cluster_access(&config, None).await.unwrap();
    let (alice, bob) = (user("alice"), user("bob"));

    // As alice, with her rights and no others.
    let who = whoami(&access, &alice, "mapped").await.unwrap();
    assert_eq!(who.username.as_deref(), Some("alice@example.com"));
    assert!(who.groups.unwrap().contains(&"portal-users".to_owned()));
    assert_eq!(list(&access, &alice, "mapped", "team-a").await, 200);
    assert_eq!(list(&access, &alice, "mapped", "team-b").await, 403);
    assert_eq!(list(&access, &bob, "mapped", "team-a").await, 403);
    let both = cluster.audit_event(|event| {
        event["user"]["username"] == "system:serviceaccount:backstage:impersonator"
            && event["impersonatedUser"]["username"] == "alice@example.com"
            && event["objectRef"]["namespace"] == "team-a"
            && event["verb"] == "list"
    });
    both.await.unwrap();

    // Groups that the rules do not name: the API server says no.
    assert_eq!(list(&access, &alice, "other-groups", "team-a").await, 403);

    // Reserved names: we say no, and nothing is sent.
    let issuer = Issuer::new("https://login.example.com/").unwrap();
    let mallory = user("mallory").with_verified(issuer, Subject::new("system:kube-scheduler").unwrap());
    let refused = access.client(&mallory, "by-subject").await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    let sent = |event: &Value| event["impersonatedUser"]["username"] == "system:kube-scheduler";
    assert!(!cluster.audit_lines().unwrap().iter().any(sent));
    let anonymous = access.client(&nobody(), "mapped").await.err().unwrap();
    assert_eq!(anonymous.kind(), ErrorKind::LoginRequired);
}

#[tokio::test]
async fn minted_tokens_are_short_lived_and_of_the_named_service_account_alone() {
    let cluster = TestCluster::shared().await.unwrap();
    let token = account(cluster, "minter").await;
    let rules = "apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: Role\n\
         metadata: { name: minter, namespace: backstage }\n\
         rules:\n\
         - { apiGroups: [\"\"], resources: [serviceaccounts/token], verbs: [create], resourceNames: [portal] }\n\
         ---\n\
         apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: RoleBinding\n\
         metadata: { name: minter, namespace: backstage }\n\
         roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: minter }\n\
         subjects: [{ kind: ServiceAccount, name: minter, namespace: backstage }]\n";
    cluster.apply(rules).await.unwrap();
    let entry = |account: &str| {
        let block = json!({ "namespace": "backstage", "serviceAccount": account, "expirationSeconds": 600 });
        json!({ "serviceAccountToken": token, "kubeAuthn": { "tokenRequest": block } })
    };
    let entries = [
        ("minted", "serviceAccount", entry("portal")),
        ("forbidden", "serviceAccount", entry("default")),
    ];
    let access = access(cluster, &entries, &json!({})).await;

    let who = whoami(&access, &nobody(), "minted").await.unwrap();
    assert_eq!(who.username.as_deref(), Some(PORTAL));
    let request = access.request(&nobody(), "minted").unwrap();
    let credential = access.credential(&request).await.unwrap();
    let left = credential.expires_at().unwrap().duration_since(now());
    assert!(
        left > SignedDuration::from_secs(500) && left <= SignedDuration::from_secs(601),
        "{left:?}"
    );

    let refused = access.client(&nobody(), "forbidden").await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::ConfigInvalid);
    let text = refused.to_string();
    assert!(
        text.contains("verb create on serviceaccounts/token, resourceNames [default]"),
        "{text}"
    );
}

/// The clusters are all this one; each has a name, a strategy, and settings of its own.
fn config(cluster: &TestCluster, entries: &[(&str, &str, Value)], strategies: &Value) -> AppConfig {
    let entries: Vec<Value> = entries
        .iter()
        .map(|(name, provider, settings)| {
            let mut entry = settings.clone();
            entry["name"] = (*name).into();
            entry["url"] = cluster.api_server_url().into();
            entry["caData"] = STANDARD.encode(cluster.ca_pem()).into();
            entry["authProvider"] = (*provider).into();
            entry
        })
        .collect();
    let config = json!({
        "kubernetes": {
            "serviceLocatorMethod": { "type": "multiTenant" },
            "clusterLocatorMethods": [{ "type": "config", "clusters": entries }],
        },
        "kubeAuthn": { "strategies": strategies },
    });
    let layers = [("app-config.yaml", config.to_string())];
    let layers = layers.each_ref().map(|(name, text)| (*name, text.as_str()));
    AppConfig::from_texts(&layers, &Environment::of([("", "")])).unwrap()
}

async fn access(cluster: &TestCluster, entries: &[(&str, &str, Value)], strategies: &Value) -> ClusterAccess {
    let config = config(cluster, entries, strategies);
    kube_authn::cluster_access(&config, None).await.unwrap()
}

fn certificate_cluster(cluster: &TestCluster, folder: &Path) -> ClusterDetails {
    let files = json!({ "certFile": folder.join("client.pem"), "keyFile": folder.join("client.key") });
    let block = json!({ "clientCertificate": files });
    ClusterDetails::builder("certificate", cluster.api_server_url())
        .auth_provider(ClientCertificateProvider::NAME)
        .ca_pem(cluster.ca_pem())
        .options(StrategyOptions::new(block.as_object().unwrap().clone()))
        .build()
        .unwrap()
}

/// Who the API server says we are.
async fn whoami(access: &ClusterAccess, principal: &Principal, cluster: &str) -> kube::Result<UserInfo> {
    let client = access.client(principal, cluster).await.unwrap();
    let review = Api::<SelfSubjectReview>::all(client)
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    Ok(review.status.unwrap().user_info.unwrap())
}

/// The status of a list of pods.
async fn list(access: &ClusterAccess, principal: &Principal, cluster: &str, namespace: &str) -> u16 {
    let client = access.client(principal, cluster).await.unwrap();
    match Api::<Pod>::namespaced(client, namespace)
        .list(&ListParams::default())
        .await
    {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("no answer: {error}"),
    }
}

/// A service account of its own in `backstage`, and its token.
async fn account(cluster: &TestCluster, name: &str) -> String {
    let yaml =
        format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{ name: {name}, namespace: backstage }}\n");
    cluster.apply(yaml).await.unwrap();
    bound_token(cluster, name).await
}

async fn bound_token(cluster: &TestCluster, name: &str) -> String {
    let admin = cluster.client().await.unwrap();
    fixtures::bound_token(&admin, "backstage", name, Duration::from_secs(3600))
        .await
        .unwrap()
}

fn status_names<'e>(entries: &'e [(&'e str, &'e str, Value)]) -> impl Iterator<Item = &'e str> {
    entries.iter().map(|(name, ..)| *name)
}

fn runs(folder: &Path, plugin: &str) -> usize {
    let runs = fs::read_to_string(folder.join(format!("{plugin}.runs")));
    runs.unwrap().lines().count()
}

fn nobody() -> Principal {
    Principal::anonymous()
}

#[allow(
    clippy::disallowed_methods,
    reason = "the API server goes by this machine's clock"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

const V1: &str = "client.authentication.k8s.io/v1";
const PORTAL: &str = "system:serviceaccount:backstage:portal";
const PATIENCE: Duration = Duration::from_secs(20);
