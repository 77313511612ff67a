//! Whose certificates an API server may show, and the one reader of CA files.

use std::{fmt, io::Read, path::Path, sync::Arc};

use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{Error, ErrorKind};

/// Whose certificates the API server may show.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TlsTrust {
    ca: CaBundle,
    skip_verify: bool,
}

impl TlsTrust {
    /// Certificates of this bundle only.
    pub fn new(ca: CaBundle) -> Self {
        Self {
            ca,
            skip_verify: false,
        }
    }

    /// No verification at all: anybody on the way can read and change everything, tokens included.
    pub fn dangerously_skip_verify(ca: CaBundle) -> Self {
        Self {
            ca,
            skip_verify: true,
        }
    }

    /// The bundle of certificate authorities.
    pub fn ca(&self) -> &CaBundle {
        &self.ca
    }

    /// Whether verification is off.
    pub fn skip_verify(&self) -> bool {
        self.skip_verify
    }
}

impl fmt::Debug for TlsTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTrust")
            .field("ca", &self.ca)
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

/// Where the certificate authorities come from.
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CaBundle {
    /// The machine's own roots.
    System,
    /// PEM text given in the configuration.
    Pem(Arc<[u8]>),
    /// A PEM file that is read again when it changes.
    File(Arc<Path>),
}

impl CaBundle {
    /// The PEM text of the bundle, read from the file if it is one; `None` for the machine's own roots.
    ///
    /// # Errors
    /// `ConfigInvalid` naming the file if it cannot be read, is no regular file, or is larger than 1 MiB.
    pub fn read(&self) -> Result<Option<Arc<[u8]>>, Error> {
        match self {
            Self::System => Ok(None),
            Self::Pem(pem) => Ok(Some(pem.clone())),
            Self::File(path) => read_ca_file(path).map(Some),
        }
    }
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("System"),
            Self::Pem(pem) => write!(f, "Pem({} bytes)", pem.len()),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// The certificate authorities in PEM text: at least one, each an X.509 certificate that can be a trust anchor.
///
/// # Errors
/// A sentence that says what is wrong with the text.
pub fn parse_ca(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("the CA is not valid PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("the CA holds no PEM block of type CERTIFICATE".to_owned());
    }
    for certificate in &certificates {
        webpki::anchor_from_trusted_cert(certificate)
            .map_err(|error| format!("the CA holds a block that is no X.509 certificate: {error}"))?;
    }
    Ok(certificates)
}

#[allow(clippy::disallowed_methods, reason = "the CA reader")]
pub(super) fn read_ca_file(path: &Path) -> Result<Arc<[u8]>, Error> {
    let refuse = |what: &str| {
        Error::new(
            ErrorKind::ConfigInvalid,
            format!("cannot read the CA file {}: {what}", path.display()),
        )
    };
    let metadata = std::fs::metadata(path).map_err(|error| refuse(&error.to_string()).with_source(error))?;
    if !metadata.is_file() {
        return Err(refuse("it is no regular file"));
    }
    if metadata.len() > MAX_CA_BYTES {
        return Err(refuse("it is larger than 1 MiB"));
    }
    // It may grow, or be another file, between the look and the reading.
    let mut pem = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_CA_BYTES + 1).read_to_end(&mut pem))
        .map_err(|error| refuse(&error.to_string()).with_source(error))?;
    if pem.len() as u64 > MAX_CA_BYTES {
        return Err(refuse("it is larger than 1 MiB"));
    }
    Ok(pem.into())
}

/// A bundle of every public root is 200 KiB; more than 1 MiB is no CA file.
const MAX_CA_BYTES: u64 = 1024 * 1024;
