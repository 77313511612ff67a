//! A service with a loopback issuer behind it, asked without a socket.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file uses a part of it"
)]

#[path = "../../../kube-authn-oidc/tests/support/mod.rs"]
mod issuer;

use std::{collections::HashMap, sync::Arc};

use axum::{Router, body::Body};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
pub use issuer::{
    Answer, FakeIssuer, NOW, Signer, client_id, clock, encode, merge, provider, transport, vault,
};
use kube_authn_core::{
    CachingProvider, ClientId, ClusterAccess, ClusterDetails, Clusters, EntityRef, Issuer, LoginConfig,
    ManualClock, Principal, ProviderRegistry, Result, Subject, TokenVault, UpstreamPool, VerifiedEmail,
    async_trait,
};
use kube_authn_http::{
    Caller, CallerAuthenticator, CallerRequest, Callers, ClusterAuth, ClusterLogin, Health, TokenExposure,
    router,
};
use kube_authn_oidc::LoginVerifier;
use kube_authn_providers::ClusterAuthProvider;
use serde_json::{Value, json};
use tower::ServiceExt;

/// Believes whoever says who he is: `Bearer alice`, `Bearer limited:alice`, `Bearer plugin-for:alice`, `Bearer plugin`.
#[derive(Debug)]
pub struct Believer;

#[async_trait]
impl CallerAuthenticator for Believer {
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>> {
        let Some(token) = &request.bearer else {
            return Ok(None);
        };
        let text = std::str::from_utf8(token.expose()).expect("ASCII");
        let plugin = Principal::service("plugin:catalog");
        let verified = |principal: Principal| match request.headers.get(VERIFIED) {
            Some(line) => {
                let (issuer, subject) = line.to_str().expect("ASCII").split_once(' ').expect("two");
                let issuer = Issuer::new(issuer).expect("an issuer");
                principal.with_verified(issuer, Subject::new(subject).expect("a subject"))
            }
            None => principal,
        };
        Ok(Some(match text.split_once(':') {
            Some(("limited", name)) => Caller::new(user(name)).limited(),
            Some(("plugin-for", name)) => Caller::new(user(name)).with_actor(plugin),
            _ if text == "plugin" => Caller::new(plugin),
            _ if text == "nobody" => Caller::new(Principal::anonymous()),
            _ => Caller::new(verified(user(text))),
        }))
    }
}

/// A cluster that gets tokens for an audience of its own, which has its name.
pub const NARROW: &str = "narrow";

/// Issuer and subject that a token of the caller's own proved.
pub const VERIFIED: &str = "test-verified";

pub fn user(name: &str) -> Principal {
    let name = match name.contains('/') {
        true => format!("user:{name}"),
        false => format!("user:default/{name}"),
    };
    Principal::user(EntityRef::parse(&name).expect("a reference"))
}

/// The service under test.
pub struct Service {
    pub issuer: FakeIssuer,
    pub signer: Signer,
    pub vault: TokenVault,
    pub access: ClusterAccess,
    pub router: Router,
}

impl Service {
    pub async fn start() -> Self {
        Self::with(TokenExposure::Never, clock(), &[("kubernetes", &["openportal"])]).await
    }

    /// With these logins, by client.
    pub async fn with(exposure: TokenExposure, clock: ManualClock, logins: &[(&str, &[&str])]) -> Self {
        Self::over(vault(), exposure, clock, logins).await
    }

    /// With these logins, in this vault.
    pub async fn over(
        vault: TokenVault,
        exposure: TokenExposure,
        clock: ManualClock,
        logins: &[(&str, &[&str])],
    ) -> Self {
        let signer = Signer::p256("k1");
        let issuer = FakeIssuer::start(&[&signer]).await;
        let mut by_cluster = HashMap::new();
        let mut cluster_logins = Vec::new();
        for (client, clusters) in logins {
            let mut login =
                LoginConfig::new(issuer.issuer()).with_client_id(ClientId::new(client).expect("a client"));
            login.guests = ["user:default/guest", "user:development/guest"]
                .map(|guest| EntityRef::parse(guest).expect("a reference"))
                .to_vec();
            let narrow = ClientId::new(NARROW).expect("an audience");
            let verifier = LoginVerifier::new(
                login.clone(),
                issuer.client(),
                Arc::new(clock.clone()),
                vault.clone(),
            );
            let mut cluster_login = ClusterLogin::new(verifier, clusters.iter().copied());
            for cluster in *clusters {
                let mut login = login.clone();
                if *cluster == NARROW {
                    login.audience = Some(narrow.clone());
                    cluster_login = cluster_login.with_audience(NARROW, narrow.clone());
                }
                by_cluster.insert((*cluster).to_owned(), login);
            }
            cluster_logins.push(cluster_login);
        }
        let verifiers = cluster_logins.iter().map(|login| login.verifier.clone());
        let access = access(&vault, by_cluster, verifiers.collect(), &clock);
        let api = ClusterAuth::new(access.clone(), vault.clone(), cluster_logins)
            .with_exposure(exposure)
            .with_clock(Arc::new(clock));
        let callers = Callers::new().with(Believer);
        let health = Health::new().with_vault(vault.clone());
        let router = router(&access, &callers, Some(api), health, None);
        Self {
            issuer,
            signer,
            vault,
            access,
            router,
        }
    }

    pub async fn send(&self, request: Request<Body>) -> Answered {
        Answered::of(self.router.clone().oneshot(request).await.expect("infallible")).await
    }

    pub async fn get(&self, caller: &str, path: &str) -> Answered {
        self.send(
            as_caller(caller, "GET", path)
                .body(Body::empty())
                .expect("a request"),
        )
        .await
    }

    pub async fn delete(&self, caller: &str, path: &str) -> Answered {
        self.send(
            as_caller(caller, "DELETE", path)
                .body(Body::empty())
                .expect("a request"),
        )
        .await
    }

    pub async fn post(&self, caller: &str, body: &Value) -> Answered {
        let request = as_caller(caller, "POST", "/api/cluster-auth/tokens")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()));
        self.send(request.expect("a request")).await
    }

    /// A body for `POST /tokens` with an ID token of this subject; `changes` are made to its claims.
    pub fn tokens(&self, subject: &str, changes: Value) -> Value {
        let mut claims = self.issuer.claims(json!({ "sub": subject }));
        merge(&mut claims, changes);
        let id_token = self.signer.token(&claims);
        json!({
            "access_token": format!("canary-access-{subject}"),
            "id_token": id_token.expose_str().expect("text"),
            "refresh_token": format!("canary-refresh-{subject}"),
            "token_type": "Bearer",
            "expires_in": 3600,
            "scope": "openid",
        })
    }
}

fn access(
    vault: &TokenVault,
    logins: HashMap<String, LoginConfig>,
    verifiers: Vec<LoginVerifier>,
    clock: &ManualClock,
) -> ClusterAccess {
    let clusters = logins
        .keys()
        .map(|name| {
            ClusterDetails::builder(name.as_str(), "https://127.0.0.1:1/canary-path")
                .title("Open Portal")
                .auth_provider("clusterAuth")
                .build()
                .expect("a cluster")
        })
        .collect();
    let strategy = ClusterAuthProvider::new(vault.clone(), logins, None)
        .with_clock(clock.clone())
        .with_issuers(verifiers)
        .expect("a strategy");
    let registry = ProviderRegistry::new().with(strategy);
    let cache = CachingProvider::with_clock_and_capacity(registry, Arc::new(clock.clone()), 100);
    ClusterAccess::new(Clusters::new(clusters), cache, UpstreamPool::new(provider()))
        .with_clock(Arc::new(clock.clone()))
}

pub fn as_caller(caller: &str, method: &str, path: &str) -> http::request::Builder {
    let request = Request::builder().method(method).uri(path);
    match caller.is_empty() {
        true => request,
        false => request.header(header::AUTHORIZATION, format!("Bearer {caller}")),
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answered {
    pub async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).expect("text"),
        }
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON")
    }

    /// Status, `error`, `message` and `code` of a refusal.
    #[track_caller]
    pub fn refusal(&self) -> (u16, String, String, String) {
        let body = self.json();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("error"), text("message"), text("code"))
    }
}

/// A refusal as a test expects it.
pub fn refusal(status: u16, error: &str, message: &str, code: &str) -> (u16, String, String, String) {
    (status, error.to_owned(), message.to_owned(), code.to_owned())
}
