//! Credentials in JSON, as Google hands them out.
//!
//! <https://cloud.google.com/docs/authentication/application-default-credentials>, <https://google.aip.dev/auth>

use std::{fmt, sync::Arc};

use kube_authn_core::{
    Secret,
    rustls::{
        crypto::CryptoProvider,
        pki_types::{PrivateKeyDer, pem::PemObject},
        sign::SigningKey,
    },
    serde_json::{self, Map, Value},
};
use url::{Host, Url};

use super::{calls, error::FileError};
#[cfg(feature = "google-federation")]
use super::{
    executable::Executable,
    federation::{ExternalAccount, Target},
};

/// Who gets a token, and by what.
#[derive(Debug)]
pub(super) enum Account {
    Key(ServiceAccountKey),
    User(AuthorizedUser),
    /// The service account of this machine or pod.
    Metadata(Url),
    #[cfg(feature = "google-federation")]
    External(Box<ExternalAccount>),
    #[cfg(feature = "google-federation")]
    Impersonated(Box<Account>, Target),
}

/// The key of a service account (type `service_account`).
pub(super) struct ServiceAccountKey {
    pub(super) email: String,
    pub(super) key_id: Option<String>,
    pub(super) key: Arc<dyn SigningKey>,
    pub(super) token_uri: Url,
}

/// A person's login of `gcloud auth application-default login` (type `authorized_user`).
#[derive(Debug)]
pub(super) struct AuthorizedUser {
    pub(super) client_id: String,
    pub(super) client_secret: Secret,
    pub(super) refresh_token: Secret,
    pub(super) token_uri: Url,
}

impl Account {
    /// Reads a file's content. `crypto` makes the key ready to sign.
    pub(super) fn parse(content: &[u8], crypto: &CryptoProvider) -> Result<Self, FileError> {
        if content.len() > MAX_BYTES {
            return Err(FileError::TooLarge);
        }
        // The parser's errors name a place and what it expected there.
        let value = serde_json::from_slice(content).map_err(|error| FileError::Json(error.to_string()))?;
        Self::of(Fields::of(value)?, crypto, MAX_DEPTH)
    }

    fn of(mut fields: Fields, crypto: &CryptoProvider, depth: u8) -> Result<Self, FileError> {
        // As Google's library for Node.js: without a type it is a service account's key.
        let kind = fields.optional_text("type")?;
        match kind.as_deref().unwrap_or("service_account") {
            "service_account" => ServiceAccountKey::of(&mut fields, crypto).map(Self::Key),
            "authorized_user" => AuthorizedUser::of(&mut fields).map(Self::User),
            #[cfg(feature = "google-federation")]
            "external_account" => {
                ExternalAccount::of(&mut fields).map(|account| Self::External(Box::new(account)))
            }
            #[cfg(feature = "google-federation")]
            "impersonated_service_account" => {
                let target = Target::of(&mut fields)?;
                let source = Fields::of(fields.take("source_credentials")?)?;
                if depth == 0 {
                    return Err(FileError::Unsupported("source_credentials are nested too deeply"));
                }
                let source = Self::of(source, crypto, depth - 1)?;
                Ok(Self::Impersonated(Box::new(source), target))
            }
            #[cfg(not(feature = "google-federation"))]
            "external_account" => Err(FileError::NeedsFederation("type external_account")),
            #[cfg(not(feature = "google-federation"))]
            "impersonated_service_account" => {
                let _ = depth;
                Err(FileError::NeedsFederation("type impersonated_service_account"))
            }
            _ => Err(FileError::UnknownType),
        }
    }

    /// The program that gives its subject token.
    #[cfg(feature = "google-federation")]
    pub(super) fn executable(&self) -> Option<&Executable> {
        match self {
            Self::External(external) => external.executable(),
            Self::Impersonated(source, _) => source.executable(),
            Self::Key(_) | Self::User(_) | Self::Metadata(_) => None,
        }
    }

    /// The name of the account if the credentials say it: with two keys of one account nobody else is meant.
    pub(super) fn email(&self) -> Option<&str> {
        match self {
            Self::Key(key) => Some(&key.email),
            Self::User(_) | Self::Metadata(_) => None,
            #[cfg(feature = "google-federation")]
            Self::External(_) | Self::Impersonated(..) => None,
        }
    }
}

impl ServiceAccountKey {
    fn of(fields: &mut Fields, crypto: &CryptoProvider) -> Result<Self, FileError> {
        let email = fields.text("client_email")?;
        let pem = Secret::new(fields.text("private_key")?);
        let der = PrivateKeyDer::from_pem_slice(pem.expose()).map_err(|_| FileError::PrivateKey)?;
        let key = crypto
            .key_provider
            .load_private_key(der)
            .map_err(|_| FileError::PrivateKey)?;
        if key.choose_scheme(&[calls::RS256]).is_none() {
            return Err(FileError::PrivateKey);
        }
        Ok(Self {
            email,
            key_id: fields.optional_text("private_key_id")?,
            key,
            token_uri: fields.token_uri()?,
        })
    }
}

impl AuthorizedUser {
    fn of(fields: &mut Fields) -> Result<Self, FileError> {
        Ok(Self {
            client_id: fields.text("client_id")?,
            client_secret: Secret::new(fields.text("client_secret")?),
            refresh_token: Secret::new(fields.text("refresh_token")?),
            token_uri: fields.token_uri()?,
        })
    }
}

impl fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountKey")
            .field("email", &self.email)
            .finish_non_exhaustive()
    }
}

/// The fields of an object, each read at most once.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn of(value: Value) -> Result<Self, FileError> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(FileError::NoObject),
        }
    }

    #[cfg(feature = "google-federation")]
    pub(super) fn take(&mut self, name: &'static str) -> Result<Value, FileError> {
        self.optional(name).ok_or(FileError::Missing(name))
    }

    pub(super) fn optional(&mut self, name: &'static str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn text(&mut self, name: &'static str) -> Result<String, FileError> {
        self.optional_text(name)?.ok_or(FileError::Missing(name))
    }

    /// Empty text reads as absent, as in JavaScript.
    pub(super) fn optional_text(&mut self, name: &'static str) -> Result<Option<String>, FileError> {
        match self.optional(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(_) => Err(FileError::WrongType(name)),
        }
    }

    fn token_uri(&mut self) -> Result<Url, FileError> {
        let text = self.optional_text("token_uri")?;
        protected_url("token_uri", text.as_deref().unwrap_or(TOKEN_URI))
    }
}

/// A URL that secrets may be sent to: the transport refuses any other, but only when the first token is needed.
pub(super) fn protected_url(name: &'static str, text: &str) -> Result<Url, FileError> {
    let url = Url::parse(text).map_err(|_| FileError::Url(name))?;
    let on_loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(host)) => host == "localhost",
        None => return Err(FileError::Url(name)),
    };
    let is_plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    match url.scheme() {
        "https" if is_plain => Ok(url),
        "http" if is_plain && on_loopback => Ok(url),
        _ => Err(FileError::Url(name)),
    }
}

/// A key file has some 2.5 KiB.
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// Credentials of an impersonated account hold those of another one; more than this nobody writes.
const MAX_DEPTH: u8 = 3;

/// <https://developers.google.com/identity/protocols/oauth2/service-account#authorizingrequests>
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
