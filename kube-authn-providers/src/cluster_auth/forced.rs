//! The refresh of a login whose token an API server refused.

use std::time::Duration;

use jiff::SignedDuration;
use kube_authn_core::{Credential, Login, LoginConfig};
use tokio::time::timeout;

use super::ClusterAuthProvider;

impl ClusterAuthProvider {
    /// Whether another try differs after an API server refused the token of this login: a refresh is begun or joined, and
    /// waited for a little. A row that was written less than [`FORCED_PAUSE`] ago, by whichever process, holds the newest
    /// there is to have: only a refresh that is under way in it is waited for. An API server that refuses everybody gets a
    /// few places at the issuer and no more.
    pub(super) async fn refreshed_after(
        &self,
        refused: &Credential,
        config: &LoginConfig,
        login: Login,
    ) -> bool {
        let Some((refreshes, refresher)) = self.refresher(config, &login) else {
            return false;
        };
        let now = self.clock.now();
        let mark = login.metadata.refreshing.as_ref();
        let is_under_way = mark.is_some_and(|mark| now < mark.until);
        if now.duration_since(login.metadata.updated_at) < FORCED_PAUSE && !is_under_way {
            return false;
        }
        let known = refreshes.known(&login).filter(|flight| flight.counts(true));
        let flight = match known {
            Some(flight) => flight,
            None => {
                let Ok(place) = refresher.forced.clone().try_acquire_owned() else {
                    return false;
                };
                tracing::info!(issuer = %login.key.issuer, "an API server refused the token of a login: it is refreshed");
                let flight = self.flight(refreshes, refresher, &login, true);
                let landing = flight.clone();
                // The refresh may take longer than who waits for it.
                tokio::spawn(async move {
                    let _ = landing.landed().await;
                    drop(place);
                });
                flight
            }
        };
        match timeout(FORCED_PATIENCE, flight.landed()).await {
            Ok(Ok(present)) => config
                .token_for_cluster(&present.tokens)
                .is_none_or(|token| !refused.carries(&token.secret)),
            // Over: the next try says so.
            _ => login.handle.is_ended(),
        }
    }
}

/// Between a write of a login and a refresh because its token was refused: a token that is truly refused costs its issuer
/// one call a minute.
const FORCED_PAUSE: SignedDuration = SignedDuration::from_secs(60);
/// How long a request that was answered with 401 is held for a new token. Most issuers need less than a second.
const FORCED_PATIENCE: Duration = Duration::from_secs(5);
