use kube_authn_core::{CaBundle, Error, ErrorKind};
use serde_json::json;

use super::*;
use crate::test_support::ca_data;

/// Entities in place of a catalog's.
#[derive(Debug)]
struct Entities(Vec<Value>);

#[async_trait]
impl EntityReader for Entities {
    async fn entities(&self, filter: &str) -> Result<Vec<Value>> {
        assert!(filter.starts_with("kind=resource,spec.type=kubernetes-cluster,metadata.annotations."));
        match self.0.is_empty() {
            true => Err(Error::new(ErrorKind::Unavailable, "down")),
            false => Ok(self.0.clone()),
        }
    }
}

fn entity(url: &str, more: &[(&str, &str)]) -> Value {
    let mut annotations = json!({
        "kubernetes.io/api-server": url,
        "kubernetes.io/api-server-certificate-authority": ca_data(),
        "kubernetes.io/auth-provider": "oidc",
        "backstage.io/managed-by-location": "url:x",
    });
    for (key, value) in more {
        annotations[*key] = (*value).into();
    }
    json!({
        "kind": "Resource",
        "metadata": { "name": "prod", "namespace": "n", "title": "Production", "annotations": annotations },
        "spec": { "type": "kubernetes-cluster" },
    })
}

fn locator(entities: Vec<Value>) -> CatalogLocator {
    CatalogLocator::new(Arc::new(Entities(entities)))
}

async fn warning(url: &str) -> String {
    let located = locator(vec![entity(url, &[])]).locate().await.expect("read");
    match located.clusters.is_empty() {
        true => located.warnings.join("; "),
        false => "listed".to_owned(),
    }
}

#[tokio::test]
async fn annotations_become_the_fields_of_a_cluster() {
    let entity = entity(
        "https://8.8.8.8:6443",
        &[
            ("kubernetes.io/oidc-token-provider", "okta"),
            ("kubernetes.io/skip-metrics-lookup", "true"),
            ("kubernetes.io/skip-tls-verify", "true"),
            ("kubernetes.io/dashboard-url", "https://d"),
            ("kubernetes.io/dashboard-app", "rancher"),
            ("kubernetes.io/dashboard-parameters", "{\"a\":1}"),
            ("kubernetes.io/anything", "kept"),
            ("serviceAccountToken", "never"),
        ],
    );

    let located = locator(vec![entity.clone()]).locate().await.expect("read");

    let cluster = &located.clusters[0];
    assert_eq!(located.warnings, Vec::<String>::new());
    assert_eq!(
        (cluster.name().as_str(), cluster.title()),
        ("prod", Some("Production"))
    );
    assert_eq!(
        (cluster.url(), cluster.auth_provider()),
        ("https://8.8.8.8:6443", "oidc")
    );
    assert!(matches!(cluster.trust().ca(), CaBundle::Pem(_)) && !cluster.trust().skip_verify());
    assert_eq!(cluster.skip_metrics_lookup(), Some(true));
    assert!(cluster.only_public_addresses() && cluster.service_account_token().is_none());
    assert_eq!(cluster.dashboard().parameters, Some(json!({ "a": 1 })));
    let keys: Vec<_> = cluster.auth_metadata().iter().map(|(key, _)| key).collect();
    assert!(
        keys.iter().all(|key| key.starts_with("kubernetes.io/")),
        "{keys:?}"
    );
    assert_eq!(
        cluster.auth_metadata().get("kubernetes.io/anything"),
        Some("kept")
    );

    let skipping = locator(vec![entity]).dangerously_allow_skip_tls_verify(true);
    assert!(
        skipping.locate().await.expect("read").clusters[0]
            .trust()
            .skip_verify()
    );
}

#[tokio::test]
async fn url_that_leads_inside_is_ignored_with_the_peers_reason() {
    for (url, reason) in [
        ("nonsense", "is not a valid URL"),
        ("https://u:p@8.8.8.8", "must not contain credentials"),
        ("ftp://8.8.8.8", "must use the HTTP or HTTPS scheme"),
        ("http://8.8.8.8", "must use the HTTPS scheme"),
        ("https://169.254.169.254", "must not use a non-public IP address"),
        ("https://2130706433", "must not use a non-public IP address"),
        ("https://0x7f.1", "must not use a non-public IP address"),
        ("https://[::1]:6443", "must not use a non-public IP address"),
        (
            "https://[::ffff:10.0.0.1]",
            "must not use a non-public IP address",
        ),
        (
            "https://localhost",
            "hostname \"localhost\" resolves to a non-public address",
        ),
    ] {
        assert_eq!(
            warning(url).await,
            format!(
                "Ignoring kubernetes-cluster Resource \"prod\": Kubernetes cluster API server URL {reason}"
            )
        );
    }
    for url in [
        "https://8.8.8.8",
        "https://[2606:4700::1111]:6443",
        "https://nowhere.invalid",
    ] {
        assert_eq!(warning(url).await, "listed", "{url}");
    }
}

#[tokio::test]
async fn exempt_hosts_pass_the_guard() {
    for (pattern, url, passes) in [
        ("localhost", "http://LOCALHOST:8001", true),
        ("*.corp.invalid", "http://a.b.corp.invalid", true),
        ("*.corp.invalid", "http://corp.invalid", true),
        ("*.corp.invalid", "http://evilcorp.invalid", false),
        ("corp.invalid", "http://a.corp.invalid", false),
        ("10.0.0.1", "https://10.0.0.1:6443", true),
        ("[::1]", "https://[::1]", true),
    ] {
        let located = locator(vec![entity(url, &[])])
            .dangerously_allow_hosts([pattern])
            .locate()
            .await
            .expect("read");

        let public_only = located
            .clusters
            .first()
            .map(ClusterDetails::only_public_addresses);
        assert_eq!(public_only, passes.then_some(false), "{pattern} {url}");
    }
}

#[tokio::test]
async fn bad_entity_hides_no_good_one_and_a_catalog_that_is_down_is_an_error() {
    let located = locator(vec![
        entity(
            "https://8.8.8.8",
            &[("kubernetes.io/auth-provider", "serviceAccount")],
        ),
        json!({ "metadata": { "name": 7 } }),
        entity(
            "https://8.8.8.8",
            &[("kubernetes.io/api-server-certificate-authority", "%%")],
        ),
        entity("https://8.8.8.8", &[]),
    ])
    .locate()
    .await
    .expect("read");

    assert_eq!(
        (located.clusters.len(), located.warnings.len()),
        (1, 3),
        "{:?}",
        located.warnings
    );
    assert!(located.warnings[2].contains("caData is not base64"));
    assert_eq!(
        locator(Vec::new()).locate().await.expect_err("down").kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn writer_of_the_catalog_never_collects_credentials_at_a_host_of_his_own() {
    let listed = async |provider: &str, url: &str, hosts: &[&str]| {
        let entity = entity(url, &[("kubernetes.io/auth-provider", provider)]);
        let locator = locator(vec![entity]).with_credential_hosts(hosts.iter().copied());
        let located = locator.locate().await.expect("read");
        match located.clusters.is_empty() {
            true => {
                assert!(
                    located.warnings[0].contains("credentialHosts"),
                    "{:?}",
                    located.warnings
                );
                false
            }
            false => true,
        }
    };

    for provider in [
        "clusterAuth",
        "aws",
        "azure",
        "googleServiceAccount",
        "impersonation",
        "exec",
        "mine",
    ] {
        assert!(!listed(provider, "https://evil.invalid", &[]).await, "{provider}");
        assert!(
            listed(provider, "https://a.corp.invalid", &["*.corp.invalid"]).await,
            "{provider}"
        );
    }
    for provider in ["oidc", "aks", "google"] {
        assert!(listed(provider, "https://evil.invalid", &[]).await, "{provider}");
    }
    let eks = "https://ABC.gr7.eu-west-1.eks.amazonaws.com";
    assert!(listed("aws", eks, &[]).await);
    assert!(!listed("azure", eks, &[]).await);
    assert!(!listed("aws", "https://eks.amazonaws.com.evil.invalid", &[]).await);
    assert!(listed("azure", "https://x.hcp.westeurope.azmk8s.io", &[]).await);
}
