//! Name, address, TCP, TLS: one connection to one API server.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    egress,
    failure::{EgressCause, Failure},
    trust::{HTTP2, Settings, Trust},
};
use crate::{ClusterDetails, EgressProxy, Error, ErrorKind, Result, ServerUrl, is_public_address};

/// Makes connections to one API server.
#[derive(Debug)]
pub(crate) struct Connector {
    server: ServerUrl,
    proxy: Option<EgressProxy>,
    /// `None` for `http://`.
    tls: Option<(ServerName<'static>, Arc<Trust>)>,
    timeout: Duration,
    only_public: bool,
    count: Arc<Count>,
}

/// Which protocols a connection may end up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    Http1,
    Http2OrHttp1,
}

/// A connection that is ready for HTTP.
pub(crate) struct Connected {
    pub(crate) stream: Stream,
    /// Whether the API server chose h2.
    pub(crate) http2: bool,
    /// The epoch of the trust it was made under.
    pub(crate) epoch: u64,
}

impl Connector {
    /// # Errors
    /// `ConfigInvalid` if the host can stand in no certificate.
    pub(crate) fn new(
        cluster: &ClusterDetails,
        trust: Arc<Trust>,
        timeout: Duration,
        count: Arc<Count>,
    ) -> Result<Self> {
        let server = cluster.server();
        let host = cluster.tls_server_name().unwrap_or(server.host()).to_owned();
        let tls = match server.is_https() {
            false => None,
            true => {
                let name = ServerName::try_from(host.clone()).map_err(|source| {
                    Error::new(
                        ErrorKind::ConfigInvalid,
                        format!("no certificate can be for the host {host:?}"),
                    )
                    .with_source(source)
                })?;
                Some((name, trust))
            }
        };
        Ok(Self {
            server: server.clone(),
            proxy: cluster.egress_proxy().cloned(),
            tls,
            timeout,
            only_public: cluster.only_public_addresses(),
            count,
        })
    }

    /// Whether TLS is spoken.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The epoch of trust that connections must have to be used; always the same without TLS.
    pub(crate) fn epoch(&self) -> u64 {
        self.tls.as_ref().map_or(0, |(_, trust)| trust.epoch())
    }

    /// Has the CA file looked at now and then.
    pub(crate) fn look(&self) {
        if let Some((_, trust)) = &self.tls {
            trust.look();
        }
    }

    /// A new connection, within the connect timeout. When the API server's certificate does not fit the CA file as it
    /// was last read, the file is read again, and if it changed there is one more try.
    pub(crate) async fn connect(&self, offer: Offer) -> Result<Connected, Failure> {
        let deadline = Instant::now() + self.timeout;
        let epoch = self.epoch();
        let attempt = async {
            match self.attempt(offer, deadline).await {
                Err(failure) if failure.is_tls() && self.renew(epoch).await => {
                    self.attempt(offer, deadline).await
                }
                result => result,
            }
        };
        timeout_at(deadline, attempt)
            .await
            .unwrap_or(Err(Failure::ConnectTimeout(self.timeout)))
    }

    async fn attempt(&self, offer: Offer, deadline: Instant) -> Result<Connected, Failure> {
        let Some((name, trust)) = &self.tls else {
            let stream = self.open(deadline).await?;
            return Ok(Connected {
                stream: self.count.counted(Io::Plain(stream)),
                http2: false,
                epoch: 0,
            });
        };
        let settings = trust.settings().await.map_err(Failure::Settings)?;
        let tcp = self.open(deadline).await?;
        let tls = TlsConnector::from(config(&settings, offer))
            .connect(name.clone(), tcp)
            .await
            .map_err(Failure::connect)?;
        let http2 = tls.get_ref().1.alpn_protocol() == Some(HTTP2);
        Ok(Connected {
            stream: self.count.counted(Io::Tls(Box::new(tls))),
            http2,
            epoch: settings.epoch,
        })
    }

    /// To the API server, or to what its egress proxy says is it.
    async fn open(&self, deadline: Instant) -> Result<TcpStream, Failure> {
        let Some(proxy) = &self.proxy else {
            return self.dial(self.server.host(), self.server.port(), deadline).await;
        };
        let stream = self.dial(proxy.host(), proxy.port(), deadline).await;
        let stream = stream.map_err(|failure| EgressCause::Unreachable(Box::new(failure)).of(proxy))?;
        egress::tunnel(proxy, &self.server, stream).await
    }

    /// Tries the addresses of the name in turn; each gets its share of the time that is left.
    #[allow(clippy::disallowed_methods, reason = "the door to API servers")]
    async fn dial(&self, host: &str, port: u16, deadline: Instant) -> Result<TcpStream, Failure> {
        let resolved = tokio::net::lookup_host((host, port)).await;
        let addresses: Vec<SocketAddr> = resolved
            .map_err(|error| Failure::Resolve(Arc::new(error)))?
            .collect();
        if self.only_public && !addresses.iter().all(|address| is_public_address(address.ip())) {
            return Err(Failure::NotPublic);
        }
        let mut failure = Failure::Resolve(Arc::new(io::ErrorKind::NotFound.into()));
        for (index, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Requests are small and whole; waiting for more bytes only adds latency.
                    stream.set_nodelay(true).map_err(Failure::connect)?;
                    SockRef::from(&stream)
                        .set_tcp_keepalive(&keep_alive())
                        .map_err(Failure::connect)?;
                    return Ok(stream);
                }
                Ok(Err(error)) => failure = Failure::connect(error),
                Err(_) => failure = Failure::ConnectTimeout(self.timeout),
            }
        }
        Err(failure)
    }

    async fn renew(&self, epoch: u64) -> bool {
        match &self.tls {
            Some((_, trust)) => trust.renew(epoch).await,
            None => false,
        }
    }
}

/// An exec in which nothing happens sends nothing for hours: only probes tell that a host is gone, and keep the entry of
/// a firewall on the way.
fn keep_alive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEP_ALIVE)
        .with_interval(KEEP_ALIVE)
}

fn config(settings: &Settings, offer: Offer) -> Arc<ClientConfig> {
    match offer {
        Offer::Http1 => settings.http1.clone(),
        Offer::Http2OrHttp1 => settings.http2.clone(),
    }
}

/// How many connections there are to all API servers.
#[derive(Debug, Default)]
pub(crate) struct Count {
    open: AtomicU64,
    opened: AtomicU64,
}

impl Count {
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    fn counted(self: &Arc<Self>, io: Io) -> Stream {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Relaxed);
        Stream {
            io,
            count: self.clone(),
        }
    }
}

/// TCP with or without TLS, counted until it is dropped.
pub(crate) struct Stream {
    io: Io,
    count: Arc<Count>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.count.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        }
    }
}

/// Between two probes, as in Go's dialer and server, before so many as the system allows have failed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
