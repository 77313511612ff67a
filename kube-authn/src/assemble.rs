//! From an app-config to something that works: locators, strategies, store, cache, connections.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kube_authn_clusters::{AppConfig, EffectiveConfig, Logins};
use kube_authn_core::{
    CachingProvider, ClusterAccess, ClusterDetails, Clusters, Error, ErrorKind, KubernetesAuthProvider,
    LoginConfig, ProviderRegistry, Result, SystemClock, TokenVault, UpstreamPool,
};
use kube_authn_oidc::{IssuerClient, LoginVerifier};
use kube_authn_providers::{ClusterAuthProvider, ServiceAccountProvider};
use rustls::crypto::CryptoProvider;

use crate::{Administration, service::caller_problems};

pub(crate) mod in_force;
mod outside;
pub(crate) mod store;
pub(crate) mod strategies;

use in_force::Strategies;

/// The configuration as a whole, every problem in it included: what `kube-authn check` prints.
///
/// Clusters that no built-in strategy can serve are among the problems, and callers that cannot be told who they are.
pub async fn effective_config(config: &AppConfig) -> EffectiveConfig {
    let mut effective = effective_but_callers(config).await;
    let problems = caller_problems(config, &effective.kube_authn.callers);
    effective.problems.extend(problems);
    effective
}

/// All blocks of the configuration, before any strategy has looked at its clusters.
pub(crate) async fn read_effective(config: &AppConfig) -> EffectiveConfig {
    let (outside, problems) = outside::outside(config);
    let mut effective = EffectiveConfig::read_with(config, &outside).await;
    effective.problems.extend(problems);
    let found = store::problems(config, &effective.kube_authn);
    for problem in found {
        let known = effective.problems.iter().any(|known| known.key == problem.key);
        if !known {
            effective.problems.push(problem);
        }
    }
    effective
}

/// As [`effective_config`], for a program that knows its callers by itself.
pub(crate) async fn effective_but_callers(config: &AppConfig) -> EffectiveConfig {
    let effective = read_effective(config).await;
    let registry = Strategies::new(&effective, &UpstreamPool::new(crypto_provider())).registry();
    checked(effective, &registry, true)
}

/// What the credentials that carry users' names must be allowed: for each cluster of strategy `impersonation` its name and
/// the YAML of a ClusterRole.
pub fn impersonation_rules(effective: &EffectiveConfig) -> Vec<(String, String)> {
    let strategy = strategies::impersonation(effective, &ProviderRegistry::new());
    let rules = |cluster: &ClusterDetails| {
        let rules = strategy.rules(cluster)?;
        Some((cluster.name().to_string(), rules))
    };
    effective.clusters.iter().filter_map(rules).collect()
}

/// The users' logins: `kubeAuthn.store`, sealed with `kubeAuthn.encryption`. `None` if no cluster takes logins.
///
/// # Errors
/// `ConfigInvalid` with all problems of the configuration, if clusters take logins and there is no key, or if the store
/// cannot be opened; `Unavailable` or `Timeout` if the store's file is locked. A database server that does not answer is no
/// error: every use of the vault is `Unavailable` until it does.
pub async fn vault(config: &AppConfig) -> Result<Option<TokenVault>> {
    let effective = read_effective(config).await.into_valid()?;
    Ok(administration_of(&effective).await?.map(|opened| opened.vault))
}

/// As [`vault`], of a configuration that was read already and is valid, with the keys.
pub(crate) async fn administration_of(effective: &EffectiveConfig) -> Result<Option<Administration>> {
    if !effective.uses_cluster_auth() {
        return Ok(None);
    }
    if effective.kube_authn.encryption_keys.is_empty() {
        return Err(Error::new(
            ErrorKind::ConfigInvalid,
            "clusters with authProvider \"clusterAuth\" need kubeAuthn.encryption.keys, and none is configured: make a key \
             with `kube-authn keygen`",
        ));
    }
    Administration::of(&effective.kube_authn).await.map(Some)
}

/// Clusters, strategies, cache and connections of an app-config. `vault` is what [`vault`] gave, or your own.
///
/// # Errors
/// `ConfigInvalid` with all problems of the configuration.
pub async fn cluster_access(config: &AppConfig, vault: Option<TokenVault>) -> Result<ClusterAccess> {
    cluster_access_with(config, vault, |registry| registry).await
}

/// As [`cluster_access`], with strategies of your own beside the built-in ones: `|registry| registry.with(Mine)`.
///
/// # Errors
/// As [`cluster_access`].
pub async fn cluster_access_with(
    config: &AppConfig,
    vault: Option<TokenVault>,
    register: impl FnOnce(ProviderRegistry) -> ProviderRegistry,
) -> Result<ClusterAccess> {
    access_of(read_effective(config).await, vault, register).map(|assembled| assembled.access)
}

/// What [`access_of`] makes.
pub(crate) struct Assembled {
    pub(crate) access: ClusterAccess,
    /// What of the configuration is in force.
    pub(crate) effective: EffectiveConfig,
    pub(crate) strategies: Strategies,
    /// The strategy that refreshes logins, if clusters take any.
    pub(crate) cluster_auth: Option<ClusterAuthProvider>,
}

/// As [`cluster_access_with`], of a configuration that was read already.
pub(crate) fn access_of(
    effective: EffectiveConfig,
    vault: Option<TokenVault>,
    register: impl FnOnce(ProviderRegistry) -> ProviderRegistry,
) -> Result<Assembled> {
    let takes_logins = vault.is_some();
    let pool = UpstreamPool::new(crypto_provider());
    let strategies = Strategies::new(&effective, &pool);
    let mut registry = strategies.registry();
    let cluster_auth = vault
        .map(|vault| cluster_auth(vault, &effective.logins))
        .transpose()?;
    if let Some(cluster_auth) = &cluster_auth {
        registry = registry.with(cluster_auth.clone());
    }
    let registry = register(registry);

    let effective = checked(effective, &registry, !takes_logins).into_valid()?;
    if effective.uses_cluster_auth() && !takes_logins {
        return Err(Error::new(
            ErrorKind::ConfigInvalid,
            "clusters with authProvider \"clusterAuth\" need a token vault: pass the one that `kube_authn::vault` gives",
        ));
    }
    for warning in &effective.warnings {
        tracing::warn!("{warning}");
    }
    let clusters = located(&effective).collect::<Result<Vec<_>>>()?;
    let access = ClusterAccess::new(Clusters::new(clusters), CachingProvider::new(registry), pool);
    let access = match stream_grace(&effective.logins) {
        Some(grace) => access.with_stream_grace(grace),
        None => access,
    };
    Ok(Assembled {
        access,
        effective,
        strategies,
        cluster_auth,
    })
}

/// `clusterAuth.lifetimes.streamGrace`: one for all logins, those of single clusters included.
fn stream_grace(logins: &Logins) -> Option<Duration> {
    let of_cluster = || logins.by_cluster().map(|(_, login)| login).next();
    let login = logins.default_login().or_else(of_cluster)?;
    Some(login.lifetimes.stream_grace)
}

/// Verifies and binds the tokens that a user brings for this cluster, before [`TokenVault::log_in`] stores them.
///
/// Keep it: it caches the issuer's metadata and keys, and bounds how often they are fetched.
///
/// # Errors
/// `ConfigInvalid` with all problems of the configuration, if users do not log in to this cluster, or if the issuer's CA
/// cannot be used.
pub async fn login_verifier(config: &AppConfig, vault: &TokenVault, cluster: &str) -> Result<LoginVerifier> {
    // A setting that could not be read stands at its default, which may be laxer.
    let effective = read_effective(config).await.into_valid()?;
    let login = effective.logins.for_cluster(cluster).cloned().ok_or_else(|| {
        Error::new(
            ErrorKind::ConfigInvalid,
            "users do not log in to this cluster: clusterAuth.issuer is not configured",
        )
        .with_cluster(cluster)
    })?;
    verifier(login, vault)
}

/// With an issuer client of its own.
pub(crate) fn verifier(login: LoginConfig, vault: &TokenVault) -> Result<LoginVerifier> {
    let issuer = IssuerClient::of_login(&login, crypto_provider())?;
    Ok(LoginVerifier::new(
        login,
        issuer,
        Arc::new(SystemClock),
        vault.clone(),
    ))
}

/// Lets the strategies look at their clusters. `clusterAuth` needs a vault to exist; where there is none,
/// `EffectiveConfig` itself has checked its clusters.
fn checked(
    mut effective: EffectiveConfig,
    registry: &ProviderRegistry,
    pass_cluster_auth: bool,
) -> EffectiveConfig {
    effective.validate_with(|cluster| {
        match pass_cluster_auth && cluster.auth_provider() == ClusterAuthProvider::NAME {
            true => Vec::new(),
            false => registry.validate(cluster),
        }
    });
    effective
}

/// As the strategies that are in force see it.
pub(crate) fn validated(effective: EffectiveConfig, registry: &ProviderRegistry) -> EffectiveConfig {
    let without_vault = !registry.names().any(|name| name == ClusterAuthProvider::NAME);
    checked(effective, registry, without_vault)
}

fn cluster_auth(vault: TokenVault, logins: &Logins) -> Result<ClusterAuthProvider> {
    let by_cluster: HashMap<String, LoginConfig> = logins
        .by_cluster()
        .map(|(name, login)| (name.to_owned(), login.clone()))
        .collect();
    let mut verifiers: Vec<LoginVerifier> = Vec::new();
    for login in logins.default_login().into_iter().chain(by_cluster.values()) {
        if !verifiers
            .iter()
            .any(|known| login.shares_logins_with(known.login()))
        {
            verifiers.push(verifier(login.clone(), &vault)?);
        }
    }
    ClusterAuthProvider::new(vault, by_cluster, logins.default_login().cloned()).with_issuers(verifiers)
}

/// The strategy that gives the application's credential for a cluster: its own, or that which carries users' names.
pub(crate) fn credential_source(effective: &EffectiveConfig) -> impl Fn(&ClusterDetails) -> String {
    let impersonation = strategies::impersonation(effective, &ProviderRegistry::new());
    move |cluster| {
        let carrier = impersonation.carrier(cluster);
        carrier.unwrap_or_else(|| cluster.auth_provider().to_owned())
    }
}

/// The clusters where they are: the one that this pod runs in gets its real address, every other one stays as it is.
#[allow(
    clippy::disallowed_methods,
    reason = "a named reader: KUBERNETES_SERVICE_HOST and _PORT of the pod"
)]
pub(crate) fn located(effective: &EffectiveConfig) -> impl Iterator<Item = Result<ClusterDetails>> {
    let env = |name: &str| std::env::var(name).ok();
    let service_account = ServiceAccountProvider::new();
    let impersonation = strategies::impersonation(effective, &ProviderRegistry::new());
    effective.clusters.iter().map(move |cluster| {
        let found = match impersonation.carrier(cluster).as_deref() {
            Some(ServiceAccountProvider::NAME) => service_account.in_cluster_as_carrier(&env, cluster)?,
            _ => service_account.in_cluster(&env, cluster)?,
        };
        Ok(found.unwrap_or_else(|| cluster.clone()))
    })
}

/// The process's own crypto provider if it installed one, else aws-lc-rs.
pub(crate) fn crypto_provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}
