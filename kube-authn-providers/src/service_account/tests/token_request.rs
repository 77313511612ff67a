//! `kubeAuthn.tokenRequest`: what is checked before anything is sent. The rest is tested with an API server.

use kube_authn_core::{
    StrategyOptions,
    serde_json::{Value, json},
};

use super::*;

fn minting(settings: &Value) -> ClusterDetails {
    let block = json!({ "tokenRequest": settings });
    cluster(ServiceAccountProvider::NAME)
        .service_account_token(Secret::new("bootstrap"))
        .options(StrategyOptions::new(
            block.as_object().expect("an object").clone(),
        ))
        .build()
        .expect("a cluster")
}

fn keys(settings: &Value) -> Vec<String> {
    let problems = ServiceAccountProvider::new().validate(&minting(settings));
    problems.into_iter().map(|problem| problem.key).collect()
}

#[test]
fn settings_are_checked_all_at_once() {
    let good = json!({ "namespace": "team-a", "serviceAccount": "robot", "expirationSeconds": "600", "audiences": ["x"] });
    assert_eq!(keys(&good), [""; 0]);

    let wrong =
        json!({ "namespace": "../secrets", "expirationSeconds": 599, "audience": "x", "audiences": 7 });
    assert_eq!(
        keys(&wrong),
        [
            "kubeAuthn.tokenRequest.audience",
            "kubeAuthn.tokenRequest.namespace",
            "kubeAuthn.tokenRequest.serviceAccount",
            "kubeAuthn.tokenRequest.expirationSeconds",
            "kubeAuthn.tokenRequest.audiences",
        ]
    );
    assert_eq!(
        keys(&json!("robot")),
        [
            "kubeAuthn.tokenRequest",
            "kubeAuthn.tokenRequest.namespace",
            "kubeAuthn.tokenRequest.serviceAccount",
        ]
    );
}

#[test]
fn name_that_leads_elsewhere_never_becomes_part_of_a_path() {
    for name in ["a/b", "..", "a%2fb", "A", "a?x", "-a", "a.", ""] {
        let settings = json!({ "namespace": name, "serviceAccount": "robot" });

        assert_eq!(keys(&settings), ["kubeAuthn.tokenRequest.namespace"], "{name}");
    }
}

#[tokio::test]
async fn bootstrap_token_is_never_used_in_place_of_a_minted_one() {
    let cluster = minting(&json!({ "namespace": "team-a", "serviceAccount": "robot" }));

    let error = ServiceAccountProvider::new()
        .credential(&request("alice", &cluster))
        .await
        .expect_err("no connections");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(error.to_string().contains("team-a/robot"), "{error}");
}
