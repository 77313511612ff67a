//! `kube-authn check`: the clusters that a configuration gives, and everything that is wrong with it.

use std::{io::Write, process::ExitCode};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use kube_authn::{Identity, Reach, check_files, effective_config, impersonation_rules, reach};
use kube_authn_clusters::{AppConfig, EffectiveConfig, InvalidConfig};
use kube_authn_core::{AuthMetadata, CaBundle, ClusterDetails, Problem, Secret, serde_json};
use serde::Serialize;
use serde_json::{Map, Value};

use self::{source::credential_source, store::Store};
use crate::{backend::Backend, config::Files};

mod source;
mod store;

/// Reads the files in layers, later ones over earlier ones. Exits with 1 if anything is wrong.
#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    files: Files,
    /// Try each cluster: who does its API server say we are? And the token store: which key protects how many rows? It is
    /// opened as the service opens it: an older schema is migrated, if its user may
    #[arg(long)]
    connect: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print tokens and keys as they are, not as [redacted]
    #[arg(long)]
    show_secrets: bool,
}

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
struct Report {
    clusters: Vec<Map<String, Value>>,
    /// Where the credential of each comes from; for people alone.
    #[serde(skip)]
    sources: Vec<String>,
    warnings: Vec<String>,
    errors: Vec<Mistake>,
    /// Of text alone: what carriers of users' names need, by cluster.
    #[serde(skip)]
    rules: Vec<(String, String)>,
    /// With `--connect` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<Vec<Connection>>,
    /// With `--connect` alone, where logins are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<Store>,
}

/// What came of trying a cluster.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    cluster: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_ahead_seconds: Option<i64>,
}

#[derive(Debug, Serialize)]
struct Mistake {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    message: String,
}

impl Report {
    /// How many lines tell what somebody has to mend.
    fn wrong(&self) -> usize {
        let connections = self.connections.iter().flatten();
        let failed = connections
            .filter(|connection| connection.error.is_some())
            .count();
        self.errors.len() + failed + self.store.as_ref().map_or(0, |store| store.errors)
    }
}

impl Check {
    pub(crate) async fn run(&self) -> ExitCode {
        let report = match AppConfig::load(&self.files.paths()) {
            Ok(config) => {
                let mut effective = effective_config(&config).await;
                check_files(&config, &mut effective).await;
                let (connections, store) = match self.connect {
                    true => (
                        Some(reach(&effective).await.into_iter().map(connection).collect()),
                        Store::of(&config, &effective).await,
                    ),
                    false => (None, None),
                };
                let report = self.report(effective, Backend::read(&config));
                Report {
                    connections,
                    store,
                    ..report
                }
            }
            Err(invalid) => Report {
                errors: mistakes(invalid.problems),
                ..Report::default()
            },
        };
        let wrong = report.wrong() > 0;
        let printed = match self.json {
            true => print_json(&report),
            false => print_text(&report),
        };
        match printed {
            Ok(()) if !wrong => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    fn report(&self, effective: EffectiveConfig, backend: Result<Backend, InvalidConfig>) -> Report {
        let (more_warnings, more_problems) = match backend {
            Ok(backend) => (backend.warnings, Vec::new()),
            Err(invalid) => (Vec::new(), invalid.problems),
        };
        Report {
            rules: impersonation_rules(&effective),
            clusters: effective
                .clusters
                .iter()
                .map(|cluster| self.cluster(cluster))
                .collect(),
            sources: effective.clusters.iter().map(credential_source).collect(),
            warnings: [effective.warnings, more_warnings].concat(),
            errors: mistakes([effective.problems, more_problems].concat()),
            connections: None,
            store: None,
        }
    }

    /// The fields of Backstage's parsed cluster; absent options are left out.
    fn cluster(&self, cluster: &ClusterDetails) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                fields.insert(key.to_owned(), value);
            }
        };
        let dashboard = cluster.dashboard();
        set("name", Some(cluster.name().as_str().into()));
        set("title", cluster.title().map(Value::from));
        set("url", Some(cluster.url().into()));
        set("authMetadata", Some(self.auth_metadata(cluster)));
        set("skipTLSVerify", Some(cluster.trust().skip_verify().into()));
        set(
            "skipMetricsLookup",
            Some(cluster.skip_metrics_lookup().unwrap_or(false).into()),
        );
        match cluster.trust().ca() {
            CaBundle::Pem(pem) => set("caData", Some(STANDARD.encode(pem).into())),
            CaBundle::File(path) => set("caFile", Some(path.display().to_string().into())),
            _ => {}
        }
        set("dashboardUrl", dashboard.url.clone().map(Value::from));
        set("dashboardApp", dashboard.app.clone().map(Value::from));
        set("dashboardParameters", dashboard.parameters.clone());
        let resource = |resource: &kube_authn_core::CustomResource| {
            serde_json::json!({
                "group": resource.group, "apiVersion": resource.api_version, "plural": resource.plural,
            })
        };
        set(
            "customResources",
            cluster
                .custom_resources()
                .map(|list| list.iter().map(resource).collect()),
        );
        fields
    }

    fn auth_metadata(&self, cluster: &ClusterDetails) -> Value {
        let shown = |key: &str, value: Value| match AuthMetadata::is_sensitive(key) && !self.show_secrets {
            true => REDACTED.into(),
            false => value,
        };
        let mut fields = Map::new();
        fields.insert(AUTH_PROVIDER.to_owned(), cluster.auth_provider().into());
        if let Some(token) = cluster.service_account_token() {
            let token = Secret::expose_str(token).unwrap_or_default();
            fields.insert(
                SERVICE_ACCOUNT_TOKEN.to_owned(),
                shown(SERVICE_ACCOUNT_TOKEN, token.into()),
            );
        }
        for (key, value) in cluster.auth_metadata().iter() {
            fields.insert(key.to_owned(), shown(key, value.clone()));
        }
        Value::Object(fields)
    }
}

fn connection(reach: Reach) -> Connection {
    let connection = Connection {
        cluster: reach.cluster,
        clock_ahead_seconds: reach.clock_ahead_seconds,
        ..Connection::default()
    };
    match reach.identity {
        Ok(Identity::Application { username, groups }) => Connection {
            username: Some(username),
            groups,
            ..connection
        },
        Ok(_) => connection,
        Err(error) => Connection {
            error: Some(error.to_string()),
            ..connection
        },
    }
}

fn mistakes(problems: Vec<Problem>) -> Vec<Mistake> {
    let mistake = |problem: Problem| Mistake {
        file: problem.file,
        key: problem.key,
        cluster: problem.cluster,
        message: problem.message,
    };
    problems.into_iter().map(mistake).collect()
}

fn print_json(report: &Report) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, report)?;
    writeln!(out)
}

fn print_text(report: &Report) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let text =
        |cluster: &Map<String, Value>, key: &str| cluster.get(key).and_then(Value::as_str).map(str::to_owned);
    for (cluster, source) in report.clusters.iter().zip(&report.sources) {
        let name = text(cluster, "name").unwrap_or_default();
        let url = text(cluster, "url").unwrap_or_default();
        let provider = cluster["authMetadata"][AUTH_PROVIDER]
            .as_str()
            .unwrap_or_default();
        let tls = match (
            url.starts_with("http:"),
            cluster["skipTLSVerify"].as_bool(),
            cluster.contains_key("caFile"),
        ) {
            (true, ..) => "no TLS",
            (_, Some(true), _) => "TLS not verified",
            (_, _, true) => "TLS verified with caFile",
            _ if cluster.contains_key("caData") => "TLS verified with caData",
            _ => "TLS verified with the machine's roots",
        };
        writeln!(out, "cluster   {name}: {provider} ({source}), {url}, {tls}")?;
    }
    for (cluster, rules) in &report.rules {
        writeln!(
            out,
            "rules     {cluster}: the carrier of users' names needs no more than"
        )?;
        for line in rules.lines() {
            writeln!(out, "          {line}")?;
        }
    }
    for warning in &report.warnings {
        writeln!(out, "warning   {warning}")?;
    }
    for mistake in &report.errors {
        let (file, key) = (mistake.file.as_deref(), mistake.key.as_str());
        writeln!(out, "{}", error_line(file, key, &mistake.message))?;
    }
    for connection in report.connections.iter().flatten() {
        writeln!(out, "{}", connection_line(connection))?;
    }
    for line in report.store.iter().flat_map(Store::lines) {
        writeln!(out, "store     {line}")?;
    }
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    writeln!(
        out,
        "{}, {}, {}",
        count(report.clusters.len(), "cluster"),
        count(report.warnings.len(), "warning"),
        count(report.wrong(), "error"),
    )
}

fn connection_line(connection: &Connection) -> String {
    let outcome = match (&connection.error, &connection.username) {
        (Some(error), _) => format!("FAILED: {error}"),
        (None, Some(username)) => format!("we are {username}, groups {}", connection.groups.join(", ")),
        (None, None) => "reached; its users bring their own credentials".to_owned(),
    };
    let clock = match connection.clock_ahead_seconds {
        Some(ahead @ 0..) => format!("; its clock is {ahead} s ahead of ours"),
        Some(behind) => format!("; its clock is {} s behind ours", -behind),
        None => String::new(),
    };
    format!("connect   {}: {outcome}{clock}", connection.cluster)
}

/// How a mistake is shown, here and where `serve` refuses to start.
pub(crate) fn error_line(file: Option<&str>, key: &str, message: &str) -> String {
    let place: Vec<_> = [file, Some(key)]
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect();
    format!("error     {}: {message}", place.join(": "))
}

const REDACTED: &str = "[redacted]";

/// Backstage's keys of `authMetadata`.
const AUTH_PROVIDER: &str = "kubernetes.io/auth-provider";
const SERVICE_ACCOUNT_TOKEN: &str = "serviceAccountToken";
