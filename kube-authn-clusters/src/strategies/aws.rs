//! `kubeAuthn.strategies.aws`.

use crate::{ConfigValue, findings::Findings};

/// What holds for all clusters of strategy `aws`, unless a cluster's own `kubeAuthn.aws` says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AwsSettings {
    /// The region of clusters whose URL does not name one.
    pub region: Option<String>,
    /// Whether to use FIPS 140 endpoints.
    pub use_fips: Option<bool>,
    /// Whether to use dual-stack endpoints.
    pub use_dual_stack: Option<bool>,
    /// The name of assumed sessions.
    pub session_name: Option<String>,
}

impl AwsSettings {
    pub(super) fn read(block: &ConfigValue<'_>, findings: &mut Findings) -> Self {
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self::default();
        }
        findings.extend(block.unknown_keys(&["region", "useFips", "useDualStack", "sessionName"]));
        let (region, session_name) = (block.child("region"), block.child("sessionName"));
        let settings = Self {
            region: findings
                .keep(region.optional_string())
                .flatten()
                .map(str::to_owned),
            use_fips: findings.keep(block.child("useFips").optional_bool()).flatten(),
            use_dual_stack: findings
                .keep(block.child("useDualStack").optional_bool())
                .flatten(),
            session_name: findings
                .keep(session_name.optional_string())
                .flatten()
                .map(str::to_owned),
        };
        if settings
            .session_name
            .as_deref()
            .is_some_and(|name| !is_session_name(name))
        {
            findings.push(session_name.problem("expected 2 to 64 letters, digits or _+=,.@-"));
        }
        settings
    }
}

/// `RoleSessionName` (<https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>).
fn is_session_name(name: &str) -> bool {
    (2..=64).contains(&name.len())
        && name
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || "_+=,.@-".contains(char))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppConfig, Environment, KubeAuthnConfig};

    fn read(yaml: &str) -> (AwsSettings, Vec<String>) {
        let config = AppConfig::from_texts(&[("app-config.yaml", yaml)], &Environment::of([("", "")]));
        let mut findings = Findings::default();
        let read = KubeAuthnConfig::read(&config.expect("a configuration"), &mut findings);
        let keys = findings.problems.into_iter().map(|problem| problem.key);
        (read.strategies.aws, keys.collect())
    }

    #[test]
    fn settings_are_read() {
        let (settings, problems) = read(
            "kubeAuthn: { strategies: { aws: { region: eu-west-1, useFips: 'yes', useDualStack: false, \
             sessionName: portal@prod } } }",
        );

        assert_eq!(problems, [""; 0]);
        let expected = AwsSettings {
            region: Some("eu-west-1".to_owned()),
            use_fips: Some(true),
            use_dual_stack: Some(false),
            session_name: Some("portal@prod".to_owned()),
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn mistakes_are_told_at_once() {
        let (_, problems) = read(
            "kubeAuthn: { strategies: { aws: { regoin: x, useFips: perhaps, sessionName: 'a b' }, awss: {} } }",
        );

        assert_eq!(
            problems,
            [
                "kubeAuthn.strategies.awss",
                "kubeAuthn.strategies.aws.regoin",
                "kubeAuthn.strategies.aws.useFips",
                "kubeAuthn.strategies.aws.sessionName",
            ]
        );
    }
}
