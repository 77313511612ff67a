//! `kube-authn check --connect` against a real API server: who it says we are, and what is in the way.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

use std::{fs, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_e2e::{TestCluster, fixtures};
use serde_json::{Value, json};

#[tokio::test]
async fn connect_tells_who_we_are_or_what_is_in_the_way() {
    let cluster = TestCluster::shared().await.unwrap();
    let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
    let token = fixtures::secret_token(&cluster.client().await.unwrap(), namespace, name)
        .await
        .unwrap();
    let other_ca = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
    let ca = STANDARD.encode(cluster.ca_pem());
    let entry = |name: &str, provider: &str, token: &str, ca: &str| {
        json!({
            "name": name, "url": cluster.api_server_url(), "authProvider": provider, "caData": ca,
            "serviceAccountToken": token, "oidcTokenProvider": "okta",
        })
    };
    let config = json!({ "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [
        entry("good", "serviceAccount", &token, &ca),
        entry("wrong-token", "serviceAccount", "nobody", &ca),
        entry("wrong-ca", "serviceAccount", &token, &STANDARD.encode(other_ca.cert.pem())),
        entry("users", "oidc", "unused", &ca),
    ]}]}});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app-config.yaml");
    fs::write(&file, config.to_string()).unwrap();
    let check = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kube-authn-program"))
            .args(["check", "--connect", "--config"])
            .arg(&file)
            .args(more)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };

    let (code, text) = check(&[]);
    let (_, json) = check(&["--json"]);

    assert_eq!(code, Some(1), "{text}");
    assert!(!text.contains(&token) && !json.contains(&token));
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("connect ")).collect();
    let username = format!("system:serviceaccount:{namespace}:{name}");
    assert!(
        lines[0].starts_with(&format!(
            "connect   good: we are {username}, groups system:serviceaccounts"
        )),
        "{text}"
    );
    assert!(
        lines[1].starts_with("connect   wrong-token: FAILED: 401 Unauthorized"),
        "{text}"
    );
    assert!(
        lines[2].ends_with("its certificate is signed by an authority that the cluster's CA does not hold"),
        "{text}"
    );
    assert_eq!(
        lines[3],
        "connect   users: reached; its users bring their own credentials"
    );
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["connections"][0]["username"], Value::from(username));
}
