//! One cluster: name, server, TLS trust, strategy. Parsed and validated on construction.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;

use crate::{Error, ErrorKind, Problem, Secret};

mod server_url;

pub use server_url::ServerUrl;

/// A cluster that is ready to be reached. Whoever holds one holds a valid one; clones share it.
#[derive(Clone)]
pub struct ClusterDetails(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    stamp: ClusterStamp,
    content: Content,
    upstream_key: UpstreamKey,
}

/// Everything that [`ClusterDetails::same_content`] compares.
#[derive(Clone, PartialEq)]
struct Content {
    name: ClusterName,
    title: Option<String>,
    server: ServerUrl,
    trust: TlsTrust,
    auth_provider: String,
    auth_metadata: AuthMetadata,
    service_account_token: Option<Secret>,
    skip_metrics_lookup: Option<bool>,
    dashboard: Dashboard,
    custom_resources: Option<Vec<CustomResource>>,
    insecure_user_credentials: bool,
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

/// Whose certificates the API server may show.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TlsTrust {
    ca: CaBundle,
    skip_verify: bool,
}

impl TlsTrust {
    /// Certificates of this bundle only.
    pub fn new(ca: CaBundle) -> Self {
        Self {
            ca,
            skip_verify: false,
        }
    }

    /// No verification at all: anybody on the way can read and change everything, tokens included.
    pub fn dangerously_skip_verify(ca: CaBundle) -> Self {
        Self {
            ca,
            skip_verify: true,
        }
    }

    /// The bundle of certificate authorities.
    pub fn ca(&self) -> &CaBundle {
        &self.ca
    }

    /// Whether verification is off.
    pub fn skip_verify(&self) -> bool {
        self.skip_verify
    }
}

impl fmt::Debug for TlsTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTrust")
            .field("ca", &self.ca)
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

/// Where the certificate authorities come from.
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CaBundle {
    /// The machine's own roots.
    System,
    /// PEM text given in the configuration.
    Pem(Arc<[u8]>),
    /// A PEM file that is read again when it changes.
    File(Arc<Path>),
}

impl CaBundle {
    /// The PEM text of the bundle, read from the file if it is one; `None` for the machine's own roots.
    ///
    /// # Errors
    /// `ConfigInvalid` naming the file if it cannot be read, is no regular file, or is larger than 1 MiB.
    pub fn read(&self) -> Result<Option<Arc<[u8]>>, Error> {
        match self {
            Self::System => Ok(None),
            Self::Pem(pem) => Ok(Some(pem.clone())),
            Self::File(path) => read_ca_file(path).map(Some),
        }
    }
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("System"),
            Self::Pem(pem) => write!(f, "Pem({} bytes)", pem.len()),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// The certificate authorities in PEM text: at least one, each an X.509 certificate that can be a trust anchor.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn parse_ca(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("the CA is not valid PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("the CA holds no PEM block of type CERTIFICATE".to_owned());
    }
    for certificate in &certificates {
        webpki::anchor_from_trusted_cert(certificate)
            .map_err(|error| format!("the CA holds a block that is no X.509 certificate: {error}"))?;
    }
    Ok(certificates)
}

#[allow(clippy::disallowed_methods, reason = "the CA reader")]
fn read_ca_file(path: &Path) -> Result<Arc<[u8]>, Error> {
    let refuse = |what: &str| {
        Error::new(
            ErrorKind::ConfigInvalid,
            format!("cannot read the CA file {}: {what}", path.display()),
        )
    };
    let metadata = std::fs::metadata(path).map_err(|error| refuse(&error.to_string()).with_source(error))?;
    if !metadata.is_file() {
        return Err(refuse("it is no regular file"));
    }
    if metadata.len() > MAX_CA_BYTES {
        return Err(refuse("it is larger than 1 MiB"));
    }
    let pem = std::fs::read(path).map_err(|error| refuse(&error.to_string()).with_source(error))?;
    Ok(pem.into())
}

/// What identifies a connection: two clusters with equal keys share one pool; nothing else may.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct UpstreamKey {
    /// Scheme, host, port; the path does not matter to a connection.
    pub origin: Arc<str>,
    /// Whose certificates are accepted.
    pub trust: TlsTrust,
}

/// Backstage's `authMetadata`: free keys, values as they stand in the file. Values of keys that sound secret are redacted
/// in `Debug`.
#[derive(Clone, Default, PartialEq)]
pub struct AuthMetadata(BTreeMap<String, Value>);

impl AuthMetadata {
    /// The value under this key if it is text.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    /// All keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Sets a value.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(key.into(), value.into());
    }

    /// Whether a key sounds as if its value were secret: it ends in token, secret, password or key.
    pub fn is_sensitive(key: &str) -> bool {
        let key = key.to_ascii_lowercase();
        ["token", "secret", "password", "key"]
            .iter()
            .any(|end| key.ends_with(end))
    }
}

impl fmt::Debug for AuthMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|(key, value)| match Self::is_sensitive(key) {
            true => (key, &REDACTED as &dyn fmt::Debug),
            false => (key, value as &dyn fmt::Debug),
        });
        f.debug_map().entries(shown).finish()
    }
}

const REDACTED: &str = "[redacted]";

/// Links to a cluster's dashboard, as Backstage's front end reads them.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Dashboard {
    /// Base URL, shown to people, never called.
    pub url: Option<String>,
    /// Which dashboard it is: `standard`, `rancher`, `openshift`, `gke`, `aks`, `eks`, `headlamp`.
    pub app: Option<String>,
    /// Parameters of that dashboard, any JSON.
    pub parameters: Option<Value>,
}

/// A custom resource that Backstage's plugin looks up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomResource {
    /// API group, `argoproj.io`.
    pub group: String,
    /// API version, `v1alpha1`.
    pub api_version: String,
    /// Plural name, `rollouts`.
    pub plural: String,
}

impl ClusterDetails {
    /// Starts a description of a cluster: its name and the base URL of its API server (`scheme://host[:port][/path]`).
    pub fn builder(name: impl Into<String>, server: impl Into<String>) -> ClusterBuilder {
        ClusterBuilder {
            name: name.into(),
            server: server.into(),
            auth_provider: String::new(),
            title: None,
            ca: CaInput::System,
            skip_tls_verify: false,
            auth_metadata: AuthMetadata::default(),
            service_account_token: None,
            skip_metrics_lookup: None,
            dashboard: Dashboard::default(),
            custom_resources: None,
            insecure_user_credentials: false,
        }
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

    /// The API server's base URL.
    pub fn server(&self) -> &ServerUrl {
        &self.0.content.server
    }

    /// Whose certificates the API server may show.
    pub fn trust(&self) -> &TlsTrust {
        &self.0.content.trust
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

    /// Whether what travels to this cluster is protected: https with verification, or a loopback address.
    pub fn is_transport_protected(&self) -> bool {
        let content = &self.0.content;
        content.server.is_loopback() || (content.server.is_https() && !content.trust.skip_verify)
    }

    /// What identifies connections to this cluster.
    pub fn upstream_key(&self) -> &UpstreamKey {
        &self.0.upstream_key
    }

    /// Whether both describe the same cluster in the same way, whatever their stamps.
    pub fn same_content(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.content == other.0.content
    }

    /// The same cluster reached at another server with another trust, under a new stamp.
    ///
    /// This is how a cluster without address of its own, such as the one that a pod runs in, gets its real one.
    pub fn with_server(&self, server: ServerUrl, trust: TlsTrust) -> Self {
        Self::from_content(Content {
            server,
            trust,
            ..self.0.content.clone()
        })
    }

    fn from_content(content: Content) -> Self {
        let upstream_key = UpstreamKey {
            origin: content.server.origin().into(),
            trust: content.trust.clone(),
        };
        Self(Arc::new(Inner {
            stamp: ClusterStamp::next(),
            content,
            upstream_key,
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

/// Collects what is known of a cluster; [`ClusterBuilder::build`] checks it all at once.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClusterBuilder {
    name: String,
    server: String,
    auth_provider: String,
    title: Option<String>,
    ca: CaInput,
    skip_tls_verify: bool,
    auth_metadata: AuthMetadata,
    service_account_token: Option<Secret>,
    skip_metrics_lookup: Option<bool>,
    dashboard: Dashboard,
    custom_resources: Option<Vec<CustomResource>>,
    insecure_user_credentials: bool,
}

#[derive(Clone, Debug)]
enum CaInput {
    System,
    Base64(String),
    Pem(Vec<u8>),
    File(PathBuf),
}

impl ClusterBuilder {
    /// The strategy's wire name, `serviceAccount`.
    pub fn auth_provider(mut self, name: impl Into<String>) -> Self {
        self.auth_provider = name.into();
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

    /// The cluster, if everything about it can work.
    ///
    /// # Errors
    /// All problems at once, each with the key it belongs to: `name`, `url`, `authProvider`, `caData`, `caFile`.
    pub fn build(self) -> Result<ClusterDetails, InvalidCluster> {
        let mut problems = Vec::new();
        let mut keep = |key: &str, message: String| problems.push(Problem::new(key, message));

        let name = ClusterName::new(&self.name)
            .map_err(|error| keep("name", error.to_string()))
            .ok();
        let server = ServerUrl::parse(&self.server)
            .map_err(|message| keep("url", message))
            .ok();
        if self.auth_provider.is_empty() {
            keep("authProvider", "a cluster needs an auth provider".to_owned());
        }
        let ca = self.ca.check().map_err(|(key, message)| keep(key, message)).ok();

        match (name, server, ca) {
            (Some(name), Some(server), Some(ca)) if problems.is_empty() => {
                Ok(ClusterDetails::from_content(Content {
                    name,
                    title: self.title,
                    server,
                    trust: TlsTrust {
                        ca,
                        skip_verify: self.skip_tls_verify,
                    },
                    auth_provider: self.auth_provider,
                    auth_metadata: self.auth_metadata,
                    service_account_token: self.service_account_token,
                    skip_metrics_lookup: self.skip_metrics_lookup,
                    dashboard: self.dashboard,
                    custom_resources: self.custom_resources,
                    insecure_user_credentials: self.insecure_user_credentials,
                }))
            }
            _ => Err(InvalidCluster {
                name: self.name,
                problems,
            }),
        }
    }
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

impl fmt::Display for InvalidCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {:?} cannot be used", self.name)?;
        for (index, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if index == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidCluster {}

impl From<InvalidCluster> for Error {
    fn from(invalid: InvalidCluster) -> Self {
        Self::new(ErrorKind::ConfigInvalid, invalid.to_string()).with_cluster(invalid.name)
    }
}

/// A bundle of every public root is 200 KiB; more than 1 MiB is no CA file.
const MAX_CA_BYTES: u64 = 1024 * 1024;

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
