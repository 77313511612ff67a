//! The task that hears of changes and looks what became of them.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{Shared, State};
use crate::{LoginEvent, LoginId, Revision, TokenKey, TokenStore};

/// Subscribes, subscribes again when the subscription breaks, and ends what ended meanwhile.
pub(super) async fn watch(store: Arc<dyn TokenStore>, shared: Weak<Shared>) {
    loop {
        if let Ok(mut events) = store.events().await {
            // What happened before the subscription is as lost as what a gap swallowed.
            let mut event = Some(LoginEvent::Gap);
            while let Some(happened) = event {
                let Some(shared) = shared.upgrade() else { return };
                match happened {
                    LoginEvent::Ended { key, login } => {
                        let open = shared.state().told_end(key, login);
                        recheck(&*store, &shared, open).await;
                    }
                    LoginEvent::Changed { key, revision } => shared.state().told(&key, revision),
                    LoginEvent::Gap => {
                        let open = shared.state().told_nothing();
                        recheck(&*store, &shared, open).await;
                    }
                }
                drop(shared);
                event = events.next().await;
            }
        }
        if shared.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// Events say where to look. They prove nothing: whoever may connect to the medium can tell what he likes.
impl State {
    /// Somebody wrote a row. Logins that this process never saw are none of its business.
    fn told(&mut self, key: &TokenKey, revision: Revision) {
        let Some(mark) = self.marks.get_mut(&revision.login) else {
            return;
        };
        if revision.number > mark.number {
            mark.told = revision.number;
            self.disturb(key);
            self.newer.notify_waiters();
        }
    }

    /// A login ended. Says about which one the store is to be asked: none if it has no handle here.
    fn told_end(&mut self, key: TokenKey, login: LoginId) -> Vec<(TokenKey, LoginId)> {
        self.disturb(&key);
        let lives = self.handles(&key).any(|handle| handle.id() == login);
        lives.then_some((key, login)).into_iter().collect()
    }

    /// Anything may have happened. Says about which logins the store is to be asked.
    fn told_nothing(&mut self) -> Vec<(TokenKey, LoginId)> {
        self.disturb_all();
        self.all().map(|(key, login, _)| (key, login)).collect()
    }
}

/// Asks the store about these logins; a store that does not answer is asked again.
async fn recheck(store: &dyn TokenStore, shared: &Shared, mut open: Vec<(TokenKey, LoginId)>) {
    loop {
        let mut unanswered = Vec::new();
        for (key, login) in open {
            match store.load(&key).await {
                Ok(Some(record)) if record.revision.login == login => shared.state().see(record.revision),
                Ok(_) => shared.state().end(&key, login),
                Err(error) if error.is_retryable() => unanswered.push((key, login)),
                // A damaged row is a row: the next load says so, and nobody else's credential is touched.
                Err(_) => {}
            }
        }
        if unanswered.is_empty() {
            return;
        }
        open = unanswered;
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// A store that is gone comes back within seconds or much later.
const RETRY_AFTER: Duration = Duration::from_millis(500);
