//! From columns to the family's types, the same in every SQL store.

use jiff::Timestamp;
use kube_authn_core::{
    ClientId, EntityRef, Error, ErrorKind, Issuer, KeyId, LoginId, LoginMetadata, RefreshMark, Result,
    Revision, Subject, TokenKey, TokenRecord,
};
use sqlx::Row;

/// A row of either database: the columns have the same names and, but for spelling, the same types.
pub(crate) trait Columns {
    fn text(&self, name: &'static str) -> Result<&str>;
    fn bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>>;
    fn integer(&self, name: &'static str) -> Result<Option<i64>>;
    fn flag(&self, name: &'static str) -> Result<bool>;
}

macro_rules! columns {
    ($feature:literal, $row:ty) => {
        #[cfg(feature = $feature)]
        impl Columns for $row {
            fn text(&self, name: &'static str) -> Result<&str> {
                self.try_get(name).map_err(foreign)
            }

            fn bytes(&self, name: &'static str) -> Result<Option<Vec<u8>>> {
                self.try_get(name).map_err(foreign)
            }

            fn integer(&self, name: &'static str) -> Result<Option<i64>> {
                self.try_get(name).map_err(foreign)
            }

            fn flag(&self, name: &'static str) -> Result<bool> {
                self.try_get(name).map_err(foreign)
            }
        }
    };
}

columns!("sqlite", sqlx::sqlite::SqliteRow);
columns!("postgres", sqlx::postgres::PgRow);

pub(crate) fn key(row: &impl Columns) -> Result<TokenKey> {
    Ok(TokenKey {
        principal: EntityRef::parse(row.text("principal")?).map_err(foreign)?,
        issuer: Issuer::new(row.text("issuer")?).map_err(foreign)?,
        client_id: ClientId::new(row.text("client_id")?).map_err(foreign)?,
    })
}

pub(crate) fn record(row: &impl Columns) -> Result<TokenRecord> {
    Ok(TokenRecord {
        revision: revision(row)?,
        metadata: metadata(row)?,
        key_id: KeyId::new(row.text("key_id")?).map_err(foreign)?,
        sealed: bytes(row, "sealed")?.into(),
    })
}

/// The rows behind this key, of the first page that has any of ours. `page` reads the rows behind a principal, an issuer and
/// a client.
pub(crate) async fn scan<R: Columns, P: Future<Output = Result<Vec<R>>>>(
    after: Option<&TokenKey>,
    page: impl Fn([String; 3]) -> P,
) -> Result<Vec<(TokenKey, TokenRecord)>> {
    // No principal is empty, so the empty key stands before every row.
    let mut after = after.map_or_else(Default::default, |key| {
        [
            key.principal.to_string(),
            key.issuer.to_string(),
            key.client_id.to_string(),
        ]
    });
    loop {
        let rows = page(after).await?;
        let Some(last) = rows.last() else {
            return Ok(Vec::new());
        };
        after = [
            last.text("principal")?.to_owned(),
            last.text("issuer")?.to_owned(),
            last.text("client_id")?.to_owned(),
        ];
        let ours: Vec<_> = rows.iter().filter_map(scanned).collect();
        if !ours.is_empty() {
            return Ok(ours);
        }
    }
}

/// One row of a scan. A row that none of us wrote stops nobody from scanning the others; loading it says what it is.
fn scanned(row: &impl Columns) -> Option<(TokenKey, TokenRecord)> {
    match key(row).and_then(|key| Ok((key, record(row)?))) {
        Ok(row) => Some(row),
        Err(error) => {
            tracing::warn!(%error, "left a row of the token store out of a scan");
            None
        }
    }
}

pub(crate) fn revision(row: &impl Columns) -> Result<Revision> {
    Ok(Revision {
        login: login_id(&bytes(row, "login")?)?,
        number: u64::try_from(integer(row, "number")?).map_err(foreign)?,
    })
}

pub(crate) fn metadata(row: &impl Columns) -> Result<LoginMetadata> {
    let mut metadata = LoginMetadata::new(
        Subject::new(row.text("subject")?).map_err(foreign)?,
        instant(integer(row, "expires_at")?)?,
        row.flag("refreshable")?,
        instant(integer(row, "created_at")?)?,
    );
    metadata.updated_at = instant(integer(row, "updated_at")?)?;
    metadata.refreshing = match (row.bytes("refreshing_owner")?, row.integer("refreshing_until")?) {
        (Some(owner), Some(until)) => Some(RefreshMark {
            owner: login_id(&owner)?,
            until: instant(until)?,
        }),
        _ => None,
    };
    Ok(metadata)
}

pub(crate) fn bytes(row: &impl Columns, name: &'static str) -> Result<Vec<u8>> {
    row.bytes(name)?.ok_or_else(|| foreign(Missing(name)))
}

fn integer(row: &impl Columns, name: &'static str) -> Result<i64> {
    row.integer(name)?.ok_or_else(|| foreign(Missing(name)))
}

pub(crate) fn login_id(bytes: &[u8]) -> Result<LoginId> {
    bytes.try_into().map(LoginId::from_bytes).map_err(foreign)
}

/// As `Timestamp::from_millisecond`, which refuses the last second that a timestamp can hold.
fn instant(millisecond: i64) -> Result<Timestamp> {
    let nanosecond = i32::try_from(millisecond % 1_000).map_err(foreign)? * 1_000_000;
    Timestamp::new(millisecond / 1_000, nanosecond).map_err(foreign)
}

pub(crate) fn number(revision: Revision) -> Result<i64> {
    i64::try_from(revision.number).map_err(|source| {
        Error::new(
            ErrorKind::Unexpected,
            "a login was written too often to be counted",
        )
        .with_source(source)
    })
}

/// A row that none of us wrote. The source says what was wrong and holds no value.
pub(crate) fn foreign(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        ErrorKind::RecordDamaged,
        "a row of the store is not as it was written: it was changed outside",
    )
    .with_source(source)
}

#[derive(Debug, thiserror::Error)]
#[error("the column {0} is empty")]
struct Missing(&'static str);
