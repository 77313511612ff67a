//! Proof key for code exchange (RFC 7636), method S256 only.

use std::fmt;

use aws_lc_rs::{digest, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kube_authn_core::{Error, ErrorKind, Result, Secret};
use zeroize::Zeroizing;

/// The secret that proves that whoever redeems a code is who asked for it (RFC 7636 section 4.1): 43 to 128 characters.
#[derive(Clone, PartialEq, Eq)]
pub struct CodeVerifier(Secret);

impl CodeVerifier {
    /// A new verifier of 256 random bits, 43 characters.
    ///
    /// # Errors
    /// `Unexpected` if the system has no random numbers.
    pub fn random() -> Result<Self> {
        Ok(Self(random_text()?))
    }

    /// The verifier that was kept since the login began.
    ///
    /// # Errors
    /// `RequestInvalid` if it is not 43 to 128 characters of `A-Z a-z 0-9 - . _ ~`.
    pub fn new(verifier: Secret) -> Result<Self> {
        let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        match (43..=128).contains(&verifier.len()) && verifier.expose().iter().all(legal) {
            true => Ok(Self(verifier)),
            false => Err(Error::new(
                ErrorKind::RequestInvalid,
                "not a code verifier: expected 43 to 128 unreserved characters",
            )),
        }
    }

    /// What the authorization request carries: base64url of the verifier's SHA-256 (RFC 7636 section 4.2).
    pub fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, self.0.expose()))
    }

    /// The verifier as the token endpoint gets it.
    pub(crate) fn secret(&self) -> &Secret {
        &self.0
    }
}

impl fmt::Debug for CodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeVerifier([redacted])")
    }
}

/// 256 random bits as 43 characters of base64url.
pub(crate) fn random_text() -> Result<Secret> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes)
        .map_err(|source| Error::new(ErrorKind::Unexpected, "no random numbers").with_source(source))?;
    Ok(Secret::new(URL_SAFE_NO_PAD.encode(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_is_the_one_of_rfc_7636_appendix_b() {
        let verifier =
            CodeVerifier::new(Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")).expect("legal");

        assert_eq!(
            verifier.challenge(),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }

    #[test]
    fn octets_of_rfc_7636_appendix_b_encode_to_its_verifier() {
        let octets = [
            116, 24, 223, 180, 151, 153, 224, 37, 79, 250, 96, 125, 216, 173, 187, 186, 22, 212, 37, 77, 105,
            214, 191, 240, 91, 88, 5, 88, 83, 132, 141, 121,
        ];

        assert_eq!(
            URL_SAFE_NO_PAD.encode(octets),
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
        );
    }

    #[test]
    fn random_verifiers_are_legal_and_differ() {
        let (a, b) = (
            CodeVerifier::random().expect("random"),
            CodeVerifier::random().expect("random"),
        );

        assert!(a != b && CodeVerifier::new(a.secret().clone()).is_ok());
    }

    #[test]
    fn short_long_and_odd_verifiers_are_refused() {
        for bad in [
            "a".repeat(42),
            "a".repeat(129),
            format!("{} ", "a".repeat(43)),
            "ü".repeat(30),
        ] {
            assert!(CodeVerifier::new(Secret::new(bad)).is_err());
        }
    }
}
