//! What a cluster's entry holds for strategies and front ends.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

/// Backstage's `authMetadata`: free keys, values as they stand in the file. Values of keys that sound secret are redacted
/// in `Debug`.
#[derive(Clone, Default, PartialEq)]
pub struct AuthMetadata(BTreeMap<String, Value>);

impl AuthMetadata {
    /// The value under this key if it is text.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(Value::as_str)
    }

    /// All keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Sets a value.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(key.into(), value.into());
    }

    /// Whether a key sounds as if its value were secret: it ends in token, secret, password or key.
    pub fn is_sensitive(key: &str) -> bool {
        let key = key.to_ascii_lowercase();
        ["token", "secret", "password", "key"]
            .iter()
            .any(|end| key.ends_with(end))
    }
}

impl fmt::Debug for AuthMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|(key, value)| match Self::is_sensitive(key) {
            true => (key, &REDACTED as &dyn fmt::Debug),
            false => (key, value as &dyn fmt::Debug),
        });
        f.debug_map().entries(shown).finish()
    }
}

const REDACTED: &str = "[redacted]";

/// Links to a cluster's dashboard, as Backstage's front end reads them.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Dashboard {
    /// Base URL, shown to people, never called.
    pub url: Option<String>,
    /// Which dashboard it is: `standard`, `rancher`, `openshift`, `gke`, `aks`, `eks`, `headlamp`.
    pub app: Option<String>,
    /// Parameters of that dashboard, any JSON.
    pub parameters: Option<Value>,
}

/// A custom resource that Backstage's plugin looks up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustomResource {
    /// API group, `argoproj.io`.
    pub group: String,
    /// API version, `v1alpha1`.
    pub api_version: String,
    /// Plural name, `rollouts`.
    pub plural: String,
}
