#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

use kube_authn_core::ProviderRegistry;

#[cfg(feature = "cluster-auth")]
mod cluster_auth;
mod local_kubectl_proxy;
mod oidc;
mod service_account;
#[cfg(test)]
mod test_support;

#[cfg(feature = "cluster-auth")]
pub use self::cluster_auth::ClusterAuthProvider;
pub use self::{
    local_kubectl_proxy::LocalKubectlProxyProvider,
    oidc::OidcProvider,
    service_account::{DEFAULT_FOLDER, ServiceAccountProvider},
};

/// The strategies that need nothing but a cluster's own settings: `serviceAccount`, `localKubectlProxy`, `oidc`.
/// [`ProviderRegistry::with`] adds others beside them, or another one in place of the one of its name.
pub fn default_registry() -> ProviderRegistry {
    ProviderRegistry::new()
        .with(ServiceAccountProvider::new())
        .with(LocalKubectlProxyProvider)
        .with(OidcProvider::new())
}

#[cfg(test)]
mod tests;
