//! The server's certificate, and its successor when the configuration has another one.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use kube_authn_clusters::ServerCertificate;
use kube_authn_core::{Error, ErrorKind, Result};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};

/// The certificate that new connections are shown.
#[derive(Debug)]
pub(crate) struct Certificate {
    config: ArcSwap<ServerConfig>,
    /// What was tried last, so that each change is tried and reported once.
    seen: Mutex<Seen>,
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Certificate(ServerCertificate),
    Unreadable(String),
}

impl Certificate {
    /// # Errors
    /// `ConfigInvalid` if certificate or key cannot be used, or do not belong together.
    pub(crate) fn new(pem: &ServerCertificate) -> Result<Self> {
        Ok(Self {
            config: ArcSwap::new(server_config(pem)?),
            seen: Mutex::new(Seen::Certificate(pem.clone())),
        })
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Puts this certificate in force if it is another one; one that cannot be used is reported, and the old one stays.
    pub(crate) fn renew(&self, pem: Option<&ServerCertificate>) {
        let Some(pem) = pem else {
            let error = Error::new(ErrorKind::ConfigInvalid, "backend.https.certificate is gone");
            return self.not_read(&error);
        };
        if !self.is_new(Seen::Certificate(pem.clone())) {
            return;
        }
        match server_config(pem) {
            Ok(config) => {
                self.config.store(config);
                tracing::info!("the certificate was renewed");
            }
            Err(error) => {
                tracing::warn!(%error, "the new certificate cannot be used: the old one stays in force");
            }
        }
    }

    /// The configuration cannot be read now.
    pub(crate) fn not_read(&self, error: &Error) {
        if self.is_new(Seen::Unreadable(error.to_string())) {
            tracing::warn!(%error, "the certificate cannot be read again: the old one stays in force");
        }
    }

    fn is_new(&self, now: Seen) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let new = *seen != now;
        *seen = now;
        new
    }
}

fn server_config(pem: &ServerCertificate) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(pem.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| refuse("backend.https.certificate.cert is not valid PEM").with_source(source))?;
    if chain.is_empty() {
        return Err(refuse(
            "backend.https.certificate.cert holds no PEM block of type CERTIFICATE: it takes the text of the file, not \
             its path; read it with $file",
        ));
    }
    // The parser's own error may quote the text.
    let key = PrivateKeyDer::from_pem_slice(pem.key.expose())
        .map_err(|_| refuse("backend.https.certificate.key holds no PEM block of a private key"))?;
    let provider = CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|source| refuse("the crypto provider supports neither TLS 1.3 nor 1.2").with_source(source))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| {
            refuse("backend.https.certificate.cert and .key cannot be used together").with_source(source)
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn refuse(message: &'static str) -> Error {
    Error::new(ErrorKind::ConfigInvalid, message)
}
