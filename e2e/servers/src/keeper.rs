//! A server that ends with us, however we end.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::packages::program;

/// A folder and one program that can be started and ended in it. Both are gone when this is dropped or the process ends.
///
/// A shell of its own owns both and follows the end of its input, which the kernel closes even if we are killed.
#[derive(Debug)]
pub struct Keeper {
    folder: PathBuf,
    shell: Child,
    input: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    runs_as: Vec<OsString>,
}

/// How a program is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "only tests match it")]
pub enum Signal {
    /// As an administrator stops it.
    Term,
    /// PostgreSQL: cut all connections and stop in order.
    Int,
    /// PostgreSQL: stop at once, recover at the next start.
    Quit,
    /// As a crash.
    Kill,
}

impl Keeper {
    /// A new folder, owned by `user` if we are root and may not run the program ourselves, and nothing running in it yet.
    /// `command` gets the folder and says what to start.
    ///
    /// # Panics
    /// When there is no `sh`, or as root no `setpriv` or no such user.
    pub fn new(user: &str, command: impl FnOnce(&Path) -> Vec<OsString>) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kube-authn-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .expect("a folder")
            .keep();
        let runs_as = match fs::metadata("/proc/self").expect("ourselves").uid() {
            0 => {
                let (uid, gid) = ids(user);
                chown(&folder, Some(uid), Some(gid)).expect("the folder's owner");
                let setpriv = program("setpriv").expect("setpriv of util-linux");
                let options = [
                    format!("--reuid={uid}"),
                    format!("--regid={gid}"),
                    "--clear-groups".into(),
                ];
                let options = options.into_iter().chain(["--".into()]).map(OsString::from);
                std::iter::once(setpriv.into()).chain(options).collect()
            }
            _ => Vec::new(),
        };
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "keeper"])
            .arg(&folder)
            .args(&runs_as)
            .args(command(&folder))
            // Not in a folder that the user may not enter.
            .current_dir(&folder)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C at the terminal is for us alone.
            .process_group(0)
            .spawn()
            .expect("sh");
        Self {
            folder,
            input: shell.stdin.take(),
            answers: BufReader::new(shell.stdout.take().expect("its output")),
            shell,
            runs_as,
        }
    }

    /// The folder; the program's output is in `log` there.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the program, and says its process id. It may not be ready yet.
    pub fn start(&mut self) -> u32 {
        self.ask("start").parse().expect("a process id")
    }

    /// Ends the program and waits until it is gone.
    pub fn end(&mut self, signal: Signal) {
        self.ask(match signal {
            Signal::Term => "TERM",
            Signal::Int => "INT",
            Signal::Quit => "QUIT",
            Signal::Kill => "KILL",
        });
    }

    /// Runs another program to its end as the same user, in the folder.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn run(&self, program: &Path, arguments: &[&str]) -> String {
        let line: Vec<OsString> = self.runs_as.iter().cloned().chain([program.into()]).collect();
        let output = Command::new(&line[0])
            .args(&line[1..])
            .args(arguments)
            .current_dir(&self.folder)
            .env_remove("PGPASSWORD")
            .stdin(Stdio::null())
            .output()
            .expect("a program");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{} failed: {text}{said}",
            program.display()
        );
        text
    }

    /// Writes a file that the program may read, and nobody else.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.join(name);
        let owner = fs::metadata(&self.folder).expect("the folder");
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        chown(&path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
        path
    }

    /// What the program has said, for the message of a test that failed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn ask(&mut self, what: &str) -> String {
        let input = self.input.as_mut().expect("an open shell");
        writeln!(input, "{what}").expect("a shell that listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.shell.wait();
    }
}

/// A loopback port that nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

fn ids(user: &str) -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("the users");
    let ids = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let is_it = fields.first() == Some(&user);
        is_it.then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))?
    });
    ids.unwrap_or_else(|| panic!("no user {user}"))
}

/// `$1` the folder, then the program. Reads `start` or the name of a signal, answers each with a line when it is done. In
/// the end PostgreSQL follows SIGQUIT, whoever is connected; what a shell starts beside itself ignores that signal unless
/// it says otherwise, and SIGTERM ends it.
const SCRIPT: &str = r#"
folder=$1; shift; pid=
while read -r word; do
    if [ "$word" = start ]; then
        "$@" </dev/null >>"$folder/log" 2>&1 & pid=$!
        echo "$pid"
    else
        if [ -n "$pid" ]; then kill -s "$word" "$pid" 2>/dev/null; wait "$pid"; pid=; fi
        echo ended
    fi
done
if [ -n "$pid" ]; then kill -s QUIT "$pid" 2>/dev/null; kill -s TERM "$pid" 2>/dev/null; wait "$pid"; fi
rm -rf -- "$folder"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_folder_are_gone_when_the_handle_is() {
        let sleep = |_: &Path| vec![program("sleep").expect("sleep").into(), "1000".into()];
        let mut keeper = Keeper::new("nobody", sleep);
        let folder = keeper.folder().to_owned();
        let pid = keeper.start();
        assert!(Path::new(&format!("/proc/{pid}")).exists() && folder.exists());

        drop(keeper);

        assert!(!Path::new(&format!("/proc/{pid}")).exists() && !folder.exists());
    }

    #[test]
    fn ended_program_starts_again() {
        let sleep = |_: &Path| vec![program("sleep").expect("sleep").into(), "1000".into()];
        let mut keeper = Keeper::new("nobody", sleep);
        let first = keeper.start();

        keeper.end(Signal::Kill);
        let second = keeper.start();

        assert!(!Path::new(&format!("/proc/{first}")).exists());
        assert!(Path::new(&format!("/proc/{second}")).exists());
    }
}
