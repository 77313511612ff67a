//! A cache over any token store.

mod rows;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use kube_authn_core::{
    EntityRef, Expected, LoginEvent, LoginEvents, LoginMetadata, Result, Revision, TokenKey, TokenRecord,
    TokenStore,
};
use tokio::{sync::mpsc, task::JoinHandle};

use self::rows::Rows;

/// Keeps rows that were loaded, sealed as they are, so that loading them again asks nobody. Clones share the cache.
///
/// A row is dropped when this process writes it and when the inner store's events tell of a change: another process's write
/// is seen within a second, as the contract promises of events. While there is no subscription, for a store that is down or
/// a connection that broke, nothing is kept and every load asks the inner store. A load that began before a change keeps
/// nothing. That no row is there is never remembered.
///
/// # Layout
/// At most 10,000 rows and 64 MiB ([`CachingTokenStore::with_limits`]); the rows used longest ago go first.
///
/// # Atomicity
/// The inner store's: all writes, lists and scans go to it.
///
/// # Expiry
/// The inner store's.
///
/// # Example
/// ```
/// use kube_authn_store::CachingTokenStore;
///
/// # fn example(store: impl kube_authn_core::TokenStore, keys: kube_authn_store::KeyRing) {
/// let vault = kube_authn_core::TokenVault::new(CachingTokenStore::new(store), keys);
/// # let _ = vault;
/// # }
/// ```
pub struct CachingTokenStore<S> {
    inner: Arc<S>,
    rows: Arc<Shared>,
    watcher: Arc<Watcher>,
}

impl<S: TokenStore> CachingTokenStore<S> {
    /// A cache over this store.
    pub fn new(inner: S) -> Self {
        Self {
            inner: Arc::new(inner),
            rows: Arc::new(Shared(Mutex::new(Rows::new(ROWS, BYTES)))),
            watcher: Arc::default(),
        }
    }

    /// The same with an empty cache of at most so many rows and so many bytes, keys and sealed tokens together.
    pub fn with_limits(self, rows: usize, bytes: usize) -> Self {
        Self {
            inner: self.inner,
            rows: Arc::new(Shared(Mutex::new(Rows::new(rows, bytes)))),
            watcher: Arc::default(),
        }
    }

    /// Follows the inner store's events from now on; does nothing if that is so already, or outside a runtime.
    fn watch(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut watcher = lock(&self.watcher.0);
        if watcher.as_ref().is_none_or(JoinHandle::is_finished) {
            *watcher = Some(runtime.spawn(follow(Arc::clone(&self.inner), Arc::clone(&self.rows))));
        }
    }

    /// Notes a write when it is dropped, so also one whose caller went away in the middle.
    fn writing<'a>(&'a self, key: Option<&'a TokenKey>) -> Writing<'a> {
        Writing {
            rows: &self.rows,
            key,
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: TokenStore> TokenStore for CachingTokenStore<S> {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        self.watch();
        let began = {
            let mut rows = self.rows.lock();
            if let Some(record) = rows.get(key) {
                return Ok(Some(record));
            }
            rows.now()
        };
        let loaded = self.inner.load(key).await?;
        if let Some(record) = &loaded {
            self.rows.lock().keep(key, record, began);
        }
        Ok(loaded)
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        // Dropped also after a conflict: what we have is then not what stands there.
        let _writing = self.writing(Some(key));
        self.inner.save(key, record, expected).await
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        let _writing = self.writing(Some(key));
        self.inner.delete(key).await
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        self.inner.list(principal).await
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        let _writing = self.writing(None);
        self.inner.purge(ended_before, limit).await
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        self.inner.scan(after, limit).await
    }

    /// Each event is told once the row that it is about is out of the cache.
    async fn events(&self) -> Result<LoginEvents> {
        let mut events = self.inner.events().await?;
        let rows = Arc::clone(&self.rows);
        let (sender, receiver) = mpsc::channel(UNREAD);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = sender.closed() => return,
                };
                rows.lock().changed(event.as_ref().unwrap_or(&LoginEvent::Gap));
                let Some(event) = event else { return };
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(LoginEvents::new(receiver))
    }
}

impl<S> Clone for CachingTokenStore<S> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            rows: Arc::clone(&self.rows),
            watcher: Arc::clone(&self.watcher),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for CachingTokenStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachingTokenStore")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// Keeps the cache true to the inner store's events, and empty while there are none.
async fn follow<S: TokenStore>(inner: Arc<S>, rows: Arc<Shared>) {
    loop {
        if let Ok(mut events) = inner.events().await {
            rows.lock().open();
            let _following = Following(&rows);
            while let Some(event) = events.next().await {
                rows.lock().changed(&event);
            }
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// Closes the cache when it is dropped, so also when a runtime ends and takes the task with it.
struct Following<'a>(&'a Shared);

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

#[derive(Debug)]
struct Shared(Mutex<Rows>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task that follows the events; it ends with the last clone.
#[derive(Default)]
struct Watcher(Mutex<Option<JoinHandle<()>>>);

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(watcher) = lock(&self.0).take() {
            watcher.abort();
        }
    }
}

struct Writing<'a> {
    rows: &'a Shared,
    key: Option<&'a TokenKey>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut rows = self.rows.lock();
        match self.key {
            Some(key) => rows.drop_row(key),
            None => rows.drop_all(),
        }
    }
}

/// A portal's users of a day, many times over.
const ROWS: usize = 10_000;
/// A row has 2 to 6 KB.
const BYTES: usize = 64 * 1024 * 1024;
/// Events that a slow receiver may be behind before the inner store has to count them as lost.
const UNREAD: usize = 256;
/// A store that is gone comes back within seconds or much later.
const RETRY_AFTER: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
