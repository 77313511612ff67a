//! The programs that are measured: ours in a release build, the peer in Go, nginx.
#![allow(clippy::disallowed_methods, reason = "a bench builds what it measures")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use kube_authn_e2e::cache_folder;

/// Paths of the programs.
pub(crate) struct Programs {
    pub(crate) kube_authn: PathBuf,
    /// Another build of it (`--before PATH`).
    pub(crate) before: Option<PathBuf>,
    pub(crate) go: PathBuf,
    /// `None` if it is neither there nor to be had.
    pub(crate) nginx: Option<PathBuf>,
}

impl Programs {
    /// Builds and fetches what is missing.
    pub(crate) fn ensure() -> Self {
        Self {
            kube_authn: kube_authn(),
            before: before(),
            go: go(),
            nginx: nginx(),
        }
    }
}

/// The program as it is shipped: built alone, so that no feature comes from the benches.
fn kube_authn() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo).args([
        "build",
        "--release",
        "--package",
        "kube-authn",
        "--bin",
        "kube-authn",
    ]));
    // Benches are in target/release/deps.
    let bench = env::current_exe().expect("the bench's own path");
    let release = bench.ancestors().nth(2).expect("the build's folder");
    release.join("kube-authn")
}

fn before() -> Option<PathBuf> {
    let path = env::args_os()
        .skip_while(|argument| argument != "--before")
        .nth(1)?;
    Some(fs::canonicalize(path).expect("the program of --before"))
}

/// Go builds again only what has changed.
fn go() -> PathBuf {
    let program = folder().join("go-reverse-proxy");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/proxy/go");
    let mut command = Command::new("go");
    command.args(["build", "-trimpath", "-o"]).arg(&program).arg(".");
    run(command
        .current_dir(source)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off"));
    program
}

/// The system's; else Debian's package, unpacked and not installed: installing would start a server on port 80.
fn nginx() -> Option<PathBuf> {
    let unpacked = folder().join("nginx");
    let places = ["/usr/sbin/nginx".into(), unpacked.join("usr/sbin/nginx")];
    let found = || places.iter().find(|place: &&PathBuf| place.is_file()).cloned();
    if found().is_some() {
        return found();
    }
    let download = tempfile::tempdir().expect("a folder");
    let fetch = "apt-get download --quiet nginx && dpkg-deb --extract nginx_*.deb \"$0\"";
    let fetched = Command::new("sh")
        .args(["-c", fetch])
        .arg(&unpacked)
        .current_dir(download.path())
        .stdout(Stdio::null())
        .status();
    match fetched {
        Ok(status) if status.success() => found(),
        _ => None,
    }
}

fn folder() -> PathBuf {
    let folder = cache_folder().expect("a cache folder").join("benches");
    fs::create_dir_all(&folder).expect("a cache folder");
    folder
}

fn run(command: &mut Command) {
    let status = command.status().expect("a compiler on PATH");
    assert!(status.success(), "{command:?}: {status}");
}
