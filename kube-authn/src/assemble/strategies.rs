//! The strategies of this build, each with its settings: one function per strategy.

use std::sync::Arc;

#[cfg(feature = "aws")]
use kube_authn_clusters::AwsAccountConfig;
use kube_authn_clusters::EffectiveConfig;
#[cfg(feature = "google-service-account")]
use kube_authn_clusters::GoogleServiceAccountSettings;
use kube_authn_core::{ClusterDetails, KubernetesAuthProvider, ProviderRegistry, Result, UpstreamPool};
#[cfg(feature = "aws")]
use kube_authn_providers::{AwsAccount, AwsConfig, AwsKeys, AwsProvider};
use kube_authn_providers::{
    ClientCertificateProvider, ExecProvider, ImpersonationConfig, ImpersonationProvider,
    ServiceAccountProvider, default_registry,
};
#[cfg(feature = "google-service-account")]
use kube_authn_providers::{GoogleCredentials, GoogleServiceAccountProvider};
#[cfg(feature = "azure")]
use {
    kube_authn_clusters::AzureManagedIdentity,
    kube_authn_providers::{AzureCloud, AzureConfig, AzureProvider, AzureSource, ManagedIdentity},
};

use super::crypto_provider;

/// A strategy with settings of its own in the app-config.
#[derive(Clone, Copy, Debug)]
pub(super) struct Configured {
    pub(super) name: &'static str,
    /// Whether two configurations say the same of it, secrets included.
    pub(super) same: fn(&EffectiveConfig, &EffectiveConfig) -> bool,
    pub(super) build: fn(&EffectiveConfig) -> Arc<dyn KubernetesAuthProvider>,
}

/// All of them but `impersonation`, which is made of the others.
pub(super) fn configured() -> Vec<Configured> {
    vec![
        Configured {
            name: ExecProvider::NAME,
            same: |a, b| a.kube_authn.strategies.exec == b.kube_authn.strategies.exec,
            build: |effective| Arc::new(exec(effective)),
        },
        #[cfg(feature = "aws")]
        Configured {
            name: AwsProvider::NAME,
            same: |a, b| a.aws == b.aws && a.kube_authn.strategies.aws == b.kube_authn.strategies.aws,
            build: |effective| Arc::new(aws(effective)),
        },
        #[cfg(feature = "azure")]
        Configured {
            name: AzureProvider::NAME,
            same: |a, b| a.kube_authn.strategies.azure == b.kube_authn.strategies.azure,
            build: |effective| Arc::new(azure(effective)),
        },
        #[cfg(feature = "google-service-account")]
        Configured {
            name: GoogleServiceAccountProvider::NAME,
            same: |a, b| google_settings(a) == google_settings(b),
            build: |effective| Arc::new(google_service_account(google_settings(effective))),
        },
    ]
}

/// Those that know clusters alone. `pool` has the connections of the program.
pub(super) fn without_settings(pool: &UpstreamPool) -> ProviderRegistry {
    default_registry()
        .with(ServiceAccountProvider::new().with_token_requests(pool.clone()))
        .with(ClientCertificateProvider::new().with_key_check(crypto_provider()))
}

/// Whose credential a cluster gets, where the cloud can tell although the cluster does not: AWS alone. It takes a call of
/// STS.
#[cfg(feature = "aws")]
pub(crate) async fn principal(
    effective: &EffectiveConfig,
    cluster: &ClusterDetails,
) -> Option<Result<String>> {
    if cluster.auth_provider() != AwsProvider::NAME {
        return None;
    }
    let caller = aws(effective).caller_identity(cluster).await;
    Some(caller.map(|caller| format!("the AWS principal {}", caller.arn)))
}

#[cfg(not(feature = "aws"))]
#[allow(clippy::unused_async, reason = "the same shape with every set of features")]
pub(crate) async fn principal(_: &EffectiveConfig, _: &ClusterDetails) -> Option<Result<String>> {
    None
}

#[cfg(feature = "azure")]
#[allow(
    clippy::disallowed_methods,
    reason = "a named reader: the variables of Azure's own libraries"
)]
fn azure(effective: &EffectiveConfig) -> AzureProvider {
    let settings = &effective.kube_authn.strategies.azure;
    let mut config = AzureConfig::default();
    config.cloud = settings
        .cloud
        .as_deref()
        .and_then(AzureCloud::parse)
        .unwrap_or_default();
    config.authority_host.clone_from(&settings.authority_host);
    config.ca.clone_from(&settings.ca);
    config.tenant_id.clone_from(&settings.tenant_id);
    config.client_id.clone_from(&settings.client_id);
    config.client_secret.clone_from(&settings.client_secret);
    config.certificate_file.clone_from(&settings.certificate_file);
    config
        .certificate_key_file
        .clone_from(&settings.certificate_key_file);
    config.send_certificate_chain = settings.send_certificate_chain;
    config
        .federated_token_file
        .clone_from(&settings.federated_token_file);
    config.managed_identity = settings.managed_identity.clone().and_then(managed_identity);
    let sources = |names: &Vec<String>| names.iter().filter_map(|name| AzureSource::parse(name)).collect();
    config.sources = settings.sources.as_ref().map(sources);
    config.server_application.clone_from(&settings.server_application);
    config.azure_cli_path.clone_from(&settings.azure_cli_path);
    config
        .azure_developer_cli_path
        .clone_from(&settings.azure_developer_cli_path);
    AzureProvider::new(config, crypto_provider(), &|name: &str| std::env::var(name).ok())
}

#[cfg(feature = "azure")]
fn managed_identity(written: AzureManagedIdentity) -> Option<ManagedIdentity> {
    Some(match written {
        AzureManagedIdentity::SystemAssigned => ManagedIdentity::SystemAssigned,
        AzureManagedIdentity::ClientId(id) => ManagedIdentity::ClientId(id),
        AzureManagedIdentity::ObjectId(id) => ManagedIdentity::ObjectId(id),
        AzureManagedIdentity::ResourceId(id) => ManagedIdentity::ResourceId(id),
        _ => return None,
    })
}

fn exec(effective: &EffectiveConfig) -> ExecProvider {
    let settings = &effective.kube_authn.strategies.exec;
    let mut provider = ExecProvider::new().with_allowed(settings.allow.iter().cloned());
    if let Some(timeout) = settings.timeout {
        provider = provider.with_timeout(timeout);
    }
    match &settings.pass_environment {
        Some(names) => provider.with_environment(names.iter().cloned()),
        None => provider,
    }
}

pub(super) fn impersonation(
    effective: &EffectiveConfig,
    carriers: &ProviderRegistry,
) -> ImpersonationProvider {
    let settings = effective.kube_authn.strategies.impersonation.clone();
    let mut defaults = ImpersonationConfig::default();
    defaults.carrier = settings.carrier;
    defaults.user = settings.user;
    defaults.service = settings.service;
    defaults.uid = settings.uid;
    defaults.groups = settings.groups;
    defaults.groups_from = settings.groups_from;
    defaults.groups_prefix = settings.groups_prefix;
    defaults.extra = settings.extra;
    ImpersonationProvider::new(defaults, carriers)
}

#[cfg(feature = "aws")]
fn aws(effective: &EffectiveConfig) -> AwsProvider {
    let (accounts, settings) = (&effective.aws, &effective.kube_authn.strategies.aws);
    let listed = accounts
        .accounts
        .iter()
        .map(|(id, account)| (id.clone(), aws_account(account)));
    let mut config = AwsConfig::default();
    config.main_account = aws_account(&accounts.main_account);
    config.accounts = listed.collect();
    config.account_defaults = aws_account(&accounts.account_defaults);
    config.region.clone_from(&settings.region);
    config.use_fips = settings.use_fips;
    config.use_dual_stack = settings.use_dual_stack;
    config.session_name.clone_from(&settings.session_name);
    AwsProvider::new(config)
}

#[cfg(feature = "aws")]
fn aws_account(written: &AwsAccountConfig) -> AwsAccount {
    let keys = written.keys.as_ref().map(|(id, secret)| AwsKeys {
        access_key_id: id.clone(),
        secret_access_key: secret.clone(),
    });
    let mut account = AwsAccount::default();
    account.keys = keys;
    account.profile.clone_from(&written.profile);
    account.role_name.clone_from(&written.role_name);
    account.partition.clone_from(&written.partition);
    account.region.clone_from(&written.region);
    account.external_id.clone_from(&written.external_id);
    account
        .web_identity_token_file
        .clone_from(&written.web_identity_token_file);
    account
}

#[cfg(feature = "google-service-account")]
fn google_settings(effective: &EffectiveConfig) -> &GoogleServiceAccountSettings {
    &effective.kube_authn.strategies.google_service_account
}

#[cfg(feature = "google-service-account")]
#[allow(
    clippy::disallowed_methods,
    reason = "a named reader: the variables of Google's tools"
)]
pub(crate) fn google_service_account(
    settings: &GoogleServiceAccountSettings,
) -> GoogleServiceAccountProvider {
    let credentials = match (&settings.credentials, &settings.credentials_file) {
        (Some(json), _) => GoogleCredentials::Json(json.clone()),
        (None, Some(path)) => GoogleCredentials::File(path.clone()),
        (None, None) => GoogleCredentials::Default,
    };
    let env = |name: &str| std::env::var(name).ok();
    let provider = GoogleServiceAccountProvider::new(credentials, super::crypto_provider(), &env);
    #[cfg(feature = "google-federation")]
    let provider = provider.with_executables(settings.allow_executables.iter().cloned());
    match &settings.impersonate {
        Some(account) => provider.with_impersonation(account),
        None => provider,
    }
}
