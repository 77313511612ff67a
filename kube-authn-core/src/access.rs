//! The request path to a cluster, from identity to answer.

use std::{fmt, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts,
    uri::PathAndQuery,
};

use crate::{
    CachingProvider, Clock, ClusterDetails, Clusters, Credential, CredentialRequest, Error, ErrorKind,
    Principal, ProviderRegistry, Result, SystemClock,
    upstream::{Body, Cut, Failure, ResponseBody, UpstreamPool, Way},
};

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

    /// Sets for how long after its credential's end an open stream may go on, 30 s by default.
    pub fn with_stream_grace(self, stream_grace: Duration) -> Self {
        self.edit(|inner| inner.stream_grace = stream_grace)
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
    /// `LoginRequired` if the credential is over.
    pub async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let access = &*self.0;
        let now = access.clock.now();
        if request.principal.expires_at().is_some_and(|end| end <= now) {
            return Err(caller_expired(&request.cluster));
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
    /// made here. After a 401 the request is sent once more if another credential can be had and the body can be sent
    /// again; every other answer, a 403 included, is passed on. After a 101 use [`hyper::upgrade::on`].
    ///
    /// The answer's body, and a connection taken over by an upgrade, end with an error at logout, or some time after the
    /// credential's end.
    ///
    /// # Errors
    /// Before anything is sent: those of [`ClusterAccess::credential`], and `RequestInvalid` for a URI that is no path.
    /// Afterwards: `UpstreamUnreachable` or `Timeout`, naming cluster, address and cause.
    pub async fn send(
        &self,
        request: &CredentialRequest,
        http: Request<Body>,
    ) -> Result<Response<ResponseBody>> {
        let cluster = &request.cluster;
        let mut outgoing = Outgoing::new(http, cluster)?;

        let credential = self.credential(request).await?;
        let answer = self.attempt(cluster, &credential, &mut outgoing).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || !outgoing.is_replayable() {
            return Ok(answer);
        }

        // The API server refused the credential: is there another one?
        if !self.0.credentials.invalidate(request, &credential).await {
            return Ok(answer);
        }
        match self.credential(request).await {
            Ok(renewed) if renewed.generation() != credential.generation() => {
                drop(answer);
                self.attempt(cluster, &renewed, &mut outgoing).await
            }
            Ok(_) | Err(_) => Ok(answer),
        }
    }

    /// Sends with this credential; once more if the API server surely did nothing with the request.
    async fn attempt(
        &self,
        cluster: &ClusterDetails,
        credential: &Credential,
        outgoing: &mut Outgoing,
    ) -> Result<Response<ResponseBody>> {
        let upstream = self
            .0
            .pool
            .of_identity(cluster, credential.client_certificate())?;
        let cut = Cut::of(credential, self.0.stream_grace, self.0.clock.clone());
        let mut sent = upstream
            .send(outgoing.next(credential)?, outgoing.way, cut.clone())
            .await;
        if let Err(failure) = &sent
            && failure.may_replay(outgoing.method())
            && outgoing.is_replayable()
        {
            sent = upstream.send(outgoing.next(credential)?, outgoing.way, cut).await;
        }
        let mut response = sent.map_err(|failure: Failure| failure.into_error(cluster))?;
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

/// A request that is ready but for the credential, and can be made again if its body can.
struct Outgoing {
    head: Parts,
    /// `None` once a stream is spent.
    body: Option<Body>,
    way: Way,
}

impl Outgoing {
    /// Everything that doesn't depend on the credential.
    fn new(http: Request<Body>, cluster: &ClusterDetails) -> Result<Self> {
        let way = Way::of(&http);
        let (mut head, body) = http.into_parts();
        head.uri = target(&head.method, &head.uri, cluster)?;
        // Extensions steer hyper (and `http::Extensions` of a caller's own may hold anything): none leaves.
        head.extensions.clear();
        let upgrade = match way {
            Way::Upgrade => head.headers.get(header::UPGRADE).cloned(),
            Way::Short | Way::Long => None,
        };
        strip_hop_by_hop(&mut head.headers);
        head.headers.remove(header::HOST);
        if let Some(upgrade) = upgrade {
            head.headers
                .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            head.headers.insert(header::UPGRADE, upgrade);
        }
        if http_body::Body::size_hint(&body).exact().is_some() {
            // The length is known: hyper writes it.
            head.headers.remove(header::CONTENT_LENGTH);
        }
        Ok(Self {
            head,
            body: Some(body),
            way,
        })
    }

    /// The request with this credential's header lines and an audit ID of its own: an API server that sees one twice
    /// would write one event over the other.
    fn next(&mut self, credential: &Credential) -> Result<Request<Body>> {
        let body = self.body.take().unwrap_or_else(Body::empty);
        self.body = body.try_clone();
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = match self.is_replayable() {
            true => self.head.headers.clone(),
            false => std::mem::take(&mut self.head.headers),
        };
        credential.apply(request.headers_mut());
        request.headers_mut().insert(AUDIT_ID, audit_id()?);
        Ok(request)
    }

    fn is_replayable(&self) -> bool {
        self.body.is_some()
    }

    fn method(&self) -> &Method {
        &self.head.method
    }
}

/// The cluster's URL with the request's path and query behind it. Only the cluster says which server that is.
fn target(method: &Method, uri: &Uri, cluster: &ClusterDetails) -> Result<Uri> {
    let server = cluster.server();
    let refuse = |what: &'static str| {
        Error::new(ErrorKind::RequestInvalid, what).with_cluster(cluster.name().as_str())
    };
    if uri
        .authority()
        .is_some_and(|authority| authority != server.authority())
        || uri.scheme().is_some_and(|scheme| scheme != server.scheme())
    {
        return Err(refuse(
            "the request names a server of its own: give a path, the cluster decides on the server",
        ));
    }
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if method == Method::CONNECT || !path.starts_with('/') {
        return Err(refuse(
            "the request has no path: give one that begins with a slash",
        ));
    }
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    server.join(&path).map_err(|source| {
        refuse("the path of the request cannot be appended to the cluster's URL").with_source(source)
    })
}

/// Removes what concerns one connection only (RFC 9110 section 7.6.1): h2 forbids it, and hyper frames bodies itself.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<_> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .filter_map(|name| header::HeaderName::try_from(name.trim()).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// A random UUID (RFC 9562 section 5.4).
fn audit_id() -> Result<HeaderValue> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|source| Error::new(ErrorKind::Unexpected, "no random numbers").with_source(source))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for byte in bytes {
        if matches!(at, 8 | 13 | 18 | 23) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 0xf)];
        at += 2;
    }
    HeaderValue::from_bytes(&text)
        .map_err(|source| Error::new(ErrorKind::Unexpected, "an audit ID is no header").with_source(source))
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

/// The API server writes it into its audit log unseen (`k8s.io/apiserver/pkg/endpoints/filters/audit_init.go`), so a
/// client's own never gets there.
const AUDIT_ID: header::HeaderName = header::HeaderName::from_static("audit-id");

const HOP_BY_HOP: [header::HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::HeaderName::from_static("keep-alive"),
    header::HeaderName::from_static("proxy-connection"),
];

const HEX: &[u8; 16] = b"0123456789abcdef";
