use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kube_authn_core::{ClientId, Error, ErrorKind, Issuer, KeyId, LoginId, Subject, TokenStore};
use tokio::sync::Notify;

use super::*;

/// A store with one row, whose loads are counted and may be held, and whose events the test makes.
#[derive(Debug, Default)]
struct Puppet {
    row: Mutex<Option<TokenRecord>>,
    loads: AtomicUsize,
    held: AtomicBool,
    go: Notify,
    deaf: AtomicBool,
    senders: Mutex<Vec<mpsc::Sender<LoginEvent>>>,
}

impl Puppet {
    fn put(&self, number: u64) {
        *lock(&self.row) = Some(record(number));
    }

    async fn tell(&self, event: LoginEvent) {
        let senders = lock(&self.senders).clone();
        for sender in senders {
            let _ = sender.send(event.clone()).await;
        }
    }
}

#[async_trait]
impl TokenStore for Puppet {
    async fn load(&self, _key: &TokenKey) -> Result<Option<TokenRecord>> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let row = lock(&self.row).clone();
        if self.held.load(Ordering::SeqCst) {
            self.go.notified().await;
        }
        Ok(row)
    }

    async fn save(&self, _key: &TokenKey, record: &TokenRecord, _expected: Expected) -> Result<()> {
        *lock(&self.row) = Some(record.clone());
        match record.revision.number {
            0 => Err(Error::new(ErrorKind::Conflict, "refused")),
            _ => Ok(()),
        }
    }

    async fn delete(&self, _key: &TokenKey) -> Result<bool> {
        Ok(lock(&self.row).take().is_some())
    }

    async fn list(&self, _principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        Ok(Vec::new())
    }

    async fn purge(&self, _ended_before: Timestamp, _limit: u32) -> Result<u32> {
        Ok(lock(&self.row).take().map_or(0, |_| 1))
    }

    async fn scan(&self, _after: Option<&TokenKey>, _limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        Ok(Vec::new())
    }

    async fn events(&self) -> Result<LoginEvents> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "down"));
        }
        let (sender, receiver) = mpsc::channel(8);
        lock(&self.senders).push(sender);
        Ok(LoginEvents::new(receiver))
    }
}

/// A cache that follows the events already, over a store with row 1.
async fn following() -> CachingTokenStore<Puppet> {
    let store = CachingTokenStore::new(Puppet::default());
    store.inner.put(1);
    store.watch();
    settled().await;
    store
}

/// Lets tasks that can go on do so: the runtime of a test has one thread.
async fn settled() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn number(store: &CachingTokenStore<Puppet>) -> Option<u64> {
    let row = store.load(&key("alice")).await.expect("loaded");
    row.map(|row| row.revision.number)
}

fn loads(store: &CachingTokenStore<Puppet>) -> usize {
    store.inner.loads.load(Ordering::SeqCst)
}

fn key(name: &str) -> TokenKey {
    TokenKey {
        principal: EntityRef::parse(&format!("user:default/{name}")).expect("a name"),
        issuer: Issuer::new("https://i/").expect("an issuer"),
        client_id: ClientId::new("c").expect("a client"),
    }
}

fn record(number: u64) -> TokenRecord {
    let subject = Subject::new("s").expect("a subject");
    TokenRecord {
        revision: revision(number),
        metadata: LoginMetadata::new(subject, Timestamp::MAX, true, Timestamp::UNIX_EPOCH),
        key_id: KeyId::new("k").expect("an id"),
        sealed: vec![7; 1_000].into(),
    }
}

fn revision(number: u64) -> Revision {
    Revision {
        login: LoginId::from_bytes([1; 16]),
        number,
    }
}

fn changed(name: &str) -> LoginEvent {
    LoginEvent::Changed {
        key: key(name),
        revision: revision(2),
    }
}

#[tokio::test]
async fn second_load_asks_nobody() {
    let store = following().await;

    assert_eq!(
        (number(&store).await, number(&store.clone()).await),
        (Some(1), Some(1))
    );

    assert_eq!(loads(&store), 1);
}

#[tokio::test]
async fn row_is_loaded_anew_after_whatever_may_have_changed_it() {
    let ended = LoginEvent::Ended {
        key: key("alice"),
        login: revision(1).login,
    };
    for event in [changed("alice"), ended, LoginEvent::Gap] {
        let store = following().await;
        number(&store).await;
        store.inner.put(2);

        store.inner.tell(event.clone()).await;
        settled().await;

        assert_eq!(number(&store).await, Some(2), "{event:?}");
    }
}

#[tokio::test]
async fn change_of_another_row_leaves_the_row_in_the_cache() {
    let store = following().await;
    number(&store).await;

    store.inner.tell(changed("bob")).await;
    settled().await;
    number(&store).await;

    assert_eq!(loads(&store), 1);
}

#[tokio::test]
async fn own_writes_are_seen_at_once() {
    let store = following().await;
    number(&store).await;

    store
        .save(&key("alice"), &record(2), Expected::Absent)
        .await
        .expect("saved");
    assert_eq!(number(&store).await, Some(2));
    store
        .save(&key("alice"), &record(0), Expected::Absent)
        .await
        .expect_err("a conflict");
    assert_eq!(number(&store).await, Some(0));
    assert!(store.delete(&key("alice")).await.expect("deleted"));
    assert_eq!(number(&store).await, None);
    store.inner.put(4);
    assert_eq!(number(&store).await, Some(4));
    store.purge(Timestamp::MAX, 1).await.expect("purged");
    assert_eq!(number(&store).await, None);
}

#[tokio::test]
async fn load_that_found_an_older_row_never_takes_the_place_of_a_newer_one() {
    let store = following().await;
    store.inner.held.store(true, Ordering::SeqCst);
    let early = tokio::spawn({
        let store = store.clone();
        async move { number(&store).await }
    });
    settled().await;

    // By another process: word of it is still on its way.
    store.inner.held.store(false, Ordering::SeqCst);
    store.inner.put(2);
    assert_eq!(number(&store).await, Some(2));
    store.inner.go.notify_waiters();

    assert_eq!(early.await.expect("joined"), Some(1));
    assert_eq!(number(&store).await, Some(2));
}

#[tokio::test]
async fn load_that_began_before_a_change_is_never_kept() {
    for own in [true, false] {
        let store = following().await;
        store.inner.held.store(true, Ordering::SeqCst);
        let early = tokio::spawn({
            let store = store.clone();
            async move { number(&store).await }
        });
        settled().await;

        match own {
            true => store
                .save(&key("alice"), &record(2), Expected::Absent)
                .await
                .expect("saved"),
            false => {
                store.inner.put(2);
                store.inner.tell(changed("alice")).await;
                settled().await;
            }
        }
        store.inner.held.store(false, Ordering::SeqCst);
        store.inner.go.notify_waiters();

        assert_eq!(early.await.expect("joined"), Some(1));
        assert_eq!(number(&store).await, Some(2), "{own}");
    }
}

#[tokio::test]
async fn nothing_is_kept_while_changes_are_not_told() {
    let store = CachingTokenStore::new(Puppet::default());
    store.inner.put(1);
    store.inner.deaf.store(true, Ordering::SeqCst);

    number(&store).await;
    number(&store).await;

    assert_eq!(loads(&store), 2);
}

#[tokio::test(start_paused = true)]
async fn broken_subscription_empties_the_cache_until_there_is_another() {
    let store = following().await;
    number(&store).await;

    store.inner.deaf.store(true, Ordering::SeqCst);
    lock(&store.inner.senders).clear();
    settled().await;
    number(&store).await;
    number(&store).await;
    assert_eq!(loads(&store), 3);

    store.inner.deaf.store(false, Ordering::SeqCst);
    tokio::time::sleep(2 * RETRY_AFTER).await;
    number(&store).await;
    number(&store).await;
    assert_eq!(loads(&store), 4);
}

#[test]
fn cache_never_serves_a_row_after_the_runtime_that_followed_the_events() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime")
    };
    let first = runtime();
    let store = first.block_on(following());
    assert_eq!(first.block_on(number(&store)), Some(1));
    drop(first);

    store.inner.put(2);

    assert_eq!(runtime().block_on(number(&store)), Some(2));
}

#[tokio::test]
async fn event_is_told_when_the_row_is_out_of_the_cache() {
    let store = following().await;
    let mut events = store.events().await.expect("subscribed");
    number(&store).await;
    store.inner.put(2);
    let told = lock(&store.inner.senders).pop().expect("the last subscription");

    told.send(changed("alice")).await.expect("told");
    assert_eq!(events.next().await, Some(changed("alice")));

    assert_eq!(
        number(&store).await,
        Some(2),
        "the cache's own subscription has heard nothing yet"
    );
}

#[test]
fn cache_never_holds_more_than_its_limits_and_keeps_what_is_used() {
    let row = record(1);
    for (max_rows, max_bytes) in [(10, usize::MAX), (usize::MAX, 10 * 2_000), (0, 0), (1, 1)] {
        let mut rows = Rows::new(max_rows, max_bytes);
        rows.open();
        for index in 0..100 {
            rows.keep(&key("used"), &row, rows.now());
            assert!(max_rows < 2 || rows.get(&key("used")).is_some());
            rows.keep(&key(&format!("u{index}")), &row, rows.now());
            let kept = (0..100)
                .filter(|index| rows.peek(&key(&format!("u{index}"))))
                .count();
            assert!(
                kept <= max_rows.min(max_bytes / 1_000),
                "{kept} of {max_rows}, {max_bytes}"
            );
        }
    }
}
