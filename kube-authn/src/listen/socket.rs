//! Sockets that listen: bound here, or handed over by whoever started the program.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use kube_authn_clusters::BackendConfig;
use kube_authn_core::{Error, ErrorKind, Result};
use listenfd::ListenFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

/// The socket that was handed over as systemd does (`sd_listen_fds(3)`), else one that listens where `backend.listen`
/// says; and its host, empty for all interfaces. Who hands it over keeps it: while no program accepts, callers wait in its
/// queue.
///
/// # Errors
/// `ConfigInvalid` naming the variable or `backend.listen`.
pub(crate) async fn listen(backend: &BackendConfig) -> Result<(TcpListener, String)> {
    if let Some(socket) = inherited().map_err(not_inherited)? {
        let ip = socket.local_addr().map_err(not_inherited)?.ip();
        let host = match ip.is_unspecified() {
            true => String::new(),
            false => ip.to_string(),
        };
        return Ok((socket, host));
    }
    let socket = bind(&backend.host, backend.port)
        .await
        .map_err(|source| not_bound(backend, source))?;
    Ok((socket, backend.host.clone()))
}

fn inherited() -> io::Result<Option<TcpListener>> {
    let mut handed_over = ListenFd::from_env();
    if handed_over.len() > 1 {
        return Err(io::Error::other("more than one socket"));
    }
    let Some(socket) = handed_over.take_tcp_listener(0)? else {
        return Ok(None);
    };
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket).map(Some)
}

fn not_inherited(source: io::Error) -> Error {
    let text = format!("cannot use the socket that was handed over (LISTEN_FDS): {source}");
    Error::new(ErrorKind::ConfigInvalid, text).with_source(source)
}

pub(crate) fn not_bound(backend: &BackendConfig, source: io::Error) -> Error {
    let host = match backend.host.as_str() {
        "" => "*",
        host => host,
    };
    let why = match source.kind() {
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        _ => source.to_string(),
    };
    let text = format!("cannot listen on {host}:{} (backend.listen): {why}", backend.port);
    Error::new(ErrorKind::ConfigInvalid, text).with_source(source)
}

/// An empty host is all interfaces, IPv6 and IPv4, as in Node.js.
async fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    if !host.is_empty() {
        return TcpListener::bind((host, port)).await;
    }
    match TcpListener::bind((IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind(("0.0.0.0", port)).await,
        bound => bound,
    }
}

/// What every accepted connection gets.
pub(crate) fn set_options(stream: &TcpStream) {
    // Answers are written whole; waiting for more only delays them.
    let _ = stream.set_nodelay(true);
    // In an exec nothing happens for hours: only probes tell that the caller's machine is gone.
    let probes = TcpKeepalive::new()
        .with_time(KEEP_ALIVE)
        .with_interval(KEEP_ALIVE);
    let _ = SockRef::from(stream).set_tcp_keepalive(&probes);
}

/// The soft limit of open files is low for programs that use `select`; we may have as many as the system lets us.
pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Between two probes, as in Go's server, before so many as the system allows have failed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
