//! The demo behind `cargo xtask demo`: seed users on a real API server, as themselves, through `kube-authn serve`.
#![allow(
    clippy::disallowed_methods,
    reason = "a program that shows things to people, on a machine of theirs"
)]

mod keep;
mod login;
mod own;
mod person;
mod place;
mod signals;
mod story;
mod telling;

use std::{
    env,
    io::{IsTerminal, stdin, stdout},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use signals::Signals;
use telling::Telling;

/// What anybody may return here: the demo only ever prints it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Users reach a cluster as themselves, over HTTP: sign in, list, watch, create, and look it up in the audit log.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo")]
struct Arguments {
    /// Use this cluster instead of a test cluster; the context's user must be allowed to create namespaces and roles
    #[arg(long, value_name = "FILE", requires = "issuer")]
    kubeconfig: Option<PathBuf>,
    /// Sign in at this issuer, which the cluster must accept
    #[arg(long, value_name = "URL", requires = "kubeconfig")]
    issuer: Option<String>,
    /// The issuer's client: public, with redirect URI http://127.0.0.1/callback at any port
    #[arg(long, value_name = "ID", default_value = "kubernetes")]
    client_id: String,
    /// Certificate authorities of the issuer, PEM
    #[arg(long, value_name = "FILE", requires = "issuer")]
    issuer_ca: Option<PathBuf>,
    /// Where the service listens on 127.0.0.1; 0 is any free port
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Go on serving after the story, until Ctrl-C; on a terminal that is so without the flag
    #[arg(long)]
    keep_serving: bool,
    /// Keep the demo's folder: configuration, database and log
    #[arg(long)]
    keep: bool,
}

impl Arguments {
    fn keeps_serving(&self) -> bool {
        let unattended = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
        self.keep_serving || (!unattended && stdin().is_terminal() && stdout().is_terminal())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // kube, hyper and our own connections share one provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let mut telling = Telling::new();
    match run(&arguments, &mut telling).await {
        Ok(()) => (),
        Err(failure) if Signals::are(&failure) => telling.interrupted(),
        Err(failure) => telling.failed(failure.as_ref()),
    }
    telling.end()
}

async fn run(arguments: &Arguments, telling: &mut Telling) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    match (&arguments.kubeconfig, &arguments.issuer) {
        (Some(kubeconfig), Some(issuer)) => {
            own::run(arguments, kubeconfig, issuer, &mut signals, telling).await
        }
        _ => story::run(arguments, &mut signals, telling).await,
    }
}
