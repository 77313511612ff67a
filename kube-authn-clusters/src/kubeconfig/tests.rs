use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::{AppConfig, EffectiveConfig, Environment, test_support::ca_data};

/// A kubeconfig with one context `ctx` of this cluster entry and this user entry.
fn kubeconfig(cluster: &str, user: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncontexts: [{{ name: ctx, context: {{ cluster: c, user: u, namespace: n }} }}]\n\
         clusters: [{{ name: c, cluster: {cluster} }}]\nusers: [{{ name: u, user: {user} }}]\ncurrent-context: gone\n"
    );
    fs::write(folder.path().join("config"), text).expect("written");
    folder
}

async fn locate(folder: &TempDir) -> Located {
    let locator = KubeconfigLocator::new(vec![folder.path().join("config")]);
    locator.locate().await.expect("read")
}

async fn only(cluster: &str, user: &str) -> ClusterDetails {
    let folder = kubeconfig(cluster, user);
    let mut located = locate(&folder).await;
    assert_eq!(located.problems, []);
    located.clusters.remove(0)
}

async fn message(cluster: &str, user: &str) -> String {
    let located = locate(&kubeconfig(cluster, user)).await;
    assert!(located.clusters.is_empty());
    assert!(
        located
            .problems
            .iter()
            .all(|problem| problem.cluster.as_deref() == Some("ctx"))
    );
    located
        .problems
        .iter()
        .map(|problem| problem.message.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}

const SERVER: &str = "{ server: 'https://a:6443' }";

#[tokio::test]
async fn token_becomes_service_account() {
    let cluster = format!(
        "{{ server: 'https://a:6443/base', certificate-authority-data: {} }}",
        ca_data()
    );
    let cluster = only(&cluster, "{ token: ' abc ' }").await;

    assert_eq!(cluster.name().as_str(), "ctx");
    assert_eq!(
        (cluster.url(), cluster.auth_provider()),
        ("https://a:6443/base", "serviceAccount")
    );
    assert_eq!(cluster.service_account_token(), Some(&Secret::new("abc")));
}

#[tokio::test]
async fn token_file_is_read_beside_the_kubeconfig() {
    let folder = kubeconfig(SERVER, "{ tokenFile: token }");
    fs::write(folder.path().join("token"), "one\n").expect("written");
    let located = locate(&folder).await;
    assert_eq!(
        located.clusters[0].service_account_token(),
        Some(&Secret::new("one"))
    );

    fs::write(folder.path().join("token"), "\n").expect("written");
    let located = locate(&folder).await;
    assert!(
        located.problems[0].message.contains("is empty"),
        "{:?}",
        located.problems
    );
}

#[tokio::test]
async fn certificate_and_plugin_become_strategies_with_options() {
    let cluster = only(
        SERVER,
        "{ client-certificate: c.pem, client-certificate-data: Q0VSVA==, client-key-data: S0VZ }",
    )
    .await;
    assert_eq!(cluster.auth_provider(), "clientCertificate");
    assert_eq!(
        cluster.options().get("clientCertificate"),
        Some(&json!({ "certData": "Q0VSVA==" }))
    );
    assert_eq!(
        cluster.options().secret("clientCertificate.keyData"),
        Some(&Secret::new("S0VZ"))
    );

    let exec = "{ exec: { apiVersion: client.authentication.k8s.io/v1, command: ./plugin, args: [get, token], \
                env: [{ name: A, value: b }], interactiveMode: Never, provideClusterInfo: true } }";
    let folder = kubeconfig(SERVER, exec);
    let located = locate(&folder).await;
    let expected = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": folder.path().join("./plugin").display().to_string(),
        "args": ["get", "token"],
        "env": [{ "name": "A", "value": "b" }],
        "provideClusterInfo": true,
    });
    assert_eq!(located.clusters[0].options().get("exec"), Some(&expected));
    let bare = only(SERVER, "{ exec: { command: aws } }").await;
    let expected = json!({ "apiVersion": "client.authentication.k8s.io/v1beta1", "command": "aws" });
    assert_eq!(bare.options().get("exec"), Some(&expected));
}

#[tokio::test]
async fn tls_name_and_proxy_of_a_cluster_are_taken_over() {
    let cluster = "{ server: 'https://10.0.0.1:6443', tls-server-name: api.example.com, \
                   proxy-url: 'socks5://canary:canary@proxy:9' }";
    let cluster = only(cluster, "{ token: a }").await;

    assert_eq!(cluster.tls_server_name(), Some("api.example.com"));
    assert_eq!(
        cluster.egress_proxy().map(ToString::to_string).as_deref(),
        Some("proxy:9")
    );
    assert!(!format!("{cluster:?} {:?}", cluster.upstream_key()).contains("canary"));
}

#[tokio::test]
async fn context_that_cannot_work_is_named_with_its_reason() {
    for (cluster, user, text) in [
        (SERVER, "{}", "there is no credential"),
        (
            SERVER,
            "{ token: a, exec: { command: /x } }",
            "several credentials, a token and exec",
        ),
        (
            SERVER,
            "{ username: a, password: b }",
            "username is not supported here",
        ),
        (SERVER, "{ token: a, as: root }", "as is not supported here"),
        (
            SERVER,
            "{ client-certificate-data: Q0VSVA== }",
            "client-key is missing",
        ),
        (
            SERVER,
            "{ token: 7 }",
            "Invalid type in config for key 'users[0].user.token' in 'config', got number, wanted string",
        ),
        (
            SERVER,
            "{ exec: { command: /x, interactiveMode: Always } }",
            "wants a terminal",
        ),
        (
            "{ server: 'https://a', tls-server-name: 'b c' }",
            "{ token: a }",
            "no certificate can be for the name \"b c\"",
        ),
        (
            "{ server: 'https://a', proxy-url: 'https://p' }",
            "{ token: a }",
            "the proxy's url must begin with http:// or socks5://",
        ),
        (
            "{ server: 'http://a', proxy-url: 'http://p' }",
            "{ token: a }",
            "through a proxy the API server must be reached over https",
        ),
        ("{ server: 'not a url' }", "{ token: a }", "url"),
        (
            "{}",
            "{ token: a }",
            "Missing required config value at 'clusters[0].cluster.server' in 'config'",
        ),
    ] {
        let message = message(cluster, user).await;
        assert!(
            message.starts_with("context 'ctx': ") && message.to_lowercase().contains(&text.to_lowercase()),
            "{user}: {message}"
        );
    }
}

#[tokio::test]
async fn first_file_wins_and_a_missing_context_is_told() {
    let (one, two) = (
        kubeconfig("{ server: 'https://one' }", "{ token: a }"),
        kubeconfig("{ server: 'https://two' }", "{ token: b }"),
    );
    let paths = vec![one.path().join("config"), two.path().join("config")];
    let contexts = vec!["ctx".to_owned(), "gone".to_owned()];

    let located = KubeconfigLocator::new(paths)
        .with_contexts(contexts)
        .locate()
        .await
        .expect("read");

    assert_eq!(located.clusters.len(), 1);
    assert_eq!(located.clusters[0].url(), "https://one");
    assert_eq!(
        located.problems[0].message,
        "context 'gone' is in none of the kubeconfig files"
    );
}

#[tokio::test]
async fn locator_stands_in_an_app_config() {
    let folder = kubeconfig(SERVER, "{ token: a }");
    let yaml = "kubernetes: { clusterLocatorMethods: [{ type: kubeconfig, path: '${FILE}' }] }";
    let read = async |file: &str| {
        let config = AppConfig::from_texts(&[("app-config.yaml", yaml)], &Environment::of([("FILE", file)]))
            .expect("a configuration");
        EffectiveConfig::read(&config).await
    };

    let good = read(&folder.path().join("config").display().to_string()).await;
    assert_eq!((good.clusters.len(), good.problems.len()), (1, 0));
    let bad = read("/nowhere/config").await;
    assert!(
        bad.problems[0]
            .message
            .starts_with("cannot read the kubeconfig file /nowhere/config: "),
        "{:?}",
        bad.problems
    );
}
