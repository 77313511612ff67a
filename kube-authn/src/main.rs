//! The program `kube-authn`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program talks to people"
)]

use std::{io::IsTerminal, process::ExitCode};

use clap::{Parser, Subcommand};

mod backend;
mod check;
mod config;
mod import;
mod keygen;
mod keys;
mod listen;
mod logins;
mod rekey;
mod schedule;
mod serve;

/// Reach every Kubernetes cluster as the right identity.
#[derive(Debug, Parser)]
#[command(name = "kube-authn", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the clusters that a configuration gives, and everything that is wrong with it
    Check(check::Check),
    /// Print the merged configuration, and where each value comes from
    Config(config::Config),
    /// Take over the plain logins of a table of openportal
    Import(import::Import),
    /// Print a new key for kubeAuthn.encryption.keys
    Keygen(keygen::Keygen),
    /// Print which encryption key protects how many rows of the token store
    Keys(keys::Keys),
    /// List stored logins, or end them
    Logins(logins::Logins),
    /// Write the rows of the token store anew under the newest encryption key
    Rekey(rekey::Rekey),
    /// Print what the text of a schedule means: its seconds, or its next five times
    Schedule(schedule::Schedule),
    /// Serve the token API, the Kubernetes proxy and the cluster list over HTTP
    Serve(serve::Serve),
}

/// Exit codes: 0 all is well, 1 something is wrong, 2 wrong usage (clap's own).
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // Whoever opens TLS connections in this process uses this one provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kube-authn: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        match arguments.command {
            Command::Check(check) => check.run().await,
            Command::Config(config) => config.run(),
            Command::Import(import) => import.run().await,
            Command::Keygen(keygen) => keygen.run(),
            Command::Keys(keys) => keys.run().await,
            Command::Logins(logins) => logins.run().await,
            Command::Rekey(rekey) => rekey.run().await,
            Command::Schedule(schedule) => schedule.run(),
            Command::Serve(serve) => serve.run().await,
        }
    })
}
