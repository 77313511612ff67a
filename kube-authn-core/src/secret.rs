//! The only type that holds secret bytes.

use std::fmt;

use bytes::Bytes;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{Error, ErrorKind, Result};

/// Secret bytes: a token, a key, a password.
///
/// `Debug` prints `[redacted]`; there is no `Display` and no `Serialize`; comparison takes constant time for equal
/// lengths; the memory is zeroed when the last clone is dropped. Cloning shares the bytes.
#[derive(Clone)]
pub struct Secret(Bytes);

impl Secret {
    /// Takes the bytes over; they are zeroed when the last clone is dropped.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(zeroed_on_drop(Zeroizing::new(bytes.into())))
    }

    /// The bytes themselves. Call this only where they leave the process: on the wire or into a cipher.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, `None` if they are not UTF-8. The same warning as for [`Secret::expose`].
    pub fn expose_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// `Bearer <token>` as a sensitive header value that shares one zeroing buffer with its clones.
    ///
    /// # Errors
    /// `TokenRejected` if the token is empty or holds anything but the visible ASCII of RFC 6750 section 2.1: a line
    /// break or a space would end the header or the token early.
    pub fn to_bearer(&self) -> Result<HeaderValue> {
        if self.0.is_empty() || !self.0.iter().all(u8::is_ascii_graphic) {
            return Err(Error::new(
                ErrorKind::TokenRejected,
                "the token is empty or holds characters that no bearer token may have",
            ));
        }
        let mut line = Zeroizing::new(Vec::with_capacity(BEARER.len() + self.0.len()));
        line.extend_from_slice(BEARER);
        line.extend_from_slice(&self.0);
        sensitive(zeroed_on_drop(line))
    }

    /// The bytes as they are as a sensitive header value; shares the zeroing buffer.
    ///
    /// # Errors
    /// `TokenRejected` if a header cannot hold them.
    #[cfg_attr(
        not(feature = "upstream"),
        allow(dead_code, reason = "only the request path takes such a line")
    )]
    pub(crate) fn to_header(&self) -> Result<HeaderValue> {
        sensitive(self.0.clone())
    }
}

fn sensitive(line: Bytes) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_maybe_shared(line).map_err(|source| {
        Error::new(ErrorKind::TokenRejected, "the token is no header value").with_source(source)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn zeroed_on_drop(bytes: Zeroizing<Vec<u8>>) -> Bytes {
    Bytes::from_owner(bytes)
}

impl From<SecretString> for Secret {
    fn from(secret: SecretString) -> Self {
        Self::new(secret.expose_secret().as_bytes())
    }
}

impl From<&SecretString> for Secret {
    fn from(secret: &SecretString) -> Self {
        Self::new(secret.expose_secret().as_bytes())
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Scheme of RFC 6750 section 2.1.
pub(crate) const BEARER: &[u8] = b"Bearer ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_byte() {
        let secret = Secret::new("canary-token");

        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert!(!format!("{:?}", secret.to_bearer().expect("a bearer")).contains("canary"));
    }

    #[test]
    fn token_with_a_line_break_never_becomes_a_header() {
        for token in [
            "a\r\nImpersonate-Group: system:masters",
            "a\n",
            "a b",
            "",
            "ü",
            "a\0",
        ] {
            let error = Secret::new(token).to_bearer().expect_err("refused");

            assert_eq!(error.kind(), ErrorKind::TokenRejected, "{token:?}");
        }
    }

    #[test]
    fn bearer_line_is_the_scheme_and_the_token() {
        let value = Secret::new("abc.def").to_bearer().expect("a bearer");

        assert_eq!(value.as_bytes(), b"Bearer abc.def");
        assert!(value.is_sensitive());
    }
}
