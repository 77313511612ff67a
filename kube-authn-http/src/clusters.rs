//! `GET /clusters`: what a front end may know of each cluster, in Backstage's shape.

use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, header::CACHE_CONTROL, request::Parts};
use kube_authn_core::{ClusterAccess, ClusterDetails, KubernetesAuthProvider, Metadata, Result};
use serde::Serialize;

use crate::{caller::Callers, error::backstage_refusal};

/// The route `/api/kubernetes/clusters`, for any caller who is known.
///
/// Each item holds `name`, `title`, `dashboardUrl`, `authProvider`, `oidcTokenProvider` and `auth` (what the strategy calls
/// public), as far as they are configured; never an address, a CA or a token.
pub fn clusters(access: ClusterAccess, callers: Callers) -> Router {
    Router::new()
        .route("/api/kubernetes/clusters", get(list))
        .with_state(ListState { access, callers })
}

#[derive(Clone)]
struct ListState {
    access: ClusterAccess,
    callers: Callers,
}

async fn list(State(state): State<ListState>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    match items(&state, &parts).await {
        Ok(items) => {
            let mut response = Json(Items { items }).into_response();
            response
                .headers_mut()
                .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => backstage_refusal(&error, &parts.method, parts.uri.path()),
    }
}

async fn items(state: &ListState, parts: &Parts) -> Result<Vec<Item>> {
    state.callers.authenticate(parts).await?;
    let strategies = state.access.credentials().provider();
    let clusters = state.access.clusters().current();
    Ok(clusters
        .iter()
        .map(|cluster| Item::of(cluster, strategies.public_metadata(cluster)))
        .collect())
}

#[derive(Serialize)]
struct Items {
    items: Vec<Item>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dashboard_url: Option<String>,
    auth_provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    oidc_token_provider: Option<String>,
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    auth: Metadata,
}

impl Item {
    fn of(cluster: &ClusterDetails, auth: Metadata) -> Self {
        Self {
            name: cluster.name().to_string(),
            title: cluster.title().map(str::to_owned),
            dashboard_url: cluster.dashboard().url.clone(),
            auth_provider: cluster.auth_provider().to_owned(),
            oidc_token_provider: cluster
                .auth_metadata()
                .get(OIDC_TOKEN_PROVIDER)
                .map(str::to_owned),
            auth,
        }
    }
}

/// `ANNOTATION_KUBERNETES_OIDC_TOKEN_PROVIDER` of `@backstage/plugin-kubernetes-common`.
const OIDC_TOKEN_PROVIDER: &str = "kubernetes.io/oidc-token-provider";
