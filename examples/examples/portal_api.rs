//! A portal with routes, sessions and a user type of its own: token API and Kubernetes proxy move in under `/portal`.
//!
//! ```sh
//! cargo run -p kube-authn-examples --example portal_api -- app-config.yaml
//! curl -c jar -d alice http://127.0.0.1:7007/sign-in
//! curl -b jar http://127.0.0.1:7007/portal/api/kubernetes/clusters/openportal/proxy/api
//! ```
//!
//! `/sign-in` stands for a real one: it believes everybody. Browsers take a `__Host-` cookie from this very host alone, over
//! https; on loopback curl and most of them do without.
#![allow(missing_docs, clippy::disallowed_methods, reason = "an example")]

use std::{collections::HashMap, sync::Arc};

use axum::http::{StatusCode, header, request::Parts};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router, extract::Request, extract::State};
use kube_authn::kube_authn_clusters::AppConfig;
use kube_authn::kube_authn_http::{Caller, CallerAuthenticator, CallerRequest, Callers};
use kube_authn_core::jiff::{SignedDuration, Timestamp};
use kube_authn_core::{EntityRef, Error, Principal, VerifiedEmail, async_trait};
use tokio::{net::TcpListener, sync::RwLock};

/// What the portal knows of a person, and until when.
#[derive(Clone)]
struct Employee(String, VerifiedEmail, Timestamp);

/// The portal's sessions, by the value of their cookie.
type Sessions = Arc<RwLock<HashMap<String, Employee>>>;

/// Tells the routers who is calling: whom the portal's own layer found.
#[derive(Debug)]
struct Employees;

#[async_trait]
impl CallerAuthenticator for Employees {
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>, Error> {
        let employee = request.extensions.get::<Employee>().cloned();
        // Another site can make a browser send the cookie, even with a WebSocket: that names nobody.
        let Some(Employee(name, email, until)) = employee.filter(|_| !request.is_cross_site()) else {
            return Ok(None);
        };
        let user = Principal::user(EntityRef::parse(&format!("user:default/{name}"))?);
        // The e-mail, or `with_verified`, shows whose tokens a login brings; streams end with the session.
        Ok(Some(Caller::new(user.with_email(email).with_expires_at(until))))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let files: Vec<_> = std::env::args().skip(1).collect();
    let router = portal(&AppConfig::load(&files)?).await?;
    Ok(axum::serve(TcpListener::bind("127.0.0.1:7007").await?, router).await?)
}

pub(crate) async fn portal(config: &AppConfig) -> Result<Router, Error> {
    let service = kube_authn::service_for(config, Callers::new().with(Employees), false).await?;
    let sessions = Sessions::default();
    Ok(Router::new()
        .route("/", get(home))
        .route("/sign-in", post(sign_in))
        .with_state(sessions.clone())
        .nest("/portal", service.router)
        .layer(middleware::from_fn_with_state(sessions, find_session)))
}

async fn home(employee: Option<Extension<Employee>>) -> String {
    employee.map_or("sign in".into(), |employee| format!("hello {}", employee.0.0))
}

async fn sign_in(all: State<Sessions>, head: Parts, name: String) -> Result<impl IntoResponse, StatusCode> {
    let mut id = [0; 16];
    let ours = CallerRequest::new(&head).is_ok_and(|request| !request.is_cross_site());
    if !ours || getrandom::fill(&mut id).is_err() {
        return Err(StatusCode::FORBIDDEN);
    }
    let id = u128::from_be_bytes(id).to_string();
    let email = VerifiedEmail::new(format!("{name}@example.com")).map_err(|_| StatusCode::BAD_REQUEST)?;
    let until = Timestamp::now() + SignedDuration::from_hours(8);
    let cookie = format!("__Host-portal={id}; Secure; HttpOnly; SameSite=Strict; Path=/; Max-Age=28800");
    all.write().await.insert(id, Employee(name, email, until));
    Ok([(header::SET_COOKIE, cookie)])
}

/// Finds the employee behind the cookie, for the portal's own routes and for ours.
async fn find_session(State(all): State<Sessions>, mut request: Request, next: Next) -> Response {
    let line = request.headers().get(header::COOKIE);
    let mut cookies = line.map_or("", |line| line.to_str().unwrap_or("")).split("; ");
    if let Some(id) = cookies.find_map(|cookie| cookie.strip_prefix("__Host-portal="))
        && let Some(employee) = all.read().await.get(id).cloned()
        && Timestamp::now() < employee.2
    {
        request.extensions_mut().insert(employee);
    }
    next.run(request).await
}
