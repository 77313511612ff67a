//! PostgreSQL on loopback.

use std::{
    ffi::OsString,
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crate::{
    keeper::{Keeper, Signal, free_port},
    packages::{packages, postgres_program},
};

/// A server on a loopback port, with a superuser [`Postgres::USER`] whose password is [`Postgres::PASSWORD`].
#[derive(Debug)]
pub struct Postgres {
    keeper: Keeper,
    pid: u32,
    port: u16,
    databases: AtomicU32,
}

/// Names and values of `postgresql.conf`, over those that [`Postgres::start`] sets.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

impl Postgres {
    /// The user of every URL.
    pub const USER: &'static str = "portal";
    /// Its password: no log and no error may show it.
    pub const PASSWORD: &'static str = "canary-password-of-postgres";

    /// Makes a server and starts it. It doesn't wait for the disk: a killed server loses nothing by that, and no test cuts
    /// the power.
    ///
    /// # Panics
    /// When it doesn't start, with its log; so do all methods.
    pub fn start() -> Self {
        Self::start_with(&[("fsync", "off")])
    }

    /// The same with other settings, and with PostgreSQL's own care for the disk unless they say otherwise.
    pub fn start_with(settings: Settings<'_>) -> Self {
        Self::make(settings, |_| {})
    }

    /// A server that also offers TLS, with this certificate and key (PEM).
    pub fn start_with_tls(certificate: &str, key: &str) -> Self {
        Self::make(&[("fsync", "off"), ("ssl", "on")], |keeper| {
            keeper.write("data/server.crt", certificate);
            keeper.write("data/server.key", key);
        })
    }

    fn make(settings: Settings<'_>, fill: impl FnOnce(&Keeper)) -> Self {
        packages();
        let port = free_port();
        let keeper = Keeper::new("postgres", |folder| command(folder, port));
        let password = keeper.write("password", Self::PASSWORD);
        keeper.run(
            &tool("initdb"),
            &[
                "--no-sync",
                "--auth-local=trust",
                // The default, SCRAM, costs each connection of an unoptimised build a tenth of a second and more.
                "--auth-host=md5",
                "--encoding=UTF8",
                "--no-locale",
                &format!("--username={}", Self::USER),
                &format!("--pwfile={}", password.display()),
                "--pgdata=data",
            ],
        );
        let own = [
            ("listen_addresses", "127.0.0.1"),
            ("max_connections", "200"),
            ("wal_level", "replica"),
        ];
        let lines = own.iter().chain(settings);
        let lines: String = lines
            .map(|(name, value)| format!("{name} = '{value}'\n"))
            .collect();
        keeper.write("data/postgresql.auto.conf", &lines);
        fill(&keeper);
        Self::running(keeper, port)
    }

    /// A standby that follows this server, for reads alone until it is [promoted](Postgres::promote).
    pub fn standby(&self) -> Self {
        let port = free_port();
        let keeper = Keeper::new("postgres", |folder| command(folder, port));
        keeper.run(
            &tool("pg_basebackup"),
            &[
                "--no-sync",
                "--checkpoint=fast",
                "--write-recovery-conf",
                "--pgdata=data",
                &format!("--dbname={}", self.url_of("postgres")),
            ],
        );
        Self::running(keeper, port)
    }

    fn running(keeper: Keeper, port: u16) -> Self {
        let mut postgres = Self {
            keeper,
            pid: 0,
            port,
            databases: AtomicU32::new(0),
        };
        postgres.start_again();
        postgres
    }

    /// The URL of the database that every server has: `postgres://user:password@127.0.0.1:port/postgres`.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL of a new empty database.
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run(&format!("CREATE DATABASE {name}"));
        self.url_of(&name)
    }

    /// The URL of a database by its name.
    pub fn url_of(&self, database: &str) -> String {
        format!(
            "postgres://{}:{}@127.0.0.1:{}/{database}",
            Self::USER,
            Self::PASSWORD,
            self.port
        )
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's own log.
    pub fn log(&self) -> String {
        self.keeper.log()
    }

    /// Runs a statement in the database `postgres`, and gives what `psql` prints of it.
    pub fn run(&self, statement: &str) -> String {
        self.run_in("postgres", statement)
    }

    /// Runs a statement in this database.
    pub fn run_in(&self, database: &str, statement: &str) -> String {
        let folder = self.keeper.folder().display().to_string();
        let port = self.port.to_string();
        let arguments = [
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--host",
            &folder,
            "--port",
            &port,
            "--username",
            Self::USER,
            "--dbname",
            database,
            "--command",
            statement,
        ];
        self.keeper.run(&tool("psql"), &arguments)
    }

    /// Stops in order, cutting all connections; the URL stays, and nobody listens there.
    pub fn stop(&mut self) {
        self.keeper.end(Signal::Int);
    }

    /// Stops as a crash does, by SIGKILL.
    pub fn kill(&mut self) {
        let rest = children(self.pid);
        self.keeper.end(Signal::Kill);
        // The rest of the server's processes notice the death of the first one and end; until then they serve whoever is
        // connected, and no new server starts.
        let begin = Instant::now();
        while rest
            .iter()
            .any(|pid| status(pid).is_some_and(|fields| !fields.starts_with('Z')))
        {
            assert!(begin.elapsed() < START_LIMIT, "PostgreSQL does not die");
            std::thread::sleep(POLL);
        }
    }

    /// Starts at the same URL what was stopped or killed, and waits until it answers.
    pub fn start_again(&mut self) {
        let begin = Instant::now();
        self.pid = self.keeper.start();
        while !self.answers() {
            assert!(
                begin.elapsed() < START_LIMIT,
                "PostgreSQL does not start:\n{}",
                self.log()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Stops and starts.
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Makes every transaction read-only, as on a replica (`25006`), or ends that; connections that are open follow.
    pub fn set_read_only(&self, read_only: bool) {
        let value = if read_only { "on" } else { "off" };
        self.run(&format!(
            "ALTER SYSTEM SET default_transaction_read_only = {value}"
        ));
        self.run("SELECT pg_reload_conf()");
        let begin = Instant::now();
        while self.run("SHOW default_transaction_read_only").trim() != value {
            assert!(
                begin.elapsed() < START_LIMIT,
                "PostgreSQL does not read its settings"
            );
            std::thread::sleep(POLL);
        }
    }

    /// Makes a standby a server that takes writes.
    pub fn promote(&self) {
        self.run("SELECT pg_promote()");
    }

    fn answers(&self) -> bool {
        let folder = self.keeper.folder().display().to_string();
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        TcpStream::connect_timeout(&address, POLL).is_ok()
            && std::process::Command::new(tool("pg_isready"))
                .args(["--quiet", "--host", &folder, "--port", &self.port.to_string()])
                .status()
                .is_ok_and(|status| status.success())
    }
}

fn command(folder: &Path, port: u16) -> Vec<OsString> {
    let folder = folder.display();
    let line = [
        format!("--unix_socket_directories={folder}"),
        format!("--port={port}"),
        "-D".into(),
        format!("{folder}/data"),
    ];
    std::iter::once(tool("postgres").into())
        .chain(line.into_iter().map(OsString::from))
        .collect()
}

fn tool(name: &str) -> PathBuf {
    postgres_program(name).unwrap_or_else(|| panic!("PostgreSQL has no program {name}"))
}

/// The processes that this one started.
fn children(parent: u32) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("the processes").flatten();
    let is_child = |pid: &String| {
        let fields = status(pid).unwrap_or_default();
        fields.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    processes
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(is_child)
        .collect()
}

/// State, parent and what follows them in a process's `stat`.
fn status(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before them stands in brackets, and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.trim_start().to_owned())
}

/// Ten times what a recovery takes on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_server_comes_back_with_what_was_written() {
        let mut postgres = Postgres::start();
        postgres.run("CREATE TABLE kept AS SELECT 7 AS number");

        postgres.kill();
        postgres.start_again();
        postgres.restart();

        assert_eq!(postgres.run("SELECT number FROM kept").trim(), "7");
    }

    #[test]
    fn standby_reads_and_writes_once_it_is_promoted() {
        let primary = Postgres::start();
        let standby = primary.standby();
        assert_eq!(standby.run("SELECT pg_is_in_recovery()").trim(), "t");

        standby.promote();

        standby.run("CREATE TABLE written AS SELECT 1");
    }
}
