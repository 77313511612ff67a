use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kube_authn_core::{
    AuthMetadata, ErrorKind, ManualClock, Secret, StrategyOptions, conformance::provider::ProviderFixture,
};
use serde_json::{Value, json};

use super::*;
use crate::test_support::*;

const NOW: i64 = 1_767_322_800;

fn configured() -> AwsConfig {
    let mut config = AwsConfig::default();
    config.main_account.keys = Some(AwsKeys {
        access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: Secret::new("canary-secret"),
    });
    config
}

fn provider(config: AwsConfig) -> (AwsProvider, ManualClock) {
    let clock = ManualClock::at(at(NOW));
    (AwsProvider::new(config).with_clock(clock.clone()), clock)
}

fn eks(region: &str, metadata: &[(&str, &str)], options: &Value) -> ClusterDetails {
    let mut known = AuthMetadata::default();
    for (key, value) in metadata {
        known.insert(*key, *value);
    }
    let block = options.as_object().expect("an object").clone();
    ClusterDetails::builder("prod", format!("https://0A1B.gr7.{region}.eks.amazonaws.com"))
        .auth_provider(AwsProvider::NAME)
        .auth_metadata(known)
        .options(StrategyOptions::new(block))
        .build()
        .expect("a cluster")
}

fn plain(region: &str) -> ClusterDetails {
    eks(region, &[], &json!({}))
}

async fn url_for(provider: &AwsProvider, cluster: &ClusterDetails) -> String {
    let credential = provider.credential(&request("alice", cluster)).await;
    let token = sent(&credential.expect("a credential"));
    let encoded = token.expose_str().expect("text").strip_prefix("k8s-aws-v1.");
    let url = URL_SAFE_NO_PAD.decode(encoded.expect("the prefix"));
    String::from_utf8(url.expect("base64url")).expect("text")
}

async fn host_for(config: AwsConfig, cluster: &ClusterDetails) -> String {
    let url = url_for(&provider(config).0, cluster).await;
    url.split('/').nth(2).expect("a host").to_owned()
}

#[tokio::test]
async fn strategy_keeps_the_contract() {
    let (strategy, clock) = provider(configured());
    let cluster = plain("eu-west-1");
    let malformed = eks(
        "eu-west-1",
        &[("kubernetes.io/aws-assume-role", "canary-role")],
        &json!({ "aws": { "region": 7, "useFips": "perhaps", "regoin": "eu-west-1" } }),
    );
    let unsigned = eks("eu-west-1", &[], &json!({ "aws": { "region": "EU WEST" } }));
    let fixture = ProviderFixture::new(strategy, request("alice", &cluster), request("bob", &cluster))
        .with_clock(clock)
        .with_expires_at(at(NOW + 14 * 60))
        .refusing(request("alice", &malformed), ErrorKind::ConfigInvalid)
        .refusing(request("alice", &unsigned), ErrorKind::ConfigInvalid)
        .with_unworkable(
            malformed,
            &[
                "assumeRole",
                "kubeAuthn.aws.region",
                "kubeAuthn.aws.regoin",
                "kubeAuthn.aws.useFips",
            ],
        )
        .with_canary(Secret::new("canary-secret"));

    bare_registered_and_cached(fixture).await;
}

/// A36: whoever verifies the token calls the host in it.
#[tokio::test]
async fn token_names_the_regional_host_of_the_clusters_partition() {
    for (cluster, expected) in [
        (plain("us-east-1"), "sts.us-east-1.amazonaws.com"),
        (plain("us-gov-west-1"), "sts.us-gov-west-1.amazonaws.com"),
        (
            eks(
                "us-east-1",
                &[],
                &json!({ "aws": { "region": "eusc-de-east-1" } }),
            ),
            "sts.eusc-de-east-1.amazonaws.eu",
        ),
        (
            eks("us-east-1", &[], &json!({ "aws": { "useFips": "true" } })),
            "sts-fips.us-east-1.amazonaws.com",
        ),
        (
            eks("us-east-1", &[], &json!({ "aws": { "useDualStack": true } })),
            "sts.us-east-1.api.aws",
        ),
    ] {
        assert_eq!(host_for(configured(), &cluster).await, expected);
    }
}

#[tokio::test]
async fn clusters_own_region_wins_over_the_global_one() {
    let elsewhere = ClusterDetails::builder("prod", "https://eks.example.com")
        .auth_provider(AwsProvider::NAME)
        .build()
        .expect("a cluster");
    let mut config = configured();
    config.main_account.region = Some("eu-central-1".to_owned());

    assert_eq!(
        host_for(config.clone(), &elsewhere).await,
        "sts.eu-central-1.amazonaws.com"
    );
    config.region = Some("eu-north-1".to_owned());
    config.use_fips = Some(true);
    assert_eq!(
        host_for(config.clone(), &elsewhere).await,
        "sts-fips.eu-north-1.amazonaws.com"
    );
    let own = eks("us-east-1", &[], &json!({ "aws": { "useFips": false } }));
    assert_eq!(host_for(config, &own).await, "sts.us-east-1.amazonaws.com");
}

#[tokio::test]
async fn stated_cluster_id_is_signed_in_place_of_the_name() {
    let (strategy, _) = provider(configured());
    let named = url_for(&strategy, &plain("eu-west-1")).await;
    let same = [("kubernetes.io/x-k8s-aws-id", "prod")];
    let other = [("kubernetes.io/x-k8s-aws-id", "outpost-1")];

    assert_eq!(
        url_for(&strategy, &eks("eu-west-1", &same, &json!({}))).await,
        named
    );
    assert_ne!(
        url_for(&strategy, &eks("eu-west-1", &other, &json!({}))).await,
        named
    );
}

#[tokio::test]
async fn token_ends_fourteen_minutes_after_its_date() {
    let (strategy, _) = provider(configured());

    let credential = strategy.credential(&request("alice", &plain("eu-west-1"))).await;

    let end = credential.expect("a credential").expires_at();
    assert_eq!(end, Some(at(NOW + 14 * 60)));
}

#[tokio::test]
async fn configured_keys_that_are_refused_promise_nothing_better() {
    let (strategy, clock) = provider(configured());
    let request = request("alice", &plain("eu-west-1"));
    let credential = strategy.credential(&request).await.expect("a credential");
    clock.advance_seconds(120);

    assert!(!strategy.invalidate(&request, &credential).await);
}

#[test]
fn debug_shows_no_secret_key() {
    let shown = format!("{:?}", provider(configured()).0);

    assert!(shown.contains("AKIA") && !shown.contains("canary"), "{shown}");
}
