//! One connection, from its socket to its last answer.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    header::{self, HeaderValue},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use kube_authn_http::{
    Hangup,
    axum::{Router, body::Body, extract::ConnectInfo},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::{
    GOODBYE, HANDSHAKE_TIMEOUT, WRITE_PATIENCE,
    activity::{Activity, Watched},
    line::Line,
    places::Place,
    socket, tls,
};

pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) router: Router,
    pub(super) limits: Arc<Builder<TokioExecutor>>,
    /// Changes when connections must end with what is open on them.
    pub(super) ending: watch::Receiver<()>,
    /// Whether the program was told to stop.
    pub(super) leaving: Arc<AtomicBool>,
}

impl Connection {
    pub(super) async fn accept(
        self,
        stream: TcpStream,
        place: Place,
        certificate: Option<Arc<tls::Certificate>>,
    ) {
        socket::set_options(&stream);
        let hangup = Hangup::new();
        let line = Line::new(stream, place, hangup.clone(), WRITE_PATIENCE);
        let Some(certificate) = certificate else {
            return self.serve(line, hangup).await;
        };
        let handshake = TlsAcceptor::from(certificate.config()).accept(line);
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => self.serve(stream, hangup).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %self.peer, "TLS handshake took too long"),
        }
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, hangup: Hangup) {
        let (peer, limits, mut ending) = (self.peer, self.limits.clone(), self.ending.clone());
        let activity = Activity::new();
        let answers = self.answers(activity.clone(), hangup.clone());
        let connection = limits.serve_connection_with_upgrades(TokioIo::new(stream), answers);
        tokio::pin!(connection);
        let mut patience: Option<Duration> = None;
        let outcome = loop {
            tokio::select! {
                outcome = connection.as_mut() => break outcome.map_err(|error| error.to_string()),
                () = hangup.called() => break Err("what the caller does not read has ended".to_owned()),
                _ = ending.changed(), if patience.is_none() => {}
                // The parsers' own limits begin with the first byte, or with the preface of HTTP/2.
                () = activity.ceased(patience.unwrap_or_default()) => match (activity.heard(), patience) {
                    (false, _) => break Err("no request in time".to_owned()),
                    (true, Some(_)) => break Err("nothing happened for too long".to_owned()),
                    (true, None) => {}
                },
            }
            patience = Some(GOODBYE);
            connection.as_mut().graceful_shutdown();
        };
        if let Err(error) = outcome {
            tracing::debug!(%peer, error, "connection ended");
        }
    }

    fn answers(
        self,
        activity: Activity,
        hangup: Hangup,
    ) -> impl Service<Request<Incoming>, Response = Response<Watched>, Error = Infallible, Future: Send + 'static>
    {
        let (peer, router, leaving) = (self.peer, self.router, self.leaving);
        service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(hangup.clone());
            let is_http2 = request.version() >= Version::HTTP_2;
            let answered = router.clone().call(request.map(Body::new));
            let (leaving, activity) = (leaving.clone(), activity.clone());
            async move {
                if is_http2 {
                    return activity.http2(answered).await;
                }
                activity.http1();
                let mut response = answered.await?;
                if leaving.load(Ordering::Relaxed) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok(response.map(Watched::from))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body_util::{BodyExt, Empty};
    use hyper::{
        body::{Bytes, Frame},
        client::conn::http2::{SendRequest, handshake},
    };
    use kube_authn_http::axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        net::UnixStream,
        task::JoinHandle,
        time::{Instant, sleep},
    };

    use super::{
        super::{IDLE_TIMEOUT, limits, places::Places},
        *,
    };

    /// The answer of a watch on which nothing happens.
    struct Silence;

    impl hyper::body::Body for Silence {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    fn connection(ending: &watch::Sender<()>) -> Connection {
        Connection {
            peer: ([203, 0, 113, 1], 1).into(),
            router: Router::new()
                .route("/short", get(async || "an answer"))
                .route("/watch", get(async || Body::new(Silence)))
                .route("/exec", get(upgrade)),
            limits: Arc::new(limits()),
            ending: ending.subscribe(),
            leaving: Arc::default(),
        }
    }

    async fn upgrade(mut request: Request<Body>) -> Response<Body> {
        let client = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut client = TokioIo::new(client.await.unwrap());
            let _ = client.read_to_end(&mut Vec::new()).await;
        });
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let lines = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "websocket")];
        answer
            .headers_mut()
            .extend(lines.map(|(name, value)| (name, HeaderValue::from_static(value))));
        answer
    }

    fn serve(ending: &watch::Sender<()>) -> (DuplexStream, JoinHandle<Duration>) {
        let (near, far) = duplex(1 << 16);
        let connection = connection(ending);
        let served = tokio::spawn(async move {
            let begin = Instant::now();
            let _ = timeout(A_DAY, connection.serve(near, Hangup::new())).await;
            begin.elapsed()
        });
        (far, served)
    }

    /// Answers pings for ever, as every client does.
    async fn client(far: DuplexStream) -> SendRequest<Empty<Bytes>> {
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(far)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn ask(client: &mut SendRequest<Empty<Bytes>>, path: &str) -> Response<Incoming> {
        let request = Request::get(format!("http://us{path}")).body(Empty::new());
        client.send_request(request.unwrap()).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn client_of_http2_that_only_answers_pings_never_keeps_its_place() {
        let (ending, _) = watch::channel(());
        let (far, served) = serve(&ending);
        let mut client = client(far).await;
        for _ in 0..3 {
            let answer = ask(&mut client, "/short").await;
            assert_eq!(answer.collect().await.unwrap().to_bytes(), "an answer");
            sleep(IDLE_TIMEOUT - Duration::from_secs(1)).await;
        }
        assert!(!served.is_finished());

        let took = served.await.unwrap();

        assert_eq!(
            took.as_secs(),
            2 * (IDLE_TIMEOUT.as_secs() - 1) + IDLE_TIMEOUT.as_secs()
        );
        assert!(client.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn silent_watch_is_never_taken_for_a_client_that_asks_nothing() {
        let (ending, _) = watch::channel(());
        let (far, served) = serve(&ending);
        let mut client = client(far).await;
        let watch = ask(&mut client, "/watch").await;

        sleep(Duration::from_secs(10 * 3600)).await;
        assert!(!served.is_finished());
        drop(watch);

        let took = served.await.unwrap();
        assert!(
            took <= Duration::from_secs(10 * 3600) + 2 * IDLE_TIMEOUT,
            "{took:?}"
        );
    }

    /// Takes nothing of its answer, and confirms every ping but the one that ends the connection.
    #[tokio::test(start_paused = true)]
    async fn client_of_http2_that_takes_nothing_and_confirms_no_end_never_keeps_its_place() {
        let (ending, _) = watch::channel(());
        let (mut far, served) = serve(&ending);
        let window_of_nothing = [0, 4, 0, 0, 0, 0];
        far.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        far.write_all(&frame(4, 0, 0, &window_of_nothing)).await.unwrap();
        // GET, http, path and authority by HPACK's static table (RFC 7541 appendix A).
        let ask = [&[0x82, 0x86, 0x04, 6][..], b"/short", &[0x01, 2], b"us"].concat();
        far.write_all(&frame(1, 5, 1, &ask)).await.unwrap();

        let mut said_goodbye = false;
        let mut head = [0; 9];
        while far.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            far.read_exact(&mut payload).await.unwrap();
            said_goodbye |= head[3] == 7;
            assert!(head[3] != 0 || payload.is_empty(), "there is no window");
            if head[3] == 6 && payload != SHUTDOWN {
                let _ = far.write_all(&frame(6, 1, 0, &payload)).await;
            }
        }

        assert!(said_goodbye);
        let took = served.await.unwrap();
        assert_eq!(took, WRITE_PATIENCE + GOODBYE);
    }

    #[tokio::test]
    async fn tunnel_never_gives_its_place_away_while_it_is_open() {
        let (ending, _) = watch::channel(());
        let places = Places::new(1, 1, Vec::new());
        let place = places.free().await.take([203, 0, 113, 1].into()).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let line = Line::new(near, place, Hangup::new(), WRITE_PATIENCE);
        let served = tokio::spawn(connection(&ending).serve(line, Hangup::new()));
        let ask = b"GET /exec HTTP/1.1\r\nHost: us\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        far.write_all(ask).await.unwrap();
        let mut answer = [0; 12];
        far.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101");

        served.await.unwrap();
        let free = timeout(Duration::from_millis(50), places.all_free()).await;
        assert!(free.is_err(), "free while the tunnel is open");
        drop(far);

        timeout(Duration::from_secs(5), places.all_free()).await.unwrap();
    }

    /// Longer than any connection of these tests may last.
    const A_DAY: Duration = Duration::from_secs(24 * 3600);
    /// What h2 sends to learn whether the caller has seen that the connection ends (its `frame/ping.rs`).
    const SHUTDOWN: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

    /// Of HTTP/2 (RFC 9113 section 4.1).
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }
}
