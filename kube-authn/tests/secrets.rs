//! `kube-authn check` tells no secret, whatever the configuration is like.

#![cfg(feature = "cli")]
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]

use std::{fs, process::Command};

const CANARY: &str = "canary-5d1e8a";

/// What the program writes, standard output and standard error together.
#[allow(clippy::disallowed_methods, reason = "a file and a process of the test's own")]
fn check(yaml: &str, arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("app-config.yaml");
    fs::write(&file, yaml).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_kube-authn"))
        .arg("check")
        .arg("--config")
        .arg(&file)
        .args(arguments)
        .env("RUST_LOG", "trace")
        .env("TOKEN", CANARY)
        .output()
        .expect("it runs");
    let (out, err) = (output.stdout, output.stderr);
    String::from_utf8([out, err].concat()).expect("text")
}

fn clusters(list: &str) -> String {
    format!("kubernetes:\n  clusterLocatorMethods:\n    - type: config\n      clusters:\n{list}\n")
}

#[test]
fn secret_of_a_good_configuration_never_shows_unless_it_is_asked_for() {
    let yaml = clusters(
        "        - { name: a, url: 'https://a', authProvider: serviceAccount, serviceAccountToken: '${TOKEN}',
            authMetadata: { example.com/api-Key: '${TOKEN}', clientSecret: { deep: '${TOKEN}' } } }
        - { name: b, url: 'https://b', authProvider: serviceAccount,
            authMetadata: { serviceAccountToken: '${TOKEN}' } }",
    );

    for arguments in [&["--json"][..], &[]] {
        let told = check(&yaml, arguments);

        assert!(told.contains("https://b") && !told.contains(CANARY), "{told}");
    }
    assert!(check(&yaml, &["--json", "--show-secrets"]).contains(CANARY));
}

#[test]
fn secret_of_a_wrong_configuration_never_shows() {
    for yaml in [
        clusters("        - { name: a, url: 'https://x:${TOKEN}@a', authProvider: serviceAccount }"),
        clusters(
            "        - { name: a, url: 'https://a', authProvider: aws, serviceAccountToken: [ '${TOKEN}' ] }",
        ),
        clusters(
            "        - { name: a, url: 'https://a', authProvider: serviceAccount, serviceAccountToken: 'a ${TOKEN}' }",
        ),
        clusters("        - { name: a, url: 'https://a', authProvider: aws, caData: '${TOKEN}' }"),
        clusters(
            "        - { name: a, url: 'https://a', authProvider: serviceAccount,
            serviceAccountToken: { $file: '${TOKEN}' } }",
        ),
        "kubeAuthn: { encryption: { keys: [{ id: k1, key: '${TOKEN}' }] } }".to_owned(),
        "kubeAuthn: { encryption: { keys: [{ id: k1, key: { x: '${TOKEN}' } }] } }".to_owned(),
        format!("kubeAuthn: {{ encryption: {CANARY}"),
    ] {
        for arguments in [&["--json"][..], &[]] {
            let told = check(&yaml, arguments);

            assert!(told.contains("error") && !told.contains(CANARY), "{yaml}\n{told}");
        }
    }
}
