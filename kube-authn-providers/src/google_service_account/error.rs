//! What goes wrong on the way to a token of Google.

use std::{fmt::Write as _, io, path::PathBuf};

use kube_authn_core::{Error, ErrorKind, http::StatusCode};

#[cfg(feature = "google-federation")]
use super::executable::ExecutableError;

/// A failure, without secrets and without an answer's body.
#[derive(Debug, thiserror::Error)]
pub(super) enum GoogleError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("cannot use {}: {source}", path.display())]
    Unusable { path: PathBuf, source: FileError },
    #[error("{0}")]
    Call(#[source] Error),
    #[error("{host} answers {}{}", status.as_u16(), reason(*status, *code))]
    Refused {
        host: String,
        status: StatusCode,
        code: Option<&'static str>,
    },
    #[error("the answer of {0} is no access token")]
    NoToken(String),
    #[error("{0} answers without Metadata-Flavor: Google: it is no metadata server")]
    NoMetadataServer(String),
    #[error("GCE_METADATA_HOST is no host or host:port")]
    MetadataHost,
    #[error("the private key does not sign")]
    Signature,
    #[cfg(not(feature = "google-federation"))]
    #[error("{0} is not in this build: enable the feature google-federation")]
    NeedsFederation(&'static str),
    #[cfg(feature = "google-federation")]
    /// Our own token could not be had; this error says it all.
    #[error(transparent)]
    Impersonator(Error),
    #[cfg(feature = "google-federation")]
    #[error("the URL of IAM credentials is malformed")]
    IamUrl,
    #[cfg(feature = "google-federation")]
    #[error("the program {} gives no subject token: {source}", program.display())]
    Executable {
        program: PathBuf,
        source: ExecutableError,
    },
    #[cfg(feature = "google-federation")]
    #[error("the subject token {0}")]
    SubjectToken(String),
}

/// What is wrong with credentials in JSON. Says places and names of fields, never a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FileError {
    #[error("{0}")]
    Json(String),
    #[error("larger than 64 KiB")]
    TooLarge,
    #[error("expected a JSON object")]
    NoObject,
    /// The text of Google's library for Node.js, which Backstage shows.
    #[error("The incoming JSON object does not contain a {0} field")]
    Missing(&'static str),
    #[error("the field {0} has the wrong type")]
    WrongType(&'static str),
    #[error(
        "unknown type: expected service_account, authorized_user, external_account or impersonated_service_account"
    )]
    UnknownType,
    #[error("the field {0} holds no URL with https (http on loopback only)")]
    Url(&'static str),
    #[error("the field private_key holds no RSA key in PEM")]
    PrivateKey,
    #[cfg(not(feature = "google-federation"))]
    #[error("{0} is not in this build: enable the feature google-federation")]
    NeedsFederation(&'static str),
    #[cfg(feature = "google-federation")]
    #[error("{0}")]
    Unsupported(&'static str),
}

impl GoogleError {
    /// Backstage's text, then what failed and why; `source` says where the credentials come from.
    pub(super) fn of_source(self, source: &str) -> Error {
        #[cfg(feature = "google-federation")]
        if let Self::Impersonator(error) = self {
            return error;
        }
        let mut text = format!("{UNABLE} {source}: {self}");
        if let Self::Refused { code: Some(code), .. } = &self
            && let Some(hint) = HINTS
                .iter()
                .find(|(known, _)| known == code)
                .map(|(_, hint)| hint)
        {
            let _infallible = write!(text, ": {hint}");
        }
        let kind = self.kind();
        let error = Error::new(kind, text);
        match self {
            Self::Call(source) => error.with_retryable(source.is_retryable()).with_source(source),
            other => error.with_source(other),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Call(source) => source.kind(),
            #[cfg(feature = "google-federation")]
            Self::Impersonator(source) => source.kind(),
            Self::Refused { status, .. } if status.is_client_error() && !RETRIED.contains(status) => {
                ErrorKind::ConfigInvalid
            }
            Self::Refused { .. } | Self::NoToken(_) => ErrorKind::Unavailable,
            Self::Unreadable { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
                    ErrorKind::ConfigInvalid
                }
                _ => ErrorKind::Unavailable,
            },
            #[cfg(feature = "google-federation")]
            Self::SubjectToken(_) => ErrorKind::Unavailable,
            #[cfg(feature = "google-federation")]
            Self::Executable { source, .. } => source.kind(),
            #[cfg(feature = "google-federation")]
            Self::IamUrl => ErrorKind::ConfigInvalid,
            Self::Unusable { .. } | Self::NoMetadataServer(_) | Self::MetadataHost | Self::Signature => {
                ErrorKind::ConfigInvalid
            }
            #[cfg(not(feature = "google-federation"))]
            Self::NeedsFederation(_) => ErrorKind::ConfigInvalid,
        }
    }
}

/// Credentials that stand in the configuration, in Backstage's words.
pub(super) fn configured(failure: FileError) -> Error {
    let text = configured_text(&failure);
    Error::new(ErrorKind::ConfigInvalid, text).with_source(failure)
}

pub(super) fn configured_text(failure: &FileError) -> String {
    match failure {
        FileError::Missing("client_email") => failure.to_string(),
        _ => format!("Failed to parse Google Service Account credentials from config: {failure}"),
    }
}

/// The error code of an answer if it is one of those that are registered; anything else may hold whatever was sent.
pub(super) fn known_code(code: &str) -> Option<&'static str> {
    CODES.into_iter().find(|known| *known == code)
}

fn reason(status: StatusCode, code: Option<&'static str>) -> String {
    match (code, status.canonical_reason()) {
        (Some(code), _) => format!(" {code}"),
        (None, Some(reason)) => format!(" {reason}"),
        (None, None) => String::new(),
    }
}

/// Backstage's text.
const UNABLE: &str =
    "Unable to obtain access token for Google Cloud authentication. Check your credentials configuration.";

/// RFC 6749 section 5.2, RFC 8693 section 2.2.2, and the codes of Google's APIs
/// (<https://cloud.google.com/apis/design/errors>).
const CODES: [&str; 12] = [
    "access_denied",
    "invalid_client",
    "invalid_grant",
    "invalid_request",
    "invalid_scope",
    "invalid_target",
    "unauthorized_client",
    "unsupported_grant_type",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
];

const HINTS: [(&str, &str); 4] = [
    (
        "invalid_grant",
        "the key or login was withdrawn, or this machine's clock is wrong",
    ),
    (
        "invalid_client",
        "the OAuth client is not known or its secret is wrong",
    ),
    ("unauthorized_client", "the account may not ask for these scopes"),
    (
        "PERMISSION_DENIED",
        "grant the caller roles/iam.serviceAccountTokenCreator on the impersonated account",
    ),
];

/// Answers that pass.
const RETRIED: [StatusCode; 2] = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
