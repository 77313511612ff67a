//! A subject token that a program prints, under a list of allowed ones.
//!
//! <https://google.aip.dev/auth/4117#determining-the-subject-token-in-executable-sourced-credentials>

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use kube_authn_core::{
    ErrorKind, Secret,
    serde_json::{self, Value},
};
use serde::Deserialize;

use super::{account::Fields, credentials, error::FileError};
use crate::{
    allowed::{Allowed, AllowedError},
    command::{Command, CommandError},
};

/// What `credential_source.executable` says.
pub(super) struct Executable {
    program: PathBuf,
    args: Vec<String>,
    timeout: Duration,
    output_file: Option<PathBuf>,
}

/// Which programs may be started. Both must say so: the environment, as Google's libraries want it, and the list.
#[derive(Clone, Debug, Default)]
pub(super) struct Executables {
    opted_in: bool,
    allowed: Arc<[Allowed]>,
}

/// What a program is told of the account.
pub(super) struct Asking<'a> {
    pub(super) audience: &'a str,
    pub(super) token_type: &'a str,
    /// The e-mail address of the account to be impersonated.
    pub(super) impersonated: Option<&'a str>,
}

impl Executable {
    pub(super) fn of(source: Value) -> Result<Self, FileError> {
        let mut fields = Fields::of(source)?;
        let words = shlex::split(&fields.text("command")?);
        let mut words = words
            .ok_or(FileError::WrongType("executable.command"))?
            .into_iter();
        let program = words.next().ok_or(FileError::Missing("command"))?;
        let timeout = match fields.optional("timeout_millis") {
            None => DEFAULT_TIMEOUT,
            Some(millis) => millis
                .as_u64()
                .map(Duration::from_millis)
                .filter(|timeout| (MIN_TIMEOUT..=MAX_TIMEOUT).contains(timeout))
                .ok_or(FileError::Unsupported("timeout_millis must be 5000 to 120000"))?,
        };
        Ok(Self {
            program: program.into(),
            args: words.collect(),
            timeout,
            output_file: fields.optional_text("output_file")?.map(PathBuf::from),
        })
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    fn command(&self, program: PathBuf, asking: &Asking<'_>) -> Command {
        let account = asking.impersonated.unwrap_or_default();
        let mut command = Command::new(program)
            .called(&self.program)
            .args(&self.args)
            .timeout(self.timeout)
            .env("GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE", asking.audience)
            .env("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE", asking.token_type)
            .env("GOOGLE_EXTERNAL_ACCOUNT_ID", account)
            .env("GOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE", "0")
            .env("GOOGLE_EXTERNAL_ACCOUNT_REVOKE", "0");
        if let Some(account) = asking.impersonated {
            command = command.env("GOOGLE_EXTERNAL_ACCOUNT_IMPERSONATED_EMAIL", account);
        }
        match &self.output_file {
            Some(file) => command.env("GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE", file),
            None => command,
        }
    }

    /// What the program wrote to its file, now or earlier.
    async fn written(&self) -> Option<Secret> {
        let file = self.output_file.clone()?;
        tokio::task::spawn_blocking(move || credentials::read(&file).ok())
            .await
            .ok()?
    }
}

impl Executables {
    pub(super) fn new(opted_in: bool) -> Self {
        Self {
            opted_in,
            allowed: Arc::default(),
        }
    }

    pub(super) fn with_allowed(self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            allowed: paths.into_iter().map(Allowed::new).collect(),
            ..self
        }
    }

    /// The program's entry in the list.
    pub(super) fn permit(&self, executable: &Executable) -> Result<&Allowed, ExecutableError> {
        let mut allowed = self.allowed.iter();
        let allowed = allowed.find(|allowed| allowed.path == executable.program);
        match allowed {
            _ if !self.opted_in => Err(ExecutableError::NotOptedIn),
            Some(allowed) => Ok(allowed),
            None => Err(ExecutableError::NotAllowed),
        }
    }

    /// The token in the file of an earlier answer while that is good, else what the program answers now.
    pub(super) async fn token(
        &self,
        executable: &Executable,
        asking: &Asking<'_>,
        now: Timestamp,
    ) -> Result<Secret, ExecutableError> {
        let allowed = self.permit(executable)?.clone();
        if let Some(written) = executable.written().await
            && let Ok(answer) = Answer::of(&written)
            && answer.expiration_time.is_some()
            && let Ok(token) = answer.token(now)
        {
            return Ok(token);
        }
        let program = tokio::task::spawn_blocking(move || allowed.resolve()).await;
        let program = program.map_err(|lost| CommandError::Start(std::io::Error::other(lost)))??;
        let finished = executable.command(program, asking).run().await?;
        if finished.code != Some(0) {
            return Err(ExecutableError::Failed(finished.code));
        }
        let printed = match finished.stdout.expose().trim_ascii() {
            [] => executable.written().await.unwrap_or(finished.stdout),
            _ => finished.stdout,
        };
        Answer::of(&printed)?.token(now)
    }
}

/// What a program answers.
#[derive(Deserialize)]
struct Answer {
    version: u64,
    success: bool,
    token_type: Option<String>,
    id_token: Option<String>,
    saml_response: Option<String>,
    /// Seconds since 1970.
    expiration_time: Option<i64>,
}

impl Answer {
    fn of(printed: &Secret) -> Result<Self, ExecutableError> {
        // The parser's own error may quote what it could not read.
        serde_json::from_slice(printed.expose()).map_err(|_| ExecutableError::Unreadable(printed.len()))
    }

    fn token(self, now: Timestamp) -> Result<Secret, ExecutableError> {
        let token = self.id_token.map(Secret::new);
        let assertion = self.saml_response.map(Secret::new);
        if self.version > VERSION {
            return Err(ExecutableError::Version);
        }
        if !self.success {
            return Err(ExecutableError::Refused);
        }
        if self.expiration_time.is_some_and(|end| end < now.as_second()) {
            return Err(ExecutableError::Expired);
        }
        let given = match self.token_type.as_deref() {
            Some(JWT | ID_TOKEN) => token,
            Some(SAML2) => assertion,
            _ => return Err(ExecutableError::TokenType),
        };
        given
            .filter(|token| !token.is_empty())
            .ok_or(ExecutableError::NoToken)
    }
}

/// Why a program gives no token. Nothing that it printed is in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecutableError {
    #[error("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES is not 1 in the environment of this service")]
    NotOptedIn,
    #[error(
        "it is not allowed: add its absolute path to kubeAuthn.strategies.googleServiceAccount.allowExecutables"
    )]
    NotAllowed,
    #[error(transparent)]
    Place(#[from] AllowedError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("it ended with {}: run it by hand", .0.map_or("a signal".to_owned(), |code| format!("exit code {code}")))]
    Failed(Option<i32>),
    #[error("its answer of {0} bytes is none of version 1 in JSON")]
    Unreadable(usize),
    #[error("its answer is of a version later than 1")]
    Version,
    #[error("it answers that it has none: run it by hand")]
    Refused,
    #[error("its token has expired")]
    Expired,
    #[error("its token_type is neither a JWT nor SAML 2")]
    TokenType,
    #[error("its answer holds no token of its token_type")]
    NoToken,
}

impl ExecutableError {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::NotOptedIn | Self::NotAllowed | Self::Place(_) | Self::Version | Self::TokenType => {
                ErrorKind::ConfigInvalid
            }
            Self::Command(CommandError::Relative | CommandError::Start(_)) => ErrorKind::ConfigInvalid,
            Self::Command(CommandError::Timeout(_)) => ErrorKind::Timeout,
            Self::Command(_)
            | Self::Failed(_)
            | Self::Unreadable(_)
            | Self::Refused
            | Self::Expired
            | Self::NoToken => ErrorKind::Unavailable,
        }
    }
}

/// RFC 8693 section 3.
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const SAML2: &str = "urn:ietf:params:oauth:token-type:saml2";

/// The only one there is.
const VERSION: u64 = 1;

/// Google's default and bounds.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const MIN_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
