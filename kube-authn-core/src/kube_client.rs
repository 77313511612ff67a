//! The bridge to kube: a `kube::Client` that is somebody, over the connections that everybody shares.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use kube::client::{Body as KubeBody, retry::RetryPolicy};
use tower::{BoxError, Service, ServiceExt, retry::Retry};

use crate::{Body, ClusterAccess, CredentialRequest, Error, Principal, ResponseBody, Result};

impl ClusterAccess {
    /// A client that acts as this principal on the cluster of this name; its default namespace is `default`.
    ///
    /// The credential is resolved first, so that a missing login shows here and not in the first call; nothing is sent.
    /// Every request takes the credential of its own moment. A client costs one task while it lives, no connection.
    ///
    /// # Errors
    /// `ClusterUnknown`, and those of [`ClusterAccess::credential`]: `LoginRequired` also where the cluster's strategy
    /// wants a token from the caller, see [`ClusterAccess::client_for`].
    pub async fn client(&self, principal: &Principal, cluster: &str) -> Result<kube::Client> {
        self.client_for(self.request(principal, cluster)?).await
    }

    /// The same for a request with tokens that the caller offers.
    ///
    /// # Errors
    /// Those of [`ClusterAccess::credential`].
    pub async fn client_for(&self, request: CredentialRequest) -> Result<kube::Client> {
        self.credential(&request).await?;
        let service = self.service(request).map_err(BoxError::from);
        let service = Retry::new(RetryPolicy::default(), service);
        Ok(kube::Client::new(service, DEFAULT_NAMESPACE))
    }

    /// The service under such a client, for layers of one's own: nothing is resolved yet, nothing is retried.
    pub fn service(&self, request: CredentialRequest) -> PrincipalService {
        PrincipalService {
            access: self.clone(),
            request,
        }
    }
}

/// Sends each request as one principal to one cluster. Always ready: a missing login is an error of the call alone, or
/// the buffer of a `kube::Client` would close for good. Clones share everything.
#[derive(Clone)]
pub struct PrincipalService {
    access: ClusterAccess,
    request: CredentialRequest,
}

impl Service<Request<KubeBody>> for PrincipalService {
    type Response = Response<ResponseBody>;
    /// Unwrapped, so that [`Error::find`] finds it in a `kube::Error::Service`.
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, http: Request<KubeBody>) -> Self::Future {
        let Self { access, request } = self.clone();
        Box::pin(async move {
            let (head, body) = http.into_parts();
            let body = replayable(body).await?;
            access.send(&request, Request::from_parts(head, body)).await
        })
    }
}

/// kube's body of bytes at hand stays one, so that it can be sent again.
async fn replayable(body: KubeBody) -> Result<Body> {
    match body.try_clone() {
        None => Ok(Body::new(body)),
        Some(at_hand) => at_hand.collect_bytes().await.map(Body::from).map_err(|source| {
            Error::new(
                crate::ErrorKind::Unexpected,
                "the body of the request cannot be read",
            )
            .with_source(source)
        }),
    }
}

impl fmt::Debug for PrincipalService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrincipalService")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

/// As kubectl without a context's namespace.
const DEFAULT_NAMESPACE: &str = "default";
