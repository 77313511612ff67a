//! `kubeAuthn.strategies.googleServiceAccount`, and Backstage's `kubernetes.googleServiceAccountCredentials`.

use std::path::PathBuf;

use kube_authn_core::Secret;

use super::exec::allowed_programs;
use crate::{AppConfig, InvalidConfig, findings::Findings};

/// What holds for all clusters of strategy `googleServiceAccount`, and for the locator `gke`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GoogleServiceAccountSettings {
    /// Credentials in JSON, as they stand in the configuration.
    pub credentials: Option<Secret>,
    /// A file of credentials, read again when it changes.
    pub credentials_file: Option<PathBuf>,
    /// The service account to impersonate, unless a cluster's own `kubeAuthn.googleServiceAccount` names another one.
    pub impersonate: Option<String>,
    /// The absolute paths of the programs that may give subject tokens. Empty: none.
    pub allow_executables: Vec<PathBuf>,
}

impl GoogleServiceAccountSettings {
    /// Reads the settings alone, for a program that needs them before the clusters are known.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn of(config: &AppConfig) -> Result<Self, InvalidConfig> {
        let mut findings = Findings::default();
        let settings = Self::read(config, &mut findings);
        match findings.problems.is_empty() {
            true => Ok(settings),
            false => Err(InvalidConfig::new(findings.problems)),
        }
    }

    pub(super) fn read(config: &AppConfig, findings: &mut Findings) -> Self {
        let credentials = config.value("kubernetes.googleServiceAccountCredentials");
        let block = config.value("kubeAuthn.strategies.googleServiceAccount");
        let credentials = findings.keep(credentials.optional_secret()).flatten();
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self {
                credentials,
                ..Self::default()
            };
        }
        findings.extend(block.unknown_keys(&["credentialsFile", "impersonate", "allowExecutables"]));
        let file = block.child("credentialsFile");
        let path = findings.keep(file.optional_string()).flatten();
        if credentials.is_some() && path.is_some() {
            findings.push(file.problem(
                "there are two credentials: keep this file or kubernetes.googleServiceAccountCredentials",
            ));
        }
        let impersonate = findings
            .keep(block.child("impersonate").optional_string())
            .flatten();
        Self {
            credentials,
            credentials_file: path.map(PathBuf::from),
            impersonate: impersonate.map(str::to_owned),
            allow_executables: allowed_programs(&block.child("allowExecutables"), findings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Environment;

    fn read(text: &str) -> Result<GoogleServiceAccountSettings, Vec<String>> {
        let config = AppConfig::from_texts(&[("app-config.yaml", text)], &Environment::of([("", ""); 0]));
        GoogleServiceAccountSettings::of(&config.expect("legal YAML")).map_err(|invalid| {
            let problems = invalid.problems.into_iter();
            problems.map(|problem| problem.key).collect()
        })
    }

    #[test]
    fn settings_are_read_from_backstage_s_key_and_from_ours() {
        assert_eq!(read("{}"), Ok(GoogleServiceAccountSettings::default()));
        let settings = read("kubernetes: { googleServiceAccountCredentials: '{}' }").expect("legal");
        assert_eq!(settings.credentials, Some(Secret::new("{}")));
        let settings = read(
            "kubeAuthn: { strategies: { googleServiceAccount: { credentialsFile: /etc/sa.json, impersonate: sa@p.iam,
             allowExecutables: [/bin/subject] } } }",
        );
        assert_eq!(
            settings,
            Ok(GoogleServiceAccountSettings {
                credentials: None,
                credentials_file: Some("/etc/sa.json".into()),
                impersonate: Some("sa@p.iam".to_owned()),
                allow_executables: vec!["/bin/subject".into()],
            })
        );
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused_by_their_keys() {
        let block = "kubeAuthn.strategies.googleServiceAccount";
        for (text, keys) in [
            (
                "kubernetes: { googleServiceAccountCredentials: { type: service_account } }",
                vec!["kubernetes.googleServiceAccountCredentials".to_owned()],
            ),
            (
                "kubernetes: { googleServiceAccountCredentials: '${UNSET}' }",
                vec!["kubernetes.googleServiceAccountCredentials".to_owned()],
            ),
            (
                "kubeAuthn: { strategies: { googleServiceAccount: { scopes: [], impersonate: [], allowExecutables: [a] } } }",
                vec![
                    format!("{block}.scopes"),
                    format!("{block}.impersonate"),
                    format!("{block}.allowExecutables[0]"),
                ],
            ),
            (
                "kubernetes: { googleServiceAccountCredentials: '{}' }\n\
                 kubeAuthn: { strategies: { googleServiceAccount: { credentialsFile: a } } }",
                vec![format!("{block}.credentialsFile")],
            ),
            (
                "kubeAuthn: { strategies: { googleServiceAccount: [] } }",
                vec![block.to_owned()],
            ),
        ] {
            assert_eq!(read(text), Err(keys), "{text}");
        }
    }
}
