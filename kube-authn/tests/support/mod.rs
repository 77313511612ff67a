//! `kube-authn serve` as a process on loopback, and what stands before and behind it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

pub mod recorder;

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    ops::Range,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program, listening.
pub struct Program {
    pub child: Child,
    pub scheme: String,
    pub port: u16,
    pub errors: Arc<Mutex<String>>,
}

impl Program {
    pub fn start(folder: &TempDir, config: &Value) -> Self {
        Self::start_with(folder, config, &[])
    }

    pub fn start_with(folder: &TempDir, config: &Value, arguments: &[&str]) -> Self {
        Self::run(command(folder, config).args(arguments))
    }

    /// With a socket that listens already, handed over as systemd does.
    pub fn start_on(folder: &TempDir, config: &Value, arguments: &[&str], socket: &TcpListener) -> Self {
        let program = command(folder, config);
        let mut shell = Command::new("sh");
        shell
            .args([
                "-c",
                "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"",
                "sh",
            ])
            .arg(program.get_program())
            .args(program.get_args())
            .args(arguments)
            .current_dir(folder.path())
            .env_clear()
            .stdin(OwnedFd::from(socket.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self::run(&mut shell)
    }

    fn run(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let errors = Arc::new(Mutex::new(String::new()));
        let (mut pipe, kept) = (child.stderr.take().unwrap(), errors.clone());
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut bytes) {
                kept.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
        });
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let url = line
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("not started: {line}{}", errors.lock().unwrap()));
        let (scheme, rest) = url.trim_end().split_once("://127.0.0.1:").unwrap();
        Self {
            child,
            scheme: scheme.to_owned(),
            port: rest.parse().unwrap(),
            errors,
        }
    }

    pub fn client(&self) -> Client {
        Client { port: self.port }
    }

    pub fn get(&self, path: &str, lines: &[&str]) -> String {
        self.client().get(path, lines)
    }

    /// Which protocol a client that trusts this authority alone agrees on.
    pub fn protocol(&self, authority: &Authority) -> Result<String, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        while tls.is_handshaking() {
            if let Err(error) = tls.complete_io(&mut stream) {
                assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
                return Err(rustls::Error::General(error.to_string()));
            }
        }
        Ok(String::from_utf8(tls.alpn_protocol().unwrap_or_default().to_vec()).unwrap())
    }

    /// Whether this stands on standard error, now or soon.
    pub fn told(&self, text: &str) -> bool {
        let begin = Instant::now();
        while !self.errors.lock().unwrap().contains(text) {
            if begin.elapsed() > Duration::from_secs(1) {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Resident bytes.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end, which is near.
    pub fn end(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < LIMIT, "still running");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let errors = self.errors.lock().unwrap();
        assert!(thread::panicking() || !errors.contains("panicked"), "{errors}");
    }
}

/// Asks over plain HTTP, one connection per request.
pub struct Client {
    pub port: u16,
}

impl Client {
    /// The whole answer, head and body; empty if the connection was cut.
    pub fn get(&self, path: &str, lines: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }
}

/// Runs until it has refused to start: exit code and standard error.
pub fn refused(folder: &TempDir, config: &Value) -> (Option<i32>, String) {
    let output = command(folder, config).output().unwrap();
    assert_eq!(output.stdout, b"");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code(), text)
}

/// JSON is YAML.
pub fn command(folder: &TempDir, config: &Value) -> Command {
    fs::write(folder.path().join("app-config.yaml"), config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-authn"));
    command
        .args(["serve", "--config", "app-config.yaml"])
        .current_dir(folder.path())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A TLS server on loopback that answers every request with one list, after a while.
pub struct ApiServer {
    pub authority: Authority,
    pub port: u16,
    heads: mpsc::Receiver<String>,
    seen: Mutex<Vec<String>>,
}

impl ApiServer {
    pub fn start(delay: Duration) -> Self {
        Self::start_between(delay, 1975..4096)
    }

    /// With a certificate that is good between these years.
    pub fn start_between(delay: Duration, years: Range<i32>) -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.issue_between(years);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap();
        let config = Arc::new(config);
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let (tell, heads) = mpsc::channel();
        thread::spawn(move || {
            for stream in socket.incoming() {
                let (config, tell) = (config.clone(), tell.clone());
                thread::spawn(move || answer(stream.unwrap(), config, &tell, delay));
            }
        });
        Self {
            authority,
            port,
            heads,
            seen: Mutex::default(),
        }
    }

    /// The heads of all requests so far.
    pub fn seen(&self) -> Vec<String> {
        let mut seen = self.seen.lock().unwrap();
        seen.extend(self.heads.try_iter());
        seen.clone()
    }

    /// An app-config with this one cluster, and a gateway that names callers.
    pub fn config(&self, folder: &TempDir, trusted: &str) -> Value {
        let ca = folder.path().join("ca.pem");
        fs::write(&ca, &self.authority.pem).unwrap();
        self.config_with(&ca, trusted)
    }

    pub fn config_with(&self, ca: &Path, trusted: &str) -> Value {
        json!({
            "backend": { "listen": { "host": "127.0.0.1", "port": 0 } },
            "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [{
                "name": "loopback",
                "url": format!("https://127.0.0.1:{}", self.port),
                "caFile": ca,
                "authProvider": "serviceAccount",
                "serviceAccountToken": "robot-token",
            }]}]},
            "kubeAuthn": { "callers": [
                { "type": "header", "trustedPeers": [trusted], "user": "X-Forwarded-User" },
            ]},
        })
    }
}

/// Answers requests of one connection, one after the other.
pub fn answer(stream: TcpStream, config: Arc<ServerConfig>, tell: &mpsc::Sender<String>, delay: Duration) {
    stream.set_nodelay(true).unwrap();
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut head = Vec::new();
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let _ = tell.send(String::from_utf8(std::mem::take(&mut head)).unwrap());
        thread::sleep(delay);
        let body = json!({ "kind": "PodList", "items": [] }).to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() || stream.flush().is_err() {
            return;
        }
    }
}

/// A certificate authority of one test.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Certificate and key of `127.0.0.1`, PEM.
    pub fn issue(&self) -> (String, String) {
        self.issue_between(1975..4096)
    }

    /// As [`Self::issue`], good from the first of January of one year to that of another.
    pub fn issue_between(&self, years: Range<i32>) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub fn eventually(is: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < LIMIT, "not in time");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Far longer than anything here takes, the five seconds between two looks at the certificate included.
pub const LIMIT: Duration = Duration::from_secs(30);
