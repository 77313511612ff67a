//! All logins, a page at a time, for whoever looks after them.

use super::{TokenVault, pin};
use crate::{KeyId, LoginMetadata, Result, Revision, TokenKey};

/// What the store says of a login, unopened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredLogin {
    /// Whose login, at which issuer, for which client.
    pub key: TokenKey,
    /// Which state of which login.
    pub revision: Revision,
    /// Subject, end, and whether it can be or is being refreshed.
    pub metadata: LoginMetadata,
    /// The key that protects it.
    pub key_id: KeyId,
}

impl TokenVault {
    /// The next logins behind this key, in ascending order, at most `limit`; none: there are no more. First-use pins are
    /// left out.
    ///
    /// # Errors
    /// As [`TokenStore::scan`](crate::TokenStore::scan).
    pub async fn logins(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<StoredLogin>> {
        let mut after = after.cloned();
        loop {
            let page = self.0.store.scan(after.as_ref(), limit).await?;
            let Some((last, _)) = page.last() else {
                return Ok(Vec::new());
            };
            after = Some(pin::passed(last)?);
            let logins: Vec<_> = page
                .into_iter()
                .filter(|(key, _)| key.principal.kind() != pin::KIND)
                .map(|(key, record)| StoredLogin {
                    key,
                    revision: record.revision,
                    metadata: record.metadata,
                    key_id: record.key_id,
                })
                .collect();
            if !logins.is_empty() {
                return Ok(logins);
            }
        }
    }
}
