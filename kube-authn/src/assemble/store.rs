//! `kubeAuthn.store`: where logins are kept.

use kube_authn_clusters::{AppConfig, EncryptionKey, KubeAuthnConfig, StoreConfig};
use kube_authn_core::{CaBundle, Error, ErrorKind, Problem, Result, Secret, TokenVault};
use kube_authn_store::{KeyRing, MemoryTokenStore, SqliteTokenStore};

/// What is wrong with store and keys, as far as it can be told without asking the store.
pub(crate) fn problems(config: &AppConfig, block: &KubeAuthnConfig) -> Vec<Problem> {
    let store = problem(config, block.store.as_ref());
    store
        .into_iter()
        .chain(key_problem(config, &block.encryption_keys))
        .collect()
}

fn problem(config: &AppConfig, store: Option<&StoreConfig>) -> Option<Problem> {
    let block = config.value("kubeAuthn.store");
    match store? {
        StoreConfig::Memory => None,
        StoreConfig::Sqlite { url } => {
            let error = SqliteTokenStore::path_of(url).err()?;
            Some(block.child("url").problem(error.to_string()))
        }
        StoreConfig::Postgres { url } => {
            let error = validate_postgres(url).err()?;
            Some(block.child("url").problem(error.to_string()))
        }
        StoreConfig::Redis { url, .. } => {
            let error = validate_redis(url).err()?;
            Some(block.child("url").problem(error.to_string()))
        }
        _ => Some(block.child("type").problem(NOT_IN_THIS_BUILD)),
    }
}

/// What is wrong with the encryption keys as a ring.
fn key_problem(config: &AppConfig, keys: &[EncryptionKey]) -> Option<Problem> {
    // Where there is none, it depends on the clusters whether one is needed.
    if keys.is_empty() {
        return None;
    }
    let keys = keys.iter().map(|key| (key.id.clone(), key.key.clone()));
    let error = KeyRing::new(keys.collect()).err()?;
    let place = config.value("kubeAuthn.encryption.keys");
    Some(place.problem(error.to_string()))
}

/// What is wrong with the file of the store: its folder is not there, or it is no file. `None` for a server.
pub(crate) fn file_problem(config: &AppConfig, store: Option<&StoreConfig>) -> Option<Problem> {
    let url = sqlite_url(store).filter(|url| SqliteTokenStore::path_of(url).is_ok())?;
    let error = SqliteTokenStore::is_there(url).err()?;
    Some(config.value("kubeAuthn.store.url").problem(error.to_string()))
}

/// As [`file_problem`], for whoever does not make the file: it must be there.
pub(crate) fn missing_file(config: &AppConfig, store: Option<&StoreConfig>) -> Option<Problem> {
    let url = sqlite_url(store)?;
    match (SqliteTokenStore::is_there(url), SqliteTokenStore::path_of(url)) {
        (Ok(false), Ok(path)) => Some(config.value("kubeAuthn.store.url").problem(format!(
            "{}: no such file: `kube-authn serve` makes it; a relative path is relative to the working directory",
            path.display()
        ))),
        (Ok(_), _) => None,
        (Err(_), _) => file_problem(config, store),
    }
}

/// The URL of an SQLite file, that of a configuration that names no store included.
fn sqlite_url(store: Option<&StoreConfig>) -> Option<&str> {
    match store {
        None => Some(StoreConfig::DEFAULT_URL),
        Some(StoreConfig::Sqlite { url }) => Some(url),
        Some(_) => None,
    }
}

/// A vault over the store; without the setting over a file in the working directory. A server that does not answer is an
/// error where it `must_answer`.
pub(crate) async fn vault(
    store: Option<&StoreConfig>,
    sealer: KeyRing,
    must_answer: bool,
) -> Result<TokenVault> {
    if let Some(url) = sqlite_url(store) {
        return Ok(TokenVault::new(SqliteTokenStore::open(url).await?, sealer));
    }
    match store {
        Some(StoreConfig::Memory) => Ok(TokenVault::new(MemoryTokenStore::new(), sealer)),
        Some(StoreConfig::Postgres { url }) => postgres(url, sealer, must_answer).await,
        Some(StoreConfig::Redis { url, ca }) => redis(url, ca, sealer, must_answer).await,
        _ => Err(not_in_this_build()),
    }
}

#[cfg(feature = "postgres")]
async fn postgres(url: &Secret, sealer: KeyRing, must_answer: bool) -> Result<TokenVault> {
    use kube_authn_store::PostgresTokenStore;

    let store = match must_answer {
        true => PostgresTokenStore::connect(text(url)?).await?,
        false => PostgresTokenStore::open(text(url)?).await?,
    };
    Ok(TokenVault::new(store, sealer))
}

#[cfg(feature = "postgres")]
fn validate_postgres(url: &Secret) -> Result<()> {
    kube_authn_store::PostgresTokenStore::validate(text(url)?)
}

#[cfg(feature = "redis")]
async fn redis(url: &Secret, ca: &CaBundle, sealer: KeyRing, must_answer: bool) -> Result<TokenVault> {
    use kube_authn_store::RedisTokenStore;

    let options = kube_authn_store::RedisOptions::parse(text(url)?)?
        .with_ca(ca.clone())
        .with_crypto_provider(super::crypto_provider());
    let store = match must_answer {
        true => RedisTokenStore::connect_with(options).await?,
        false => RedisTokenStore::open_with(options).await?,
    };
    Ok(TokenVault::new(store, sealer))
}

#[cfg(feature = "redis")]
fn validate_redis(url: &Secret) -> Result<()> {
    kube_authn_store::RedisOptions::parse(text(url)?).map(drop)
}

#[cfg(any(feature = "postgres", feature = "redis"))]
fn text(url: &Secret) -> Result<&str> {
    url.expose_str()
        .ok_or_else(|| Error::new(ErrorKind::ConfigInvalid, "the URL of the token store is no text"))
}

#[cfg(not(feature = "postgres"))]
async fn postgres(_url: &Secret, _sealer: KeyRing, _must_answer: bool) -> Result<TokenVault> {
    Err(not_in_this_build())
}

#[cfg(not(feature = "postgres"))]
fn validate_postgres(_url: &Secret) -> Result<()> {
    Err(not_in_this_build())
}

#[cfg(not(feature = "redis"))]
async fn redis(_url: &Secret, _ca: &CaBundle, _sealer: KeyRing, _must_answer: bool) -> Result<TokenVault> {
    Err(not_in_this_build())
}

#[cfg(not(feature = "redis"))]
fn validate_redis(_url: &Secret) -> Result<()> {
    Err(not_in_this_build())
}

fn not_in_this_build() -> Error {
    Error::new(ErrorKind::ConfigInvalid, NOT_IN_THIS_BUILD)
}

const NOT_IN_THIS_BUILD: &str = "this store is not in this build";
