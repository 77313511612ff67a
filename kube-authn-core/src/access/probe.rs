//! What can be known of the clusters' side without anybody's identity.

use http::Request;

use super::{ClusterAccess, Outgoing};
use crate::{
    ClusterDetails, Credential, CredentialRequest, Error, ErrorKind, Principal, Result,
    upstream::{Body, ConnectionCount},
};

impl ClusterAccess {
    /// Whether the API server answers: asks for `/livez` without a credential and takes any answer, a 401 too.
    ///
    /// # Errors
    /// `UpstreamUnreachable` or `Timeout` if it does not answer; `ConfigInvalid` if it cannot be asked.
    pub async fn probe(&self, cluster: &ClusterDetails) -> Result<()> {
        let http = Request::get("/livez").body(Body::empty()).map_err(|source| {
            Error::new(ErrorKind::Unexpected, "the probe is no request").with_source(source)
        })?;
        let mut outgoing = Outgoing::new(http, cluster)?;
        let request = CredentialRequest::new(Principal::anonymous(), cluster.clone());
        self.attempt(&request, &Credential::anonymous(), &mut outgoing)
            .await
            .map(drop)
    }

    /// How many connections to API servers there are.
    pub fn connections(&self) -> ConnectionCount {
        self.0.pool.connections()
    }
}
