//! Strategy `localKubectlProxy`: a `kubectl proxy` on this machine adds its own credential.

use async_trait::async_trait;
use kube_authn_core::{
    ClusterDetails, Credential, CredentialRequest, CredentialScope, KubernetesAuthProvider, Metadata,
    Problem, Result,
};

/// Nothing is sent: the local kubectl proxy authenticates as whoever started it. What the caller sends to us never goes on
/// to it, since an anonymous credential strips every identity header.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalKubectlProxyProvider;

impl LocalKubectlProxyProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "localKubectlProxy";
}

#[async_trait]
impl KubernetesAuthProvider for LocalKubectlProxyProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    fn validate(&self, _: &ClusterDetails) -> Vec<Problem> {
        Vec::new()
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, _: &CredentialRequest) -> Result<Credential> {
        Ok(Credential::anonymous())
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        false
    }
}
