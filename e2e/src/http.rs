//! One small HTTP client for issuers and their admin port: a connection per request, nothing kept, nothing followed.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::{Context, Error, Result};

const TIMEOUT: Duration = Duration::from_secs(20);
const MAX_BODY_BYTES: usize = 1 << 20;

/// An HTTP client that trusts the test CA alone.
#[derive(Clone, Debug)]
pub struct Http {
    tls: Arc<ClientConfig>,
}

impl Http {
    /// A client that trusts the certificates in `ca_pem`.
    ///
    /// # Errors
    /// When there is no certificate in it.
    pub fn new(ca_pem: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots
                .add(certificate.context("read the test CA")?)
                .context("trust the test CA")?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choose TLS versions")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    /// Sends one request with an absolute URL; redirects are the caller's.
    ///
    /// # Errors
    /// When there is no answer within 20 seconds. Every status is an answer.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let target = format!("{} {}", request.method(), without_query(request.uri()));
        match tokio::time::timeout(TIMEOUT, self.exchange(request)).await {
            Ok(answer) => answer.context(target),
            Err(_) => Err(Error::new(format!("{target}: no answer in time"))),
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let secure = request.uri().scheme_str() == Some("https");
        let authority = request
            .uri()
            .authority()
            .cloned()
            .ok_or_else(|| Error::new("the URL has no host"))?;
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((authority.host(), port))
            .await
            .context("connect")?;
        if secure {
            let name = ServerName::try_from(authority.host().to_owned()).context("read the host name")?;
            let stream = TlsConnector::from(self.tls.clone())
                .connect(name, stream)
                .await
                .context("TLS")?;
            speak(TokioIo::new(stream), request).await
        } else {
            speak(TokioIo::new(stream), request).await
        }
    }
}

async fn speak<S>(stream: S, mut request: Request<Bytes>) -> Result<Response<Bytes>>
where
    S: Read + Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .context("HTTP")?;
    tokio::spawn(connection);
    if let Some(authority) = request.uri().authority() {
        let host = header::HeaderValue::from_str(authority.as_str()).context("write the Host header")?;
        request.headers_mut().insert(header::HOST, host);
    }
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    *request.uri_mut() = path.parse().context("read the path")?;
    let (head, body) = sender
        .send_request(request.map(Full::new))
        .await
        .context("send")?
        .into_parts();
    let body = Limited::new(body, MAX_BODY_BYTES)
        .collect()
        .await
        .context("read the body")?
        .to_bytes();
    Ok(Response::from_parts(head, body))
}

/// Queries of logins hold codes.
fn without_query(uri: &http::Uri) -> String {
    uri.to_string().split('?').next().unwrap_or_default().to_owned()
}

/// Whether the TLS server on a loopback port shows exactly this certificate. It is looked at, not trusted.
pub(crate) async fn shows(port: u16, certificate_pem: &str) -> Result<bool> {
    let wanted = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).context("read a certificate")?;
    let looked = Looked::default();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(looked.clone()))
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connect")?;
    let name = ServerName::try_from("127.0.0.1").context("read the host name")?;
    // The verifier refuses every certificate; what it saw is all we want.
    let _ = TlsConnector::from(Arc::new(tls)).connect(name, stream).await;
    Ok(looked.0.get().is_some_and(|shown| *shown == wanted))
}

/// Keeps the certificate it is shown and refuses it.
#[derive(Clone, Debug, Default)]
struct Looked(Arc<OnceLock<CertificateDer<'static>>>);

impl ServerCertVerifier for Looked {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let _ = self.0.set(end_entity.clone().into_owned());
        Err(rustls::Error::General("only looked at".into()))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only looked at".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only looked at".into()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
