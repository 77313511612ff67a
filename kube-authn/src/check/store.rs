//! `kube-authn check --connect`: which key protects how many rows of the token store.

use std::path::Path;

use kube_authn::Administration;
use kube_authn_clusters::{AppConfig, EffectiveConfig, StoreConfig};
use kube_authn_core::{Result, serde_json::Value};
use kube_authn_store::SqliteTokenStore;
use serde::Serialize;

use crate::keys::{Use, lines, uses};

/// What came of opening the store.
#[derive(Debug, Serialize)]
pub(super) struct Store {
    /// As `kube-authn keys --json` prints them.
    keys: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    lines: Vec<String>,
    /// How many of the lines tell what somebody has to mend.
    #[serde(skip)]
    pub(super) errors: usize,
}

impl Store {
    /// `None` if no cluster takes logins, if what is wrong is told already, or if nothing is kept outside the service.
    pub(super) async fn of(config: &AppConfig, effective: &EffectiveConfig) -> Option<Self> {
        let block = &effective.kube_authn;
        let has_keys = !block.encryption_keys.is_empty();
        if !effective.uses_cluster_auth() || !effective.problems.is_empty() || !has_keys {
            return None;
        }
        let url = match &block.store {
            Some(StoreConfig::Memory) => return None,
            Some(StoreConfig::Sqlite { url }) => url,
            None => StoreConfig::DEFAULT_URL,
            Some(_) => return Some(Self::counted(counted(config).await)),
        };
        match (SqliteTokenStore::is_there(url), SqliteTokenStore::path_of(url)) {
            (Ok(false), Ok(path)) => Some(Self::to_be_made(path)),
            _ => Some(Self::counted(counted(config).await)),
        }
    }

    /// Before the first start that is no mistake.
    fn to_be_made(path: &Path) -> Self {
        Self {
            keys: Vec::new(),
            error: None,
            lines: vec![format!(
                "{}: no such file yet: the first start of serve makes it",
                path.display()
            )],
            errors: 0,
        }
    }

    fn counted(keys: Result<Vec<Use>>) -> Self {
        match keys {
            Ok(keys) => Self {
                keys: keys.iter().map(Use::json).collect(),
                error: None,
                lines: lines(&keys).collect(),
                errors: keys.iter().filter(|key| key.is_missing()).count(),
            },
            Err(error) => Self {
                keys: Vec::new(),
                error: Some(error.to_string()),
                lines: vec![format!("FAILED: {error}")],
                errors: 1,
            },
        }
    }

    /// For people.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

async fn counted(config: &AppConfig) -> Result<Vec<Use>> {
    uses(&Administration::open(config).await?).await
}
