//! Answers of the API server, which end when they must, whether or not the caller reads them.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use kube_authn_core::{Error, ErrorKind, ResponseBody, Result};
use tokio::{task::AbortHandle, time::Instant};

use super::{gather::Gathered, hangup::Hangup, streams::OpenStream};

/// The body of an answer. Once more has passed than a server buffers, a guard watches it from outside: at logout, at the
/// credential's end, and when nobody read on for too long, it gives up what is held at the API server.
pub(super) struct Answer {
    held: Arc<Mutex<Held>>,
    patience: Duration,
    hangup: Option<Hangup>,
    passed: usize,
    guard: Option<AbortHandle>,
}

struct Held {
    /// `None` once the guard took it away.
    body: Option<Gathered<ResponseBody>>,
    /// Counts for the caller as long as there is a body.
    open: Option<OpenStream>,
    /// Why; told to the reader once.
    taken: Option<Error>,
    reader: Reader,
}

enum Reader {
    /// Waits for the API server, and is woken when the answer must end.
    Waits,
    /// Was given something, and did not come back yet.
    Busy { since: Instant },
}

impl Answer {
    /// A caller may leave the answer unread for as long as `patience`.
    pub(super) fn new(
        body: ResponseBody,
        open: Option<OpenStream>,
        patience: Duration,
        hangup: Option<Hangup>,
    ) -> Self {
        Self {
            held: Arc::new(Mutex::new(Held {
                body: Some(Gathered::new(body)),
                open,
                taken: None,
                reader: Reader::Busy {
                    since: Instant::now(),
                },
            })),
            patience,
            hangup,
            passed: 0,
            guard: None,
        }
    }

    /// From now on; over HTTP/2 from the beginning, since a caller may not take a single byte there.
    pub(super) fn guarded(mut self) -> Self {
        self.guard();
        self
    }

    fn guard(&mut self) {
        let cut = match &lock(&self.held).body {
            Some(body) if !body.is_end_stream() => body.inner().cut(),
            _ => return,
        };
        let held = Arc::downgrade(&self.held);
        let (patience, hangup) = (self.patience, self.hangup.clone());
        let guard = tokio::spawn(async move {
            let why = tokio::select! {
                why = cut => why,
                why = left_unread(&held, patience) => why,
            };
            if take(&held, why)
                && let Some(hangup) = hangup
            {
                hangup.call();
            }
        });
        self.guard = Some(guard.abort_handle());
    }
}

async fn left_unread(held: &Weak<Mutex<Held>>, patience: Duration) -> Error {
    let mut left = patience;
    loop {
        tokio::time::sleep(left).await;
        left = match held.upgrade().map(|held| lock(&held).unread_for()) {
            Some(unread) if unread >= patience => return unread_error(patience),
            Some(unread) => patience - unread,
            None => patience,
        };
    }
}

/// Whether the reader must be told by other means: one that waits for the API server is woken by the body itself.
fn take(held: &Weak<Mutex<Held>>, why: Error) -> bool {
    let Some(held) = held.upgrade() else {
        return false;
    };
    let mut held = lock(&held);
    if matches!(held.reader, Reader::Waits) {
        return false;
    }
    held.body = None;
    held.open = None;
    held.taken = Some(why);
    true
}

impl Held {
    fn unread_for(&self) -> Duration {
        match self.reader {
            Reader::Waits => Duration::ZERO,
            Reader::Busy { since } => since.elapsed(),
        }
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let polled = {
            let mut held = lock(&self.held);
            let Some(body) = &mut held.body else {
                return Poll::Ready(held.taken.take().map(Err));
            };
            let polled = Pin::new(body).poll_frame(context);
            held.reader = match polled {
                Poll::Pending => Reader::Waits,
                Poll::Ready(_) => Reader::Busy {
                    since: Instant::now(),
                },
            };
            polled
        };
        if self.guard.is_none()
            && let Poll::Ready(Some(Ok(frame))) = &polled
        {
            self.passed += frame.data_ref().map_or(0, Bytes::len);
            if self.passed > TAKEN_AT_ONCE {
                self.guard();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let held = lock(&self.held);
        match &held.body {
            Some(body) => body.is_end_stream(),
            None => held.taken.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &lock(&self.held).body {
            Some(body) => body.size_hint(),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(guard) = &self.guard {
            guard.abort();
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

fn unread_error(patience: Duration) -> Error {
    let text = format!("the caller took nothing of the answer for {patience:?}");
    Error::new(ErrorKind::Timeout, text)
}

/// Less than a server's own buffers over HTTP/1.1: so much is taken from us even if the caller reads nothing.
const TAKEN_AT_ONCE: usize = 32 * 1024;
