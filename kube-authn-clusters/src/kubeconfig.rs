//! Locator `kubeconfig`: the contexts of kubeconfig files as clusters.
//!
//! <https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/>

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use kube_authn_core::{
    ClusterBuilder, ClusterDetails, ClusterLocator, Error, ErrorKind, Located, Problem, Result, Secret,
};
use serde_json::Value;

use crate::{
    ConfigValue,
    app_config::{node::Node, parse, read_text},
    findings::Findings,
};

mod user;

use user::{UserCredential, certificate, exec};

/// The contexts of kubeconfig files, read anew with each listing; a cluster has its context's name.
///
/// A token or token file becomes strategy `serviceAccount`, a certificate `clientCertificate`, a plugin `exec`, which
/// takes allowed commands alone. A context that cannot work is among the problems, by its name. Of entries with one name
/// in several files the first counts, as in kubectl.
#[derive(Clone, Debug)]
pub struct KubeconfigLocator {
    paths: Vec<PathBuf>,
    /// `None` for all.
    contexts: Option<Vec<String>>,
}

impl KubeconfigLocator {
    /// The wire name, `kubeconfig`.
    pub const NAME: &str = "kubeconfig";

    /// All contexts of these files.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            contexts: None,
        }
    }

    /// Lists these contexts alone; one that is not there is a problem.
    pub fn with_contexts(self, contexts: Vec<String>) -> Self {
        Self {
            contexts: Some(contexts),
            ..self
        }
    }

    /// Reads the entry `method` of `kubernetes.clusterLocatorMethods`: `path`, a list as in `KUBECONFIG`, and `contexts`.
    pub(crate) fn read(method: &ConfigValue<'_>, findings: &mut Findings) -> Option<Self> {
        let path = method.child("path");
        let contexts = method.child("contexts");
        let path = findings.keep(path.unvanished().and_then(ConfigValue::string));
        let contexts = findings.keep(contexts.unvanished().and_then(ConfigValue::optional_strings));
        let paths = path?
            .split(':')
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        let locator = Self::new(paths.collect());
        Some(match contexts? {
            Some(contexts) => locator.with_contexts(contexts.into_iter().map(str::to_owned).collect()),
            None => locator,
        })
    }

    fn is_wanted(&self, context: &str) -> bool {
        let contexts = self.contexts.as_ref();
        contexts.is_none_or(|contexts| contexts.iter().any(|wanted| wanted == context))
    }
}

#[async_trait]
impl ClusterLocator for KubeconfigLocator {
    fn name(&self) -> &str {
        Self::NAME
    }

    async fn locate(&self) -> Result<Located> {
        let files = self.paths.iter().map(|path| File::read(path));
        let files = files.collect::<Result<Vec<_>>>()?;
        let entries = Entries::of(&files);
        let (mut clusters, mut problems) = (Vec::new(), Vec::new());
        for (name, context) in &entries.contexts {
            if !self.is_wanted(name) {
                continue;
            }
            match (Context {
                name,
                entries: &entries,
            })
            .cluster(context)
            {
                Ok(cluster) => clusters.push(cluster),
                Err(found) => problems.extend(found),
            }
        }
        for wanted in self.contexts.iter().flatten() {
            if entries.contexts.iter().all(|(name, _)| name != wanted) {
                let text = format!("context '{wanted}' is in none of the kubeconfig files");
                problems.push(Problem::new("contexts", text).with_cluster(wanted));
            }
        }
        problems.extend(entries.problems);
        Ok(Located::new(clusters, problems))
    }
}

/// A kubeconfig file. What it holds is read like a configuration without substitution.
struct File {
    root: Node,
    folder: PathBuf,
}

impl File {
    fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let unreadable = |cause: String| {
            let text = format!("cannot read the kubeconfig file {name}: {cause}");
            Error::new(ErrorKind::ConfigInvalid, text)
        };
        let text = read_text(path).map_err(unreadable)?;
        let value = match parse(&text, path).map_err(unreadable)? {
            value @ Value::Object(_) => value,
            _ => {
                return Err(unreadable(
                    "expected an object at the root of the file".to_owned(),
                ));
            }
        };
        Ok(Self {
            root: Node::of_json(value, &Arc::from(name.as_str())),
            folder: path.parent().unwrap_or(Path::new("")).to_owned(),
        })
    }
}

/// The named entries of all files, the first of each name.
struct Entries<'a> {
    contexts: Vec<(String, ConfigValue<'a>)>,
    clusters: BTreeMap<String, (ConfigValue<'a>, &'a Path)>,
    users: BTreeMap<String, (ConfigValue<'a>, &'a Path)>,
    problems: Vec<Problem>,
}

impl<'a> Entries<'a> {
    fn of(files: &'a [File]) -> Self {
        let mut findings = Findings::default();
        let mut all = Self {
            contexts: Vec::new(),
            clusters: BTreeMap::new(),
            users: BTreeMap::new(),
            problems: Vec::new(),
        };
        for file in files {
            let root = ConfigValue::root(&file.root);
            for (name, entry) in named(&root, "contexts", "context", &mut findings) {
                if all.contexts.iter().all(|(known, _)| *known != name) {
                    all.contexts.push((name, entry));
                }
            }
            for (name, entry) in named(&root, "clusters", "cluster", &mut findings) {
                all.clusters.entry(name).or_insert((entry, &file.folder));
            }
            for (name, entry) in named(&root, "users", "user", &mut findings) {
                all.users.entry(name).or_insert((entry, &file.folder));
            }
        }
        all.problems = findings.problems;
        all
    }
}

/// The elements of a list, `{ name, <content> }` each.
fn named<'a>(
    root: &ConfigValue<'a>,
    list: &str,
    content: &str,
    findings: &mut Findings,
) -> Vec<(String, ConfigValue<'a>)> {
    let elements = findings.keep(root.child(list).optional_objects()).flatten();
    let mut entries = Vec::new();
    for element in elements.unwrap_or_default() {
        let Some(element) = findings.keep(element) else {
            continue;
        };
        if let Some(name) = findings.keep(element.child("name").string()) {
            entries.push((name.to_owned(), element.child(content)));
        }
    }
    entries
}

/// A context on its way to a cluster.
struct Context<'a> {
    name: &'a str,
    entries: &'a Entries<'a>,
}

impl Context<'_> {
    fn cluster(&self, context: &ConfigValue<'_>) -> Result<ClusterDetails, Vec<Problem>> {
        let mut findings = Findings::default();
        let cluster = findings.keep(self.entry(context, "cluster", &self.entries.clusters));
        let user = findings.keep(self.entry(context, "user", &self.entries.users));
        let builder = cluster.and_then(|(cluster, folder)| self.server(cluster, folder, &mut findings));
        let credential = user.and_then(|(user, folder)| findings.keep(self.credential(user, folder)));
        let built = match (builder, credential) {
            (Some(builder), Some(credential)) => credential.of(builder).build().map_err(|invalid| {
                let place = |problem: Problem| context.problem(problem.message);
                findings.extend(invalid.problems.into_iter().map(place));
            }),
            _ => Err(()),
        };
        match built {
            Ok(built) if findings.problems.is_empty() => Ok(built),
            _ => Err(findings
                .problems
                .into_iter()
                .map(|problem| self.named(problem))
                .collect()),
        }
    }

    /// The entry that the context names under this key.
    fn entry<'e, 'v>(
        &self,
        context: &ConfigValue<'_>,
        key: &str,
        entries: &'e BTreeMap<String, (ConfigValue<'v>, &'v Path)>,
    ) -> Result<(&'e ConfigValue<'v>, &'v Path), Problem> {
        let place = context.child(key);
        let name = place.string()?;
        let (entry, folder) = entries
            .get(name)
            .ok_or_else(|| place.problem(format!("there is no {key} '{name}' in the file")))?;
        Ok((entry, folder))
    }

    fn server(
        &self,
        cluster: &ConfigValue<'_>,
        folder: &Path,
        findings: &mut Findings,
    ) -> Option<ClusterBuilder> {
        let skip = findings.keep(cluster.child("insecure-skip-tls-verify").optional_bool());
        let data = findings.keep(cluster.child("certificate-authority-data").optional_string());
        let file = findings.keep(cluster.child("certificate-authority").optional_string());
        let name = findings.keep(cluster.child("tls-server-name").optional_string());
        let proxy = findings.keep(cluster.child("proxy-url").optional_string());
        let server = findings.keep(cluster.child("server").string());
        let mut builder = ClusterDetails::builder(self.name, server?).skip_tls_verify(skip?.unwrap_or(false));
        if let Some(name) = name? {
            builder = builder.tls_server_name(name);
        }
        if let Some(url) = proxy? {
            builder = builder.proxy_url(Secret::new(url));
        }
        // The data wins if both are there, as in kubectl.
        Some(match (data?, file?) {
            (Some(data), _) => builder.ca_data(data),
            (None, Some(file)) => builder.ca_file(folder.join(file)),
            (None, None) => builder,
        })
    }

    fn credential(&self, user: &ConfigValue<'_>, folder: &Path) -> Result<UserCredential, Problem> {
        if let Some(key) = UNSUPPORTED.iter().find(|key| !user.child(key).is_absent()) {
            return Err(user.child(key).problem(format!(
                "{key} is not supported here: use a token, a certificate or exec"
            )));
        }
        let kinds: Vec<&str> = KINDS
            .into_iter()
            .filter(|(_, keys)| keys.iter().any(|key| !user.child(key).is_absent()))
            .map(|(kind, _)| kind)
            .collect();
        match kinds[..] {
            ["a token"] => self.token(user, folder),
            ["a certificate"] => certificate(user, folder),
            ["exec"] => exec(&user.child("exec"), folder),
            [] => Err(user.problem("there is no credential: give a token, a certificate or exec")),
            _ => Err(user.problem(format!(
                "there are several credentials, {}: keep one",
                kinds.join(" and ")
            ))),
        }
    }

    fn token(&self, user: &ConfigValue<'_>, folder: &Path) -> Result<UserCredential, Problem> {
        // The token wins if both are there, as in kubectl.
        if let Some(token) = user.child("token").optional_string()? {
            return Ok(UserCredential::Token(Secret::new(token.trim())));
        }
        let place = user.child("tokenFile");
        let path = folder.join(place.string()?);
        let text = read_text(&path).map_err(|cause| {
            place.problem(format!("cannot read the token file {}: {cause}", path.display()))
        })?;
        match text.trim() {
            "" => Err(place.problem(format!("the token file {} is empty", path.display()))),
            token => Ok(UserCredential::Token(Secret::new(token))),
        }
    }

    /// The problem with the context in front, which nobody else names.
    fn named(&self, problem: Problem) -> Problem {
        let message = format!("context '{}': {}", self.name, problem.message);
        let named = Problem::new(&problem.key, message).with_cluster(self.name);
        match problem.file {
            Some(file) => named.with_file(file),
            None => named,
        }
    }
}

/// The kinds of credential, and the keys of a user entry that make each.
const KINDS: [(&str, &[&str]); 3] = [
    ("a token", &["token", "tokenFile"]),
    (
        "a certificate",
        &[
            "client-certificate",
            "client-certificate-data",
            "client-key",
            "client-key-data",
        ],
    ),
    ("exec", &["exec"]),
];

/// What no API server of today takes, or nobody here may decide.
const UNSUPPORTED: [&str; 7] = [
    "username",
    "password",
    "auth-provider",
    "as",
    "as-uid",
    "as-groups",
    "as-user-extra",
];

#[cfg(test)]
mod tests;
