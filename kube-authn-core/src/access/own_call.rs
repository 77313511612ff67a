//! Requests of a strategy's own: an API server may itself be the source of credentials.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};

use super::outgoing::Outgoing;
use crate::{
    ClusterDetails, Credential, CredentialRequest, Error, ErrorKind, MAX_RESPONSE_BYTES, Principal, Result,
    SystemClock,
    upstream::{Body, Cut, UpstreamPool},
};

impl UpstreamPool {
    /// Sends a request to the cluster's API server with this credential, once, and gives the whole answer, whatever its
    /// status. For what a strategy itself asks; what users ask goes through [`ClusterAccess::send`](crate::ClusterAccess::send).
    ///
    /// # Errors
    /// `UpstreamUnreachable` or `Timeout` if there is no answer, `Unexpected` if it is larger than
    /// [`MAX_RESPONSE_BYTES`], `RequestInvalid` for a URI that is no path.
    pub async fn call(
        &self,
        cluster: &ClusterDetails,
        credential: &Credential,
        http: Request<Bytes>,
    ) -> Result<Response<Bytes>> {
        let mut outgoing = Outgoing::new(http.map(Body::from), cluster)?;
        let request = CredentialRequest::new(Principal::anonymous(), cluster.clone());
        let cut = Cut::of(credential, &request, GRACE, Arc::new(SystemClock));
        let upstream = self.of_identity(cluster, credential.client_certificate())?;
        let answer = upstream
            .send(outgoing.next(&request, credential)?, outgoing.way, cut)
            .await
            .map_err(|failure| failure.into_error(cluster))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES)
            .collect()
            .await
            .map_err(|_| {
                let text = "the API server's answer broke off or is larger than 1 MiB";
                Error::new(ErrorKind::Unexpected, text).with_cluster(cluster.name().as_str())
            })?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }
}

/// A call that a strategy made for a cluster that is just being replaced may end in its time.
const GRACE: Duration = Duration::from_secs(30);
