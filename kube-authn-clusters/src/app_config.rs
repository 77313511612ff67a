//! Backstage's `app-config.yaml`: files in layers, and typed reads that name key and file in every error.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use kube_authn_core::{Error, ErrorKind, Problem};
use serde_json::Value;

use self::node::{Content, Node};
use crate::substitution;

mod json;
mod known_keys;
pub(crate) mod node;
mod redaction;
mod value;
mod variables;

pub use self::value::ConfigValue;

/// Configuration files, merged: later files win, objects merge, arrays replace, `null` hides, and a value whose
/// substitution is unset lets the lower layer through. Variables `APP_CONFIG_a_b` of the environment lie over all files.
/// Each value remembers the file that holds it; those variables are `env`.
///
/// `Debug` prints the names of the files and no value.
pub struct AppConfig {
    layers: Vec<Node>,
    merged: Node,
}

impl AppConfig {
    /// Reads these files, lowest layer first, with the environment of this process.
    ///
    /// `.json` and YAML 1.2 are read; at most 10 MiB each; mapping keys must be unique.
    ///
    /// # Errors
    /// One problem for each file that cannot be read, parsed or substituted, each naming the file.
    pub fn load<P: AsRef<Path>>(paths: &[P]) -> Result<Self, InvalidConfig> {
        Self::load_with(paths, &Environment::process())
    }

    /// The files that Backstage reads where none is named: `app-config.yaml`, `app-config.<env>.yaml` if the variable
    /// `BACKSTAGE_ENV` says which, and `app-config.local.yaml`; of the latter two those that exist.
    pub fn default_files(directory: &Path, environment: &Environment) -> Vec<PathBuf> {
        let env = environment.get("BACKSTAGE_ENV").filter(|env| !env.is_empty());
        let overlays = env
            .map(|env| format!("app-config.{env}.yaml"))
            .into_iter()
            .chain(["app-config.local.yaml".to_owned()])
            .map(|name| directory.join(name))
            .filter(|path| path.is_file());
        [directory.join("app-config.yaml")]
            .into_iter()
            .chain(overlays)
            .collect()
    }

    /// As [`AppConfig::load`], with another environment.
    ///
    /// # Errors
    /// As [`AppConfig::load`].
    pub fn load_with<P: AsRef<Path>>(paths: &[P], environment: &Environment) -> Result<Self, InvalidConfig> {
        let files = paths.iter().map(|path| {
            let path = path.as_ref();
            let text = read_text(path).map_err(|cause| {
                Problem::new("", format!("cannot read the configuration file: {cause}"))
                    .with_file(path.display().to_string())
            });
            (path.to_owned(), text)
        });
        Self::from_files(files, environment)
    }

    /// Takes texts in place of files, lowest layer first, each with the name that errors show and that `$file` and
    /// `$include` are relative to.
    ///
    /// # Errors
    /// As [`AppConfig::load`].
    pub fn from_texts(layers: &[(&str, &str)], environment: &Environment) -> Result<Self, InvalidConfig> {
        let files = layers
            .iter()
            .map(|(name, text)| (PathBuf::from(name), Ok((*text).to_owned())));
        Self::from_files(files, environment)
    }

    fn from_files(
        files: impl Iterator<Item = (PathBuf, Result<String, Problem>)>,
        environment: &Environment,
    ) -> Result<Self, InvalidConfig> {
        let (mut layers, mut problems) = (Vec::new(), Vec::new());
        for (path, text) in files {
            match text.and_then(|text| layer(&path, &text, environment)) {
                Ok(layer) => layers.push(layer),
                Err(problem) => problems.push(problem),
            }
        }
        match variables::layer(environment) {
            Ok(layer) => layers.extend(layer),
            Err(problem) => problems.push(problem),
        }
        if !problems.is_empty() {
            return Err(InvalidConfig { problems });
        }
        let empty = Node::new(Content::Map(Default::default()), &Arc::from("app-config.yaml"));
        let merged = layers
            .iter()
            .cloned()
            .reduce(|lower, upper| upper.over(lower))
            .unwrap_or(empty);
        Ok(Self { layers, merged })
    }

    /// The value at this key path, `kubernetes.serviceLocatorMethod`; keys that hold a dot are reached with
    /// [`ConfigValue::child`].
    pub fn value(&self, path: &str) -> ConfigValue<'_> {
        path.split('.')
            .fold(ConfigValue::root(&self.merged), |value, key| value.child(key))
    }

    /// The root of the merged configuration.
    pub fn root(&self) -> ConfigValue<'_> {
        ConfigValue::root(&self.merged)
    }

    /// The files as they stand, lowest layer first, for questions that the merged view cannot answer.
    pub(crate) fn layers(&self) -> impl Iterator<Item = ConfigValue<'_>> {
        self.layers.iter().map(ConfigValue::root)
    }
}

impl fmt::Debug for AppConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.layers.iter().map(|layer| &layer.file);
        f.write_str("AppConfig ")?;
        f.debug_list().entries(files).finish()
    }
}

fn layer(path: &Path, text: &str, environment: &Environment) -> Result<Node, Problem> {
    let file: Arc<str> = path.display().to_string().into();
    let problem = |key: &str, message: String| Problem::new(key, message).with_file(&*file);
    let value = parse(text, path)
        .map_err(|cause| problem("", format!("cannot parse the configuration file: {cause}")))?;
    let value = match value {
        Value::Null => Value::Object(Default::default()),
        Value::Object(_) => value,
        _ => {
            return Err(problem(
                "",
                "expected an object at the root of the file".to_owned(),
            ));
        }
    };
    substitution::resolve(value, path, &file, environment).map_err(|failed| {
        let message = format!(
            "Failed to read config file at \"{file}\", error at {}, {}",
            failed.path, failed.cause
        );
        problem(failed.path.trim_start_matches('.'), message)
    })
}

/// The text of a configuration file, without a byte order mark. The cause of a failure does not name the file.
#[allow(clippy::disallowed_methods, reason = "the reader of configuration files")]
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err("it is a directory".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err("it is larger than 10 MiB".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// YAML 1.2 or, by the file's extension, JSON. The cause of a failure names line and column and repeats no value.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Value, String> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return json::parse(text).map_err(|error| format!("invalid JSON: {error}"));
    }
    let options = serde_saphyr::options! {
        strict_booleans: true,
        underscored_numbers_as_strings: true,
        merge_keys: serde_saphyr::MergeKeyPolicy::Error,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax(&error))
}

fn syntax(error: &serde_saphyr::Error) -> String {
    let cause = match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => format!("duplicate key '{key}'"),
        serde_saphyr::Error::Budget { .. } => "too deep, too large, or too many aliases".to_owned(),
        // These would repeat the text that they could not read.
        serde_saphyr::Error::UnsupportedTag { .. } | serde_saphyr::Error::TaggedEnumMismatch { .. } => {
            "a tag (a value that begins with '!' needs quotes)".to_owned()
        }
        serde_saphyr::Error::SerdeInvalidType { .. } | serde_saphyr::Error::SerdeInvalidValue { .. } => {
            "a key or value of a kind that no configuration has".to_owned()
        }
        other => format!("invalid YAML: {other}"),
    };
    match error.location() {
        Some(at) if !cause.contains("line ") => {
            format!("{cause} at line {} column {}", at.line(), at.column())
        }
        _ => cause,
    }
}

/// Where `${VAR}` is looked up, and `APP_CONFIG_*` found. Clones share the source.
#[derive(Clone)]
pub struct Environment(Source);

#[derive(Clone)]
enum Source {
    Process,
    Fixed(Arc<BTreeMap<String, String>>),
}

impl Environment {
    /// The environment of this process. A variable that is not UTF-8 counts as unset.
    pub fn process() -> Self {
        Self(Source::Process)
    }

    /// These variables and no others.
    pub fn of<K: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        Self(Source::Fixed(Arc::new(variables.collect())))
    }

    #[allow(clippy::disallowed_methods, reason = "the reader of the environment")]
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        match &self.0 {
            Source::Process => std::env::var(name).ok(),
            Source::Fixed(variables) => variables.get(name).cloned(),
        }
    }

    /// The variables whose names begin so, in the order of their names.
    #[allow(clippy::disallowed_methods, reason = "the reader of the environment")]
    fn starting_with(&self, prefix: &str) -> BTreeMap<String, String> {
        let wanted = |(name, _): &(String, String)| name.starts_with(prefix);
        match &self.0 {
            Source::Process => std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .filter(wanted)
                .collect(),
            Source::Fixed(variables) => variables
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .filter(wanted)
                .collect(),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

/// Why a configuration cannot be used: every problem that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidConfig {
    /// Each problem, with file and key path where they are known.
    pub problems: Vec<Problem>,
}

impl InvalidConfig {
    /// These problems.
    pub fn new(problems: Vec<Problem>) -> Self {
        Self { problems }
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidConfig {}

impl From<InvalidConfig> for Error {
    fn from(invalid: InvalidConfig) -> Self {
        Self::new(ErrorKind::ConfigInvalid, invalid.to_string()).with_source(invalid)
    }
}

/// Backstage's own example is 15 KiB; 10 MiB leaves room for generated lists and none for a wrong file.
const MAX_FILE_BYTES: u64 = 10 * 1024 * 1024;

#[cfg(test)]
mod tests;
