//! Bodies on their way through: passed on as they come, watched for standing still.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use kube_authn_core::{BoxError, Error};
use tokio::time::{Instant, Sleep, sleep};

/// A body whose sender may not stand still for longer than a limit. Time in which nobody reads does not count.
pub(super) struct Passing<B, C> {
    inner: B,
    /// `None` for streams, on which nothing may happen for hours.
    limit: Option<Duration>,
    idle: Idle,
    clean: C,
    late: fn(Duration) -> Error,
}

#[derive(Default)]
struct Idle {
    /// Kept for the next wait.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<B, C: Fn(&mut HeaderMap)> Passing<B, C> {
    /// `clean` sees the fields behind the body, `late` says what happened when nothing did.
    pub(super) fn new(inner: B, limit: Option<Duration>, clean: C, late: fn(Duration) -> Error) -> Self {
        Self {
            inner,
            limit,
            idle: Idle::default(),
            clean,
            late,
        }
    }
}

impl Idle {
    fn poll(&mut self, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(Instant::now() + limit);
        }
        timer.as_mut().poll(context)
    }
}

impl<B, C> Body for Passing<B, C>
where
    B: Body<Data = Bytes> + Unpin,
    C: Fn(&mut HeaderMap) + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                return match this.limit {
                    Some(limit) => this
                        .idle
                        .poll(limit, context)
                        .map(|()| Some(Err((this.late)(limit).into()))),
                    None => Poll::Pending,
                };
            }
        };
        this.idle.waiting = false;
        Poll::Ready(
            frame.map(|frame| match frame.map_err(Into::into)?.into_trailers() {
                Ok(mut trailers) => {
                    (this.clean)(&mut trailers);
                    Ok(Frame::trailers(trailers))
                }
                Err(data) => Ok(data),
            }),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B, C> fmt::Debug for Passing<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passing")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use kube_authn_core::ErrorKind;

    use super::*;

    /// Waits so long before its one frame.
    struct Slow(Pin<Box<Sleep>>, bool);

    impl Body for Slow {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            if self.1 {
                return Poll::Ready(None);
            }
            std::task::ready!(self.0.as_mut().poll(context));
            self.1 = true;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    async fn read(seconds: u64, limit: Option<u64>) -> Result<Bytes, BoxError> {
        let slow = Slow(Box::pin(sleep(Duration::from_secs(seconds))), false);
        let body = Passing::new(
            slow,
            limit.map(Duration::from_secs),
            |_| {},
            |_| Error::new(ErrorKind::Timeout, "late"),
        );
        Ok(body.collect().await?.to_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn sender_that_stands_still_is_left() {
        let error = read(61, Some(60)).await.expect_err("left");

        let error = Error::find(&*error).expect("ours");
        assert_eq!(error.kind(), ErrorKind::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn stream_may_stand_still_for_hours() {
        assert_eq!(read(36_000, None).await.expect("a body"), "x");
        assert_eq!(read(59, Some(60)).await.expect("a body"), "x");
    }
}
