//! An axum service that lists pods as the user who asks.
//!
//! ```sh
//! export KUBE_AUTHN_KEY=$(cargo run -p kube-authn -- keygen)
//! cargo run -p kube-authn-examples --example embed -- app-config.yaml
//! curl -H 'X-Forwarded-User: alice' http://127.0.0.1:7007/clusters/openportal/namespaces/team-a/pods
//! ```
//!
//! The header stands for whatever tells your service who is calling; believe it only from your own gateway.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example"
)]

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use kube_authn::kube_authn_clusters::AppConfig;
use kube_authn_core::{ClusterAccess, EntityRef, Error, ErrorKind, Principal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let files: Vec<_> = std::env::args().skip(1).collect();
    let config = AppConfig::load(&files)?;

    let vault = kube_authn::vault(&config).await?;
    let access = kube_authn::cluster_access(&config, vault).await?;

    let router = Router::new()
        .route("/clusters/{cluster}/namespaces/{namespace}/pods", get(pods))
        .with_state(access);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7007").await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, router).await?)
}

async fn pods(
    State(access): State<ClusterAccess>,
    Path((cluster, namespace)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Vec<String>>, Refused> {
    let client = access.client(&caller(&headers)?, &cluster).await?;
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let pods = pods.list(&ListParams::default()).await?;
    Ok(Json(pods.iter().map(ResourceExt::name_any).collect()))
}

fn caller(headers: &HeaderMap) -> Result<Principal, Error> {
    // Two of them are one from the gateway and one from a client that would like to be somebody else.
    let mut users = headers.get_all("x-forwarded-user").iter();
    let user = match (users.next().map(|user| user.to_str()), users.next()) {
        (Some(Ok(user)), None) => user,
        _ => {
            return Err(Error::new(
                ErrorKind::CallerUnknown,
                "who are you? send one X-Forwarded-User",
            ));
        }
    };
    Ok(Principal::user(EntityRef::parse(&format!(
        "user:default/{user}"
    ))?))
}

/// Our own errors say their status; the API server's pass on.
struct Refused(StatusCode, String);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let status = StatusCode::from_u16(error.kind().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self(status, error.to_string())
    }
}

impl From<kube::Error> for Refused {
    fn from(error: kube::Error) -> Self {
        if let Some(ours) = Error::find(&error) {
            return ours.clone().into();
        }
        let status = match &error {
            kube::Error::Api(status) => StatusCode::from_u16(status.code).unwrap_or(StatusCode::BAD_GATEWAY),
            _ => StatusCode::BAD_GATEWAY,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}
