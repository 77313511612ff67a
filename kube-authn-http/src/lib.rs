#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod caller;
mod cluster_auth;
mod clusters;
mod error;
mod health;
mod metrics;
mod proxy;
mod trace;

use axum::{Router, middleware};
use kube_authn_core::ClusterAccess;

pub use axum;

pub use self::{
    caller::{
        BackstageCallers, BearerToken, Caller, CallerAuthenticator, CallerRequest, Callers, HeaderCallers,
        OidcCallers, PrincipalMapping,
    },
    cluster_auth::{ClusterAuth, ClusterLogin, TokenExposure},
    clusters::clusters,
    error::{kubernetes_status, token_api_error},
    health::Health,
    metrics::{Metrics, count_purged, count_request, record_credential},
    proxy::{Hangup, ProxyState, proxy},
};

/// All routes of the family but the Kubernetes proxy's.
///
/// | route | for whom |
/// |---|---|
/// | `POST`, `DELETE /api/cluster-auth/tokens`, `GET /api/cluster-auth/status`, `GET /api/cluster-auth/token` | users |
/// | `GET /api/kubernetes/clusters` | every known caller |
/// | `GET /healthz`, `GET /readyz`, `GET /metrics` | anybody |
///
/// `cluster_auth` is `None` where no cluster takes logins, `metrics` where the program has a page of its own.
pub fn router(
    access: &ClusterAccess,
    callers: &Callers,
    cluster_auth: Option<ClusterAuth>,
    health: Health,
    metrics: Option<Metrics>,
) -> Router {
    let mut router = clusters(access.clone(), callers.clone());
    if let Some(cluster_auth) = cluster_auth {
        // As a service: the fallback of a nested router is lost as soon as a host nests ours in turn.
        router = router.nest_service("/api/cluster-auth", cluster_auth.router(callers.clone()));
    }
    router = router
        .layer(middleware::from_fn(trace::in_span))
        .merge(health.router());
    match metrics {
        Some(metrics) => router.merge(metrics.router()),
        None => router,
    }
}
