//! The demo behind `cargo xtask demo`: seed users on a real API server, as themselves.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program that shows things to people, on a machine of theirs"
)]

mod own;
mod place;
mod story;
mod telling;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use telling::Telling;

/// What anybody may return here: the demo only ever prints it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Users reach a cluster as themselves: sign in, store, list, watch, create, and look it up in the audit log.
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
    /// Keep the demo's folder: configuration and database
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // kube, hyper and our own connections share one provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let mut telling = Telling::new();
    let outcome = tokio::select! {
        outcome = run(&arguments, &mut telling) => outcome,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    if let Err(failure) = outcome {
        telling.failed(failure.as_ref());
    }
    telling.end()
}

async fn run(arguments: &Arguments, telling: &mut Telling) -> Result<(), Failure> {
    match (&arguments.kubeconfig, &arguments.issuer) {
        (Some(kubeconfig), Some(issuer)) => own::run(arguments, kubeconfig, issuer, telling).await,
        _ => story::run(arguments, telling).await,
    }
}
