//! Collects what is known of a cluster and checks it as a whole.

use std::{fmt, path::PathBuf, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::ServerName;
use serde_json::Value;

use super::{
    AuthMetadata, CaBundle, ClusterDetails, ClusterName, Content, CustomResource, Dashboard, EgressProxy,
    ServerUrl, StrategyOptions, TlsTrust,
    trust::{parse_ca, read_ca_file},
};
use crate::{Error, ErrorKind, Problem, Secret};

/// Collects what is known of a cluster; [`ClusterBuilder::build`] checks it all at once.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClusterBuilder {
    name: String,
    server: String,
    tls_server_name: Option<String>,
    /// May hold a password.
    proxy_url: Option<Secret>,
    auth_provider: String,
    title: Option<String>,
    ca: CaInput,
    skip_tls_verify: bool,
    auth_metadata: AuthMetadata,
    service_account_token: Option<Secret>,
    options: StrategyOptions,
    skip_metrics_lookup: Option<bool>,
    dashboard: Dashboard,
    custom_resources: Option<Vec<CustomResource>>,
    insecure_user_credentials: bool,
    only_public_addresses: bool,
}

#[derive(Clone, Debug)]
enum CaInput {
    System,
    Base64(String),
    Pem(Vec<u8>),
    File(PathBuf),
}

impl ClusterBuilder {
    pub(super) fn new(name: String, server: String) -> Self {
        Self {
            name,
            server,
            tls_server_name: None,
            proxy_url: None,
            auth_provider: String::new(),
            title: None,
            ca: CaInput::System,
            skip_tls_verify: false,
            auth_metadata: AuthMetadata::default(),
            service_account_token: None,
            options: StrategyOptions::default(),
            skip_metrics_lookup: None,
            dashboard: Dashboard::default(),
            custom_resources: None,
            insecure_user_credentials: false,
            only_public_addresses: false,
        }
    }

    /// The strategy's wire name, `serviceAccount`.
    pub fn auth_provider(mut self, name: impl Into<String>) -> Self {
        self.auth_provider = name.into();
        self
    }

    /// The name that the API server's certificate must be for, where that is not the URL's host; it is told to the API
    /// server as well (SNI).
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls_server_name = Some(name.into());
        self
    }

    /// The URL of the proxy through which the API server is reached, see [`EgressProxy::parse`]. It may hold user and
    /// password.
    pub fn proxy_url(mut self, url: Secret) -> Self {
        self.proxy_url = Some(url);
        self
    }

    /// The name shown to people.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Certificate authorities as Backstage's `caData`: base64 of PEM.
    pub fn ca_data(mut self, base64_of_pem: impl Into<String>) -> Self {
        self.ca = CaInput::Base64(base64_of_pem.into());
        self
    }

    /// Certificate authorities as PEM text.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = CaInput::Pem(pem.into());
        self
    }

    /// A PEM file of certificate authorities, read again when it changes.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = CaInput::File(path.into());
        self
    }

    /// Turns the verification of the API server's certificate off.
    pub fn skip_tls_verify(mut self, skip: bool) -> Self {
        self.skip_tls_verify = skip;
        self
    }

    /// The strategy's settings.
    pub fn auth_metadata(mut self, metadata: AuthMetadata) -> Self {
        self.auth_metadata = metadata;
        self
    }

    /// The token of strategy `serviceAccount`.
    pub fn service_account_token(mut self, token: Secret) -> Self {
        self.service_account_token = Some(token);
        self
    }

    /// Settings of strategies that Backstage has no keys for.
    pub fn options(mut self, options: StrategyOptions) -> Self {
        self.options = options;
        self
    }

    /// Whether a front end should not ask for metrics.
    pub fn skip_metrics_lookup(mut self, skip: bool) -> Self {
        self.skip_metrics_lookup = Some(skip);
        self
    }

    /// URL, kind and parameters of the cluster's dashboard.
    pub fn dashboard(mut self, url: Option<String>, app: Option<String>, parameters: Option<Value>) -> Self {
        self.dashboard = Dashboard { url, app, parameters };
        self
    }

    /// Custom resources of this cluster, in place of the global list.
    pub fn custom_resources(mut self, resources: Vec<CustomResource>) -> Self {
        self.custom_resources = Some(resources);
        self
    }

    /// Lets stored user credentials travel without a verified TLS connection.
    pub fn dangerously_allow_insecure_user_credentials(mut self, allow: bool) -> Self {
        self.insecure_user_credentials = allow;
        self
    }

    /// Opens connections to public addresses alone: for clusters that somebody else than the operator lists. Each address
    /// is looked at when it is about to be connected to, so a name that changes its mind leads nowhere.
    pub fn only_public_addresses(mut self, only: bool) -> Self {
        self.only_public_addresses = only;
        self
    }

    /// The cluster, if everything about it can work.
    ///
    /// # Errors
    /// All problems at once, each with the key it belongs to: `name`, `url`, `tlsServerName`, `proxyUrl`, `authProvider`,
    /// `caData`, `caFile`, `dashboardUrl`.
    pub fn build(self) -> Result<ClusterDetails, InvalidCluster> {
        let mut problems = Vec::new();
        let mut keep = |key: &str, message: String| problems.push(Problem::new(key, message));

        let name = ClusterName::new(&self.name)
            .map_err(|error| keep("name", error.to_string()))
            .ok();
        let server = ServerUrl::parse(&self.server)
            .map_err(|message| keep("url", message))
            .ok();
        if let Some(name) = &self.tls_server_name
            && ServerName::try_from(name.as_str()).is_err()
        {
            keep(
                "tlsServerName",
                format!("no certificate can be for the name {name:?}"),
            );
        }
        let egress_proxy = self
            .egress_proxy(server.as_ref())
            .map_err(|message| keep("proxyUrl", message));
        if self.auth_provider.is_empty() {
            keep("authProvider", "a cluster needs an auth provider".to_owned());
        }
        if self.dashboard.url.as_deref().is_some_and(runs_script) {
            keep(
                "dashboardUrl",
                "the dashboard's URL must begin with https:// or http://: front ends make a link of it"
                    .to_owned(),
            );
        }
        let ca = self.ca.check().map_err(|(key, message)| keep(key, message)).ok();

        match (name, server, egress_proxy, ca) {
            (Some(name), Some(server), Ok(egress_proxy), Some(ca)) if problems.is_empty() => {
                let content = Content {
                    name,
                    title: self.title,
                    server,
                    tls_server_name: self.tls_server_name.map(Arc::from),
                    egress_proxy,
                    trust: match self.skip_tls_verify {
                        true => TlsTrust::dangerously_skip_verify(ca),
                        false => TlsTrust::new(ca),
                    },
                    auth_provider: self.auth_provider,
                    auth_metadata: self.auth_metadata,
                    service_account_token: self.service_account_token,
                    options: self.options,
                    skip_metrics_lookup: self.skip_metrics_lookup,
                    dashboard: self.dashboard,
                    custom_resources: self.custom_resources,
                    insecure_user_credentials: self.insecure_user_credentials,
                    only_public_addresses: self.only_public_addresses,
                };
                Ok(ClusterDetails::from_content(content, self.server))
            }
            _ => Err(InvalidCluster {
                name: self.name,
                problems,
            }),
        }
    }
}

impl ClusterBuilder {
    fn egress_proxy(&self, server: Option<&ServerUrl>) -> Result<Option<EgressProxy>, String> {
        let Some(url) = &self.proxy_url else {
            return Ok(None);
        };
        let proxy = EgressProxy::parse(url.expose_str().unwrap_or_default())?;
        if server.is_some_and(|server| !server.is_https()) {
            return Err("through a proxy the API server must be reached over https".to_owned());
        }
        if self.only_public_addresses {
            return Err("a proxy would choose the address, which must be public here".to_owned());
        }
        Ok(Some(proxy))
    }
}

/// Whether a link to this would do anything but lead to a page.
fn runs_script(link: &str) -> bool {
    url::Url::parse(link).is_ok_and(|url| !matches!(url.scheme(), "https" | "http"))
}

impl CaInput {
    fn check(self) -> Result<CaBundle, (&'static str, String)> {
        match self {
            Self::System => Ok(CaBundle::System),
            Self::Base64(text) => {
                let text: String = text.split_ascii_whitespace().collect();
                let pem = STANDARD
                    .decode(text)
                    .map_err(|error| ("caData", format!("caData is not base64 of PEM: {error}")))?;
                parse_ca(&pem).map_err(|message| ("caData", message))?;
                Ok(CaBundle::Pem(pem.into()))
            }
            Self::Pem(pem) => {
                parse_ca(&pem).map_err(|message| ("caData", message))?;
                Ok(CaBundle::Pem(pem.into()))
            }
            Self::File(path) => {
                let pem = read_ca_file(&path).map_err(|error| ("caFile", error.to_string()))?;
                parse_ca(&pem).map_err(|message| ("caFile", format!("{}: {message}", path.display())))?;
                Ok(CaBundle::File(path.into()))
            }
        }
    }
}

/// Why a description is not a cluster: all problems at once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidCluster {
    /// The name as given.
    pub name: String,
    /// Each problem, with the key it belongs to.
    pub problems: Vec<Problem>,
}

impl InvalidCluster {
    /// All problems in one line.
    pub fn reasons(&self) -> String {
        let problems: Vec<_> = self.problems.iter().map(Problem::to_string).collect();
        problems.join("; ")
    }
}

impl fmt::Display for InvalidCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {:?} cannot be used: {}", self.name, self.reasons())
    }
}

impl std::error::Error for InvalidCluster {}

impl From<InvalidCluster> for Error {
    fn from(invalid: InvalidCluster) -> Self {
        Self::new(ErrorKind::ConfigInvalid, invalid.to_string()).with_cluster(invalid.name)
    }
}
