//! The strategies of this build, each with its settings: one function per strategy.

#[cfg(feature = "aws")]
use kube_authn_clusters::AwsAccountConfig;
use kube_authn_clusters::EffectiveConfig;
use kube_authn_core::{ProviderRegistry, UpstreamPool};
#[cfg(feature = "aws")]
use kube_authn_providers::{AwsAccount, AwsConfig, AwsKeys, AwsProvider};
use kube_authn_providers::{
    ClientCertificateProvider, ExecProvider, ImpersonationConfig, ImpersonationProvider,
    ServiceAccountProvider, default_registry,
};

use super::crypto_provider;

/// All but `clusterAuth`, which needs a vault. `pool` has the connections of the program.
pub(crate) fn registry(effective: &EffectiveConfig, pool: &UpstreamPool) -> ProviderRegistry {
    let registry = default_registry()
        .with(ServiceAccountProvider::new().with_token_requests(pool.clone()))
        .with(ClientCertificateProvider::new().with_key_check(crypto_provider()))
        .with(exec(effective));
    #[cfg(feature = "aws")]
    let registry = registry.with(aws(effective));
    // Last: all of the above may carry users' names.
    let impersonation = impersonation(effective, &registry);
    registry.with(impersonation)
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
