//! `test-cluster`: the test cluster by hand. People call it as `cargo xtask cluster up|down|info`.

#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod control;

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use clap::{Parser, Subcommand};
use control::{Control, Info};
use kube_authn_e2e::{Error, Options, Result, TestCluster, Tools, cache_folder};
use tokio::signal::unix::{SignalKind, signal};

/// A real Kubernetes API server with two OpenID Connect issuers, on loopback.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask cluster", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
    /// Folder for the socket and the log of the cluster in the background [default: `<cache>`/kube-authn/cluster]
    #[arg(long, global = true, value_name = "FOLDER")]
    state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the cluster and leave it running until `down`
    Up {
        /// Stay in the foreground; the cluster ends with Ctrl-C
        #[arg(long)]
        foreground: bool,
        /// Lifetime of ID tokens, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        id_token_lifetime: u64,
    },
    /// End the cluster and remove everything it wrote
    Down,
    /// Print URLs, files and users of the running cluster
    Info {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Build and install what a cluster needs, and start nothing
    Tools,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let state = match arguments.state {
        Some(folder) => folder,
        None => cache_folder()?.join("cluster"),
    };
    match arguments.command {
        Verb::Up {
            foreground: true,
            id_token_lifetime,
        } => stay(&state, id_token_lifetime),
        Verb::Up {
            foreground: false,
            id_token_lifetime,
        } => leave(&state, id_token_lifetime),
        Verb::Down => match control::ask(&state, "down")? {
            Some(_) => print("the cluster has ended"),
            None => print(NOT_RUNNING),
        },
        Verb::Info { json } => match control::ask(&state, "info")? {
            Some(info) if json => print(&info),
            Some(info) => print(&Info::from_json(&info)?.to_string()),
            None => Err(Error::new(NOT_RUNNING)),
        },
        Verb::Tools => Tools::ensure().map(drop),
    }
}

/// Runs the cluster in this process until Ctrl-C, SIGTERM or `down`.
fn stay(state: &Path, id_token_lifetime: u64) -> Result<()> {
    let runtime =
        tokio::runtime::Runtime::new().map_err(|error| Error::new(format!("start a runtime: {error}")))?;
    runtime.block_on(async {
        let control = Control::listen(state)?;
        let mut options = Options::default();
        options.id_token_lifetime = Duration::from_secs(id_token_lifetime);
        let cluster = TestCluster::start(options).await?;
        let info = Info::of(&cluster);
        print(&format!("{info}\nends with Ctrl-C"))?;
        let farewell = tokio::select! {
            caller = control.serve(&info) => Some(caller?),
            () = interrupted() => None,
        };
        cluster.stop().await?;
        drop(farewell);
        Ok(())
    })
}

/// Starts this program again in the background and waits until its cluster is ready.
fn leave(state: &Path, id_token_lifetime: u64) -> Result<()> {
    if let Some(info) = control::ask(state, "info")? {
        return print(&format!("{}\nwas running already", Info::from_json(&info)?));
    }
    // Here, where progress is seen.
    Tools::ensure()?;
    let log = state.join("cluster.log");
    let mut child = background(state, &log, id_token_lifetime)?;
    loop {
        if let Some(info) = control::ask(state, "info")? {
            return print(&format!(
                "{}\nends with   cargo xtask cluster down",
                Info::from_json(&info)?
            ));
        }
        if let Ok(Some(status)) = child.try_wait() {
            let log = fs::read_to_string(&log).unwrap_or_default();
            return Err(Error::new(format!("the cluster didn't start ({status}):\n{log}")));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn background(state: &Path, log: &Path, id_token_lifetime: u64) -> Result<Child> {
    let failed = |error: std::io::Error| Error::new(format!("start the cluster in the background: {error}"));
    fs::create_dir_all(state).map_err(failed)?;
    let output = fs::File::create(log).map_err(failed)?;
    Command::new(std::env::current_exe().map_err(failed)?)
        .args([
            "up",
            "--foreground",
            "--id-token-lifetime",
            &id_token_lifetime.to_string(),
            "--state",
        ])
        .arg(state)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .map_err(failed)
}

/// Ends with the first signal that asks us to go. A closed terminal doesn't: `up` has promised to stay until `down`.
async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = tokio::signal::ctrl_c() => return,
            _ = hangup.recv() => {}
        }
    }
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| Error::new(format!("write the answer: {error}")))
}

const NOT_RUNNING: &str = "no cluster is running; start one with `cargo xtask cluster up`";
