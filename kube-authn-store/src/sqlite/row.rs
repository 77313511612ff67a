//! From columns to the family's types.

use jiff::Timestamp;
use kube_authn_core::{
    ClientId, EntityRef, Error, ErrorKind, Issuer, KeyId, LoginId, LoginMetadata, RefreshMark, Result,
    Revision, Subject, TokenKey, TokenRecord,
};
use sqlx::{Row, sqlite::SqliteRow};

pub(super) fn key(row: &SqliteRow) -> Result<TokenKey> {
    Ok(TokenKey {
        principal: EntityRef::parse(text(row, "principal")?).map_err(foreign)?,
        issuer: Issuer::new(text(row, "issuer")?).map_err(foreign)?,
        client_id: ClientId::new(text(row, "client_id")?).map_err(foreign)?,
    })
}

pub(super) fn record(row: &SqliteRow) -> Result<TokenRecord> {
    Ok(TokenRecord {
        revision: revision(row)?,
        metadata: metadata(row)?,
        key_id: KeyId::new(text(row, "key_id")?).map_err(foreign)?,
        sealed: column::<Vec<u8>>(row, "sealed")?.into(),
    })
}

pub(super) fn revision(row: &SqliteRow) -> Result<Revision> {
    Ok(Revision {
        login: login_id(&column::<Vec<u8>>(row, "login")?)?,
        number: u64::try_from(column::<i64>(row, "number")?).map_err(foreign)?,
    })
}

pub(super) fn metadata(row: &SqliteRow) -> Result<LoginMetadata> {
    let mut metadata = LoginMetadata::new(
        Subject::new(text(row, "subject")?).map_err(foreign)?,
        instant(column(row, "expires_at")?)?,
        column(row, "refreshable")?,
        instant(column(row, "created_at")?)?,
    );
    metadata.updated_at = instant(column(row, "updated_at")?)?;
    let owner: Option<Vec<u8>> = column(row, "refreshing_owner")?;
    let until: Option<i64> = column(row, "refreshing_until")?;
    metadata.refreshing = match (owner, until) {
        (Some(owner), Some(until)) => Some(RefreshMark {
            owner: login_id(&owner)?,
            until: instant(until)?,
        }),
        _ => None,
    };
    Ok(metadata)
}

fn text<'r>(row: &'r SqliteRow, name: &'static str) -> Result<&'r str> {
    column(row, name)
}

pub(super) fn column<'r, T>(row: &'r SqliteRow, name: &'static str) -> Result<T>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(name).map_err(foreign)
}

pub(super) fn login_id(bytes: &[u8]) -> Result<LoginId> {
    bytes.try_into().map(LoginId::from_bytes).map_err(foreign)
}

/// As `Timestamp::from_millisecond`, which refuses the last second that a timestamp can hold.
fn instant(millisecond: i64) -> Result<Timestamp> {
    let nanosecond = i32::try_from(millisecond % 1_000).map_err(foreign)? * 1_000_000;
    Timestamp::new(millisecond / 1_000, nanosecond).map_err(foreign)
}

pub(super) fn number(revision: Revision) -> Result<i64> {
    i64::try_from(revision.number).map_err(|source| {
        Error::new(
            ErrorKind::Unexpected,
            "a login was written too often to be counted",
        )
        .with_source(source)
    })
}

/// A row that none of us wrote. The source says what was wrong and holds no value.
pub(super) fn foreign(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        ErrorKind::RecordDamaged,
        "a row of the store is not as it was written: it was changed outside",
    )
    .with_source(source)
}
