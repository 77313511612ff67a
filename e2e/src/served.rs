//! `kube-authn serve` as a program of its own, for tests and the demo.

mod caller;

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};

pub use self::caller::{Caller, write_private};
use crate::{
    cluster::TestCluster,
    error::{Context, Error, Result},
};

/// How `kube-authn serve` is started.
#[derive(Debug)]
pub struct Serve<'a> {
    /// The program; `env!("CARGO_BIN_EXE_kube-authn-program")` for a test of this package.
    pub program: &'a Path,
    /// The app-config. The log is written beside it, as `kube-authn.log`.
    pub config: &'a Path,
    /// What the program finds in its environment, beside `PATH`.
    pub environment: Vec<(&'a str, String)>,
    /// How long requests may take to finish at the stop; whole seconds.
    pub drain: Duration,
    /// The cluster whose supervisor ends the program also if we are killed. Without it the program would go on then.
    pub cluster: Option<&'a TestCluster>,
}

/// A program that serves. It ends when this is dropped.
#[derive(Debug)]
pub struct Served {
    child: Child,
    // Apart from the child: waiting for one closes its input, which a supervisor follows.
    input: Option<ChildStdin>,
    url: String,
    log: PathBuf,
    drain: Duration,
}

impl Serve<'_> {
    /// Starts the program and returns when it listens.
    ///
    /// # Errors
    /// When it refuses to start, with what it said.
    pub async fn start(&self) -> Result<Served> {
        let log = self.config.with_file_name("kube-authn.log");
        let output = open_log(&log)?;
        let earlier = output.metadata().context("read the service's log")?.len();
        let mut command = self.command(&log, output)?;
        let mut child = command
            .arg("serve")
            .arg("--config")
            .arg(self.config)
            .args(["--drain", &self.drain.as_secs().to_string()])
            .spawn()
            .context(format!("start {}", self.program.display()))?;
        let url = listening(&mut child, &log, earlier).await?;
        Ok(Served {
            input: child.stdin.take(),
            child,
            url,
            log,
            drain: self.drain,
        })
    }

    fn command(&self, log: &Path, output: File) -> Result<Command> {
        let mut command = match self.cluster {
            Some(cluster) => {
                let mut command = Command::new(&cluster.tools().supervise);
                let grace = format!("{}s", (self.drain + MARGIN).as_secs());
                command
                    .arg("-lock")
                    .arg(cluster.path().join("lock"))
                    .arg("-log")
                    .arg(log)
                    .args(["-grace", &grace, "--"])
                    .arg(self.program);
                command
            }
            None => Command::new(self.program),
        };
        let both = output.try_clone().context("open the service's log")?;
        // A group of its own: Ctrl-C at the terminal is for us alone.
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(both)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            // A supervisor ends with its input, and must outlive us for that.
            .kill_on_drop(self.cluster.is_none());
        Ok(command)
    }
}

impl Served {
    /// Where it listens: `https://127.0.0.1:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process: the program's own where no supervisor stands before it. `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it has said.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits for its end; it was not to come.
    ///
    /// # Errors
    /// When its state can't be asked for.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.context("wait for the service")
    }

    /// Tells it to stop and waits until it has.
    ///
    /// # Errors
    /// When it doesn't end in its time.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        // A supervisor follows the end of its input, the program itself the signal.
        drop(self.input.take());
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).context("stop the service")?;
        }
        match tokio::time::timeout(self.drain + 2 * MARGIN, self.child.wait()).await {
            Ok(status) => status.context("wait for the service"),
            Err(_) => Err(Error::new(format!(
                "the service does not end; its log: {}",
                self.log.display()
            ))),
        }
    }
}

/// The URL that the program says it listens on; what it said before `earlier` is of another one.
async fn listening(child: &mut Child, log: &Path, earlier: u64) -> Result<String> {
    let begin = Instant::now();
    loop {
        let ended = child.try_wait().context("ask for the service's state")?;
        let bytes = fs::read(log).context("read the service's log")?;
        let said = bytes.get(usize::try_from(earlier).unwrap_or(usize::MAX)..);
        let said = String::from_utf8_lossy(said.unwrap_or_default());
        // A line without its end is still being written.
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if let Some(url) = whole.lines().find_map(|line| line.strip_prefix("listening on ")) {
            return Ok(url.to_owned());
        }
        if let Some(status) = ended {
            return Err(Error::new(format!(
                "kube-authn serve did not start ({status}):\n{}",
                said.trim_end()
            )));
        }
        if begin.elapsed() > START_LIMIT {
            return Err(Error::new(format!(
                "kube-authn serve does not listen; its log: {}",
                log.display()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn open_log(log: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log)
        .context(format!("open {}", log.display()))
}

/// Twenty times what a start takes on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Between the end of the program's own patience and ours.
const MARGIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
