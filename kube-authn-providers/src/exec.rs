//! Strategy `exec`: a credential plugin of `client.authentication.k8s.io`, as kubeconfig files name them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, Error, ErrorKind,
    KubernetesAuthProvider, Metadata, Problem, Result, SystemClock,
};

use crate::{
    allowed::{Allowed, AllowedError},
    command::{Command, CommandError, DEFAULT_TIMEOUT, Finished, PassedOn},
    options::invalid,
};

mod exchange;
mod settings;

use exchange::AnswerError;
use settings::Settings;

/// The application authenticates with what a credential plugin prints: a token, or a client certificate and its key.
/// Clones share the list of allowed plugins.
///
/// Only programs that the administrator allowed are started, each by the absolute path under which it was allowed, and
/// only while that path leads to the file that it led to then. See `command.rs` for what a plugin may not do.
#[derive(Clone, Debug)]
pub struct ExecProvider {
    clock: Arc<dyn Clock>,
    allowed: Arc<[Allowed]>,
    timeout: Duration,
    passed_on: PassedOn,
}

impl ExecProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "exec";

    /// With no plugin allowed.
    pub fn new() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            allowed: Arc::default(),
            timeout: DEFAULT_TIMEOUT,
            passed_on: PassedOn::All,
        }
    }

    /// Allows the plugins at these absolute paths. Links are followed now, and what they lead to is remembered.
    pub fn with_allowed(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.allowed = paths.into_iter().map(Allowed::new).collect();
        self
    }

    /// Sets how long a plugin may take, 30 s by default.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Passes on only these of our own environment variables. Left out: all, as kubectl does. `KUBE_AUTHN_*` never are.
    pub fn with_environment(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.passed_on = PassedOn::Named(names.into_iter().collect());
        self
    }

    /// With another clock.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    fn allowed(&self, settings: &Settings) -> Result<Allowed, ExecError> {
        let mut meant = self
            .allowed
            .iter()
            .filter(|allowed| settings.means(&allowed.path));
        let first = meant.next().ok_or(ExecError::NotAllowed)?;
        match meant.all(|other| other.path == first.path) {
            true => Ok(first.clone()),
            false => Err(ExecError::Ambiguous),
        }
    }

    async fn run(&self, settings: &Settings, cluster: &ClusterDetails) -> Result<Credential, ExecError> {
        let allowed = self.allowed(settings)?;
        let (asked, cluster, name) = (settings.clone(), cluster.clone(), allowed.path.clone());
        let prepare = move || {
            let program = allowed.resolve()?;
            Ok::<_, ExecError>((program, exchange::question(&asked, &cluster)?))
        };
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let (program, question) = prepared.map_err(|_| ExecError::Lost)??;
        let mut command = Command::new(program)
            .called(name)
            .args(&settings.args)
            .passed_on(self.passed_on.clone())
            .timeout(self.timeout);
        for (name, value) in &settings.env {
            command = command.env(name, value);
        }
        let finished = command.env(EXEC_INFO, question).run().await?;
        match finished.code {
            Some(0) => Ok(exchange::credential(
                &finished.stdout,
                settings.api_version,
                self.clock.now(),
            )?),
            _ => Err(ExecError::Failed(finished)),
        }
    }
}

impl Default for ExecProvider {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl KubernetesAuthProvider for ExecProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    /// A plugin is not told on whose behalf it is asked: what it prints is the application's.
    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        match Settings::of(cluster) {
            Err(problems) => problems,
            Ok(settings) => match self.allowed(&settings) {
                Ok(_) => Vec::new(),
                Err(refused) => vec![Problem::new(settings::COMMAND_KEY, refused.text(&settings))],
            },
        }
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let settings = Settings::of(&request.cluster).map_err(|problems| invalid(&problems))?;
        self.run(&settings, &request.cluster)
            .await
            .map_err(|failure| Error::new(failure.kind(), failure.text(&settings)).with_source(failure))
    }

    /// The plugin is asked again, as client-go does.
    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        true
    }
}

/// Why there is no credential. Nothing that the plugin printed is in it but its length.
#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("it is not allowed")]
    NotAllowed,
    #[error("several allowed programs have that name")]
    Ambiguous,
    #[error(transparent)]
    Place(#[from] AllowedError),
    #[error("the CA of the cluster cannot be read")]
    Ca(#[source] Error),
    #[error("it was lost")]
    Lost,
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("it failed")]
    Failed(Finished),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

impl ExecError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAllowed | Self::Ambiguous | Self::Place(_) => ErrorKind::ConfigInvalid,
            Self::Ca(error) => error.kind(),
            Self::Command(CommandError::Relative | CommandError::Start(_)) => ErrorKind::ConfigInvalid,
            Self::Command(CommandError::Timeout(_)) => ErrorKind::Timeout,
            Self::Answer(answer) if !answer.may_pass() => ErrorKind::ConfigInvalid,
            Self::Lost | Self::Command(_) | Self::Failed(_) | Self::Answer(_) => ErrorKind::Unavailable,
        }
    }

    fn text(&self, settings: &Settings) -> String {
        let name = settings.name();
        let hint = || match &settings.install_hint {
            Some(hint) => format!(": {hint}"),
            None => String::new(),
        };
        match self {
            Self::NotAllowed if settings.is_bare() => format!(
                "exec plugin {name}: no allowed program has that name, and PATH is not searched: add its absolute path to \
                 kubeAuthn.strategies.exec.allow"
            ),
            Self::Ambiguous => format!(
                "exec plugin {name}: {self}: keep one of them in kubeAuthn.strategies.exec.allow, or name it by its path"
            ),
            Self::NotAllowed => format!(
                "exec plugin {}: it is not allowed: add it to kubeAuthn.strategies.exec.allow",
                settings.command.display()
            ),
            Self::Place(AllowedError::Swapped) => {
                format!("exec plugin {name}: {self}: restart to allow what is there now")
            }
            Self::Place(_) => format!("exec plugin {name}: {self}{}", hint()),
            Self::Command(CommandError::Start(source)) => {
                format!("exec plugin {name}: {self}: {source}{}", hint())
            }
            Self::Failed(finished) => {
                let how = match finished.code {
                    Some(code) => format!("it ended with exit code {code}"),
                    None => "a signal ended it".to_owned(),
                };
                let errors = finished.stderr.len();
                format!("exec plugin {name}: {how} ({errors} bytes of errors, not shown): run it by hand")
            }
            Self::Ca(_) | Self::Lost | Self::Command(_) | Self::Answer(_) => {
                format!("exec plugin {name}: {self}")
            }
        }
    }
}

/// Where a plugin finds what it is asked
/// (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins>).
const EXEC_INFO: &str = "KUBERNETES_EXEC_INFO";

#[cfg(test)]
mod tests;
