//! Our own HTTP calls: issuer metadata, key sets, token endpoints. Requests to API servers go another way.

mod connection;
mod trust;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT},
};
use http_body_util::Full;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::TlsConnector;
use url::{Host, Url, form_urlencoded};
use zeroize::Zeroizing;

pub use self::connection::Connection;
use self::trust::TlsSettings;
use crate::{Error, ErrorKind, Result, TlsTrust};

/// A small HTTP/1.1 client for calls to parties that we trust with a request but not with our memory or our time.
///
/// Only https, or http on loopback. A redirect is an answer, never followed. Nothing is decompressed. An answer larger
/// than [`MAX_RESPONSE_BYTES`] is an error. A GET is tried up to three times if the server cannot be reached or answers
/// 502, 503 or 504; any other method exactly once, since a code or a refresh token may be spent although the answer was
/// lost. Each attempt opens a connection of its own: such calls are rare. Clones share the TLS settings.
#[derive(Clone)]
pub struct Transport {
    tls: Arc<TlsSettings>,
    connect_timeout: Duration,
    total_timeout: Duration,
    link_local_http: bool,
}

impl Transport {
    /// A client that accepts the certificates of this trust; a CA file is read again when it changes.
    ///
    /// # Errors
    /// `ConfigInvalid` if the CA cannot be read or holds no certificate.
    pub fn new(provider: Arc<CryptoProvider>, trust: TlsTrust) -> Result<Self> {
        Ok(Self {
            tls: Arc::new(TlsSettings::new(provider, trust)?),
            connect_timeout: CONNECT_TIMEOUT,
            total_timeout: TOTAL_TIMEOUT,
            link_local_http: false,
        })
    }

    /// The same client with other deadlines: `connect` for one connection with its TLS handshake, `total` for a call
    /// with all its attempts.
    pub fn with_timeouts(mut self, connect: Duration, total: Duration) -> Self {
        self.connect_timeout = connect;
        self.total_timeout = total;
        self
    }

    /// The same client, which also takes http to an IPv4 link-local address (`http://169.254.169.254/`, the address itself
    /// and never a name): that is where clouds serve a machine its own identity, without TLS, and the packets do not leave
    /// the link (RFC 3927 section 7).
    pub fn with_link_local_http(mut self) -> Self {
        self.link_local_http = true;
        self
    }

    /// The longest that one connection takes, with its TLS handshake.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// The longest that one call takes, with all its attempts.
    pub fn total_timeout(&self) -> Duration {
        self.total_timeout
    }

    /// What a GET of this URL gives, whatever its status.
    ///
    /// # Errors
    /// As [`Transport::send`].
    pub async fn get(&self, url: &Url) -> Result<Response<Bytes>> {
        let request = Request::get(url.as_str())
            .header(ACCEPT, JSON)
            .body(Bytes::new())
            .map_err(|source| refuse(url.host_str(), "its URL is malformed").with_source(source))?;
        self.send(request).await
    }

    /// What a form posted to this URL gives, whatever its status (`application/x-www-form-urlencoded`); sent once.
    ///
    /// # Errors
    /// As [`Transport::send`].
    pub async fn post_form(
        &self,
        url: &Url,
        authorization: Option<HeaderValue>,
        fields: &[(&str, &str)],
    ) -> Result<Response<Bytes>> {
        self.send(form_request(url, authorization, fields)?).await
    }

    /// Opens a connection to the server of this URL, TLS included, for one [`Connection::post_form`]. Until then nothing
    /// of a request is on its way: who must know whether a code or a token may have been spent asks in these two steps.
    ///
    /// # Errors
    /// As [`Transport::send`].
    pub async fn connect(&self, url: &Url) -> Result<Connection> {
        let uri: Uri = url.as_str().parse().map_err(|source: http::uri::InvalidUri| {
            refuse(url.host_str(), "its URL is malformed").with_source(source)
        })?;
        let target = Target::of(&uri, self.link_local_http)?;
        Connection::open(self, url, target).await
    }

    /// Sends a request and gives the whole answer, whatever its status.
    ///
    /// # Errors
    /// Each names the host and nothing else of the request or the answer. `ConfigInvalid` if the URL is neither https
    /// nor http on loopback; `Unavailable` if the server cannot be reached, its certificate is not trusted, or it breaks
    /// off; `Timeout` after the total time; `Unexpected` if the answer is larger than [`MAX_RESPONSE_BYTES`].
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let target = Target::of(request.uri(), self.link_local_http)?;
        let deadline = Instant::now() + self.total_timeout;
        let attempts = if request.method() == Method::GET {
            GET_ATTEMPTS
        } else {
            1
        };
        let mut attempt = 1;
        loop {
            let answer = timeout_at(deadline, self.attempt(&target, &request))
                .await
                .unwrap_or_else(|_| Err(target.timeout()));
            let again = match &answer {
                Ok(answer) => RETRIED_STATUS.contains(&answer.status()),
                Err(failure) => failure.kind() == ErrorKind::Unavailable && failure.is_retryable(),
            };
            let pause = back_off(attempt);
            if !again || attempt == attempts || Instant::now() + pause >= deadline {
                return answer;
            }
            sleep(pause).await;
            attempt += 1;
        }
    }

    async fn attempt(&self, target: &Target, request: &Request<Bytes>) -> Result<Response<Bytes>> {
        let stream = self.open(target).await?;
        connection::exchange(target, stream, request).await
    }

    /// A stream to the target, TLS included.
    async fn open(&self, target: &Target) -> Result<Box<dyn Stream>> {
        let deadline = Instant::now() + self.connect_timeout;
        let tcp = timeout_at(deadline, target.connect())
            .await
            .map_err(|_| target.timeout())??;
        if !target.https {
            return Ok(Box::new(tcp));
        }
        let config = self.tls.current().await?;
        let handshake = TlsConnector::from(config).connect(target.server_name.clone(), tcp);
        let tls = timeout_at(deadline, handshake)
            .await
            .map_err(|_| target.timeout())?
            .map_err(|source| target.handshake(source))?;
        Ok(Box::new(tls))
    }
}

/// What bytes travel over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A form as `application/x-www-form-urlencoded`.
fn form_request(
    url: &Url,
    authorization: Option<HeaderValue>,
    fields: &[(&str, &str)],
) -> Result<Request<Bytes>> {
    let form = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    let mut request = Request::post(url.as_str())
        .header(ACCEPT, JSON)
        .header(CONTENT_TYPE, FORM)
        .body(Bytes::from_owner(Zeroizing::new(form.into_bytes())))
        .map_err(|source| refuse(url.host_str(), "its URL is malformed").with_source(source))?;
    if let Some(mut authorization) = authorization {
        authorization.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, authorization);
    }
    Ok(request)
}

/// Whether all addresses of a host name are public now. That may change with the next question: connections to a cluster
/// with [`only_public_addresses`](crate::ClusterDetails::only_public_addresses) are looked at again when they are made.
///
/// # Errors
/// If the name does not resolve.
pub async fn resolves_to_public_addresses(host: &str) -> std::io::Result<bool> {
    let mut addresses = timeout_at(Instant::now() + CONNECT_TIMEOUT, lookup_host((host, 0)))
        .await
        .map_err(|_| std::io::ErrorKind::TimedOut)??;
    Ok(addresses.all(|address| crate::is_public_address(address.ip())))
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("trust", &self.tls.trust)
            .field("connect_timeout", &self.connect_timeout)
            .field("total_timeout", &self.total_timeout)
            .finish_non_exhaustive()
    }
}

/// Where a request goes, as far as an error may say it.
struct Target {
    https: bool,
    /// Plain http to a link-local address.
    link_local: bool,
    /// `host[:port]`.
    host: String,
    name: String,
    port: u16,
    server_name: ServerName<'static>,
}

impl Target {
    fn of(uri: &Uri, link_local_http: bool) -> Result<Self> {
        let url = Url::parse(&uri.to_string())
            .map_err(|source| refuse(None, "its URL is malformed").with_source(source))?;
        let host = url.host_str();
        let link_local = link_local_http && is_link_local_http(&url);
        if !is_protected(&url) && !link_local {
            return Err(refuse(host, "only https is allowed (http on loopback only)"));
        }
        let (Some(name), Some(port)) = (host, url.port_or_known_default()) else {
            return Err(refuse(host, "its URL names no host"));
        };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let server_name = ServerName::try_from(name.clone())
            .map_err(|source| refuse(host, "its host name is malformed").with_source(source))?;
        Ok(Self {
            https: url.scheme() == "https",
            link_local,
            host: url[url::Position::BeforeHost..url::Position::AfterPort].to_owned(),
            name,
            port,
            server_name,
        })
    }

    #[allow(clippy::disallowed_methods, reason = "the door for our own calls")]
    async fn connect(&self) -> Result<TcpStream> {
        let mut failure = None;
        let addresses = lookup_host((self.name.as_str(), self.port))
            .await
            .map_err(|source| self.unavailable("its name does not resolve").with_source(source))?;
        // Without TLS nothing proves where a name leads: plain http stays on this machine whatever DNS says.
        for address in addresses.filter(|address| self.https || self.link_local || address.ip().is_loopback())
        {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(source) => failure = Some(source),
            }
        }
        let refused = self.unavailable("no address of it accepts a connection");
        Err(match failure {
            Some(source) => refused.with_source(source),
            None => refused,
        })
    }

    /// The request as it goes over the wire: path and query only, for this host, plain and without keep-alive.
    fn origin_form(&self, request: &Request<Bytes>) -> Result<Request<Full<Bytes>>> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let mut sent = Request::builder()
            .method(request.method())
            .uri(path)
            .body(Full::new(request.body().clone()))
            .map_err(|source| refuse(Some(&self.host), "its URL is malformed").with_source(source))?;
        let headers = sent.headers_mut();
        headers.clone_from(request.headers());
        let host = HeaderValue::from_str(&self.host)
            .map_err(|source| refuse(Some(&self.host), "its host name is malformed").with_source(source))?;
        headers.insert(HOST, host);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers
            .entry(USER_AGENT)
            .or_insert(HeaderValue::from_static(AGENT));
        Ok(sent)
    }

    fn unavailable(&self, why: &str) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("cannot reach {}: {why}", self.host),
        )
    }

    fn timeout(&self) -> Error {
        Error::new(
            ErrorKind::Timeout,
            format!("{} did not answer in time", self.host),
        )
    }

    fn handshake(&self, source: std::io::Error) -> Error {
        let certificate = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .is_some_and(|error| matches!(error, rustls::Error::InvalidCertificate(_)));
        match certificate {
            true => self
                .unavailable("its certificate is not trusted: configure the CA that signed it")
                .with_retryable(false),
            false => self.unavailable("the TLS handshake failed"),
        }
        .with_source(source)
    }
}

/// Whether what travels to this URL is protected: https, or http that stays on this machine.
fn is_protected(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

fn is_link_local_http(url: &Url) -> bool {
    let link_local = matches!(url.host(), Some(Host::Ipv4(address)) if address.is_link_local());
    url.scheme() == "http" && link_local
}

fn refuse(host: Option<&str>, why: &str) -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        format!("cannot call {}: {why}", host.unwrap_or("a server")),
    )
}

/// The pause after this attempt: doubled each time, between half of it and the whole, so that many processes whose
/// issuer came back do not knock at one instant.
fn back_off(attempt: u32) -> Duration {
    let longest = FIRST_PAUSE * 2_u32.saturating_pow(attempt.saturating_sub(1));
    let mut random = [0];
    // Without random numbers the pause is the longest one, which is safe.
    let share = getrandom::fill(&mut random).map_or(255, |()| u32::from(random[0]));
    longest / 2 + longest / 2 * share / 255
}

/// Largest answer that is read, bytes: key sets and token answers are a few KiB.
pub const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

const MAX_HEADER_BYTES: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);
const GET_ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Answers of something in front of a server that is restarting.
const RETRIED_STATUS: [StatusCode; 3] = [
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
const AGENT: &str = concat!("kube-authn/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        let protected = |url: &str| is_protected(&Url::parse(url).expect("a URL"));

        for url in [
            "https://login.example.com/",
            "http://127.0.0.1:1/",
            "http://[::1]/",
            "http://localhost:8080",
        ] {
            assert!(protected(url), "{url}");
        }
        for url in [
            "http://login.example.com/",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "ftp://localhost",
        ] {
            assert!(!protected(url), "{url}");
        }
    }

    #[test]
    fn plain_http_to_a_link_local_address_is_for_those_who_ask_for_it() {
        let target = |url: &str, asked| {
            Target::of(&url.parse().expect("a URI"), asked).map(|target| target.link_local)
        };

        assert!(target("http://169.254.169.254/metadata", true).expect("allowed"));
        assert!(target("http://169.254.169.254/metadata", false).is_err());
        for url in [
            "http://169.254.169.254.example.com/",
            "http://10.0.0.1/",
            "http://metadata.google.internal/",
        ] {
            assert!(target(url, true).is_err(), "{url}");
        }
    }

    #[test]
    fn pauses_double_and_stay_within_their_bounds() {
        for (attempt, longest) in [(1, 100), (2, 200), (3, 400)] {
            let pause = back_off(attempt);

            assert!((longest / 2..=longest).contains(&u64::try_from(pause.as_millis()).expect("small")));
        }
    }
}
