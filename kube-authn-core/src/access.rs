//! The request path to a cluster, from identity to answer.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode};
use jiff::Timestamp;

use crate::{
    CachingProvider, Clock, ClusterDetails, Clusters, Credential, CredentialRequest, CredentialScope, Error,
    ErrorKind, KubernetesAuthProvider, Principal, ProviderRegistry, Result, Secret, SystemClock,
    upstream::{Body, Cut, ResponseBody, UpstreamPool},
};

mod outgoing;
mod own_call;
mod probe;

use outgoing::{Outgoing, strip_hop_by_hop};

/// The `Audit-ID` that a request was last sent with: the API server may have done work under it even if no answer came. Put
/// a clone among the extensions of a request to [`ClusterAccess::send`] and read it at any time. Clones share the value.
#[derive(Clone, Debug, Default)]
pub struct SentAuditId(Arc<Mutex<Option<HeaderValue>>>);

impl SentAuditId {
    /// Of a request that is not sent yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The ID of the last attempt; `None` if there was none.
    pub fn get(&self) -> Option<HeaderValue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, audit_id: HeaderValue) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(audit_id);
    }
}

/// Reaches clusters on somebody's behalf: clusters, credentials and connections in one handle. Clones share all three.
#[derive(Clone)]
pub struct ClusterAccess(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    clusters: Clusters,
    credentials: CachingProvider<ProviderRegistry>,
    pool: UpstreamPool,
    clock: Arc<dyn Clock>,
    stream_grace: Duration,
}

impl ClusterAccess {
    /// Access to these clusters, with credentials from this cache, over these connections.
    pub fn new(
        clusters: Clusters,
        credentials: CachingProvider<ProviderRegistry>,
        pool: UpstreamPool,
    ) -> Self {
        Self(Arc::new(Inner {
            clusters,
            credentials,
            pool,
            clock: Arc::new(SystemClock),
            stream_grace: STREAM_GRACE,
        }))
    }

    /// Takes the time from another clock; give the cache the same one.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        self.edit(|inner| inner.clock = clock)
    }

    /// Sets for how long after the end of its credential, or of the caller's own authentication, an open stream may go on,
    /// 30 s by default.
    pub fn with_stream_grace(self, stream_grace: Duration) -> Self {
        self.edit(|inner| inner.stream_grace = stream_grace)
    }

    /// For how long after the end of its credential, or of the caller's own authentication, an open stream may go on.
    pub fn stream_grace(&self) -> Duration {
        self.0.stream_grace
    }

    /// The clusters in force.
    pub fn clusters(&self) -> &Clusters {
        &self.0.clusters
    }

    /// The cache of credentials.
    pub fn credentials(&self) -> &CachingProvider<ProviderRegistry> {
        &self.0.credentials
    }

    /// A request for a credential: on this principal's behalf, for the cluster of this name.
    ///
    /// # Errors
    /// `ClusterUnknown`.
    pub fn request(&self, principal: &Principal, cluster: &str) -> Result<CredentialRequest> {
        Ok(CredentialRequest::new(
            principal.clone(),
            self.0.clusters.get(cluster)?,
        ))
    }

    /// The credential that a request would be sent with now.
    ///
    /// # Errors
    /// Those of the strategy; `CallerUnknown` if the principal's own authentication has ended; `TokenExpired` or
    /// `LoginRequired` if the credential is over; `Refused` if the caller offers an `Authorization` line of its own where
    /// the strategy decides on the user.
    pub async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let access = &*self.0;
        let now = access.clock.now();
        if request.principal.expires_at().is_some_and(|end| end <= now) {
            return Err(caller_expired(&request.cluster));
        }
        if let Some(line) = request.auth.authorization() {
            return self.offered(&request.cluster, line, now);
        }
        if let Some(credential) = access.credentials.peek(request)
            && credential.usable(now)
        {
            return Ok(credential);
        }
        let credential = access.credentials.credential(request).await?;
        match credential.usable(access.clock.now()) {
            true => Ok(credential),
            false => Err(unusable(&credential, &request.cluster)),
        }
    }

    /// Sends a request as the principal, and returns the API server's answer as it is: the one request path.
    ///
    /// The URI's path and query are appended to the cluster's URL byte for byte. Headers by which a caller could say who
    /// it is are replaced by the credential's own, hop-by-hop headers go (those of an upgrade stay), and `Audit-ID` is
    /// made here; a [`SentAuditId`] among the extensions gets to know it. After a 401 the request is sent once more if
    /// another credential can be had and the body can be sent again; every other answer is passed on, a 403 included, and a
    /// 401 to a path through `.../proxy`, which may be a pod's. A connection that turns out to be closed costs one more try
    /// if the API server surely did nothing with the request, or if the request is a read. After a 101 use
    /// [`hyper::upgrade::on`].
    ///
    /// The answer's body, and a connection taken over by an upgrade, end with an error at logout, or some time after the
    /// end of the credential or of the caller's own authentication.
    ///
    /// # Errors
    /// Before anything is sent: those of [`ClusterAccess::credential`], and `RequestInvalid` for a URI that is no path, or
    /// whose path holds a segment `.` or `..`, encoded or not.
    /// Afterwards: `UpstreamUnreachable` or `Timeout`, naming cluster, address and cause.
    pub async fn send(
        &self,
        request: &CredentialRequest,
        http: Request<Body>,
    ) -> Result<Response<ResponseBody>> {
        let cluster = &request.cluster;
        let mut outgoing = Outgoing::new(http, cluster)?;

        let credential = self.credential(request).await?;
        let answer = self.attempt(request, &credential, &mut outgoing).await?;
        if !outgoing.is_refused_by(&answer) || !outgoing.is_replayable() {
            return Ok(answer);
        }

        // The caller's own line is the only one there is, and nothing cached was refused.
        if request.auth.authorization().is_some() {
            return Ok(answer);
        }

        // The API server refused the credential: is there another one?
        if !self.0.credentials.invalidate(request, &credential).await {
            return Ok(answer);
        }
        match self.credential(request).await {
            Ok(renewed) if renewed.generation() != credential.generation() => {
                drop(answer);
                self.attempt(request, &renewed, &mut outgoing).await
            }
            Ok(_) | Err(_) => Ok(answer),
        }
    }

    /// The line that the caller offers in place of the strategy's credential. It never meets the cache.
    fn offered(&self, cluster: &ClusterDetails, line: &Secret, now: Timestamp) -> Result<Credential> {
        let strategy = self.0.credentials.provider().get(cluster)?;
        if strategy.scope(cluster) == CredentialScope::User {
            let text = format!(
                "cluster \"{}\" knows its users by strategy {}: an Authorization of one's own is not taken here",
                cluster.name(),
                strategy.name()
            );
            return Err(Error::new(ErrorKind::Refused, text)
                .with_provider(strategy.name())
                .with_cluster(cluster.name().as_str()));
        }
        let credential = Credential::verbatim(line)?;
        match credential.usable(now) {
            true => Ok(credential),
            false => Err(unusable(&credential, cluster)),
        }
    }

    /// Sends with this credential; once more if the API server surely did nothing with the request.
    async fn attempt(
        &self,
        request: &CredentialRequest,
        credential: &Credential,
        outgoing: &mut Outgoing,
    ) -> Result<Response<ResponseBody>> {
        let cluster = &request.cluster;
        let upstream = self
            .0
            .pool
            .of_identity(cluster, credential.client_certificate())?;
        let cut = Cut::of(credential, request, self.0.stream_grace, self.0.clock.clone());
        let mut sent = upstream
            .send(outgoing.next(request, credential)?, outgoing.way, cut.clone())
            .await;
        if let Err(failure) = &sent
            && failure.may_replay(outgoing.method())
            && outgoing.is_replayable()
            // The first try may have taken longer than the credential lived.
            && credential.usable(self.0.clock.now())
        {
            sent = upstream
                .send_again(outgoing.next(request, credential)?, outgoing.way, cut)
                .await;
        }
        let mut response = sent.map_err(|failure| failure.into_error(cluster))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            strip_hop_by_hop(response.headers_mut());
        }
        Ok(response)
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl fmt::Debug for ClusterAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAccess")
            .field("clusters", &self.0.clusters.current().iter().len())
            .field("credentials", &self.0.credentials)
            .field("pool", &self.0.pool)
            .finish_non_exhaustive()
    }
}

fn caller_expired(cluster: &ClusterDetails) -> Error {
    Error::new(
        ErrorKind::CallerUnknown,
        "the caller's authentication has ended: authenticate again",
    )
    .with_cluster(cluster.name().as_str())
}

fn unusable(credential: &Credential, cluster: &ClusterDetails) -> Error {
    let name = cluster.name().as_str();
    let error = match credential.login().is_some_and(crate::LoginHandle::is_ended) {
        true => Error::new(
            ErrorKind::LoginRequired,
            format!("the login for cluster \"{name}\" has ended: log in again"),
        ),
        false => Error::new(
            ErrorKind::TokenExpired,
            format!(
                "the credential for cluster \"{name}\" has expired, or is about to: offer or fetch a new one"
            ),
        ),
    };
    error.with_cluster(name)
}

/// Long enough for a client to end what it does, short enough that a token's end means something.
const STREAM_GRACE: Duration = Duration::from_secs(30);
