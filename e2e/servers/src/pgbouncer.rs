//! `PgBouncer` before a PostgreSQL server, on loopback.

use std::{
    ffi::OsString,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    keeper::{Keeper, free_port},
    packages::{pooler, program},
    postgres::Postgres,
};

/// A pooler that hands connections of one server out. It asks nobody for a password, and has the server's.
#[derive(Debug)]
pub struct PgBouncer {
    keeper: Keeper,
    port: u16,
}

impl PgBouncer {
    /// Starts one before this server that hands its connections out by `session` or by `transaction` (`pool_mode`).
    ///
    /// # Panics
    /// When it doesn't start, with its log.
    pub fn before(server: &Postgres, mode: &str) -> Self {
        pooler();
        let port = free_port();
        let mut keeper = Keeper::new("postgres", |folder| {
            let program = program("pgbouncer").expect("pgbouncer").into_os_string();
            let settings = OsString::from(folder.join("pgbouncer.ini"));
            vec![program, settings]
        });
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={} password={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\nignore_startup_parameters = extra_float_digits\ndefault_pool_size = 50\n\
             max_client_conn = 500\nserver_idle_timeout = 1\n",
            server.port(),
            Postgres::USER,
            Postgres::PASSWORD,
        );
        keeper.write("pgbouncer.ini", &settings);
        keeper.start();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begin.elapsed() < START_LIMIT, "no pgbouncer: {}", keeper.log());
            std::thread::sleep(POLL);
        }
        Self { keeper, port }
    }

    /// The pooler's own log.
    pub fn log(&self) -> String {
        self.keeper.log()
    }

    /// The URL of a database of the server (as [`Postgres::database`] gives it) by way of the pooler.
    pub fn url(&self, database: &str) -> String {
        let name = database.rsplit('/').next().unwrap_or_default();
        format!("postgres://{}@127.0.0.1:{}/{name}", Postgres::USER, self.port)
    }
}

/// It reads one small file.
const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
