//! The server's certificate, and its successor when the configuration has another one.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use kube_authn_clusters::ServerCertificate;
use kube_authn_core::{
    Clock, Error, ErrorKind, Result, SystemClock,
    jiff::{SignedDuration, Timestamp},
};
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    version::{TLS12, TLS13},
};
use webpki::{EndEntityCert, KeyUsage};

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
                if let Some(warning) = out_of_date(pem, SystemClock.now()) {
                    tracing::warn!("{warning}");
                }
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

/// What to say of a certificate that clients refuse at this time; `None` for one in its time, or one that is none.
pub(crate) fn out_of_date(pem: &ServerCertificate, now: Timestamp) -> Option<String> {
    let certificate = CertificateDer::from_pem_slice(pem.chain.as_bytes()).ok()?;
    let certificate = EndEntityCert::try_from(&certificate).ok()?;
    let time = UnixTime::since_unix_epoch(now.duration_since(Timestamp::UNIX_EPOCH).try_into().ok()?);
    // Trusting nobody, it looks at the certificate's own time first and then finds no issuer.
    let verified = certificate.verify_for_usage(&[], &[], &[], time, KeyUsage::server_auth(), None, None);
    let at = |time: UnixTime| {
        let since = SignedDuration::from_secs(i64::try_from(time.as_secs()).ok()?);
        Timestamp::UNIX_EPOCH.checked_add(since).ok()
    };
    match verified.err()? {
        webpki::Error::CertExpired { not_after, .. } => Some(format!(
            "backend.https.certificate.cert expired at {}: clients refuse it; renew it",
            at(not_after)?
        )),
        webpki::Error::CertNotValidYet { not_before, .. } => Some(format!(
            "backend.https.certificate.cert is not valid before {}: clients refuse it until then",
            at(not_before)?
        )),
        _ => None,
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
