//! Tokens of a cluster's own audience, made out of a login's own, and which of these exchanges failed a moment ago.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use kube_authn_core::{ClientId, Error, ErrorKind, Login, LoginConfig, LoginId, Result, Token};
use tokio::time::Instant;

use super::{ClusterAuthProvider, expired, refresh::REMEMBERED};

/// By the token's login and end, and the audience: whoever logs in anew or is refreshed asks anew.
type Exchange = (LoginId, Timestamp, ClientId);

#[derive(Default)]
pub(super) struct FailedExchanges(Mutex<HashMap<Exchange, Failed>>);

struct Failed {
    error: Error,
    failures: u32,
    again_at: Instant,
}

impl FailedExchanges {
    /// How often the exchange failed in a row, or its failure if that was a moment ago.
    fn before(&self, exchange: &Exchange) -> Result<u32> {
        match self.lock().get(exchange) {
            Some(failed) if Instant::now() < failed.again_at => Err(failed.error.clone()),
            failed => Ok(failed.map_or(0, |failed| failed.failures)),
        }
    }

    fn remember(&self, exchange: Exchange, failed: Failed) {
        let mut all = self.lock();
        if all.len() >= REMEMBERED {
            all.retain(|_, failed| Instant::now() < failed.again_at);
        }
        all.insert(exchange, failed);
    }

    fn forget(&self, exchange: &Exchange) {
        self.lock().remove(exchange);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Exchange, Failed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClusterAuthProvider {
    /// A token of the cluster's own audience. It lies in the cache alone, and dies with the login. An issuer that makes none
    /// is asked again after a while, as for a refresh.
    pub(super) async fn exchanged(
        &self,
        config: &LoginConfig,
        login: &Login,
        token: &Token,
        audience: &ClientId,
    ) -> Result<Token> {
        let (refreshes, refresher) = self
            .refreshes
            .as_ref()
            .and_then(|refreshes| Some((refreshes, refreshes.refresher(config)?)))
            .ok_or_else(|| Error::new(ErrorKind::ConfigInvalid, NO_ISSUER))?;
        let exchange = (login.revision.login, token.expires_at, audience.clone());
        let failures = refreshes.exchanges.before(&exchange)?;
        let made = async {
            let verifier = &refresher.verifier;
            let longest = verifier.token_client(&login.key.client_id).longest_call();
            let _call = refresher.call(longest).await?;
            verifier.token_for_audience(login, &token.secret, audience).await
        };
        let error = match made.await {
            Ok(token) => {
                refreshes.exchanges.forget(&exchange);
                return Ok(token);
            }
            // The issuer no longer knows the login that it made.
            Err(error) if error.kind() == ErrorKind::LoginRequired => expired().with_source(error),
            Err(error) => error,
        };
        tracing::warn!(issuer = %login.key.issuer, %audience, %error, "a token was not exchanged");
        let pause = refreshes.pause(&error, failures);
        let error = match error.is_retryable() {
            true => error.with_retry_after(pause),
            false => error,
        };
        let failed = Failed {
            error: error.clone(),
            failures: failures.saturating_add(1),
            again_at: Instant::now() + pause,
        };
        refreshes.exchanges.remember(exchange, failed);
        Err(error)
    }
}

const NO_ISSUER: &str = "the cluster's tokens are made by an exchange, and the issuer is not at hand: pass its verifier to ClusterAuthProvider::with_issuers";
