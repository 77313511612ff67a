//! Which key protects which rows, and writing rows anew under the newest key.

use std::{collections::BTreeMap, ops::AddAssign, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use tokio::task::{JoinError, JoinSet};

use super::{ATTEMPTS, Inner, TokenVault, row};
use crate::{Error, ErrorKind, Expected, KeyId, Result, Sealer, TokenKey, TokenRecord};

/// What a store holds of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyRows {
    /// Rows that name this key.
    pub rows: u64,
    /// Whether one of them opens. If none does, the key is not there, or it is another one of that name.
    pub opens: bool,
}

/// What came of writing rows under the newest key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rekeyed {
    /// Rows that were written under the newest key, or would be.
    pub rewritten: u64,
    /// Rows that the newest key protects already.
    pub current: u64,
    /// Rows that somebody is refreshing: to be tried again later.
    pub busy: u64,
    /// Rows that do not open: their key is not in the ring, or they were changed outside. They stay as they are.
    pub damaged: u64,
    /// Rows whose key is lost for good. They stay as they are until somebody's new login takes their place.
    pub lost: u64,
}

impl AddAssign for Rekeyed {
    fn add_assign(&mut self, other: Self) {
        self.rewritten += other.rewritten;
        self.current += other.current;
        self.busy += other.busy;
        self.damaged += other.damaged;
        self.lost += other.lost;
    }
}

impl Rekeyed {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Rewritten => self.rewritten += 1,
            Outcome::Current => self.current += 1,
            Outcome::Busy => self.busy += 1,
            Outcome::Damaged => self.damaged += 1,
            Outcome::Lost => self.lost += 1,
            Outcome::Gone => {}
        }
    }
}

/// What happened to one row.
#[derive(Clone, Copy)]
enum Outcome {
    Rewritten,
    Current,
    Busy,
    Damaged,
    Lost,
    /// It was deleted meanwhile.
    Gone,
}

impl TokenVault {
    /// The same logins, and how they live, with other keys.
    pub fn with_sealer(self, sealer: impl Sealer) -> Self {
        Self(Arc::new(Inner {
            store: Arc::clone(&self.0.store),
            sealer: Arc::new(sealer),
            clock: Arc::clone(&self.0.clock),
            live: Arc::clone(&self.0.live),
        }))
    }

    /// How many rows each key protects, first-use pins included, and whether they open. Reads the whole store, a page at a
    /// time, and opens rows of a key until one opens.
    ///
    /// # Errors
    /// As [`TokenStore::scan`](crate::TokenStore::scan).
    pub async fn rows_by_key(&self) -> Result<BTreeMap<KeyId, KeyRows>> {
        let mut keys: BTreeMap<KeyId, KeyRows> = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.0.store.scan(after.as_ref(), PAGE).await?;
            let Some((last, _)) = page.last() else {
                return Ok(keys);
            };
            after = Some(last.clone());
            for (key, record) in &page {
                let of_key = keys.entry(record.key_id.clone()).or_default();
                of_key.rows += 1;
                // Nobody asked for the login, so damage is no event.
                of_key.opens = of_key.opens || row::open(&*self.0.sealer, key, record).is_ok();
            }
        }
    }

    /// Writes the rows of one page under the newest key, logins and first-use pins: the first page, or the one behind a
    /// key. Says what came of it, and behind which key the next page begins; `None` if there is none. With `dry_run`
    /// nothing is written.
    ///
    /// No login ends by it: its tokens, handle and metadata stay, only its revision is the next one. A row that a refresh
    /// holds is left alone, since the refresh could not save what it got. Running it again does what is left to do. Eight
    /// rows are on their way to the store at a time, each in a save of its own. To be called in a tokio runtime.
    ///
    /// # Errors
    /// As [`TokenStore::scan`](crate::TokenStore::scan) and [`TokenStore::save`](crate::TokenStore::save): the first one,
    /// after which no other row of the page is begun. Rows that were written stay written.
    pub async fn rekey(
        &self,
        after: Option<&TokenKey>,
        dry_run: bool,
    ) -> Result<(Rekeyed, Option<TokenKey>)> {
        let newest = self.newest_key()?;
        let page = self.0.store.scan(after, PAGE).await?;
        let next = page.last().map(|(key, _)| key.clone());
        let done = self.rekey_page(page, &newest, dry_run).await?;
        Ok((done, next))
    }

    async fn rekey_page(
        &self,
        page: Vec<(TokenKey, TokenRecord)>,
        newest: &KeyId,
        dry_run: bool,
    ) -> Result<Rekeyed> {
        let mut done = Rekeyed::default();
        let mut failed = None;
        let mut rows = page.into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < AT_ONCE
                && failed.is_none()
                && let Some((key, record)) = rows.next()
            {
                let (vault, newest) = (self.clone(), newest.clone());
                running.spawn(async move { vault.rekey_row(&key, record, &newest, dry_run).await });
            }
            match running.join_next().await {
                Some(Ok(Ok(outcome))) => done.count(outcome),
                Some(Ok(Err(error))) => failed = failed.or(Some(error)),
                Some(Err(source)) => failed = failed.or_else(|| Some(broke_off(source))),
                None => return failed.map_or(Ok(done), Err),
            }
        }
    }

    pub(super) fn is_lost(&self, record: &TokenRecord) -> bool {
        self.0.sealer.is_lost(&record.key_id)
    }

    /// The key that seals now.
    fn newest_key(&self) -> Result<KeyId> {
        self.0.sealer.seal(&[], &[]).map(|(id, _)| id)
    }

    async fn rekey_row(
        &self,
        key: &TokenKey,
        mut record: TokenRecord,
        newest: &KeyId,
        dry_run: bool,
    ) -> Result<Outcome> {
        for _ in 0..ATTEMPTS {
            if record.key_id == *newest {
                return Ok(Outcome::Current);
            }
            if self.is_lost(&record) {
                return Ok(Outcome::Lost);
            }
            if is_held(&record, self.0.clock.now()) {
                return Ok(Outcome::Busy);
            }
            let Ok((tokens, extra)) = self.open(key, &record) else {
                return Ok(Outcome::Damaged);
            };
            if dry_run {
                return Ok(Outcome::Rewritten);
            }
            let revision = record.revision.next();
            let metadata = record.metadata.clone();
            let anew = row::seal(&*self.0.sealer, key, revision, metadata, &tokens, &extra)?;
            let expected = Expected::At(record.revision);
            match self.0.store.save(key, &anew, expected).await {
                Ok(()) => {
                    self.0.live.rekeyed(revision);
                    return Ok(Outcome::Rewritten);
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
            record = match self.0.store.load(key).await {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(Outcome::Gone),
                Err(error) if error.kind() == ErrorKind::RecordDamaged => return Ok(Outcome::Damaged),
                Err(error) => return Err(error),
            };
        }
        // Whoever keeps writing it writes it under the newest key before long.
        Ok(Outcome::Busy)
    }
}

/// Whether a refresh may still want to write the row: its mark names the revision that it has to find there.
fn is_held(record: &TokenRecord, now: Timestamp) -> bool {
    let mark = record.metadata.refreshing.as_ref();
    mark.is_some_and(|mark| mark.until.saturating_add(LATE_SAVE).is_ok_and(|end| end > now))
}

fn broke_off(source: JoinError) -> Error {
    let what = "could not write a login under the newest key: the task broke off, run it again";
    Error::new(ErrorKind::Unexpected, what).with_source(source)
}

/// Rows in memory at once, at some two KiB each.
const PAGE: u32 = 500;
/// A call to the issuer ends by its mark's deadline, and saving what it gave takes a few seconds more at worst.
const LATE_SAVE: SignedDuration = SignedDuration::from_secs(60);
/// Saves wait for the network and the disk together; fewer than a store's connections, so that logins are not kept waiting.
const AT_ONCE: usize = 8;
