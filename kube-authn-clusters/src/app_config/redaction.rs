//! Which values may be secrets, when a configuration is shown.

use super::{ConfigValue, node::Content};

/// What stands in place of a secret.
pub(crate) const REDACTED: &str = "[redacted]";

impl ConfigValue<'_> {
    /// The value as it may be shown: scalars and empty lists and objects as JSON, and `[redacted]` for what may be a
    /// secret. That is by its key (`...token`, `...secret`, `...password`, `...key`, `...credentials` and their like), by
    /// its look (a JWT, a private key, the user of a URL, a password among parameters), or because it comes from the
    /// environment or a file of its own, but for a few keys that are known to be public. Arguments and variables of
    /// programs are hidden, too.
    ///
    /// `None` for lists and objects with something in them, and where there is no value.
    pub fn shown(&self, show_secrets: bool) -> Option<serde_json::Value> {
        let node = self.node?;
        let value = match &node.content {
            Content::Map(entries) if !entries.is_empty() => return None,
            Content::List { items, .. } if !items.is_empty() => return None,
            _ => node.to_json()?,
        };
        let hides = !show_secrets && !value.is_null() && !value.is_boolean();
        let looks = value.as_str().is_some_and(looks_secret);
        let foreign = node.from_outside && !self.is_known_public();
        match hides && (foreign || looks || self.is_named_secret()) {
            true => Some(REDACTED.into()),
            false => Some(value),
        }
    }

    /// Why a value that stands in a file is not there, if so.
    pub fn missing_because(&self) -> Option<&str> {
        self.vanished()
    }

    /// Whether the key is one of ours that everybody may see, wherever its value comes from.
    fn is_known_public(&self) -> bool {
        let block = self.key.split(['.', '[']).next().unwrap_or_default();
        let last = self.key.rsplit(['.', '[']).next().unwrap_or_default();
        OUR_BLOCKS.contains(&block) && PUBLIC_KEYS.contains(&last.trim_end_matches(']'))
    }

    /// Whether a part of the key path names secrets, so that everything below it is one.
    fn is_named_secret(&self) -> bool {
        if let Some(below) = self.key.strip_prefix(KEY_RING) {
            // A list of `{ id, key }`; whatever else somebody made of it may be a key.
            return !below.ends_with("].id");
        }
        if self.key.contains(".exec.env") || self.key.contains(".exec.args") {
            return true;
        }
        let mut parts = self.key.split(['.', '[', ']']).filter(|part| !part.is_empty());
        parts.any(|part| {
            let part = part.to_ascii_lowercase();
            let part = part.strip_suffix('s').unwrap_or(&part);
            SECRET_WORDS.iter().any(|word| part.ends_with(word))
        })
    }
}

fn looks_secret(text: &str) -> bool {
    // A JWT begins with `{"`, in base64url.
    let is_jwt = text.starts_with("eyJ") && text.contains('.');
    let has_user = text
        .split_once("://")
        .and_then(|(_, rest)| rest.split(['/', '?', '#']).next())
        .is_some_and(|authority| authority.contains('@'));
    let has_password = ["password=", "pwd=", "accountkey=", "sharedaccesskey="];
    let parameters = text.to_ascii_lowercase().replace(' ', "");
    is_jwt
        || has_user
        || has_password.iter().any(|word| parameters.contains(word))
        || text.contains("PRIVATE KEY-----")
        || text.contains("\"private_key\"")
}

const KEY_RING: &str = "kubeAuthn.encryption.keys";

/// Ends of keys, singular and in lower case.
const SECRET_WORDS: [&str; 12] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "pas",
    "key",
    "keydata",
    "credential",
    "authorization",
    "cookie",
    "dsn",
];

/// Blocks whose keys are known here.
const OUR_BLOCKS: [&str; 6] = ["app", "backend", "clusterAuth", "kubeAuthn", "kubernetes", "aws"];

/// Keys of these blocks that are worth seeing and never secret.
const PUBLIC_KEYS: [&str; 18] = [
    "accountId",
    "audience",
    "authProvider",
    "baseUrl",
    "caData",
    "caFile",
    "clientId",
    "host",
    "issuer",
    "listen",
    "name",
    "path",
    "port",
    "projectId",
    "region",
    "title",
    "type",
    "url",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{AppConfig, Environment};

    #[test]
    fn secrets_are_known_by_key_look_or_origin() {
        let environment = Environment::of([("FROM_OUTSIDE", "outside")]);
        let config = AppConfig::from_texts(
            &[(
                "app-config.yaml",
                r#"
kubernetes: { url: "${FROM_OUTSIDE}", serviceAccountToken: t, oidcTokenProvider: okta, caData: "${FROM_OUTSIDE}" }
aws: { mainAccount: { accessKeyId: AKIA, secretAccessKey: s } }
kubeAuthn: { encryption: { keys: [{ id: k1, key: abc }, "loose"] }, catalog: { other: "${FROM_OUTSIDE}" },
             exec: { env: [{ name: A, value: b }], args: [x] }, clientCertificate: { keyData: abc } }
backend: { database: { connection: "host=a password=b" } }
other: { url: "${FROM_OUTSIDE}", plain: shown, apiKeys: [a], db: "postgres://u:p@h/db", jwt: eyJhbGciOiJ.x.y,
         pem: "-----BEGIN EC PRIVATE KEY-----", auth: { credentials: { user: x } }, on: true, none: [] }
"#,
            )],
            &environment,
        )
        .expect("a configuration");

        for (key, expected) in [
            ("kubernetes.url", json!("outside")),
            ("kubernetes.caData", json!("outside")),
            ("kubernetes.oidcTokenProvider", json!("okta")),
            ("kubernetes.serviceAccountToken", json!("[redacted]")),
            ("aws.mainAccount.accessKeyId", json!("AKIA")),
            ("aws.mainAccount.secretAccessKey", json!("[redacted]")),
            ("kubeAuthn.catalog.other", json!("[redacted]")),
            ("kubeAuthn.clientCertificate.keyData", json!("[redacted]")),
            ("backend.database.connection", json!("[redacted]")),
            ("other.url", json!("[redacted]")),
            ("other.plain", json!("shown")),
            ("other.db", json!("[redacted]")),
            ("other.jwt", json!("[redacted]")),
            ("other.pem", json!("[redacted]")),
            ("other.auth.credentials.user", json!("[redacted]")),
            ("other.on", json!(true)),
            ("other.none", json!([])),
        ] {
            assert_eq!(config.value(key).shown(false), Some(expected), "{key}");
        }
        for hidden in [
            config.value("kubeAuthn.encryption.keys").element(1),
            config.value("kubeAuthn.exec.args").element(0),
            config.value("kubeAuthn.exec.env").element(0).child("value"),
        ] {
            assert_eq!(hidden.shown(false), Some(json!("[redacted]")), "{}", hidden.key());
        }
        let key = config.value("kubeAuthn.encryption.keys").element(0);
        assert_eq!(key.child("id").shown(false), Some(json!("k1")));
        assert_eq!(key.child("key").shown(false), Some(json!("[redacted]")));
        assert_eq!(key.child("key").shown(true), Some(json!("abc")));
        assert_eq!(
            config.value("other.apiKeys").element(0).shown(false),
            Some(json!("[redacted]"))
        );
        assert_eq!(config.value("other").shown(false), None);
    }
}
