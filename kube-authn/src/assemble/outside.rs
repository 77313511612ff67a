//! The parties that locators ask: a Backstage catalog, Google's list of clusters.

use std::sync::Arc;

use kube_authn_clusters::{AppConfig, BackstageCatalog, CatalogConfig, Outside};
#[cfg(feature = "google-service-account")]
use kube_authn_clusters::{GoogleApi, GoogleServiceAccountSettings};
use kube_authn_core::{CaBundle, Error, Problem, Result, TlsTrust, Transport};

use super::crypto_provider;

/// Makes what the configured locators need, and nothing else. A party whose settings have mistakes is left out: whoever reads
/// the configuration reports those.
pub(super) fn outside(config: &AppConfig) -> (Outside, Vec<Problem>) {
    let (mut outside, mut problems) = (Outside::default(), Vec::new());
    if lists(config, "catalog") {
        match catalog(config) {
            Ok(catalog) => outside.catalog = catalog.map(|catalog| Arc::new(catalog) as _),
            Err(problem) => problems.push(problem),
        }
    }
    #[cfg(feature = "google-service-account")]
    if lists(config, "gke")
        && let Ok(settings) = GoogleServiceAccountSettings::of(config)
    {
        match google(&settings) {
            Ok(google) => outside.google = Some(google),
            Err(error) => problems.push(unusable(config, &error)),
        }
    }
    (outside, problems)
}

/// Whether there is an entry of this type.
fn lists(config: &AppConfig, kind: &str) -> bool {
    let methods = config.value("kubernetes.clusterLocatorMethods");
    (0..methods.length()).any(|index| {
        let method = methods.element(index).child("type");
        matches!(method.optional_string(), Ok(Some(found)) if found == kind)
    })
}

fn catalog(config: &AppConfig) -> Result<Option<BackstageCatalog>, Problem> {
    let place = config.value("kubeAuthn.catalog.baseUrl");
    let settings = match CatalogConfig::of(config) {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            return Err(place.problem("where is the catalog? Set this key or 'backend.baseUrl'"));
        }
        Err(_) => return Ok(None),
    };
    let transport = transport(settings.ca).map_err(|error| unusable(config, &error))?;
    let catalog = BackstageCatalog::new(settings.base_url, transport);
    Ok(Some(match settings.token {
        Some(token) => catalog.with_token(token),
        None => catalog,
    }))
}

#[cfg(feature = "google-service-account")]
fn google(settings: &GoogleServiceAccountSettings) -> Result<GoogleApi> {
    let tokens = Arc::new(super::strategies::google_service_account(settings));
    GoogleApi::new(tokens, transport(CaBundle::System)?)
}

fn transport(ca: CaBundle) -> Result<Transport> {
    Transport::new(crypto_provider(), TlsTrust::new(ca))
}

fn unusable(config: &AppConfig, error: &Error) -> Problem {
    config
        .value("kubernetes.clusterLocatorMethods")
        .problem(error.to_string())
}
