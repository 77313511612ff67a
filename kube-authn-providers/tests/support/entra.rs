//! A loopback stand-in for Entra and for the services of managed identities: keeps what it is asked, answers as told.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests"
)]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use kube_authn_core::rustls::{
    self, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use url::form_urlencoded;

/// What one request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub form: BTreeMap<String, String>,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What one answer is.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: &'static str,
    pub body: String,
    pub after: Duration,
}

impl Answer {
    pub fn json(status: u16, body: impl ToString) -> Self {
        Self {
            status,
            headers: "",
            body: body.to_string(),
            after: Duration::ZERO,
        }
    }

    pub fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }
}

type Handler = Arc<dyn Fn(&Seen) -> Answer + Send + Sync>;

/// The stand-in: over https with a certificate of [`Entra::ca`], over http, one record of both.
#[derive(Clone)]
pub struct Entra {
    pub https: String,
    pub http: String,
    /// PEM.
    pub ca: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    handler: Arc<Mutex<Handler>>,
}

impl Entra {
    pub async fn start(handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let (ca, tls) = certificates();
        let (secure, plain) = (listener().await, listener().await);
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let entra = Self {
            https: format!("https://localhost:{}", address(&secure).port()),
            http: format!("http://{}", address(&plain)),
            ca,
            seen: Arc::default(),
            handler: Arc::new(Mutex::new(Arc::new(handler))),
        };
        tokio::spawn(entra.clone().listen(secure, Some(TlsAcceptor::from(tls))));
        tokio::spawn(entra.clone().listen(plain, None));
        entra
    }

    /// Answers otherwise from now on.
    pub fn answer(&self, handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) {
        *self.handler.lock().expect("lock") = Arc::new(handler);
    }

    /// What was asked since the last call.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().expect("lock"))
    }

    async fn listen(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        while let Ok((stream, _)) = listener.accept().await {
            let (entra, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => entra.serve(stream).await,
                        Err(_) => None,
                    },
                    None => entra.serve(stream).await,
                }
            });
        }
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
        let seen = read(&mut stream).await?;
        let handler = self.handler.lock().expect("lock").clone();
        self.seen.lock().expect("lock").push(seen.clone());
        let answer = handler(&seen);
        tokio::time::sleep(answer.after).await;
        let head = format!(
            "HTTP/1.1 {} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n{}\r\n",
            answer.status,
            answer.body.len(),
            answer.headers,
        );
        stream.write_all(head.as_bytes()).await.ok()?;
        stream.write_all(answer.body.as_bytes()).await.ok()?;
        stream.shutdown().await.ok()
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port")
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Seen> {
    let mut bytes = Vec::new();
    let (head, body_at) = loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            break (String::from_utf8(bytes[..end].to_vec()).ok()?, end + 4);
        }
        (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
    };
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    while bytes.len() < body_at + length {
        (stream.read_buf(&mut bytes).await.ok()? > 0).then_some(())?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Seen {
        method,
        path: path.to_owned(),
        query: fields(query.as_bytes()),
        form: fields(&bytes[body_at..]),
        headers,
    })
}

/// Each field once: a repeated one would be lost here, so it fails the test.
fn fields(encoded: &[u8]) -> BTreeMap<String, String> {
    let pairs: Vec<_> = form_urlencoded::parse(encoded).into_owned().collect();
    let fields: BTreeMap<_, _> = pairs.iter().cloned().collect();
    assert_eq!(fields.len(), pairs.len(), "a field stands twice");
    fields
}

fn certificates() -> (String, Arc<ServerConfig>) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test CA");
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&key).expect("a certificate").pem();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, &issuer).expect("a certificate");
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key"),
        )
        .expect("a server");
    (ca, Arc::new(config))
}

/// An RSA certificate and its key, as PEM.
pub fn client_certificate() -> (String, String) {
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, "client");
    (
        params.self_signed(&key).expect("a certificate").pem(),
        key.serialize_pem(),
    )
}
