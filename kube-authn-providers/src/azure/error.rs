//! Why there is no token. No text holds what an answer or a child process said, but for Entra's error codes.

use std::{fmt, time::Duration};

use kube_authn_core::{Error, ErrorKind};

use super::settings::AzureSource;
use crate::command::CommandError;

/// Why one source gives no token.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum AzureError {
    /// It is not set up here.
    #[error("{0}")]
    Absent(String),
    /// Its service is not there, or not up.
    #[error("no managed identity here: {0}")]
    NoService(#[source] Error),
    #[error("{0}")]
    Misconfigured(String),
    #[error("{host} refuses with {codes}: {hint}")]
    Refused {
        host: String,
        codes: String,
        hint: &'static str,
    },
    #[error("{host} answers with status {status}")]
    Status {
        host: String,
        status: u16,
        retry_after: Option<Duration>,
    },
    #[error(transparent)]
    Call(Error),
    #[error("{0} gave something that is no token")]
    NoToken(String),
    #[error("{0} gave a token that has expired already: check this machine's clock")]
    Expired(String),
    #[error("{program} {reason}")]
    Tool {
        program: &'static str,
        reason: String,
        kind: ErrorKind,
    },
}

impl AzureError {
    /// Whether the next source may be asked: nothing here was meant to give a token. As in Azure's own default chain, a
    /// person's login that cannot be used counts as none.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::NoService(_) | Self::Tool { .. })
    }

    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Absent(_) | Self::Misconfigured(_) | Self::Refused { .. } => ErrorKind::ConfigInvalid,
            Self::NoService(error) | Self::Call(error) => error.kind(),
            Self::Status { status: 429, .. } => ErrorKind::RateLimited,
            Self::Status { status: 500.., .. } => ErrorKind::Unavailable,
            Self::Status { .. } | Self::NoToken(_) | Self::Expired(_) => ErrorKind::Unexpected,
            Self::Tool { kind, .. } => *kind,
        }
    }

    /// A program that could not be run to its end.
    pub(super) fn not_run(program: &'static str, error: &CommandError) -> Self {
        let kind = match error {
            CommandError::Timeout(_) => ErrorKind::Timeout,
            CommandError::TooMuchOutput => ErrorKind::Unexpected,
            CommandError::Relative | CommandError::Start(_) | CommandError::Wait(_) => {
                ErrorKind::ConfigInvalid
            }
        };
        Self::Tool {
            program,
            reason: format!("gives no token: {error}"),
            kind,
        }
    }
}

/// What each source that was asked said.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) struct ChainError(pub(super) Vec<(AzureSource, AzureError)>);

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no source gives an Azure token: ")?;
        for (at, (source, error)) in self.0.iter().enumerate() {
            let between = if at == 0 { "" } else { "; " };
            write!(f, "{between}{}: {error}", source.name())?;
        }
        Ok(())
    }
}

impl From<ChainError> for Error {
    fn from(error: ChainError) -> Self {
        let deciding = match error.0.as_slice() {
            [(_, only)] => Some(only),
            all => all.last().map(|(_, last)| last).filter(|last| !last.is_absence()),
        };
        let kind = deciding.map_or(ErrorKind::ConfigInvalid, AzureError::kind);
        let retry_after = match deciding {
            Some(AzureError::Status { retry_after, .. }) => *retry_after,
            _ => None,
        };
        let passing = error
            .0
            .iter()
            .any(|(_, reason)| Error::new(reason.kind(), "").is_retryable());
        let text = error.to_string();
        let told = Self::new(kind, text).with_retryable(passing).with_source(error);
        match retry_after {
            Some(after) => told.with_retry_after(after),
            None => told,
        }
    }
}

/// What Entra's error codes ask an administrator to do
/// (<https://learn.microsoft.com/entra/identity-platform/reference-error-codes>).
pub(super) fn hint(codes: &[u32]) -> &'static str {
    let known = codes
        .iter()
        .find_map(|code| HINTS.iter().find(|(known, _)| known == code));
    known.map_or(
        "look the code up at https://login.microsoftonline.com/error",
        |(_, hint)| hint,
    )
}

const HINTS: [(u32, &str); 10] = [
    (50_034, "the tenant does not know this user"),
    (
        70_021,
        "no federated credential of the client matches issuer, subject and audience of the token file",
    ),
    (90_002, "there is no such tenant in this cloud"),
    (
        500_011,
        "the tenant does not know the server application: no AKS cluster of it uses Entra",
    ),
    (700_016, "the tenant does not know this client id"),
    (
        700_027,
        "the certificate is not registered with the client, or has expired",
    ),
    (
        700_213,
        "no federated credential of the client matches the subject of the token file",
    ),
    (
        700_211,
        "no federated credential of the client matches the issuer of the token file",
    ),
    (
        7_000_215,
        "the client secret is wrong: configure its value, not its id",
    ),
    (7_000_222, "the client secret has expired: make a new one"),
];
