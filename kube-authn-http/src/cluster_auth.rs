//! The token API of `clusterAuth`: users bring tokens, ask for their state, and end their logins.
//!
//! Every answer is about the caller's own logins and nobody else's; parameters that name a user are not read.

mod answer;
mod limit;
mod login;
mod logout;
mod posted;

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    extract::{Request, State},
    middleware,
    response::Response,
    routing::{get, post},
};
use http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, CACHE_CONTROL},
    request::Parts,
};
use jiff::Timestamp;
use kube_authn_core::{
    AuditEvent, Clock, ClusterAccess, EntityRef, Error, ErrorKind, Login, LoginHandle, PrincipalName, Result,
    Secret, SystemClock, Token, TokenForCluster, TokenVault, usable,
};
use tracing::Instrument;

pub use self::login::ClusterLogin;
use self::{
    answer::{ClusterState, Deleted, ExposedToken, Refusal, Status, Stored, instant, no_route},
    limit::PostLimit,
    login::Logins,
    logout::end_logins,
    posted::PostedBody,
};
use crate::caller::{Caller, Callers};

/// The token API over a vault. Clones share everything.
///
/// | route | what |
/// |---|---|
/// | `POST /tokens` | verifies the posted tokens, binds them to the caller, stores them; ten at once, then one every 6 s |
/// | `GET /status` | whether the caller has usable logins |
/// | `GET /token` | the token that clusters get, where [`TokenExposure`] allows it |
/// | `DELETE /tokens` | ends the caller's logins |
#[derive(Clone)]
pub struct ClusterAuth(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    access: ClusterAccess,
    vault: TokenVault,
    logins: Arc<ArcSwap<Logins>>,
    exposure: TokenExposure,
    posts: Arc<PostLimit>,
    clock: Arc<dyn Clock>,
}

/// Who may read a stored token through the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenExposure {
    /// Nobody.
    #[default]
    Never,
    /// Services that call on behalf of a user.
    Service,
    /// The user too.
    User,
}

impl ClusterAuth {
    /// The API for these logins, kept in this vault; `access` gives the tokens that are made for a cluster's own audience.
    pub fn new(access: ClusterAccess, vault: TokenVault, logins: Vec<ClusterLogin>) -> Self {
        Self(Arc::new(Inner {
            access,
            vault,
            logins: Arc::new(ArcSwap::from_pointee(Logins(logins))),
            exposure: TokenExposure::Never,
            posts: Arc::default(),
            clock: Arc::new(SystemClock),
        }))
    }

    /// Sets who may read a stored token; nobody by default.
    pub fn with_exposure(self, exposure: TokenExposure) -> Self {
        self.edit(|inner| inner.exposure = exposure)
    }

    /// Takes the time from another clock.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        self.edit(|inner| inner.clock = clock)
    }

    /// Puts other logins in force, after the clusters were read anew.
    pub fn replace_logins(&self, logins: Vec<ClusterLogin>) {
        self.0.logins.store(Arc::new(Logins(logins)));
    }

    /// The four routes, for `nest_service` at `/api/cluster-auth`. No answer of them may be stored, refusals included.
    pub fn router(self, callers: Callers) -> Router {
        Router::new()
            .route("/tokens", post(post_tokens).delete(delete_tokens))
            .route("/status", get(get_status))
            .route("/token", get(get_token))
            .method_not_allowed_fallback(answer::method_not_allowed)
            .fallback(no_route)
            .with_state(Api { auth: self, callers })
            .layer(middleware::map_response(no_store))
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl fmt::Debug for ClusterAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuth")
            .field("vault", &self.0.vault)
            .field("exposure", &self.0.exposure)
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Api {
    auth: ClusterAuth,
    callers: Callers,
}

/// `POST /tokens`
async fn post_tokens(State(api): State<Api>, request: Request) -> Result<Json<Stored>, Refusal> {
    let (parts, body) = request.into_parts();
    let (caller, user) = api.full_user(&parts).await?;
    let logins = api.auth.0.logins.load_full();
    refuse_guest(&logins, &caller, &user)?;
    // Before it counts: a form on another site must not use up the posts of its visitor.
    posted::expect_json(&parts.headers)?;
    api.auth.0.posts.count(&user, api.auth.0.clock.now())?;
    let mut posted = PostedBody::read(&parts.headers, body).await?;
    posted.tokens.actor = caller.actor;
    let cluster = posted.cluster.as_deref();
    let login = logins.named_by(&posted.tokens.id_token, cluster)?;
    let verified = login
        .verifier
        .verify(&caller.principal, posted.tokens)
        .await
        .map_err(|error| named(error, cluster))?;
    let expires_at = verified.login.expires_at;
    api.auth.0.vault.log_in(&verified.key, verified.login).await?;
    let only = || Some(login.clusters.as_slice()).filter(|clusters| clusters.len() == 1);
    Ok(Json(Stored {
        status: "ok",
        message: "Tokens received and stored successfully",
        user: user.to_string(),
        expires_at: instant(expires_at),
        cluster: posted
            .cluster
            .or_else(|| only().and_then(|clusters| clusters.first().cloned())),
    }))
}

/// `GET /status`
async fn get_status(State(api): State<Api>, request: Request) -> Result<Json<Status>, Refusal> {
    let (parts, _) = request.into_parts();
    let (caller, user) = api.user(&parts).await.map_err(Refusal::of_status)?;
    let logins = api.auth.0.logins.load_full();
    let now = api.auth.0.clock.now();
    let mut clusters = Vec::new();
    for (login, names) in logins.selected(cluster_of(&parts)?.as_deref())? {
        let stored = api.find(&caller, &user, login).await?;
        clusters.extend(names.iter().map(|name| state(name, login, stored.as_ref(), now)));
    }
    let earliest = clusters.iter().filter_map(|cluster| cluster.end).min();
    Ok(Json(Status {
        authenticated: !clusters.is_empty() && clusters.iter().all(|cluster| cluster.authenticated),
        expires_at: earliest.map(instant),
        user: user.to_string(),
        clusters,
    }))
}

fn state(name: &str, login: &ClusterLogin, stored: Option<&Login>, now: Timestamp) -> ClusterState {
    let end = stored.map(|stored| stored.metadata.expires_at);
    ClusterState {
        name: name.to_owned(),
        issuer: login.verifier.login().issuer.to_string(),
        authenticated: stored.is_some_and(|stored| token_of(login, stored, now).is_some()),
        end,
        expires_at: end.map(instant),
        refreshable: stored.is_some_and(|stored| stored.metadata.refreshable),
        refreshing: stored
            .and_then(|stored| stored.metadata.refreshing.as_ref())
            .is_some_and(|mark| now < mark.until),
        subject: stored.map(|stored| stored.metadata.subject.to_string()),
    }
}

/// `GET /token`
async fn get_token(State(api): State<Api>, request: Request) -> Result<Json<ExposedToken>, Refusal> {
    let (parts, _) = request.into_parts();
    let (caller, user) = api.full_user(&parts).await?;
    let allowed = match api.auth.0.exposure {
        TokenExposure::Never => false,
        TokenExposure::Service => caller.actor.is_some(),
        TokenExposure::User => true,
    };
    if !allowed {
        let text =
            "stored tokens are not handed out here: use the Kubernetes proxy, or set clusterAuth.exposeToken";
        return Err(Error::new(ErrorKind::Refused, text)
            .with_code("token_not_exposed")
            .into());
    }
    let logins = api.auth.0.logins.load_full();
    let (login, exchanged_for) = logins.token_of(cluster_of(&parts)?.as_deref())?;
    let stored = api.find(&caller, &user, login).await?.ok_or_else(|| {
        Error::new(
            ErrorKind::LoginRequired,
            "No cluster tokens found. Please authenticate first.",
        )
    })?;
    let token = match exchanged_for {
        // The login's own is not what the cluster gets, and worth more.
        Some(cluster) => api.exchanged(&caller, &cluster, &stored).await?,
        None => token_of(login, &stored, api.auth.0.clock.now())
            .cloned()
            .ok_or_else(expired)?,
    };
    let is_access_token = login.verifier.login().token_for_cluster == TokenForCluster::AccessToken;
    let exposed = ExposedToken::new(&token, is_access_token)?;
    AuditEvent::TokenExposed {
        principal: &user,
        actor: caller.actor.as_ref(),
        issuer: &stored.key.issuer,
        client_id: &stored.key.client_id,
        expires_at: token.expires_at,
    }
    .emit();
    Ok(Json(exposed))
}

/// `DELETE /tokens`
async fn delete_tokens(State(api): State<Api>, request: Request) -> Result<Json<Deleted>, Refusal> {
    let (parts, _) = request.into_parts();
    let (caller, user) = api.full_user(&parts).await?;
    let cluster = cluster_of(&parts)?;
    let logins = api.auth.0.logins.load_full();
    if let Some(cluster) = &cluster {
        logins.of_cluster(cluster)?;
    }
    // A caller who hangs up does not leave half of the logins behind.
    let vault = api.auth.0.vault.clone();
    let ending = async move {
        let actor = caller.actor.as_ref();
        end_logins(&vault, &user, actor, &logins, cluster.as_deref()).await
    };
    let ended = tokio::spawn(ending.in_current_span())
        .await
        .map_err(|source| Error::new(ErrorKind::Unexpected, "the logout broke off").with_source(source))??;
    let idempotent = parameter(&parts, "idempotent")?.as_deref() == Some("true");
    if ended.count == 0 && !idempotent {
        return Err(Refusal::no_tokens_to_delete());
    }
    Ok(Json(Deleted {
        status: "ok",
        message: "Tokens deleted successfully",
        revoked: ended.revoked,
        clusters: ended.clusters.into_iter().collect(),
    }))
}

impl Api {
    /// The calling user.
    async fn user(&self, parts: &Parts) -> Result<(Caller, EntityRef)> {
        let caller = self.callers.authenticate(parts).await?;
        let refused = match caller.principal.name() {
            PrincipalName::User(user) => {
                let user = user.clone();
                return Ok((caller, user));
            }
            PrincipalName::Service(_) => Error::new(ErrorKind::Refused, NO_SERVICES),
            _ => Error::new(ErrorKind::CallerUnknown, "Missing credentials"),
        };
        Err(refused)
    }

    /// The calling user, whose credential may do more than read.
    async fn full_user(&self, parts: &Parts) -> Result<(Caller, EntityRef)> {
        let (caller, user) = self.user(parts).await?;
        match caller.limited {
            true => Err(Error::new(ErrorKind::CallerUnknown, "Illegal limited user token")),
            false => Ok((caller, user)),
        }
    }

    /// The user's login as a provider would find it; one whose row is damaged counts as none, and the vault has said so.
    async fn find(&self, caller: &Caller, user: &EntityRef, login: &ClusterLogin) -> Result<Option<Login>> {
        let config = login.verifier.login();
        let found = self
            .auth
            .0
            .vault
            .find(user, &config.issuer, config.client_id.as_ref())
            .await;
        match found {
            Err(error) if error.kind() == ErrorKind::RecordDamaged => Ok(None),
            found => Ok(found?.filter(|login| config.is_own(&caller.principal, login))),
        }
    }

    /// The token that the request path would send to this cluster, if it was made from this login: by now the cluster may
    /// be reached in another way, or its user have logged in anew.
    async fn exchanged(&self, caller: &Caller, cluster: &str, stored: &Login) -> Result<Token> {
        let access = &self.auth.0.access;
        let request = access.request(&caller.principal, cluster)?;
        let credential = access.credential(&request).await?;
        let login = credential.login().map(LoginHandle::id);
        if login != Some(stored.handle.id()) {
            let text = "the cluster gets no token of this login any more: ask again";
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        let mut headers = HeaderMap::new();
        credential.apply(&mut headers);
        let line = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let secret = line
            .and_then(|line| line.strip_prefix(b"Bearer "))
            .map(Secret::new);
        secret
            .zip(credential.expires_at())
            .map(|(secret, expires_at)| Token { secret, expires_at })
            .ok_or_else(|| Error::new(ErrorKind::Unexpected, "the cluster gets no token that ends"))
    }
}

/// The token that clusters get, if it is worth sending: the rule of the strategy.
fn token_of<'a>(login: &ClusterLogin, stored: &'a Login, now: Timestamp) -> Option<&'a Token> {
    let token = login.verifier.login().token_for_cluster(&stored.tokens)?;
    (!stored.handle.is_ended() && usable(token.expires_at, now)).then_some(token)
}

fn expired() -> Error {
    Error::new(
        ErrorKind::TokenExpired,
        "Cluster token has expired. Please re-authenticate.",
    )
}

fn refuse_guest(logins: &Logins, caller: &Caller, user: &EntityRef) -> Result<()> {
    if !logins.is_guest(user) {
        return Ok(());
    }
    AuditEvent::LoginRefused {
        principal: user,
        actor: caller.actor.as_ref(),
        issuer: None,
        reason: GUEST,
    }
    .emit();
    let text = "Guest users cannot authenticate with clusters. Please sign in with an account of your own.";
    Err(Error::new(ErrorKind::Refused, text).with_code(GUEST))
}

fn named(error: Error, cluster: Option<&str>) -> Error {
    match cluster {
        Some(cluster) => error.with_cluster(cluster),
        None => error,
    }
}

fn cluster_of(parts: &Parts) -> Result<Option<String>> {
    parameter(parts, "cluster")
}

/// The query's value of this name.
fn parameter(parts: &Parts, name: &str) -> Result<Option<String>> {
    let query = parts.uri.query().unwrap_or_default();
    let mut values = url::form_urlencoded::parse(query.as_bytes())
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned());
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(Error::new(
            ErrorKind::RequestInvalid,
            format!("the query names {name} twice"),
        )),
    }
}

async fn no_store(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Backstage's own text.
const NO_SERVICES: &str = "This endpoint does not allow 'service' credentials";
const GUEST: &str = "guest";
