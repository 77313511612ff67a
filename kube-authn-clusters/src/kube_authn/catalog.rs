//! `kubeAuthn.catalog`: the catalog that locator `catalog` asks.

use kube_authn_core::{CaBundle, Problem, Secret};
use url::Url;

use crate::{AppConfig, InvalidConfig, callers::http_url, findings::Findings};

/// Where the catalog is, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CatalogConfig {
    /// Its base URL, `https://portal.example.com/api/catalog`; by default below `backend.baseUrl`.
    pub base_url: Url,
    /// A token of its `backend.auth.externalAccess`.
    pub token: Option<Secret>,
    /// Which certificates it may show.
    pub ca: CaBundle,
}

impl CatalogConfig {
    /// Reads the block alone, for a program that needs it before the clusters are known; `None` if neither it nor
    /// `backend.baseUrl` says where the catalog is.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn of(config: &AppConfig) -> Result<Option<Self>, InvalidConfig> {
        let mut findings = Findings::default();
        let catalog = Self::read(config, &mut findings);
        match findings.problems.is_empty() {
            true => Ok(catalog),
            false => Err(InvalidConfig::new(findings.problems)),
        }
    }

    pub(super) fn read(config: &AppConfig, findings: &mut Findings) -> Option<Self> {
        let block = config.value("kubeAuthn.catalog");
        findings.keep(block.optional_object().map(drop))?;
        findings.extend(block.unknown_keys(&["baseUrl", "token", "caFile"]));
        let base_url = findings.keep(base_url(config));
        let token = findings.keep(block.child("token").optional_secret());
        let ca = findings.keep(block.child("caFile").ca_file());
        Some(Self {
            base_url: base_url??,
            token: token?,
            ca: ca?.unwrap_or(CaBundle::System),
        })
    }
}

fn base_url(config: &AppConfig) -> Result<Option<Url>, Problem> {
    let own = config.value("kubeAuthn.catalog.baseUrl");
    if let Some(text) = own.unvanished()?.optional_string()? {
        return http_url(&own, text).map(Some);
    }
    let backend = config.value("backend.baseUrl");
    // Whether `backend.baseUrl` is well-formed is the question of whoever cannot do without it.
    let portal = backend.optional_string().ok().flatten();
    portal
        .map(|text| http_url(&backend, &format!("{}/api/catalog", text.trim_end_matches('/'))))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Environment;

    fn read(text: &str) -> Result<Option<CatalogConfig>, Vec<String>> {
        let config = AppConfig::from_texts(&[("app-config.yaml", text)], &Environment::of([("", ""); 0]));
        CatalogConfig::of(&config.expect("legal YAML")).map_err(|invalid| {
            let problems = invalid.problems.into_iter();
            problems.map(|problem| problem.key).collect()
        })
    }

    #[test]
    fn catalog_is_the_portal_s_unless_the_block_says_otherwise() {
        let url = |text: &str| {
            read(text)
                .expect("legal")
                .map(|catalog| catalog.base_url.to_string())
        };

        assert_eq!(url("{}"), None);
        assert_eq!(
            url("backend: { baseUrl: 'https://portal.example.com/' }").as_deref(),
            Some("https://portal.example.com/api/catalog")
        );
        assert_eq!(
            url("backend: { baseUrl: 'https://portal.example.com' }\n\
                 kubeAuthn: { catalog: { baseUrl: 'http://127.0.0.1:7007/api/catalog', token: t } }")
            .as_deref(),
            Some("http://127.0.0.1:7007/api/catalog")
        );
    }

    #[test]
    fn mistakes_of_the_block_are_refused_by_their_keys() {
        for (text, key) in [
            ("{ url: 'https://a' }", "kubeAuthn.catalog.url"),
            ("{ baseUrl: 'a' }", "kubeAuthn.catalog.baseUrl"),
            ("{ token: '${UNSET}' }", "kubeAuthn.catalog.token"),
            ("{ caFile: /nonexistent }", "kubeAuthn.catalog.caFile"),
            ("[]", "kubeAuthn.catalog"),
        ] {
            assert_eq!(
                read(&format!("kubeAuthn: {{ catalog: {text} }}")),
                Err(vec![key.to_owned()]),
                "{text}"
            );
        }
    }
}
