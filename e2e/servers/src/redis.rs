//! Redis on loopback: one server, a primary with its replica and sentinels, a cluster.

mod cluster;
mod sentinels;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    keeper::{Keeper, Signal, free_port},
    packages::{packages, program},
    postgres::Settings,
};

pub use self::{cluster::Cluster, sentinels::Sentinels};

/// A server on a loopback port. [`Redis::USER`] may do what a store needs, as docs/deployment.md says it, with keys of any
/// prefix that begins with `kube-authn`; whoever gives no password may do everything.
#[derive(Debug)]
pub struct Redis {
    keeper: Keeper,
    port: u16,
}

impl Redis {
    /// The user of every URL.
    pub const USER: &'static str = "portal";
    /// Its password: no log and no error may show it.
    pub const PASSWORD: &'static str = "canary-password-of-redis";

    /// Makes a server and starts it. It writes every command to its file before it answers, and doesn't wait for the disk:
    /// a killed server loses nothing by that, and no test cuts the power.
    ///
    /// # Panics
    /// When it doesn't start, with its log; so do all methods.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with other settings over those.
    pub fn start_with(settings: Settings<'_>) -> Self {
        let port = free_port();
        let own = [
            ("bind", "127.0.0.1"),
            ("save", ""),
            ("appendonly", "yes"),
            ("appendfsync", "no"),
        ];
        let mut lines = format!("user {} {}\n", Self::USER, rights(Self::PASSWORD));
        for (name, value) in own.iter().chain(settings) {
            lines.push_str(&line(name, value));
        }
        Self::of(port, &lines, &[], &[])
    }

    /// The same with a port for TLS beside the one without, which shows this certificate; gives the port too.
    pub fn start_with_tls(certificate: &str, key: &str) -> (Self, u16) {
        let (port, tls_port) = (free_port(), free_port());
        let lines = [
            format!("user {} {}\n", Self::USER, rights(Self::PASSWORD)),
            line("bind", "127.0.0.1"),
            line("tls-port", &tls_port.to_string()),
            line("tls-cert-file", "serving.pem"),
            line("tls-key-file", "serving.key"),
            line("tls-auth-clients", "no"),
        ];
        let files = [("serving.pem", certificate), ("serving.key", key)];
        (Self::of(port, &lines.concat(), &files, &[]), tls_port)
    }

    /// A sentinel starts with an argument more.
    fn of(port: u16, settings: &str, files: &[(&str, &str)], arguments: &[&str]) -> Self {
        packages();
        let keeper = Keeper::new("redis", |folder| {
            let file = folder.join("redis.conf");
            let program = tool("redis-server").into_os_string();
            let arguments = arguments.iter().map(|argument| argument.into());
            [program, file.into_os_string()]
                .into_iter()
                .chain(arguments)
                .collect()
        });
        let folder = keeper.folder().display().to_string();
        let settings = format!(
            "{}{}{settings}",
            line("port", &port.to_string()),
            line("dir", &folder)
        );
        for (name, content) in files.iter().chain(&[("redis.conf", settings.as_str())]) {
            keeper.write(name, content);
        }
        let mut redis = Self { keeper, port };
        redis.start_again();
        redis
    }

    /// `redis://user:password@127.0.0.1:port/`.
    pub fn url(&self) -> String {
        format!("redis://{}@{}/", user(), self.address())
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's own log.
    pub fn log(&self) -> String {
        self.keeper.log()
    }

    /// Runs a command as somebody who may do everything, and gives what `redis-cli` prints of the answer.
    pub fn run(&self, command: &[&str]) -> String {
        let port = self.port.to_string();
        let arguments = [&["-h", "127.0.0.1", "-p", &port][..], command].concat();
        self.keeper
            .run(&tool("redis-cli"), &arguments)
            .trim_end()
            .to_owned()
    }

    /// Waits until its replica has all that was written.
    pub fn wait_for_replica(&self) {
        self.wait("its replica", |redis| {
            let info = redis.run(&["INFO", "replication"]);
            let value = |name: &str, end: char| {
                let (_, rest) = info.split_once(name)?;
                rest.split(end).next().map(str::trim)
            };
            let written = value("master_repl_offset:", '\n');
            written.is_some() && value(",offset=", ',') == written
        });
    }

    /// Ends the server.
    pub fn end(&mut self, signal: Signal) {
        self.keeper.end(signal);
    }

    /// Starts it again, with the same data on the same port, and waits until it answers.
    pub fn start_again(&mut self) {
        self.keeper.start();
        self.wait("an answer", |redis| redis.said("PING") == "+PONG\r\n");
    }

    /// Starts it again, and returns at once.
    pub fn start_again_without_waiting(&mut self) {
        self.keeper.start();
    }

    /// The begin of an answer as it comes, or nothing: a server that is starting or being promoted cuts connections.
    fn said(&self, command: &str) -> String {
        let mut answer = [0; 4_096];
        let asked = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(format!("{command}\r\n").as_bytes())?;
            stream.read(&mut answer)
        });
        String::from_utf8_lossy(&answer[..asked.unwrap_or(0)]).into_owned()
    }

    fn is_primary(&self) -> bool {
        self.said("ROLE").contains("master")
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            assert!(
                begin.elapsed() < PATIENCE,
                "waited too long for {what} of Redis at {}:\n{}",
                self.address(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// As docs/deployment.md gives it, with any prefix that begins with `kube-authn`.
fn rights(password: &str) -> String {
    format!("on >{password} ~{{kube-authn*}}:* &{{kube-authn*}}:* {COMMANDS}")
}

fn user() -> String {
    format!("{}:{}", Redis::USER, Redis::PASSWORD)
}

fn line(name: &str, value: &str) -> String {
    match value.is_empty() {
        true => format!("{name} \"\"\n"),
        false => format!("{name} {value}\n"),
    }
}

fn tool(name: &str) -> PathBuf {
    program(name).unwrap_or_else(|| panic!("no {name}: it comes with redis-server"))
}

/// What a store asks of Redis; docs/deployment.md has the same line.
pub const COMMANDS: &str = "+hmget +hget +hset +exists +del +zadd +zrem +zrangebylex +zrangebyscore +setnx +get +publish \
                            +subscribe +eval +evalsha +script|load +ping +select +role +info +config|get \
                            +cluster|slots +cluster|keyslot";
/// A replica follows at once, and a primary that comes back does not wait for it.
const REPLICATION: Settings<'static> = &[("repl-diskless-sync-delay", "0")];
/// Generous: a machine that runs tests is busy.
const PATIENCE: Duration = Duration::from_secs(30);
