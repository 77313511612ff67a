//! A restart under load: the socket outlives the program, and nobody notices.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]
#![allow(clippy::print_stderr, reason = "says how much was tried")]

mod support;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{ApiServer, LIMIT, Program, command};

#[test]
fn socket_that_is_handed_over_is_served_and_stays_open() {
    let folder = tempfile::tempdir().unwrap();
    let api_server = ApiServer::start(Duration::ZERO);
    let config = api_server.config(&folder, "127.0.0.1");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();

    let mut program = Program::start_on(&folder, &config, &[], &socket);
    assert_eq!(program.port, port);
    assert!(program.get("/healthz", &[]).starts_with("HTTP/1.1 200 "));
    program.signal("TERM");
    assert_eq!(program.end().code(), Some(0));

    // In the queue until the next one comes.
    let mut waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let get = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    waiting.write_all(get.as_bytes()).unwrap();
    let _next = Program::start_on(&folder, &config, &[], &socket);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn descriptor_that_is_no_socket_refuses_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({ "backend": { "listen": "127.0.0.1:0" } });
    let program = command(&folder, &config);
    let script = "exec 3</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    let output = std::process::Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();

    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("LISTEN_FDS"), "{text}");
}

#[test]
fn connection_that_is_kept_is_never_closed_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let api_server = ApiServer::start(Duration::ZERO);
    let mut program = Program::start(&folder, &api_server.config(&folder, "127.0.0.1"));
    let mut kept = Http1::connect(program.port).unwrap();
    assert!(matches!(kept.ask("POST"), Ok((200, true))));

    program.signal("TERM");
    thread::sleep(Duration::from_millis(200));

    // Sent before anybody could know.
    assert!(matches!(kept.ask("POST"), Ok((200, false))));
    assert_eq!(program.end().code(), Some(0));
}

/// Three programs after each other, the second started before and the third after the end of the one before it.
#[test]
fn restart_under_load_costs_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let api_server = ApiServer::start(Duration::from_millis(2));
    let config = api_server.config(&folder, "127.0.0.1");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut first = Program::start_on(&folder, &config, &[], &socket);
    let load = Load::default();

    let http1: Vec<_> = (0..6)
        .map(|number| {
            let load = load.clone();
            thread::spawn(move || load.over_http1(port, if number % 2 == 0 { "GET" } else { "POST" }))
        })
        .collect();
    let http2 = {
        let load = load.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                tokio::join!(
                    load.over_http2(port),
                    load.over_http2(port),
                    load.over_http2(port)
                );
            });
        })
    };
    load.goes_on();
    let mut second = Program::start_on(&folder, &config, &[], &socket);
    load.goes_on();
    first.signal("TERM");
    assert_eq!(first.end().code(), Some(0));
    load.goes_on();
    second.signal("TERM");
    assert_eq!(second.end().code(), Some(0));
    let _third = Program::start_on(&folder, &config, &[], &socket);
    load.goes_on();
    load.stop.store(true, Ordering::SeqCst);
    for client in http1 {
        client.join().unwrap();
    }
    http2.join().unwrap();

    let failed = load.failed.lock().unwrap().clone();
    assert_eq!(failed, [""; 0], "of {}", load.done.load(Ordering::SeqCst));
    eprintln!(
        "{} requests, {} sent again",
        load.done.load(Ordering::SeqCst),
        load.again.load(Ordering::SeqCst)
    );
}

/// What the clients have seen, all together.
#[derive(Clone, Default)]
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    /// Reads on a connection that had been used before and was closed before the first byte of an answer: every client
    /// sends them again by itself.
    again: Arc<AtomicU64>,
    failed: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Load {
    /// Waits until some hundred more are answered.
    fn goes_on(&self) {
        let until = self.done.load(Ordering::SeqCst) + 600;
        let begin = std::time::Instant::now();
        while self.done.load(Ordering::SeqCst) < until {
            assert!(
                begin.elapsed() < LIMIT,
                "stuck: {:?}",
                self.failed.lock().unwrap()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn count(&self, outcome: Result<u16, String>) {
        match outcome {
            Ok(200) => self.done.fetch_add(1, Ordering::SeqCst),
            Ok(status) => return self.failed.lock().unwrap().push(status.to_string()),
            Err(error) => return self.failed.lock().unwrap().push(error),
        };
    }

    fn over_http1(&self, port: u16, method: &str) {
        let mut kept = None;
        while !self.stopped() {
            let reused = kept.is_some();
            let mut connection = match kept.take().map_or_else(|| Http1::connect(port), Ok) {
                Ok(connection) => connection,
                Err(error) => {
                    self.count(Err(format!("connect: {error}")));
                    continue;
                }
            };
            match connection.ask(method) {
                Ok((status, keep)) => {
                    self.count(Ok(status));
                    kept = keep.then_some(connection);
                }
                Err(Lost::BeforeTheAnswer(_)) if reused && method == "GET" => {
                    self.again.fetch_add(1, Ordering::SeqCst);
                }
                Err(Lost::BeforeTheAnswer(error) | Lost::Inside(error)) => {
                    self.count(Err(format!("{method}, used before: {reused}: {error}")));
                }
            }
        }
    }

    async fn over_http2(&self, port: u16) {
        while !self.stopped() {
            let stream = match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => stream,
                Err(error) => {
                    self.count(Err(format!("connect: {error}")));
                    continue;
                }
            };
            let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (mut sender, connection) = match shaken.await {
                Ok(shaken) => shaken,
                Err(error) => {
                    self.count(Err(format!("handshake: {error}")));
                    continue;
                }
            };
            let closing = tokio::spawn(connection);
            while !self.stopped() && !closing.is_finished() {
                let request = Request::post(format!("http://portal{PODS}"))
                    .header("x-forwarded-user", "alice")
                    .body(Full::new(Bytes::from("hello")))
                    .unwrap();
                match sender.try_send_request(request).await {
                    Ok(answer) => {
                        let status = answer.status().as_u16();
                        match answer.into_body().collect().await {
                            Ok(_) => self.count(Ok(status)),
                            Err(error) => self.count(Err(format!("h2 body: {error}"))),
                        }
                    }
                    Err(mut error) => {
                        // Told that the connection ends before the request was sent: no client counts that.
                        if error.take_message().is_none() {
                            self.count(Err(format!("h2: {:?}", error.into_error())));
                        }
                        break;
                    }
                }
            }
        }
    }
}

enum Lost {
    BeforeTheAnswer(io::Error),
    Inside(io::Error),
}

struct Http1(BufReader<TcpStream>);

impl Http1 {
    fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The status, and whether the connection may be kept.
    fn ask(&mut self, method: &str) -> Result<(u16, bool), Lost> {
        let body = if method == "POST" { "hello" } else { "" };
        let request = format!(
            "{method} {PODS} HTTP/1.1\r\nHost: portal\r\nX-Forwarded-User: alice\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .map_err(Lost::BeforeTheAnswer)?;
        let mut line = String::new();
        if self.0.read_line(&mut line).map_err(Lost::BeforeTheAnswer)? == 0 {
            return Err(Lost::BeforeTheAnswer(io::ErrorKind::UnexpectedEof.into()));
        }
        let broken = |line: &str| Lost::Inside(io::Error::other(line.to_owned()));
        let status = line.get(9..12).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| broken(&line))?;
        let (mut length, mut keep) = (0, true);
        loop {
            line.clear();
            if self.0.read_line(&mut line).map_err(Lost::Inside)? == 0 {
                return Err(broken("the head broke off"));
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            keep &= line != "connection: close";
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().map_err(|_| broken(&line))?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).map_err(Lost::Inside)?;
        Ok((status, keep))
    }
}

const PODS: &str = "/api/kubernetes/clusters/loopback/proxy/api/v1/pods?limit=1";
