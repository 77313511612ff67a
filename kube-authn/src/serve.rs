//! `kube-authn serve`: the routes of an app-config over HTTP.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use kube_authn::{Reload, Service, effective_config, service};
use kube_authn_clusters::{AppConfig, BackendConfig, InvalidConfig};
use kube_authn_core::{Error, ErrorKind, Problem, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

use crate::{
    backend::Backend,
    check::error_line,
    config::Files,
    listen::{Listener, socket::raise_file_limit, tls::Certificate},
};

/// Reads the files in layers, later ones over earlier ones, and serves until SIGTERM or Ctrl-C.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    files: Files,
    /// How long requests and streams may take to finish when the program is told to stop; told twice, it stops at once
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_SECONDS)]
    drain: u64,
}

/// Why the service does not start.
enum Refusal {
    Problems(Vec<Problem>),
    Error(Error),
}

impl Serve {
    pub(crate) async fn run(&self) -> ExitCode {
        match self.serve().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(Refusal::Problems(problems)) => {
                for problem in &problems {
                    let line = error_line(problem.file.as_deref(), &problem.key, &problem.message);
                    eprintln!("{line}");
                }
                eprintln!("kube-authn: not started: the configuration has errors");
                ExitCode::FAILURE
            }
            Err(Refusal::Error(error)) => {
                eprintln!("kube-authn: not started: {error}");
                ExitCode::FAILURE
            }
        }
    }

    async fn serve(&self) -> Result<(), Refusal> {
        let mut signals = Signals::new()?;
        raise_file_limit();
        let (service, listener) = tokio::select! {
            started = self.start() => started?,
            () = signals.next() => return Ok(()),
        };
        listener.announce()?;

        let (told, stop) = oneshot::channel();
        let drain = Duration::from_secs(self.drain);
        let refreshes = service.refreshes.clone();
        let serving = async {
            listener
                .serve(service, async { stop.await.unwrap_or_default() }, drain)
                .await;
            // One that is cut off may cost its user the login.
            let _ = tokio::time::timeout(REFRESHES, refreshes.settled()).await;
        };
        let twice = async {
            signals.next().await;
            let _ = told.send(());
            signals.next().await;
        };
        tokio::select! {
            () = serving => Ok(()),
            () = twice => Ok(()),
        }
    }

    async fn start(&self) -> Result<(Service, Listener), Refusal> {
        let config =
            AppConfig::load(&self.files.paths()).map_err(|invalid| Refusal::Problems(invalid.problems))?;
        let backend = match Backend::read(&config) {
            Ok(backend) => backend,
            Err(invalid) => {
                let mut problems = effective_config(&config).await.problems;
                problems.extend(invalid.problems);
                return Err(Refusal::Problems(problems));
            }
        };
        let service = service(&config, true).await?;
        for warning in &backend.warnings {
            tracing::warn!("{warning}");
        }
        if !service.knows_callers {
            tracing::warn!(
                "nobody may call: every call is answered with 401; configure kubeAuthn.callers or backend.baseUrl"
            );
        }
        let listener = Listener::bind(&backend.listen, backend.certificate.clone()).await?;
        let follow = Follow {
            files: self.files.paths(),
            certificate: backend.certificate,
            reload: service.reload.clone(),
        };
        tokio::spawn(follow.run());
        if let Some(purge) = service.purge.clone() {
            tokio::spawn(purge.run());
        }
        Ok((service, listener))
    }
}

/// Looks at the configuration again and again: whoever changes it, or renews the certificate, writes its file anew.
struct Follow {
    files: Vec<PathBuf>,
    certificate: Option<Arc<Certificate>>,
    reload: Reload,
}

impl Follow {
    async fn run(self) {
        let mut reported = String::new();
        loop {
            tokio::time::sleep(RELOAD_EVERY).await;
            let outcome = self.look().await;
            let text = outcome.err().map(|error| error.to_string()).unwrap_or_default();
            if text != reported {
                match text.is_empty() {
                    true => tracing::warn!("the configuration can be used again"),
                    false => tracing::warn!("the configuration is not taken over, the old one stays: {text}"),
                }
                reported = text;
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let config = self.read().await?;
        if !self.reload.knows(&config).await {
            // Half of a file that is being written, or one old and one new file, may make sense too.
            tokio::time::sleep(SETTLED_AFTER).await;
            if self.read().await?.root().json() != config.root().json() {
                return Ok(());
            }
        }
        match (&self.certificate, BackendConfig::read(&config)) {
            (None, _) => {}
            (Some(certificate), Ok(backend)) => certificate.renew(backend.certificate.as_ref()),
            (Some(_), Err(invalid)) => self.certificate_not_read(invalid),
        }
        if self.reload.apply(&config).await? {
            tracing::info!("the list of clusters changed");
        }
        Ok(())
    }

    async fn read(&self) -> Result<AppConfig> {
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || AppConfig::load(&files)).await;
        let read = read.map_err(|source| {
            Error::new(ErrorKind::Unexpected, "reading the configuration broke off").with_source(source)
        })?;
        Ok(read.inspect_err(|invalid| self.certificate_not_read(invalid.clone()))?)
    }

    fn certificate_not_read(&self, invalid: InvalidConfig) {
        if let Some(certificate) = &self.certificate {
            certificate.not_read(&Error::from(invalid));
        }
    }
}

/// SIGTERM and Ctrl-C.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|source| {
                Error::new(ErrorKind::Unexpected, "cannot listen for signals").with_source(source)
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let source = std::error::Error::source(&error);
        match source.and_then(|source| source.downcast_ref::<InvalidConfig>()) {
            Some(invalid) => Self::Problems(invalid.problems.clone()),
            None => Self::Error(error),
        }
    }
}

/// Kubernetes kills a pod 30 s after it told it to stop.
const DRAIN_SECONDS: u64 = 25;
/// Longer than an issuer is waited for.
const REFRESHES: Duration = Duration::from_secs(45);
/// Reading the files costs a millisecond, and whoever changes them waits for it.
const RELOAD_EVERY: Duration = Duration::from_secs(2);
/// A change is taken over if the files still say the same then: whoever writes several writes them at once.
const SETTLED_AFTER: Duration = Duration::from_millis(200);
