//! How many logins there are, for metrics.

use super::{TokenVault, pin};
use crate::{Result, usable};

/// Stored logins by what they are good for. Unopened rows were counted: a damaged one counts like any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoginCount {
    /// The token for clusters can be sent.
    pub usable: u64,
    /// It has ended, and there is a refresh token.
    pub refreshable: u64,
    /// Its user has to log in again.
    pub ended: u64,
}

impl TokenVault {
    /// Counts the first `limit` logins of the store, in the order of their keys. First-use pins and notes of takeovers are
    /// none.
    ///
    /// # Errors
    /// As [`TokenStore::scan`](crate::TokenStore::scan).
    pub async fn count(&self, limit: u32) -> Result<LoginCount> {
        let now = self.0.clock.now();
        let mut count = LoginCount::default();
        let mut after = None;
        let mut left = limit;
        while left > 0 {
            let page = self.0.store.scan(after.as_ref(), left.min(PAGE)).await?;
            let Some((last, _)) = page.last() else {
                break;
            };
            after = Some(pin::passed(last)?);
            for (key, record) in &page {
                if key.principal.kind() == pin::KIND {
                    continue;
                }
                left = left.saturating_sub(1);
                match usable(record.metadata.expires_at, now) {
                    true => count.usable += 1,
                    false if record.metadata.refreshable => count.refreshable += 1,
                    false => count.ended += 1,
                }
            }
        }
        Ok(count)
    }
}

/// Rows in memory at once, at some two KiB each.
const PAGE: u32 = 500;
