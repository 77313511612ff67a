//! A cluster that notes which tokens arrive and answers everything.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use kube_authn_e2e::Authority;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// `Authorization` lines and how often each came. Everything ends with the runtime.
#[derive(Clone)]
pub(crate) struct Recorder {
    port: u16,
    seen: Arc<Mutex<BTreeMap<String, usize>>>,
    refuses: Arc<AtomicBool>,
}

impl Recorder {
    /// A server with a certificate of this authority.
    pub(crate) async fn start(authority: &Authority) -> Self {
        let identity = authority.serving("recorder").unwrap();
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let recorder = Self {
            port: listener.local_addr().unwrap().port(),
            seen: Arc::default(),
            refuses: Arc::default(),
        };
        let this = recorder.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, this) = (acceptor.clone(), this.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |request| {
                        let answer = this.answer(&request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        recorder
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let line = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|line| line.to_str().ok())
            .unwrap_or_default();
        *self.seen.lock().unwrap().entry(line.to_owned()).or_default() += 1;
        let mut answer = Response::new(Full::new(Bytes::from_static(b"{}")));
        let json = header::HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
        if self.refuses.load(Ordering::Relaxed) {
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
        }
        answer
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Answers everything with 401 from now on.
    pub(crate) fn refuse(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }

    /// What came since it was last asked.
    pub(crate) fn take(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}
