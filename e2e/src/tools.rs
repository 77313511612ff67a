//! The programs that the cluster consists of: built once, kept in the user's cache folder.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use crate::error::{Context, Error, Result};

/// Kubernetes' version; `e2e/cluster/go.mod` has the matching modules.
pub const KUBERNETES_VERSION: &str = "1.36.3";

/// Paths of the programs that a cluster starts.
#[derive(Clone, Debug)]
pub struct Tools {
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub kube_apiserver: PathBuf,
    /// kube-controller-manager.
    pub kube_controller_manager: PathBuf,
    /// kubectl; never one found on `PATH`.
    pub kubectl: PathBuf,
    /// Our node (`e2e/cluster/node`).
    pub node: PathBuf,
    /// Our supervisor (`e2e/cluster/supervise`).
    pub supervise: PathBuf,
    /// Node.js.
    pub nodejs: PathBuf,
    /// The issuers' program, beside its installed modules.
    pub issuer: PathBuf,
}

/// Program name, Go package, taken from `KUBEBUILDER_ASSETS` when it is there.
const KUBERNETES: [(&str, &str, bool); 4] = [
    ("etcd", "go.etcd.io/etcd/server/v3", true),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", true),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        false,
    ),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl", true),
];
const OURS: [(&str, &str); 2] = [("node", "./node"), ("supervise", "./supervise")];

impl Tools {
    /// Finds every program, building and installing what is missing; progress goes to standard error.
    ///
    /// Two processes may call it at once: the second waits. The first build takes minutes.
    ///
    /// # Errors
    /// When Go or Node.js is missing, or a build fails.
    pub fn ensure() -> Result<Self> {
        let (cache, _lock) = locked_cache()?;

        let nodejs = on_path("node").ok_or_else(|| Error::new(NO_NODE))?;
        let issuer = install_issuer(&cache)?;
        let kubernetes = build(&cache.join(kubernetes_key()?), |target| {
            KUBERNETES
                .iter()
                .filter(|tool| asset(tool).is_none())
                .try_for_each(|(name, package, _)| go_build(&target.join(name), package))
        })?;
        let ours = build(&cache.join(our_key()?), |target| {
            OURS.iter()
                .try_for_each(|(name, package)| go_build(&target.join(name), package))
        })?;
        let tool =
            |index: usize| asset(&KUBERNETES[index]).unwrap_or_else(|| kubernetes.join(KUBERNETES[index].0));
        Ok(Self {
            etcd: tool(0),
            kube_apiserver: tool(1),
            kube_controller_manager: tool(2),
            kubectl: tool(3),
            node: ours.join("node"),
            supervise: ours.join("supervise"),
            nodejs,
            issuer,
        })
    }
}

/// A Python interpreter with the packages of `e2e/python/requirements.txt`, the vendors' own tools that tests compare with.
///
/// # Errors
/// When Python 3 is missing, or an installation fails.
pub fn python() -> Result<PathBuf> {
    let (cache, _lock) = locked_cache()?;
    let requirements = source("python").join("requirements.txt");
    let python = on_path("python3").ok_or_else(|| Error::new(NO_PYTHON))?;
    let key = key(&[&python.to_string_lossy()], std::slice::from_ref(&requirements))?;
    let folder = build(&cache.join(format!("python-{key}")), |target| {
        make_environment(&python, target)?;
        let mut command = Command::new(target.join("bin/python"));
        command
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(&requirements);
        run("installing the vendors' Python tools", &mut command)
    })?;
    // Its scripts name the folder they were made in; the interpreter finds its packages wherever it is.
    Ok(folder.join("bin/python"))
}

/// Debian keeps the module apart.
fn make_environment(python: &Path, target: &Path) -> Result<()> {
    let make = || {
        let mut command = Command::new(python);
        command.args(["-m", "venv"]).arg(target);
        run("making a Python environment", &mut command)
    };
    let Err(missing) = make() else { return Ok(()) };
    let Some(apt) = on_path("apt-get") else {
        return Err(missing);
    };
    let mut command = Command::new(apt);
    command.args(["install", "--yes", "--no-install-recommends", "python3-venv"]);
    run("installing python3-venv", &mut command).and_then(|()| make())
}

/// The other side of an EKS token (`e2e/verifier`), built.
///
/// # Errors
/// When Go is missing, or the build fails.
pub fn eks_verifier() -> Result<PathBuf> {
    let (cache, _lock) = locked_cache()?;
    let folder = source("verifier");
    let files = ["go.mod", "go.sum", "main.go"].map(|name| folder.join(name));
    let built = build(&cache.join(format!("verifier-{}", key(&[], &files)?)), |target| {
        let mut command = Command::new(on_path("go").ok_or_else(|| Error::new(NO_GO))?);
        command
            .args(["build", "-trimpath", "-o"])
            .arg(target.join("verifier"))
            .arg(".");
        command
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .current_dir(&folder);
        run("building the EKS verifier", &mut command)
    })?;
    Ok(built.join("verifier"))
}

/// The cache folder, made and locked until the file is dropped.
fn locked_cache() -> Result<(PathBuf, File)> {
    let cache = cache_folder()?;
    fs::create_dir_all(&cache).context(format!("make {}", cache.display()))?;
    let lock = File::create(cache.join("tools.lock")).context("open tools.lock")?;
    lock.lock().context("wait for tools.lock")?;
    remove_partial(&cache)?;
    Ok((cache, lock))
}

/// Where tools are kept: `$XDG_CACHE_HOME/kube-authn`, else `~/.cache/kube-authn`.
///
/// # Errors
/// When neither variable is set.
pub fn cache_folder() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = base.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    base.map(|base| base.join("kube-authn"))
        .ok_or_else(|| Error::new("neither XDG_CACHE_HOME nor HOME is set"))
}

/// Runs `make` on a folder beside `folder` and renames it when all is there: what exists is complete.
fn build(folder: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if !folder.exists() {
        let cache = folder.parent().unwrap_or(folder);
        let partial = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempdir_in(cache)
            .context("make a folder")?;
        make(partial.path())?;
        fs::rename(partial.keep(), folder).context(format!("finish {}", folder.display()))?;
    }
    Ok(folder.to_owned())
}

/// Removes what killed builds have left; the caller holds the lock, so none is under way.
fn remove_partial(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache).context(format!("read {}", cache.display()))? {
        let entry = entry.context("read a folder")?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            fs::remove_dir_all(entry.path()).context(format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn go_build(output: &Path, package: &str) -> Result<()> {
    let go = on_path("go").ok_or_else(|| Error::new(NO_GO))?;
    let (major, minor) = KUBERNETES_VERSION.split_once('.').unwrap_or_default();
    let version = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {version}.gitVersion=v{KUBERNETES_VERSION} -X {version}.gitMajor={major} \
         -X {version}.gitMinor={} -X {version}.gitTreeState=clean",
        minor.split('.').next().unwrap_or_default()
    );
    let mut command = Command::new(go);
    command
        .args(["build", "-trimpath", "-ldflags", &flags, "-o"])
        .arg(output)
        .arg(package);
    command
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .current_dir(source("cluster"));
    run(&format!("building {package}"), &mut command)
}

fn install_issuer(cache: &Path) -> Result<PathBuf> {
    const FILES: [&str; 3] = ["issuer.mjs", "package.json", "package-lock.json"];
    let sources: Vec<PathBuf> = FILES.iter().map(|file| source("issuer").join(file)).collect();
    let folder = build(&cache.join(format!("issuer-{}", key(&[], &sources)?)), |target| {
        for (name, file) in FILES.iter().zip(&sources) {
            fs::copy(file, target.join(name)).context(format!("copy {}", file.display()))?;
        }
        let mut command = Command::new(on_path("npm").ok_or_else(|| Error::new(NO_NODE))?);
        command
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"])
            .current_dir(target);
        run("installing the test issuers", &mut command)
    })?;
    Ok(folder.join("issuer.mjs"))
}

/// Runs quietly, shows the step and its time, and the whole output if it fails.
fn run(step: &str, command: &mut Command) -> Result<()> {
    say(&format!("{step} ..."));
    let begin = Instant::now();
    let output = command.stdin(Stdio::null()).output().context(step)?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        return Err(Error::new(format!(
            "{step} failed ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&text)
        )));
    }
    say(&format!("{step}: {} s", begin.elapsed().as_secs()));
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "a first build takes minutes; whoever waits wants to see it move"
)]
fn say(line: &str) {
    eprintln!("{line}");
}

fn kubernetes_key() -> Result<String> {
    let missing: Vec<&str> = KUBERNETES
        .iter()
        .filter(|tool| asset(tool).is_none())
        .map(|tool| tool.0)
        .collect();
    let hash = key(
        &missing,
        &[source("cluster").join("go.mod"), source("cluster").join("go.sum")],
    )?;
    Ok(format!("kubernetes-{KUBERNETES_VERSION}-{hash}"))
}

fn our_key() -> Result<String> {
    let mut files = vec![source("cluster").join("go.mod"), source("cluster").join("go.sum")];
    for (name, _) in OURS {
        let folder = source("cluster").join(name);
        for entry in fs::read_dir(&folder).context(format!("read {}", folder.display()))? {
            files.push(entry.context("read a folder")?.path());
        }
    }
    files.sort();
    Ok(format!("cluster-programs-{}", key(&[], &files)?))
}

/// The first 16 hex digits of SHA-256 over words and the files' content.
fn key(words: &[&str], files: &[PathBuf]) -> Result<String> {
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for word in words {
        hash.update(word.as_bytes());
        hash.update(b"\0");
    }
    for file in files {
        let content = fs::read(file).context(format!("read {}", file.display()))?;
        hash.update(&content.len().to_be_bytes());
        hash.update(&content);
    }
    Ok(hash.finish().as_ref()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// envtest's convention: a folder with etcd, kube-apiserver and kubectl.
fn asset(tool: &(&str, &str, bool)) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("KUBEBUILDER_ASSETS")?).join(tool.0);
    (tool.2 && path.is_file()).then_some(path)
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn source(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

const PARTIAL: &str = "partial-";

const NO_GO: &str = "the test cluster needs Go 1.26 or later, and there is no `go` on PATH: install it from https://go.dev/dl/";
const NO_NODE: &str = "the test issuers need Node.js 20 or later with npm, and there is none on PATH: install it from https://nodejs.org/";

const NO_PYTHON: &str = "the vendors' tools need Python 3, and there is no `python3` on PATH: install it from https://www.python.org/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_that_fails_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let half = |target: &Path| {
            fs::write(target.join("first"), "").context("write")?;
            Err(Error::new("interrupted"))
        };

        let failed = build(&cache.path().join("tools"), half);

        assert!(failed.is_err());
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_build_left_is_removed() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir(cache.path().join("partial-x")).unwrap();
        let whole = |target: &Path| fs::write(target.join("program"), "").context("write");
        let tools = build(&cache.path().join("tools"), whole).unwrap();

        remove_partial(cache.path()).unwrap();

        assert!(!cache.path().join("partial-x").exists() && tools.join("program").exists());
    }

    #[test]
    fn the_key_follows_the_content_of_each_file() {
        let cache = tempfile::tempdir().unwrap();
        let files = [cache.path().join("a"), cache.path().join("b")];
        let with = |a: &str, b: &str| {
            fs::write(&files[0], a).unwrap();
            fs::write(&files[1], b).unwrap();
            key(&[], &files).unwrap()
        };

        assert_eq!(with("x", "yz"), with("x", "yz"));
        assert_ne!(with("x", "yz"), with("xy", "z"));
    }
}
