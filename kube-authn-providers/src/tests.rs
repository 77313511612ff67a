use kube_authn_core::{
    ClusterDetails, ErrorKind, KubernetesAuthProvider, ProviderRegistry, Secret, async_trait,
    conformance::provider::ProviderFixture, http::HeaderMap,
};

use super::*;
use crate::test_support::*;

#[test]
fn registered_strategy_stands_beside_the_built_in_ones() {
    #[derive(Debug)]
    struct Custom;

    #[async_trait]
    impl KubernetesAuthProvider for Custom {
        fn name(&self) -> &str {
            "custom"
        }

        fn scope(&self, _: &ClusterDetails) -> kube_authn_core::CredentialScope {
            kube_authn_core::CredentialScope::Application
        }

        fn validate(&self, _: &ClusterDetails) -> Vec<kube_authn_core::Problem> {
            Vec::new()
        }

        fn public_metadata(&self, _: &ClusterDetails) -> kube_authn_core::Metadata {
            kube_authn_core::Metadata::new()
        }

        async fn credential(
            &self,
            _: &kube_authn_core::CredentialRequest,
        ) -> kube_authn_core::Result<kube_authn_core::Credential> {
            kube_authn_core::Credential::bearer(&Secret::new("custom"))
        }

        async fn invalidate(
            &self,
            _: &kube_authn_core::CredentialRequest,
            _: &kube_authn_core::Credential,
        ) -> bool {
            false
        }
    }

    let names = |registry: &ProviderRegistry| registry.names().map(str::to_owned).collect::<Vec<_>>();

    let registry = default_registry()
        .with(Custom)
        .with(ServiceAccountProvider::with_folder("/nowhere"));

    assert_eq!(
        names(&registry),
        [
            "localKubectlProxy",
            "oidc",
            "google",
            "aks",
            "exec",
            "clientCertificate",
            "custom",
            "serviceAccount"
        ]
    );
}

#[tokio::test]
async fn local_kubectl_proxy_keeps_the_contract() {
    let cluster = ClusterDetails::builder("local", "http://localhost:8001")
        .auth_provider(LocalKubectlProxyProvider::NAME)
        .build()
        .expect("a cluster");
    let fixture = ProviderFixture::new(
        LocalKubectlProxyProvider,
        request("alice", &cluster),
        request("bob", &cluster),
    )
    .anonymous();

    bare_registered_and_cached(fixture).await;
}

#[tokio::test]
async fn callers_headers_never_reach_the_local_kubectl_proxy() {
    let cluster = cluster(LocalKubectlProxyProvider::NAME)
        .build()
        .expect("a cluster");
    let mut headers = HeaderMap::new();
    for name in ["authorization", "cookie", "impersonate-user", "x-remote-user"] {
        headers.insert(name, "alice".parse().expect("a value"));
    }

    let credential = LocalKubectlProxyProvider
        .credential(&request("alice", &cluster))
        .await
        .expect("a credential");
    credential.apply(&mut headers);

    assert!(headers.is_empty(), "{headers:?}");
}

#[tokio::test]
async fn error_names_strategy_and_cluster() {
    let cluster = cluster(OidcProvider::NAME)
        .auth_metadata(metadata("kubernetes.io/oidc-token-provider", "okta"))
        .build()
        .expect("a cluster");

    let error = default_registry()
        .credential(&request("alice", &cluster))
        .await
        .expect_err("nothing offered");

    assert_eq!(
        (error.kind(), error.provider(), error.cluster()),
        (ErrorKind::LoginRequired, Some("oidc"), Some("prod"))
    );
}
