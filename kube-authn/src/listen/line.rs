//! A caller's connection: how long it may take nothing, and how it ends when it must.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use kube_authn_http::Hangup;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::places::Place;

/// A socket whose peer must take what is written within a limit. One that the proxy hung up is reset when it is dropped:
/// what lies in the system's buffers is not the caller's any more.
#[derive(Debug)]
pub(super) struct Line<S: AsFd> {
    socket: S,
    /// Its own until the socket is closed, also by a tunnel that took it over.
    _place: Place,
    hangup: Hangup,
    limit: Duration,
    /// Kept for the next wait.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<S: AsFd> Line<S> {
    pub(super) fn new(socket: S, place: Place, hangup: Hangup, limit: Duration) -> Self {
        Self {
            socket,
            _place: place,
            hangup,
            limit,
            timer: None,
            waiting: false,
        }
    }

    /// Fails instead of waiting once the peer has taken nothing for so long.
    fn in_time<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = false;
            return written;
        }
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(Instant::now() + limit);
        }
        timer
            .as_mut()
            .poll(context)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for Line<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Line<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.in_time(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, buffers);
        self.in_time(written, context)
    }
}

impl<S: AsFd> Drop for Line<S> {
    fn drop(&mut self) {
        if self.hangup.is_called() {
            // Without it the caller gets the rest from the system's buffers in its own time.
            let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::{super::places::Places, *};

    #[tokio::test(start_paused = true)]
    async fn peer_that_takes_nothing_is_left_and_a_slow_one_is_not() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let place = Places::new(1, 1, Vec::new())
            .free()
            .await
            .take([127, 0, 0, 1].into())
            .unwrap();
        let mut line = Line::new(near, place, Hangup::new(), Duration::from_secs(60));
        let mut bytes = vec![0; 64 << 10];

        for _ in 0..30 {
            line.write_all(&bytes).await.unwrap();
            tokio::time::sleep(Duration::from_secs(59)).await;
            far.read_exact(&mut bytes).await.unwrap();
        }
        let begin = Instant::now();
        let error = loop {
            if let Err(error) = line.write_all(&bytes).await {
                break error;
            }
        };

        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed().as_secs(), 60);
    }
}
