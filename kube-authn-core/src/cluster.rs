//! One cluster: name, server, TLS trust, strategy. Parsed and validated on construction.

#[cfg(feature = "upstream")]
use std::time::Duration;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{Error, ErrorKind, Secret};

use retirement::Retirement;

mod address;
mod builder;
mod egress_proxy;
mod metadata;
mod options;
mod retirement;
mod server_url;
mod trust;

pub use address::is_public_address;
pub use builder::{ClusterBuilder, InvalidCluster};
pub use egress_proxy::EgressProxy;
#[cfg(feature = "upstream")]
pub(crate) use egress_proxy::EgressProxyKind;
pub use metadata::{AuthMetadata, CustomResource, Dashboard};
pub use options::StrategyOptions;
pub use server_url::ServerUrl;
pub use trust::{CaBundle, TlsTrust, parse_ca};

/// A cluster that is ready to be reached. Whoever holds one holds a valid one; clones share it.
#[derive(Clone)]
pub struct ClusterDetails(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    stamp: ClusterStamp,
    content: Content,
    /// Apart from what is compared: two spellings of a URL are one server.
    url: String,
    upstream_key: UpstreamKey,
    retirement: Arc<Retirement>,
}

/// Everything that [`ClusterDetails::same_content`] compares.
#[derive(Clone, PartialEq)]
struct Content {
    name: ClusterName,
    title: Option<String>,
    server: ServerUrl,
    tls_server_name: Option<Arc<str>>,
    egress_proxy: Option<EgressProxy>,
    trust: TlsTrust,
    auth_provider: String,
    auth_metadata: AuthMetadata,
    service_account_token: Option<Secret>,
    options: StrategyOptions,
    skip_metrics_lookup: Option<bool>,
    dashboard: Dashboard,
    custom_resources: Option<Vec<CustomResource>>,
    insecure_user_credentials: bool,
    only_public_addresses: bool,
}

/// A number that stands for one content of one cluster in this process; a reload with equal content keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterStamp(u64);

impl ClusterStamp {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number itself, unique in this process.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The name of a cluster, 1 to 253 printable ASCII characters, compared exactly.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// Checks and takes the name. It travels in headers and log lines, hence no control characters and ASCII only.
    ///
    /// # Errors
    /// `ConfigInvalid` if it is empty, longer than 253 characters, or holds other characters.
    pub fn new(name: &str) -> Result<Self, Error> {
        if name.is_empty()
            || name.len() > 253
            || !name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        {
            return Err(Error::new(
                ErrorKind::ConfigInvalid,
                format!("not a cluster name: expected 1 to 253 printable ASCII characters, got {name:?}"),
            ));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
/// What identifies a connection: two clusters with equal keys share one pool; nothing else may.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct UpstreamKey {
    /// Scheme, host, port; the path does not matter to a connection.
    pub origin: Arc<str>,
    /// Whose name its certificate must be for, where that is not the host.
    pub tls_server_name: Option<Arc<str>>,
    /// Through whom connections are opened.
    pub egress_proxy: Option<EgressProxy>,
    /// Whose certificates are accepted.
    pub trust: TlsTrust,
    /// Whether connections are opened to public addresses alone.
    pub only_public_addresses: bool,
}
impl ClusterDetails {
    /// Starts a description of a cluster: its name and the base URL of its API server (`scheme://host[:port][/path]`).
    pub fn builder(name: impl Into<String>, server: impl Into<String>) -> ClusterBuilder {
        ClusterBuilder::new(name.into(), server.into())
    }

    /// Changes with every change of content, and only then.
    pub fn stamp(&self) -> ClusterStamp {
        self.0.stamp
    }

    /// The name that callers use.
    pub fn name(&self) -> &ClusterName {
        &self.0.content.name
    }

    /// The name shown to people, if it differs.
    pub fn title(&self) -> Option<&str> {
        self.0.content.title.as_deref()
    }

    /// The API server's URL letter by letter as it was configured, for showing it.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The API server's base URL.
    pub fn server(&self) -> &ServerUrl {
        &self.0.content.server
    }

    /// Whose certificates the API server may show.
    pub fn trust(&self) -> &TlsTrust {
        &self.0.content.trust
    }

    /// The name that the API server's certificate must be for, and that it is told in the handshake, where that is not the
    /// URL's host.
    pub fn tls_server_name(&self) -> Option<&str> {
        self.0.content.tls_server_name.as_deref()
    }

    /// The proxy through which the API server is reached.
    pub fn egress_proxy(&self) -> Option<&EgressProxy> {
        self.0.content.egress_proxy.as_ref()
    }

    /// The strategy's wire name, `clusterAuth`.
    pub fn auth_provider(&self) -> &str {
        &self.0.content.auth_provider
    }

    /// The strategy's settings.
    pub fn auth_metadata(&self) -> &AuthMetadata {
        &self.0.content.auth_metadata
    }

    /// The token of strategy `serviceAccount` from the configuration.
    pub fn service_account_token(&self) -> Option<&Secret> {
        self.0.content.service_account_token.as_ref()
    }

    /// Settings of strategies that Backstage has no keys for.
    pub fn options(&self) -> &StrategyOptions {
        &self.0.content.options
    }

    /// Whether a front end should not ask this cluster for metrics; `None` if the configuration says nothing.
    pub fn skip_metrics_lookup(&self) -> Option<bool> {
        self.0.content.skip_metrics_lookup
    }

    /// Links to the cluster's dashboard.
    pub fn dashboard(&self) -> &Dashboard {
        &self.0.content.dashboard
    }

    /// Custom resources of this cluster; `None` leaves the global list, an empty list means none.
    pub fn custom_resources(&self) -> Option<&[CustomResource]> {
        self.0.content.custom_resources.as_deref()
    }

    /// Whether stored user credentials may travel without a verified TLS connection (`dangerouslyAllowInsecureUserCredentials`).
    pub fn allows_insecure_user_credentials(&self) -> bool {
        self.0.content.insecure_user_credentials
    }

    /// Whether connections are opened to public addresses alone, whatever the server's name resolves to.
    pub fn only_public_addresses(&self) -> bool {
        self.0.content.only_public_addresses
    }

    /// Whether what travels to this cluster is protected: https with verification, or a loopback address of this machine.
    pub fn is_transport_protected(&self) -> bool {
        let content = &self.0.content;
        let on_this_machine = content.server.is_loopback() && content.egress_proxy.is_none();
        on_this_machine || (content.server.is_https() && !content.trust.skip_verify())
    }

    /// What identifies connections to this cluster.
    pub fn upstream_key(&self) -> &UpstreamKey {
        &self.0.upstream_key
    }

    /// Says that this description is not in force any more: what was opened with it ends after a grace.
    pub(crate) fn retire(&self) {
        self.0.retirement.begin();
    }

    /// Whether it is not in force any more for so long.
    #[cfg(feature = "upstream")]
    pub(crate) fn is_retired_for(&self, grace: Duration) -> bool {
        self.0.retirement.lasts_for(grace)
    }

    /// Returns when it is not in force any more for so long.
    #[cfg(feature = "upstream")]
    pub(crate) async fn retired_for(&self, grace: Duration) {
        self.0.retirement.lasting(grace).await;
    }

    /// Whether both describe the same cluster in the same way, whatever their stamps.
    pub fn same_content(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.content == other.0.content
    }

    /// The same cluster reached at another server with another trust, under a new stamp, and without the former server's
    /// TLS name and egress proxy.
    ///
    /// This is how a cluster without address of its own, such as the one that a pod runs in, gets its real one.
    pub fn with_server(&self, server: ServerUrl, trust: TlsTrust) -> Self {
        let url = server.to_string();
        let content = Content {
            server,
            trust,
            tls_server_name: None,
            egress_proxy: None,
            ..self.0.content.clone()
        };
        Self::from_content(content, url)
    }

    fn from_content(content: Content, url: String) -> Self {
        let upstream_key = UpstreamKey {
            origin: content.server.origin().into(),
            tls_server_name: content.tls_server_name.clone(),
            egress_proxy: content.egress_proxy.clone(),
            trust: content.trust.clone(),
            only_public_addresses: content.only_public_addresses,
        };
        Self(Arc::new(Inner {
            stamp: ClusterStamp::next(),
            content,
            url,
            upstream_key,
            retirement: Arc::default(),
        }))
    }
}

impl fmt::Debug for ClusterDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = &self.0.content;
        f.debug_struct("ClusterDetails")
            .field("name", &content.name)
            .field("server", &content.server)
            .field("trust", &content.trust)
            .field("auth_provider", &content.auth_provider)
            .field("auth_metadata", &content.auth_metadata)
            .finish_non_exhaustive()
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    fn details(server: &str) -> ClusterDetails {
        ClusterDetails::builder("prod", server)
            .auth_provider("aws")
            .build()
            .expect("a cluster")
    }

    #[test]
    fn all_problems_come_at_once() {
        let invalid = ClusterDetails::builder("a\nb", "ftp://x")
            .ca_data("%%")
            .build()
            .expect_err("invalid");

        let keys: Vec<_> = invalid
            .problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(keys, ["name", "url", "authProvider", "caData"]);
    }

    #[test]
    fn ca_that_is_pem_around_rubbish_is_refused() {
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

        let invalid = ClusterDetails::builder("a", "https://a")
            .auth_provider("x")
            .ca_pem(pem)
            .build();

        assert!(
            invalid
                .expect_err("refused")
                .to_string()
                .contains("no X.509 certificate")
        );
    }

    #[test]
    fn dashboard_that_is_a_script_is_refused() {
        let build = |url: &str| {
            let builder = ClusterDetails::builder("a", "https://a").auth_provider("x");
            builder.dashboard(Some(url.to_owned()), None, None).build()
        };

        for link in ["javascript:alert(1)", "JavaScript:alert(1)", "data:text/html,x"] {
            assert_eq!(build(link).expect_err(link).problems[0].key, "dashboardUrl");
        }
        assert!(build("https://d/x").is_ok() && build("/relative").is_ok());
    }

    #[test]
    fn equal_content_is_seen_whatever_the_stamp() {
        let (one, two) = (details("https://a:6443"), details("https://a:6443/"));

        assert!(one.same_content(&two));
        assert_ne!(one.stamp(), two.stamp());
        assert_eq!(one.upstream_key(), two.upstream_key());
        assert_ne!(one.upstream_key(), details("https://b:6443").upstream_key());
    }

    #[test]
    fn debug_of_metadata_shows_no_secret() {
        let mut metadata = AuthMetadata::default();
        metadata.insert("clientSecret", "canary");
        metadata.insert("kubernetes.io/aws-assume-role", "arn");

        let shown = format!("{metadata:?}");

        assert!(shown.contains("arn") && !shown.contains("canary"), "{shown}");
    }
}
