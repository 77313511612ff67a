//! Sockets, TLS and the limits of connections.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto::Builder,
};
use kube_authn::Service;
use kube_authn_clusters::BackendConfig;
use kube_authn_core::{Error, ErrorKind, Result};
use tokio::{net::TcpListener, sync::watch, time::timeout};

mod activity;
mod connection;
mod line;
mod places;
pub(crate) mod socket;
pub(crate) mod tls;

use connection::Connection;
use places::Places;

/// A socket that listens, and what its connections are shown.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    /// As configured; empty for all interfaces.
    host: String,
    address: SocketAddr,
    certificate: Option<Arc<tls::Certificate>>,
}

impl Listener {
    /// # Errors
    /// `ConfigInvalid` naming `backend.listen` and the address if it cannot be listened on, or `LISTEN_FDS` if the socket
    /// that was handed over is none that listens.
    pub(crate) async fn bind(
        backend: &BackendConfig,
        certificate: Option<Arc<tls::Certificate>>,
    ) -> Result<Self> {
        let (socket, host) = socket::listen(backend).await?;
        let address = socket
            .local_addr()
            .map_err(|source| socket::not_bound(backend, source))?;
        let listener = Self {
            socket,
            host,
            address,
            certificate,
        };
        if listener.certificate.is_none() && !address.ip().to_canonical().is_loopback() {
            tracing::warn!(
                "serving plain http on {address}: tokens travel in the clear; set backend.https.certificate, or let \
                 a gateway on this machine end TLS"
            );
        }
        Ok(listener)
    }

    /// Prints the URL, for people and for programs that wait until we are ready.
    ///
    /// # Errors
    /// `Unexpected` if standard output is closed.
    pub(crate) fn announce(&self) -> Result<()> {
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        let port = self.address.port();
        let url = match self.host.as_str() {
            "" => format!("{scheme}://localhost:{port} (all interfaces)"),
            host if host.contains(':') => format!("{scheme}://[{host}]:{port}"),
            host => format!("{scheme}://{host}:{port}"),
        };
        let mut out = io::stdout();
        writeln!(out, "listening on {url}")
            .and_then(|()| out.flush())
            .map_err(|source| {
                Error::new(ErrorKind::Unexpected, "cannot write to standard output").with_source(source)
            })
    }

    /// Serves until `stop`; then accepts nobody any more and lets requests and streams finish for as long as `drain`.
    /// Callers that keep connections of HTTP/1.1 learn first that they end: one that is closed just when the next request
    /// comes would cost a request that changes something.
    pub(crate) async fn serve(self, service: Service, stop: impl Future<Output = ()>, drain: Duration) {
        let (ending, _) = watch::channel(());
        let limits = Arc::new(limits());
        let places = Places::new(MAX_CONNECTIONS, MAX_OF_ONE_PEER, service.gateways);
        let leaving = Arc::new(AtomicBool::new(false));
        tokio::pin!(stop);
        loop {
            // Whoever finds no place waits in the system's queue.
            let next = async {
                let free = places.free().await;
                (free, self.socket.accept().await)
            };
            let (free, accepted) = tokio::select! {
                biased;
                () = &mut stop => break,
                next = next => next,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            let Some(place) = free.take(peer.ip()) else {
                continue;
            };
            let connection = Connection {
                peer,
                router: service.router.clone(),
                limits: limits.clone(),
                ending: ending.subscribe(),
                leaving: leaving.clone(),
            };
            let certificate = self.certificate.clone();
            tokio::spawn(connection.accept(stream, place, certificate));
        }
        drop(self);
        leaving.store(true, Ordering::Relaxed);
        let finished = async {
            let _ = timeout(FAREWELL, places.all_free()).await;
            let _ = ending.send(());
            ending.closed().await;
            service.proxy.tunnels_closed().await;
        };
        if timeout(drain, finished).await.is_err() {
            let tunnels = service.proxy.open_tunnels();
            tracing::warn!(
                tunnels,
                "not everything finished in {drain:?}: the rest is cut off"
            );
        }
    }
}

/// A client that went away is no reason to wait; a process without free file descriptors is.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    ) {
        return;
    }
    tracing::warn!(%error, "cannot accept connections for a moment");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn limits() -> Builder<TokioExecutor> {
    let mut limits = Builder::new(TokioExecutor::new());
    limits
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES);
    limits
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD_LIST_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_PATIENCE);
    limits
}

/// Each costs some 20 KiB and a file descriptor: 10,000 are 200 MiB, and more half-open ones than tools make by accident.
const MAX_CONNECTIONS: u32 = 10_000;
/// A quarter: a gateway that only ends TLS brings many people's watches, and nobody else must find all places taken.
const MAX_OF_ONE_PEER: u32 = 2_500;
/// TLS takes two round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the first byte of a request to the end of its head, and from one request to the next over HTTP/1.1.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Several ID tokens of some KiB each fit; hyper answers 431 to more.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEAD_LIST_BYTES: u32 = 64 * 1024;
/// As Go's server, to which clients of Kubernetes are used.
const MAX_STREAMS: u32 = 250;
/// Streams opened and reset at once (CVE-2023-44487), before and after they were accepted: then the connection is closed.
const MAX_PENDING_RESETS: usize = 20;
const MAX_ERROR_RESETS: usize = 100;
/// A watch is silent for hours; whether somebody is still there only a ping tells.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(20);
/// Between two requests over HTTP/2. Go's client, which is kubectl's, ends idle connections after 90 s itself: whoever keeps one
/// for longer keeps a place from others.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// For the caller to confirm that an idle connection ends: as long as for a ping.
const GOODBYE: Duration = Duration::from_secs(20);
/// Far longer than a network stands still, and long enough for somebody who reads a log page by page.
const WRITE_PATIENCE: Duration = Duration::from_secs(600);
/// Enough for a client in the middle of its work to ask once more, and to be told that the connection ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// Time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
