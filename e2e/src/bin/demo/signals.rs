//! Whoever asks the demo to end: everything that it started ends first.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Failure;

/// Ctrl-C, SIGTERM, and the end of the terminal.
pub(crate) struct Signals([Signal; 3]);

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
            _ = hangup.recv() => (),
        }
    }

    /// Does this work, or breaks it off.
    pub(crate) async fn or<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.next() => Err(Interrupted.into()),
            done = work => done,
        }
    }

    /// Whether somebody wanted this failure.
    pub(crate) fn are(failure: &Failure) -> bool {
        failure.is::<Interrupted>()
    }
}
