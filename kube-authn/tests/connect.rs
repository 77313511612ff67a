//! `kube-authn check --connect`: what is in the way of reaching a cluster, in words that somebody can act on.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

mod support;

use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kube_authn::kube_authn_core::jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use serde_json::{Value, json};
use support::{ApiServer, Authority, recorder::Recorder};

/// The line about one cluster, and the object of `--json`.
fn connect(cluster: Value, environment: &[(&str, &str)]) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = cluster;
    cluster["name"] = "prod".into();
    let config =
        json!({ "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [cluster] }] } });
    fs::write(folder.path().join("app-config.yaml"), config.to_string()).unwrap();
    let run = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kube-authn"))
            .args(["check", "--connect"])
            .args(more)
            .current_dir(folder.path())
            .env_clear()
            .env("HOME", folder.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&[]);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("connect   prod: "));
    let report: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    (
        line.unwrap_or_else(|| panic!("{text}")).to_owned(),
        report["connections"][0].clone(),
    )
}

/// An API server without TLS with this answer.
fn answering(status: &str, date: &str, body: &str) -> Recorder {
    let answer = format!(
        "HTTP/1.1 {status}\r\n{date}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    Recorder::start(Box::leak(answer.into_boxed_str()))
}

fn service_account(port: u16) -> Value {
    json!({
        "url": format!("http://127.0.0.1:{port}"),
        "authProvider": "serviceAccount",
        "serviceAccountToken": "canary-token",
    })
}

fn aws(port: u16) -> Value {
    json!({
        "url": format!("http://127.0.0.1:{port}"),
        "authProvider": "aws",
        "kubeAuthn": { "aws": { "region": "eu-west-1" } },
    })
}

const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "AKIAPORTAL"),
    ("AWS_SECRET_ACCESS_KEY", "canary-secret"),
];

#[test]
fn credential_that_nobody_knows_asks_whether_it_is_for_this_cluster() {
    let server = answering("401 Unauthorized", "", "{}");

    let (line, json) = connect(service_account(server.port), &[]);

    let expected = "401 Unauthorized: the API server does not know the credential; is it for this cluster, and still valid?";
    assert_eq!(line, format!("FAILED: {expected}"));
    assert_eq!(json, json!({ "cluster": "prod", "error": expected }));
}

#[test]
fn refused_aws_credential_is_told_with_its_principal() {
    let server = answering("401 Unauthorized", "", "{}");
    let sts = answering(
        "200 OK",
        "",
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
         <Arn>arn:aws:sts::111122223333:assumed-role/portal/kube-authn</Arn><UserId>U</UserId>\
         <Account>111122223333</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
    );
    let sts_url = format!("http://127.0.0.1:{}", sts.port);
    let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", &sts_url)];

    let (line, _) = connect(aws(server.port), &environment);

    assert_eq!(
        line,
        "FAILED: 401 Unauthorized: the API server does not know the credential, which is of the AWS principal \
         arn:aws:sts::111122223333:assumed-role/portal/kube-authn; has that one an access entry in this cluster (or a \
         line in its aws-auth), and is kubernetes.io/x-k8s-aws-id the cluster's own name?"
    );
    let asked = sts.take();
    assert!(
        asked.iter().all(|call| call.contains("Action=GetCallerIdentity")) && !asked.is_empty(),
        "{asked:?}"
    );
}

#[test]
fn aws_credential_that_aws_refuses_too_is_told_with_its_reason() {
    let server = answering("401 Unauthorized", "", "{}");
    let sts = answering(
        "403 Forbidden",
        "",
        "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code>\
         <Message>The security token included in the request is invalid.</Message></Error></ErrorResponse>",
    );
    let sts_url = format!("http://127.0.0.1:{}", sts.port);
    let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", &sts_url)];

    let (line, _) = connect(aws(server.port), &environment);

    assert!(
        line.starts_with(
            "FAILED: 401 Unauthorized: the API server does not know the credential, and nobody else"
        ) && line.contains("AWS refuses with InvalidClientTokenId")
            && !line.contains("canary"),
        "{line}"
    );
}

#[test]
fn clock_that_is_far_away_is_told_with_its_distance() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (shift, words) in [(600, "s ahead of ours"), (-600, "s behind ours")] {
        let then = Timestamp::from_second(i64::try_from(now).unwrap() + shift).unwrap();
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&then).unwrap();
        let server = answering("401 Unauthorized", &format!("Date: {date}\r\n"), "{}");

        let (line, json) = connect(service_account(server.port), &[]);

        assert!(
            line.contains("; its clock is 6") || line.contains("; its clock is 5"),
            "{line}"
        );
        assert!(line.ends_with(words), "{line}");
        let ahead = json["clockAheadSeconds"].as_i64().unwrap();
        assert!((ahead - shift).abs() < 30, "{ahead}");
    }
}

#[test]
fn certificate_of_another_authority_or_time_is_told_as_what_it_is() {
    let (other, good) = (Authority::new(), 1975..4096);
    for (years, ca, words) in [
        (
            good,
            Some(&other),
            "its certificate is signed by an authority that the cluster's CA does not hold",
        ),
        (
            1980..2001,
            None,
            "its certificate has expired: it was good until 2001-01-01T00:00:00Z, and here it is 20",
        ),
        (
            3000..4000,
            None,
            "its certificate is not valid yet: it will be from 3000-01-01T00:00:00Z, and here it is 20",
        ),
    ] {
        let server = ApiServer::start_between(Duration::ZERO, years);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        fs::write(&file, &ca.unwrap_or(&server.authority).pem).unwrap();
        let mut cluster = service_account(server.port);
        cluster["url"] = format!("https://127.0.0.1:{}", server.port).into();
        cluster["caFile"] = file.to_str().unwrap().into();

        let (line, _) = connect(cluster, &[]);

        let expected = format!(
            "FAILED: cannot reach cluster \"prod\" at 127.0.0.1:{}: {words}",
            server.port
        );
        assert!(line.starts_with(&expected), "{line}");
        assert!(server.seen().is_empty());
    }
}
