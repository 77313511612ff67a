//! Logins of several issuers, and clusters with an audience of their own, before a real API server.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod support;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Request;
use kube_authn_e2e::{Caller, TestCluster};
use serde_json::{Value, json};
use support::{
    NO_LOGIN, OPENPORTAL,
    fleet::{Fleet, config, post},
};

/// The same API server, whose users log in at issuer A.
const ELSEWHERE: &str = "elsewhere";
/// The same API server and issuer as [`OPENPORTAL`], with tokens for the audience `narrow`.
const NARROW: &str = "narrow";
/// The same with an audience that the issuer makes no tokens for.
const REFUSED: &str = "refused";

async fn fleet() -> Fleet {
    let cluster = TestCluster::shared().await.unwrap();
    let url = cluster.api_server_url();
    let clusters = [OPENPORTAL, ELSEWHERE, NARROW, REFUSED].map(|name| (name, url.as_str()));
    let mut config = config(cluster, &clusters);
    config["clusterAuth"]["exposeToken"] = json!("user");
    config["clusterAuth"]["clusters"] = json!([
        { "name": ELSEWHERE, "issuer": cluster.issuer_a().url(), "clientId": "portal", "caFile": cluster.ca_path() },
        { "name": NARROW, "audience": "narrow" },
        { "name": REFUSED, "audience": "nobody" },
    ]);
    let store = json!({ "type": "sqlite", "url": "sqlite://${FOLDER}/kube-authn.db" });
    Fleet::start(cluster, 1, &store, config).await
}

/// Under which name the API server knows the caller, or why there is no answer.
async fn who(caller: &Caller, cluster: &str) -> Result<String, (u16, String)> {
    let path =
        format!("/api/kubernetes/clusters/{cluster}/proxy/apis/authentication.k8s.io/v1/selfsubjectreviews");
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let (status, answer) = caller.send(Request::post(path), &review).await.unwrap();
    match status {
        201 => Ok(answer["status"]["userInfo"]["username"]
            .as_str()
            .unwrap()
            .to_owned()),
        _ => Err((status, answer["message"].as_str().unwrap_or_default().to_owned())),
    }
}

/// Name and whether there is a usable login, by cluster.
async fn states(caller: &Caller) -> Vec<(String, bool)> {
    let (status, answer) = caller.get("/api/cluster-auth/status").await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let state = |cluster: &Value| {
        let name = cluster["name"].as_str().unwrap().to_owned();
        (name, cluster["authenticated"].as_bool().unwrap())
    };
    answer["clusters"].as_array().unwrap().iter().map(state).collect()
}

fn expected(states: [(&str, bool); 4]) -> Vec<(String, bool)> {
    states.map(|(name, usable)| (name.to_owned(), usable)).to_vec()
}

fn no_login() -> Result<String, (u16, String)> {
    Err((401, NO_LOGIN.to_owned()))
}

#[tokio::test]
async fn one_login_serves_every_cluster_of_its_issuer_and_no_other() {
    let fleet = fleet().await;
    let alice = fleet.caller("alice", 0).await;
    let of_b = fleet
        .cluster
        .issuer_b()
        .sign_in("alice", "kubernetes")
        .await
        .unwrap();
    let of_a = fleet.cluster.issuer_a().sign_in("alice", "portal").await.unwrap();

    assert_eq!(who(&alice, OPENPORTAL).await, no_login());
    post(&alice, &of_b).await;

    assert_eq!(who(&alice, OPENPORTAL).await.unwrap(), "alice@example.com");
    assert_eq!(who(&alice, ELSEWHERE).await, no_login());
    let of_issuer_b = [
        (OPENPORTAL, true),
        (NARROW, true),
        (REFUSED, true),
        (ELSEWHERE, false),
    ];
    assert_eq!(states(&alice).await, expected(of_issuer_b));

    post(&alice, &of_a).await;
    assert_eq!(who(&alice, ELSEWHERE).await.unwrap(), "portal:alice");
    assert_eq!(who(&alice, OPENPORTAL).await.unwrap(), "alice@example.com");

    let logout = Request::delete(format!("/api/cluster-auth/tokens?cluster={OPENPORTAL}"));
    let (status, ended) = alice.send(logout, &Value::Null).await.unwrap();
    assert_eq!(
        (status, &ended["clusters"]),
        (200, &json!([NARROW, OPENPORTAL, REFUSED]))
    );
    assert_eq!(who(&alice, OPENPORTAL).await, no_login());
    assert_eq!(who(&alice, NARROW).await, no_login());
    assert_eq!(who(&alice, ELSEWHERE).await.unwrap(), "portal:alice");
}

#[tokio::test]
async fn tokens_of_one_issuer_are_never_taken_for_a_cluster_of_another() {
    let fleet = fleet().await;
    let alice = fleet.caller("alice", 0).await;
    let of_b = fleet
        .cluster
        .issuer_b()
        .sign_in("alice", "kubernetes")
        .await
        .unwrap();
    let for_another_client = fleet
        .cluster
        .issuer_b()
        .sign_in("alice", "kubernetes-short")
        .await
        .unwrap();
    let bobs = fleet.cluster.issuer_a().sign_in("bob", "portal").await.unwrap();
    let mut misplaced = of_b.clone();
    misplaced["cluster"] = json!(ELSEWHERE);

    for (tokens, refused) in [
        (&misplaced, (401, "invalid_token")),
        (&for_another_client, (401, "invalid_token")),
        (&bobs, (403, "identity_mismatch")),
    ] {
        let request = Request::post("/api/cluster-auth/tokens");
        let (status, answer) = alice.send(request, tokens).await.unwrap();
        assert_eq!((status, answer["code"].as_str().unwrap()), refused, "{answer}");
    }
    assert!(states(&alice).await.iter().all(|(_, usable)| !usable));
}

#[tokio::test]
async fn cluster_with_an_audience_gets_tokens_made_for_it() {
    let fleet = fleet().await;
    let issuer = fleet.cluster.issuer_b();
    let bob = fleet.caller("bob", 0).await;
    let tokens = issuer.sign_in("bob", "kubernetes").await.unwrap();
    post(&bob, &tokens).await;
    let exchanges = async || {
        let grants = issuer.grants().await.unwrap();
        grants["success"][TOKEN_EXCHANGE].as_u64().unwrap_or(0)
    };
    let before = exchanges().await;

    for _ in 0..3 {
        assert_eq!(who(&bob, NARROW).await.unwrap(), "bob@example.com");
    }
    let (status, refusal) = who(&bob, REFUSED).await.unwrap_err();

    let exposed = bob
        .get(&format!("/api/cluster-auth/token?cluster={NARROW}"))
        .await
        .unwrap();

    assert_eq!(exchanges().await, before + 1, "cached");
    assert_eq!(exposed.0, 200, "{}", exposed.1);
    let token = exposed.1["access_token"].as_str().unwrap();
    assert_ne!(token, tokens["id_token"].as_str().unwrap());
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(claims["aud"], json!("narrow"), "the token that the cluster gets");
    assert_eq!(status, 500);
    assert!(
        refusal.contains("makes no token for audience nobody (invalid_target): allow client kubernetes"),
        "{refusal}"
    );
    let review = fleet
        .cluster
        .audit_event(|event| event["user"]["username"] == "bob@example.com")
        .await
        .unwrap();
    assert_eq!(review["responseStatus"]["code"], 201);
}

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
