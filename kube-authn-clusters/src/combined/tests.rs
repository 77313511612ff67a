use kube_authn_core::{ClusterDetails, Error, ErrorKind};

use super::*;
use crate::Environment;

fn combined(yaml: &str) -> CombinedLocator {
    let config = AppConfig::from_texts(&[("app-config.yaml", yaml)], &Environment::of::<&str, &str>([]));
    CombinedLocator::from_config(&config.expect("a configuration"), &Outside::default())
}

async fn located(yaml: &str) -> Located {
    combined(yaml).locate().await.expect("located")
}

fn told(located: &Located) -> Vec<(&str, &str)> {
    located
        .problems
        .iter()
        .map(|problem| (problem.key.as_str(), problem.message.as_str()))
        .collect()
}

#[tokio::test]
async fn without_the_block_there_are_no_clusters_and_a_warning() {
    for yaml in ["{}", "kubernetes: null"] {
        let located = located(yaml).await;

        assert!(located.clusters.is_empty() && located.problems.is_empty());
        assert_eq!(
            located.warnings,
            ["Failed to initialize kubernetes backend: valid kubernetes config is missing"]
        );
    }
}

#[tokio::test]
async fn locators_keep_their_order_and_duplicates_are_warned_of() {
    let located = located(
        "kubernetes: { clusterLocatorMethods: [\
           { type: config, clusters: [{ name: b, url: 'https://b', authProvider: aws }, \
                                      { name: local, url: 'http://h', authProvider: aws }] }, \
           { type: localKubectlProxy }] }",
    )
    .await;

    let names: Vec<_> = located
        .clusters
        .iter()
        .map(|cluster| cluster.name().as_str())
        .collect();
    assert_eq!(names, ["b", "local", "local"]);
    assert_eq!(
        located.warnings,
        [
            "cluster 'local' is reached over http: credentials travel in the clear",
            "Duplicate cluster name 'local'"
        ]
    );
}

#[tokio::test]
async fn settings_of_the_block_have_the_peers_texts() {
    let with = |service: &str| {
        format!("kubernetes: {{ serviceLocatorMethod: {service}, clusterLocatorMethods: [] }}")
    };
    for (yaml, key, message) in [
        (
            "kubernetes: 5".to_owned(),
            "kubernetes",
            "Invalid type in config for key 'kubernetes' in 'app-config.yaml', got number, wanted object",
        ),
        (
            "kubernetes: {}".to_owned(),
            "kubernetes.clusterLocatorMethods",
            "Missing required config value at 'kubernetes.clusterLocatorMethods' in 'app-config.yaml'",
        ),
        (
            with("{ type: http }"),
            "kubernetes.serviceLocatorMethod.type",
            "not implemented",
        ),
        (
            with("{ type: x }"),
            "kubernetes.serviceLocatorMethod.type",
            "Unsupported kubernetes.serviceLocatorMethod \"x\"",
        ),
        (
            with("{}"),
            "kubernetes.serviceLocatorMethod.type",
            "Missing required config value at 'kubernetes.serviceLocatorMethod.type' in 'app-config.yaml'",
        ),
        (
            "kubernetes: { clusterLocatorMethods: [{ type: x }] }".to_owned(),
            "kubernetes.clusterLocatorMethods[0].type",
            "Unsupported kubernetes.clusterLocatorMethods: \"x\"",
        ),
        (
            "kubernetes: { clusterLocatorMethods: [{ type: gke }] }".to_owned(),
            "kubernetes.clusterLocatorMethods[0].type",
            "Unsupported kubernetes.clusterLocatorMethods: \"gke\" (this program is built without it, or nobody is there to ask: see the other errors)",
        ),
        (
            "kubernetes: { clusterLocatorMethods: [{ type: config }] }".to_owned(),
            "kubernetes.clusterLocatorMethods[0].clusters",
            "Missing required config value at 'kubernetes.clusterLocatorMethods[0].clusters' in 'app-config.yaml'",
        ),
    ] {
        let located = located(&yaml).await;

        assert_eq!(told(&located), [(key, message)], "{yaml}");
    }
    for service in [
        "null",
        "{ type: multiTenant }",
        "{ type: singleTenant }",
        "{ type: catalogRelation }",
    ] {
        assert!(located(&with(service)).await.problems.is_empty(), "{service}");
    }
}

#[derive(Debug)]
struct Broken;

#[async_trait]
impl ClusterLocator for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    async fn locate(&self) -> Result<Located> {
        Err(Error::new(ErrorKind::Unavailable, "no answer"))
    }
}

#[derive(Debug)]
struct One;

#[async_trait]
impl ClusterLocator for One {
    fn name(&self) -> &str {
        "one"
    }

    async fn locate(&self) -> Result<Located> {
        let cluster = ClusterDetails::builder("one", "https://one").auth_provider("aws");
        Ok(Located::new(
            vec![cluster.build().map_err(Error::from)?],
            Vec::new(),
        ))
    }
}

#[tokio::test]
async fn locator_that_fails_is_skipped_only_if_the_block_says_so() {
    let block = |more: &str| combined(&format!("kubernetes: {{ clusterLocatorMethods: [], {more} }}"));

    let strict = block("").with(Broken).with(One).locate().await;
    let lenient = block("clusterLocatorContinueOnError: true")
        .with(Broken)
        .with(One)
        .locate()
        .await;

    assert_eq!(strict.expect_err("fails").kind(), ErrorKind::Unavailable);
    let lenient = lenient.expect("located");
    assert_eq!(lenient.clusters.len(), 1);
    assert_eq!(
        lenient.warnings,
        ["Failed to retrieve clusters from cluster locator method #1: no answer"]
    );
}

/// Lists a cluster `local` at a place of somebody's choice.
#[derive(Debug)]
struct Catalog;

#[async_trait]
impl ClusterLocator for Catalog {
    fn name(&self) -> &str {
        "catalog"
    }

    async fn locate(&self) -> Result<Located> {
        let cluster = ClusterDetails::builder("local", "https://evil.invalid").auth_provider("oidc");
        Ok(Located::new(
            vec![cluster.build().expect("a cluster")],
            Vec::new(),
        ))
    }
}

#[tokio::test]
async fn cluster_of_the_catalog_never_takes_the_place_of_a_configured_one() {
    let combined = CombinedLocator::new()
        .with(Catalog)
        .with(LocalKubectlProxyLocator::new());

    let located = combined.locate().await.expect("located");

    let servers: Vec<_> = located.clusters.iter().map(ClusterDetails::url).collect();
    assert_eq!(servers, ["http://localhost:8001"]);
    assert!(
        located.warnings[0].contains("Duplicate cluster name 'local': the catalog's is left out"),
        "{:?}",
        located.warnings
    );
}
