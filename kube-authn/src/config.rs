//! `kube-authn config print`: the merged configuration, and the layer that each value comes from.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use kube_authn::Administration;
use kube_authn_clusters::{AppConfig, ConfigValue, Environment, InvalidConfig};
use kube_authn_core::{
    Error,
    serde_json::{Value, json},
};

use crate::check::error_line;

/// Looks at a configuration.
#[derive(Debug, Args)]
pub(crate) struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the merged configuration, each value with the file that it comes from
    Print(Print),
}

/// Which files make the configuration: the options of every command that reads one.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// A configuration file; repeat it for layers, the later one wins. Without one: app-config.yaml,
    /// app-config.$BACKSTAGE_ENV.yaml and app-config.local.yaml of this folder
    #[arg(long = "config", value_name = "FILE", num_args = 1..)]
    files: Vec<PathBuf>,
}

/// Secrets are shown as [redacted]. Exits with 1 if a file cannot be read.
#[derive(Debug, Args)]
struct Print {
    #[command(flatten)]
    files: Files,
    /// Print a JSON list of {"key", "value", "file"}
    #[arg(long)]
    json: bool,
    /// Print tokens and keys as they are, not as [redacted]
    #[arg(long)]
    show_secrets: bool,
}

impl Files {
    /// The files that were named, or Backstage's own.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        match self.files.is_empty() {
            true => AppConfig::default_files(Path::new(""), &Environment::process()),
            false => self.files.clone(),
        }
    }

    /// The configuration and its stored logins. What is wrong was told on standard error.
    pub(crate) async fn administration(&self) -> Result<(AppConfig, Administration), ExitCode> {
        self.opened(false).await
    }

    /// As [`Files::administration`], for whoever may make the store.
    pub(crate) async fn opened(&self, may_make: bool) -> Result<(AppConfig, Administration), ExitCode> {
        let config = AppConfig::load(&self.paths()).map_err(|invalid| told(&invalid.into()))?;
        let opened = match may_make {
            true => Administration::open_or_make(&config).await,
            false => Administration::open(&config).await,
        };
        match opened {
            Ok(administration) => Ok((config, administration)),
            Err(error) => Err(told(&error)),
        }
    }
}

/// Tells what is wrong: each problem of a configuration with its file and key, anything else as it is.
pub(crate) fn told(error: &Error) -> ExitCode {
    let source = std::error::Error::source(error);
    match source.and_then(|source| source.downcast_ref::<InvalidConfig>()) {
        Some(invalid) => {
            for problem in &invalid.problems {
                let line = error_line(problem.file.as_deref(), &problem.key, &problem.message);
                eprintln!("{line}");
            }
        }
        None => eprintln!("kube-authn: {error}"),
    }
    ExitCode::FAILURE
}

impl Config {
    pub(crate) fn run(&self) -> ExitCode {
        let Command::Print(print) = &self.command;
        let config = match AppConfig::load(&print.files.paths()) {
            Ok(config) => config,
            Err(invalid) => {
                for problem in &invalid.problems {
                    let line = error_line(problem.file.as_deref(), &problem.key, &problem.message);
                    eprintln!("{line}");
                }
                return ExitCode::FAILURE;
            }
        };
        let mut out = io::stdout().lock();
        let printed = match print.json {
            true => print.json(&config, &mut out),
            false => print.yaml(&config, &mut out),
        };
        match printed {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        }
    }
}

impl Print {
    fn json(&self, config: &AppConfig, out: &mut impl Write) -> io::Result<()> {
        let mut list = Vec::new();
        self.collect(&config.root(), &mut list);
        kube_authn_core::serde_json::to_writer_pretty(&mut *out, &list)?;
        writeln!(out)
    }

    fn collect(&self, place: &ConfigValue<'_>, list: &mut Vec<Value>) {
        if let Some(value) = place.shown(self.show_secrets) {
            list.push(json!({ "key": place.key(), "value": value, "file": place.file() }));
        } else if let Some(why) = place.missing_because() {
            list.push(json!({ "key": place.key(), "missing": why, "file": place.file() }));
        }
        for below in below(place) {
            self.collect(&below.1, list);
        }
    }

    fn yaml(&self, config: &AppConfig, out: &mut impl Write) -> io::Result<()> {
        let root = config.root();
        for (key, place) in below(&root) {
            self.entry(&key, &place, "", "", out)?;
        }
        Ok(())
    }

    /// One entry: `first` stands before its key, `indent` before everything below it.
    fn entry(
        &self,
        key: &str,
        place: &ConfigValue<'_>,
        first: &str,
        indent: &str,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let label = if key.is_empty() {
            "-"
        } else {
            &format!("{}:", scalar(&key.into()))
        };
        if let Some(value) = place.shown(self.show_secrets) {
            return writeln!(out, "{first}{label} {}  # {}", scalar(&value), place.file());
        }
        if let Some(why) = place.missing_because() {
            return writeln!(out, "{first}{label} null  # {}: {why}", place.file());
        }
        let below = below(place);
        if key.is_empty() {
            // The first line of what an element holds stands behind its dash.
            let deeper = format!("{indent}  ");
            for (index, (key, place)) in below.iter().enumerate() {
                let first = if index == 0 {
                    format!("{first}- ")
                } else {
                    deeper.clone()
                };
                self.entry(key, place, &first, &deeper, out)?;
            }
            return Ok(());
        }
        writeln!(out, "{first}{label}")?;
        let deeper = format!("{indent}  ");
        for (key, place) in &below {
            self.entry(key, place, &deeper, &deeper, out)?;
        }
        Ok(())
    }
}

/// What lies in an object, or in a list under empty keys.
fn below<'a>(place: &ConfigValue<'a>) -> Vec<(String, ConfigValue<'a>)> {
    let elements = (0..place.length()).map(|index| (String::new(), place.element(index)));
    let entries = place.keys().map(|key| (key.to_owned(), place.child(key)));
    elements.chain(entries).collect()
}

/// YAML of one line: plain where nobody could read it as anything else, else as in JSON.
fn scalar(value: &Value) -> String {
    let plain = |text: &str| {
        text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
            && !WORDS.contains(&text.to_ascii_lowercase().as_str())
    };
    match value {
        Value::String(text) if plain(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What YAML readers of either version take for something else than text.
const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
