//! Locator `gke`: the clusters of a Google Cloud project.
//!
//! <https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters/list>

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use kube_authn_core::{
    AccessTokenSource, ClusterDetails, ClusterLocator, Error, ErrorKind, Located, Problem, Result, Transport,
    http,
};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use crate::{ConfigValue, findings::Findings};

/// What a `gke` entry needs from the program: access tokens of the application, and a way to Google.
#[derive(Clone, Debug)]
pub struct GoogleApi {
    /// Access tokens with the scope `cloud-platform`.
    pub tokens: Arc<dyn AccessTokenSource>,
    /// For calls to the API.
    pub transport: Transport,
    /// `https://container.googleapis.com`, or what stands in for it.
    pub base_url: Url,
}

impl GoogleApi {
    /// Google's own API.
    ///
    /// # Errors
    /// Never for this URL.
    pub fn new(tokens: Arc<dyn AccessTokenSource>, transport: Transport) -> Result<Self> {
        let base_url = Url::parse(BASE_URL)
            .map_err(|source| Error::new(ErrorKind::Unexpected, "not a URL").with_source(source))?;
        Ok(Self {
            tokens,
            transport,
            base_url,
        })
    }
}

/// All clusters of a project and region that have some labels, asked for anew with each listing.
#[derive(Clone, Debug)]
pub struct GkeLocator {
    api: GoogleApi,
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    project: String,
    region: String,
    auth_provider: &'static str,
    skip_tls_verify: bool,
    skip_metrics_lookup: bool,
    expose_dashboard: bool,
    labels: Vec<(String, String)>,
    dns_endpoint: bool,
}

impl GkeLocator {
    /// The wire name, `gke`.
    pub const NAME: &str = "gke";

    /// Reads the entry `method` of `kubernetes.clusterLocatorMethods`.
    pub(crate) fn read(api: GoogleApi, method: &ConfigValue<'_>, findings: &mut Findings) -> Option<Self> {
        Some(Self {
            api,
            settings: Settings::read(method, findings)?,
        })
    }

    async fn list(&self) -> Result<Answer> {
        let settings = &self.settings;
        let failed = |kind: ErrorKind, why: &str| {
            let text = format!(
                "There was an error retrieving clusters from GKE for projectId={} region={}; caused by Error: {why}",
                settings.project, settings.region
            );
            Error::new(kind, text)
        };
        let mut url = self.api.base_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            let project = [
                settings.project.as_str(),
                "locations",
                &settings.region,
                "clusters",
            ];
            segments.pop_if_empty().extend(["v1", "projects"]).extend(project);
        }
        let token = self.api.tokens.access_token().await;
        let token = token.map_err(|error| failed(error.kind(), &error.to_string()).with_source(error))?;
        let line = token
            .to_bearer()
            .map_err(|_| failed(ErrorKind::Unexpected, "the access token is no text of a header"))?;
        let request = Request::get(url.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, line)
            .body(Bytes::new())
            .map_err(|_| failed(ErrorKind::ConfigInvalid, "the URL is malformed"))?;
        let answer = self.api.transport.send(request).await;
        let answer = answer.map_err(|error| failed(error.kind(), &error.to_string()).with_source(error))?;
        match answer.status() {
            StatusCode::OK => serde_json::from_slice(answer.body())
                .map_err(|_| failed(ErrorKind::Unavailable, "the answer is no list of clusters")),
            StatusCode::FORBIDDEN => Err(failed(
                ErrorKind::ConfigInvalid,
                "403: the account needs the permission container.clusters.list",
            )),
            StatusCode::UNAUTHORIZED => Err(failed(
                ErrorKind::ConfigInvalid,
                "401: the access token is refused; it needs the scope cloud-platform",
            )),
            StatusCode::NOT_FOUND => Err(failed(
                ErrorKind::ConfigInvalid,
                "404: there is no such project or region",
            )),
            status => Err(failed(ErrorKind::Unavailable, status.as_str())),
        }
    }
}

#[async_trait]
impl ClusterLocator for GkeLocator {
    fn name(&self) -> &str {
        Self::NAME
    }

    async fn locate(&self) -> Result<Located> {
        let answer = self.list().await?;
        let (mut clusters, mut problems, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        for zone in answer.missing_zones {
            warnings.push(format!(
                "GKE does not list the clusters of {zone} now: they are missing here"
            ));
        }
        for listed in answer.clusters {
            if !self.settings.takes(&listed) {
                continue;
            }
            let name = listed.name.clone();
            match self.settings.cluster(listed) {
                Ok(cluster) => clusters.push(cluster),
                Err(why) => problems.push(Problem::new("", why).with_cluster(name)),
            }
        }
        Ok(Located::new(clusters, problems).with_warnings(warnings))
    }
}

impl Settings {
    fn read(method: &ConfigValue<'_>, findings: &mut Findings) -> Option<Self> {
        let project = findings.keep(method.child("projectId").string())?.to_owned();
        let mut text = |key| findings.keep(method.child(key).optional_string()).flatten();
        let region = text("region").unwrap_or("-").to_owned();
        let auth_provider = match text("authProvider") {
            Some("googleServiceAccount") => "googleServiceAccount",
            _ => "google",
        };
        let endpoint_type = text("endpointType").unwrap_or("public");
        let dns_endpoint = match endpoint_type {
            "public" => false,
            "dns" => true,
            other => {
                let place = method.child("endpointType");
                findings.push(place.problem(format!(
                    "Invalid endpointType '{other}', must be one of: public, dns"
                )));
                return None;
            }
        };
        let mut flag = |key| {
            let read = findings.keep(method.child(key).optional_bool());
            read.flatten().unwrap_or(false)
        };
        let (skip_tls_verify, skip_metrics_lookup) = (flag("skipTLSVerify"), flag("skipMetricsLookup"));
        let expose_dashboard = flag("exposeDashboard");
        let list = findings.keep(method.child("matchingResourceLabels").optional_objects());
        let mut labels = Vec::new();
        for label in list.flatten().unwrap_or_default() {
            let label = findings.keep(label)?;
            let key = findings.keep(label.child("key").string())?;
            let value = findings.keep(label.child("value").string())?;
            labels.push((key.to_owned(), value.to_owned()));
        }
        Some(Self {
            project,
            region,
            auth_provider,
            skip_tls_verify,
            skip_metrics_lookup,
            expose_dashboard,
            labels,
            dns_endpoint,
        })
    }

    fn takes(&self, listed: &Listed) -> bool {
        let has = |(key, value): &(String, String)| listed.resource_labels.get(key) == Some(value);
        self.labels.iter().all(has)
    }

    fn cluster(&self, listed: Listed) -> Result<ClusterDetails, String> {
        let dns = listed.control_plane_endpoints_config.dns_endpoint_config.endpoint;
        let dns = dns.filter(|endpoint| self.dns_endpoint && !endpoint.is_empty());
        if self.dns_endpoint && dns.is_none() {
            tracing::info!(cluster = listed.name, "no DNS endpoint: the public one is taken");
        }
        let url = match (&dns, &listed.endpoint) {
            (Some(name), _) => format!("https://{name}"),
            (None, Some(address)) if !address.is_empty() => format!("https://{address}"),
            (None, _) => return Err("GKE lists no endpoint of the cluster".to_owned()),
        };
        let mut builder = ClusterDetails::builder(&listed.name, url)
            .auth_provider(self.auth_provider)
            .skip_tls_verify(self.skip_tls_verify)
            .skip_metrics_lookup(self.skip_metrics_lookup);
        // The DNS endpoint shows a certificate of a public authority, the other one the cluster's own.
        if dns.is_none()
            && let Some(ca) = listed.master_auth.cluster_ca_certificate
        {
            builder = builder.ca_data(ca);
        }
        if self.expose_dashboard {
            let parameters = json!({
                "projectId": self.project, "region": self.region, "clusterName": listed.name,
            });
            builder = builder.dashboard(None, Some("gke".to_owned()), Some(parameters));
        }
        builder.build().map_err(|invalid| invalid.reasons())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    clusters: Vec<Listed>,
    #[serde(default)]
    missing_zones: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(default = "unknown")]
    name: String,
    endpoint: Option<String>,
    #[serde(default)]
    resource_labels: BTreeMap<String, String>,
    #[serde(default)]
    master_auth: MasterAuth,
    #[serde(default)]
    control_plane_endpoints_config: Endpoints,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MasterAuth {
    cluster_ca_certificate: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoints {
    #[serde(default)]
    dns_endpoint_config: DnsEndpoint,
}

#[derive(Default, Deserialize)]
struct DnsEndpoint {
    endpoint: Option<String>,
}

/// As Backstage calls a cluster without name.
fn unknown() -> String {
    "unknown".to_owned()
}

const BASE_URL: &str = "https://container.googleapis.com";

#[cfg(test)]
mod tests;
