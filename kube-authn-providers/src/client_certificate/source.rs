//! The block `kubeAuthn.clientCertificate` of a cluster: the fields of a kubeconfig's user.

use std::path::PathBuf;

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_core::{ClusterDetails, Problem, Secret};

use crate::options::Block;

/// Where certificate and key are.
pub(super) enum Source {
    Files(PathBuf, PathBuf),
    /// PEM.
    Data(Secret, Secret),
}

impl Source {
    pub(super) fn of(cluster: &ClusterDetails) -> Result<Self, Vec<Problem>> {
        let mut block = Block::of(cluster, "clientCertificate", &KEYS);
        let key_data = cluster.options().secret("clientCertificate.keyData");
        let files = (block.text("certFile"), block.text("keyFile"));
        let data = (block.text("certData"), key_data);
        let source = match (files, data) {
            ((Some(chain), Some(key)), (None, None)) => Some(Self::Files(chain.into(), key.into())),
            ((None, None), (Some(chain), Some(key))) => {
                match (decoded(chain.as_bytes()), decoded(key.expose())) {
                    (Some(chain), Some(key)) => Some(Self::Data(chain, key)),
                    (chain, key) => {
                        for (name, value) in [("certData", chain), ("keyData", key)] {
                            if value.is_none() {
                                block.refuse(name, "expected base64 of PEM, as in a kubeconfig");
                            }
                        }
                        None
                    }
                }
            }
            _ => {
                if block.problems.is_empty() {
                    block.refuse(
                        "certFile",
                        "expected certFile and keyFile, or certData and keyData",
                    );
                }
                None
            }
        };
        match source {
            Some(source) if block.problems.is_empty() => Ok(source),
            _ => Err(block.problems),
        }
    }
}

/// The decoder's own error would repeat a byte of the key.
fn decoded(text: &[u8]) -> Option<Secret> {
    STANDARD.decode(text.trim_ascii()).ok().map(Secret::new)
}

pub(super) const DATA_KEY: &str = "kubeAuthn.clientCertificate.certData";

const KEYS: [&str; 4] = ["certFile", "keyFile", "certData", "keyData"];
