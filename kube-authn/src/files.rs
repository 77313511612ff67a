//! The files that strategies and the token store read when they need them, looked at now.

use std::{collections::HashMap, fs, path::Path};

use kube_authn_clusters::{AppConfig, ConfigValue, EffectiveConfig};
use kube_authn_core::{
    ClientCertificate, ClusterDetails, CredentialRequest, KubernetesAuthProvider, Principal, Problem, Secret,
};
use kube_authn_providers::ClientCertificateProvider;

use crate::assemble::{crypto_provider, store};

/// Adds what is wrong with the files that strategies name: one that is absent, unreadable or broken. A service that starts
/// does not mind, since they may come later and change at any time; whoever checks a configuration wants to know. Adds
/// too why the file of the token store could not be opened or made; nothing is made here.
pub async fn check_files(config: &AppConfig, effective: &mut EffectiveConfig) {
    let mut found = Vec::new();
    for place in secrets(config) {
        found.extend(path(&place).and_then(|path| refuse(&place, read(Path::new(path)))));
    }
    for place in programs(config) {
        found.extend(path(&place).and_then(|path| refuse(&place, is_there(Path::new(path)))));
    }
    found.extend(azure_certificate(config));
    if effective.uses_cluster_auth() {
        found.extend(store::file_problem(config, effective.kube_authn.store.as_ref()));
    }
    #[cfg(feature = "google-service-account")]
    found.extend(google(config, effective).await);
    effective.problems.extend(found);

    let mut of_clusters = HashMap::new();
    for cluster in &effective.clusters {
        of_clusters.insert(cluster.stamp(), client_certificate(cluster).await);
    }
    effective.validate_with(|cluster| {
        of_clusters
            .remove(&cluster.stamp())
            .flatten()
            .into_iter()
            .collect()
    });
}

/// Tokens that are handed on as they are.
fn secrets<'a>(config: &'a AppConfig) -> Vec<ConfigValue<'a>> {
    let aws = config.value("aws");
    let accounts = aws.child("accounts");
    let listed = (0..accounts.length()).map(|index| accounts.element(index));
    listed
        .chain([aws.child("accountDefaults")])
        .map(|account| account.child("webIdentityTokenFile"))
        .chain([config.value("kubeAuthn.strategies.azure.federatedTokenFile")])
        .collect()
}

/// Programs that may be started.
fn programs<'a>(config: &'a AppConfig) -> Vec<ConfigValue<'a>> {
    let mut places = Vec::new();
    for list in ["exec.allow", "googleServiceAccount.allowExecutables"] {
        let list = config.value(&format!("kubeAuthn.strategies.{list}"));
        places.extend((0..list.length()).map(|index| list.element(index)));
    }
    for key in ["azureCliPath", "azureDeveloperCliPath"] {
        places.push(config.value(&format!("kubeAuthn.strategies.azure.{key}")));
    }
    places
}

/// What is wrong with the value itself is told elsewhere.
fn path<'a>(place: &ConfigValue<'a>) -> Option<&'a str> {
    place.optional_string().ok().flatten()
}

fn refuse<T>(place: &ConfigValue<'_>, looked: Result<T, String>) -> Option<Problem> {
    looked.err().map(|why| place.problem(why))
}

/// Certificate and key of the application belong together.
fn azure_certificate(config: &AppConfig) -> Option<Problem> {
    let block = config.value("kubeAuthn.strategies.azure");
    let (certificate, key) = (block.child("certificateFile"), block.child("certificateKeyFile"));
    let file = path(&certificate)?;
    let chain = match read(Path::new(file)) {
        Ok(chain) => chain,
        Err(why) => return Some(certificate.problem(why)),
    };
    let (place, key) = match path(&key) {
        None => (certificate, Ok(chain.clone())),
        Some(file) => (key, read(Path::new(file))),
    };
    let key = match key {
        Ok(key) => key,
        Err(why) => return Some(place.problem(why)),
    };
    let pair = ClientCertificate::from_pem(chain.expose(), key);
    let checked = pair.and_then(|pair| pair.check_key(&crypto_provider()));
    checked
        .err()
        .map(|error| place.problem(format!("{file}: {error}")))
}

#[cfg(feature = "google-service-account")]
async fn google(config: &AppConfig, effective: &EffectiveConfig) -> Option<Problem> {
    let settings = &effective.kube_authn.strategies.google_service_account;
    settings.credentials_file.as_ref()?;
    let provider = crate::assemble::strategies::google_service_account(settings);
    let error = provider.read_credentials().await.err()?;
    let place = config.value("kubeAuthn.strategies.googleServiceAccount.credentialsFile");
    Some(place.problem(error.to_string()))
}

/// The strategy asks nobody.
async fn client_certificate(cluster: &ClusterDetails) -> Option<Problem> {
    let options = cluster.options().get(ClientCertificateProvider::NAME)?;
    options.get("certFile")?;
    let strategy = ClientCertificateProvider::new().with_key_check(crypto_provider());
    let request = CredentialRequest::new(Principal::anonymous(), cluster.clone());
    let error = strategy.credential(&request).await.err()?;
    Some(Problem::new(
        "kubeAuthn.clientCertificate.certFile",
        error.to_string(),
    ))
}

#[allow(
    clippy::disallowed_methods,
    reason = "a named reader: files that strategies will read"
)]
fn read(path: &Path) -> Result<Secret, String> {
    let failed = |why: &str| format!("cannot use the file {}: {why}", path.display());
    if is_there(path)? > MAX_BYTES {
        return Err(failed(&format!("it has more than {MAX_BYTES} bytes")));
    }
    let content = Secret::new(fs::read(path).map_err(|error| failed(&error.to_string()))?);
    match content.expose().trim_ascii() {
        [] => Err(failed("it is empty")),
        _ => Ok(content),
    }
}

/// How many bytes it has: a regular file.
#[allow(
    clippy::disallowed_methods,
    reason = "a named reader: files that strategies will read"
)]
fn is_there(path: &Path) -> Result<u64, String> {
    let found = fs::metadata(path).map_err(|error| error.to_string());
    let found = found.and_then(|found| match found.is_file() {
        true => Ok(found.len()),
        false => Err("it is no regular file".to_owned()),
    });
    found.map_err(|why| format!("cannot use the file {}: {why}", path.display()))
}

/// As strategies read them: a token, a bundle of certificates, a key file.
const MAX_BYTES: u64 = 64 * 1024;
