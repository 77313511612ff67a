//! TLS settings of one transport, and their renewal when the CA file changes.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::{ClientConfig, crypto::CryptoProvider};
use tokio::time::Instant;
use tracing::warn;

use crate::{CaBundle, ClientCertificate, Error, ErrorKind, Result, TlsTrust, tls};

/// Whom a transport trusts and as whom it introduces itself. Connections remember the epoch they were made under: when
/// the CA file changes the epoch rises, and connections of an earlier one take no new request.
pub(crate) struct Trust {
    provider: Arc<CryptoProvider>,
    trust: TlsTrust,
    certificate: Option<ClientCertificate>,
    epoch: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    settings: Option<Settings>,
    looked: Option<Instant>,
}

/// What a handshake needs.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) epoch: u64,
    /// Offers h2, and HTTP/1.1 for servers that do not speak it.
    pub(crate) http2: Arc<ClientConfig>,
    pub(crate) http1: Arc<ClientConfig>,
    ca: Option<Arc<[u8]>>,
}

impl Trust {
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        trust: TlsTrust,
        certificate: Option<ClientCertificate>,
    ) -> Arc<Self> {
        Arc::new(Self {
            provider,
            trust,
            certificate,
            epoch: AtomicU64::new(0),
            state: Mutex::default(),
        })
    }

    /// The epoch in force; connections of an earlier one are done.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The settings in force; read from the CA file if that was not done lately.
    pub(crate) async fn settings(self: &Arc<Self>) -> Result<Settings> {
        let known = self.lock().settings.clone();
        match known {
            Some(settings) if !self.is_due() => Ok(settings),
            _ => self.read().await,
        }
    }

    /// Reads the CA file now. Says whether another one is in force than in this epoch, by whoever read it.
    pub(crate) async fn renew(self: &Arc<Self>, before: u64) -> bool {
        self.is_file() && self.read().await.is_ok() && self.epoch() != before
    }

    /// Has the CA file looked at in the background if that was not done lately. Called with every request: an atomic
    /// read unless there is a file.
    pub(crate) fn look(self: &Arc<Self>) {
        if self.is_file() && self.is_due() {
            self.lock().looked = Some(Instant::now());
            let trust = self.clone();
            tokio::task::spawn_blocking(move || {
                // A failure is logged where it happens; what is known stays in force.
                let _ = trust.read_now();
            });
        }
    }

    async fn read(self: &Arc<Self>) -> Result<Settings> {
        let trust = self.clone();
        tokio::task::spawn_blocking(move || trust.read_now())
            .await
            .map_err(|source| Error::new(ErrorKind::Unexpected, "cannot read the CA").with_source(source))?
    }

    fn read_now(&self) -> Result<Settings> {
        let known = {
            let mut state = self.lock();
            state.looked = Some(Instant::now());
            state.settings.clone()
        };
        match (self.build(known.as_ref()), known) {
            (Ok(settings), _) => Ok(self.put_in_force(settings)),
            (Err(error), None) => Err(error),
            (Err(error), Some(known)) => {
                warn!(%error, "the CA file cannot be read again, the last good one stays in force");
                Ok(known)
            }
        }
    }

    /// The known settings if the CA is still the same one.
    fn build(&self, known: Option<&Settings>) -> Result<Settings> {
        let ca = match self.trust.skip_verify() {
            true => None,
            false => self.trust.ca().read()?,
        };
        if let Some(known) = known
            && known.ca == ca
        {
            return Ok(known.clone());
        }
        let trust = match &ca {
            Some(pem) => TlsTrust::new(CaBundle::Pem(pem.clone())),
            None => self.trust.clone(),
        };
        let config = |alpn: &[&[u8]]| {
            tls::client_config_with_certificate(&self.provider, &trust, self.certificate.as_ref(), alpn)
                .map(Arc::new)
        };
        Ok(Settings {
            epoch: known.map_or(0, |known| known.epoch + 1),
            http2: config(&[HTTP2, HTTP1])?,
            http1: config(&[HTTP1])?,
            ca,
        })
    }

    fn put_in_force(&self, settings: Settings) -> Settings {
        let mut state = self.lock();
        // Of two that read at once, the first with a new CA wins; both read the same file.
        if let Some(known) = &state.settings
            && known.epoch >= settings.epoch
        {
            return known.clone();
        }
        self.epoch.store(settings.epoch, Ordering::Release);
        state.settings = Some(settings.clone());
        settings
    }

    fn is_file(&self) -> bool {
        !self.trust.skip_verify() && matches!(self.trust.ca(), CaBundle::File(_))
    }

    fn is_due(&self) -> bool {
        self.is_file()
            && self
                .lock()
                .looked
                .is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("trust", &self.trust)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Protocol names of RFC 7301 as registered for HTTP/2 (RFC 9113 section 3.1) and HTTP/1.1.
pub(crate) const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// How often the CA file is looked at while requests flow. A rotated CA overlaps the old one by hours; a handshake that
/// fails looks at once.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;

    use super::*;

    fn authority() -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.self_signed(&key).expect("a certificate").pem()
    }

    #[tokio::test]
    async fn all_whose_handshake_failed_under_the_old_ca_learn_of_the_new_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, authority()).expect("written");
        let trust = Trust::new(
            Arc::new(aws_lc_rs::default_provider()),
            TlsTrust::new(CaBundle::File(file.clone().into())),
            None,
        );
        let failed_under = trust.settings().await.expect("settings").epoch;
        assert!(!trust.renew(failed_under).await, "the file is the same");

        std::fs::write(&file, authority()).expect("written");

        for _ in 0..3 {
            assert!(trust.renew(failed_under).await);
        }
    }
}
