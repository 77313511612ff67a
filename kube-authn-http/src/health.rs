//! `/healthz` and `/readyz`: whether the process lives, and whether requests should be sent to it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::future::{BoxFuture, join_all};
use http::{HeaderValue, StatusCode, header::CACHE_CONTROL};
use kube_authn_core::{ClusterAccess, EntityRef, Error, ErrorKind, Result, TokenVault};
use kube_authn_oidc::IssuerClient;
use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

/// What readiness depends on, and what it only mentions.
///
/// Without its store a process serves nobody who is not in its cache: `/readyz` answers 503. An issuer or a cluster that does
/// not answer is no reason to take the process out: it stands under `degraded`, with status 200. A report is at most
/// 5 s old however many ask and hang up, and each check has 2 s. Why a check failed stands in the log alone.
#[derive(Default)]
pub struct Health {
    checks: Vec<Check>,
    clusters: Option<ClusterAccess>,
}

struct Check {
    name: String,
    required: bool,
    run: Box<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>,
}

impl Health {
    /// Ready as soon as it answers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready while this check fails.
    pub fn with_required<F>(
        self,
        name: impl Into<String>,
        run: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.with_check(name.into(), true, run)
    }

    /// Degraded while this check fails.
    pub fn with_reported<F>(
        self,
        name: impl Into<String>,
        run: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.with_check(name.into(), false, run)
    }

    /// Not ready while the vault's store does not answer.
    pub fn with_vault(self, vault: TokenVault) -> Self {
        self.with_required("store", move || {
            let vault = vault.clone();
            async move { vault.list(&EntityRef::parse(NOBODY)?).await.map(drop) }
        })
    }

    /// Degraded while the issuer's metadata cannot be had.
    pub fn with_issuer(self, issuer: IssuerClient) -> Self {
        let name = format!("issuer {}", issuer.issuer());
        self.with_reported(name, move || {
            let issuer = issuer.clone();
            async move { issuer.metadata().await.map(drop) }
        })
    }

    /// Degraded while a cluster's API server does not answer; the clusters in force are asked.
    pub fn with_clusters(mut self, access: ClusterAccess) -> Self {
        self.clusters = Some(access);
        self
    }

    /// The routes `/healthz` and `/readyz`, for anybody.
    pub fn router(self) -> Router {
        Router::new()
            .route(
                "/healthz",
                get(async || no_store(Json(Alive { status: "ok" }).into_response())),
            )
            .route("/readyz", get(ready))
            .with_state(Arc::new(Readiness {
                health: self,
                last: Arc::default(),
            }))
    }

    fn with_check<F>(
        mut self,
        name: String,
        required: bool,
        run: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let run = Box::new(move || -> BoxFuture<'static, Result<()>> { Box::pin(run()) });
        self.checks.push(Check { name, required, run });
        self
    }

    async fn check(&self, before: Option<&Report>) -> Report {
        let checks = self.checks.iter().map(|check| async move {
            let healthy = healthy(before, &check.name, (check.run)()).await;
            (check.name.clone(), check.required, healthy)
        });
        let set = self.clusters.as_ref().map(|access| access.clusters().current());
        let clusters = self.clusters.iter().zip(&set).flat_map(|(access, set)| {
            set.iter().map(move |cluster| async move {
                let name = format!("cluster {}", cluster.name());
                let healthy = healthy(before, &name, access.probe(cluster)).await;
                (name, false, healthy)
            })
        });
        let (checks, clusters) = tokio::join!(join_all(checks), join_all(clusters));
        let mut report = Report {
            status: "ok",
            checks: BTreeMap::new(),
            degraded: Vec::new(),
        };
        for (name, required, healthy) in checks.into_iter().chain(clusters) {
            match (required, healthy) {
                (true, _) => {
                    report.checks.insert(name, if healthy { "ok" } else { "failed" });
                }
                (false, true) => {}
                (false, false) => report.degraded.push(name),
            }
        }
        if report.checks.values().any(|state| *state != "ok") {
            report.status = UNAVAILABLE;
        } else if !report.degraded.is_empty() {
            report.status = "degraded";
        }
        report
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.checks.iter().map(|check| &check.name);
        f.debug_list().entries(names).finish()
    }
}

struct Readiness {
    health: Health,
    /// Locked while somebody checks.
    last: Arc<Mutex<Option<(Instant, Report)>>>,
}

impl Readiness {
    async fn report(self: Arc<Self>) -> Report {
        let mut last = self.last.clone().lock_owned().await;
        if let Some((at, report)) = &*last
            && at.elapsed() < REPORT_KEPT
        {
            return report.clone();
        }
        // A task of its own: what callers who hang up began would be lost, and begun anew by each of them.
        let checked = tokio::spawn(async move {
            let before = last.as_ref().map(|(_, report)| report);
            let report = self.health.check(before).await;
            *last = Some((Instant::now(), report.clone()));
            report
        });
        checked.await.unwrap_or_else(|_| Report {
            status: UNAVAILABLE,
            checks: BTreeMap::new(),
            degraded: Vec::new(),
        })
    }
}

async fn ready(State(readiness): State<Arc<Readiness>>) -> Response {
    let report = readiness.report().await;
    let status = match report.status {
        UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    no_store((status, Json(report)).into_response())
}

/// Runs a check; the log tells when its outcome is another than before, and not how long an outage lasts.
async fn healthy(before: Option<&Report>, name: &str, check: impl Future<Output = Result<()>>) -> bool {
    let outcome = timeout(CHECK_PATIENCE, check)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "it takes too long")));
    match (
        &outcome,
        before.is_some_and(|before| before.names_as_failed(name)),
    ) {
        (Err(error), false) => tracing::warn!(check = name, %error, "a readiness check failed"),
        // As loud as the failure: who reads of it wants to read that it is over.
        (Ok(()), true) => tracing::warn!(check = name, "a readiness check holds again"),
        (Err(_), true) | (Ok(()), false) => {}
    }
    outcome.is_ok()
}

fn no_store(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[derive(Serialize)]
struct Alive {
    status: &'static str,
}

#[derive(Clone, Serialize)]
struct Report {
    status: &'static str,
    checks: BTreeMap<String, &'static str>,
    degraded: Vec<String>,
}

impl Report {
    fn names_as_failed(&self, check: &str) -> bool {
        self.checks.get(check).is_some_and(|state| *state != "ok")
            || self.degraded.iter().any(|name| name == check)
    }
}

const UNAVAILABLE: &str = "unavailable";
/// Nobody signs in under this name.
const NOBODY: &str = "probe:kube-authn/readiness";
/// Kubelet asks every 10 s by default.
const REPORT_KEPT: Duration = Duration::from_secs(5);
/// Kubelet waits 1 s by default and then asks again, when this report is at hand.
const CHECK_PATIENCE: Duration = Duration::from_secs(2);
