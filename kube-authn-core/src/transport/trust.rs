//! TLS settings that follow the CA file.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::{ClientConfig, crypto::CryptoProvider};

use crate::{CaBundle, Result, TlsTrust, tls};

/// Settings that follow the CA file: read again for each connection, built again when its text has changed.
pub(super) struct TlsSettings {
    provider: Arc<CryptoProvider>,
    pub(super) trust: TlsTrust,
    built: Mutex<Built>,
}

#[derive(Clone)]
struct Built {
    pem: Option<Arc<[u8]>>,
    config: Arc<ClientConfig>,
}

impl TlsSettings {
    /// Settings for the CA as it stands now.
    ///
    /// # Errors
    /// `ConfigInvalid` if it cannot be read or holds no certificate.
    pub(super) fn new(provider: Arc<CryptoProvider>, trust: TlsTrust) -> Result<Self> {
        let pem = trust.ca().read()?;
        let config = Arc::new(tls::client_config(&provider, &trust, &[b"http/1.1"])?);
        Ok(Self {
            provider,
            trust,
            built: Mutex::new(Built { pem, config }),
        })
    }

    /// The settings for the CA as it stands now. While a file is being replaced the last good one stays in force.
    pub(super) async fn current(&self) -> Result<Arc<ClientConfig>> {
        let built = self.built.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let CaBundle::File(_) = self.trust.ca() else {
            return Ok(built.config);
        };
        let ca = self.trust.ca().clone();
        let pem = match tokio::task::spawn_blocking(move || ca.read()).await {
            Ok(Ok(Some(pem))) if built.pem.as_ref() != Some(&pem) => pem,
            _ => return Ok(built.config),
        };
        let trust = match self.trust.skip_verify() {
            true => TlsTrust::dangerously_skip_verify(CaBundle::Pem(pem.clone())),
            false => TlsTrust::new(CaBundle::Pem(pem.clone())),
        };
        let Ok(config) = tls::client_config(&self.provider, &trust, &[b"http/1.1"]) else {
            tracing::warn!(ca = ?self.trust.ca(), "the CA file holds no usable certificate: the last good one stays in force");
            return Ok(built.config);
        };
        let config = Arc::new(config);
        *self.built.lock().unwrap_or_else(PoisonError::into_inner) = Built {
            pem: Some(pem),
            config: config.clone(),
        };
        Ok(config)
    }
}
