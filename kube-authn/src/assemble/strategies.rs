//! The strategies of this build, each with its settings: one function per strategy.

use kube_authn_clusters::EffectiveConfig;
use kube_authn_core::{ProviderRegistry, UpstreamPool};
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
