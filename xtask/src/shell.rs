//! Programs, where they are and how a run of one ends.

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// Why a command didn't succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments make no sense: exit code 2.
    Usage(String),
    /// One line for the reader: exit code 1.
    Failed(String),
    /// A program's own exit code; it has said why.
    Code(u8),
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// The cargo that runs us, in the workspace's folder.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace());
    // In CI nothing is built twice, and incremental files only fill the disk.
    if env::var_os("CI").is_some_and(|value| value == "true") {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

pub(crate) fn workspace() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Names all programs that are missing, in one line.
pub(crate) fn require(programs: &[&str]) -> Outcome {
    let missing: Vec<String> = programs
        .iter()
        .filter(|program| on_path(program).is_none())
        .map(|program| match *program {
            "go" => "Go 1.26 or later (https://go.dev/dl/)".to_owned(),
            "node" => "Node.js 20 or later (https://nodejs.org/)".to_owned(),
            "npm" => "npm (comes with Node.js, https://nodejs.org/)".to_owned(),
            other => other.to_owned(),
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "not found on PATH: {}; install it and run this again",
        missing.join(", ")
    )))
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// `$XDG_CACHE_HOME/kube-authn`, else `~/.cache/kube-authn`; the test cluster's programs are there too.
pub(crate) fn cache() -> Outcome<PathBuf> {
    env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|base| base.join("kube-authn"))
        .ok_or_else(|| Failure::Failed("neither XDG_CACHE_HOME nor HOME is set".into()))
}

/// Progress and problems go to standard error.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
