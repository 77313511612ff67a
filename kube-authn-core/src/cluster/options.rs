//! Settings of strategies that Backstage has no keys for.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use super::AuthMetadata;
use crate::Secret;

/// The block `kubeAuthn` of a cluster: settings by strategy. What is secret in it is kept apart. `Debug` shows keys alone.
#[derive(Clone, Default, PartialEq)]
pub struct StrategyOptions {
    values: Map<String, Value>,
    secrets: BTreeMap<String, Secret>,
}

impl StrategyOptions {
    /// Takes a block as it stands in the configuration. Texts whose keys sound secret (`keyData`, and see
    /// [`AuthMetadata::is_sensitive`]) are taken out, to be found by [`StrategyOptions::secret`].
    pub fn new(mut block: Map<String, Value>) -> Self {
        let mut secrets = BTreeMap::new();
        take_secrets(&mut block, "", &mut secrets);
        Self {
            values: block,
            secrets,
        }
    }

    /// The settings of a strategy, by its key in the block: `exec`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A secret among the settings, by its key path in the block: `clientCertificate.keyData`.
    pub fn secret(&self, path: &str) -> Option<&Secret> {
        self.secrets.get(path)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.secrets.is_empty()
    }
}

fn take_secrets(block: &mut Map<String, Value>, path: &str, secrets: &mut BTreeMap<String, Secret>) {
    let is_secret = |key: &str, value: &Value| {
        let sounds_so = AuthMetadata::is_sensitive(key) || key.to_ascii_lowercase().ends_with("keydata");
        sounds_so && value.is_string()
    };
    let taken: Vec<String> = block
        .iter()
        .filter(|(key, value)| is_secret(key, value))
        .map(|(key, _)| key.clone())
        .collect();
    for key in taken {
        if let Some(Value::String(text)) = block.remove(&key) {
            secrets.insert(format!("{path}{key}"), Secret::new(text));
        }
    }
    for (key, value) in block {
        if let Value::Object(below) = value {
            take_secrets(below, &format!("{path}{key}."), secrets);
        }
    }
}

impl fmt::Debug for StrategyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StrategyOptions")
            .field("keys", &self.values.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_apart_and_debug_shows_none() {
        let block = json!({
            "clientCertificate": { "certData": "c", "keyData": "canary" },
            "exec": { "env": [{ "name": "A", "value": "canary" }], "token": 7 },
        });
        let options = StrategyOptions::new(block.as_object().expect("an object").clone());

        assert_eq!(
            options.get("clientCertificate"),
            Some(&json!({ "certData": "c" }))
        );
        assert_eq!(
            options.secret("clientCertificate.keyData"),
            Some(&Secret::new("canary"))
        );
        assert_eq!(options.get("exec").map(|exec| &exec["token"]), Some(&json!(7)));
        assert!(!format!("{options:?}").contains("canary"));
    }
}
