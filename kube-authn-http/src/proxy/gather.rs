//! Small pieces of an answer, put together. The API server writes a list in chunks of 4 KiB; each passed on alone would be a
//! chunk, a TLS record and a share of a system call of its own.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

/// A body whose pieces come together as far as they are there already: nothing waits for more to come.
#[derive(Debug)]
pub(super) struct Gathered<B: Body> {
    inner: B,
    /// What came behind the last pieces and belongs to none of them: trailers, an error, a large piece, the end.
    next: Option<Option<Result<Frame<Bytes>, B::Error>>>,
    /// Whether somebody was given the time to send what came before an error.
    paused: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Gathered<B> {
    pub(super) fn new(inner: B) -> Self {
        Self {
            inner,
            next: None,
            paused: false,
        }
    }

    pub(super) fn inner(&self) -> &B {
        &self.inner
    }

    /// The next piece, if it is there and fits behind so many bytes; whatever else is there is kept.
    fn following(&mut self, gathered: usize, context: &mut Context<'_>) -> Option<Bytes> {
        if self.next.is_some() || self.inner.is_end_stream() {
            return None;
        }
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
            return None;
        };
        let frame = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if gathered + data.len() <= ENOUGH => return Some(data),
                Ok(data) => Some(Ok(Frame::data(data))),
                Err(other) => Some(Ok(other)),
            },
            other => other,
        };
        self.next = Some(frame);
        None
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Gathered<B>
where
    B::Error: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let frame = match this.next.take() {
            Some(Some(Err(error))) if !this.paused => {
                // hyper drops what it has not sent yet, the head included, when a body fails.
                this.paused = true;
                this.next = Some(Some(Err(error)));
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(frame) => frame,
            None => ready!(Pin::new(&mut this.inner).poll_frame(context)),
        };
        let first = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            },
            other => return Poll::Ready(other),
        };
        let Some(second) = this.following(first.len(), context) else {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        };
        let mut gathered = BytesMut::with_capacity(ENOUGH);
        gathered.extend_from_slice(&first);
        gathered.extend_from_slice(&second);
        while let Some(data) = this.following(gathered.len(), context) {
            gathered.extend_from_slice(&data);
        }
        Poll::Ready(Some(Ok(Frame::data(gathered.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.next {
            Some(next) => next.is_none(),
            None => self.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.inner.size_hint();
        let Some(Some(Ok(frame))) = &self.next else {
            return hint;
        };
        let kept = frame.data_ref().map_or(0, |data| data.len() as u64);
        let mut with_kept = SizeHint::new();
        if let Some(upper) = hint.upper() {
            with_kept.set_upper(upper + kept);
        }
        with_kept.set_lower(hint.lower() + kept);
        with_kept
    }
}

/// What one TLS record holds (RFC 8446 section 5.1).
const ENOUGH: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, future::poll_fn};

    use http::HeaderMap;
    use http_body_util::BodyExt;

    use super::*;

    enum Step {
        Data(usize),
        Wait,
        Trailers,
        Fail,
    }

    /// Does one step after the other.
    struct Script(VecDeque<Step>);

    impl Body for Script {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            Poll::Ready(match self.0.pop_front() {
                Some(Step::Data(length)) => Some(Ok(Frame::data(vec![b'x'; length].into()))),
                Some(Step::Trailers) => Some(Ok(Frame::trailers(HeaderMap::new()))),
                Some(Step::Fail) => Some(Err("broken")),
                Some(Step::Wait) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => None,
            })
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    /// Lengths of the data frames; `None` for trailers, the error as it is.
    async fn read(steps: impl Into<VecDeque<Step>>) -> (Vec<Option<usize>>, Option<&'static str>) {
        let mut body = Gathered::new(Script(steps.into()));
        let mut seen = Vec::new();
        while !body.is_end_stream() {
            match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                Some(Ok(frame)) => seen.push(frame.into_data().ok().map(|data| data.len())),
                Some(Err(error)) => return (seen, Some(error)),
                None => break,
            }
        }
        (seen, None)
    }

    #[tokio::test]
    async fn pieces_that_are_there_come_together_and_nothing_waits_for_more() {
        use Step::{Data, Wait};

        let (seen, error) = read([Data(4096), Data(4096), Wait, Data(10), Data(20)]).await;

        assert_eq!((seen, error), (vec![Some(8192), Some(30)], None));
    }

    #[tokio::test]
    async fn what_is_behind_the_pieces_is_neither_lost_nor_turned_round() {
        use Step::{Data, Fail, Trailers};

        let (seen, error) = read([
            Data(10),
            Data(20_000),
            Data(6_000),
            Data(6_000),
            Data(6_000),
            Trailers,
        ])
        .await;
        assert_eq!(
            (seen, error),
            (
                vec![Some(10), Some(20_000), Some(12_000), Some(6_000), None],
                None
            )
        );

        let (seen, error) = read([Data(1), Data(2), Fail]).await;
        assert_eq!((seen, error), (vec![Some(3)], Some("broken")));
    }

    #[tokio::test]
    async fn length_that_was_known_stays_known() {
        let whole = http_body_util::Full::new(Bytes::from_static(b"whole"));
        let body = Gathered::new(whole);

        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.expect("a body").to_bytes(), "whole");
    }
}
