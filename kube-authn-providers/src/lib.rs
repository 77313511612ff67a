#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

use kube_authn_core::ProviderRegistry;

mod aks;
mod allowed;
#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
mod client_certificate;
#[cfg(feature = "cluster-auth")]
mod cluster_auth;
mod command;
mod exec;
mod google;
#[cfg(feature = "google-service-account")]
mod google_service_account;
mod impersonation;
mod local_kubectl_proxy;
mod offered;
mod oidc;
mod options;
mod regular_file;
mod service_account;
#[cfg(any(feature = "aws", feature = "azure"))]
mod shared_slots;
#[cfg(test)]
mod test_support;

#[cfg(feature = "aws")]
pub use self::aws::{AwsAccount, AwsCallerIdentity, AwsConfig, AwsKeys, AwsProvider};
#[cfg(feature = "azure")]
pub use self::azure::{AzureCloud, AzureConfig, AzureProvider, AzureSource, ManagedIdentity};
#[cfg(feature = "cluster-auth")]
pub use self::cluster_auth::ClusterAuthProvider;
#[cfg(feature = "google-service-account")]
pub use url;

#[cfg(feature = "google-service-account")]
pub use self::google_service_account::{GoogleCredentials, GoogleServiceAccountProvider};
pub use self::{
    aks::{Aks, AksProvider},
    client_certificate::ClientCertificateProvider,
    exec::ExecProvider,
    google::{Google, GoogleProvider},
    impersonation::{ImpersonationConfig, ImpersonationProvider},
    local_kubectl_proxy::LocalKubectlProxyProvider,
    offered::{Offered, OfferedTokenProvider},
    oidc::OidcProvider,
    service_account::{DEFAULT_FOLDER, ServiceAccountProvider},
};

/// The strategies that need nothing but a cluster's own settings: `serviceAccount`, `localKubectlProxy`, `oidc`, `google`,
/// `aks`, `clientCertificate`, and `exec` with no plugin allowed.
/// [`ProviderRegistry::with`] adds others beside them, or another one in place of the one of its name.
pub fn default_registry() -> ProviderRegistry {
    ProviderRegistry::new()
        .with(ServiceAccountProvider::new())
        .with(LocalKubectlProxyProvider)
        .with(OidcProvider::new())
        .with(GoogleProvider::new())
        .with(AksProvider::new())
        .with(ExecProvider::new())
        .with(ClientCertificateProvider::new())
}

#[cfg(test)]
mod tests;
