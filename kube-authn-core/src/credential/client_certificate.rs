//! A client certificate and its key.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::{Arc, LazyLock},
};

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{Error, ErrorKind, Result, Secret};

mod validity;

/// A certificate that is shown to the API server in the TLS handshake, with its private key.
///
/// Two are equal if chain and key are: that decides which connections they may share. Clones share the value; `Debug`
/// shows no byte of either.
#[derive(Clone)]
pub struct ClientCertificate(Arc<Inner>);

struct Inner {
    chain: Vec<CertificateDer<'static>>,
    key: Secret,
    hash: u64,
}

impl ClientCertificate {
    /// A chain in PEM, the client's own certificate first, and its private key in PEM (PKCS #8, PKCS #1 or SEC 1), as
    /// `client-certificate-data` and `client-key-data` of a kubeconfig are after base64.
    ///
    /// # Errors
    /// `ConfigInvalid` if either is not PEM or holds no such block. Whether key and certificate belong together shows
    /// when a connection is made.
    pub fn from_pem(chain: &[u8], key: Secret) -> Result<Self> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| refuse("the client certificate is not valid PEM").with_source(source))?;
        if chain.is_empty() {
            return Err(refuse(
                "the client certificate holds no PEM block of type CERTIFICATE",
            ));
        }
        let mut hasher = HASHER.build_hasher();
        chain.hash(&mut hasher);
        key.expose().hash(&mut hasher);
        let hash = hasher.finish();
        let certificate = Self(Arc::new(Inner { chain, key, hash }));
        certificate.private_key().map(|_| certificate)
    }

    /// The chain, the client's own certificate first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// The UTC instant after which the client's own certificate is refused (RFC 5280 section 4.1.2.5); `None` if it cannot
    /// be read from it.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.0
            .chain
            .first()
            .and_then(|certificate| validity::not_after(certificate))
    }

    /// Checks that key and certificate belong together.
    ///
    /// # Errors
    /// `ConfigInvalid` if they do not, or if this crypto provider cannot use the key.
    #[cfg(feature = "upstream")]
    pub fn check_key(&self, provider: &rustls::crypto::CryptoProvider) -> Result<()> {
        let key = provider
            .key_provider
            .load_private_key(self.private_key()?)
            .map_err(|source| {
                refuse("the key of the client certificate cannot be used").with_source(source)
            })?;
        rustls::sign::CertifiedKey::new(self.0.chain.clone(), key)
            .keys_match()
            .map_err(|source| {
                refuse("the client certificate and its key do not belong together").with_source(source)
            })
    }

    /// The private key, parsed anew: call this only where a TLS configuration is built.
    ///
    /// # Errors
    /// `ConfigInvalid` if it is no private key.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        // The parser's own error may quote the text.
        PrivateKeyDer::from_pem_slice(self.0.key.expose())
            .map_err(|_| refuse("the key of the client certificate holds no PEM block of a private key"))
    }
}

impl PartialEq for ClientCertificate {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&*self.0, &*other.0);
        Arc::ptr_eq(&self.0, &other.0) || (a.hash == b.hash && a.chain == b.chain && a.key == b.key)
    }
}

impl Eq for ClientCertificate {}

impl Hash for ClientCertificate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientCertificate({} in chain)", self.0.chain.len())
    }
}

fn refuse(message: &'static str) -> Error {
    Error::new(ErrorKind::ConfigInvalid, message)
}

/// Seeded per process, so that the hash says nothing about the key outside of it.
static HASHER: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
    const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----\nMAEA\n-----END PRIVATE KEY-----\n";

    #[test]
    fn certificates_are_equal_by_content() {
        let certificate =
            |key: &str| ClientCertificate::from_pem(CHAIN.as_bytes(), Secret::new(key)).expect("valid");

        assert_eq!(certificate(KEY), certificate(KEY));
        assert_ne!(certificate(KEY), certificate(OTHER_KEY));
    }

    #[test]
    fn text_that_is_no_key_is_refused_without_being_shown() {
        let error =
            ClientCertificate::from_pem(CHAIN.as_bytes(), Secret::new("canary")).expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(!format!("{error:?}").contains("canary"));
    }
}
