use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use kube_authn_core::{
    ManualClock, Secret, StrategyOptions,
    conformance::provider::ProviderFixture,
    serde_json::{Value, json},
};
use tempfile::TempDir;

use super::*;
use crate::test_support::*;

mod hostile;

const NOW: i64 = 1_000_000;
const IN_TEN_MINUTES: &str = "1970-01-12T13:56:40Z";
const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

/// A plugin that is a shell script, in a folder of its own.
struct Plugin {
    folder: TempDir,
}

impl Plugin {
    fn new(script: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let plugin = Self { folder };
        write_program(&plugin.path(), script);
        plugin
    }

    fn printing(answer: &Value) -> Self {
        Self::new(&format!("cat <<'END'\n{answer}\nEND"))
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("plugin")
    }

    fn cluster(&self) -> ClusterDetails {
        self.cluster_with(json!({}))
    }

    fn cluster_with(&self, mut settings: Value) -> ClusterDetails {
        settings["command"] = self.path().display().to_string().into();
        with_settings(&settings)
    }

    fn strategy(&self) -> ExecProvider {
        ExecProvider::new()
            .with_allowed([self.path()])
            .with_clock(ManualClock::at(at(NOW)))
    }

    async fn ask(&self, cluster: &ClusterDetails) -> Result<Credential> {
        self.strategy().credential(&request("alice", cluster)).await
    }

    async fn failure(&self) -> (ErrorKind, String) {
        let error = self.ask(&self.cluster()).await.expect_err("refused");
        let shown = format!("{error:?}");
        assert!(!shown.contains("canary"), "{shown}");
        (error.kind(), error.to_string())
    }
}

/// By a program of its own: a file that a process of ours holds open for writing, be it one that was just forked by
/// another test, cannot be started.
#[allow(clippy::disallowed_methods, reason = "prepares what the door is tested with")]
fn write_program(path: &Path, script: &str) {
    let written = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            r#"printf '#!/bin/sh\n%s\n' "$1" > "$2" && chmod 755 "$2""#,
            "sh",
            script,
        ])
        .arg(path)
        .status();
    assert!(written.expect("a shell").success());
}

fn with_settings(settings: &Value) -> ClusterDetails {
    let block = json!({ "exec": settings });
    cluster(ExecProvider::NAME)
        .options(StrategyOptions::new(
            block.as_object().expect("an object").clone(),
        ))
        .build()
        .expect("a cluster")
}

fn answer(status: &Value) -> Value {
    json!({ "apiVersion": V1, "kind": "ExecCredential", "status": status })
}

#[tokio::test]
async fn keeps_the_contract() {
    let plugin = Plugin::printing(&answer(
        &json!({ "token": "canary-token", "expirationTimestamp": IN_TEN_MINUTES }),
    ));
    let other = with_settings(&json!({ "command": "/bin/true" }));
    let wrong = with_settings(&json!({
        "command": "./aws", "args": "x", "apiVersion": "v1alpha1", "shell": true, "env": [{ "value": "canary" }],
    }));
    let fixture = ProviderFixture::new(
        plugin.strategy(),
        request("alice", &plugin.cluster()),
        request("bob", &plugin.cluster()),
    )
    .with_clock(ManualClock::at(at(NOW)))
    .with_expires_at(at(NOW + 600))
    .refusing(request("alice", &other), ErrorKind::ConfigInvalid)
    .with_unworkable(other, &["kubeAuthn.exec.command"])
    .with_unworkable(
        wrong,
        &[
            "kubeAuthn.exec.shell",
            "kubeAuthn.exec.command",
            "kubeAuthn.exec.apiVersion",
            "kubeAuthn.exec.args",
            "kubeAuthn.exec.env[0].name",
        ],
    )
    .with_canary(Secret::new("canary-token"))
    .with_canary(Secret::new("canary"));

    bare_registered_and_cached(fixture).await;
}

#[tokio::test]
async fn plugin_gets_its_arguments_its_variables_and_the_question() {
    let plugin = Plugin::new(
        r#"printf '{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","status":{"token":"%s"}}' \
        "$(printf '%s|%s|%s|%s' "$1" "$2" "$PLUGIN_MODE" "$KUBERNETES_EXEC_INFO" | base64 -w0)""#,
    );
    let cluster = plugin.cluster_with(json!({
        "args": ["get-token", "two words"],
        "env": [{ "name": "PLUGIN_MODE", "value": "quiet" }],
        "apiVersion": V1BETA1,
        "provideClusterInfo": true,
    }));

    let credential = plugin.ask(&cluster).await.expect("a credential");

    let told = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        sent(&credential).expose(),
    );
    let told = String::from_utf8(told.expect("base64")).expect("text");
    let question = told.strip_prefix("get-token|two words|quiet|").expect(&told);
    let question: Value = kube_authn_core::serde_json::from_str(question).expect("JSON");
    assert_eq!(
        question,
        json!({ "apiVersion": V1BETA1, "kind": "ExecCredential", "spec": {
            "interactive": false, "cluster": { "server": "https://prod.example.com" },
        }})
    );
    assert_eq!(credential.expires_at(), None);
}

#[tokio::test]
async fn cluster_is_described_only_when_asked_for_and_with_its_ca() {
    let pem = rcgen::generate_simple_self_signed(vec!["a".to_owned()])
        .expect("a certificate")
        .cert
        .pem();
    let block = json!({ "exec": { "command": "/x", "provideClusterInfo": true } });
    let cluster = cluster(ExecProvider::NAME)
        .ca_pem(pem.as_str())
        .tls_server_name("api.example.com")
        .options(StrategyOptions::new(
            block.as_object().expect("an object").clone(),
        ))
        .build()
        .expect("a cluster");
    let mut settings = Settings::of(&cluster).expect("valid");

    let asked = exchange::question(&settings, &cluster).expect("a question");
    settings.provide_cluster_info = false;
    let not_asked = exchange::question(&settings, &cluster).expect("a question");

    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
    assert!(asked.contains(&encoded), "{asked}");
    assert!(
        asked.contains(r#""tls-server-name":"api.example.com""#),
        "{asked}"
    );
    assert!(!not_asked.contains("cluster"), "{not_asked}");
}

#[tokio::test]
async fn certificate_of_a_plugin_is_used_and_ends_with_itself() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("params");
    params.not_after = rcgen::date_time_ymd(1970, 1, 13);
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let status = json!({
        "clientCertificateData": certificate, "clientKeyData": key.serialize_pem(), "token": "never-looked-at",
    });
    let plugin = Plugin::printing(&answer(&status));

    let credential = plugin.ask(&plugin.cluster()).await.expect("a credential");

    assert!(credential.client_certificate().is_some());
    assert_eq!(credential.expires_at(), Some(at(12 * 86_400)));
}

#[tokio::test]
async fn line_break_around_a_token_does_no_harm() {
    let plugin = Plugin::printing(&answer(&json!({ "token": "\ntoken\r\n" })));

    let credential = plugin.ask(&plugin.cluster()).await.expect("a credential");

    assert_eq!(sent(&credential), Secret::new("token"));
}

#[tokio::test]
async fn refused_credential_is_asked_for_again() {
    let plugin = Plugin::new(
        r#"n=$(cat "$0.n" 2>/dev/null || echo 0); echo $((n+1)) > "$0.n"
        printf '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t%s"}}' "$n""#,
    );
    let cache = kube_authn_core::CachingProvider::new(plugin.strategy());
    let asked = request("alice", &plugin.cluster());

    let first = cache.credential(&asked).await.expect("a credential");
    let again = cache.credential(&asked).await.expect("a credential");
    assert!(cache.invalidate(&asked, &first).await);
    let second = cache.credential(&asked).await.expect("a credential");

    assert_eq!(
        (sent(&first), sent(&again)),
        (Secret::new("t0"), Secret::new("t0"))
    );
    assert_eq!(sent(&second), Secret::new("t1"));
}
