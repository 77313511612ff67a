//! The end of logins: first here, then at the issuer.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use kube_authn_core::{EntityRef, Login, Principal, Result, TokenVault};

use super::login::{ClusterLogin, Logins};

/// What a logout did.
pub(super) struct Ended {
    pub(super) count: usize,
    pub(super) revoked: bool,
    pub(super) clusters: BTreeSet<String>,
}

/// Ends all logins of the user, or those behind one cluster: first here, then at the issuer, as far as it is there.
///
/// # Errors
/// That of the first login that the store did not delete; all others have ended, and are revoked.
pub(super) async fn end_logins(
    vault: &TokenVault,
    user: &EntityRef,
    actor: Option<&Principal>,
    logins: &Logins,
    cluster: Option<&str>,
) -> Result<Ended> {
    let mut ended = Ended {
        count: 0,
        revoked: false,
        clusters: BTreeSet::new(),
    };
    let mut to_revoke = Vec::new();
    let mut failed = None;
    for (key, ..) in vault.list(user).await? {
        let behind = logins.behind(&key);
        if cluster.is_some_and(|cluster| !behind.iter().any(|login| login.serves(cluster))) {
            continue;
        }
        // What cannot be opened cannot be revoked, but it can be deleted.
        let stored = vault.load(&key).await.ok().flatten();
        match vault.log_out_by(&key, actor).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                failed.get_or_insert(error);
                continue;
            }
        }
        ended.count += 1;
        ended
            .clusters
            .extend(behind.iter().flat_map(|login| login.clusters.iter().cloned()));
        if let Some(stored) = stored.filter(|stored| stored.tokens.refresh_token.is_some()) {
            to_revoke.push((behind.first().copied(), stored));
        }
    }
    // Everything has ended here before the first issuer is asked, and one that is slow keeps no other waiting.
    let outcomes = join_all(to_revoke.iter().map(|(login, stored)| revoke(*login, stored))).await;
    if let Some(error) = failed {
        return Err(error);
    }
    ended.revoked = !outcomes.is_empty() && outcomes.into_iter().all(|revoked| revoked);
    Ok(ended)
}

/// Asks the issuer to forget the refresh token (RFC 7009), and says whether it did.
async fn revoke(login: Option<&ClusterLogin>, stored: &Login) -> bool {
    let (Some(login), Some(token)) = (login, &stored.tokens.refresh_token) else {
        return false;
    };
    let key = &stored.key;
    let client = login.verifier.token_client(&key.client_id);
    match tokio::time::timeout(REVOCATION_PATIENCE, client.revoke(token)).await {
        Ok(Ok(revoked)) => revoked,
        Ok(Err(error)) => {
            tracing::warn!(issuer = %key.issuer, %error, "the issuer did not revoke a refresh token");
            false
        }
        Err(_) => {
            tracing::warn!(issuer = %key.issuer, "the issuer is too slow to revoke a refresh token");
            false
        }
    }
}

/// Somebody waits for the answer, and the login is over here whatever the issuer says.
const REVOCATION_PATIENCE: Duration = Duration::from_secs(5);
