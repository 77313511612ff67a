//! Child processes that end with us, however we end.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use crate::error::{Context, Error, Result};

/// The folder of one cluster. It is removed when everything started in it has ended, even if we were killed.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    supervise: PathBuf,
    remover: Supervised,
}

/// A program under the supervisor (`e2e/cluster/supervise`), which ends it when our end of the pipe closes.
#[derive(Debug)]
pub(crate) struct Supervised {
    child: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

/// Longer than the supervisor's own patience between SIGTERM and SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(10);

impl RunFolder {
    pub(crate) fn create(supervise: &Path) -> Result<Self> {
        // Keys of an API server are in it.
        let temporary = tempfile::Builder::new()
            .prefix("kube-authn-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .context("make the cluster's folder")?;
        let (lock, log) = (temporary.path().join("lock"), temporary.path().join("logs"));
        fs::write(&lock, "")
            .and_then(|()| fs::create_dir(&log))
            .context("fill the cluster's folder")?;
        let mut command = Command::new(supervise);
        command
            .arg("-lock")
            .arg(&lock)
            .arg("-remove")
            .arg(temporary.path());
        let remover = Supervised::spawn(command, PathBuf::new())?;
        Ok(Self {
            path: temporary.keep(),
            supervise: supervise.to_owned(),
            remover,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a program; its output goes to `logs/<name>.log`.
    pub(crate) fn start<A: AsRef<OsStr>>(
        &self,
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Supervised> {
        let log = self.path.join("logs").join(format!("{name}.log"));
        let mut command = Command::new(&self.supervise);
        command
            .arg("-lock")
            .arg(self.path.join("lock"))
            .arg("-log")
            .arg(&log)
            .arg("--");
        command.arg(program).args(arguments);
        // Nothing of the person's environment decides what a test sees.
        command.env_clear().env("HOME", &self.path);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        Supervised::spawn(command, log)
    }

    /// Waits until the folder is gone; everything started in it must have been stopped.
    pub(crate) async fn remove(mut self) -> Result<()> {
        self.remover.stop().await
    }
}

impl Supervised {
    fn spawn(mut command: Command, log: PathBuf) -> Result<Self> {
        // A group of its own: Ctrl-C at the terminal is for us alone.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0);
        let program = command.get_program().to_owned();
        let mut child = command.spawn().context(format!("start {}", program.display()))?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, log })
    }

    /// An error with the end of the program's log if it has ended by itself.
    pub(crate) fn still_running(&mut self) -> Result<()> {
        match self.child.try_wait().context("ask for a child's status")? {
            None => Ok(()),
            Some(status) => {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                Err(Error::new(format!(
                    "{} ended too early ({status}):\n{tail}",
                    self.log.display()
                )))
            }
        }
    }

    /// Ends the program, by SIGTERM and after two seconds by SIGKILL, and waits for it.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        drop(self.stdin.take());
        let begin = Instant::now();
        while self.child.try_wait().context("wait for a child")?.is_none() {
            if begin.elapsed() > STOP_LIMIT {
                return Err(Error::new(format!("{} does not end", self.log.display())));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}
