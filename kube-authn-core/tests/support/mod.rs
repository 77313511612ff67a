//! API servers on loopback, their certificates, and strategies whose answers a test decides on.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube_authn_core::{
    Body, CachingProvider, ClientCertificate, ClusterAccess, ClusterDetails, Clusters, Credential,
    CredentialRequest, CredentialScope, EntityRef, KubernetesAuthProvider, Lane, Metadata, Principal,
    Problem, ProviderRegistry, ResponseBody, Result, Secret, UpstreamPool, async_trait,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

pub const H2: &[u8] = b"h2";
pub const H1: &[u8] = b"http/1.1";

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Settings of a server for these names, which asks for a client certificate but does not insist on one.
    pub fn server_for(&self, names: &[&str], alpn: &[&[u8]], expired: bool) -> ServerConfig {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("parameters");
        if expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .expect("a server");
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }

    pub fn server(&self, alpn: &[&[u8]]) -> Option<Arc<ServerConfig>> {
        Some(Arc::new(self.server_for(
            &["localhost", "127.0.0.1"],
            alpn,
            false,
        )))
    }

    pub fn client(&self, name: &str) -> ClientCertificate {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        ClientCertificate::from_pem(certificate.pem().as_bytes(), Secret::new(key.serialize_pem()))
            .expect("a client certificate")
    }
}

pub type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;
pub type Answer = Response<AnswerBody>;
type Handling = Pin<Box<dyn Future<Output = std::result::Result<Answer, Broken>> + Send>>;
type Handler = Arc<dyn Fn(Request<Incoming>, Peer) -> Handling + Send + Sync>;

/// A handler that gives this breaks the connection.
#[derive(Debug)]
pub struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken on purpose")
    }
}

impl std::error::Error for Broken {}

/// On which connection a request came, and as whom the other side introduced itself.
#[derive(Clone, Debug)]
pub struct Peer {
    pub connection: usize,
    pub certificate: Option<Vec<u8>>,
}

/// What a server saw of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub target: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub peer: Peer,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

/// A server that counts.
pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    streams: u32,
    accepted: AtomicUsize,
    open: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
}

impl Server {
    pub async fn start<F, R>(tls: Option<Arc<ServerConfig>>, handler: F) -> Self
    where
        F: Fn(Request<Incoming>, Peer) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<Answer, Broken>> + Send + 'static,
    {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), tls, handler).await
    }

    pub async fn start_at<F, R>(address: SocketAddr, tls: Option<Arc<ServerConfig>>, handler: F) -> Self
    where
        F: Fn(Request<Incoming>, Peer) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<Answer, Broken>> + Send + 'static,
    {
        // The API server's default.
        Self::start_allowing(100, address, tls, handler).await
    }

    /// A server that allows so many streams on a connection of h2.
    pub async fn start_allowing<F, R>(
        streams: u32,
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        handler: F,
    ) -> Self
    where
        F: Fn(Request<Incoming>, Peer) -> R + Send + Sync + 'static,
        R: Future<Output = std::result::Result<Answer, Broken>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            streams,
            ..State::default()
        });
        let handler: Handler = Arc::new(move |request, peer| Box::pin(handler(request, peer)));
        let accepting = tokio::spawn(accept(
            listener,
            tls.map(TlsAcceptor::from),
            handler,
            state.clone(),
        ));
        Self {
            address,
            state,
            accepting,
        }
    }

    /// Connections ever accepted.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("no panic").clone()
    }

    /// Stops at once, connections included.
    pub async fn stop(mut self) -> SocketAddr {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, handler: Handler, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let connection = state.accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(serve(
            stream,
            tls.clone(),
            handler.clone(),
            state.clone(),
            connection,
        ));
    }
}

async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    handler: Handler,
    state: Arc<State>,
    connection: usize,
) {
    let _open = Open::new(&state);
    stream.set_nodelay(true).expect("no delay");
    let Some(tls) = tls else {
        let peer = Peer {
            connection,
            certificate: None,
        };
        return http1(TokioIo::new(stream), handler, state.clone(), peer).await;
    };
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let session = stream.get_ref().1;
    let certificate = session.peer_certificates().map(|chain| chain[0].to_vec());
    let peer = Peer {
        connection,
        certificate,
    };
    match session.alpn_protocol() {
        Some(H2) => {
            let streams = state.streams;
            let state = state.clone();
            let service =
                service_fn(move |request| respond(request, handler.clone(), state.clone(), peer.clone()));
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(streams)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
        _ => http1(TokioIo::new(stream), handler, state.clone(), peer).await,
    }
}

async fn http1<I>(io: I, handler: Handler, state: Arc<State>, peer: Peer)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request| respond(request, handler.clone(), state.clone(), peer.clone()));
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(io, service)
        .with_upgrades()
        .await;
}

async fn respond(
    request: Request<Incoming>,
    handler: Handler,
    state: Arc<State>,
    peer: Peer,
) -> std::result::Result<Answer, Broken> {
    state.seen.lock().expect("no panic").push(Seen {
        target: request.uri().to_string(),
        version: request.version(),
        headers: request.headers().clone(),
        peer: peer.clone(),
    });
    handler(request, peer).await
}

struct Open(Arc<State>);

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.open.fetch_add(1, Ordering::SeqCst);
        Self(state.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn text(text: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(text.into()).boxed_unsync())
}

pub fn status(status: u16) -> Answer {
    let mut answer = text("refused");
    *answer.status_mut() = http::StatusCode::from_u16(status).expect("a status");
    answer
}

/// A body that begins and never ends; the sender sends more of it.
pub fn endless() -> (Answer, tokio::sync::mpsc::UnboundedSender<Bytes>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let _ = sender.send(Bytes::from_static(b"{}\n"));
    (Response::new(Endless(receiver).boxed_unsync()), sender)
}

struct Endless(tokio::sync::mpsc::UnboundedReceiver<Bytes>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::result::Result<http_body::Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|next| next.map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}

/// Answers with the `Authorization` line it got.
pub async fn echo_identity(request: Request<Incoming>, _: Peer) -> std::result::Result<Answer, Broken> {
    let line = request
        .headers()
        .get("authorization")
        .map(|line| line.as_bytes().to_vec());
    Ok(text(line.unwrap_or_default()))
}

type Fetch = dyn Fn(&CredentialRequest) -> Result<Credential> + Send + Sync;

/// A strategy named `test` whose credential is made by a closure, one per principal.
pub struct Strategy {
    scope: CredentialScope,
    credential: Box<Fetch>,
    renewable: bool,
}

impl Strategy {
    pub fn new(
        credential: impl Fn(&CredentialRequest) -> Result<Credential> + Send + Sync + 'static,
    ) -> Self {
        Self {
            scope: CredentialScope::User,
            credential: Box::new(credential),
            renewable: true,
        }
    }

    pub fn scope(self, scope: CredentialScope) -> Self {
        Self { scope, ..self }
    }
}

impl fmt::Debug for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Strategy")
    }
}

#[async_trait]
impl KubernetesAuthProvider for Strategy {
    fn name(&self) -> &str {
        "test"
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        self.scope
    }

    fn validate(&self, _: &ClusterDetails) -> Vec<Problem> {
        Vec::new()
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        (self.credential)(request)
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        self.renewable
    }
}

pub fn bearer(token: impl Into<Vec<u8>>) -> Credential {
    Credential::bearer(&Secret::new(token)).expect("a token")
}

pub fn user(name: &str) -> Principal {
    Principal::user(EntityRef::parse(&format!("user:default/{name}")).expect("a reference"))
}

pub fn alice() -> Principal {
    user("alice")
}

pub fn cluster(name: &str, server: &Server, ca: &Ca) -> ClusterDetails {
    ClusterDetails::builder(name, format!("https://127.0.0.1:{}", server.address.port()))
        .auth_provider("test")
        .ca_pem(ca.pem())
        .build()
        .expect("a cluster")
}

pub fn access(clusters: Vec<ClusterDetails>, strategy: Strategy, lane: Lane) -> ClusterAccess {
    let credentials = CachingProvider::new(ProviderRegistry::new().with(strategy));
    ClusterAccess::new(
        Clusters::new(clusters),
        credentials,
        UpstreamPool::new(provider()).with_lane(lane),
    )
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).expect("a request")
}

pub async fn read(response: Response<ResponseBody>) -> Result<String> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).expect("text"))
}

/// Looks again until it holds; a second is plenty on loopback.
pub async fn eventually(mut holds: impl FnMut() -> bool, what: &str) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// Takes every upgrade and sends back what comes in.
pub async fn echo_upgrade(request: Request<Incoming>, _: Peer) -> std::result::Result<Answer, Broken> {
    let Some(protocol) = request.headers().get("upgrade").cloned() else {
        return Ok(status(400));
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut answer = text("");
    *answer.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    answer
        .headers_mut()
        .insert("connection", http::HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert("upgrade", protocol);
    Ok(answer)
}

pub fn upgrade(path: &str) -> Request<Body> {
    Request::get(path)
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(Body::empty())
        .expect("a request")
}
