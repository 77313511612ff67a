//! A cluster's own settings: `kubeAuthn.azure`.

use kube_authn_core::{ClusterDetails, Problem};

use super::{AzureConfig, AzureProvider};
use crate::options::Block;

/// Which token: also the key that tokens are kept under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    /// The tenant that the cluster names.
    pub(super) tenant: Option<String>,
    /// The client that the cluster names.
    pub(super) client_id: Option<String>,
    /// The server application that the cluster takes tokens for.
    pub(super) application: String,
}

impl Wanted {
    /// The scope of Entra's v2 endpoint.
    pub(super) fn scope(&self) -> String {
        format!("{}/.default", self.application)
    }
}

/// What a cluster wants, and everything that is wrong with it.
pub(super) fn wanted(cluster: &ClusterDetails, config: &AzureConfig) -> (Wanted, Vec<Problem>) {
    let mut block = Block::of(
        cluster,
        AzureProvider::NAME,
        &["tenantId", "clientId", "serverApplication"],
    );
    let tenant = block.text("tenantId");
    if tenant.is_some_and(|tenant| !is_tenant(tenant)) {
        block.refuse("tenantId", "expected the tenant's id or one of its domains");
    }
    let client_id = block.text("clientId");
    let application = block
        .text("serverApplication")
        .or(config.server_application.as_deref());
    let wanted = Wanted {
        tenant: tenant.map(str::to_owned),
        client_id: client_id.map(str::to_owned),
        application: application.unwrap_or(AKS_SERVER_APPLICATION).to_owned(),
    };
    (wanted, block.problems)
}

/// Whether it can be a tenant: it becomes part of a URL's path.
pub(super) fn is_tenant(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.bytes().all(legal) && text.bytes().any(|byte| byte != b'.')
}

/// The AKS server application, the same in every cloud
/// (<https://azure.github.io/kubelogin/concepts/aks.html#azure-kubernetes-service-aad-server>).
pub(super) const AKS_SERVER_APPLICATION: &str = "6dae42f8-4368-4678-94ff-3960e28e3630";
