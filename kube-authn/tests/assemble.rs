//! From an app-config to a vault and an access, and what is refused on the way. No network.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use async_trait::async_trait;
use kube_authn::{
    kube_authn_clusters::{AppConfig, Environment, PeerRange},
    kube_authn_core::{
        ClusterDetails, Credential, CredentialRequest, CredentialScope, EntityRef, ErrorKind,
        KubernetesAuthProvider, Metadata, Principal, Problem, Result, Secret,
    },
};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Strategies that need neither a store nor a key.
const PLAIN: &str = "
kubernetes:
  serviceLocatorMethod: { type: multiTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - { name: robot, url: https://robot.example.com, authProvider: serviceAccount, serviceAccountToken: t }
        - { name: proxy, url: http://localhost:8001, authProvider: localKubectlProxy }
        - { name: offered, url: https://o.example.com, authProvider: oidc, oidcTokenProvider: okta }
";

/// One cluster that users reach with their own logins.
const USERS: &str = "
clusterAuth: { issuer: https://login.example.com/, clientId: kubernetes }
kubernetes:
  serviceLocatorMethod: { type: multiTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - { name: openportal, url: https://o.example.com, authProvider: clusterAuth }
";

const MEMORY: &str = "
kubeAuthn:
  store: { type: memory }
  encryption: { keys: [{ id: k1, key: '${KUBE_AUTHN_KEY}' }] }
";

fn config(layers: &[&str]) -> AppConfig {
    let layers: Vec<_> = layers.iter().map(|text| ("app-config.yaml", *text)).collect();
    AppConfig::from_texts(&layers, &Environment::of([("KUBE_AUTHN_KEY", KEY)])).unwrap()
}

fn alice() -> Principal {
    Principal::user(EntityRef::parse("user:default/alice").unwrap())
}

#[tokio::test]
async fn gateway_is_never_taken_for_a_single_client_and_nobody_else_for_a_gateway() {
    let callers = "
kubeAuthn:
  callers:
    - { type: oidc, issuer: https://login.example.com/, audience: kube-authn }
    - { type: header, trustedPeers: [10.1.0.0/16, fd00::7], user: X-Forwarded-User }
";

    let named = kube_authn::service(&config(&[PLAIN, callers]), false)
        .await
        .unwrap();
    let unnamed = kube_authn::service(&config(&[PLAIN]), false).await.unwrap();

    let ranges = ["10.1.0.0/16", "fd00::7"].map(|range| PeerRange::parse(range).unwrap());
    assert_eq!((named.gateways, unnamed.gateways), (ranges.to_vec(), Vec::new()));
}

#[tokio::test]
async fn logins_are_never_stored_without_a_key_and_the_refusal_says_how_to_make_one() {
    let error = kube_authn::vault(&config(&[USERS])).await.expect_err("no key");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("kubeAuthn.encryption.keys"), "{error}");
    assert!(error.to_string().contains("kube-authn keygen"), "{error}");
}

#[tokio::test]
async fn clusters_with_logins_are_never_served_without_a_vault() {
    let error = kube_authn::cluster_access(&config(&[USERS, MEMORY]), None)
        .await
        .expect_err("no vault");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("kube_authn::vault"), "{error}");
}

#[tokio::test]
async fn plain_backstage_file_needs_no_store_and_no_key() {
    let config = config(&[PLAIN]);

    let vault = kube_authn::vault(&config).await.unwrap();
    let access = kube_authn::cluster_access(&config, vault.clone()).await.unwrap();

    assert!(vault.is_none());
    let robot = access.request(&alice(), "robot").unwrap();
    let credential = access.credential(&robot).await.unwrap();
    assert!(credential.carries(&Secret::new("t")));
    let offered = access.client(&alice(), "offered").await.map(drop).unwrap_err();
    assert_eq!(
        (offered.kind(), offered.provider()),
        (ErrorKind::LoginRequired, Some("oidc"))
    );
}

#[tokio::test]
async fn three_lines_give_an_access_that_asks_for_a_login() {
    let config = config(&[USERS, MEMORY]);

    let vault = kube_authn::vault(&config).await.unwrap();
    let access = kube_authn::cluster_access(&config, vault).await.unwrap();
    let error = access.client(&alice(), "openportal").await.map(drop).unwrap_err();

    assert_eq!(
        (
            error.kind(),
            error.provider(),
            error.cluster(),
            error.to_string().as_str()
        ),
        (
            ErrorKind::LoginRequired,
            Some("clusterAuth"),
            Some("openportal"),
            "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster."
        )
    );
}

#[tokio::test]
async fn sqlite_store_of_the_configuration_is_opened_where_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logins.db");
    let store = MEMORY.replace(
        "{ type: memory }",
        &format!("{{ type: sqlite, url: 'sqlite://{}' }}", file.display()),
    );

    let vault = kube_authn::vault(&config(&[USERS, &store]))
        .await
        .unwrap()
        .unwrap();

    assert!(file.is_file());
    let user = EntityRef::parse("user:default/alice").unwrap();
    assert_eq!(vault.list(&user).await.unwrap().len(), 0);
}

#[tokio::test]
async fn store_that_cannot_be_opened_is_named_with_its_key() {
    let store = MEMORY.replace(
        "{ type: memory }",
        "{ type: sqlite, url: 'sqlite:///nowhere/at/all.db' }",
    );

    let error = kube_authn::vault(&config(&[USERS, &store]))
        .await
        .expect_err("no folder");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{error}");
    for part in ["/nowhere/at/all.db", "kubeAuthn.store.url"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn malformed_url_of_a_redis_store_is_a_problem_that_repeats_nothing_of_it() {
    for url in [
        "redis://portal:canary@db:port",
        "redis+canary://db",
        "redis+sentinel://portal:canary@db",
    ] {
        let store = MEMORY.replace("{ type: memory }", &format!("{{ type: redis, url: '{url}' }}"));

        let effective = kube_authn::effective_config(&config(&[USERS, &store])).await;

        let [problem] = &effective.problems[..] else {
            panic!("{:?}", effective.problems)
        };
        assert_eq!(problem.key, "kubeAuthn.store.url");
        assert!(
            problem.message.contains("not the URL of a Redis store"),
            "{problem:?}"
        );
        assert!(!format!("{effective:?}").contains("canary"), "{problem:?}");
    }
}

#[tokio::test]
async fn all_problems_of_a_configuration_come_in_one_refusal() {
    let broken = "
kubernetes:
  serviceLocatorMethod: { type: multiTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - { name: a, url: https://a, authProvider: magic }
        - { name: b, url: nowhere, authProvider: localKubectlProxy }
";

    let error = kube_authn::cluster_access(&config(&[broken]), None)
        .await
        .expect_err("two problems");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    for part in ["clusters[0].authProvider", "clusters[1].url", "magic"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn custom_strategy_stands_beside_the_built_in_ones() {
    let custom = PLAIN.replace("authProvider: localKubectlProxy", "authProvider: fixed");
    let config = config(&[&custom]);

    let access = kube_authn::cluster_access_with(&config, None, |registry| registry.with(Fixed))
        .await
        .unwrap();
    let credentials = async |cluster: &str| {
        let request = access.request(&alice(), cluster).unwrap();
        access.credential(&request).await.unwrap()
    };

    assert!(credentials("proxy").await.carries(&Secret::new("fixed-token")));
    assert!(credentials("robot").await.carries(&Secret::new("t")));
    let without = kube_authn::cluster_access(&config, None)
        .await
        .expect_err("unknown strategy");
    assert!(
        without
            .to_string()
            .contains("authProvider \"fixed\" has no config associated with it"),
        "{without}"
    );
}

/// A strategy of the embedding program.
#[derive(Debug)]
struct Fixed;

#[async_trait]
impl KubernetesAuthProvider for Fixed {
    fn name(&self) -> &str {
        "fixed"
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    fn validate(&self, _: &ClusterDetails) -> Vec<Problem> {
        Vec::new()
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, _: &CredentialRequest) -> Result<Credential> {
        Credential::bearer(&Secret::new("fixed-token"))
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        false
    }
}
