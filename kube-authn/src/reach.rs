//! Trying clusters: who does the API server say we are, or what is in the way?

use std::time::Duration;

use futures_util::{StreamExt, stream};
use kube_authn_clusters::EffectiveConfig;
use kube_authn_core::{
    Body, CachingProvider, Clock, ClusterAccess, ClusterDetails, Clusters, CredentialRequest,
    CredentialScope, Error, ErrorKind, KubernetesAuthProvider, Principal, Result, SystemClock, UpstreamPool,
    http::{self, HeaderMap, Request, StatusCode},
    jiff::{Timestamp, fmt::rfc2822::DateTimeParser},
    serde_json::{self, Value, json},
};

use crate::assemble::{crypto_provider, in_force::Strategies, located, strategies};

/// What came of trying one cluster.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reach {
    /// The cluster's name.
    pub cluster: String,
    /// Who we are there, or what is in the way.
    pub identity: Result<Identity>,
    /// By how many seconds the API server's clock is ahead of ours, if that is enough to make tokens fail.
    pub clock_ahead_seconds: Option<i64>,
}

/// Who the API server says we are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Identity {
    /// The application, by its own credential.
    Application {
        /// The name that RBAC and the audit log know.
        username: String,
        /// The groups that RBAC knows.
        groups: Vec<String>,
    },
    /// Nobody: the cluster's credentials are users' own, and there is no user here. It was reached over TLS as configured.
    OfUsers,
}

/// Tries all clusters of a configuration that can be used: `SelfSubjectReview` with the application's credential; where
/// credentials are users' own, any answer counts. In the order of the configuration.
pub async fn reach(effective: &EffectiveConfig) -> Vec<Reach> {
    let clusters: Vec<Result<ClusterDetails>> = located(effective).collect();
    let usable = clusters.iter().flatten().cloned().collect();
    let pool = UpstreamPool::new(crypto_provider()).with_head_timeout(PATIENCE);
    let registry = Strategies::new(effective, &pool).registry();
    let access = ClusterAccess::new(Clusters::new(usable), CachingProvider::new(registry), pool);
    let tries = clusters
        .into_iter()
        .zip(&effective.clusters)
        .map(|(cluster, configured)| {
            let (access, name) = (access.clone(), configured.name().as_str().to_owned());
            async move {
                let (identity, clock_ahead_seconds) = match cluster {
                    Ok(cluster) => attempt(&access, effective, &cluster).await,
                    Err(error) => (Err(error), None),
                };
                Reach {
                    cluster: name,
                    identity,
                    clock_ahead_seconds,
                }
            }
        });
    stream::iter(tries).buffered(AT_ONCE).collect().await
}

async fn attempt(
    access: &ClusterAccess,
    effective: &EffectiveConfig,
    cluster: &ClusterDetails,
) -> (Result<Identity>, Option<i64>) {
    if access.credentials().provider().scope(cluster) != CredentialScope::Application {
        return (access.probe(cluster).await.map(|()| Identity::OfUsers), None);
    }
    match review(access, cluster).await {
        Ok(answer) => {
            let ahead = clock_ahead(answer.headers(), SystemClock.now());
            let principal = match answer.status() {
                StatusCode::UNAUTHORIZED => strategies::principal(effective, cluster).await,
                _ => None,
            };
            (identity(&answer, principal, cluster), ahead)
        }
        Err(error) => (Err(error), None),
    }
}

async fn review(access: &ClusterAccess, cluster: &ClusterDetails) -> Result<http::Response<Vec<u8>>> {
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Body::from(review.to_string().into_bytes()))
        .map_err(|source| {
            Error::new(ErrorKind::Unexpected, "the review is no request").with_source(source)
        })?;
    let on_behalf = CredentialRequest::new(Principal::anonymous(), cluster.clone());
    let (parts, body) = access.send(&on_behalf, request).await?.into_parts();
    let body =
        kube_authn_http::axum::body::to_bytes(kube_authn_http::axum::body::Body::new(body), MAX_ANSWER_BYTES);
    let body = body.await.map_err(|source| {
        Error::new(
            ErrorKind::UpstreamUnreachable,
            "the API server's answer broke off",
        )
        .with_source(source)
    })?;
    Ok(http::Response::from_parts(parts, body.to_vec()))
}

/// `principal` is whose credential was refused, where that is known.
fn identity(
    answer: &http::Response<Vec<u8>>,
    principal: Option<Result<String>>,
    cluster: &ClusterDetails,
) -> Result<Identity> {
    let refused = |kind: ErrorKind, text: &str| {
        let provider = cluster.auth_provider();
        Err(Error::new(kind, text.to_owned())
            .with_provider(provider)
            .with_cluster(cluster.name().as_str()))
    };
    match answer.status() {
        StatusCode::CREATED | StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => {
            return refused(ErrorKind::TokenRejected, &unknown(principal));
        }
        StatusCode::FORBIDDEN => {
            return refused(
                ErrorKind::Refused,
                "403 Forbidden: the API server lets nobody without a credential ask who they are",
            );
        }
        status => {
            let text = format!("the API server answers {}", status.as_u16());
            return refused(ErrorKind::UpstreamUnreachable, &text);
        }
    }
    let review: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let user = &review["status"]["userInfo"];
    match user["username"].as_str() {
        Some(username) => Ok(Identity::Application {
            username: username.to_owned(),
            groups: user["groups"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|group| group.as_str().map(str::to_owned))
                .collect(),
        }),
        None => refused(
            ErrorKind::UpstreamUnreachable,
            "the answer is none of a Kubernetes API server",
        ),
    }
}

fn unknown(principal: Option<Result<String>>) -> String {
    let known = match principal {
        None => {
            "the API server does not know the credential; is it for this cluster, and still valid?".to_owned()
        }
        Some(Ok(principal)) => format!(
            "the API server does not know the credential, which is of {principal}; has that one an access entry in this \
             cluster (or a line in its aws-auth), and is kubernetes.io/x-k8s-aws-id the cluster's own name?"
        ),
        Some(Err(error)) => format!(
            "the API server does not know the credential, and nobody else can say whose it is: {error}"
        ),
    };
    format!("401 Unauthorized: {known}")
}

/// How far ahead of ours the server's clock is, if that is more than verifiers forgive.
fn clock_ahead(headers: &HeaderMap, now: Timestamp) -> Option<i64> {
    let date = headers.get(http::header::DATE)?.to_str().ok()?;
    let theirs = DateTimeParser::new().parse_timestamp(date).ok()?;
    let ahead = theirs.as_second() - now.as_second();
    (ahead.abs() > SKEW_SECONDS).then_some(ahead)
}

/// Somebody waits in front of a terminal.
const PATIENCE: Duration = Duration::from_secs(15);
const AT_ONCE: usize = 16;
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// What verifiers of tokens commonly forgive.
const SKEW_SECONDS: i64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_is_told_only_if_it_is_far_away() {
        let ahead = |date: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::DATE, date.parse().expect("a value"));
            clock_ahead(&headers, Timestamp::from_second(784_111_777).expect("an instant"))
        };

        assert_eq!(ahead("Sun, 06 Nov 1994 08:49:37 GMT"), None);
        assert_eq!(ahead("Sun, 06 Nov 1994 08:50:37 GMT"), None);
        assert_eq!(ahead("Sun, 06 Nov 1994 08:51:37 GMT"), Some(120));
        assert_eq!(ahead("Sun, 06 Nov 1994 07:49:37 GMT"), Some(-3_600));
        assert_eq!(ahead("yesterday"), None);
    }
}
