//! Whole configurations, as people have them.

#![allow(clippy::expect_used, reason = "tests")]

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_clusters::{AppConfig, EffectiveConfig, Environment};
use kube_authn_core::{Issuer, Problem};

const AUTH: (&str, &str) = ("auth.yaml", include_str!("fixtures/openportal-auth.yaml"));
const KUBERNETES: (&str, &str) = (
    "kubernetes.yaml",
    include_str!("fixtures/openportal-kubernetes.yaml"),
);

fn ca_data() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .expect("a certificate");
    STANDARD.encode(certificate.pem())
}

async fn read(layers: &[(&str, &str)], variables: &[(&str, &str)]) -> EffectiveConfig {
    let environment = Environment::of(variables.iter().copied());
    let config = AppConfig::from_texts(layers, &environment).expect("a configuration");
    EffectiveConfig::read(&config).await
}

fn names(config: &EffectiveConfig) -> Vec<&str> {
    config
        .clusters
        .iter()
        .map(|cluster| cluster.name().as_str())
        .collect()
}

#[tokio::test]
async fn portal_with_user_logins_gives_two_clusters_four_warnings_and_no_problem() {
    let variables = [
        ("KUBERNETES_OPENPORTAL_CA_DATA", &*ca_data()),
        ("K8S_SA_TOKEN", "canary"),
    ];
    let config = read(&[AUTH, KUBERNETES], &variables).await;

    assert_eq!(config.problems, []);
    assert_eq!(names(&config), ["openportal", "rancher-desktop"]);
    assert!(config.uses_cluster_auth());
    let login = config.logins.for_cluster("openportal").expect("a login");
    assert_eq!(
        login.issuer,
        Issuer::new("https://login.spot.rackspace.com/").expect("an issuer")
    );
    assert!(login.verify_signature);
    assert_eq!(config.warnings.len(), 4, "{:?}", config.warnings);
    for part in ["skipTLSVerify", "verifySignature", "clientId", "encryption"] {
        assert!(
            config.warnings.iter().any(|warning| warning.contains(part)),
            "{part}"
        );
    }
    assert!(!format!("{config:?}").contains("canary"));
}

#[tokio::test]
async fn unset_service_account_token_never_becomes_the_pods_identity() {
    let variables = [
        ("KUBERNETES_OPENPORTAL_CA_DATA", &*ca_data()),
        ("KUBERNETES_SERVICE_ACCOUNT_TOKEN", "exported under another name"),
    ];
    let config = read(&[AUTH, KUBERNETES], &variables).await;

    assert_eq!(names(&config), ["openportal"]);
    let key = "kubernetes.clusterLocatorMethods[0].clusters[1].serviceAccountToken";
    assert_eq!(
        config.problems,
        [Problem::new(
            key,
            format!(
                "no value for '{key}' in 'kubernetes.yaml': environment variable K8S_SA_TOKEN is not set; set it or \
                 remove the key"
            )
        )
        .with_file("kubernetes.yaml")
        .with_cluster("rancher-desktop")]
    );
}

#[tokio::test]
async fn cluster_with_user_logins_needs_an_issuer() {
    let variables = [
        ("KUBERNETES_OPENPORTAL_CA_DATA", &*ca_data()),
        ("K8S_SA_TOKEN", "t"),
    ];
    let config = read(&[KUBERNETES], &variables).await;

    assert_eq!(names(&config), ["rancher-desktop"]);
    let [problem] = &config.problems[..] else {
        panic!("{:?}", config.problems)
    };
    assert_eq!(
        (problem.key.as_str(), problem.cluster.as_deref()),
        ("clusterAuth.issuer", Some("openportal"))
    );
}

#[tokio::test]
async fn in_cluster_configuration_gives_its_cluster() {
    let config = read(
        &[("app-config.yaml", include_str!("fixtures/in-cluster.yaml"))],
        &[],
    )
    .await;

    assert_eq!(config.problems, []);
    assert_eq!(names(&config), ["backstage"]);
    let cluster = &config.clusters[0];
    assert_eq!(
        (
            cluster.auth_provider(),
            cluster.service_account_token(),
            cluster.trust().skip_verify()
        ),
        ("serviceAccount", None, true)
    );
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

#[tokio::test]
async fn cloud_examples_parse() {
    let aks = [("AZURE_CLUSTER_API_SERVER_ADDRESS", "https://aks.example.com:443")];
    let aks = read(&[("app-config.yaml", include_str!("fixtures/aks.yaml"))], &aks).await;
    // The placeholders are filled in as the text around them says.
    let eks = include_str!("fixtures/eks.yaml")
        .replace("<unique-identifier>", "abc")
        .replace("<region>", "eu-west-1");
    let ca_data = ca_data();
    let environment = [
        ("EKS_CA_DATA", ca_data.as_str()),
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
    ];
    let eks = read(&[("app-config.yaml", &eks)], &environment).await;

    assert_eq!((&aks.problems, &eks.problems), (&vec![], &vec![]));
    assert_eq!(
        (names(&aks), names(&eks)),
        (vec!["My AKS cluster"], vec!["<cluster-name-to-use>"])
    );
}

#[tokio::test]
async fn five_different_mistakes_are_told_in_one_go_each_with_file_and_key() {
    let yaml = "
kubernetes:
  serviceLocatorMethod: { type: everyTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - { name: a, url: not a url, authProvider: aws }
        - { name: b, url: https://b, authProvider: aws, caFile: /nowhere/ca.pem }
        - { name: c, url: https://c, authProvider: magic }
        - { name: d, url: https://d, authProvider: aws }
clusterAuth: { issuer: https://i/, clientID: x }
";
    let mut config = read(&[("conf/app-config.yaml", yaml)], &[]).await;
    config.validate_with(|cluster| match cluster.auth_provider() {
        "magic" => vec![Problem::new(
            "authProvider",
            "authProvider \"magic\" has no config associated with it",
        )],
        _ => Vec::new(),
    });

    let told: Vec<_> = config
        .problems
        .iter()
        .map(|problem| {
            (
                problem.file.as_deref(),
                problem.key.as_str(),
                problem.cluster.as_deref(),
            )
        })
        .collect();
    let file = Some("conf/app-config.yaml");
    let at = |index: usize, key: &str| format!("kubernetes.clusterLocatorMethods[0].clusters[{index}].{key}");
    assert_eq!(
        told,
        [
            (file, "kubernetes.serviceLocatorMethod.type", None),
            (file, &*at(0, "url"), Some("a")),
            (file, &*at(1, "caFile"), Some("b")),
            (file, "clusterAuth.clientID", None),
            (file, &*at(2, "authProvider"), Some("c")),
        ]
    );
    assert_eq!(
        config.problems[4].message,
        "Invalid cluster 'c': authProvider \"magic\" has no config associated with it"
    );
    assert_eq!(names(&config), ["d"]);
    assert_eq!(config.into_valid().expect_err("problems").problems.len(), 5);
}
