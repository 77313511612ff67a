//! Callers with a token of a Backstage portal: users, and plugins of its backend.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use kube_authn_core::{
    Clock, EntityRef, Error, ErrorKind, Issuer, Principal, Result, Secret, Transport, jiff::Timestamp,
};
use kube_authn_oidc::{IdTokenVerifier, IssuerClient, TypedToken, UnverifiedToken};
use tokio::time::Instant;
use url::Url;

use super::{BearerToken, Caller, CallerAuthenticator, CallerRequest, bearer::VerifiedTokens, illegal};

/// Accepts the tokens that a Backstage portal makes. Clones share keys and memory.
///
/// | `typ` | who | condition |
/// |---|---|---|
/// | `vnd.backstage.user` | a user | `iss` is the base URL, `aud` is `backstage` |
/// | `vnd.backstage.limited-user` | a user who may only read | – |
/// | `vnd.backstage.plugin` | a plugin, or a plugin on behalf of the user in `obo` | `aud` is one of our plugin IDs |
///
/// Users' tokens are signed by the keys at `<base URL>/.well-known/jwks.json`, a plugin's by those at
/// `<base URL of the plugin>/.backstage/auth/v1/jwks.json`, where that URL is the auth plugin's with the plugin's ID in place of
/// `auth`.
#[derive(Clone)]
pub struct BackstageCallers(Arc<Inner>);

struct Inner {
    issuer: Issuer,
    users: IdTokenVerifier,
    plugins: Plugins,
    plugin_ids: Vec<String>,
    clock: Arc<dyn Clock>,
    verified: VerifiedTokens,
}

impl BackstageCallers {
    /// Callers of the portal whose auth plugin has this base URL, `https://portal.example.com/api/auth`: the address that its
    /// tokens name in `iss`. `plugin_ids` are the names under which other plugins know us.
    ///
    /// # Errors
    /// `ConfigInvalid` if the URL is neither https nor http on loopback, or has no path.
    pub fn new<I: Into<String>>(
        base_url: &Url,
        plugin_ids: impl IntoIterator<Item = I>,
        transport: Transport,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let base_url = base_url.as_str().trim_end_matches('/');
        let unusable = || {
            Error::new(
                ErrorKind::ConfigInvalid,
                format!(
                    "the portal's base URL cannot be used: expected https (http on loopback) and a path, such as \
                     https://portal.example.com/api/auth, got {base_url}"
                ),
            )
        };
        let issuer = Issuer::new(base_url).map_err(|source| unusable().with_source(source))?;
        let keys =
            Url::parse(&format!("{base_url}{USER_KEYS}")).map_err(|source| unusable().with_source(source))?;
        let (siblings, _) = base_url.rsplit_once('/').ok_or_else(unusable)?;
        if siblings.ends_with('/') {
            return Err(unusable());
        }
        let client = IssuerClient::with_key_set(issuer.clone(), keys, transport.clone());
        Ok(Self(Arc::new(Inner {
            issuer,
            users: IdTokenVerifier::new(client, clock.clone()),
            plugins: Plugins {
                base_url: siblings.to_owned(),
                transport,
                clock: clock.clone(),
                known: Mutex::default(),
            },
            plugin_ids: plugin_ids.into_iter().map(Into::into).collect(),
            clock,
            verified: VerifiedTokens::default(),
        })))
    }
}

#[async_trait]
impl CallerAuthenticator for BackstageCallers {
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>> {
        let Some(token) = &request.bearer else {
            return Ok(None);
        };
        if let Some(caller) = self.0.verified.get(token, self.0.clock.now()) {
            return Ok(Some(caller));
        }
        let Some(unverified) = UnverifiedToken::read(token.expose()) else {
            return Ok(None);
        };
        let caller = match unverified.typ() {
            Some(USER) => self.0.user(token).await,
            Some(LIMITED_USER) => self
                .0
                .limited_user(&token.to_secret())
                .await
                .map(|(user, _)| Caller::new(user).limited()),
            Some(PLUGIN) => {
                self.0
                    .plugin(token, unverified.subject().unwrap_or_default())
                    .await
            }
            _ => return Ok(None),
        };
        let caller = caller.map_err(illegal)?;
        self.0.verified.put(token, &caller);
        Ok(Some(caller))
    }
}

impl Inner {
    async fn user(&self, token: &BearerToken<'_>) -> Result<Caller> {
        let verified = self.users.verify_typed(&token.to_secret(), USER).await?;
        if verified.text("iss")? != Some(self.issuer.as_str()) {
            return Err(rejected("another portal made it"));
        }
        if !verified.is_for(USER_AUDIENCE) {
            return Err(rejected("it is not for Backstage"));
        }
        self.principal(&verified).map(Caller::new)
    }

    /// The user of a limited token, and when it ends.
    async fn limited_user(&self, token: &Secret) -> Result<(Principal, Timestamp)> {
        let verified = self.users.verify_typed(token, LIMITED_USER).await?;
        Ok((self.principal(&verified)?, verified.expires_at()))
    }

    async fn plugin(&self, token: &BearerToken<'_>, plugin: &str) -> Result<Caller> {
        let verifier = self.plugins.verifier(plugin)?;
        let verified = verifier.verify_typed(&token.to_secret(), PLUGIN).await?;
        self.plugins.proven(plugin);
        if !self.plugin_ids.iter().any(|id| verified.is_for(id)) {
            return Err(rejected("it is for another plugin"));
        }
        let service = Principal::service(&format!("plugin:{plugin}")).with_expires_at(verified.expires_at());
        let Some(on_behalf_of) = verified.text("obo")? else {
            return Ok(Caller::new(service));
        };
        let (user, user_end) = self.limited_user(&Secret::new(on_behalf_of)).await?;
        let end = user_end.min(verified.expires_at());
        Ok(Caller::new(user.with_expires_at(end)).with_actor(service))
    }

    fn principal(&self, token: &TypedToken) -> Result<Principal> {
        let user = EntityRef::parse(token.subject().as_str())?;
        Ok(Principal::user(user)
            .with_verified(self.issuer.clone(), token.subject().clone())
            .with_expires_at(token.expires_at()))
    }
}

impl fmt::Debug for BackstageCallers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackstageCallers")
            .field("issuer", &self.0.issuer)
            .field("plugin_ids", &self.0.plugin_ids)
            .finish_non_exhaustive()
    }
}

/// Plugins by the ID that a token claims. An ID becomes a URL that we fetch, so what strangers can make us fetch is bounded:
/// [`MAX_UNPROVEN`] IDs per [`UNPROVEN_KEPT`] of which no token has verified yet.
struct Plugins {
    base_url: String,
    transport: Transport,
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<String, Plugin>>,
}

struct Plugin {
    verifier: IdTokenVerifier,
    since: Instant,
    proven: bool,
}

impl Plugins {
    fn verifier(&self, plugin: &str) -> Result<IdTokenVerifier> {
        let legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
        if plugin.is_empty() || plugin.len() > MAX_PLUGIN_ID || !plugin.bytes().all(legal) {
            return Err(rejected("its subject is no plugin ID"));
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = known.get(plugin) {
            return Ok(plugin.verifier.clone());
        }
        known.retain(|_, plugin| plugin.proven || plugin.since.elapsed() < UNPROVEN_KEPT);
        if known.values().filter(|plugin| !plugin.proven).count() >= MAX_UNPROVEN {
            return Err(Error::new(
                ErrorKind::RateLimited,
                "too many unknown plugins at once: try again in a minute",
            )
            .with_retry_after(UNPROVEN_KEPT));
        }
        let verifier = self.new_verifier(plugin)?;
        let entry = Plugin {
            verifier: verifier.clone(),
            since: Instant::now(),
            proven: false,
        };
        known.insert(plugin.to_owned(), entry);
        Ok(verifier)
    }

    fn new_verifier(&self, plugin: &str) -> Result<IdTokenVerifier> {
        let base_url = format!("{}/{plugin}", self.base_url);
        let issuer = Issuer::new(&base_url)?;
        let keys = Url::parse(&format!("{base_url}{PLUGIN_KEYS}"))
            .map_err(|source| rejected("its subject is no plugin ID").with_source(source))?;
        let client = IssuerClient::with_key_set(issuer, keys, self.transport.clone());
        Ok(IdTokenVerifier::new(client, self.clock.clone()))
    }

    fn proven(&self, plugin: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = known.get_mut(plugin) {
            plugin.proven = true;
        }
    }
}

fn rejected(reason: &'static str) -> Error {
    Error::new(ErrorKind::TokenRejected, reason)
}

// `@backstage/plugin-auth-node` tokenTypes, and the paths of auth-backend and backend-defaults.
const USER: &str = "vnd.backstage.user";
const LIMITED_USER: &str = "vnd.backstage.limited-user";
const PLUGIN: &str = "vnd.backstage.plugin";
const USER_AUDIENCE: &str = "backstage";
const USER_KEYS: &str = "/.well-known/jwks.json";
const PLUGIN_KEYS: &str = "/.backstage/auth/v1/jwks.json";

/// Longer than any plugin's ID.
const MAX_PLUGIN_ID: usize = 64;
/// A portal that restarts calls with a handful of plugins at once.
const MAX_UNPROVEN: usize = 16;
const UNPROVEN_KEPT: Duration = Duration::from_secs(60);
