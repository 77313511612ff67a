//! A portal with routes, sessions and a user type of its own: token API and Kubernetes proxy move in under `/portal`.
//!
//! ```sh
//! cargo run -p kube-authn-examples --example portal_api -- app-config.yaml
//! curl -c jar -d alice http://127.0.0.1:7007/sign-in
//! curl -b jar -H 'Sec-Fetch-Site: same-origin' http://127.0.0.1:7007/portal/api/kubernetes/clusters/openportal/proxy/api
//! ```
//!
//! `/sign-in` stands for the portal's own sign-in: this one believes everybody.
#![allow(missing_docs, clippy::disallowed_methods, reason = "an example")]

use std::{collections::HashMap, sync::Arc};

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header::SET_COOKIE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kube_authn::kube_authn_clusters::AppConfig;
use kube_authn::kube_authn_http::{Caller, CallerAuthenticator, CallerRequest, Callers};
use kube_authn_core::{EntityRef, Error, Principal, async_trait};
use tokio::{net::TcpListener, sync::RwLock};

/// What the portal knows of a person: here, the name.
#[derive(Clone)]
struct Employee(String);

/// The portal's sessions, by the value of their cookie.
type Sessions = Arc<RwLock<HashMap<String, Employee>>>;

/// Tells the routers who is calling: whom the portal's own layer found.
#[derive(Debug)]
struct Employees;

#[async_trait]
impl CallerAuthenticator for Employees {
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>, Error> {
        let Some(Employee(name)) = request.extensions.get() else {
            return Ok(None);
        };
        let user = EntityRef::parse(&format!("user:default/{name}"))?;
        Ok(Some(Caller::new(Principal::user(user))))
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
    employee.map_or("sign in".into(), |Extension(Employee(name))| {
        format!("hello {name}")
    })
}

async fn sign_in(State(sessions): State<Sessions>, name: String) -> Result<impl IntoResponse, StatusCode> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let id = u128::from_be_bytes(id).to_string();
    let cookie = format!("portal={id}; HttpOnly; SameSite=Strict; Path=/");
    sessions.write().await.insert(id, Employee(name));
    Ok([(SET_COOKIE, cookie)])
}

/// Finds the employee behind the cookie, for the portal's own routes and for ours.
async fn find_session(State(sessions): State<Sessions>, mut request: Request, next: Next) -> Response {
    if let Some(id) = cookie(request.headers()).map(str::to_owned)
        && let Some(employee) = sessions.read().await.get(&id).cloned()
    {
        request.extensions_mut().insert(employee);
    }
    next.run(request).await
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name)?.to_str().ok();
    // Another site can make a browser send the cookie, even with a WebSocket: that names nobody.
    let ours = matches!(text("sec-fetch-site"), Some("same-origin" | "none"));
    let mut cookies = text("cookie").filter(|_| ours)?.split("; ");
    cookies.find_map(|cookie| cookie.strip_prefix("portal="))
}
