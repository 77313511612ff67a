//! Who is measured: each a process of its own on the second processor.
#![allow(clippy::disallowed_methods, reason = "a bench starts what it measures")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, header};
use kube_authn_benches::{loopback::Address, process::on_cpu};
use kube_authn_core::secrecy::ExposeSecret;
use kube_authn_e2e::{Authority, Http};
use kube_authn_store::KeyRing;
use rustix::process::{Pid, Signal, getuid, kill_process};
use serde_json::{Value, json};

use crate::{programs::Programs, upstream::Upstream};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The client goes to the API server itself.
    Direct,
    /// nginx with one worker, keep-alive to the API server, a static token: no work per user.
    Nginx,
    /// `httputil.ReverseProxy` with a transport as most write it.
    Go,
    /// The same, with as many idle connections as are ever needed.
    GoKeepsIdle,
    /// Another build of ours, to compare with; only if the bench is given one.
    Before,
    /// `kube-authn serve`: the caller's token verified, her login of the store.
    KubeAuthn,
}

pub(crate) const SUBJECTS: [Subject; 6] = [
    Subject::Direct,
    Subject::Nginx,
    Subject::Go,
    Subject::GoKeepsIdle,
    Subject::Before,
    Subject::KubeAuthn,
];

/// A subject that answers.
pub(crate) struct Running {
    /// Where it listens.
    pub(crate) address: Address,
    /// In front of the API server's own paths.
    pub(crate) prefix: &'static str,
    /// What the client says.
    pub(crate) token: String,
    process: Option<Child>,
}

/// What subjects need to start.
pub(crate) struct Surroundings<'a> {
    pub(crate) programs: Programs,
    /// Of the subjects' own certificate.
    pub(crate) authority: &'a Authority,
    pub(crate) folder: &'a Path,
    /// The processor of the subjects, if it is theirs alone.
    pub(crate) cpu: Option<usize>,
}

const PREFIX: &str = "/api/kubernetes/clusters/prod/proxy";
const KEPT_IDLE: &str = "256";
/// Longer than anything takes to start.
const PATIENCE: Duration = Duration::from_secs(20);

impl Surroundings<'_> {
    /// `None` if its program cannot be had here.
    pub(crate) fn start(&self, subject: Subject, upstream: &Upstream) -> Option<Running> {
        let (process, port, prefix) = match subject {
            Subject::Direct => (None, upstream.address().port, ""),
            Subject::Nginx => {
                let (process, port) = self.nginx(upstream)?;
                (Some(process), port, "")
            }
            Subject::Go | Subject::GoKeepsIdle => {
                let (process, port) = self.go(upstream, subject == Subject::GoKeepsIdle);
                (Some(process), port, "")
            }
            Subject::Before | Subject::KubeAuthn => {
                let program = match subject {
                    Subject::Before => self.programs.before.as_ref()?,
                    _ => &self.programs.kube_authn,
                };
                self.write_configuration(upstream);
                let (process, port) = self.kube_authn(program);
                (Some(process), port, PREFIX)
            }
        };
        let (ca, token) = match subject {
            Subject::Direct => (upstream.address().ca.clone(), upstream.login()),
            // Nobody but ours looks at it.
            _ => (self.authority.pem().to_owned(), upstream.caller()),
        };
        Some(Running {
            address: Address { port, ca },
            prefix,
            token: token.to_owned(),
            process,
        })
    }

    fn spawn(&self, command: &mut Command) -> Child {
        let mut spawn = || command.spawn().expect("the subject's process");
        match self.cpu {
            Some(cpu) => on_cpu(cpu, spawn),
            None => spawn(),
        }
    }

    fn nginx(&self, upstream: &Upstream) -> Option<(Child, u16)> {
        let program = self.programs.nginx.as_ref()?;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = port.expect("a free port").port();
        let folder = self.folder.join("nginx");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("nginx.conf"), nginx_conf(port, upstream, self.folder)).expect("a file");
        let process = self.spawn(
            Command::new(program)
                .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
                .arg(&folder)
                .stderr(Stdio::null()),
        );
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < PATIENCE, "nginx starts");
            thread::sleep(Duration::from_millis(10));
        }
        Some((process, port))
    }

    fn go(&self, upstream: &Upstream, keeps_idle: bool) -> (Child, u16) {
        let url = format!("-upstream=https://127.0.0.1:{}", upstream.address().port);
        let mut command = Command::new(&self.programs.go);
        command
            .arg(url)
            .args(["-ca=upstream.pem", "-cert=serving.pem", "-key=serving.key"])
            .args(keeps_idle.then(|| format!("-idle={KEPT_IDLE}")))
            .env("TOKEN", upstream.login())
            .current_dir(self.folder)
            .stdin(Stdio::piped());
        self.announced(&mut command)
    }

    /// Starts ours, whose configuration is written.
    fn kube_authn(&self, program: &Path) -> (Child, u16) {
        let mut command = Command::new(program);
        command
            .args(["serve", "--config", "app-config.yaml"])
            .current_dir(self.folder)
            .env_remove("RUST_LOG");
        self.announced(&mut command)
    }

    /// Starts a program that says where it listens.
    fn announced(&self, command: &mut Command) -> (Child, u16) {
        let mut process = self.spawn(command.stdout(Stdio::piped()));
        let mut line = String::new();
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe"));
        lines.read_line(&mut line).expect("a line");
        let port = line
            .trim()
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        (process, port.expect("the port that it listens on"))
    }

    fn write_configuration(&self, upstream: &Upstream) {
        let file = self.folder.join("app-config.yaml");
        if !file.exists() {
            // JSON is YAML.
            let config = upstream.configuration(self.folder).to_string();
            fs::write(file, config).expect("a file");
        }
    }

    /// Puts alice's login into the store.
    pub(crate) async fn log_in(&self, running: &Running, tokens: &Value) {
        let url = format!(
            "https://127.0.0.1:{}/api/cluster-auth/tokens",
            running.address.port
        );
        let request = Request::post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", running.token))
            .body(Bytes::from(tokens.to_string()))
            .expect("a request");
        let answer = self.http().send(request).await.expect("an answer");
        assert_eq!(answer.status(), 200, "the login is stored: {:?}", answer.body());
    }

    /// From the start of ours to its first answer from the API server. The login is in the store.
    pub(crate) async fn first_answer(&self, upstream: &Upstream, path: &str) -> Duration {
        let http = self.http();
        let begin = Instant::now();
        let (process, port) = self.kube_authn(&self.programs.kube_authn);
        let request = Request::get(format!("https://127.0.0.1:{port}{PREFIX}{path}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", upstream.caller()))
            .body(Bytes::new())
            .expect("a request");
        let answer: Response<Bytes> = http.send(request).await.expect("an answer");
        let elapsed = begin.elapsed();
        assert_eq!(answer.status(), 200, "the API server answers");
        end(process);
        elapsed
    }

    fn http(&self) -> Http {
        Http::new(self.authority.pem()).expect("a client")
    }
}

impl Running {
    /// The subject's process; `None` if the client goes to the API server itself.
    pub(crate) fn process(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            end(process);
        }
    }
}

/// Asks the process to end, so that it ends its own, and waits.
fn end(mut process: Child) {
    if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM);
    }
    let _ = process.wait();
}

/// With the limits of requests per connection out of the way: the client keeps its connections.
fn nginx_conf(port: u16, upstream: &Upstream, folder: &Path) -> String {
    let user = if getuid().is_root() { "user root;" } else { "" };
    let (folder, token) = (folder.display(), upstream.login());
    let api_server = upstream.address().port;
    format!(
        "{user} worker_processes 1; daemon off; pid nginx.pid; error_log stderr crit;
        events {{ worker_connections 1024; }}
        http {{
            access_log off;
            client_body_temp_path body; proxy_temp_path proxy;
            fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            upstream api {{
                server 127.0.0.1:{api_server};
                keepalive {KEPT_IDLE}; keepalive_requests 1000000000;
            }}
            server {{
                listen 127.0.0.1:{port} ssl;
                ssl_certificate {folder}/serving.pem; ssl_certificate_key {folder}/serving.key;
                keepalive_requests 1000000000;
                location / {{
                    proxy_pass https://api; proxy_http_version 1.1;
                    proxy_ssl_verify on; proxy_ssl_name localhost;
                    proxy_ssl_trusted_certificate {folder}/upstream.pem;
                    proxy_set_header Connection \"\"; proxy_set_header Host localhost;
                    proxy_set_header Authorization \"Bearer {token}\";
                }}
            }}
        }}"
    )
}

/// The app-config of `kube-authn serve` with one kind of callers and one cluster, which knows them by their logins.
pub(crate) fn configuration(upstream: &Address, folder: &Path, caller: &Value, login: &Value) -> Value {
    let key = KeyRing::random_key_base64().expect("a key");
    let folder = folder.display();
    json!({
        "backend": {
            "listen": "127.0.0.1:0",
            "https": { "certificate": { "cert": { "$file": "serving.pem" }, "key": { "$file": "serving.key" } } },
        },
        "clusterAuth": login,
        "kubernetes": {
            "serviceLocatorMethod": { "type": "multiTenant" },
            "clusterLocatorMethods": [{ "type": "config", "clusters": [{
                "name": "prod", "url": format!("https://127.0.0.1:{}", upstream.port),
                "authProvider": "clusterAuth", "caFile": format!("{folder}/upstream.pem"),
            }]}],
        },
        "kubeAuthn": {
            "store": { "type": "sqlite", "url": format!("sqlite://{folder}/kube-authn.db") },
            "encryption": { "keys": [{ "id": "k1", "key": key.expose_secret() }] },
            "callers": [caller],
        },
    })
}
