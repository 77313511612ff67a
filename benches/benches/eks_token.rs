//! What does an EKS token cost, credentials at hand?
//!
//! Row 9: `AwsProvider::credential` against the signature alone (aws-sigv4), and against aws-iam-authenticator's minting in
//! its own process (`e2e/verifier mint`, session kept), in turn.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a bench may panic, and it starts its peer"
)]

use std::{hint::black_box, path::Path, process::Command, time::Instant};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_runtime_api::client::identity::Identity;
use kube_authn_benches::measure::{Rounds, report};
use kube_authn_core::{
    Clock, ClusterDetails, CredentialRequest, KubernetesAuthProvider, Principal, Secret, SystemClock,
};
use kube_authn_providers::{AwsConfig, AwsKeys, AwsProvider};
use tokio::runtime::Runtime;

const ROUNDS: usize = 9;
const TOKENS_PER_ROUND: u32 = 20_000;
const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// Ours, the signature alone, the authenticator.
const SUBJECTS: usize = 3;

fn main() {
    let mut criterion = kube_authn_benches::criterion();
    let runtime = Runtime::new().expect("a runtime");
    let (provider, request) = ours();
    let keys: Identity = Credentials::new(ID, SECRET, None, None, "bench").into();
    let authenticator = kube_authn_e2e::eks_verifier().expect("the authenticator, built with Go");

    let rounds = Rounds::<f64, SUBJECTS>::run(ROUNDS, |subject| match subject {
        0 => runtime.block_on(nanos_of_ours(&provider, &request)),
        1 => nanos(|| drop(black_box(signature(&keys)))),
        _ => nanos_of(&authenticator),
    });
    for (subject, name) in ["kube-authn", "aws-sigv4 alone", "aws-iam-authenticator"]
        .iter()
        .enumerate()
    {
        let micros = rounds.median(subject, |nanos| nanos / 1000.0);
        report(9, &format!("EKS token, {name}"), &format!("{micros:.1} µs"), "");
    }
    let ratio = |peer| rounds.ratio(0, peer, |nanos| *nanos);
    report(
        9,
        "EKS token against aws-sigv4 alone",
        &format!("{:.2} ×", ratio(1)),
        "≤ 2 ×",
    );
    report(
        9,
        "EKS token against the authenticator",
        &format!("{:.2} ×", ratio(2)),
        "",
    );

    let mut group = criterion.benchmark_group("eks_token");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| runtime.block_on(provider.credential(&request)).expect("a token"));
    });
    group.bench_function("signature", |bencher| bencher.iter(|| signature(&keys)));
    group.finish();
    criterion.final_summary();
}

fn ours() -> (AwsProvider, CredentialRequest) {
    let mut config = AwsConfig::default();
    config.main_account.keys = Some(AwsKeys {
        access_key_id: ID.to_owned(),
        secret_access_key: Secret::new(SECRET),
    });
    let cluster = ClusterDetails::builder("prod", "https://0A1B.gr7.eu-west-1.eks.amazonaws.com")
        .auth_provider(AwsProvider::NAME)
        .build()
        .expect("a cluster");
    let request = CredentialRequest::new(Principal::anonymous(), cluster);
    (AwsProvider::new(config), request)
}

async fn nanos_of_ours(provider: &AwsProvider, request: &CredentialRequest) -> f64 {
    let begin = Instant::now();
    for _ in 0..TOKENS_PER_ROUND {
        black_box(provider.credential(request).await.expect("a token"));
    }
    begin.elapsed().as_nanos() as f64 / f64::from(TOKENS_PER_ROUND)
}

fn nanos(mut once: impl FnMut()) -> f64 {
    let begin = Instant::now();
    for _ in 0..TOKENS_PER_ROUND {
        once();
    }
    begin.elapsed().as_nanos() as f64 / f64::from(TOKENS_PER_ROUND)
}

/// What aws-sigv4 does for a token, and nothing around it.
fn signature(keys: &Identity) -> String {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(std::time::Duration::from_secs(60));
    let params = v4::SigningParams::builder()
        .identity(keys)
        .region("eu-west-1")
        .name("sts")
        .time(SystemClock.now().into())
        .settings(settings)
        .build()
        .expect("all parts")
        .into();
    let url = "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15";
    let headers = [("x-k8s-aws-id", "prod")].into_iter();
    let request = SignableRequest::new("GET", url, headers, SignableBody::Bytes(&[])).expect("a request");
    sign(request, &params).expect("a signature").into_parts().1
}

fn nanos_of(authenticator: &Path) -> f64 {
    let output = Command::new(authenticator)
        .args(["mint", &TOKENS_PER_ROUND.to_string()])
        .output()
        .expect("the authenticator runs");
    let text = String::from_utf8(output.stdout).expect("text");
    text.trim().parse().expect("nanoseconds")
}
