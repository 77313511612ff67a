//! The one door to child processes.
//!
//! A child gets nothing to read, a process group of its own, and so much time. Its answer is what it printed on standard
//! output, at most [`MAX_OUTPUT`] bytes. Whatever happens (it ends, it takes too long, it prints too much, nobody waits
//! any more), what is left of its group is killed and the child is reaped. Only a process that leaves the group by
//! `setsid` outlives that; nobody waits for it, even if it holds the pipes open.

use std::{
    ffi::{OsStr, OsString},
    fmt, io,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use kube_authn_core::Secret;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Child,
    time::timeout,
};

/// A program to run. `Debug` shows neither arguments nor environment.
pub(crate) struct Command {
    program: PathBuf,
    /// What the program is told that it is called; programs of many names go by it.
    called: Option<OsString>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    passed_on: PassedOn,
    timeout: Duration,
}

/// Which of our own environment variables a child sees. Those that begin with [`OWN_PREFIX`] it never sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum PassedOn {
    /// All, as with kubectl.
    #[default]
    All,
    /// Those of these names.
    Named(Vec<String>),
}

impl PassedOn {
    fn includes(&self, name: &OsStr) -> bool {
        let is_own = name
            .to_string_lossy()
            .to_ascii_uppercase()
            .starts_with(OWN_PREFIX);
        let named = match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|known| name == known.as_str()),
        };
        named && !is_own
    }
}

/// What a child that ended left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Secret,
    /// The first [`MAX_ERRORS`] bytes. May hold secrets: for decisions and lengths, never for a message.
    pub(crate) stderr: Secret,
}

impl Command {
    /// A program by its absolute path: PATH is never searched.
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            called: None,
            args: Vec::new(),
            env: Vec::new(),
            passed_on: PassedOn::All,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    pub(crate) fn called(mut self, name: impl Into<OsString>) -> Self {
        self.called = Some(name.into());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub(crate) fn passed_on(mut self, passed_on: PassedOn) -> Self {
        self.passed_on = passed_on;
        self
    }

    /// How long it may take, [`DEFAULT_TIMEOUT`] by default.
    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end. Dropping the future ends the child too.
    pub(crate) async fn run(self) -> Result<Finished, CommandError> {
        let limit = self.timeout;
        let run = async {
            // Starting a program reads it from disk: not on the threads that serve requests.
            let started = tokio::task::spawn_blocking(move || self.start()).await;
            let mut running = started.map_err(|lost| CommandError::Start(io::Error::other(lost)))??;
            running.finish().await
        };
        timeout(limit, run)
            .await
            .unwrap_or(Err(CommandError::Timeout(limit)))
    }

    fn start(self) -> Result<Running, CommandError> {
        if !self.program.is_absolute() {
            return Err(CommandError::Relative);
        }
        #[allow(clippy::disallowed_methods, reason = "the one door to child processes")]
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        self.set_environment(&mut command);
        #[cfg(unix)]
        {
            command.process_group(0);
            if let Some(name) = &self.called {
                command.arg0(name);
            }
        }
        command
            .spawn()
            .map(|child| Running {
                group: Group::of(&child),
                child,
            })
            .map_err(CommandError::Start)
    }

    fn set_environment(&self, command: &mut tokio::process::Command) {
        command.env_clear();
        command.envs(std::env::vars_os().filter(|(name, _)| self.passed_on.includes(name)));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("program", &self.program)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A child that runs. Dropping it kills its group; the runtime reaps what was killed.
struct Running {
    /// First, so that it is killed while its number is surely its own.
    group: Group,
    child: Child,
}

impl Running {
    async fn finish(&mut self) -> Result<Finished, CommandError> {
        let (Some(mut stdout), Some(mut stderr)) = (self.child.stdout.take(), self.child.stderr.take())
        else {
            return Err(CommandError::Start(io::ErrorKind::BrokenPipe.into()));
        };
        let (mut output, mut errors) = (Capture::new(MAX_OUTPUT), Capture::new(MAX_ERRORS));
        let code = {
            // A talkative program is no broken one: too many errors are none.
            let reading = async {
                tokio::try_join!(output.read(&mut stdout), errors.read_and_drop(&mut stderr)).map(drop)
            };
            tokio::pin!(reading);
            let mut read = false;
            let status = loop {
                tokio::select! {
                    status = self.child.wait() => break status.map_err(CommandError::Wait)?,
                    done = &mut reading, if !read => {
                        done?;
                        read = true;
                    }
                }
            };
            // What it wrote is in the pipes; whoever else holds them is not waited for.
            self.group.kill();
            if !read && let Ok(done) = timeout(DRAIN, &mut reading).await {
                done?;
            }
            status.code()
        };
        Ok(Finished {
            code,
            stdout: output.into_secret(),
            stderr: errors.into_secret(),
        })
    }
}

/// The first bytes of what a child prints.
struct Capture {
    bytes: Vec<u8>,
    bound: usize,
}

impl Capture {
    fn new(bound: usize) -> Self {
        Self {
            // Room for all there can be: a buffer that grows leaves copies of secrets behind.
            bytes: Vec::with_capacity(bound + 1),
            bound,
        }
    }

    /// Reads to the end or the bound. Keeps what it has if nobody waits any more.
    async fn read(&mut self, pipe: &mut (impl AsyncRead + Unpin)) -> Result<(), CommandError> {
        let mut pipe = pipe.take(self.bound as u64 + 1);
        // A pipe that breaks has nothing more to give.
        while let Ok(1..) = pipe.read_buf(&mut self.bytes).await {}
        match self.bytes.len() > self.bound {
            true => Err(CommandError::TooMuchOutput),
            false => Ok(()),
        }
    }

    /// As [`Capture::read`]; what is beyond the bound is read and dropped.
    async fn read_and_drop(&mut self, pipe: &mut (impl AsyncRead + Unpin)) -> Result<(), CommandError> {
        if self.read(pipe).await.is_err() {
            self.bytes.truncate(self.bound);
            let _ = tokio::io::copy(pipe, &mut tokio::io::sink()).await;
        }
        Ok(())
    }

    fn into_secret(self) -> Secret {
        Secret::new(self.bytes)
    }
}

/// A process group.
#[derive(Debug)]
struct Group {
    #[cfg(unix)]
    leader: Option<rustix::process::Pid>,
}

impl Group {
    #[cfg(unix)]
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self {
            leader: id.and_then(rustix::process::Pid::from_raw),
        }
    }

    #[cfg(not(unix))]
    fn of(_: &Child) -> Self {
        Self {}
    }

    /// Once: afterwards the number may be somebody else's.
    fn kill(&mut self) {
        #[cfg(unix)]
        if let Some(leader) = self.leader.take() {
            // No such group: all of it has ended by itself.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Why there is no answer. None of these shows what the child printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("its path is not absolute")]
    Relative,
    #[error("it cannot be started")]
    Start(#[source] io::Error),
    #[error("it cannot be waited for")]
    Wait(#[source] io::Error),
    #[error("it took longer than {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("it printed more than 1 MiB")]
    TooMuchOutput,
}

/// How long a child may take unless told otherwise: time enough for a cloud's login service on a bad day.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The most that a child may print on standard output, bytes.
pub(crate) const MAX_OUTPUT: usize = 1024 * 1024;

/// What is kept of standard error, bytes.
pub(crate) const MAX_ERRORS: usize = 64 * 1024;

/// How long pipes are read on after the child's end while somebody else holds them open.
const DRAIN: Duration = Duration::from_millis(500);

/// Our own settings, the key of the stored logins among them.
const OWN_PREFIX: &str = "KUBE_AUTHN_";

#[cfg(test)]
mod tests;
