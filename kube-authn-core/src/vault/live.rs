//! What this process knows of logins: the handles it gave out, the newest revisions it saw, and the task that ends
//! handles when somebody else ends the login.

mod watch;

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::{sync::Notify, task::JoinHandle};

use crate::{LoginHandle, LoginId, Revision, TokenKey, TokenStore, token::WeakLoginHandle};

/// The logins of this process and the task that watches them. Dropping it ends the task.
#[derive(Debug)]
pub(super) struct LiveLogins {
    shared: Arc<Shared>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

/// An instant in the order in which this process learnt of changes. A load that began before a change must not hand
/// out what it read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Began(u64);

/// What to do with a row that was read.
#[derive(Debug)]
pub(super) enum Admission {
    /// The login lives; all of its credentials share this handle.
    Lives(LoginHandle),
    /// Something changed while the row was read: read it again.
    ReadAgain,
    /// This process knew a newer row, or the end of this login, before it began to read: the row was put back.
    PutBack,
}

impl LiveLogins {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared(Mutex::new(State::default()))),
            watcher: Mutex::new(None),
        }
    }

    /// Watches the store from now on; does nothing if it is being watched, or outside a runtime.
    pub(super) fn watch(&self, store: &Arc<dyn TokenStore>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut watcher = lock(&self.watcher);
        if watcher.as_ref().is_none_or(JoinHandle::is_finished) {
            *watcher = Some(runtime.spawn(watch::watch(Arc::clone(store), Arc::downgrade(&self.shared))));
        }
    }

    /// The instant to take before a row is read.
    pub(super) fn begin(&self) -> Began {
        Began(self.shared.state().now)
    }

    /// Decides on a row that was read after `began`.
    pub(super) fn admit(
        &self,
        key: &TokenKey,
        revision: Revision,
        expires_at: Timestamp,
        began: Began,
    ) -> Admission {
        self.shared.state().admit(key, revision, expires_at, began)
    }

    /// Notes a row that this process wrote, and ends the login that stood there before.
    pub(super) fn wrote(&self, key: &TokenKey, revision: Revision, replaced: Option<LoginId>) {
        let mut state = self.shared.state();
        state.see(revision);
        if let Some(replaced) = replaced.filter(|replaced| *replaced != revision.login) {
            state.end(key, replaced);
        }
    }

    /// Returns once this process knows of a newer revision of the login, or of its end.
    pub(super) async fn passed(&self, revision: Revision) {
        let newer = Arc::clone(&self.shared.state().newer);
        loop {
            let mut woken = std::pin::pin!(newer.notified());
            woken.as_mut().enable();
            if self.shared.state().has_passed(revision) {
                return;
            }
            woken.await;
        }
    }

    /// Notes a row that was written with nothing new in it.
    pub(super) fn rekeyed(&self, revision: Revision) {
        self.shared.state().see(revision);
    }

    /// The logins under this key that have a handle here.
    pub(super) fn of(&self, key: &TokenKey) -> Vec<LoginId> {
        self.shared
            .state()
            .handles(key)
            .map(|handle| handle.id())
            .collect()
    }

    /// Notes that the row under this key was deleted: the logins known before are over for good, and whatever got a
    /// handle meanwhile has to ask again.
    pub(super) fn deleted(&self, key: &TokenKey, known: &[LoginId]) {
        let mut state = self.shared.state();
        for login in known {
            state.end(key, *login);
        }
        state.handles(key).for_each(|handle| handle.end());
        state.disturb(key);
    }

    /// The logins that have a handle here and, as far as is known, ended before this instant.
    pub(super) fn ended_before(&self, instant: Timestamp) -> Vec<(TokenKey, LoginId)> {
        self.shared
            .state()
            .all()
            .filter(|(.., expires_at)| *expires_at < instant)
            .map(|(key, login, _)| (key, login))
            .collect()
    }

    /// Ends one login for good.
    pub(super) fn end(&self, key: &TokenKey, login: LoginId) {
        self.shared.state().end(key, login);
    }
}

impl Drop for LiveLogins {
    fn drop(&mut self) {
        if let Some(watcher) = lock(&self.watcher).take() {
            watcher.abort();
        }
    }
}

#[derive(Debug)]
struct Shared(Mutex<State>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct State {
    now: u64,
    live: HashMap<TokenKey, Vec<Live>, foldhash::quality::RandomState>,
    /// Dead entries are swept when as many again have come as lived after the last sweep.
    sweep_at: usize,
    marks: HashMap<LoginId, Mark, foldhash::quality::RandomState>,
    mark_order: VecDeque<LoginId>,
    disturbed: [u64; SHARDS],
    /// Wakes who waits for a newer revision.
    newer: Arc<Notify>,
}

#[derive(Debug)]
struct Live {
    login: LoginId,
    expires_at: Timestamp,
    handle: WeakLoginHandle,
}

/// The newest revision seen of a login, `ENDED` once it is over, and when that was learnt.
#[derive(Clone, Copy, Debug)]
struct Mark {
    number: u64,
    since: u64,
    /// The newest revision told of since a row was read: a reason to look, and no proof.
    told: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            now: 0,
            live: HashMap::default(),
            sweep_at: SWEEP_FLOOR,
            marks: HashMap::default(),
            mark_order: VecDeque::new(),
            disturbed: [0; SHARDS],
            newer: Arc::default(),
        }
    }
}

impl State {
    fn admit(
        &mut self,
        key: &TokenKey,
        revision: Revision,
        expires_at: Timestamp,
        began: Began,
    ) -> Admission {
        if let Some(mark) = self.marks.get(&revision.login)
            && mark.number > revision.number
        {
            return match mark.since > began.0 {
                true => Admission::ReadAgain,
                false => Admission::PutBack,
            };
        }
        if self.disturbed[self.shard(key)] > began.0 {
            return Admission::ReadAgain;
        }
        self.see(revision);
        if let Some(mark) = self.marks.get_mut(&revision.login) {
            // Read after all that was told so far.
            mark.told = 0;
        }
        Admission::Lives(self.handle(key, revision.login, expires_at))
    }

    fn handle(&mut self, key: &TokenKey, login: LoginId, expires_at: Timestamp) -> LoginHandle {
        if self.live.len() >= self.sweep_at {
            self.sweep();
        }
        let entries = self.live.entry(key.clone()).or_default();
        entries.retain(|live| live.handle.upgrade().is_some_and(|handle| !handle.is_ended()));
        if let Some(live) = entries.iter_mut().find(|live| live.login == login)
            && let Some(handle) = live.handle.upgrade()
        {
            live.expires_at = expires_at;
            return handle;
        }
        let handle = LoginHandle::new(login);
        entries.push(Live {
            login,
            expires_at,
            handle: handle.downgrade(),
        });
        handle
    }

    fn sweep(&mut self) {
        self.live.retain(|_, entries| {
            entries.retain(|live| live.handle.upgrade().is_some());
            !entries.is_empty()
        });
        self.sweep_at = (self.live.len() * 2).max(SWEEP_FLOOR);
    }

    fn handles(&self, key: &TokenKey) -> impl Iterator<Item = LoginHandle> {
        self.live
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|live| live.handle.upgrade())
    }

    /// Those that have not ended.
    fn all(&self) -> impl Iterator<Item = (TokenKey, LoginId, Timestamp)> {
        self.live.iter().flat_map(|(key, entries)| {
            entries
                .iter()
                .filter(|live| live.handle.upgrade().is_some_and(|handle| !handle.is_ended()))
                .map(|live| (key.clone(), live.login, live.expires_at))
        })
    }

    fn has_passed(&self, revision: Revision) -> bool {
        let mark = self.marks.get(&revision.login);
        mark.is_some_and(|mark| mark.number.max(mark.told) > revision.number)
    }

    fn see(&mut self, revision: Revision) {
        self.mark(revision.login, revision.number);
    }

    fn end(&mut self, key: &TokenKey, login: LoginId) {
        self.mark(login, ENDED);
        self.handles(key)
            .filter(|handle| handle.id() == login)
            .for_each(|handle| handle.end());
    }

    fn mark(&mut self, login: LoginId, number: u64) {
        if self.marks.get(&login).is_some_and(|mark| mark.number >= number) {
            return;
        }
        self.now += 1;
        let since = self.now;
        self.newer.notify_waiters();
        let told = self.marks.get(&login).map_or(0, |mark| mark.told);
        let mark = Mark { number, since, told };
        if self.marks.insert(login, mark).is_none() {
            self.mark_order.push_back(login);
            if self.mark_order.len() > MARKS
                && let Some(oldest) = self.mark_order.pop_front()
            {
                self.marks.remove(&oldest);
            }
        }
    }

    /// Makes loads of this key that are under way read again.
    fn disturb(&mut self, key: &TokenKey) {
        self.now += 1;
        let shard = self.shard(key);
        self.disturbed[shard] = self.now;
    }

    fn disturb_all(&mut self) {
        self.now += 1;
        self.disturbed = [self.now; SHARDS];
    }

    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below SHARDS")]
    fn shard(&self, key: &TokenKey) -> usize {
        (self.live.hasher().hash_one(key) % SHARDS as u64) as usize
    }
}

/// No revision is above it.
const ENDED: u64 = u64::MAX;
/// Revisions remembered, the oldest logins forgotten first; about 10 MB when full.
const MARKS: usize = 100_000;
/// Loads under way are disturbed by changes of a 64th of all keys.
const SHARDS: usize = 64;
/// Fewer entries are not worth a sweep.
const SWEEP_FLOOR: usize = 1_024;
