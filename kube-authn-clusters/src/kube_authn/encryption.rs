//! `kubeAuthn.encryption`: the keys that stored logins are sealed with.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_core::{KeyId, Problem, Secret};

use crate::{ConfigValue, app_config::read_text, findings::Findings};

/// A key that stored logins are sealed with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncryptionKey {
    /// Its name, written beside what it sealed.
    pub id: KeyId,
    /// Its 32 bytes.
    pub key: Secret,
}

/// In their order; what is wrong is left out.
pub(super) fn read(block: &ConfigValue<'_>, findings: &mut Findings) -> Vec<EncryptionKey> {
    if findings.keep(block.optional_object().map(drop)).is_none() {
        return Vec::new();
    }
    findings.extend(block.unknown_keys(&["keys", "lost"]));
    let elements = findings.keep(block.child("keys").optional_objects()).flatten();
    let mut keys: Vec<EncryptionKey> = Vec::new();
    for element in elements.unwrap_or_default() {
        let Some(value) = findings.keep(element) else {
            continue;
        };
        findings.extend(value.unknown_keys(&["id", "key", "keyFile"]));
        let place = value.child("id");
        let id = place
            .string()
            .and_then(|id| KeyId::new(id).map_err(|error| place.problem(error.to_string())));
        let id = findings.keep(id);
        let key = findings.keep(key(&value));
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

/// The ids of keys that are lost for good, and so not configured. What else is wrong with the block is told by [`read`].
pub(super) fn lost(block: &ConfigValue<'_>, findings: &mut Findings) -> Vec<KeyId> {
    if !matches!(block.optional_object(), Ok(Some(_))) {
        return Vec::new();
    }
    let place = block.child("lost");
    let names = findings
        .keep(place.optional_strings())
        .flatten()
        .unwrap_or_default();
    let keys = block.child("keys");
    let is_configured = |name: &str| {
        let mut ids = (0..keys.length()).map(|index| keys.element(index).child("id"));
        ids.any(|id| id.string().is_ok_and(|id| id == name))
    };
    let id = |(index, name): (usize, &str)| {
        let place = place.element(index);
        let id = KeyId::new(name).map_err(|error| place.problem(error.to_string()))?;
        match is_configured(name) {
            true => Err(place.problem(format!(
                "the key '{id}' is configured under 'keys', so it is not lost: if what its rows were sealed with is, give \
                 the key under 'keys' another id, else take it out here"
            ))),
            false => Ok(id),
        }
    };
    names
        .into_iter()
        .enumerate()
        .filter_map(|name| findings.keep(id(name)))
        .collect()
}

/// `key`, or what stands in the file of `keyFile`.
fn key(value: &ConfigValue<'_>) -> Result<Secret, Problem> {
    let (place, file) = (value.child("key"), value.child("keyFile"));
    let Some(path) = file.unvanished()?.optional_string()? else {
        let text = place.optional_secret()?.ok_or_else(|| place.missing())?;
        return key_bytes(&place, &text);
    };
    if !place.is_absent() {
        return Err(file.problem("the key stands in 'key' already: remove one of the two"));
    }
    let text = read_text(Path::new(path))
        .map_err(|cause| file.problem(format!("the key file {path} cannot be read: {cause}")))?;
    key_bytes(&file, &Secret::new(text.trim()))
}

fn key_bytes(place: &ConfigValue<'_>, text: &Secret) -> Result<Secret, Problem> {
    const HOW: &str = "make one with 'kube-authn keygen'";
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
