//! What tests of several files need.

use base64::{Engine, engine::general_purpose::STANDARD};

/// A CA as it stands in `caData`.
pub(crate) fn ca_data() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .expect("a certificate");
    STANDARD.encode(certificate.pem())
}
