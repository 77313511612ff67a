//! Locator `catalog`: clusters that stand as resources in a Backstage catalog.
//!
//! Whoever may write to the catalog decides what is listed here, so each URL passes a guard, and connections go to public
//! addresses alone unless the operator exempts a host.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use kube_authn_core::{
    AuthMetadata, ClusterDetails, ClusterLocator, EntityReader, Located, Result, is_public_address,
    resolves_to_public_addresses,
};
use serde::Deserialize;
use serde_json::Value;
use url::{Host, Url};

use crate::{ConfigValue, findings::Findings};

mod reader;

pub use self::reader::BackstageCatalog;

/// Resources of type `kubernetes-cluster` with the annotations `kubernetes.io/api-server`,
/// `kubernetes.io/api-server-certificate-authority` and `kubernetes.io/auth-provider`, asked for anew with each listing.
///
/// What cannot be used is left out with a warning, in Backstage's words where it has some.
#[derive(Clone, Debug)]
pub struct CatalogLocator {
    catalog: Arc<dyn EntityReader>,
    allowed_hosts: Vec<String>,
    allow_skip_tls_verify: bool,
    credential_hosts: Vec<String>,
}

impl CatalogLocator {
    /// The wire name, `catalog`.
    pub const NAME: &str = "catalog";

    /// The clusters of this catalog.
    pub fn new(catalog: Arc<dyn EntityReader>) -> Self {
        Self {
            catalog,
            allowed_hosts: Vec::new(),
            allow_skip_tls_verify: false,
            credential_hosts: Vec::new(),
        }
    }

    /// Exempts hosts from the guard (`dangerouslyAllowClusterUrls`): a name, or `*.x` for `x` and all names below it.
    pub fn dangerously_allow_hosts(self, patterns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let patterns = patterns
            .into_iter()
            .map(|pattern| pattern.into().to_ascii_lowercase());
        Self {
            allowed_hosts: patterns.collect(),
            ..self
        }
    }

    /// Believes the annotation `kubernetes.io/skip-tls-verify` (`dangerouslyAllowSkipTLSVerify`).
    pub fn dangerously_allow_skip_tls_verify(self, allow: bool) -> Self {
        Self {
            allow_skip_tls_verify: allow,
            ..self
        }
    }

    /// Lets these hosts have users' logins and the application's credentials (`credentialHosts`): patterns as for
    /// [`CatalogLocator::dangerously_allow_hosts`], whose hosts may have them, too.
    pub fn with_credential_hosts(self, patterns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let patterns = patterns
            .into_iter()
            .map(|pattern| pattern.into().to_ascii_lowercase());
        Self {
            credential_hosts: patterns.collect(),
            ..self
        }
    }

    /// Reads the entry `method` of `kubernetes.clusterLocatorMethods`.
    pub(crate) fn read(
        catalog: Arc<dyn EntityReader>,
        method: &ConfigValue<'_>,
        findings: &mut Findings,
    ) -> Option<Self> {
        let hosts = method.child("dangerouslyAllowClusterUrls").optional_strings();
        let skip = method.child("dangerouslyAllowSkipTLSVerify").optional_bool();
        let hosts = findings.keep(hosts);
        let credential_hosts = method.child("credentialHosts").optional_strings();
        let credential_hosts = findings.keep(credential_hosts)?.unwrap_or_default();
        let skip = findings.keep(skip)?.unwrap_or(false);
        let locator = Self::new(catalog)
            .dangerously_allow_skip_tls_verify(skip)
            .with_credential_hosts(credential_hosts);
        Some(locator.dangerously_allow_hosts(hosts?.unwrap_or_default()))
    }

    async fn cluster(&self, entity: Entity) -> Result<ClusterDetails, String> {
        let name = entity.metadata.name;
        let annotations = entity.metadata.annotations;
        let annotation = |key: &str| annotations.get(&format!("{PREFIX}{key}")).map(String::as_str);
        let provider = annotation("auth-provider").unwrap_or_default();
        if provider == "serviceAccount" {
            return Err("auth provider serviceAccount is for clusters of the configuration alone".to_owned());
        }
        let url = annotation("api-server").unwrap_or_default();
        let exempt = self.guard(url).await?;
        self.may_have_credentials(provider, url, exempt)?;
        let mut metadata = AuthMetadata::default();
        for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
            metadata.insert(key.as_str(), value.as_str());
        }
        let is_set = |key: &str| annotation(key) == Some("true");
        let mut builder = ClusterDetails::builder(name, url)
            .auth_provider(provider)
            .auth_metadata(metadata)
            .ca_data(annotation("api-server-certificate-authority").unwrap_or_default())
            .skip_metrics_lookup(is_set("skip-metrics-lookup"))
            .skip_tls_verify(is_set("skip-tls-verify") && self.allow_skip_tls_verify)
            .only_public_addresses(!exempt);
        if let Some(title) = entity.metadata.title {
            builder = builder.title(title);
        }
        let parameters = annotation("dashboard-parameters").and_then(|text| serde_json::from_str(text).ok());
        let text = |key| annotation(key).map(str::to_owned);
        builder
            .dashboard(
                text("dashboard-url"),
                text("dashboard-app"),
                parameters.filter(Value::is_object),
            )
            .build()
            .map_err(|invalid| invalid.reasons())
    }

    /// A strategy whose credential is worth something elsewhere sends it to a vendor's own control planes, and to hosts that
    /// the operator named: whoever writes to the catalog must not be able to collect it.
    fn may_have_credentials(&self, provider: &str, url: &str, exempt: bool) -> Result<(), String> {
        if exempt || OFFERED.contains(&provider) {
            return Ok(());
        }
        let host = Url::parse(url)
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned));
        let host = host.unwrap_or_default();
        let of_vendor = VENDOR_HOSTS
            .iter()
            .any(|(strategy, domain)| *strategy == provider && host.ends_with(domain));
        match of_vendor || matches_any(&self.credential_hosts, &host) {
            true => Ok(()),
            false => Err(format!(
                "auth provider {provider} would send a credential to {host}: list the host under 'credentialHosts' if it \
                 is a cluster of yours"
            )),
        }
    }

    /// Whether the URL's host is exempt; if not, whether the URL may be used at all.
    async fn guard(&self, url: &str) -> Result<bool, String> {
        let refuse = |what: &str| Err(format!("Kubernetes cluster API server URL {what}"));
        let Ok(url) = Url::parse(url) else {
            return refuse("is not a valid URL");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("must not contain credentials");
        }
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("must use the HTTP or HTTPS scheme");
        }
        let Some(host) = url.host() else {
            return refuse("is not a valid URL");
        };
        if matches_any(&self.allowed_hosts, &host.to_string()) {
            return Ok(true);
        }
        if url.scheme() != "https" {
            return refuse("must use the HTTPS scheme");
        }
        let literal = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        match (literal, host) {
            (Some(address), _) if !is_public_address(address) => {
                refuse("must not use a non-public IP address")
            }
            // A name that does not resolve now may do so later: the connection looks again.
            (None, Host::Domain(name)) if matches!(resolves_to_public_addresses(name).await, Ok(false)) => {
                refuse(&format!("hostname \"{name}\" resolves to a non-public address"))
            }
            _ => Ok(false),
        }
    }
}

fn matches_any(patterns: &[String], host: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_prefix("*.") {
        Some(domain) => host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        None => pattern == host,
    })
}

#[async_trait]
impl ClusterLocator for CatalogLocator {
    fn name(&self) -> &str {
        Self::NAME
    }

    async fn locate(&self) -> Result<Located> {
        let (mut clusters, mut warnings) = (Vec::new(), Vec::new());
        for entity in self.catalog.entities(FILTER).await? {
            let name = entity["metadata"]["name"]
                .as_str()
                .unwrap_or("unnamed")
                .to_owned();
            let read = match serde_json::from_value(entity) {
                Ok(entity) => self.cluster(entity).await,
                Err(_) => Err("it is no entity with a name and annotations of text".to_owned()),
            };
            match read {
                Ok(cluster) => clusters.push(cluster),
                Err(reason) => {
                    let name = name.escape_debug();
                    warnings.push(format!(
                        "Ignoring kubernetes-cluster Resource \"{name}\": {reason}"
                    ));
                }
            }
        }
        Ok(Located::new(clusters, Vec::new()).with_warnings(warnings))
    }
}

#[derive(Deserialize)]
struct Entity {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    title: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Strategies whose token the caller offers for this cluster, or that send none.
const OFFERED: [&str; 4] = ["aks", "google", "localKubectlProxy", "oidc"];

/// Domains in which a vendor's control planes are, and nothing that a customer could run by himself.
const VENDOR_HOSTS: [(&str, &str); 8] = [
    ("aws", ".eks.amazonaws.com"),
    ("aws", ".eks.amazonaws.com.cn"),
    ("aws", ".eks.api.aws"),
    ("aws", ".api.amazonwebservices.com.cn"),
    ("azure", ".azmk8s.io"),
    ("azure", ".azmk8s.us"),
    ("azure", ".azmk8s.cn"),
    ("googleServiceAccount", ".gke.goog"),
];

const PREFIX: &str = "kubernetes.io/";

/// As Backstage asks: an entity without CA is none of ours.
const FILTER: &str = "kind=resource,spec.type=kubernetes-cluster,\
    metadata.annotations.kubernetes.io/api-server,\
    metadata.annotations.kubernetes.io/api-server-certificate-authority,\
    metadata.annotations.kubernetes.io/auth-provider";

#[cfg(test)]
mod tests;
