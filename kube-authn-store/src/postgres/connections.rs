//! A few connections to the primary, each used by one statement at a time.
//!
//! Not the driver's own pool: that one asks the server after every statement whether the connection still lives, waits for
//! a server that refuses connections until its time is over, and knows one server.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions, Connection, PgConnection, Row,
    postgres::{PgArguments, PgConnectOptions, PgRow},
    query::Query,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::timeout,
};

use super::{address::Address, error::PostgresError};

pub(super) type Statement<'q> = Query<'q, sqlx::Postgres, PgArguments>;

#[derive(Debug)]
pub(super) struct Connections {
    pub(super) address: Address,
    /// The server that was the primary last: subscriptions follow it.
    primary: watch::Sender<usize>,
    idle: Mutex<Vec<Idle>>,
    permits: Semaphore,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    since: Instant,
}

/// A connection that nobody else uses. Dropped without [`Lease::keep`], for an error or a caller that went away in the
/// middle, it is closed: nobody gets half an answer.
pub(super) struct Lease<'a> {
    pub(super) connection: PgConnection,
    is_new: bool,
    connections: &'a Connections,
    _permit: SemaphorePermit<'a>,
}

impl Lease<'_> {
    pub(super) fn keep(self) {
        let since = Instant::now();
        let mut idle = self.connections.idle();
        // The newest is used first, so those at the front are the ones that are too many.
        idle.retain(|idle| idle.since.elapsed() < IDLE_LIMIT);
        if !self.connections.is_closed() {
            idle.push(Idle {
                connection: self.connection,
                since,
            });
        }
    }
}

impl Connections {
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            primary: watch::Sender::new(0),
            idle: Mutex::default(),
            permits: Semaphore::new(CONNECTIONS),
            closed: AtomicBool::new(false),
        }
    }

    /// Runs a statement that only reads, and gives its rows. A connection that died while it lay idle costs nobody an error.
    pub(super) async fn read<'q>(
        &self,
        statement: impl Fn() -> Statement<'q>,
    ) -> Result<Vec<PgRow>, PostgresError> {
        let lease = self.lease().await?;
        let was_idle = !lease.is_new;
        match self.rows(lease, statement()).await {
            Err(error) if was_idle && error.is_of_the_connection() => {
                self.rows(self.lease().await?, statement()).await
            }
            answer => answer,
        }
    }

    async fn rows(
        &self,
        mut lease: Lease<'_>,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, PostgresError> {
        let rows = self
            .in_time(STATEMENT_LIMIT, statement.fetch_all(&mut lease.connection))
            .await?;
        lease.keep();
        Ok(rows)
    }

    /// Runs a statement that writes, once, and says how many rows it wrote.
    pub(super) async fn write(&self, statement: Statement<'_>) -> Result<u64, PostgresError> {
        let mut lease = self.lease().await?;
        let done = self
            .in_time(STATEMENT_LIMIT, statement.execute(&mut lease.connection))
            .await?;
        lease.keep();
        Ok(done.rows_affected())
    }

    pub(super) async fn lease(&self) -> Result<Lease<'_>, PostgresError> {
        let permit = timeout(BUSY_LIMIT, self.permits.acquire())
            .await
            .map_err(|_| PostgresError::Busy(BUSY_LIMIT))?
            .map_err(|_| PostgresError::Closed)?;
        let idle = self.idle().pop().filter(|idle| idle.since.elapsed() < IDLE_LIMIT);
        let (connection, is_new) = match idle {
            Some(idle) => (idle.connection, false),
            None => (self.connect().await?, true),
        };
        Ok(Lease {
            connection,
            is_new,
            connections: self,
            _permit: permit,
        })
    }

    /// A connection to the primary: the server that was it last, else the next that is.
    async fn connect(&self) -> Result<PgConnection, PostgresError> {
        let servers = &self.address.servers;
        let first = *self.primary.borrow();
        let mut failure = PostgresError::Closed;
        for index in (0..servers.len()).map(|offset| (first + offset) % servers.len()) {
            match self.in_time(CONNECT_LIMIT, connect(&servers[index])).await {
                Ok(connection) => {
                    self.primary
                        .send_if_modified(|primary| std::mem::replace(primary, index) != index);
                    return Ok(connection);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// How the server that was the primary last is reached, and word of when it is another.
    pub(super) fn primary(&self) -> (PgConnectOptions, watch::Receiver<usize>) {
        let mut primary = self.primary.subscribe();
        let index = *primary.borrow_and_update();
        (self.address.servers[index].clone(), primary)
    }

    /// Bounds what talks to the server, and draws the conclusion from its failure.
    pub(super) async fn in_time<T, E: Into<PostgresError>>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, PostgresError> {
        let answer = match timeout(limit, answer).await {
            Ok(answer) => answer.map_err(Into::into),
            Err(_) => Err(PostgresError::TimedOut(limit)),
        };
        if answer.as_ref().is_err_and(PostgresError::is_of_the_server) {
            self.forget_idle();
        }
        answer
    }

    /// Drops every connection that nobody uses at this moment: the next statement opens a new one, to whoever is the
    /// primary by then.
    pub(super) fn forget_idle(&self) {
        self.idle().clear();
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.permits.close();
        self.forget_idle();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects and settles, in one more round trip, what the promises of this store rest on.
async fn connect(server: &PgConnectOptions) -> Result<PgConnection, PostgresError> {
    let mut connection = server.connect().await?;
    let rows = sqlx::raw_sql(SETTINGS).fetch_all(&mut connection).await?;
    let is_standby = match rows.last() {
        Some(row) => row.try_get("standby")?,
        None => false,
    };
    if is_standby {
        let _ = connection.close().await;
        return Err(PostgresError::Standby);
    }
    Ok(connection)
}

/// A statement whose caller is gone ends by itself; a lost comparison is a conflict and no failed serialization; an
/// acknowledged save is on the disk even where the database would rather not wait. A standby may be behind: it would serve
/// users who have logged out.
const SETTINGS: &str = "\
    SET statement_timeout = '5s'; \
    SET idle_in_transaction_session_timeout = '60s'; \
    SET default_transaction_isolation = 'read committed'; \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'; \
    SELECT pg_is_in_recovery() AS standby";

/// One statement takes well below a millisecond of the server, so ten serve thousands of requests a second; PostgreSQL
/// allows 100 in all unless told otherwise, and a fleet of replicas shares them. One more listens for events.
const CONNECTIONS: usize = 10;
/// A server on the same network answers within milliseconds. Recovery is to be seen within two seconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// As `statement_timeout` above: what took longer is not coming.
const STATEMENT_LIMIT: Duration = Duration::from_secs(5);
/// Behind ten statements of ordinary length nobody waits that long.
const BUSY_LIMIT: Duration = Duration::from_secs(2);
/// Below what load balancers and firewalls forget in silence (350 s at AWS).
const IDLE_LIMIT: Duration = Duration::from_secs(300);
