//! `kubeAuthn.strategies.azure`.

use std::path::PathBuf;

use kube_authn_core::{CaBundle, Secret};
use url::Url;

use crate::{ConfigValue, findings::Findings};

/// The application's identity at Entra, for all clusters of strategy `azure`. Whatever is left out the environment decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AzureSettings {
    /// One of `AzurePublicCloud`, `AzureUSGovernment`, `AzureChinaCloud`.
    pub cloud: Option<String>,
    /// The authority host, an https URL.
    pub authority_host: Option<Url>,
    /// Trust for the authority host.
    pub ca: Option<CaBundle>,
    /// Tenant: its id, or one of its domains.
    pub tenant_id: Option<String>,
    /// Client id of the application or of a user-assigned identity.
    pub client_id: Option<String>,
    /// The application's client secret.
    pub client_secret: Option<Secret>,
    /// PEM file with the application's certificate.
    pub certificate_file: Option<PathBuf>,
    /// PEM file with the certificate's key, if it is not in the same file.
    pub certificate_key_file: Option<PathBuf>,
    /// Whether the certificate is sent along.
    pub send_certificate_chain: bool,
    /// File with a token of another issuer that the application trusts.
    pub federated_token_file: Option<PathBuf>,
    /// Which of the machine's managed identities.
    pub managed_identity: Option<AzureManagedIdentity>,
    /// Which sources to ask, in this order: `config`, `environment`, `workloadIdentity`, `managedIdentity`, `azureCli`,
    /// `azureDeveloperCli`.
    pub sources: Option<Vec<String>>,
    /// Client id of the server application whose tokens the clusters take.
    pub server_application: Option<String>,
    /// Absolute path of `az`.
    pub azure_cli_path: Option<PathBuf>,
    /// Absolute path of `azd`.
    pub azure_developer_cli_path: Option<PathBuf>,
}

/// Which of a machine's managed identities.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AzureManagedIdentity {
    /// The one that the machine itself has.
    SystemAssigned,
    /// A user-assigned one by its client id.
    ClientId(String),
    /// A user-assigned one by its object id.
    ObjectId(String),
    /// A user-assigned one by its resource id.
    ResourceId(String),
}

impl AzureSettings {
    pub(super) fn read(block: &ConfigValue<'_>, findings: &mut Findings) -> Self {
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self::default();
        }
        findings.extend(block.unknown_keys(KEYS));
        let mut text = |key: &str| {
            let text = findings.keep(block.child(key).optional_string()).flatten();
            text.map(str::to_owned)
        };
        let path = |text: Option<String>| text.map(PathBuf::from);
        let mut settings = Self {
            cloud: text("cloud"),
            tenant_id: text("tenantId"),
            client_id: text("clientId"),
            certificate_file: path(text("certificateFile")),
            certificate_key_file: path(text("certificateKeyFile")),
            federated_token_file: path(text("federatedTokenFile")),
            server_application: text("serverApplication"),
            azure_cli_path: path(text("azureCliPath")),
            azure_developer_cli_path: path(text("azureDeveloperCliPath")),
            ..Self::default()
        };
        settings.authority_host = authority_host(&block.child("authorityHost"), findings);
        settings.ca = findings.keep(block.child("caFile").ca_file()).flatten();
        settings.client_secret = findings
            .keep(block.child("clientSecret").optional_secret())
            .flatten();
        let send_chain = findings.keep(block.child("sendCertificateChain").optional_bool());
        settings.send_certificate_chain = send_chain.flatten().unwrap_or_default();
        settings.managed_identity = managed_identity(&block.child("managedIdentity"), findings);
        settings.sources = sources(&block.child("sources"), findings);
        settings.check(block, findings);
        settings
    }

    /// What is wrong between the keys.
    fn check(&self, block: &ConfigValue<'_>, findings: &mut Findings) {
        let known = |cloud: &str| CLOUDS.iter().any(|known| known.eq_ignore_ascii_case(cloud));
        if self.cloud.as_deref().is_some_and(|cloud| !known(cloud)) {
            let text = format!("expected one of {}", CLOUDS.join(", "));
            findings.push(block.child("cloud").problem(text));
        }
        for (key, path) in [
            ("azureCliPath", &self.azure_cli_path),
            ("azureDeveloperCliPath", &self.azure_developer_cli_path),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                findings.push(block.child(key).problem("expected an absolute path"));
            }
        }
        let proofs: Vec<_> = [
            ("clientSecret", self.client_secret.is_some()),
            ("certificateFile", self.certificate_file.is_some()),
            ("federatedTokenFile", self.federated_token_file.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, is_set)| is_set.then_some(key))
        .collect();
        if let [first, second, ..] = proofs.as_slice() {
            let text = format!("{first} is set too: an application proves who it is in one way");
            findings.push(block.child(second).problem(text));
        }
        if self.certificate_file.is_none() && self.certificate_key_file.is_some() {
            findings.push(
                block
                    .child("certificateKeyFile")
                    .problem("set certificateFile too"),
            );
        }
        let asks_config = self
            .sources
            .as_ref()
            .map(|sources| sources.iter().any(|source| source == CONFIG));
        let place = block.child("sources");
        match (asks_config, proofs.first()) {
            (Some(true), None) => {
                findings.push(place.problem(
                    "config is listed: set one of clientSecret, certificateFile, federatedTokenFile",
                ))
            }
            (Some(false), Some(proof)) => {
                findings.push(place.problem(format!("{proof} is set, and config is not listed")));
            }
            _ => {}
        }
    }
}

fn authority_host(place: &ConfigValue<'_>, findings: &mut Findings) -> Option<Url> {
    let text = findings.keep(place.optional_string()).flatten()?;
    let url = Url::parse(text)
        .ok()
        .filter(|url| url.scheme() == "https" && url.has_host());
    if url.is_none() {
        findings.push(place.problem("expected an https URL"));
    }
    url
}

fn managed_identity(block: &ConfigValue<'_>, findings: &mut Findings) -> Option<AzureManagedIdentity> {
    findings
        .keep(block.optional_object().map(|block| block.is_some()))?
        .then_some(())?;
    findings.extend(block.unknown_keys(&["clientId", "objectId", "resourceId"]));
    let mut text = |key: &str| {
        let text = findings.keep(block.child(key).optional_string()).flatten();
        text.map(str::to_owned)
    };
    let named = [
        text("clientId").map(AzureManagedIdentity::ClientId),
        text("objectId").map(AzureManagedIdentity::ObjectId),
        text("resourceId").map(AzureManagedIdentity::ResourceId),
    ];
    let mut named = named.into_iter().flatten();
    let identity = named.next();
    if named.next().is_some() {
        findings.push(
            block.problem("expected one of clientId, objectId, resourceId, or none for the machine's own"),
        );
    }
    Some(identity.unwrap_or(AzureManagedIdentity::SystemAssigned))
}

fn sources(place: &ConfigValue<'_>, findings: &mut Findings) -> Option<Vec<String>> {
    let names = findings.keep(place.optional_strings()).flatten()?;
    if names.is_empty() {
        findings.push(place.problem("expected at least one source"));
    }
    for (at, name) in names.iter().enumerate() {
        if !SOURCES.contains(name) {
            let text = format!("expected one of {}", SOURCES.join(", "));
            findings.push(place.element(at).problem(text));
        } else if names[..at].contains(name) {
            findings.push(place.element(at).problem("this source is listed already"));
        }
    }
    Some(names.into_iter().map(str::to_owned).collect())
}

const KEYS: &[&str] = &[
    "cloud",
    "authorityHost",
    "caFile",
    "tenantId",
    "clientId",
    "clientSecret",
    "certificateFile",
    "certificateKeyFile",
    "sendCertificateChain",
    "federatedTokenFile",
    "managedIdentity",
    "sources",
    "serverApplication",
    "azureCliPath",
    "azureDeveloperCliPath",
];

const CLOUDS: [&str; 3] = ["AzurePublicCloud", "AzureUSGovernment", "AzureChinaCloud"];

const CONFIG: &str = "config";
const SOURCES: [&str; 6] = [
    CONFIG,
    "environment",
    "workloadIdentity",
    "managedIdentity",
    "azureCli",
    "azureDeveloperCli",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppConfig, Environment, KubeAuthnConfig};

    fn read(block: &str) -> (AzureSettings, Vec<String>) {
        let yaml = format!("kubeAuthn: {{ strategies: {{ azure: {block} }} }}");
        let config = AppConfig::from_texts(
            &[("app-config.yaml", yaml.as_str())],
            &Environment::of([("", "")]),
        );
        let mut findings = Findings::default();
        let read = KubeAuthnConfig::read(&config.expect("a configuration"), &mut findings);
        let keys = findings.problems.into_iter().map(|problem| problem.key);
        (read.strategies.azure, keys.collect())
    }

    #[test]
    fn settings_are_read_and_all_may_be_left_out() {
        let (settings, problems) = read(
            "{ cloud: AzureChinaCloud, authorityHost: https://login.example.com/, tenantId: t, clientId: c, \
             clientSecret: canary, managedIdentity: { objectId: o }, sources: [config, managedIdentity], \
             serverApplication: s, azureCliPath: /usr/bin/az }",
        );

        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.client_secret, Some(Secret::new("canary")));
        assert_eq!(
            settings.managed_identity,
            Some(AzureManagedIdentity::ObjectId("o".to_owned()))
        );
        assert_eq!(
            settings.sources,
            Some(vec!["config".to_owned(), "managedIdentity".to_owned()])
        );
        assert!(!format!("{settings:?}").contains("canary"));
        assert_eq!(read("{}").0, AzureSettings::default());
        assert_eq!(
            read("{ managedIdentity: {} }").0.managed_identity,
            Some(AzureManagedIdentity::SystemAssigned)
        );
    }

    #[test]
    fn mistakes_are_told_at_once() {
        let (_, problems) = read(
            "{ cloud: Azure, tenant: t, authorityHost: 'http://login.example.com', clientSecret: a, certificateFile: b, \
             managedIdentity: { clientId: c, objectId: o }, sources: [cli, environment, environment], azureCliPath: az }",
        );

        let keys: Vec<_> = problems
            .iter()
            .map(|key| key.trim_start_matches("kubeAuthn.strategies.azure."))
            .collect();
        assert_eq!(
            keys,
            [
                "tenant",
                "authorityHost",
                "managedIdentity",
                "sources[0]",
                "sources[2]",
                "cloud",
                "azureCliPath",
                "certificateFile",
                "sources",
            ]
        );
    }

    #[test]
    fn source_config_needs_something_to_prove_with() {
        assert_eq!(
            read("{ sources: [config] }").1,
            ["kubeAuthn.strategies.azure.sources"]
        );
        assert_eq!(
            read("{ certificateKeyFile: key.pem }").1,
            ["kubeAuthn.strategies.azure.certificateKeyFile"]
        );
    }
}
