//! Locator `config`: clusters listed in the configuration itself.

use std::collections::HashSet;

use async_trait::async_trait;
use kube_authn_core::{
    AuthMetadata, ClusterBuilder, ClusterDetails, ClusterLocator, ClusterStamp, CustomResource, Located,
    Problem, Result, Secret, StrategyOptions,
};

use crate::{AppConfig, ConfigValue, findings::Findings, transport_rules};

/// The clusters of one `type: config` entry of `kubernetes.clusterLocatorMethods`, read once and all at once.
///
/// Each key, its default and its error text are Backstage's. What differs on purpose: a URL or CA that cannot work is
/// refused here and not at the first request, one bad cluster hides no good one, and a token, CA or role that stands in
/// a file but vanishes by substitution is an error and never another identity or the machine's own roots.
#[derive(Clone, Debug)]
pub struct ConfigLocator {
    located: Located,
    sources: Vec<Source>,
}

/// Where a cluster stands in the files.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) cluster: ClusterStamp,
    pub(crate) file: String,
    pub(crate) key: String,
}

impl ConfigLocator {
    /// The wire name, `config`.
    pub const NAME: &str = "config";

    /// Reads the entry `method`, `kubernetes.clusterLocatorMethods[0]`, of this configuration.
    pub fn new(config: &AppConfig, method: &ConfigValue<'_>) -> Self {
        let mut findings = Findings::default();
        let (mut clusters, mut sources) = (Vec::new(), Vec::new());
        let list = method.child("clusters");
        let elements = findings
            .keep(
                list.optional_objects()
                    .and_then(|list| list.ok_or_else(|| method.child("clusters").missing())),
            )
            .unwrap_or_default();
        let mut names = HashSet::new();
        for element in elements {
            let Some(value) = findings.keep(element) else {
                continue;
            };
            match ClusterReader::new(config, &value).read(&mut names) {
                Ok(cluster) => {
                    sources.push(Source {
                        cluster: cluster.stamp(),
                        file: value.file().to_owned(),
                        key: value.key().to_owned(),
                    });
                    clusters.push(cluster);
                }
                Err(problems) => findings.extend(problems),
            }
        }
        Self {
            located: Located::new(clusters, findings.problems),
            sources,
        }
    }

    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }
}

#[async_trait]
impl ClusterLocator for ConfigLocator {
    fn name(&self) -> &str {
        Self::NAME
    }

    async fn locate(&self) -> Result<Located> {
        Ok(self.located.clone())
    }
}

/// Reads one element of `clusters`, in the order of Backstage's own reader.
struct ClusterReader<'a> {
    config: &'a AppConfig,
    value: &'a ConfigValue<'a>,
    metadata: ConfigValue<'a>,
    findings: Findings,
}

impl<'a> ClusterReader<'a> {
    fn new(config: &'a AppConfig, value: &'a ConfigValue<'a>) -> Self {
        Self {
            config,
            value,
            metadata: value.child(AUTH_METADATA),
            findings: Findings::default(),
        }
    }

    fn read(mut self, names: &mut HashSet<String>) -> Result<ClusterDetails, Vec<Problem>> {
        let metadata = self.metadata.clone();
        self.findings
            .keep(metadata.unvanished().and_then(ConfigValue::optional_object));
        let name = self.findings.keep(self.value.child("name").string());
        if let Some(name) = name
            && !names.insert(name.to_owned())
        {
            let place = self.value.child("name");
            self.findings
                .push(place.problem(format!("Duplicate cluster name '{name}'")));
        }
        let provider = self.provider(name.unwrap_or_default());
        let url = self.findings.keep(self.value.child("url").string());

        // Stand-ins let the rest be checked; the problem that made one necessary keeps the cluster from being used.
        let builder = ClusterDetails::builder(
            name.unwrap_or("unnamed"),
            url.unwrap_or("https://unknown.invalid"),
        )
        .auth_provider(provider.unwrap_or("unknown"));
        let builder = self.transport(builder);
        let builder = self.strategy(builder, name, provider.unwrap_or_default());
        let builder = self.presentation(builder);

        let built = builder.build().map_err(|invalid| invalid.problems);
        let cluster = match built {
            Ok(cluster) => Some(cluster),
            Err(problems) => {
                let place = |problem: Problem| self.value.child(&problem.key).problem(problem.message);
                self.findings.extend(problems.into_iter().map(place));
                None
            }
        };
        if let Some((key, message)) = cluster.as_ref().and_then(transport_rules::refusal) {
            self.findings.push(self.value.child(key).problem(message));
        }
        match cluster {
            Some(cluster) if self.findings.problems.is_empty() => Ok(cluster),
            _ => Err(self
                .findings
                .problems
                .into_iter()
                .map(|problem| match name {
                    Some(name) => problem.with_cluster(name),
                    None => problem,
                })
                .collect()),
        }
    }

    /// The strategy: of the metadata if it says anything, even if that is blank, else of `authProvider`.
    fn provider(&mut self, cluster: &str) -> Option<&'a str> {
        let of_metadata = self.metadata.child(AUTH_PROVIDER);
        let place = match of_metadata.unvanished() {
            Ok(value) if value.is_absent() => self.value.child("authProvider"),
            _ => of_metadata,
        };
        let blank = place.as_text() == Some("") && place.key() != self.value.child("authProvider").key();
        let read = match blank {
            true => Ok(None),
            false => place.unvanished().and_then(ConfigValue::optional_string),
        };
        let provider = self.findings.keep(read)?;
        if provider.is_none() {
            self.findings.push(self.value.child("authProvider").problem(format!(
                "cluster '{cluster}' has no auth provider configured; this must be specified via the 'authProvider' or \
                 'authMetadata.kubernetes.io/auth-provider' parameter"
            )));
        }
        provider
    }

    fn transport(&mut self, mut builder: ClusterBuilder) -> ClusterBuilder {
        if let Some(skip) = self.optional_bool("skipTLSVerify") {
            builder = builder.skip_tls_verify(skip);
        }
        if let Some(allow) = self.optional_bool("dangerouslyAllowInsecureUserCredentials") {
            builder = builder.dangerously_allow_insecure_user_credentials(allow);
        }
        // `caFile` wins if both are there.
        if let Some(data) = self.standing_string("caData") {
            builder = builder.ca_data(data);
        }
        if let Some(file) = self.standing_string("caFile") {
            builder = builder.ca_file(file);
        }
        builder
    }

    fn strategy(&mut self, builder: ClusterBuilder, name: Option<&str>, provider: &str) -> ClusterBuilder {
        let mut metadata = AuthMetadata::default();
        metadata.insert(AUTH_PROVIDER, provider);
        for (key, metadata_key) in METADATA_OF_KEYS {
            if let Some(text) = self.standing_string(key) {
                metadata.insert(metadata_key, text);
            }
        }
        for (_, metadata_key) in METADATA_OF_KEYS {
            self.findings
                .keep(self.metadata.child(metadata_key).unvanished().map(drop));
        }
        for (key, value) in self
            .metadata
            .entries()
            .filter(|(key, _)| *key != SERVICE_ACCOUNT_TOKEN)
        {
            if let Some(json) = value.json() {
                metadata.insert(key, json);
            }
        }
        let token = self.token();
        if token.is_none() && provider == "serviceAccount" {
            self.refuse_token_of_any_layer(name);
        }
        let builder = builder.auth_metadata(metadata).options(self.options());
        match token {
            Some(token) => builder.service_account_token(token),
            None => builder,
        }
    }

    /// The block `kubeAuthn` of the cluster. The strategies check what is in it.
    fn options(&mut self) -> StrategyOptions {
        let block = self.value.child(OPTIONS);
        let there = block.unvanished().and_then(ConfigValue::optional_object);
        if self.findings.keep(there.map(|block| block.is_some())) != Some(true) {
            return StrategyOptions::default();
        }
        self.findings.extend(block.unknown_keys(&OPTION_KEYS));
        self.findings.extend(block.all_vanished());
        match block.json() {
            Some(serde_json::Value::Object(block)) => StrategyOptions::new(block),
            _ => StrategyOptions::default(),
        }
    }

    /// The token of the metadata, else of the cluster.
    fn token(&mut self) -> Option<Secret> {
        let of_cluster = self
            .findings
            .keep(self.value.child(SERVICE_ACCOUNT_TOKEN).optional_secret());
        let of_metadata = self
            .findings
            .keep(self.metadata.child(SERVICE_ACCOUNT_TOKEN).optional_secret());
        of_metadata.flatten().or(of_cluster.flatten())
    }

    /// Without a token the pod's own identity is used. That must be meant: no file may hold the key for this cluster.
    fn refuse_token_of_any_layer(&mut self, name: Option<&str>) {
        let here = |value: &ConfigValue<'_>| {
            [
                value.child(SERVICE_ACCOUNT_TOKEN),
                value.child(AUTH_METADATA).child(SERVICE_ACCOUNT_TOKEN),
            ]
            .into_iter()
            .find(ConfigValue::stands)
            .map(|token| {
                token.problem(format!(
                    "cluster '{}' has no service account token although '{}' is there: give it a value, or remove the \
                     key to use the pod's own identity",
                    name.unwrap_or_default(),
                    token.key()
                ))
            })
        };
        let mut problems: Vec<Problem> = here(self.value).into_iter().collect();
        for method in self
            .config
            .layers()
            .flat_map(|layer| objects(&locator_methods(&layer)))
        {
            let same_name = |cluster: &ConfigValue<'_>| {
                name.is_some() && cluster.child("name").optional_string().ok().flatten() == name
            };
            let clusters = objects(&method.child("clusters"));
            problems.extend(
                clusters
                    .iter()
                    .filter(|cluster| same_name(cluster))
                    .filter_map(here),
            );
        }
        self.findings.extend(problems);
    }

    fn presentation(&mut self, mut builder: ClusterBuilder) -> ClusterBuilder {
        if let Some(title) = self.optional_string("title") {
            builder = builder.title(title);
        }
        if let Some(skip) = self.optional_bool("skipMetricsLookup") {
            builder = builder.skip_metrics_lookup(skip);
        }
        let resources = self.value.child("customResources").optional_objects();
        if let Some(resources) = self.findings.keep(resources).flatten() {
            let resources = resources
                .into_iter()
                .filter_map(|resource| self.findings.keep(resource))
                .collect::<Vec<_>>()
                .iter()
                .filter_map(|resource| self.custom_resource(resource))
                .collect();
            builder = builder.custom_resources(resources);
        }
        let url = self.optional_string("dashboardUrl").map(str::to_owned);
        let app = self.optional_string("dashboardApp").map(str::to_owned);
        builder.dashboard(url, app, self.value.child("dashboardParameters").json())
    }

    fn custom_resource(&mut self, value: &ConfigValue<'_>) -> Option<CustomResource> {
        let mut text = |key| self.findings.keep(value.child(key).string()).map(str::to_owned);
        let (group, api_version, plural) = (text("group"), text("apiVersion"), text("plural"));
        Some(CustomResource {
            group: group?,
            api_version: api_version?,
            plural: plural?,
        })
    }

    fn optional_string(&mut self, key: &str) -> Option<&'a str> {
        self.findings
            .keep(self.value.child(key).optional_string())
            .flatten()
    }

    /// A text whose absence means another identity or another trust: it must not vanish.
    fn standing_string(&mut self, key: &str) -> Option<&'a str> {
        let value = self.value.child(key);
        let read = value.unvanished().and_then(ConfigValue::optional_string);
        self.findings.keep(read).flatten()
    }

    fn optional_bool(&mut self, key: &str) -> Option<bool> {
        self.findings
            .keep(self.value.child(key).optional_bool())
            .flatten()
    }
}

/// The list of locators of a configuration, or of one of its layers.
pub(crate) fn locator_methods<'a>(root: &ConfigValue<'a>) -> ConfigValue<'a> {
    root.child("kubernetes").child("clusterLocatorMethods")
}

fn objects<'a>(list: &ConfigValue<'a>) -> Vec<ConfigValue<'a>> {
    let elements = list.optional_objects().ok().flatten().unwrap_or_default();
    elements.into_iter().flatten().collect()
}

const AUTH_METADATA: &str = "authMetadata";
const SERVICE_ACCOUNT_TOKEN: &str = "serviceAccountToken";

/// Our own block of a cluster, and the strategies' keys in it.
const OPTIONS: &str = "kubeAuthn";
const OPTION_KEYS: [&str; 7] = [
    "aws",
    "azure",
    "clientCertificate",
    "exec",
    "googleServiceAccount",
    "impersonation",
    "tokenRequest",
];

/// Metadata keys of `@backstage/plugin-kubernetes-common`.
const AUTH_PROVIDER: &str = "kubernetes.io/auth-provider";
const ASSUME_ROLE: &str = "kubernetes.io/aws-assume-role";

/// Keys of a cluster that become metadata.
const METADATA_OF_KEYS: [(&str, &str); 3] = [
    ("assumeRole", ASSUME_ROLE),
    ("externalId", "kubernetes.io/aws-external-id"),
    ("oidcTokenProvider", "kubernetes.io/oidc-token-provider"),
];

#[cfg(test)]
mod tests;
