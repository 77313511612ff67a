//! What a connection of HTTP/2 is doing: a watch may be silent for hours, and whoever asks nothing gives its place back.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use kube_authn_http::axum;
use tokio::time::{Instant, sleep};

/// The streams of one connection. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Whether there was a request.
    heard: bool,
    /// Whether the parser has limits of its own: of HTTP/1.1.
    limited: bool,
    /// Streams whose answer has not ended.
    open: usize,
    /// Those of them that wait for us, and not for the caller to take something.
    ours: usize,
    /// The last time that anything happened.
    since: Instant,
}

/// One stream, from its request to the end of its answer.
#[derive(Debug)]
struct Exchange {
    activity: Activity,
    ours: bool,
}

/// The answer of a stream.
#[derive(Debug)]
pub(super) struct Watched {
    body: axum::body::Body,
    exchange: Option<Exchange>,
}

impl Activity {
    /// Of a connection that is ready for its first request.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            heard: false,
            limited: false,
            open: 0,
            ours: 0,
            since: Instant::now(),
        })))
    }

    pub(super) fn heard(&self) -> bool {
        self.lock().heard
    }

    /// A request over HTTP/1.1.
    pub(super) fn http1(&self) {
        let mut state = self.lock();
        (state.heard, state.limited) = (true, true);
    }

    /// A stream of HTTP/2, for as long as `answering` and the body of its answer last.
    pub(super) async fn http2<E>(
        &self,
        answering: impl Future<Output = Result<axum::response::Response, E>>,
    ) -> Result<hyper::Response<Watched>, E> {
        let mut exchange = Exchange::begin(self.clone());
        let answer = answering.await?;
        exchange.is_ours(false);
        Ok(answer.map(|body| Watched {
            body,
            exchange: Some(exchange),
        }))
    }

    /// Returns when nothing has happened for too long, and for so long more.
    pub(super) async fn ceased(&self, more: Duration) {
        loop {
            let left = self.lock().left(more);
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn left(&self, more: Duration) -> Duration {
        let limit = match (self.heard, self.open) {
            (false, _) => super::HEAD_TIMEOUT,
            (true, 0) => super::IDLE_TIMEOUT,
            (true, _) => super::WRITE_PATIENCE,
        };
        match self.limited || self.ours > 0 {
            true => limit,
            false => (limit + more).saturating_sub(self.since.elapsed()),
        }
    }
}

impl Exchange {
    fn begin(activity: Activity) -> Self {
        let mut state = activity.lock();
        state.heard = true;
        state.open += 1;
        state.ours += 1;
        state.since = Instant::now();
        drop(state);
        Self { activity, ours: true }
    }

    fn is_ours(&mut self, ours: bool) {
        let mut state = self.activity.lock();
        state.since = Instant::now();
        match (self.ours, ours) {
            (false, true) => state.ours += 1,
            (true, false) => state.ours = state.ours.saturating_sub(1),
            (true, true) | (false, false) => {}
        }
        drop(state);
        self.ours = ours;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.is_ours(false);
        let mut state = self.activity.lock();
        state.open = state.open.saturating_sub(1);
    }
}

impl From<axum::body::Body> for Watched {
    /// Of HTTP/1.1.
    fn from(body: axum::body::Body) -> Self {
        Self { body, exchange: None }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Some(exchange) = &mut self.exchange {
            exchange.is_ours(polled.is_pending());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
