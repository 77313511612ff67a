//! `kubeAuthn.strategies.exec`.

use std::{path::PathBuf, time::Duration};

use crate::{ConfigValue, findings::Findings, schedule::optional_duration};

/// Which credential plugins may be started, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecSettings {
    /// The absolute paths of the plugins that clusters may name. Empty: none.
    pub allow: Vec<PathBuf>,
    /// How long a plugin may take.
    pub timeout: Option<Duration>,
    /// The environment variables that a plugin sees. Left out: all but `KUBE_AUTHN_*`.
    pub pass_environment: Option<Vec<String>>,
}

impl ExecSettings {
    pub(super) fn read(block: &ConfigValue<'_>, findings: &mut Findings) -> Self {
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self::default();
        }
        findings.extend(block.unknown_keys(&["allow", "timeout", "passEnvironment"]));
        let paths = allowed_programs(&block.child("allow"), findings);
        let timeout = block.child("timeout");
        let limit = findings.keep(optional_duration(&timeout)).flatten();
        if limit.is_some_and(|limit| limit.is_zero()) {
            findings.push(timeout.problem("expected a duration longer than zero"));
        }
        let names = findings.keep(block.child("passEnvironment").optional_strings());
        Self {
            allow: paths,
            timeout: limit,
            pass_environment: names
                .flatten()
                .map(|names| names.into_iter().map(str::to_owned).collect()),
        }
    }
}

/// A list of absolute paths.
pub(super) fn allowed_programs(list: &ConfigValue<'_>, findings: &mut Findings) -> Vec<PathBuf> {
    let paths = findings.keep(list.optional_strings()).flatten();
    let paths: Vec<PathBuf> = paths.unwrap_or_default().into_iter().map(PathBuf::from).collect();
    for (index, path) in paths.iter().enumerate() {
        if !path.is_absolute() {
            let place = list.element(index);
            findings.push(place.problem("expected an absolute path: PATH is not searched"));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppConfig, Environment, KubeAuthnConfig};

    fn read(yaml: &str) -> (ExecSettings, Vec<String>) {
        let config = AppConfig::from_texts(&[("app-config.yaml", yaml)], &Environment::of([("", "")]));
        let mut findings = Findings::default();
        let read = KubeAuthnConfig::read(&config.expect("a configuration"), &mut findings);
        let keys = findings.problems.into_iter().map(|problem| problem.key);
        (read.strategies.exec, keys.collect())
    }

    #[test]
    fn settings_are_read_and_nothing_is_allowed_by_default() {
        let (settings, problems) = read(
            "kubeAuthn: { strategies: { exec: { allow: [/usr/bin/aws], timeout: 5s, passEnvironment: [HOME] } } }",
        );

        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.allow, [PathBuf::from("/usr/bin/aws")]);
        assert_eq!(settings.timeout, Some(Duration::from_secs(5)));
        assert_eq!(settings.pass_environment, Some(vec!["HOME".to_owned()]));
        assert_eq!(read("kubeAuthn: {}").0, ExecSettings::default());
    }

    #[test]
    fn mistakes_are_told_at_once() {
        let (_, problems) = read(
            "kubeAuthn: { strategies: { exec: { allow: [/a, aws], alow: [], timeout: 0s, passEnvironment: x }, exce: {} } }",
        );

        assert_eq!(
            problems,
            [
                "kubeAuthn.strategies.exce",
                "kubeAuthn.strategies.exec.alow",
                "kubeAuthn.strategies.exec.allow[1]",
                "kubeAuthn.strategies.exec.timeout",
                "kubeAuthn.strategies.exec.passEnvironment",
            ]
        );
    }
}
