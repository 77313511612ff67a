//! A store whose timing and events a check decides.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};

use crate::{
    EntityRef, Error, ErrorKind, Expected, LoginEvent, LoginEvents, LoginMetadata, Result, Revision,
    TokenKey, TokenRecord, TokenStore, async_trait,
};

/// Passes every call on, but tells only what it is told to tell, holds loads back after they have read, or is out of
/// reach. Clones share the strings.
#[derive(Clone, Debug)]
pub(super) struct PuppetStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn TokenStore>,
    subscriber: Mutex<Option<mpsc::Sender<LoginEvent>>>,
    subscribed: Semaphore,
    hold: AtomicBool,
    held: Semaphore,
    released: Semaphore,
    unreachable: AtomicBool,
    lose_answer: AtomicBool,
    loads: AtomicUsize,
}

impl PuppetStore {
    pub(super) fn new(store: Arc<dyn TokenStore>) -> Self {
        Self(Arc::new(Inner {
            store,
            subscriber: Mutex::new(None),
            subscribed: Semaphore::new(0),
            hold: AtomicBool::new(false),
            held: Semaphore::new(0),
            released: Semaphore::new(0),
            unreachable: AtomicBool::new(false),
            lose_answer: AtomicBool::new(false),
            loads: AtomicUsize::new(0),
        }))
    }

    /// Holds the next load back once it has read its row.
    pub(super) fn hold_next_load(&self) {
        self.0.hold.store(true, Ordering::SeqCst);
    }

    /// How often it was asked for a row.
    pub(super) fn loads(&self) -> usize {
        self.0.loads.load(Ordering::SeqCst)
    }

    /// Returns when a load is held back.
    pub(super) async fn load_is_held(&self) {
        if let Ok(permit) = self.0.held.acquire().await {
            permit.forget();
        }
    }

    pub(super) fn release_load(&self) {
        self.0.released.add_permits(1);
    }

    pub(super) fn set_unreachable(&self, unreachable: bool) {
        self.0.unreachable.store(unreachable, Ordering::SeqCst);
    }

    /// Writes what the next save brings, and says that it is out of reach.
    pub(super) fn lose_next_answer(&self) {
        self.0.lose_answer.store(true, Ordering::SeqCst);
    }

    /// Tells the subscriber, once there is one.
    pub(super) async fn tell(&self, event: LoginEvent) {
        if let Some(subscriber) = self.subscriber().await {
            let _ = subscriber.send(event).await;
        }
    }

    /// Returns when there is a subscriber.
    pub(super) async fn is_subscribed(&self) {
        self.subscriber().await;
    }

    /// Returns when the subscriber is gone.
    pub(super) async fn subscriber_is_gone(&self) {
        if let Some(subscriber) = self.subscriber().await {
            subscriber.closed().await;
        }
    }

    async fn subscriber(&self) -> Option<mpsc::Sender<LoginEvent>> {
        let _permit = self.0.subscribed.acquire().await;
        self.0
            .subscriber
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn reach(&self) -> Result<&dyn TokenStore> {
        match self.0.unreachable.load(Ordering::SeqCst) {
            true => Err(out_of_reach()),
            false => Ok(&*self.0.store),
        }
    }
}

#[async_trait]
impl TokenStore for PuppetStore {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        self.0.loads.fetch_add(1, Ordering::SeqCst);
        let record = self.reach()?.load(key).await;
        if self.0.hold.swap(false, Ordering::SeqCst) {
            self.0.held.add_permits(1);
            if let Ok(permit) = self.0.released.acquire().await {
                permit.forget();
            }
        }
        record
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        self.reach()?.save(key, record, expected).await?;
        match self.0.lose_answer.swap(false, Ordering::SeqCst) {
            true => Err(out_of_reach()),
            false => Ok(()),
        }
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        self.reach()?.delete(key).await
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        self.reach()?.list(principal).await
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        self.reach()?.purge(ended_before, limit).await
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        self.reach()?.scan(after, limit).await
    }

    async fn events(&self) -> Result<LoginEvents> {
        let (sender, receiver) = mpsc::channel(16);
        *self.0.subscriber.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        self.0.subscribed.add_permits(1);
        Ok(LoginEvents::new(receiver))
    }
}

fn out_of_reach() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is out of reach")
}
