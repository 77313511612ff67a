//! A client's assertion about itself, signed with its certificate's key
//! (<https://learn.microsoft.com/entra/identity-platform/certificate-credentials>).

use std::time::Duration;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kube_authn_core::{
    Secret,
    rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::Serialize;

/// An assertion for the client at this token endpoint. `chain` is PEM, the leaf first; `key` is PEM too, and may be the
/// same text.
///
/// # Errors
/// What is wrong with certificate or key, without their content.
pub(super) fn sign(
    chain: &Secret,
    key: &Secret,
    claims: &Claims<'_>,
    send_chain: bool,
) -> Result<Secret, &'static str> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.expose())
        .collect::<Result<_, _>>()
        .map_err(|_| "is damaged PEM")?;
    let leaf = chain
        .first()
        .ok_or("holds no PEM certificate: PKCS#12 is not read, convert it")?;
    let key = PrivateKeyDer::from_pem_slice(key.expose())
        .map_err(|_| "comes with no PEM key that is not encrypted")?;
    let key = encoding_key(&key).ok_or(NO_RSA_KEY)?;
    let mut header = Header::new(Algorithm::PS256);
    let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    header.x5t_s256 = Some(URL_SAFE_NO_PAD.encode(thumbprint));
    header.x5c = send_chain.then(|| chain.iter().map(|der| STANDARD.encode(der)).collect());
    let signed = jsonwebtoken::encode(&header, claims, &key);
    signed.map(Secret::new).map_err(|_| NO_RSA_KEY)
}

/// jsonwebtoken takes PKCS#8 as PEM alone, and only where nothing else stands beside it.
fn encoding_key(key: &PrivateKeyDer<'_>) -> Option<EncodingKey> {
    match key {
        PrivateKeyDer::Pkcs1(key) => Some(EncodingKey::from_rsa_der(key.secret_pkcs1_der())),
        PrivateKeyDer::Pkcs8(key) => {
            let lines = STANDARD.encode(key.secret_pkcs8_der());
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----\n");
            let (_, pem) = (Secret::new(lines), Secret::new(pem));
            EncodingKey::from_rsa_pem(pem.expose()).ok()
        }
        _ => None,
    }
}

/// What an assertion says. Its times are seconds since 1970.
#[derive(Debug, Serialize)]
pub(super) struct Claims<'a> {
    aud: &'a str,
    iss: &'a str,
    sub: &'a str,
    jti: String,
    iat: i64,
    nbf: i64,
    exp: i64,
}

impl<'a> Claims<'a> {
    pub(super) fn new(
        token_endpoint: &'a str,
        client_id: &'a str,
        now: Timestamp,
    ) -> Result<Self, &'static str> {
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| "cannot be used: this machine has no random numbers")?;
        let now = now.as_second();
        Ok(Self {
            aud: token_endpoint,
            iss: client_id,
            sub: client_id,
            jti: URL_SAFE_NO_PAD.encode(random),
            iat: now,
            nbf: now,
            exp: now.saturating_add(LIFETIME.as_secs() as i64),
        })
    }
}

/// As Azure's own libraries.
const LIFETIME: Duration = Duration::from_secs(10 * 60);

const NO_RSA_KEY: &str = "comes with a key that is no RSA key: Entra takes no other";

#[cfg(test)]
mod tests;
