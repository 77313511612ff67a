//! Memory of a process that streams: measured, so these tests run one after the other in a process of their own.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube_authn_core::CredentialScope;
use support::{AnswerBody, Ca, Proxy, Strategy, access, cluster, full, http2_server, status};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::Mutex as AsyncMutex};

/// Whoever measures memory is alone.
static ALONE: AsyncMutex<()> = AsyncMutex::const_new(());

const TOTAL: u64 = 64 << 20;
const PIECE: usize = 64 << 10;

/// Bytes that say where they are.
fn piece(at: u64) -> Bytes {
    let first = (at / PIECE as u64) as u8;
    (0..PIECE)
        .map(|i| first.wrapping_add((i % 251) as u8))
        .collect::<Vec<_>>()
        .into()
}

fn pieces(sent: Arc<AtomicU64>, total: u64) -> AnswerBody {
    let stream = futures_util::stream::unfold(0, move |at| {
        let sent = sent.clone();
        async move {
            (at < total).then(|| {
                sent.fetch_add(PIECE as u64, Ordering::SeqCst);
                (Ok(http_body::Frame::data(piece(at))), at + PIECE as u64)
            })
        }
    });
    StreamBody::new(stream).boxed_unsync()
}

/// Checks bytes against their places.
struct Check {
    at: u64,
    expected: Bytes,
    high: u64,
}

impl Check {
    fn new() -> Self {
        Self {
            at: 0,
            expected: piece(0),
            high: resident(),
        }
    }

    fn eat(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let offset = (self.at % PIECE as u64) as usize;
            let take = bytes.len().min(PIECE - offset);
            assert!(
                self.expected[offset..offset + take] == bytes[..take],
                "changed near {}",
                self.at
            );
            self.at += take as u64;
            bytes = &bytes[take..];
            if self.at.is_multiple_of(PIECE as u64) {
                self.expected = piece(self.at);
                self.high = self.high.max(resident());
            }
        }
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("pages");
    pages * 4096
}

async fn http2_cluster<F, R>(handler: F) -> kube_authn_core::ClusterDetails
where
    F: Fn(Request<hyper::body::Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = std::io::Result<Response<AnswerBody>>> + Send + 'static,
{
    let ca = Ca::new();
    let address = http2_server(&ca, handler).await;
    cluster("a", &format!("https://127.0.0.1:{}", address.port()), Some(&ca))
}

fn request(body: AnswerBody) -> Request<AnswerBody> {
    Request::post("http://portal/api/kubernetes/proxy/upload")
        .header("authorization", "Bearer alice")
        .body(body)
        .expect("a request")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answer_arrives_unchanged_in_flat_memory() {
    let _alone = ALONE.lock().await;
    let a = http2_cluster(|_| async { Ok(Response::new(pieces(Arc::default(), TOTAL))) }).await;
    let proxy = Proxy::start(vec![a]).await;
    for http2 in [false, true] {
        let mut check = Check::new();
        let before = check.high;
        if http2 {
            let mut answer = proxy
                .http2()
                .await
                .send_request(request(full("")))
                .await
                .expect("an answer");
            while let Some(frame) = answer.frame().await {
                check.eat(frame.expect("a frame").data_ref().expect("data"));
            }
        } else {
            let stream = TcpStream::connect(proxy.http1).await.expect("a connection");
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
                    .await
                    .expect("h1");
            tokio::spawn(connection);
            let request = Request::get("/api/kubernetes/proxy/list")
                .header("authorization", "Bearer alice")
                .body(full(""))
                .expect("a request");
            let mut answer = sender.send_request(request).await.expect("an answer");
            while let Some(frame) = answer.frame().await {
                check.eat(frame.expect("a frame").data_ref().expect("data"));
            }
        }

        assert_eq!(check.at, TOTAL);
        assert!(check.high - before < 24 << 20, "grew by {}", check.high - before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_upload_arrives_unchanged_in_flat_memory() {
    let _alone = ALONE.lock().await;
    let seen = Arc::new(Mutex::new((0, 0)));
    let a = http2_cluster({
        let seen = seen.clone();
        move |request| {
            let seen = seen.clone();
            async move {
                let mut check = Check::new();
                let before = check.high;
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    check.eat(frame.map_err(std::io::Error::other)?.data_ref().expect("data"));
                }
                *seen.lock().expect("no panic") = (check.at, check.high - before);
                Ok(Response::new(full("ok")))
            }
        }
    })
    .await;
    let proxy = Proxy::with(access(vec![a], Strategy::new("test", CredentialScope::User))).await;

    let upload =
        Request::post("http://portal/api/kubernetes/proxy/api/v1/namespaces/n/services/s/proxy/upload")
            .header("authorization", "Bearer alice")
            .body(pieces(Arc::default(), TOTAL))
            .expect("a request");
    let answer = proxy.http2().await.send_request(upload).await.expect("an answer");

    assert_eq!(answer.status(), 200);
    let (at, growth) = *seen.lock().expect("no panic");
    assert_eq!(at, TOTAL);
    assert!(growth < 24 << 20, "grew by {growth}");
}

#[tokio::test]
async fn caller_that_reads_nothing_holds_a_bounded_amount() {
    let sent = Arc::new(AtomicU64::new(0));
    let _alone = ALONE.lock().await;
    let a = http2_cluster({
        let sent = sent.clone();
        move |request| {
            let body = match request.uri().path() {
                "/list" => pieces(sent.clone(), u64::MAX / 2),
                _ => full("ok"),
            };
            async move { Ok(Response::new(body)) }
        }
    })
    .await;
    let proxy = Proxy::start(vec![a]).await;
    let mut stream = TcpStream::connect(proxy.http1).await.expect("a connection");
    let get = "GET /api/kubernetes/proxy/list HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer alice\r\n\r\n";
    stream.write_all(get.as_bytes()).await.expect("written");

    let mut last = u64::MAX;
    while sent.load(Ordering::SeqCst) != last {
        last = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    // Most of it lies in the sockets of loopback; the proxy itself holds a window of HTTP/2.
    assert!(last > 0 && last < 16 << 20, "{last} bytes");
    // Others go on.
    assert_eq!(
        status(
            &proxy
                .get("/api/kubernetes/proxy/x", "Connection: close\r\n")
                .await
        ),
        200
    );
}
