//! The block `kubeAuthn.googleServiceAccount` of a cluster.

use std::sync::Arc;

use kube_authn_core::{ClusterDetails, Problem};

use crate::options::Block;

/// The account that is impersonated for this cluster.
pub(super) fn read(cluster: &ClusterDetails) -> Result<Option<Arc<str>>, Vec<Problem>> {
    let mut block = Block::of(cluster, BLOCK, &[IMPERSONATE]);
    let account = block.text(IMPERSONATE);
    if let Some(Err(why)) = account.map(impersonated) {
        block.refuse(IMPERSONATE, why);
    }
    match block.problems.is_empty() {
        true => Ok(account.map(Arc::from)),
        false => Err(block.problems),
    }
}

/// Whether this account can be impersonated, as far as its name says.
pub(super) fn impersonated(account: &str) -> Result<(), &'static str> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"@.-_".contains(&byte);
    let (name, domain) = account.split_once('@').unwrap_or_default();
    let is_email =
        !name.is_empty() && domain.contains('.') && !domain.contains('@') && account.bytes().all(legal);
    match (
        is_email && account.len() <= MAX_EMAIL,
        cfg!(feature = "google-federation"),
    ) {
        (false, _) => Err(NO_EMAIL),
        (true, false) => Err("impersonation is not in this build: enable the feature google-federation"),
        (true, true) => Ok(()),
    }
}

const BLOCK: &str = "googleServiceAccount";
const IMPERSONATE: &str = "impersonate";
const NO_EMAIL: &str = "expected the e-mail address of a service account, sa@project.iam.gserviceaccount.com";
/// RFC 5321 section 4.5.3.1.
const MAX_EMAIL: usize = 254;
