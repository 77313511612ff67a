//! Bodies: what goes to the API server, and what comes back.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::Incoming;

use super::{
    cut::{Cut, CutWatch},
    lease::Lease,
};
use crate::{Error, ErrorKind};

/// Any error that crosses threads.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request: nothing, bytes at hand, or a stream. Only the first two can be sent twice.
pub struct Body(Kind);

enum Kind {
    Empty,
    Full(Bytes),
    Stream(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// No body.
    pub const fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// A body that is passed on as it comes in; one that has ended already is [`Body::empty`].
    pub fn new<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        match body.is_end_stream() {
            true => Self::empty(),
            false => Self(Kind::Stream(body.map_err(Into::into).boxed_unsync())),
        }
    }

    /// The same body once more, `None` for a stream.
    pub fn try_clone(&self) -> Option<Self> {
        match &self.0 {
            Kind::Empty => Some(Self::empty()),
            Kind::Full(bytes) => Some(Self(Kind::Full(bytes.clone()))),
            Kind::Stream(_) => None,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        match bytes.is_empty() {
            true => Self::empty(),
            false => Self(Kind::Full(bytes)),
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Stream(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Empty => "Body(empty)",
            Kind::Full(_) => "Body(bytes)",
            Kind::Stream(_) => "Body(stream)",
        })
    }
}

/// The body of an answer. Its connection or stream is free again when it ends or is dropped.
///
/// It ends with an [`Error`] when the login ends that the request was made with (`LoginRequired`), some time after the
/// credential's own end (`TokenExpired`), or when the connection breaks (`UpstreamUnreachable`).
pub struct ResponseBody {
    /// `None` once it has ended.
    incoming: Option<(Incoming, Lease)>,
    cut: CutWatch,
}

impl ResponseBody {
    pub(crate) fn new(incoming: Incoming, lease: Lease, cut: Cut) -> Self {
        let mut body = Self {
            incoming: Some((incoming, lease)),
            cut: cut.watch(),
        };
        if body.is_end_stream() {
            body.end(true);
        }
        body
    }

    /// Returns why this answer must end, once it must, whether anybody reads it or not: for whoever holds a connection
    /// open for it. Never, if nothing can end it.
    pub fn cut(&self) -> impl Future<Output = Error> + Send + 'static {
        let cut = self.cut.cut().clone();
        async move { cut.wait().await }
    }

    /// Only after its end can a connection of HTTP/1.1 serve the next request.
    fn end(&mut self, whole: bool) {
        if let Some((incoming, lease)) = self.incoming.take() {
            drop(incoming);
            lease.end(whole);
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let Some((incoming, lease)) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        if let Some(error) = this.cut.reached() {
            this.end(false);
            return Poll::Ready(Some(Err(error)));
        }
        let mut frame = Pin::new(&mut *incoming).poll_frame(context);
        if frame.is_pending() {
            lease.drive(context);
            frame = Pin::new(incoming).poll_frame(context);
        }
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                // Who knows the length, as hyper's server does, doesn't ask again.
                if this.is_end_stream() {
                    this.end(true);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(source))) => {
                this.end(false);
                Poll::Ready(Some(Err(broken(source))))
            }
            Poll::Ready(None) => {
                this.end(true);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let error = ready!(this.cut.poll(context));
                this.end(false);
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming
            .as_ref()
            .is_none_or(|(incoming, _)| incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.incoming {
            Some((incoming, _)) => incoming.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("ended", &self.incoming.is_none())
            .finish_non_exhaustive()
    }
}

fn broken(source: hyper::Error) -> Error {
    Error::new(
        ErrorKind::UpstreamUnreachable,
        "the API server broke off in the middle of its answer",
    )
    .with_source(source)
}
