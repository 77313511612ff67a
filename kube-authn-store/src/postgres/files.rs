//! The certificates and the key that a URL names, looked at before anybody connects: the driver reads them with every
//! connection, and would take a missing one for a server that does not answer.

use std::path::Path;

use kube_authn_core::{ClientCertificate, Error, ErrorKind, Result, Secret, parse_ca};
use percent_encoding::percent_decode_str;

use super::address::{pairs, refused};

/// Refuses a missing or unreadable file, and one that is not what its parameter says.
pub(super) fn check(query: &str) -> Result<()> {
    if let Some(ca) = File::of(query, "sslrootcert", "PGSSLROOTCERT") {
        let pem = ca.read()?;
        parse_ca(&pem).map_err(|why| ca.unusable(&why))?;
    }
    let certificate = File::of(query, "sslcert", "PGSSLCERT");
    let key = File::of(query, "sslkey", "PGSSLKEY");
    match (certificate, key) {
        (None, None) => Ok(()),
        (Some(certificate), Some(key)) => {
            let (chain, secret) = (certificate.read()?, Secret::new(key.read()?));
            // One for the other tells which of the two is wrong.
            parse_ca(&chain).map_err(|_| certificate.unusable("it holds no certificate in PEM"))?;
            ClientCertificate::from_pem(&chain, secret)
                .map(drop)
                .map_err(|error| key.unusable(&error.to_string()))
        }
        (Some(_), None) => Err(refused("it has an sslcert and no sslkey: name both")),
        (None, Some(_)) => Err(refused("it has an sslkey and no sslcert: name both")),
    }
}

/// A file that the URL names, or the environment where the URL does not.
struct File {
    /// Its parameter or variable.
    name: &'static str,
    /// Its path, or PEM text in its place.
    value: String,
}

impl File {
    #[allow(
        clippy::disallowed_methods,
        reason = "the driver reads it too, and does not tell"
    )]
    fn of(query: &str, parameter: &'static str, variable: &'static str) -> Option<Self> {
        // Of several the driver takes the last one.
        match pairs(query).filter(|(name, _)| *name == parameter).last() {
            Some((_, value)) => Some(Self {
                name: parameter,
                value: percent_decode_str(&value.replace('+', " "))
                    .decode_utf8_lossy()
                    .into_owned(),
            }),
            None => std::env::var(variable).ok().map(|value| Self {
                name: variable,
                value,
            }),
        }
    }

    fn is_text(&self) -> bool {
        self.value.trim_start().starts_with("-----BEGIN")
    }

    #[allow(clippy::disallowed_methods, reason = "the files that the URL names")]
    fn read(&self) -> Result<Vec<u8>> {
        if self.is_text() {
            return Ok(self.value.clone().into_bytes());
        }
        let path = Path::new(&self.value);
        match std::fs::metadata(path) {
            Ok(found) if !found.is_file() => Err(self.unusable("it is no regular file")),
            Ok(found) if found.len() > MAX_BYTES => Err(self.unusable("it is larger than 1 MiB")),
            _ => std::fs::read(path).map_err(|error| self.unusable(&error.to_string())),
        }
    }

    fn unusable(&self, why: &str) -> Error {
        let place = match self.is_text() {
            true => String::new(),
            false => format!(" {}", self.value),
        };
        Error::new(
            ErrorKind::ConfigInvalid,
            format!("cannot use the file{place} of {}: {why}", self.name),
        )
    }
}

/// More than every public root of the world.
const MAX_BYTES: u64 = 1024 * 1024;
