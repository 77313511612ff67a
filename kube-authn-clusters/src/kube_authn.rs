//! The block `kubeAuthn`: callers, store, encryption, catalog, strategies.

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_core::{CaBundle, KeyId, Problem, Secret};

use crate::{AppConfig, CallerConfig, ConfigValue, StrategySettings, callers, findings::Findings};

mod catalog;

pub use self::catalog::CatalogConfig;

/// What the block `kubeAuthn` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KubeAuthnConfig {
    /// Who may call us, tried in order. Without the key: the portal of `backend.baseUrl` if that is set, else nobody.
    pub callers: Vec<CallerConfig>,
    /// Where logins are kept; `None` if the configuration does not say.
    pub store: Option<StoreConfig>,
    /// The keys that stored logins are sealed with: the first one writes, all read. Empty if none is configured.
    pub encryption_keys: Vec<EncryptionKey>,
    /// The catalog that locator `catalog` asks.
    pub catalog: Option<CatalogConfig>,
    /// Settings of strategies that hold for all clusters.
    pub strategies: StrategySettings,
}

/// Where logins are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreConfig {
    /// In the memory of this process.
    Memory,
    /// In a SQLite file.
    Sqlite {
        /// `sqlite://<path>` or `sqlite::memory:`.
        url: String,
    },
    /// In a PostgreSQL database.
    Postgres {
        /// `postgres://<user>:<password>@<host>:<port>/<database>`; the store itself says what else it takes.
        url: Secret,
    },
    /// In Redis or Valkey.
    Redis {
        /// `redis://<user>:<password>@<host>:<port>/`; the store itself says what else it takes.
        url: Secret,
        /// Trust for `rediss`.
        ca: CaBundle,
    },
}

/// A key that stored logins are sealed with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncryptionKey {
    /// Its name, written beside what it sealed.
    pub id: KeyId,
    /// Its 32 bytes.
    pub key: Secret,
}

impl KubeAuthnConfig {
    pub(crate) fn read(config: &AppConfig, findings: &mut Findings) -> Self {
        let block = config.value("kubeAuthn");
        let backend_url = config.value("backend.baseUrl");
        findings.extend(block.all_vanished());
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self::default();
        }
        findings.extend(block.unknown_keys(&["callers", "store", "encryption", "catalog", "strategies"]));
        Self {
            callers: callers::read(&block.child("callers"), &backend_url, findings),
            store: store(&block.child("store"), findings),
            encryption_keys: encryption_keys(&block.child("encryption"), findings),
            catalog: CatalogConfig::read(config, findings),
            strategies: StrategySettings::read(config, &block.child("strategies"), findings),
        }
    }
}

fn store(block: &ConfigValue<'_>, findings: &mut Findings) -> Option<StoreConfig> {
    findings
        .keep(block.optional_object().map(|block| block.is_some()))?
        .then_some(())?;
    findings.extend(block.unknown_keys(&["type", "url", "caFile"]));
    let (place, url, ca_file) = (block.child("type"), block.child("url"), block.child("caFile"));
    let kind = findings.keep(place.string())?;
    if kind != "redis" && !ca_file.is_absent() {
        findings.push(ca_file.problem("only a store of type redis has a caFile"));
    }
    match kind {
        "memory" => {
            if !url.is_absent() {
                findings.push(url.problem("a store of type memory has no url"));
            }
            Some(StoreConfig::Memory)
        }
        "sqlite" => {
            let text = findings.keep(url.string())?;
            if !text.starts_with("sqlite:") {
                findings.push(url.problem("expected sqlite://<path of the file>"));
            }
            Some(StoreConfig::Sqlite { url: text.to_owned() })
        }
        "postgres" => {
            let text = findings.keep(url.string())?;
            Some(StoreConfig::Postgres {
                url: Secret::new(text),
            })
        }
        "redis" => {
            let text = findings.keep(url.string());
            let ca = findings.keep(ca_file.ca_file()).flatten();
            Some(StoreConfig::Redis {
                url: Secret::new(text?),
                ca: ca.unwrap_or(CaBundle::System),
            })
        }
        _ => {
            findings.push(place.problem("expected one of memory, sqlite, postgres, redis"));
            None
        }
    }
}

fn encryption_keys(block: &ConfigValue<'_>, findings: &mut Findings) -> Vec<EncryptionKey> {
    if findings.keep(block.optional_object().map(drop)).is_none() {
        return Vec::new();
    }
    findings.extend(block.unknown_keys(&["keys"]));
    let elements = findings.keep(block.child("keys").optional_objects()).flatten();
    let mut keys: Vec<EncryptionKey> = Vec::new();
    for element in elements.unwrap_or_default() {
        let Some(value) = findings.keep(element) else {
            continue;
        };
        findings.extend(value.unknown_keys(&["id", "key"]));
        let place = value.child("id");
        let id = place
            .string()
            .and_then(|id| KeyId::new(id).map_err(|error| place.problem(error.to_string())));
        let id = findings.keep(id);
        let key = findings.keep(key_bytes(&value.child("key")));
        let (Some(id), Some(key)) = (id, key) else {
            continue;
        };
        if keys.iter().any(|known| known.id == id) {
            findings.push(place.problem(format!("two keys have the id '{id}': each needs its own")));
            continue;
        }
        keys.push(EncryptionKey { id, key });
    }
    keys
}

fn key_bytes(place: &ConfigValue<'_>) -> Result<Secret, Problem> {
    const HOW: &str = "make one with 'kube-authn keygen'";
    let text = place.optional_secret()?.ok_or_else(|| place.missing())?;
    // The decoder's own error would repeat a byte of the key.
    let key = STANDARD
        .decode(text.expose())
        .map(Secret::new)
        .map_err(|_| place.problem(format!("the key is not base64 of {KEY_BYTES} bytes: {HOW}")))?;
    match key.len() {
        KEY_BYTES => Ok(key),
        length => Err(place.problem(format!(
            "the key is base64 of {length} bytes, expected {KEY_BYTES}: {HOW}"
        ))),
    }
}

/// AES-256 (FIPS 197).
const KEY_BYTES: usize = 32;

#[cfg(test)]
mod tests;
