//! Every value of a full configuration replaced by every kind of wrong one.

#![allow(clippy::expect_used, reason = "tests")]

use kube_authn_clusters::{AppConfig, EffectiveConfig, Environment};
use proptest::prelude::*;
use serde_json::{Value, json};

fn full() -> Value {
    json!({
        "backend": { "baseUrl": "https://portal" },
        "kubernetes": {
            "serviceLocatorMethod": { "type": "multiTenant" },
            "clusterLocatorContinueOnError": false,
            "clusterLocatorMethods": [
                { "type": "config", "clusters": [
                    {
                        "name": "a", "title": "A", "url": "https://a", "authProvider": "serviceAccount",
                        "serviceAccountToken": "secret-of-a", "skipTLSVerify": false, "skipMetricsLookup": true,
                        "authMetadata": { "serviceAccountToken": "other-secret-of-a", "free": "x" },
                        "assumeRole": "r", "externalId": "e", "oidcTokenProvider": "o",
                        "customResources": [{ "group": "g", "apiVersion": "v", "plural": "p" }],
                        "dashboardUrl": "u", "dashboardApp": "standard", "dashboardParameters": { "x": 1 },
                    },
                    { "name": "b", "url": "https://b", "authProvider": "clusterAuth",
                      "dangerouslyAllowInsecureUserCredentials": true },
                ] },
                { "type": "localKubectlProxy" },
            ],
        },
        "clusterAuth": {
            "issuer": "https://i/", "clientId": "c", "verifySignature": true, "dangerouslySkipVerification": false,
            "tokenForCluster": "id_token", "identityBinding": ["subject", "claim:upn"], "exposeToken": "never",
            "guests": ["user:default/guest"], "lifetimes": { "assume": "1h", "max": { "hours": 2 }, "streamGrace": "PT1M" },
            "clusters": [{ "name": "b", "issuer": "https://j/", "clientId": "d" }],
        },
        "kubeAuthn": {
            "callers": [
                { "type": "backstage", "baseUrl": "https://p/api/auth" },
                { "type": "oidc", "issuer": "https://k/", "audience": "x",
                  "principal": { "claim": "c", "kind": "user", "namespace": "default" } },
                { "type": "header", "trustedPeers": ["10.0.0.0/8"], "user": "X-Forwarded-User" },
            ],
            "store": { "type": "sqlite", "url": "sqlite://x.db" },
            "encryption": { "keys": [{ "id": "k", "key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=" }] },
        },
    })
}

const SECRETS: [&str; 4] = ["secret-of-a", "other-secret-of-a", "AAECAwQF", "canary"];

/// JSON pointers to every value, objects and lists included.
fn pointers(value: &Value, here: &str, out: &mut Vec<String>) {
    out.push(here.to_owned());
    match value {
        Value::Object(entries) => entries.iter().for_each(|(key, value)| {
            pointers(value, &format!("{here}/{}", key.replace('/', "~1")), out);
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, value)| pointers(value, &format!("{here}/{index}"), out)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

async fn read(value: &Value) -> Option<EffectiveConfig> {
    let text = value.to_string();
    let config =
        AppConfig::from_texts(&[("app-config.json", &text)], &Environment::of([("EMPTY", "")])).ok()?;
    Some(EffectiveConfig::read(&config).await)
}

#[tokio::test]
async fn full_configuration_has_no_problem() {
    let config = read(&full()).await.expect("a configuration");

    assert_eq!(config.problems, []);
    assert_eq!(config.clusters.len(), 3);
}

#[tokio::test]
async fn no_wrong_value_shows_a_secret_or_passes_for_a_problem_without_a_place() {
    let full = full();
    let mut places = Vec::new();
    pointers(&full, "", &mut places);
    let wrong = [
        json!(null),
        json!(7),
        json!(true),
        json!(""),
        json!("${GONE}"),
        json!("${EMPTY}"),
        json!([]),
        json!([null]),
        json!(["canary"]),
        json!({}),
        json!({ "$env": "GONE" }),
    ];
    for place in places.iter().skip(1) {
        for value in &wrong {
            let mut config = full.clone();
            *config.pointer_mut(place).expect("a place") = value.clone();

            let Some(read) = read(&config).await else { continue };

            for problem in &read.problems {
                assert!(
                    problem.file.is_some() && !problem.key.is_empty(),
                    "{place} {value}: {problem}"
                );
            }
            let shown = format!(
                "{read:?} {}",
                read.problems.iter().map(ToString::to_string).collect::<String>()
            );
            // A text among `claims` and names may be shown; the secrets never.
            for secret in SECRETS
                .iter()
                .filter(|secret| **secret != "canary" || place.ends_with("oken"))
            {
                assert!(!shown.contains(secret), "{place} {value}: {shown}");
            }
        }
    }
}

#[tokio::test]
async fn wrong_token_gives_no_cluster_and_a_problem() {
    let place = "/kubernetes/clusterLocatorMethods/0/clusters/0/serviceAccountToken";
    for value in [
        json!(7),
        json!(""),
        json!("${GONE}"),
        json!(["canary"]),
        json!({ "$env": "GONE" }),
    ] {
        let mut config = full();
        *config.pointer_mut(place).expect("a place") = value;

        let read = read(&config).await.expect("a configuration");

        assert_eq!(read.problems.len(), 1, "{:?}", read.problems);
        assert!(read.clusters.iter().all(|cluster| cluster.name().as_str() != "a"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_reader_panic(text in "(kubernetes|clusterAuth|[a-z&*!|>'\"{}\\[\\],:#%@`$ -]|\n|\t|é){0,60}") {
        let environment = Environment::of([("A", "a")]);
        let _ = AppConfig::from_texts(&[("a.yaml", &text)], &environment);
        let _ = AppConfig::from_texts(&[("a.json", &text)], &environment);
    }

    #[test]
    fn what_was_written_is_read_back(entries in proptest::collection::btree_map("[a-z]{1,8}", "[^$]{0,20}", 0..8)) {
        let written = json!(entries);
        let config = AppConfig::from_texts(&[("a.json", &written.to_string())], &Environment::of([("A", "a")]));
        prop_assert_eq!(config.expect("a configuration").root().json(), Some(written));
    }
}
