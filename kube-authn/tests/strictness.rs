//! What is assembled from a configuration is as strict as the configuration says.

#![allow(clippy::expect_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use kube_authn_clusters::{AppConfig, Environment};
use kube_authn_core::{ErrorKind, KeyId, TokenVault};
use kube_authn_store::{KeyRing, MemoryTokenStore};

fn config(cluster_auth: &str) -> AppConfig {
    let text = format!(
        "kubernetes:\n  clusterLocatorMethods:\n    - type: config\n      clusters:\n        \
         - {{ name: a, url: 'https://a.example', authProvider: clusterAuth }}\n{cluster_auth}"
    );
    AppConfig::from_texts(&[("app-config.yaml", &text)], &Environment::of::<&str, &str>([]))
        .expect("it parses")
}

fn vault() -> TokenVault {
    let key = KeyRing::random_key().expect("random");
    let keys = KeyRing::new(vec![(KeyId::new("k1").expect("an id"), key)]).expect("a ring");
    TokenVault::new(MemoryTokenStore::new(), keys)
}

#[tokio::test]
async fn logins_are_never_verified_by_settings_that_could_not_be_read() {
    for setting in [
        "clientId: '${GONE}'",
        "identityBinding: [subjekt]",
        "lifetimes: { max: soon }",
        "guests: [guest]",
        "caFile: /nonexistent/ca.pem",
    ] {
        let config = config(&format!(
            "clusterAuth:\n  issuer: https://login.example.com/\n  {setting}\n"
        ));

        let error = kube_authn::login_verifier(&config, &vault(), "a")
            .await
            .expect_err("refused");

        let key = setting.split(':').next().expect("a key");
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{setting}");
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[tokio::test]
async fn streams_never_outlive_their_credential_by_more_than_the_configured_grace() {
    for block in [
        "clusterAuth:\n  issuer: https://login.example.com/\n  lifetimes: { streamGrace: PT5S }\n",
        "clusterAuth:\n  clusters: [{ name: a, issuer: 'https://login.example.com/' }]\n  lifetimes: { streamGrace: PT5S }\n",
    ] {
        let access = kube_authn::cluster_access(&config(block), Some(vault()))
            .await
            .expect("an access");

        assert_eq!(access.stream_grace(), Duration::from_secs(5));
    }
}
