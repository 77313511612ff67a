//! What an administrator says about the application's identity.

use std::path::PathBuf;

use kube_authn_core::{CaBundle, Secret};
use url::Url;

/// Settings for all clusters of the strategy. By default everything comes from the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AzureConfig {
    /// Which cloud; decides the authority host.
    pub cloud: AzureCloud,
    /// The authority host, `https://login.example.com/`; left out: `AZURE_AUTHORITY_HOST`, else that of the cloud.
    pub authority_host: Option<Url>,
    /// Whom to trust when calling the authority host; left out: the system's roots.
    pub ca: Option<CaBundle>,
    /// Tenant: its id, or one of its domains. Left out: `AZURE_TENANT_ID`.
    pub tenant_id: Option<String>,
    /// Client id of the application or of a user-assigned identity. Left out: `AZURE_CLIENT_ID`.
    pub client_id: Option<String>,
    /// The application's client secret.
    pub client_secret: Option<Secret>,
    /// PEM file with the application's certificate, the leaf first; read again for each token.
    pub certificate_file: Option<PathBuf>,
    /// PEM file with the certificate's RSA key; left out: it stands in [`AzureConfig::certificate_file`].
    pub certificate_key_file: Option<PathBuf>,
    /// Whether to send the certificate along, for applications that trust its issuer and subject name (`x5c`).
    pub send_certificate_chain: bool,
    /// File with a token of another issuer that the application trusts, such as the pod's projected service account token;
    /// read again for each token.
    pub federated_token_file: Option<PathBuf>,
    /// Which of the machine's managed identities. Left out: that of [`AzureConfig::client_id`], else the system-assigned
    /// one.
    pub managed_identity: Option<ManagedIdentity>,
    /// Which sources to ask, in this order. Left out: [`AzureSource::Config`] if a secret, certificate or federated token
    /// file is configured, then [`AzureSource::ManagedIdentity`] if one is configured, and if neither is, all of the
    /// others in the order of [`AzureSource::ALL`].
    pub sources: Option<Vec<AzureSource>>,
    /// Client id of the server application whose tokens the clusters take. Left out: that of AKS.
    pub server_application: Option<String>,
    /// Absolute path of `az`. Left out: the first one in the folders of `PATH`.
    pub azure_cli_path: Option<PathBuf>,
    /// Absolute path of `azd`. Left out: the first one in the folders of `PATH`.
    pub azure_developer_cli_path: Option<PathBuf>,
}

/// A cloud of Microsoft's, each with an authority host of its own. The AKS server application is the same in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AzureCloud {
    /// `AzurePublicCloud`.
    #[default]
    Public,
    /// `AzureUSGovernment`.
    UsGovernment,
    /// `AzureChinaCloud`.
    China,
}

impl AzureCloud {
    /// By the name that Azure's tools use: `AzurePublicCloud`, `AzureUSGovernment` or `AzureChinaCloud`, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        let named = |(known, _): &&(&str, Self)| known.eq_ignore_ascii_case(name);
        CLOUDS.iter().find(named).map(|(_, cloud)| *cloud)
    }

    /// `https://host`, without a slash at the end.
    pub(super) fn authority_host(self) -> &'static str {
        match self {
            Self::Public => "https://login.microsoftonline.com",
            Self::UsGovernment => "https://login.microsoftonline.us",
            Self::China => "https://login.chinacloudapi.cn",
        }
    }
}

/// One way to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AzureSource {
    /// `config`: secret, certificate or federated token file of the configuration.
    Config,
    /// `environment`: `AZURE_CLIENT_SECRET`, or `AZURE_CLIENT_CERTIFICATE_PATH`.
    Environment,
    /// `workloadIdentity`: `AZURE_FEDERATED_TOKEN_FILE`, as the AKS webhook sets it.
    WorkloadIdentity,
    /// `managedIdentity`: App Service, or the instance metadata service of a virtual machine.
    ManagedIdentity,
    /// `azureCli`: whoever is logged in to `az`.
    AzureCli,
    /// `azureDeveloperCli`: whoever is logged in to `azd`.
    AzureDeveloperCli,
}

impl AzureSource {
    /// All, in the order of Azure's own default chain.
    pub const ALL: [Self; 6] = [
        Self::Config,
        Self::Environment,
        Self::WorkloadIdentity,
        Self::ManagedIdentity,
        Self::AzureCli,
        Self::AzureDeveloperCli,
    ];

    /// The source of this name, `None` if there is none.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }

    /// Its name in the configuration and in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Environment => "environment",
            Self::WorkloadIdentity => "workloadIdentity",
            Self::ManagedIdentity => "managedIdentity",
            Self::AzureCli => "azureCli",
            Self::AzureDeveloperCli => "azureDeveloperCli",
        }
    }
}

/// Which of a machine's managed identities.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ManagedIdentity {
    /// The one that the machine itself has.
    SystemAssigned,
    /// A user-assigned one by its client id.
    ClientId(String),
    /// A user-assigned one by its object (principal) id.
    ObjectId(String),
    /// A user-assigned one by its resource id, `/subscriptions/...`.
    ResourceId(String),
}

impl AzureConfig {
    /// The sources to ask, in their order.
    pub(super) fn order(&self) -> Vec<AzureSource> {
        if let Some(sources) = &self.sources {
            return sources.clone();
        }
        let configured = self.client_secret.is_some()
            || self.certificate_file.is_some()
            || self.federated_token_file.is_some();
        let explicit: Vec<_> = [
            (configured, AzureSource::Config),
            (self.managed_identity.is_some(), AzureSource::ManagedIdentity),
        ]
        .into_iter()
        .filter_map(|(is_set, source)| is_set.then_some(source))
        .collect();
        match explicit.is_empty() {
            true => AzureSource::ALL[1..].to_vec(),
            false => explicit,
        }
    }
}

const CLOUDS: [(&str, AzureCloud); 3] = [
    ("AzurePublicCloud", AzureCloud::Public),
    ("AzureUSGovernment", AzureCloud::UsGovernment),
    ("AzureChinaCloud", AzureCloud::China),
];
