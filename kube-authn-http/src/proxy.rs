//! The Kubernetes proxy: caller → cluster → credential → API server → answer.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
    routing::any,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use kube_authn_core::{
    Body as UpstreamBody, ClusterAccess, ClusterDetails, CredentialRequest, Error, ErrorKind, ResponseBody,
    Result, Way,
};
use tokio::time::Instant;
use tracing::Instrument;

use crate::{
    caller::{Caller, Callers},
    metrics::record_credential,
};

mod answer;
mod body;
mod gather;
mod hangup;
mod headers;
mod path;
mod record;
mod streams;
mod tunnel;

use answer::Answer;
use body::Passing;
pub use hangup::Hangup;
use path::Target;
use record::Record;
use streams::{OpenStream, Streams};
use tunnel::{ClientSide, Tunnels};

/// What the proxy works with. Clones share it.
#[derive(Clone, Debug)]
pub struct ProxyState {
    access: ClusterAccess,
    callers: Callers,
    idle_timeout: Duration,
    patience: Duration,
    streams: Streams,
    tunnels: Tunnels,
}

impl ProxyState {
    /// Clusters and credentials from this access, for these callers.
    pub fn new(access: ClusterAccess, callers: Callers) -> Self {
        Self {
            access,
            callers,
            idle_timeout: IDLE_TIMEOUT,
            patience: PATIENCE,
            streams: Streams::default(),
            tunnels: Tunnels::default(),
        }
    }

    /// Sets for how long either side may stand still in the middle of a body, 60 s by default. Watches, logs that are
    /// followed, streams through the API server to a pod or service, and upgrades may do so for ever.
    pub fn with_idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }

    /// Sets for how long a caller may leave an answer unread, watches included, 10 minutes by default; then it ends.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets how many streams one principal may have open at once, over all clusters: watches, logs that are followed and
    /// streams through the API server to a pod or service together with exec, attach and port-forward, 256 by default, and
    /// of the latter alone, 64 by default. One more is answered with 429. Short calls do not count. To be set before the
    /// first request: what is open is not carried over.
    pub fn with_stream_limits(mut self, streams: usize, tunnels: usize) -> Self {
        self.streams = Streams::new(streams, tunnels);
        self
    }

    /// How many connections are taken over by exec, attach or port-forward now.
    pub fn open_tunnels(&self) -> usize {
        self.tunnels.open()
    }

    /// Returns when no connection is taken over any more: a server that stops does not see them among its connections.
    pub async fn tunnels_closed(&self) {
        self.tunnels.closed().await;
    }
}

/// The routes `/api/kubernetes/proxy/*`, where the header `Backstage-Kubernetes-Cluster` names the cluster, and
/// `/api/kubernetes/clusters/{name}/proxy/*`.
///
/// What follows goes to the API server byte for byte, as the caller's own identity there; bodies stream both ways. The
/// server below must offer upgrades ([`axum::serve()`] does; with hyper: `with_upgrades`).
pub fn proxy(state: ProxyState) -> Router {
    let mut router = Router::new();
    for path in ["/api/kubernetes/proxy", "/api/kubernetes/clusters/{name}/proxy"] {
        router = router
            .route(path, any(handle))
            .route(&format!("{path}/"), any(handle))
            .route(&format!("{path}/{{*path}}"), any(handle));
    }
    router.with_state(state)
}

async fn handle(State(state): State<ProxyState>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let mut record = Record::begin(&head);
    let span = record.span();
    let answered = async move {
        let asks_upgrade = head.headers.contains_key(header::UPGRADE);
        let outcome = forward(&state, &mut head, body, &mut record).await;
        let mut response = outcome.unwrap_or_else(|error| record.refusal(&error));
        if asks_upgrade
            && response.status() != StatusCode::SWITCHING_PROTOCOLS
            && head.version < Version::HTTP_2
        {
            // The client may have sent bytes of the other protocol already: they must not be read as requests.
            response
                .headers_mut()
                .insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        record.end(&response);
        response
    };
    answered.instrument(span).await
}

/// The request path, in the order it runs.
async fn forward(state: &ProxyState, head: &mut Parts, body: Body, record: &mut Record) -> Result<Response> {
    let caller = state.callers.authenticate(head).await?;
    record.caller = Some(caller.clone());
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        let text = format!("the method {} is not offered here", head.method);
        return Err(Error::new(ErrorKind::RequestInvalid, text));
    }
    let target = Target::parse(&head.uri, head.version)?;
    let told = headers::take(&mut head.headers, &state.callers.headers())?;
    let cluster = choose(&state.access, target.cluster.or(told.cluster).as_deref())?;
    record.cluster = Some(cluster.clone());

    let way = Way::of(&target.uri, &head.headers);
    may_call(&caller, &head.method, way)?;
    let client = take_over(head, way)?;
    let open = state.streams.open(&caller.principal, way)?;
    let limit = (way == Way::Short).then_some(state.idle_timeout);

    let names_callers = state.callers.headers();
    let clean = move |trailers: &mut HeaderMap| headers::clean_trailers(trailers, &names_callers);
    let body = Passing::new(body, limit, clean, client_stands_still);
    let mut request = http::Request::new(UpstreamBody::new(body));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = target.uri;
    *request.headers_mut() = std::mem::take(&mut head.headers);
    request.extensions_mut().insert(record.sent.clone());
    let credential = CredentialRequest::new(caller.principal, cluster).with_auth(told.auth);
    fetch(&state.access, &credential).await?;
    let answer = state.access.send(&credential, request).await?;

    match (answer.status(), client) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => switch(state, client, answer, open),
        (StatusCode::SWITCHING_PROTOCOLS, None) => Err(Error::new(
            ErrorKind::UpstreamUnreachable,
            "the API server switched protocols though nobody asked it to",
        )),
        _ => Ok(pass_on(state, head, answer, limit, open)),
    }
}

/// Fetches a credential that is not in the cache, and records how long the caller waited for it. What the caller offers
/// is at hand and never cached.
async fn fetch(access: &ClusterAccess, request: &CredentialRequest) -> Result<()> {
    if !request.auth.is_empty() || access.credentials().peek(request).is_some() {
        return Ok(());
    }
    let begin = Instant::now();
    let fetched = access.credential(request).await;
    record_credential(&request.cluster, begin.elapsed());
    fetched.map(drop)
}

/// The cluster of this name, or the only one.
fn choose(access: &ClusterAccess, name: Option<&str>) -> Result<ClusterDetails> {
    if let Some(name) = name {
        return access.clusters().get(name);
    }
    let clusters = access.clusters().current();
    let mut all = clusters.iter();
    match (all.next(), all.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => Err(Error::new(ErrorKind::ClusterUnknown, "No Clusters configured")),
        (Some(_), Some(_)) => Err(Error::new(
            ErrorKind::ClusterUnknown,
            "Cluster 'undefined' not found: name one in the header Backstage-Kubernetes-Cluster",
        )),
    }
}

/// What a limited token may do: read.
fn may_call(caller: &Caller, method: &Method, way: Way) -> Result<()> {
    let reads = matches!(*method, Method::GET | Method::HEAD) && way != Way::Upgrade;
    match caller.limited && !reads {
        true => Err(Error::new(
            ErrorKind::Refused,
            "a limited user token may only read: call with a full one",
        )),
        false => Ok(()),
    }
}

/// The client's side of a tunnel, if the request asks for one. Taken before anything is sent: what can't be connected
/// must not be opened.
fn take_over(head: &mut Parts, way: Way) -> Result<Option<ClientSide>> {
    let connection = head.extensions.remove::<OnUpgrade>();
    match (way, connection) {
        (Way::Upgrade, Some(connection)) => {
            let hangup = head.extensions.remove::<Hangup>();
            Ok(Some(ClientSide::new(connection, hangup, &head.headers)))
        }
        (Way::Upgrade, None) => Err(Error::new(
            ErrorKind::RequestInvalid,
            "this connection cannot be taken over: ask for the upgrade over HTTP/1.1",
        )),
        (Way::Short | Way::Long, _) => Ok(None),
    }
}

/// Answers 101; only now may bytes flow.
fn switch(
    state: &ProxyState,
    client: ClientSide,
    mut answer: http::Response<ResponseBody>,
    open: Option<OpenStream>,
) -> Result<Response> {
    let server = hyper::upgrade::on(&mut answer);
    let cut = answer.body().cut();
    let mut lines = client.switched(std::mem::take(answer.headers_mut()))?;
    headers::clean_answer(&mut lines);
    state.tunnels.connect(client, server, cut, open);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = lines;
    Ok(response)
}

/// The API server's answer as it is, whatever its status.
fn pass_on(
    state: &ProxyState,
    head: &mut Parts,
    answer: http::Response<ResponseBody>,
    limit: Option<Duration>,
    open: Option<OpenStream>,
) -> Response {
    let (mut answer, body) = answer.into_parts();
    headers::clean_answer(&mut answer.headers);
    headers::confine(&mut answer.headers);
    // A connection of HTTP/2 may carry others, and one answer less frees nobody's memory there.
    let body = match head.version < Version::HTTP_2 {
        true => Answer::new(body, open, state.patience, head.extensions.remove::<Hangup>()),
        false => Answer::new(body, open, state.patience, None).guarded(),
    };
    let body = Passing::new(body, limit, headers::clean_answer_trailers, server_stands_still);
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

fn client_stands_still(limit: Duration) -> Error {
    let text = format!("the body of the request stood still for {limit:?}");
    Error::new(ErrorKind::RequestInvalid, text)
}

fn server_stands_still(limit: Duration) -> Error {
    let text = format!("the API server stood still for {limit:?} in the middle of its answer");
    Error::new(ErrorKind::Timeout, text)
}

/// The API server ends what it answers at one go after 60 s itself (`--request-timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Far longer than a network stands still, and long enough for somebody who reads a log page by page.
const PATIENCE: Duration = Duration::from_secs(600);
