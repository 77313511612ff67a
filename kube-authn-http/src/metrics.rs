//! Measurements through the `metrics` facade, and `/metrics` for Prometheus. No label holds a user's name or a token.
//!
//! | name | kind | labels |
//! |---|---|---|
//! | `kube_authn_requests_total` | counter | `cluster`, `strategy`, `outcome` |
//! | `kube_authn_credential_seconds` | histogram | `cluster`, `strategy` |
//! | `kube_authn_logins_purged_total` | counter | – |
//! | `kube_authn_logins` | gauge | `state`: `usable`, `refreshable`, `ended` |
//! | `kube_authn_upstream_connections` | gauge | – |
//! | `kube_authn_upstream_connections_opened_total` | counter | – |

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use kube_authn_core::{ClusterAccess, ClusterDetails, Error, ErrorKind, Result, TokenVault};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{sync::Mutex, time::Instant};

/// Counts one request to a cluster; `None` if it was refused before a cluster was known. `outcome` is one of few words: the
/// class of the API server's status (`2xx`), or the code of a refusal of ours (`no_tokens`).
pub fn count_request(cluster: Option<&ClusterDetails>, outcome: &'static str) {
    let (name, strategy) = labels(cluster);
    counter!(REQUESTS, "cluster" => name, "strategy" => strategy, "outcome" => outcome).increment(1);
}

/// Records how long a caller waited for a credential that was not in the cache.
pub fn record_credential(cluster: &ClusterDetails, took: Duration) {
    let (name, strategy) = labels(Some(cluster));
    histogram!(CREDENTIAL_SECONDS, "cluster" => name, "strategy" => strategy).record(took);
}

/// Counts logins that were deleted because they ended long ago.
pub fn count_purged(logins: u64) {
    counter!(PURGED).increment(logins);
}

/// Only names that the configuration holds: a caller cannot make up labels.
fn labels(cluster: Option<&ClusterDetails>) -> (String, String) {
    cluster.map_or_else(Default::default, |cluster| {
        (cluster.name().to_string(), cluster.auth_provider().to_owned())
    })
}

/// What `/metrics` shows. Clones share it.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    recorder: PrometheusHandle,
    access: Option<ClusterAccess>,
    vault: Option<TokenVault>,
    counted: Mutex<Option<Instant>>,
}

impl Metrics {
    /// Makes this the process's recorder of the `metrics` facade. A program that installs another one serves its own page
    /// and has the same measurements there. Must be called in a tokio runtime: a task drains the histograms.
    ///
    /// # Errors
    /// `ConfigInvalid` if the process has a recorder already.
    pub fn install(access: Option<ClusterAccess>, vault: Option<TokenVault>) -> Result<Self> {
        let recorder = builder()?.install_recorder().map_err(|source| {
            Error::new(
                ErrorKind::ConfigInvalid,
                "cannot record metrics: the process has a recorder already",
            )
            .with_source(source)
        })?;
        let upkeep = recorder.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP_EVERY).await;
                upkeep.run_upkeep();
            }
        });
        describe();
        Ok(Self::over(recorder, access, vault))
    }

    fn over(recorder: PrometheusHandle, access: Option<ClusterAccess>, vault: Option<TokenVault>) -> Self {
        Self(Arc::new(Inner {
            recorder,
            access,
            vault,
            counted: Mutex::default(),
        }))
    }

    /// The route `/metrics`, for anybody who reaches it: a gateway in front should not pass it on.
    pub fn router(self) -> Router {
        Router::new().route("/metrics", get(page)).with_state(self)
    }

    /// Brings what is not counted as it happens up to date.
    async fn observe(&self) {
        if let Some(access) = &self.0.access {
            let connections = access.connections();
            #[allow(clippy::cast_precision_loss, reason = "there are fewer than 2^53 connections")]
            gauge!(CONNECTIONS).set(connections.open as f64);
            counter!(CONNECTIONS_OPENED).absolute(connections.opened);
        }
        let Some(vault) = &self.0.vault else {
            return;
        };
        let mut counted = self.0.counted.lock().await;
        if counted.is_some_and(|at| at.elapsed() < COUNT_KEPT) {
            return;
        }
        *counted = Some(Instant::now());
        match vault.count(MAX_COUNTED).await {
            Ok(count) => {
                for (state, logins) in [
                    ("usable", count.usable),
                    ("refreshable", count.refreshable),
                    ("ended", count.ended),
                ] {
                    #[allow(clippy::cast_precision_loss, reason = "at most MAX_COUNTED")]
                    gauge!(LOGINS, "state" => state).set(logins as f64);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot count the logins"),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

async fn page(State(metrics): State<Metrics>) -> Response {
    metrics.observe().await;
    let headers = [(CONTENT_TYPE, TEXT_FORMAT), (CACHE_CONTROL, "no-store")];
    (headers, metrics.0.recorder.render()).into_response()
}

fn builder() -> Result<PrometheusBuilder> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(CREDENTIAL_SECONDS.to_owned()), &SECONDS)
        .map_err(|source| {
            Error::new(ErrorKind::Unexpected, "the histogram has no buckets").with_source(source)
        })
}

fn describe() {
    describe_counter!(REQUESTS, "Requests to clusters, by how they ended");
    describe_histogram!(
        CREDENTIAL_SECONDS,
        Unit::Seconds,
        "Time until a credential was at hand"
    );
    describe_gauge!(LOGINS, "Stored logins, counted at most once a minute");
    describe_counter!(PURGED, "Logins deleted because they ended long ago");
    describe_gauge!(CONNECTIONS, "Open connections to API servers");
    describe_counter!(CONNECTIONS_OPENED, "Connections to API servers ever opened");
}

const REQUESTS: &str = "kube_authn_requests_total";
const CREDENTIAL_SECONDS: &str = "kube_authn_credential_seconds";
const LOGINS: &str = "kube_authn_logins";
const PURGED: &str = "kube_authn_logins_purged_total";
const CONNECTIONS: &str = "kube_authn_upstream_connections";
const CONNECTIONS_OPENED: &str = "kube_authn_upstream_connections_opened_total";

/// From a cached credential (microseconds) to a slow issuer.
const SECONDS: [f64; 9] = [0.000_01, 0.000_1, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];
/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// As the exporter's own server does it; without it samples pile up between scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Counting reads the store.
const COUNT_KEPT: Duration = Duration::from_secs(60);
/// A second's worth of reading; larger installations ask their database.
const MAX_COUNTED: u32 = 100_000;
