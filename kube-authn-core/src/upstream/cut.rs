//! What was opened with a credential ends with it: at logout, or some time after the credential's end.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use jiff::Timestamp;

use crate::{Clock, ClusterDetails, Credential, CredentialRequest, Error, ErrorKind, LoginHandle};

/// Decides when what was opened with one credential must end.
#[derive(Clone)]
pub(crate) struct Cut {
    login: Option<LoginHandle>,
    deadline: Option<Timestamp>,
    cluster: ClusterDetails,
    grace: Duration,
    clock: Arc<dyn Clock>,
}

impl Cut {
    /// At the end of the credential's login, or `grace` after the first of three ends: the credential's own, that of the
    /// caller's authentication, and that of the cluster as it was configured.
    pub(crate) fn of(
        credential: &Credential,
        request: &CredentialRequest,
        grace: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let ends = [credential.expires_at(), request.principal.expires_at()];
        Self {
            login: credential.login().cloned(),
            deadline: ends
                .into_iter()
                .flatten()
                .min()
                .map(|end| end.checked_add(grace).unwrap_or(Timestamp::MAX)),
            cluster: request.cluster.clone(),
            grace,
            clock,
        }
    }

    /// Why it is over, if it is.
    pub(crate) fn reached(&self) -> Option<Error> {
        if self.login.as_ref().is_some_and(LoginHandle::is_ended) {
            return Some(logged_out());
        }
        if self.cluster.is_retired_for(self.grace) {
            return Some(retired());
        }
        let over = self.deadline.is_some_and(|end| self.clock.now() >= end);
        over.then(expired)
    }

    /// Returns why it is over, once it is; never if nothing can end it.
    pub(crate) async fn wait(&self) -> Error {
        let logout = async {
            match &self.login {
                Some(login) => login.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = logout => logged_out(),
            () = self.deadline() => expired(),
            () = self.cluster.retired_for(self.grace) => retired(),
        }
    }

    /// A timer does not see a clock that is set, nor the time that a machine sleeps: look again from time to time.
    async fn deadline(&self) {
        let Some(end) = self.deadline else {
            return std::future::pending().await;
        };
        loop {
            let left = Duration::try_from(end.duration_since(self.clock.now())).unwrap_or_default();
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_AGAIN)).await;
        }
    }

    /// The same decision, to be polled by a stream while it waits.
    pub(crate) fn watch(self) -> CutWatch {
        CutWatch {
            cut: self,
            waiting: None,
        }
    }
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cut")
            .field("login", &self.login)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// A [`Cut`] that a stream carries. Costs nothing until the stream has to wait for the first time.
pub(crate) struct CutWatch {
    cut: Cut,
    waiting: Option<Pin<Box<dyn Future<Output = Error> + Send>>>,
}

impl CutWatch {
    pub(crate) fn reached(&self) -> Option<Error> {
        self.cut.reached()
    }

    pub(crate) fn cut(&self) -> &Cut {
        &self.cut
    }

    /// Ready once it is over; else the task is woken then.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Error> {
        let waiting = self.waiting.get_or_insert_with(|| {
            let cut = self.cut.clone();
            Box::pin(async move { cut.wait().await })
        });
        waiting.as_mut().poll(context)
    }
}

/// A connection that breaks when its credential is over. Upgrades hand the bare connection to the caller, so the switch
/// sits in it.
pub(crate) struct CutIo<T> {
    inner: T,
    cut: CutWatch,
}

impl<T> CutIo<T> {
    pub(crate) fn new(inner: T, cut: Cut) -> Self {
        Self {
            inner,
            cut: cut.watch(),
        }
    }

    fn check(&self) -> io::Result<()> {
        self.cut.reached().map_or(Ok(()), |error| Err(broken(error)))
    }
}

impl<T: Read + Unpin> Read for CutIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        if let Poll::Ready(result) = Pin::new(&mut self.inner).poll_read(context, buffer) {
            return Poll::Ready(result);
        }
        self.cut.poll(context).map(|error| Err(broken(error)))
    }
}

/// Writing looks at the switch but never waits for it: halves may be polled by two tasks, and the reader's is the one
/// to be woken.
impl<T: Write + Unpin> Write for CutIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }
}

fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

fn logged_out() -> Error {
    Error::new(
        ErrorKind::LoginRequired,
        "the login ended while the connection was open: log in again",
    )
}

fn retired() -> Error {
    Error::new(
        ErrorKind::ClusterUnknown,
        "the cluster was removed from the configuration, or changed there, while the connection was open: open it again",
    )
}

fn expired() -> Error {
    Error::new(
        ErrorKind::TokenExpired,
        "the credential, or the caller's own, ended while the connection was open: open it again",
    )
}

/// Longest sleep between two looks at the clock.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoginId, ManualClock, Principal};

    fn clock() -> ManualClock {
        ManualClock::at(Timestamp::from_second(1_000).expect("an instant"))
    }

    /// With 30 s of grace, for a caller whose authentication ends at this second.
    fn cut(credential: &Credential, caller_ends: Option<i64>, clock: &ManualClock) -> Cut {
        let caller = Principal::anonymous();
        let caller = match caller_ends {
            Some(second) => caller.with_expires_at(Timestamp::from_second(second).expect("an instant")),
            None => caller,
        };
        let request = CredentialRequest::new(caller, cluster());
        of(credential, &request, clock)
    }

    fn cluster() -> ClusterDetails {
        let cluster = ClusterDetails::builder("a", "https://a").auth_provider("x");
        cluster.build().expect("a cluster")
    }

    fn of(credential: &Credential, request: &CredentialRequest, clock: &ManualClock) -> Cut {
        let grace = Duration::from_secs(30);
        Cut::of(credential, request, grace, Arc::new(clock.clone()))
    }

    #[test]
    fn earlier_of_the_two_ends_counts() {
        let ends_at = |second| Timestamp::from_second(second).expect("an instant");
        let credential = Credential::anonymous().with_expires_at(ends_at(1_100));
        for (caller_ends, deadline) in [(Some(1_050), 1_080), (Some(1_200), 1_130), (None, 1_130)] {
            let clock = clock();
            let cut = cut(&credential, caller_ends, &clock);

            clock.advance_seconds(deadline - 1_001);
            assert!(cut.reached().is_none(), "{caller_ends:?}");
            clock.advance_seconds(1);
            assert!(cut.reached().is_some(), "{caller_ends:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn end_is_seen_by_the_clock_and_not_by_the_timer() {
        let clock = clock();
        let credential =
            Credential::anonymous().with_expires_at(Timestamp::from_second(1_100).expect("an instant"));
        let cut = cut(&credential, None, &clock);
        let waiting = tokio::spawn({
            let cut = cut.clone();
            async move { cut.wait().await }
        });

        tokio::time::sleep(Duration::from_secs(1_000)).await;
        assert!(!waiting.is_finished() && cut.reached().is_none());
        clock.advance_seconds(130);

        assert_eq!(waiting.await.expect("woken").kind(), ErrorKind::TokenExpired);
    }

    #[tokio::test(start_paused = true)]
    async fn stream_to_a_cluster_that_is_gone_ends_after_the_grace() {
        let clusters = crate::Clusters::new(vec![cluster()]);
        let in_force = clusters.get("a").expect("there");
        let request = CredentialRequest::new(Principal::anonymous(), in_force);
        let cut = of(&Credential::anonymous(), &request, &clock());

        clusters.replace(&[cluster()]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(cut.reached().is_none(), "the same content keeps it in force");

        clusters.replace(&[]);
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert!(cut.reached().is_none());
        assert_eq!(cut.wait().await.kind(), ErrorKind::ClusterUnknown);
        assert!(cut.reached().is_some());
    }

    #[tokio::test]
    async fn logout_is_seen_at_once() {
        let login = LoginHandle::new(LoginId::from_bytes([1; 16]));
        let credential = Credential::anonymous().with_login(login.clone());
        let cut = cut(&credential, None, &clock());

        login.end();

        assert_eq!(cut.wait().await.kind(), ErrorKind::LoginRequired);
        assert!(cut.reached().is_some());
    }
}
