//! The block `kubeAuthn`: callers, store, encryption, catalog, strategies.

use kube_authn_core::{CaBundle, KeyId, Secret};

use crate::{
    AppConfig, CallerConfig, ConfigValue, InvalidConfig, StrategySettings, callers, findings::Findings,
};

mod catalog;
mod encryption;
mod purge;

pub use self::{catalog::CatalogConfig, encryption::EncryptionKey, purge::PurgeConfig};

/// What the block `kubeAuthn` says.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct KubeAuthnConfig {
    /// Who may call us, tried in order. Without the key: the portal of `backend.baseUrl` if that is set, else nobody.
    pub callers: Vec<CallerConfig>,
    /// Where logins are kept; `None` if the configuration does not say.
    pub store: Option<StoreConfig>,
    /// The keys that stored logins are sealed with: the first one writes, all read. Empty if none is configured.
    pub encryption_keys: Vec<EncryptionKey>,
    /// Keys that are lost for good: logins that they protect stop nothing.
    pub lost_keys: Vec<KeyId>,
    /// When logins that ended long ago are deleted.
    pub purge: PurgeConfig,
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
        /// `sqlite://<path>`; without one [`StoreConfig::DEFAULT_URL`].
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

impl StoreConfig {
    /// Where logins are kept if the configuration does not say: a file in the working directory, beside the program as
    /// other programs with an embedded database do.
    pub const DEFAULT_URL: &str = "sqlite://kube-authn.db";
}

impl KubeAuthnConfig {
    /// Reads the block alone, for a program that asks no locator and looks at no cluster.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn of(config: &AppConfig) -> Result<Self, InvalidConfig> {
        let mut findings = Findings::default();
        let read = Self::read(config, &mut findings);
        match findings.problems.is_empty() {
            true => Ok(read),
            false => Err(InvalidConfig::new(findings.problems)),
        }
    }

    pub(crate) fn read(config: &AppConfig, findings: &mut Findings) -> Self {
        let block = config.value("kubeAuthn");
        let backend_url = config.value("backend.baseUrl");
        findings.extend(block.all_vanished());
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self::default();
        }
        findings.extend(block.unknown_keys(&KEYS));
        Self {
            callers: callers::read(&block.child("callers"), &backend_url, findings),
            store: store(&block.child("store"), findings),
            encryption_keys: encryption::read(&block.child("encryption"), findings),
            lost_keys: encryption::lost(&block.child("encryption"), findings),
            purge: PurgeConfig::read(&block.child("purge"), findings),
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
    let kind = findings.keep(place.optional_string())?.unwrap_or("sqlite");
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
            let text = findings.keep(url.optional_string())?;
            let text = text.unwrap_or(StoreConfig::DEFAULT_URL);
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

const KEYS: [&str; 6] = ["callers", "store", "encryption", "purge", "catalog", "strategies"];

#[cfg(test)]
mod tests;
