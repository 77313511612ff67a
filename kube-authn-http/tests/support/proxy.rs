//! The proxy on loopback, recording API servers behind it, and clients that write raw bytes.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use kube_authn_core::{
    CachingProvider, ClusterAccess, ClusterDetails, Clusters, Credential, CredentialRequest, CredentialScope,
    EntityRef, Error, ErrorKind, KubernetesAuthProvider, Lane, LoginHandle, Metadata, Principal, Problem,
    ProviderRegistry, Result, Secret, UpstreamPool, async_trait,
};
use kube_authn_http::{
    Caller, CallerAuthenticator, CallerRequest, Callers, Hangup, ProxyState,
    axum::{Extension, extract::ConnectInfo},
    proxy,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, crypto::CryptoProvider, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

pub fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// `Authorization: Bearer <name>` is that user; `limited-` before the name makes the token a limited one.
#[derive(Debug)]
pub struct ByName;

#[async_trait]
impl CallerAuthenticator for ByName {
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>> {
        let Some(name) = request
            .headers
            .get("authorization")
            .and_then(|line| line.to_str().ok()?.strip_prefix("Bearer "))
        else {
            return Ok(None);
        };
        let (name, limited) = match name.strip_prefix("limited-") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let user = EntityRef::parse(&format!("user:default/{name}"))
            .map_err(|_| Error::new(ErrorKind::CallerUnknown, "Illegal token"))?;
        let mut caller = Caller::new(Principal::user(user));
        caller.limited = limited;
        Ok(Some(caller))
    }
}

/// A strategy that sends a token of its own, or the one offered under its name.
#[derive(Clone, Debug)]
pub struct Strategy {
    pub name: &'static str,
    pub scope: CredentialScope,
    pub login: Option<LoginHandle>,
    /// What the API server refused is fetched anew.
    pub renewable: bool,
}

impl Strategy {
    pub fn new(name: &'static str, scope: CredentialScope) -> Self {
        Self {
            name,
            scope,
            login: None,
            renewable: false,
        }
    }
}

#[async_trait]
impl KubernetesAuthProvider for Strategy {
    fn name(&self) -> &str {
        self.name
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
        let own = Secret::new(format!(
            "cluster-token-of-{}",
            request.principal.to_string().replace([':', '/'], "-")
        ));
        let token = request.auth.token(self.name).unwrap_or(&own);
        let credential = Credential::bearer(token)?;
        Ok(match &self.login {
            Some(login) => credential.with_login(login.clone()),
            None => credential,
        })
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        self.renewable
    }
}

/// What reaches the API server for alice.
pub const ALICE: &str = "Bearer cluster-token-of-user-default-alice";

pub fn cluster(name: &str, server: &str, ca: Option<&Ca>) -> ClusterDetails {
    let builder = ClusterDetails::builder(name, server).auth_provider("test");
    let builder = match ca {
        Some(ca) => builder.ca_pem(ca.pem.as_bytes()),
        None => builder,
    };
    builder.build().expect("a cluster")
}

pub fn plain(name: &str, address: SocketAddr) -> ClusterDetails {
    cluster(name, &format!("http://{address}"), None)
}

pub fn access(clusters: Vec<ClusterDetails>, strategy: Strategy) -> ClusterAccess {
    ClusterAccess::new(
        Clusters::new(clusters),
        CachingProvider::new(ProviderRegistry::new().with(strategy)),
        // Where the API server speaks it; by default short calls take HTTP/1.1.
        UpstreamPool::new(crypto())
            .with_lane(Lane::Http2)
            .with_head_timeout(Duration::from_secs(2)),
    )
}

/// The proxy, listening for HTTP/1.1 and for HTTP/2 without TLS.
pub struct Proxy {
    pub http1: SocketAddr,
    pub http2: SocketAddr,
    pub state: ProxyState,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub async fn start(clusters: Vec<ClusterDetails>) -> Self {
        Self::with(access(clusters, Strategy::new("test", CredentialScope::User))).await
    }

    pub async fn with(access: ClusterAccess) -> Self {
        Self::of(ProxyState::new(access, Callers::new().with(ByName))).await
    }

    pub async fn of(state: ProxyState) -> Self {
        let mut tasks = JoinSet::new();
        let router = proxy(state.clone());
        let listeners = [listen().await, listen().await];
        let [http1, http2] = [&listeners[0], &listeners[1]].map(|l| l.local_addr().expect("an address"));
        for (listener, h2) in listeners.into_iter().zip([false, true]) {
            let router = router.clone();
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, peer)) = listener.accept().await {
                    let hangup = Hangup::new();
                    let service = router.clone().layer(Extension(hangup.clone()));
                    let service = TowerToHyperService::new(service.layer(Extension(ConnectInfo(peer))));
                    connections.spawn(async move {
                        let io = TokioIo::new(stream);
                        if h2 {
                            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                                .serve_connection(io, service)
                                .await;
                        } else {
                            let mut server = hyper::server::conn::http1::Builder::new();
                            let serving = server.timer(TokioTimer::new()).serve_connection(io, service);
                            tokio::select! {
                                _ = serving.with_upgrades() => {}
                                () = hangup.called() => {}
                            }
                        }
                    });
                }
            });
        }
        Self {
            http1,
            http2,
            state,
            _tasks: tasks,
        }
    }

    /// Sends raw bytes and reads until the proxy closes.
    pub async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        exchange(self.http1, request.as_ref()).await
    }

    /// A request of alice with these further lines, on a connection that ends with it.
    pub async fn get(&self, target: &str, lines: &str) -> String {
        self.raw(format!(
            "GET {target} HTTP/1.1\r\nHost: portal\r\nAuthorization: Bearer alice\r\nConnection: close\r\n{lines}\r\n"
        ))
        .await
    }

    pub async fn http2(
        &self,
    ) -> hyper::client::conn::http2::SendRequest<UnsyncBoxBody<Bytes, std::io::Error>> {
        let stream = TcpStream::connect(self.http2).await.expect("a connection");
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("h2");
        tokio::spawn(connection);
        sender
    }
}

pub async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port")
}

pub async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request).await.expect("written");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("the proxy closes");
    String::from_utf8_lossy(&answer).into_owned()
}

pub fn status(answer: &str) -> u16 {
    answer
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

pub fn json(answer: &str) -> serde_json::Value {
    serde_json::from_str(body(answer)).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// An API server that records every byte of HTTP/1.1 that it gets.
#[derive(Clone)]
pub struct Recorder {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAudit-Id: audit\r\n\r\nok";

impl Recorder {
    /// Answers every request alike.
    pub async fn start(answer: impl Into<String>) -> Self {
        Self::listen(None, answer.into()).await
    }

    pub async fn tls(ca: &Ca, answer: impl Into<String>) -> Self {
        Self::listen(Some(ca.server(&[b"http/1.1"])), answer.into()).await
    }

    async fn listen(tls: Option<Arc<ServerConfig>>, answer: String) -> Self {
        let listener = listen().await;
        let this = Self {
            address: listener.local_addr().expect("an address"),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let recorder = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *recorder.connections.lock().expect("no panic") += 1;
                let (recorder, answer, tls) = (recorder.clone(), answer.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => recorder.serve(stream, &answer).await,
                        Some(tls) => {
                            if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                                recorder.serve(stream, &answer).await;
                            }
                        }
                    }
                });
            }
        });
        this
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S, answer: &str) {
        let mut bytes = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut bytes).await {
            self.requests.lock().expect("no panic").push(request);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }

    pub fn connections(&self) -> usize {
        *self.connections.lock().expect("no panic")
    }

    /// The targets of all requests, as they stood in the request lines.
    pub fn targets(&self) -> Vec<String> {
        let target = |request: &String| request.split(' ').nth(1).expect("a target").to_owned();
        self.requests().iter().map(target).collect()
    }

    /// Names of header lines of the last request, lower-case and in order.
    pub fn last_lines(&self) -> Vec<String> {
        let request = self.requests().pop().expect("a request");
        let head = request.split("\r\n\r\n").next().expect("a head");
        head.split("\r\n").skip(1).map(str::to_lowercase).collect()
    }
}

/// One request with its body, byte for byte; what follows it stays in the buffer.
pub async fn read_request<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = request_end(bytes) {
            let request = bytes.drain(..end).collect();
            return Some(String::from_utf8(request).expect("ASCII"));
        }
        if stream.read_buf(bytes).await.ok()? == 0 {
            return (!bytes.is_empty()).then(|| format!("unfinished {}", String::from_utf8_lossy(bytes)));
        }
    }
}

fn request_end(bytes: &[u8]) -> Option<usize> {
    let find = |from: usize, what: &[u8]| {
        let at = bytes
            .get(from..)?
            .windows(what.len())
            .position(|window| window == what)?;
        Some(from + at + what.len())
    };
    let head = find(0, b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    if text.contains("transfer-encoding: chunked") {
        let last = match bytes[head..].starts_with(b"0\r\n") {
            true => head + 3,
            false => find(head, b"\r\n0\r\n")?,
        };
        return match bytes[last..].starts_with(b"\r\n") {
            true => Some(last + 2),
            false => find(last, b"\r\n\r\n"),
        };
    }
    let length = text.split("content-length: ").nth(1).map_or(0, |rest| {
        rest.split("\r\n")
            .next()
            .unwrap_or("0")
            .parse()
            .expect("a length")
    });
    (bytes.len() >= head + length).then_some(head + length)
}

/// A certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub fn server(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .expect("a server");
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }
}

pub type AnswerBody = UnsyncBoxBody<Bytes, std::io::Error>;
type Handling = Pin<Box<dyn Future<Output = std::io::Result<Response<AnswerBody>>> + Send>>;

/// An API server of HTTP/2 over TLS.
pub async fn http2_server<F, R>(ca: &Ca, handler: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = std::io::Result<Response<AnswerBody>>> + Send + 'static,
{
    let (listener, tls) = (
        listen().await,
        TlsAcceptor::from(ca.server(&[b"h2", b"http/1.1"])),
    );
    let address = listener.local_addr().expect("an address");
    let handler: Arc<dyn Fn(Request<Incoming>) -> Handling + Send + Sync> =
        Arc::new(move |request| Box::pin(handler(request)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, handler) = (tls.clone(), handler.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(move |request| handler(request)))
                    .await;
            });
        }
    });
    address
}

/// What an API server of HTTP/2 saw.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<Vec<SeenRequest>>>);

#[derive(Clone, Debug)]
pub struct SeenRequest {
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Seen {
    pub fn all(&self) -> Vec<SeenRequest> {
        self.0.lock().expect("no panic").clone()
    }

    /// Records, and answers `ok`.
    pub async fn record(self, request: Request<Incoming>) -> std::io::Result<Response<AnswerBody>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?;
        let trailers = body.trailers().cloned();
        self.0.lock().expect("no panic").push(SeenRequest {
            target: head.uri.path_and_query().expect("a path").to_string(),
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
        });
        Ok(Response::new(full("ok")))
    }
}

pub fn full(text: impl Into<Bytes>) -> AnswerBody {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Looks again until it holds.
pub async fn eventually(mut holds: impl FnMut() -> bool, what: impl fmt::Display) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
