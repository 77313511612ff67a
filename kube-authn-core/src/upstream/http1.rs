//! The lane of HTTP/1.1: one request at a time on a connection, idle connections kept for the next one. Upgrades get a
//! connection of their own.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Waker},
    time::Duration,
};

use http::{Request, Response, Version};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::{
    body::Body,
    connect::{Connected, Connector, Offer, Stream},
    cut::{Cut, CutIo},
    failure::Failure,
};

/// Connections of HTTP/1.1 to one API server.
#[derive(Clone)]
pub(crate) struct Http1Lane(Arc<Inner>);

struct Inner {
    connector: Arc<Connector>,
    idle: Mutex<IdleConnections>,
}

/// Whether a request goes over a connection that was idle, if there is one.
#[derive(Clone, Copy)]
pub(crate) enum Idle {
    Taken,
    Avoided,
}

#[derive(Default)]
struct IdleConnections {
    /// The one used last comes last and is used next, so that the others grow old.
    connections: Vec<Connection>,
    /// Whether somebody will come and close the old ones.
    swept: bool,
}

struct Connection {
    sender: SendRequest<Body>,
    driver: Driver,
    epoch: u64,
    /// When it became idle.
    since: Instant,
}

/// Moves the bytes of a connection, polled by whoever waits for them: an answer that passed from a task of its own to the
/// request's would cost a wake-up and a small write for every few KiB. `None` once the connection is closed.
struct Driver(Option<Box<http1::Connection<TokioIo<Stream>, Body>>>);

/// A connection on loan to one request.
pub(crate) struct Loan {
    lane: Http1Lane,
    connection: Connection,
    reused: bool,
}

impl Http1Lane {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self(Arc::new(Inner {
            connector,
            idle: Mutex::default(),
        }))
    }

    /// Sends on an idle connection or a new one. What a closed connection hands back unsent goes out on another.
    pub(crate) async fn send(
        &self,
        idle: Idle,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Loan), Failure> {
        origin_form(&mut request);
        loop {
            let idle = match idle {
                Idle::Taken => self.reuse(),
                Idle::Avoided => None,
            };
            let mut loan = match idle {
                Some(loan) => loan,
                None => self.lend(self.0.connector.connect(Offer::Http1).await?).await?,
            };
            match loan.exchange(request).await {
                Ok(response) => return Ok((response, loan)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if loan.reused => request = unsent,
                    _ => return Err(Failure::http(error.into_error(), loan.reused)),
                },
            }
        }
    }

    /// Sends on a connection of its own, which breaks at the cut: the caller may take it over by an upgrade.
    pub(crate) async fn upgrade(
        &self,
        mut request: Request<Body>,
        cut: Cut,
    ) -> Result<Response<Incoming>, Failure> {
        origin_form(&mut request);
        let Connected { stream, .. } = self.0.connector.connect(Offer::Http1).await?;
        let (mut sender, connection) = http1::handshake(CutIo::new(TokioIo::new(stream), cut))
            .await
            .map_err(|error| Failure::http(error, false))?;
        // Ends when the connection is closed, or handed over by the upgrade.
        tokio::spawn(connection.with_upgrades());
        sender
            .send_request(request)
            .await
            .map_err(|error| Failure::http(error, false))
    }

    /// Takes over a connection that was made for h2 with a server that doesn't speak it.
    pub(crate) async fn adopt(&self, stream: Stream, epoch: u64) {
        if let Ok(loan) = self
            .lend(Connected {
                stream,
                http2: false,
                epoch,
            })
            .await
        {
            loan.give_back();
        }
    }

    async fn lend(&self, connected: Connected) -> Result<Loan, Failure> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_READ)
            .handshake(TokioIo::new(connected.stream))
            .await
            .map_err(|error| Failure::http(error, false))?;
        let connection = Connection {
            sender,
            driver: Driver(Some(Box::new(connection))),
            epoch: connected.epoch,
            since: Instant::now(),
        };
        Ok(Loan {
            lane: self.clone(),
            connection,
            reused: false,
        })
    }

    /// The idle connection used last of those that are still open.
    fn reuse(&self) -> Option<Loan> {
        loop {
            let mut connection = self.pop()?;
            if connection.settle() {
                return Some(Loan {
                    lane: self.clone(),
                    connection,
                    reused: true,
                });
            }
        }
    }

    fn pop(&self) -> Option<Connection> {
        let epoch = self.0.connector.epoch();
        let mut idle = self.lock();
        idle.connections
            .retain(|connection| connection.epoch == epoch && connection.since.elapsed() < IDLE_TIMEOUT);
        idle.connections.pop()
    }

    fn push(&self, mut connection: Connection) {
        if connection.epoch != self.0.connector.epoch() || !connection.settle() {
            return;
        }
        connection.since = Instant::now();
        let mut idle = self.lock();
        if idle.connections.len() >= MAX_IDLE {
            return;
        }
        idle.connections.push(connection);
        if !idle.swept {
            idle.swept = true;
            self.sweep_later();
        }
    }

    /// Closes connections that nobody wanted for a while; the task ends with the last of them.
    fn sweep_later(&self) {
        let lane = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_TIMEOUT / 2).await;
                let Some(lane) = lane.upgrade().map(Http1Lane) else {
                    return;
                };
                let mut idle = lane.lock();
                idle.connections.retain_mut(|connection| {
                    connection.since.elapsed() < IDLE_TIMEOUT && connection.settle()
                });
                if idle.connections.is_empty() {
                    idle.swept = false;
                    return;
                }
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, IdleConnections> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Does what can be done without waiting, and says whether the next request may come: the end of an answer is read,
    /// a connection that the API server closed is known, and one whose request is still being sent is not used again.
    fn settle(&mut self) -> bool {
        self.driver.poll(&mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }
}

impl Driver {
    /// Errors reach whoever waits for the answer.
    fn poll(&mut self, context: &mut Context<'_>) {
        if let Some(connection) = &mut self.0
            && Pin::new(&mut **connection).poll(context).is_ready()
        {
            self.0 = None;
        }
    }
}

impl Loan {
    /// Sends the request and waits for the head of its answer.
    async fn exchange(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Unsent> {
        let Connection { sender, driver, .. } = &mut self.connection;
        let mut answer = pin!(sender.try_send_request(request));
        poll_fn(|context| {
            driver.poll(context);
            answer.as_mut().poll(context)
        })
        .await
    }

    /// Moves bytes of the answer, as far as there are any.
    pub(crate) fn drive(&mut self, context: &mut Context<'_>) {
        self.connection.driver.poll(context);
    }

    /// The answer has ended and was read to its end: the next request may come.
    pub(crate) fn give_back(self) {
        self.lane.push(self.connection);
    }
}

type Unsent = hyper::client::conn::TrySendError<Request<Body>>;

impl fmt::Debug for Http1Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1Lane")
            .field("idle", &self.lock().connections.len())
            .finish()
    }
}

/// Path and query in the request line, the authority in `Host` (RFC 9112 section 3.2.1).
fn origin_form(request: &mut Request<Body>) {
    *request.version_mut() = Version::HTTP_11;
    let authority = request
        .uri()
        .authority()
        .and_then(|authority| authority.as_str().parse().ok());
    if let Some(host) = authority {
        request.headers_mut().insert(http::header::HOST, host);
    }
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = path.into();
    }
}

/// The API server closes idle connections after 90 s, load balancers after 60 s: be first.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// Connections kept for one API server: as many as requests usually run at once.
const MAX_IDLE: usize = 128;

/// Bytes read ahead of whoever reads the answer, and the most that its head may have; hyper would take 400 KiB.
const MAX_READ: usize = 32 * 1024;
