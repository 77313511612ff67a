//! The client: a process of its own, one connection per caller, each with its next request when the answer is read.
//!
//! The bench starts itself once more with [`LOAD`]. The process says `ready` when it is warm, runs on the next line that
//! it is told, says what it saw, and keeps its connections open until its standard input ends.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use kube_authn_benches::{
    loopback::Address,
    measure::{median_and_p99, micros},
};
use tokio::runtime::{Builder, Runtime};

/// The argument that makes the bench the client.
const LOAD: &str = "--load";

/// What is asked, and by how many at once.
pub(crate) struct Load<'a> {
    pub(crate) address: &'a Address,
    pub(crate) path: &'a str,
    pub(crate) token: &'a str,
    pub(crate) concurrency: usize,
    pub(crate) span: Duration,
}

/// A client that is warm.
pub(crate) struct Client {
    process: Child,
    lines: BufReader<ChildStdout>,
}

/// What it saw.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: f64,
    pub(crate) per_second: f64,
    /// In microseconds.
    pub(crate) p50: f64,
    /// In microseconds.
    pub(crate) p99: f64,
}

impl Load<'_> {
    #[allow(clippy::disallowed_methods, reason = "the bench itself, once more")]
    pub(crate) fn start(&self) -> Client {
        let mut process = Command::new(env::current_exe().expect("the bench's own path"))
            .arg(LOAD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client's process");
        let told = process.stdin.as_mut().expect("a pipe");
        for line in [
            &self.address.port.to_string(),
            &self.address.ca.replace('\n', "|"),
            self.path,
            self.token,
            &self.concurrency.to_string(),
            &self.span.as_millis().to_string(),
        ] {
            writeln!(told, "{line}").expect("the client listens");
        }
        let lines = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut client = Client { process, lines };
        assert_eq!(client.line(), "ready", "the client is warm");
        client
    }
}

impl Client {
    pub(crate) fn run(&mut self) -> Seen {
        let told = self.process.stdin.as_mut().expect("a pipe");
        writeln!(told).expect("the client listens");
        let line = self.line();
        let mut numbers = line
            .split(' ')
            .map(|number| number.parse().expect("a number of the client"));
        let mut next = || numbers.next().expect("four numbers of the client");
        Seen {
            requests: next(),
            per_second: next(),
            p50: next(),
            p99: next(),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("the client speaks");
        line.trim_end().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// To be called first in `main`: becomes the client, and doesn't return, if the process was started for that.
pub(crate) fn load_if_asked() {
    if env::args().any(|argument| argument == LOAD) {
        be_client();
        std::process::exit(0);
    }
}

fn be_client() {
    let mut told = std::io::stdin().lines();
    let mut next = || told.next().and_then(Result::ok).unwrap_or_default();
    let address = Address {
        port: next().parse().expect("a port"),
        ca: next().replace('|', "\n"),
    };
    let (path, token) = (next(), next());
    let concurrency: usize = next().parse().expect("a number of callers");
    let span = Duration::from_millis(next().parse().expect("milliseconds"));

    let head = head(&path, &token, address.port);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut callers = Vec::new();
    for _ in 0..concurrency {
        callers.push(runtime.block_on(address.http1()));
    }
    load(&runtime, &mut callers, &head, span / 4);
    println!("ready");
    next();
    let begin = Instant::now();
    let times = load(&runtime, &mut callers, &head, span);
    let (requests, elapsed) = (times.len() as f64, begin.elapsed());
    let (p50, p99) = median_and_p99(times);
    let per_second = requests / elapsed.as_secs_f64();
    println!("{requests} {per_second} {} {}", micros(p50), micros(p99));
    next();
}

fn head(path: &str, token: &str, port: u16) -> Request<()> {
    let value = |text: String| HeaderValue::from_str(&text).expect("a header line");
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, value(format!("127.0.0.1:{port}")));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::AUTHORIZATION, value(format!("Bearer {token}")));
    let mut request = Request::get(path).body(()).expect("a request");
    *request.headers_mut() = headers;
    request
}

/// Every caller in a task of its own, one request after the other, at least one.
fn load(
    runtime: &Runtime,
    callers: &mut Vec<SendRequest<Empty<Bytes>>>,
    head: &Request<()>,
    span: Duration,
) -> Vec<Duration> {
    let tasks: Vec<_> = callers
        .drain(..)
        .map(|mut caller| {
            let head = head.clone();
            runtime.spawn(async move {
                let mut times = Vec::new();
                let end = Instant::now() + span;
                loop {
                    let begin = Instant::now();
                    get(&mut caller, head.clone()).await;
                    times.push(begin.elapsed());
                    if Instant::now() >= end {
                        return (caller, times);
                    }
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        let (caller, times) = runtime.block_on(task).expect("no request fails");
        callers.push(caller);
        all.extend(times);
    }
    all
}

async fn get(caller: &mut SendRequest<Empty<Bytes>>, head: Request<()>) {
    caller.ready().await.expect("a connection");
    let request = head.map(|()| Empty::new());
    let mut answer = caller.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200, "the subject answers");
    while let Some(frame) = answer.body_mut().frame().await {
        frame.expect("a whole body");
    }
}
