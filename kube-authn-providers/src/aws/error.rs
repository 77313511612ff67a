//! What can go wrong, in words, without what an answer or a child process said.

use std::{error::Error as StdError, fmt};

use aws_config::meta::ProviderChainError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::{error::ProvideErrorMetadata, error::SdkError};
use kube_authn_core::{Error, ErrorKind};

/// Why there is no token. The SDK's own errors are turned into words, not kept: their `Debug` shows whole answers.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum AwsError {
    #[error("Malformed ARN")]
    MalformedArn,
    #[error(
        "no AWS region is known for this cluster: its url does not name one, so set kubeAuthn.aws.region of the cluster, or \
         AWS_REGION"
    )]
    NoRegion,
    #[error("not an AWS region: {0:?}")]
    NotARegion(String),
    #[error("there is no such STS endpoint for region {region}: {reason}")]
    NoEndpoint { region: String, reason: String },
    #[error("no AWS credentials are found, add one of these sources: {0}")]
    NoCredentials(String),
    #[error("the AWS credentials cannot be used: {0}")]
    Misconfigured(String),
    #[error("cannot read AWS credentials: {0}")]
    Unreadable(String),
    #[error(
        "the login at IAM Identity Center does not hold, run `aws sso login` as the user of this service: {0}"
    )]
    NoLogin(String),
    #[error("cannot {what}: AWS refuses with {code}{message}")]
    Refused {
        what: String,
        code: String,
        message: String,
    },
    #[error("cannot {what}: {reason}")]
    Failed { what: String, reason: String },
    #[error("{what} took longer than {seconds} s")]
    TooSlow { what: String, seconds: u64 },
    #[error("the credentials that AWS gave have expired already: check this machine's clock")]
    Expired,
    #[error("the token cannot be signed: {0}")]
    Unsigned(&'static str),
    #[error("the credentials' reader ended without an answer")]
    Lost,
}

impl AwsError {
    /// What kept a source from giving credentials.
    pub(super) fn of_source(error: &CredentialsError) -> Self {
        let reason = reason(error);
        if is_about_a_login(&reason) {
            return Self::NoLogin(reason);
        }
        match error {
            CredentialsError::CredentialsNotLoaded(_) => Self::NoCredentials(reason),
            CredentialsError::InvalidConfiguration(_) => Self::Misconfigured(reason),
            CredentialsError::ProviderTimedOut(_)
            | CredentialsError::ProviderError(_)
            | CredentialsError::Unhandled(_)
            | _ => Self::Unreadable(reason),
        }
    }

    /// What STS answered, or why it did not.
    pub(super) fn of_sts<E, R>(what: impl Into<String>, error: &SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
        R: fmt::Debug + 'static,
    {
        let what = what.into();
        match error {
            SdkError::ServiceError(answer) if answer.err().code().is_some() => Self::Refused {
                what,
                code: short(answer.err().code().unwrap_or_default()),
                message: answer
                    .err()
                    .message()
                    .map(|message| format!(": {}", short(message)))
                    .unwrap_or_default(),
            },
            _ => Self::Failed {
                what,
                reason: reason(error),
            },
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::MalformedArn
            | Self::NoRegion
            | Self::NotARegion(_)
            | Self::NoEndpoint { .. }
            | Self::NoCredentials(_)
            | Self::NoLogin(_)
            | Self::Misconfigured(_) => ErrorKind::ConfigInvalid,
            Self::Refused { code, .. } if PASSING.contains(&code.as_str()) => ErrorKind::Unavailable,
            Self::Refused { .. } => ErrorKind::ConfigInvalid,
            Self::Unreadable(_) | Self::Failed { .. } | Self::Expired => ErrorKind::Unavailable,
            Self::TooSlow { .. } => ErrorKind::Timeout,
            Self::Unsigned(_) | Self::Lost => ErrorKind::Unexpected,
        }
    }
}

impl From<AwsError> for Error {
    fn from(error: AwsError) -> Self {
        Self::new(error.kind(), error.to_string()).with_source(error)
    }
}

/// The causes in one line, outermost first: each source of a chain by its name; what wraps another cause and says nothing
/// is left out.
fn reason(error: &(dyn StdError + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(chain) = error.downcast_ref::<ProviderChainError<CredentialsError>>() {
            let attempts = chain
                .attempts()
                .iter()
                .map(|attempt| format!("{}: {}", attempt.name(), reason(attempt.error())));
            said.push(attempts.collect::<Vec<_>>().join("; "));
            break;
        }
        let text = short(&error.to_string());
        let is_wrapper = error.is::<CredentialsError>() && error.source().is_some();
        let is_known = said.iter().any(|known| known.contains(&text));
        if !is_wrapper && !is_known {
            said.push(text);
        }
        next = error.source();
    }
    said.join(": ")
}

/// Whether the cached login of IAM Identity Center is missing, broken, over, or refused. The SDK's types for that are not
/// public, its words are all there is.
fn is_about_a_login(reason: &str) -> bool {
    ["SSO token", "/sso/cache/", "UnauthorizedException"]
        .iter()
        .any(|words| reason.contains(words))
}

/// The first line, without what a credential process wrote, without control characters, at most [`MAX_CHARACTERS`].
fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(" Stderr:").next().unwrap_or_default();
    line.chars()
        .filter(|char| !char.is_control())
        .take(MAX_CHARACTERS)
        .collect()
}

/// Long enough for "User: <ARN> is not authorized to perform: sts:AssumeRole on resource: <ARN>".
const MAX_CHARACTERS: usize = 400;

/// Refusals that pass by themselves: throttling, and session keys that ended while they were used
/// (<https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html>).
const PASSING: [&str; 7] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "IDPCommunicationError",
    "InternalFailure",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
];
