//! The logins that the API takes tokens for, and which of them a request is about.

use std::collections::BTreeMap;

use kube_authn_core::{ClientId, EntityRef, Error, ErrorKind, Result, Secret, TokenKey};
use kube_authn_oidc::LoginVerifier;

/// One login and the clusters behind it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterLogin {
    /// Verifies tokens of the login and binds them to users.
    pub verifier: LoginVerifier,
    /// Names of the clusters that get tokens of the login.
    pub clusters: Vec<String>,
    /// Those of them that get tokens made out of the login's own for another audience, by name.
    pub audiences: BTreeMap<String, ClientId>,
}

impl ClusterLogin {
    /// A login whose tokens these clusters get.
    pub fn new<N: Into<String>>(verifier: LoginVerifier, clusters: impl IntoIterator<Item = N>) -> Self {
        Self {
            verifier,
            clusters: clusters.into_iter().map(Into::into).collect(),
            audiences: BTreeMap::new(),
        }
    }

    /// This cluster gets tokens for this audience ([`LoginConfig::audience`](kube_authn_core::LoginConfig::audience)).
    pub fn with_audience(mut self, cluster: impl Into<String>, audience: ClientId) -> Self {
        self.audiences.insert(cluster.into(), audience);
        self
    }

    pub(super) fn serves(&self, cluster: &str) -> bool {
        self.clusters.iter().any(|name| name == cluster)
    }
}

/// All logins in force.
#[derive(Debug)]
pub(super) struct Logins(pub(super) Vec<ClusterLogin>);

impl Logins {
    /// The login that a token says it is of. Nothing is verified yet.
    ///
    /// # Errors
    /// `TokenRejected` if it is of none, or not of the named cluster's; `RequestInvalid` if it could be of several.
    pub(super) fn named_by(&self, id_token: &Secret, cluster: Option<&str>) -> Result<&ClusterLogin> {
        let rejected = |text: &'static str| Err(Error::new(ErrorKind::TokenRejected, text));
        let offered: Vec<_> = self
            .0
            .iter()
            .filter(|login| cluster.is_none_or(|cluster| login.serves(cluster)))
            .collect();
        // Whether the only login there is takes the token is for its verifier to say, check by check.
        if let [only] = offered.as_slice() {
            return match cluster.is_none() || only.verifier.is_named_by(id_token) {
                true => Ok(only),
                false => rejected("the tokens are not of the login of the cluster that the request names"),
            };
        }
        let mut matching = offered
            .iter()
            .filter(|login| login.verifier.is_named_by(id_token));
        match (matching.next(), matching.next()) {
            (Some(login), None) => Ok(login),
            (Some(one), Some(two)) => Err(Error::new(
                ErrorKind::RequestInvalid,
                format!(
                    "the tokens fit more than one login, that of {} and that of {}: name the cluster",
                    one.clusters.join(", "),
                    two.clusters.join(", ")
                ),
            )),
            (None, _) if offered.is_empty() && cluster.is_some() => {
                rejected("the tokens are not of the login of the cluster that the request names")
            }
            (None, _) => {
                rejected("the tokens are of an issuer or a client that no cluster here takes logins from")
            }
        }
    }

    /// The login of this cluster.
    ///
    /// # Errors
    /// `ClusterUnknown`, also for clusters that take no logins.
    pub(super) fn of_cluster(&self, cluster: &str) -> Result<&ClusterLogin> {
        self.0.iter().find(|login| login.serves(cluster)).ok_or_else(|| {
            Error::new(
                ErrorKind::ClusterUnknown,
                format!("Cluster '{}' not found", cluster.escape_debug()),
            )
        })
    }

    /// The one login that a request without cluster can mean, or that of the named cluster.
    ///
    /// # Errors
    /// `RequestInvalid` if there are several; else as [`Logins::of_cluster`].
    pub(super) fn only(&self, cluster: Option<&str>) -> Result<&ClusterLogin> {
        match (cluster, self.0.as_slice()) {
            (Some(cluster), _) => self.of_cluster(cluster),
            (None, [only]) => Ok(only),
            (None, []) => Err(Error::new(
                ErrorKind::ClusterUnknown,
                "no cluster here takes logins",
            )),
            (None, _) => Err(Error::new(
                ErrorKind::RequestInvalid,
                "there are several logins: name one of their clusters with ?cluster=",
            )),
        }
    }

    /// The login whose token a request means, and the cluster to ask for if what it gets is not the login's own.
    ///
    /// # Errors
    /// `RequestInvalid` if the request names no cluster and those of the login get different tokens; else as
    /// [`Logins::only`].
    pub(super) fn token_of(&self, cluster: Option<&str>) -> Result<(&ClusterLogin, Option<String>)> {
        let login = self.only(cluster)?;
        let mut gets = match cluster {
            Some(cluster) => vec![(cluster, login.audiences.get(cluster))],
            None => {
                let clusters = login.clusters.iter();
                clusters
                    .map(|name| (name.as_str(), login.audiences.get(name)))
                    .collect()
            }
        };
        gets.dedup_by_key(|(_, audience)| *audience);
        match gets.as_slice() {
            [] | [(_, None)] => Ok((login, None)),
            [(cluster, Some(_))] => Ok((login, Some((*cluster).to_owned()))),
            _ => Err(Error::new(
                ErrorKind::RequestInvalid,
                "the clusters of the login get different tokens: name one of them with ?cluster=",
            )),
        }
    }

    /// All logins with all their clusters, or that of one cluster with it alone.
    ///
    /// # Errors
    /// As [`Logins::of_cluster`].
    pub(super) fn selected(&self, cluster: Option<&str>) -> Result<Vec<(&ClusterLogin, Vec<String>)>> {
        match cluster {
            Some(cluster) => Ok(vec![(self.of_cluster(cluster)?, vec![cluster.to_owned()])]),
            None => Ok(self
                .0
                .iter()
                .map(|login| (login, login.clusters.clone()))
                .collect()),
        }
    }

    /// The logins that a stored one belongs to.
    pub(super) fn behind(&self, key: &TokenKey) -> Vec<&ClusterLogin> {
        self.0
            .iter()
            .filter(|login| {
                let config = login.verifier.login();
                config.issuer == key.issuer
                    && config
                        .client_id
                        .as_ref()
                        .is_none_or(|client_id| *client_id == key.client_id)
            })
            .collect()
    }

    pub(super) fn is_guest(&self, user: &EntityRef) -> bool {
        self.0
            .iter()
            .any(|login| login.verifier.login().guests.contains(user))
    }
}
