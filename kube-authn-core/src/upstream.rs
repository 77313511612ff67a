//! Connections to API servers: one transport per trust, shared by all principals.
//!
//! ```text
//! ClusterDetails ── stamp ──► Upstream      one hash; the key below is only compared when a cluster is new
//!                 └─ key ───► transport     server, its name, egress proxy, CA, skip flag, client certificate: nothing else may share one
//!                               ├─ HTTP/1.1                 short calls, upgrades, `http://`, servers without h2
//!                               ├─ HTTP/2, long streams     watches and log follows; 80, then the next connection
//!                               └─ HTTP/2, short calls      by choice ([`Lane`]), apart from the long streams
//! ```

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Request, Response};
use rustls::crypto::CryptoProvider;
use tokio::time::Instant;
use tracing::warn;

use crate::{ClientCertificate, ClusterDetails, ClusterStamp, Error, ErrorKind, Result, UpstreamKey};

mod body;
mod connect;
mod cut;
mod egress;
mod failure;
mod http1;
mod http2;
mod lease;
mod trust;
mod way;

pub use body::{Body, BoxError, ResponseBody};
pub(crate) use cut::Cut;
pub(crate) use failure::Failure;
pub use way::Way;
pub(crate) use way::is_passed_on;

use connect::{Connector, Count};
use http1::{Http1Lane, Idle};
use http2::{Http2Lane, Sent};
use lease::Lease;
use trust::Trust;

/// The transports of all clusters. Clones share them. Connections belong to the tokio runtime that they were first needed
/// in, and end with it.
#[derive(Clone)]
pub struct UpstreamPool(Arc<Pool>);

struct Pool {
    options: Options,
    /// The warm path: no lock, and no PEM text is hashed.
    by_stamp: ArcSwap<HashMap<(ClusterStamp, Option<ClientCertificate>), Upstream>>,
    cold: Mutex<Cold>,
}

#[derive(Clone)]
struct Options {
    provider: Arc<CryptoProvider>,
    lane: Lane,
    connect_timeout: Duration,
    head_timeout: Duration,
    count: Arc<Count>,
}

/// Connections to API servers, all clusters together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionCount {
    /// Those that are open now.
    pub open: u64,
    /// Those that were ever opened.
    pub opened: u64,
}

struct Cold {
    by_key: HashMap<(UpstreamKey, Option<ClientCertificate>), Upstream>,
    swept: Instant,
}

/// Which protocol plain requests over TLS take. Upgrades and `http://` always take HTTP/1.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lane {
    /// Short calls as [`Lane::Http1`], requests that stay open (watches, log follows) as [`Lane::Http2`]: each the way
    /// that costs less.
    #[default]
    Mixed,
    /// Many requests on one connection; HTTP/1.1 if the API server does not speak HTTP/2.
    Http2,
    /// One request at a time on a connection, with a pool of idle ones.
    Http1,
}

impl UpstreamPool {
    /// A pool without connections, whose TLS uses this crypto provider.
    pub fn new(provider: Arc<CryptoProvider>) -> Self {
        Self::build(Options {
            provider,
            lane: Lane::default(),
            connect_timeout: CONNECT_TIMEOUT,
            head_timeout: HEAD_TIMEOUT,
            count: Arc::default(),
        })
    }

    /// Chooses the lane of plain requests. Starts with no connections.
    pub fn with_lane(self, lane: Lane) -> Self {
        Self::build(Options {
            lane,
            ..self.0.options.clone()
        })
    }

    /// Sets how long name, TCP and TLS may take together, 10 s by default. Starts with no connections.
    pub fn with_connect_timeout(self, connect_timeout: Duration) -> Self {
        Self::build(Options {
            connect_timeout,
            ..self.0.options.clone()
        })
    }

    /// Sets how long the head of an answer may take for short calls, 75 s by default; watches, log follows and upgrades
    /// may wait for ever. Starts with no connections.
    pub fn with_head_timeout(self, head_timeout: Duration) -> Self {
        Self::build(Options {
            head_timeout,
            ..self.0.options.clone()
        })
    }

    fn build(options: Options) -> Self {
        Self(Arc::new(Pool {
            options,
            by_stamp: ArcSwap::default(),
            cold: Mutex::new(Cold {
                by_key: HashMap::new(),
                swept: Instant::now(),
            }),
        }))
    }

    /// The transport to this cluster for bearer tokens and anonymous requests. Connects nothing yet.
    ///
    /// # Errors
    /// `ConfigInvalid` if the host can stand in no certificate.
    pub fn of(&self, cluster: &ClusterDetails) -> Result<Upstream> {
        self.of_identity(cluster, None)
    }

    /// The transport to this cluster that shows this client certificate, and shares no connection with any other.
    ///
    /// # Errors
    /// As [`UpstreamPool::of`], and if the cluster is reached without TLS.
    pub fn of_certificate(
        &self,
        cluster: &ClusterDetails,
        certificate: &ClientCertificate,
    ) -> Result<Upstream> {
        self.of_identity(cluster, Some(certificate))
    }

    /// How many connections there are.
    pub fn connections(&self) -> ConnectionCount {
        let count = &self.0.options.count;
        ConnectionCount {
            open: count.open(),
            opened: count.opened(),
        }
    }

    pub(crate) fn of_identity(
        &self,
        cluster: &ClusterDetails,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Upstream> {
        let warm = (cluster.stamp(), certificate.cloned());
        if let Some(upstream) = self.0.by_stamp.load().get(&warm) {
            upstream.touch();
            return Ok(upstream.clone());
        }
        self.introduce(cluster, warm)
    }

    /// The cold path, once per cluster and certificate.
    fn introduce(
        &self,
        cluster: &ClusterDetails,
        warm: (ClusterStamp, Option<ClientCertificate>),
    ) -> Result<Upstream> {
        let mut cold = self.0.cold.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(upstream) = self.0.by_stamp.load().get(&warm) {
            return Ok(upstream.clone());
        }
        if cluster.trust().skip_verify() && cluster.server().is_https() {
            warn!(
                cluster = cluster.name().as_str(),
                "TLS verification is off (skipTLSVerify): anybody on the way can read and change everything"
            );
        }
        let sweep = cold.swept.elapsed() >= SWEEP_INTERVAL;
        let key = (cluster.upstream_key().clone(), warm.1.clone());
        let upstream = match cold.by_key.get(&key) {
            Some(upstream) => upstream.clone(),
            None => Upstream::new(cluster, warm.1.clone(), &self.0.options)?,
        };
        upstream.touch();
        cold.by_key.insert(key, upstream.clone());
        let mut by_stamp = HashMap::clone(&self.0.by_stamp.load());
        by_stamp.insert(warm, upstream.clone());
        if sweep {
            // Clusters that are gone, or that nobody used since the last time: at worst they connect anew.
            cold.swept = Instant::now();
            by_stamp.retain(|_, upstream| upstream.0.used.load(Ordering::Relaxed));
            cold.by_key
                .retain(|_, upstream| upstream.0.used.swap(false, Ordering::Relaxed));
        }
        self.0.by_stamp.store(Arc::new(by_stamp));
        Ok(upstream)
    }
}

impl fmt::Debug for UpstreamPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamPool")
            .field("lane", &self.0.options.lane)
            .field("clusters", &self.0.by_stamp.load().len())
            .finish_non_exhaustive()
    }
}

/// The connections to one API server under one trust. Clones share them.
#[derive(Clone)]
pub struct Upstream(Arc<Transport>);

struct Transport {
    connector: Arc<Connector>,
    short: Http2Lane,
    long: Http2Lane,
    http1: Http1Lane,
    lane: Lane,
    head_timeout: Duration,
    /// Since the last sweep.
    used: AtomicBool,
}

impl Upstream {
    fn new(
        cluster: &ClusterDetails,
        certificate: Option<ClientCertificate>,
        options: &Options,
    ) -> Result<Self> {
        if certificate.is_some() && !cluster.server().is_https() {
            let text = "a client certificate needs https: without TLS the API server would see nobody";
            return Err(Error::new(ErrorKind::ConfigInvalid, text).with_cluster(cluster.name().as_str()));
        }
        let trust = Trust::new(options.provider.clone(), cluster.trust().clone(), certificate);
        let connector = Arc::new(Connector::new(
            cluster,
            trust,
            options.connect_timeout,
            options.count.clone(),
        )?);
        let http1 = Http1Lane::new(connector.clone());
        Ok(Self(Arc::new(Transport {
            short: Http2Lane::new(connector.clone(), http1.clone()),
            long: Http2Lane::new(connector.clone(), http1.clone()),
            http1,
            connector,
            lane: options.lane,
            head_timeout: options.head_timeout,
            used: AtomicBool::new(true),
        })))
    }

    /// Sends a request with an absolute URI; what was opened with it ends at the cut.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        way: Way,
        cut: Cut,
    ) -> Result<Response<ResponseBody>, Failure> {
        self.send_over(Idle::Taken, request, way, cut).await
    }

    /// Sends a request once more, over no connection of HTTP/1.1 that was idle: what closed one of them may have closed them
    /// all.
    pub(crate) async fn send_again(
        &self,
        request: Request<Body>,
        way: Way,
        cut: Cut,
    ) -> Result<Response<ResponseBody>, Failure> {
        self.send_over(Idle::Avoided, request, way, cut).await
    }

    async fn send_over(
        &self,
        idle: Idle,
        request: Request<Body>,
        way: Way,
        cut: Cut,
    ) -> Result<Response<ResponseBody>, Failure> {
        let transport = &*self.0;
        transport.connector.look();
        let answer = match way {
            // Cut off as well: a call that waits for a connection must not leave after the logout.
            Way::Short => {
                let call = cut_off(&cut, transport.plain(idle, request, way));
                tokio::time::timeout(transport.head_timeout, call)
                    .await
                    .unwrap_or(Err(Failure::HeadTimeout(transport.head_timeout)))
            }
            Way::Long => cut_off(&cut, transport.plain(idle, request, way)).await,
            Way::Upgrade => cut_off(&cut, transport.upgrade(request, cut.clone())).await,
        };
        let (response, lease) = answer?;
        if let Some(error) = cut.reached() {
            return Err(Failure::Cut(error));
        }
        Ok(response.map(|incoming| ResponseBody::new(incoming, lease, cut)))
    }

    fn touch(&self) {
        // Reading first keeps the line shared between processors.
        if !self.0.used.load(Ordering::Relaxed) {
            self.0.used.store(true, Ordering::Relaxed);
        }
    }
}

type Answer = Result<(Response<hyper::body::Incoming>, Lease), Failure>;

impl Transport {
    async fn plain(&self, idle: Idle, request: Request<Body>, way: Way) -> Answer {
        let request = match self.http2(way) {
            Some(lane) => match lane.send(request).await? {
                Sent::Answer(response, slot) => return Ok((response, Lease::Http2(slot))),
                Sent::UseHttp1(request) => request,
            },
            None => request,
        };
        let (response, loan) = self.http1.send(idle, request).await?;
        Ok((response, Lease::Http1(loan)))
    }

    /// The lane of h2 for this kind of request, if it is to take one.
    fn http2(&self, way: Way) -> Option<&Http2Lane> {
        let lane = match (self.lane, way) {
            (Lane::Http2, Way::Short) => &self.short,
            (Lane::Http2 | Lane::Mixed, Way::Long) => &self.long,
            (Lane::Http1, _) | (Lane::Mixed, Way::Short) | (_, Way::Upgrade) => return None,
        };
        self.connector.is_tls().then_some(lane)
    }

    async fn upgrade(&self, request: Request<Body>, cut: Cut) -> Answer {
        let response = self.http1.upgrade(request, cut).await?;
        Ok((response, Lease::Own))
    }
}

async fn cut_off<T>(cut: &Cut, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::select! {
        biased;
        answer = answer => answer,
        error = cut.wait() => Err(Failure::Cut(error)),
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("connector", &self.0.connector)
            .field("short", &self.0.short)
            .field("long", &self.0.long)
            .field("http1", &self.0.http1)
            .finish_non_exhaustive()
    }
}

/// Name, TCP and TLS together; an API server a continent away needs less than one second, one that is gone should not
/// hold a page for a minute.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The API server ends short calls itself after 60 s (`--request-timeout`): leave it time to say so.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How often transports that nobody used are looked for, when a new cluster comes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
