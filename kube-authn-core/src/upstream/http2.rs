//! The lane of HTTP/2: many requests on one connection, and the next connection before the first is full.

use std::{
    fmt,
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, Version, header};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{sync::Notify, time::Instant};
use tracing::debug;

use super::{
    body::Body,
    connect::{Connector, Offer, Stream},
    failure::Failure,
    http1::{Http1Lane, IDLE_TIMEOUT},
};

/// Connections of h2 to one API server for one kind of request: short calls and long streams don't share any.
#[derive(Clone)]
pub(crate) struct Http2Lane(Arc<Inner>);

struct Inner {
    connector: Arc<Connector>,
    /// Where connections go on which the server chose HTTP/1.1.
    fallback: Http1Lane,
    /// Streams that the server allows on a connection, as far as is known.
    max_streams: Arc<AtomicUsize>,
    state: Mutex<State>,
    /// Somebody who waits for a slot should look again.
    changed: Notify,
}

#[derive(Default)]
struct State {
    connections: Vec<Arc<Connection>>,
    /// One connect at a time: a burst of requests opens one connection, not one each.
    connecting: bool,
    /// Counts the connects that have ended, and keeps the last one's failure.
    connects: u64,
    failure: Option<Failure>,
    /// The server chose HTTP/1.1; until then nobody asks again.
    http1_until: Option<Instant>,
}

struct Connection {
    sender: SendRequest<Body>,
    epoch: u64,
    streams: AtomicUsize,
    answered: AtomicBool,
    /// When the last stream ended.
    idle_since: Mutex<Instant>,
}

/// One stream of a connection, counted until it is dropped.
pub(crate) struct Slot {
    lane: Http2Lane,
    connection: Arc<Connection>,
}

/// Where a request goes.
enum Place {
    Http2(Slot),
    /// The server does not speak h2.
    Http1,
}

/// What came of a request on this lane.
pub(crate) enum Sent {
    Answer(Response<Incoming>, Slot),
    /// The server does not speak h2: send it on the other lane.
    UseHttp1(Request<Body>),
}

impl Http2Lane {
    pub(crate) fn new(connector: Arc<Connector>, fallback: Http1Lane) -> Self {
        Self(Arc::new(Inner {
            connector,
            fallback,
            max_streams: Arc::new(AtomicUsize::new(ASSUMED_MAX_STREAMS)),
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Sends on a connection with room. What a closed connection hands back unsent goes out on another.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Result<Sent, Failure> {
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
        let mut attempts_left = MAX_UNSENT;
        loop {
            attempts_left -= 1;
            let slot = match self.place().await? {
                Place::Http2(slot) => slot,
                Place::Http1 => return Ok(Sent::UseHttp1(request)),
            };
            let reused = slot.connection.answered.load(Ordering::Relaxed);
            let mut sender = slot.connection.sender.clone();
            match sender.try_send_request(request).await {
                Ok(response) => {
                    slot.connection.answered.store(true, Ordering::Relaxed);
                    return Ok(Sent::Answer(response, slot));
                }
                Err(mut error) => {
                    let unsent = error.take_message();
                    let failure = Failure::http(error.into_error(), reused);
                    if unsent.is_some() || failure.is_unprocessed() {
                        self.retire(&slot.connection);
                    }
                    match unsent {
                        Some(unsent) if attempts_left > 0 => request = unsent,
                        _ => return Err(failure),
                    }
                }
            }
        }
    }

    /// A slot on the first connection with room, so that connections that are not needed any more fall idle.
    async fn place(&self) -> Result<Place, Failure> {
        let arrived = self.lock().connects;
        loop {
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if state.http1_until.is_some_and(|until| Instant::now() < until) {
                    return Ok(Place::Http1);
                }
                let epoch = self.0.connector.epoch();
                state.connections.retain(|connection| connection.is_usable(epoch));
                let max = self.max_streams();
                let room = |full: usize| {
                    let has_room = |connection: &&Arc<Connection>| connection.streams() < full;
                    state.connections.iter().find(has_room).cloned()
                };
                if let Some(connection) = room(comfortable(max)) {
                    return Ok(Place::Http2(self.slot(connection)));
                }
                let tight = room(max);
                if let Some(failure) = state.failure.clone()
                    && tight.is_none()
                    && state.connects > arrived
                {
                    return Err(failure);
                }
                if !state.connecting {
                    state.connecting = true;
                    self.connect_aside();
                }
                if let Some(connection) = tight {
                    return Ok(Place::Http2(self.slot(connection)));
                }
            }
            changed.await;
        }
    }

    /// Counts the stream; under the lock, so nobody else takes the same room.
    fn slot(&self, connection: Arc<Connection>) -> Slot {
        connection.streams.fetch_add(1, Ordering::AcqRel);
        Slot {
            lane: self.clone(),
            connection,
        }
    }

    /// Connects in a task of its own: whoever waits may go away.
    fn connect_aside(&self) {
        let lane = self.clone();
        tokio::spawn(async move {
            // Whatever happens in the task, the next one may try.
            let guard = Connecting(lane.clone());
            let outcome = lane.connect().await;
            {
                let mut state = lane.lock();
                state.connects += 1;
                state.failure = None;
                match outcome {
                    Ok(Some(connection)) => state.connections.push(connection),
                    Ok(None) => state.http1_until = Some(Instant::now() + HTTP1_MEMORY),
                    Err(failure) => state.failure = Some(failure),
                }
            }
            drop(guard);
        });
    }

    /// A new connection, `None` if the server does not speak h2.
    async fn connect(&self) -> Result<Option<Arc<Connection>>, Failure> {
        let connected = self.0.connector.connect(Offer::Http2OrHttp1).await?;
        if !connected.http2 {
            debug!("the API server does not speak HTTP/2, HTTP/1.1 is used");
            self.0.fallback.adopt(connected.stream, connected.epoch).await;
            return Ok(None);
        }
        let sender = handshake(connected.stream, self.0.max_streams.clone()).await?;
        let connection = Arc::new(Connection {
            sender,
            epoch: connected.epoch,
            streams: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
        });
        self.close_when_idle(Arc::downgrade(&connection));
        Ok(Some(connection))
    }

    fn max_streams(&self) -> usize {
        self.0.max_streams.load(Ordering::Relaxed)
    }

    /// The connection closes by itself when the last handle is dropped: here, or with its last stream.
    fn retire(&self, connection: &Arc<Connection>) {
        self.lock()
            .connections
            .retain(|known| !Arc::ptr_eq(known, connection));
    }

    fn close_when_idle(&self, connection: Weak<Connection>) {
        let lane = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                let Some(since) = connection.upgrade().map(|connection| connection.idle_since()) else {
                    return;
                };
                tokio::time::sleep_until((since + IDLE_TIMEOUT).max(Instant::now() + IDLE_TIMEOUT / 10))
                    .await;
                let (Some(connection), Some(lane)) = (connection.upgrade(), lane.upgrade().map(Http2Lane))
                else {
                    return;
                };
                // Under the lock nobody gets a new slot on it.
                let mut state = lane.lock();
                let idle = connection.streams() == 0 && connection.idle_since().elapsed() >= IDLE_TIMEOUT;
                if idle || connection.sender.is_closed() {
                    state.connections.retain(|known| !Arc::ptr_eq(known, &connection));
                    return;
                }
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn is_usable(&self, epoch: u64) -> bool {
        self.epoch == epoch && !self.sender.is_closed()
    }

    fn streams(&self) -> usize {
        self.streams.load(Ordering::Acquire)
    }

    fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let connection = &self.connection;
        let before = connection.streams.fetch_sub(1, Ordering::AcqRel);
        if before == 1 {
            *connection
                .idle_since
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        if before >= comfortable(self.lane.max_streams()) {
            self.lane.0.changed.notify_one();
        }
    }
}

/// Ends a connect, also one that panicked: everybody who waits looks again.
struct Connecting(Http2Lane);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.lock().connecting = false;
        self.0.0.changed.notify_waiters();
    }
}

/// Speaks h2 on the stream, in tasks that end with the connection.
async fn handshake(stream: Stream, max_streams: Arc<AtomicUsize>) -> Result<SendRequest<Body>, Failure> {
    let (sender, mut connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * ASSUMED_MAX_STREAMS as u32)
        .max_header_list_size(MAX_HEADER_LIST)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::http(error, false))?;
    tokio::spawn(async move {
        std::future::poll_fn(|context| {
            let polled = pin!(&mut connection).poll(context);
            let allowed = connection.current_max_send_streams();
            if allowed != STREAMS_BEFORE_SETTINGS {
                max_streams.store(allowed.min(ASSUMED_MAX_STREAMS), Ordering::Relaxed);
            }
            // Errors reach whoever waits for an answer.
            polled.map(drop)
        })
        .await;
    });
    Ok(sender)
}

impl fmt::Debug for Http2Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Lane")
            .field("connections", &self.lock().connections.len())
            .finish()
    }
}

/// So many streams are comfortable on a connection that allows `max`: with more, the next connection is opened while
/// there is still room on this one.
fn comfortable(max: usize) -> usize {
    (max * 4 / 5).max(1)
}

/// The API server's default (`--http2-max-streams-per-connection`, 100 since 1.29), and the least that RFC 9113 section
/// 6.5.2 recommends. More on one connection means more requests behind one lost packet.
const ASSUMED_MAX_STREAMS: usize = 100;

/// What is sent before the server has said how many streams it allows: one, so that none of a burst is refused. The
/// others follow a moment later.
const STREAMS_BEFORE_SETTINGS: usize = 1;

/// How often one request is handed back unsent by connections that were closed meanwhile, before it fails: an API server
/// that restarts closes all of them at once.
const MAX_UNSENT: u32 = 4;

/// client-go's numbers (`HTTP2_READ_IDLE_TIMEOUT_SECONDS`, `HTTP2_PING_TIMEOUT_SECONDS`).
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes of one answer that may lie unread. The connection's window is the sum over its streams, so a reader that
/// stands still stops nobody else.
const STREAM_WINDOW: u32 = 512 * 1024;

/// Bytes of header lines of one answer; `Warning` lines of an API server add up to 4 KiB, webhooks add their own.
const MAX_HEADER_LIST: u32 = 64 * 1024;

/// A server that chose HTTP/1.1 is asked for h2 again after this time: it may have been upgraded.
const HTTP1_MEMORY: Duration = Duration::from_secs(60);
