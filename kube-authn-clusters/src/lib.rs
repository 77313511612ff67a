#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod app_config;
mod aws;
mod backend;
mod callers;
#[cfg(feature = "catalog")]
mod catalog;
mod combined;
mod config;
mod effective;
mod findings;
#[cfg(feature = "gke")]
mod gke;
mod kube_authn;
mod kubeconfig;
mod local_kubectl_proxy;
mod login;
mod outside;
mod refreshing;
mod schedule;
mod strategies;
mod substitution;
#[cfg(test)]
mod test_support;
mod transport_rules;

#[cfg(feature = "catalog")]
pub use self::catalog::{BackstageCatalog, CatalogLocator};
#[cfg(feature = "gke")]
pub use self::gke::{GkeLocator, GoogleApi};
pub use jiff;
pub use url;

pub use self::{
    app_config::{AppConfig, ConfigValue, Environment, InvalidConfig},
    aws::{AwsAccountConfig, AwsAccounts},
    backend::{BackendConfig, ServerCertificate},
    callers::{BackstageCaller, CallerConfig, HeaderCaller, OidcCaller, PeerRange, PrincipalMapping},
    combined::CombinedLocator,
    config::ConfigLocator,
    effective::EffectiveConfig,
    kube_authn::{CatalogConfig, EncryptionKey, KubeAuthnConfig, PurgeConfig, StoreConfig},
    kubeconfig::KubeconfigLocator,
    local_kubectl_proxy::LocalKubectlProxyLocator,
    login::{ExposeToken, Logins},
    outside::Outside,
    schedule::{Cadence, CronPattern, Schedule},
    strategies::{
        AwsSettings, AzureManagedIdentity, AzureSettings, ExecSettings, GoogleServiceAccountSettings,
        ImpersonationSettings, StrategySettings,
    },
};

/// The strategy whose clusters take users' stored logins.
const CLUSTER_AUTH: &str = "clusterAuth";

/// The strategy that reads Backstage's block `aws`.
const AWS: &str = "aws";
