//! The block `kubeAuthn.tokenRequest` of a cluster: short-lived tokens of a named service account, minted by the API server.

use kube_authn_core::{ClusterDetails, Error, ErrorKind, Problem};

use crate::options::Block;

/// Which service account, and for how long and for whom its tokens are.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "upstream"),
    allow(dead_code, reason = "only who mints reads all of it")
)]
pub(super) struct TokenRequest {
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) expiration_seconds: u64,
    pub(super) audiences: Vec<String>,
}

impl TokenRequest {
    /// `None` if the cluster has no such block.
    pub(super) fn of(cluster: &ClusterDetails) -> Result<Option<Self>, Vec<Problem>> {
        let mut block = Block::of(cluster, "tokenRequest", &KEYS);
        if !block.is_there() && block.problems.is_empty() {
            return Ok(None);
        }
        // They become part of a path.
        let mut name = |key: &str| {
            let text = block.required_text(key).unwrap_or_default();
            if !text.is_empty() && !is_name(text) {
                block.refuse(
                    key,
                    "expected lower-case letters, digits, - and . as in names of Kubernetes",
                );
            }
            text.to_owned()
        };
        let (namespace, service_account) = (name("namespace"), name("serviceAccount"));
        let expiration_seconds = block.number("expirationSeconds").unwrap_or(DEFAULT_SECONDS);
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&expiration_seconds) {
            block.refuse(
                "expirationSeconds",
                format!("expected {MIN_SECONDS} to {MAX_SECONDS}"),
            );
        }
        let audiences = block.texts("audiences").unwrap_or_default();
        match block.problems.is_empty() {
            true => Ok(Some(Self {
                namespace,
                service_account,
                expiration_seconds,
                audiences: audiences.into_iter().map(str::to_owned).collect(),
            })),
            false => Err(block.problems),
        }
    }

    pub(super) fn failed(&self, kind: ErrorKind, why: &str) -> Error {
        let (namespace, name) = (&self.namespace, &self.service_account);
        Error::new(
            kind,
            format!("cannot have a token of service account {namespace}/{name} made: {why}"),
        )
    }
}

fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let ends = |text: &str| text.starts_with(['-', '.']) || text.ends_with(['-', '.']);
    text.len() <= 253 && text.bytes().all(legal) && !ends(text)
}

const KEYS: [&str; 4] = ["namespace", "serviceAccount", "expirationSeconds", "audiences"];

/// Bounds of the API server (`pkg/apis/authentication/validation`); it may shorten what is asked for.
const MIN_SECONDS: u64 = 600;
const MAX_SECONDS: u64 = 1 << 32;
/// As `kubectl create token` and the API server itself.
const DEFAULT_SECONDS: u64 = 3600;
