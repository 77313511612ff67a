//! The block `backend`: what `check` tells of it, and what `serve` starts with.

use std::sync::Arc;

use kube_authn_clusters::{AppConfig, BackendConfig, InvalidConfig};
use kube_authn_core::{Clock, SystemClock};

use crate::listen::tls::{Certificate, out_of_date};

/// Where to listen, and what connections are shown there.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) listen: BackendConfig,
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// What works and should be looked at.
    pub(crate) warnings: Vec<String>,
}

impl Backend {
    /// # Errors
    /// Everything that is wrong with `backend.listen` and `backend.https`, with file and key.
    pub(crate) fn read(config: &AppConfig) -> Result<Self, InvalidConfig> {
        let listen = BackendConfig::read(config)?;
        let mut warnings = Vec::new();
        let certificate = match &listen.certificate {
            Some(pem) => {
                let certificate = Certificate::new(pem).map_err(|error| {
                    let place = config.value("backend.https.certificate");
                    InvalidConfig::new(vec![place.problem(error.to_string())])
                })?;
                warnings.extend(out_of_date(pem, SystemClock.now()));
                Some(Arc::new(certificate))
            }
            None => None,
        };
        Ok(Self {
            listen,
            certificate,
            warnings,
        })
    }
}
