//! A server on loopback that answers as it is told, over http or TLS.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
};
use kube_authn_e2e::Identity;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Pin<Box<dyn Future<Output = Option<Response<Body>>> + Send>>;
type Handler = Arc<dyn Fn(Request<Bytes>) -> Answer + Send + Sync>;

/// Everything ends with the runtime.
pub(crate) struct StandIn {
    port: u16,
    shown: Arc<Shown>,
}

struct Shown {
    tls: Mutex<Option<Arc<ServerConfig>>>,
    /// Rises when connections have to end in good order.
    round: watch::Sender<usize>,
    handshakes: AtomicUsize,
    handler: Handler,
}

impl StandIn {
    /// `None` for an answer: the connection is closed in its place.
    pub(crate) async fn start<F>(
        identity: Option<&Identity>,
        handler: impl Fn(Request<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Option<Response<Body>>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shown = Arc::new(Shown {
            tls: Mutex::new(identity.map(server_config)),
            round: watch::Sender::new(0),
            handshakes: AtomicUsize::new(0),
            handler: Arc::new(move |request| Box::pin(handler(request))),
        });
        tokio::spawn({
            let shown = shown.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(shown.clone().connection(stream));
                }
            }
        });
        Self { port, shown }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn https(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Shows another certificate from now on; open connections are told to end after what is under way.
    pub(crate) fn show(&self, identity: &Identity) {
        *self.shown.tls.lock().unwrap() = Some(server_config(identity));
        self.shown.round.send_modify(|round| *round += 1);
    }

    /// TLS handshakes so far.
    pub(crate) fn handshakes(&self) -> usize {
        self.shown.handshakes.load(Ordering::SeqCst)
    }
}

impl Shown {
    async fn connection(self: Arc<Self>, stream: tokio::net::TcpStream) {
        let round = self.round.subscribe();
        let tls = self.tls.lock().unwrap().clone();
        match tls {
            None => self.serve(stream, round).await,
            Some(tls) => {
                if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                    self.handshakes.fetch_add(1, Ordering::SeqCst);
                    self.serve(stream, round).await;
                }
            }
        }
    }

    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        mut round: watch::Receiver<usize>,
    ) {
        let handler = self.handler.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                let answer = handler(Request::from_parts(head, body)).await;
                answer.ok_or_else(|| io::Error::other("closed in place of an answer"))
            }
        });
        let server = Builder::new(TokioExecutor::new());
        let graceful = GracefulShutdown::new();
        let connection = server
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let mut connection = std::pin::pin!(graceful.watch(connection));
        tokio::select! {
            _ = &mut connection => {}
            _ = round.changed() => {
                tokio::join!(graceful.shutdown(), async { let _ = connection.await; });
            }
        }
    }
}

pub(crate) fn json(status: u16, body: &Value) -> Option<Response<Body>> {
    reply(status, "application/json", body.to_string())
}

pub(crate) fn reply(status: u16, kind: &str, body: impl Into<Bytes>) -> Option<Response<Body>> {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {});
    let response = Response::builder().status(status).header("content-type", kind);
    Some(response.body(body.boxed_unsync()).unwrap())
}

/// An answer that promises more than it brings before the connection breaks off.
pub(crate) fn broken_off() -> Option<Response<Body>> {
    let begin = stream::once(async { Ok(Frame::data(Bytes::from_static(b"{\"kind\":"))) });
    let end = stream::once(async {
        // The head and the beginning are on their way by then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Err(io::Error::other("broken off"))
    });
    let body = StreamBody::new(begin.chain(end));
    let response = Response::builder()
        .header("content-type", "application/json")
        .header("content-length", "1000");
    Some(response.body(body.boxed_unsync()).unwrap())
}

fn server_config(identity: &Identity) -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}
