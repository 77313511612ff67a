//! How the proxy ends a caller's connection that takes nothing any more.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// Closes a caller's connection at once, whether the caller reads or not. A server that puts one among the extensions of
/// the requests of a connection, and drops the connection once [`Hangup::called`] returns, lets the proxy end at logout
/// what a caller never reads. Clones are the same connection's.
#[derive(Clone, Debug, Default)]
pub struct Hangup(Arc<State>);

#[derive(Debug, Default)]
struct State {
    called: AtomicBool,
    changed: Notify,
}

impl Hangup {
    /// For a connection that was just accepted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the connection must end.
    pub fn is_called(&self) -> bool {
        self.0.called.load(Ordering::Acquire)
    }

    /// Returns when the connection must end.
    pub async fn called(&self) {
        let mut changed = std::pin::pin!(self.0.changed.notified());
        changed.as_mut().enable();
        if !self.is_called() {
            changed.await;
        }
    }

    pub(super) fn call(&self) {
        self.0.called.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }
}
