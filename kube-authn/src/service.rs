//! From an app-config to the routes that a program serves: callers, logins, access, routers.

use std::sync::Arc;

use kube_authn_clusters::{
    AppConfig, BackstageCaller, CallerConfig, EffectiveConfig, ExposeToken, OidcCaller, PeerRange,
};
use kube_authn_core::{
    CaBundle, ClientId, Error, ErrorKind, LoginConfig, Problem, Result, SystemClock, TlsTrust, TokenVault,
    Transport,
};
use kube_authn_http::{
    BackstageCallers, Callers, ClusterAuth, ClusterLogin, HeaderCallers, Health, Metrics, OidcCallers,
    PrincipalMapping, ProxyState, TokenExposure, axum::Router,
};
use kube_authn_oidc::IssuerClient;
use kube_authn_providers::ClusterAuthProvider;

use crate::{
    Purge, Reload,
    assemble::{
        access_of, administration_of, crypto_provider, effective_but_callers, effective_config, verifier,
    },
};

/// What `kube-authn serve` serves: all routes, and the state that their server asks when it stops.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Service {
    /// All routes. Its server must offer upgrades, and `ConnectInfo<SocketAddr>` where a gateway names callers.
    pub router: Router,
    /// The Kubernetes proxy's state: exec, attach and port-forward are no requests any more once they run.
    pub proxy: ProxyState,
    /// Whether anybody may call at all; if not, every call is answered with 401.
    pub knows_callers: bool,
    /// The gateways that name callers (`trustedPeers`): they bring many people's connections, which are no single client's.
    pub gateways: Vec<PeerRange>,
    /// Takes over what changed in the configuration.
    pub reload: Reload,
    /// What must not be cut off when the program stops.
    pub refreshes: Refreshes,
    /// Deletes logins that ended long ago, once somebody runs it; `None` if no cluster takes logins.
    pub purge: Option<Purge>,
}

/// The refreshes of users' logins that are under way. Clones share them.
#[derive(Clone, Debug)]
pub struct Refreshes(Option<ClusterAuthProvider>);

impl Refreshes {
    /// Returns when none is under way: what an issuer answers to one that is cut off is lost, and its user has to log in
    /// again.
    pub async fn settled(&self) {
        if let Some(cluster_auth) = &self.0 {
            cluster_auth.settled().await;
        }
    }
}

/// The routes of an app-config: token API, Kubernetes proxy, cluster list, health. Call it once: with `metrics` it becomes
/// the process's recorder of measurements and serves them at `/metrics`.
///
/// # Errors
/// As [`vault`](crate::vault) and [`cluster_access`](crate::cluster_access); `ConfigInvalid` also if a caller's setting cannot
/// be used, or if stored logins are sealed with a key that is not configured. Where the configuration itself is wrong, the source is an [`InvalidConfig`](kube_authn_clusters::InvalidConfig) with all that
/// [`effective_config`] finds.
pub async fn service(config: &AppConfig, metrics: bool) -> Result<Service> {
    let effective = effective_config(config).await.into_valid()?;
    let callers = callers(&effective.kube_authn.callers)?;
    let gateways = gateways(&effective.kube_authn.callers);
    let service = assembled(config, effective, callers, metrics).await?;
    Ok(Service { gateways, ..service })
}

/// As [`service`], for callers that the program itself knows: `kubeAuthn.callers` and `backend.baseUrl` are left alone.
///
/// # Errors
/// As [`service`].
pub async fn service_for(config: &AppConfig, callers: Callers, metrics: bool) -> Result<Service> {
    assembled(
        config,
        effective_but_callers(config).await.into_valid()?,
        callers,
        metrics,
    )
    .await
}

async fn assembled(
    config: &AppConfig,
    effective: EffectiveConfig,
    callers: Callers,
    metrics: bool,
) -> Result<Service> {
    let administration = administration_of(&effective).await?;
    if let Some(administration) = &administration {
        administration.refuse_start().await?;
    }
    let vault = administration.as_ref().map(|opened| opened.vault.clone());
    let assembled = access_of(effective, vault.clone(), |registry| registry)?;
    let (access, effective, strategies) = (assembled.access, assembled.effective, assembled.strategies);

    let mut health = Health::new().with_clusters(access.clone());
    let mut cluster_auth = None;
    if let Some(vault) = &vault {
        let logins = logins(&effective, vault)?;
        health = health.with_vault(vault.clone());
        for login in &logins {
            health = health.with_issuer(login.verifier.verifier().issuer().clone());
        }
        let exposure = exposure(effective.logins.expose_token())?;
        cluster_auth = Some(ClusterAuth::new(access.clone(), vault.clone(), logins).with_exposure(exposure));
    }
    let metrics = metrics
        .then(|| Metrics::install(Some(access.clone()), vault.clone()))
        .transpose()?;
    let proxy = ProxyState::new(access.clone(), callers.clone());
    let purge = vault.map(|vault| Purge::new(vault, effective.kube_authn.purge.clone()));
    let logins = cluster_auth.clone().zip(administration);
    let reload = Reload::new(config, effective, access.clone(), strategies, logins);
    let routes = kube_authn_http::router(&access, &callers, cluster_auth, health, metrics);
    Ok(Service {
        router: routes.merge(kube_authn_http::proxy(proxy.clone())),
        proxy,
        knows_callers: !callers.is_empty(),
        gateways: Vec::new(),
        reload,
        refreshes: Refreshes(assembled.cluster_auth),
        purge,
    })
}

/// In the order of the configuration.
fn callers(configured: &[CallerConfig]) -> Result<Callers> {
    configured.iter().try_fold(Callers::new(), with)
}

fn gateways(configured: &[CallerConfig]) -> Vec<PeerRange> {
    configured
        .iter()
        .filter_map(|caller| match caller {
            CallerConfig::Header(gateway) => Some(&gateway.trusted_peers),
            _ => None,
        })
        .flatten()
        .copied()
        .collect()
}

/// What `callers` would refuse, with the place to mend it.
pub(crate) fn caller_problems(config: &AppConfig, configured: &[CallerConfig]) -> Vec<Problem> {
    let list = config.value("kubeAuthn.callers");
    let place = match list.is_absent() {
        // They are made of it then.
        true => config.value("backend.baseUrl"),
        false => list,
    };
    configured
        .iter()
        .filter_map(|caller| with(Callers::new(), caller).err())
        .map(|error| place.problem(error.to_string()))
        .collect()
}

fn with(callers: Callers, caller: &CallerConfig) -> Result<Callers> {
    match caller {
        CallerConfig::Backstage(portal) => Ok(callers.with(backstage(portal)?)),
        CallerConfig::Oidc(issuer) => Ok(callers.with(oidc(issuer)?)),
        CallerConfig::Header(gateway) => {
            let peers = gateway.trusted_peers.clone();
            let is_trusted = move |address| peers.iter().any(|range| range.contains(address));
            Ok(callers.with(HeaderCallers::new(gateway.user.clone(), is_trusted)))
        }
        // Whoever this is for would be left out in silence.
        _ => Err(unknown("kubeAuthn.callers[].type")),
    }
}

fn backstage(configured: &BackstageCaller) -> Result<BackstageCallers> {
    let transport = transport(configured.ca.clone())?;
    BackstageCallers::new(&configured.base_url, PLUGIN_IDS, transport, Arc::new(SystemClock))
}

fn oidc(configured: &OidcCaller) -> Result<OidcCallers> {
    let issuer = IssuerClient::new(configured.issuer.clone(), transport(configured.ca.clone())?);
    let audience = ClientId::new(&configured.audience)?;
    let callers = OidcCallers::new(issuer, audience, Arc::new(SystemClock));
    Ok(match &configured.principal {
        Some(by) => callers.with_principal(PrincipalMapping::new(&by.claim, &by.kind, &by.namespace)?),
        None => callers,
    })
}

fn transport(ca: CaBundle) -> Result<Transport> {
    Transport::new(crypto_provider(), TlsTrust::new(ca))
}

/// The clusters that take logins, by login: those with the same issuer and client share one, as they do in the vault.
pub(crate) fn logins(effective: &EffectiveConfig, vault: &TokenVault) -> Result<Vec<ClusterLogin>> {
    let mut logins: Vec<(LoginConfig, Vec<String>)> = Vec::new();
    for cluster in &effective.clusters {
        let name = cluster.name().as_str();
        if cluster.auth_provider() != ClusterAuthProvider::NAME {
            continue;
        }
        let Some(login) = effective.logins.for_cluster(name) else {
            continue;
        };
        match logins
            .iter_mut()
            .find(|(known, _)| login.shares_logins_with(known))
        {
            Some((_, clusters)) => clusters.push(name.to_owned()),
            None => logins.push((login.clone(), vec![name.to_owned()])),
        }
    }
    logins
        .into_iter()
        .map(|(login, clusters)| {
            let login = ClusterLogin::new(verifier(login, vault)?, clusters.iter());
            let audience = |name: &String| effective.logins.for_cluster(name)?.audience.clone();
            let with_audience = |login: ClusterLogin, name: String| match audience(&name) {
                Some(audience) => login.with_audience(name, audience),
                None => login,
            };
            Ok(clusters.into_iter().fold(login, with_audience))
        })
        .collect()
}

fn exposure(configured: ExposeToken) -> Result<TokenExposure> {
    match configured {
        ExposeToken::Never => Ok(TokenExposure::Never),
        ExposeToken::Service => Ok(TokenExposure::Service),
        ExposeToken::User => Ok(TokenExposure::User),
        _ => Err(unknown("clusterAuth.exposeToken")),
    }
}

fn unknown(key: &str) -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        format!("the value of {key} is not in this build"),
    )
}

/// The Backstage plugins whose routes ours are: their tokens are made out to these names.
const PLUGIN_IDS: [&str; 2] = ["kubernetes", "cluster-auth"];
