//! An API server's stand-in in a process of its own, and the barest way to it.
//!
//! The bench starts itself once more with `SERVE`; what the server costs is then no part of the bench's own figures.
//! It speaks TLS with ALPN, HTTP/2 and HTTP/1.1, and answers every request with a fixed body.

use std::{
    convert::Infallible,
    env,
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use hyper::{body::Incoming, client::conn, server::conn as server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube_authn_core::ClusterDetails;
use kube_authn_e2e::Authority;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// A body of 2 KiB: one object.
pub const SMALL: &str = "/api/v1/namespaces/team-a/pods/web-0";
/// A body of 155 KiB: a list of 50 pods.
pub const LIST: &str = "/api/v1/namespaces/team-50/pods";

/// The argument that makes a bench the server.
const SERVE: &str = "--serve-loopback";
/// As kube-apiserver (`--http2-max-streams-per-connection`).
const MAX_STREAMS: u32 = 100;

/// The server's process; it ends with this handle.
#[derive(Debug)]
pub struct Loopback {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    address: Address,
}

/// Where an API server is and which CA it goes by.
#[derive(Clone, Debug)]
pub struct Address {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// The CA, PEM.
    pub ca: String,
}

/// What the server has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Served {
    /// Connections, those accepted.
    pub connections: u64,
    /// Processor time.
    pub cpu: Duration,
}

/// To be called first in `main`: becomes the server, and doesn't return, if the process was started for that.
///
/// # Panics
/// If the server cannot be started.
#[allow(clippy::expect_used, reason = "a bench may panic")]
pub fn serve_if_asked() {
    if env::args().any(|argument| argument == SERVE) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(serve()).expect("a server on loopback");
        std::process::exit(0);
    }
}

impl Loopback {
    /// Starts the server.
    ///
    /// # Panics
    /// If it doesn't come up.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    #[allow(clippy::disallowed_methods, reason = "the bench itself, once more")]
    pub fn start() -> Self {
        let mut process = Command::new(env::current_exe().expect("the bench's own path"))
            .arg(SERVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server's process");
        let requests = process.stdin.take();
        let mut answers = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut first = String::new();
        answers.read_line(&mut first).expect("the server's first line");
        let (port, ca) = first.trim().split_once(' ').expect("port and CA");
        let address = Address {
            port: port.parse().expect("a port"),
            ca: ca.replace('|', "\n"),
        };
        Self {
            process,
            requests,
            answers,
            address,
        }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What it has done so far.
    ///
    /// # Panics
    /// If the server has ended.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    pub fn served(&mut self) -> Served {
        let mut answer = String::new();
        self.requests
            .as_mut()
            .and_then(|pipe| writeln!(pipe).ok())
            .expect("the server listens");
        self.answers.read_line(&mut answer).expect("the server answers");
        let (connections, nanoseconds) = answer.trim().split_once(' ').expect("two numbers");
        Served {
            connections: connections.parse().expect("a number"),
            cpu: Duration::from_nanos(nanoseconds.parse().expect("a number")),
        }
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        drop(self.requests.take());
        let _ = self.process.wait();
    }
}

impl Address {
    /// The cluster at this address, with this strategy.
    ///
    /// # Panics
    /// If the CA is none.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    pub fn cluster(&self, auth_provider: &str) -> ClusterDetails {
        ClusterDetails::builder("prod", format!("https://127.0.0.1:{}", self.port))
            .ca_pem(self.ca.as_bytes())
            .auth_provider(auth_provider)
            .build()
            .expect("a cluster")
    }

    /// A connection of HTTP/1.1, with nothing around it.
    ///
    /// # Panics
    /// If it cannot be made.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    pub async fn http1(&self) -> conn::http1::SendRequest<Empty<Bytes>> {
        let stream = TokioIo::new(self.tls(b"http/1.1").await);
        let (sender, connection) = conn::http1::handshake(stream).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        sender
    }

    /// A connection of HTTP/2, with nothing around it; the windows are those of the lane, so that both read alike.
    ///
    /// # Panics
    /// If it cannot be made.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    pub async fn http2(&self) -> conn::http2::SendRequest<Empty<Bytes>> {
        let stream = TokioIo::new(self.tls(b"h2").await);
        let (sender, connection) = conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(512 * 1024)
            .initial_connection_window_size(MAX_STREAMS * 512 * 1024)
            .handshake(stream)
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }

    #[allow(clippy::expect_used, reason = "a bench may panic")]
    #[allow(
        clippy::disallowed_methods,
        reason = "the peer goes past the door that is measured"
    )]
    async fn tls(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            roots
                .add(certificate.expect("a certificate"))
                .expect("a trust anchor");
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let tcp = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .expect("a connection");
        tcp.set_nodelay(true).expect("an option of TCP");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .expect("TLS")
    }
}

async fn serve() -> io::Result<()> {
    let authority = Authority::new("bench CA").map_err(io::Error::other)?;
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&authority)?));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let accepted = Arc::new(AtomicU64::new(0));
    answer_the_bench(
        format!(
            "{} {}",
            listener.local_addr()?.port(),
            authority.pem().replace('\n', "|")
        ),
        accepted.clone(),
    );
    loop {
        let (tcp, _) = listener.accept().await?;
        accepted.fetch_add(1, Ordering::Relaxed);
        tcp.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else {
                return;
            };
            let http2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
            let stream = TokioIo::new(tls);
            let _ = match http2 {
                true => {
                    server::http2::Builder::new(TokioExecutor::new())
                        .max_concurrent_streams(MAX_STREAMS)
                        .serve_connection(stream, service_fn(answer))
                        .await
                }
                false => {
                    server::http1::Builder::new()
                        .serve_connection(stream, service_fn(answer))
                        .await
                }
            };
        });
    }
}

/// A line on standard input is answered with the counts; its end is ours.
#[allow(clippy::print_stdout, reason = "the pipe to the bench")]
fn answer_the_bench(first: String, accepted: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        println!("{first}");
        for _ in io::stdin().lines().map_while(Result::ok) {
            let cpu = crate::measure::cpu_time().as_nanos();
            println!("{} {cpu}", accepted.load(Ordering::Relaxed));
        }
        std::process::exit(0);
    });
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    static BODY: [u8; 155 * 1024] = [b' '; 155 * 1024];
    let length = match request.uri().path() {
        LIST => BODY.len(),
        _ => 2 * 1024,
    };
    Ok(Response::new(Full::new(Bytes::from_static(&BODY[..length]))))
}

/// TLS with a certificate of this authority for loopback, HTTP/2 and HTTP/1.1.
///
/// # Errors
/// If no certificate can be made.
pub fn server_config(authority: &Authority) -> io::Result<ServerConfig> {
    let identity = authority.serving("127.0.0.1").map_err(io::Error::other)?;
    let certificate =
        CertificateDer::from_pem_slice(identity.certificate.as_bytes()).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
        })
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
