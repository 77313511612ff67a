//! Strategy `clusterAuth`: the token of the user's own login, from the vault.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, EntityRef, Error, ErrorKind,
    KubernetesAuthProvider, Login, LoginConfig, Metadata, Problem, Result, SystemClock, Token, TokenVault,
};
use kube_authn_oidc::LoginVerifier;

use self::refresh::Refreshes;

mod exchange;
mod flight;
mod forced;
mod refresh;
mod spend;

/// The user authenticates with a token of the login that is stored for her: the ID token, or what
/// [`LoginConfig::token_for_cluster`] says, or one that the issuer makes out of it for [`LoginConfig::audience`]. Without a
/// login there is an error, never another identity. Clones share the vault and what is being refreshed.
///
/// With [`ClusterAuthProvider::with_issuers`], a login that has a refresh token is refreshed when somebody uses it: ahead of
/// its end beside the request, once it has ended before the answer, and when an API server refuses its token. Over all
/// processes each refresh token is spent once, and a refresh goes on when nobody waits for it any more. Who does not use a
/// login costs nothing.
#[derive(Clone, Debug)]
pub struct ClusterAuthProvider {
    vault: TokenVault,
    logins: Arc<HashMap<String, LoginConfig>>,
    default_login: Option<Arc<LoginConfig>>,
    refreshes: Option<Arc<Refreshes>>,
    clock: Arc<dyn Clock>,
}

impl ClusterAuthProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "clusterAuth";

    /// Takes tokens from this vault. `logins` says by name of the cluster where its users log in; `default_login` is for
    /// all other clusters.
    pub fn new(
        vault: TokenVault,
        logins: HashMap<String, LoginConfig>,
        default_login: Option<LoginConfig>,
    ) -> Self {
        Self {
            vault,
            logins: Arc::new(logins),
            default_login: default_login.map(Arc::new),
            refreshes: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// Refreshes logins and exchanges tokens at these issuers: one verifier for each issuer and client.
    ///
    /// # Errors
    /// `Unexpected` if the system has no random numbers.
    pub fn with_issuers(mut self, logins: impl IntoIterator<Item = LoginVerifier>) -> Result<Self> {
        self.refreshes = Some(Arc::new(Refreshes::new(logins)?));
        Ok(self)
    }

    /// With another clock.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Returns when no refresh is under way: a program that stops waits for this, since the issuer's answer to a refresh that
    /// is cut off is lost.
    pub async fn settled(&self) {
        if let Some(refreshes) = &self.refreshes {
            refreshes.settled().await;
        }
    }

    fn login_config(&self, cluster: &ClusterDetails) -> Option<&LoginConfig> {
        self.logins
            .get(cluster.name().as_str())
            .or(self.default_login.as_deref())
    }

    /// The user and the cluster's login, checked before anything is read from the vault.
    fn checked<'a>(&'a self, request: &'a CredentialRequest) -> Result<(&'a EntityRef, &'a LoginConfig)> {
        let user = request
            .principal
            .entity_ref()
            .ok_or_else(|| Error::new(ErrorKind::CallerUnknown, USER_REQUIRED))?;
        let cluster = &request.cluster;
        let config = self
            .login_config(cluster)
            .ok_or_else(|| Error::new(ErrorKind::ConfigInvalid, NO_LOGIN_CONFIG))?;
        if !may_carry_user_credentials(cluster) {
            return Err(Error::new(ErrorKind::ConfigInvalid, INSECURE_TRANSPORT));
        }
        Ok((user, config))
    }

    /// The login of this user, unless somebody else left it under the name.
    async fn login(
        &self,
        request: &CredentialRequest,
        user: &EntityRef,
        config: &LoginConfig,
    ) -> Result<Option<Login>> {
        let found = self
            .vault
            .find(user, &config.issuer, config.client_id.as_ref())
            .await?;
        Ok(found.filter(|login| config.is_own(&request.principal, login)))
    }
}

#[async_trait]
impl KubernetesAuthProvider for ClusterAuthProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::User
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.login_config(cluster).is_none() {
            problems.push(Problem::new("clusterAuth.issuer", NO_LOGIN_CONFIG));
        }
        if !may_carry_user_credentials(cluster) {
            let key = match cluster.server().is_https() {
                true => "skipTLSVerify",
                false => "url",
            };
            problems.push(Problem::new(key, INSECURE_TRANSPORT));
        }
        problems
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let (user, config) = self.checked(request)?;
        let stored = self.login(request, user, config).await?.ok_or_else(no_login)?;
        let (login, ask_again) = self.up_to_date(config, stored).await?;
        // It may have ended, or become somebody else's, while it was refreshed.
        if login.handle.is_ended() || !config.is_own(&request.principal, &login) {
            return Err(no_login());
        }
        let token = usable_token(&login, config, self.clock.now()).ok_or_else(expired)?;
        let credential = match &config.audience {
            Some(audience) => {
                let token = self.exchanged(config, &login, token, audience).await?;
                Credential::bearer(&token.secret)?.with_expires_at(token.expires_at)
            }
            None => {
                let credential = Credential::bearer(&token.secret)?.with_expires_at(token.expires_at);
                match ask_again {
                    Some(at) => credential.with_refresh_at(at),
                    None => credential,
                }
            }
        };
        Ok(credential.with_login(login.handle.clone()))
    }

    /// Another try helps if the login was refreshed or replaced meanwhile. If not, its refresh token buys another token, at
    /// most once a minute.
    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        let Ok((user, config)) = self.checked(request) else {
            return false;
        };
        let Ok(Some(login)) = self.login(request, user, config).await else {
            return false;
        };
        match usable_token(&login, config, self.clock.now()) {
            None => false,
            // An exchange may give another token of the same login.
            Some(_) if config.audience.is_some() => true,
            Some(token) if !refused.carries(&token.secret) => true,
            Some(_) => self.refreshed_after(refused, config, login).await,
        }
    }
}

fn no_login() -> Error {
    Error::new(ErrorKind::LoginRequired, NO_LOGIN)
}

fn expired() -> Error {
    Error::new(ErrorKind::TokenExpired, LOGIN_EXPIRED)
}

/// The token for clusters if it is worth sending. A login whose grant the issuer withdrew holds none, which is for its
/// user the same as an expired one.
fn usable_token<'a>(login: &'a Login, config: &LoginConfig, now: Timestamp) -> Option<&'a Token> {
    config
        .token_for_cluster(&login.tokens)
        .filter(|token| token.usable(now))
}

/// Whoever reads the configuration refuses other clusters at the start. Here is the second lock, next to the token.
fn may_carry_user_credentials(cluster: &ClusterDetails) -> bool {
    let verified = cluster.server().is_https() && !cluster.trust().skip_verify();
    verified || cluster.allows_insecure_user_credentials()
}

// Front ends match these texts: they are part of the contract, capitals, arrows and stops included.
const USER_REQUIRED: &str = "User authentication required. Please log in to Backstage.";
const NO_LOGIN: &str =
    "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster.";
const LOGIN_EXPIRED: &str =
    "Cluster authentication expired. Please re-authenticate at Settings → Auth Providers.";

const NO_LOGIN_CONFIG: &str = "no login is configured for this cluster: set clusterAuth.issuer, or list the cluster under clusterAuth.clusters";
const INSECURE_TRANSPORT: &str = "stored user credentials must not travel over http:// or with skipTLSVerify: use https with a CA, or set dangerouslyAllowInsecureUserCredentials";

#[cfg(test)]
mod tests;
