//! Between the family's types and what stands in Redis.

use ::redis::ScriptInvocation;
use jiff::Timestamp;
use kube_authn_core::{
    ClientId, EntityRef, Error, ErrorKind, Issuer, KeyId, LoginId, LoginMetadata, RefreshMark, Result,
    Revision, Subject, TokenKey, TokenRecord,
};

use super::error::DAMAGED;

/// The names that a store has in Redis. The prefix in braces is their hash tag: in a cluster all of them are in one slot
/// (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>).
#[derive(Debug)]
pub(super) struct Keys {
    /// Before the member of a row in its key.
    pub(super) rows: String,
    /// Sorted set of all members, by name.
    pub(super) members: String,
    /// Sorted set of all members, by the instant from which on a purge takes them.
    pub(super) ends: String,
    /// The channel of changes.
    pub(super) events: String,
    /// Version of what is described here.
    pub(super) layout: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        let name = |name: &str| format!("{{{prefix}}}:{name}");
        Self {
            rows: name("login:"),
            members: name("logins"),
            ends: name("ends"),
            events: name("events"),
            layout: name("layout"),
        }
    }

    pub(super) fn row(&self, member: &[u8]) -> Vec<u8> {
        [self.rows.as_bytes(), member].concat()
    }
}

/// The fields of a row, in the order in which they are read and written. `sealed` is last: metadata is what stands before it.
pub(super) const FIELDS: [&str; 11] = [
    "login",
    "number",
    "subject",
    "expires_at",
    "refreshable",
    "refreshing_owner",
    "refreshing_until",
    "created_at",
    "updated_at",
    "key_id",
    "sealed",
];
/// Those of them that [`metadata`] needs.
pub(super) const METADATA_FIELDS: usize = 9;

/// What Redis gave for the fields that were asked for.
pub(super) type Values = Vec<Option<Vec<u8>>>;

/// A key as one member of an index: its parts, each ended by NUL, a NUL inside escaped as `00 FF`. Members are equal only
/// if all parts are, and stand in the order of keys, since a part never begins with `FF` (it is UTF-8).
pub(super) fn member(key: &TokenKey) -> Vec<u8> {
    let mut member = principal_part(&key.principal);
    push(&mut member, key.issuer.as_str());
    push(&mut member, key.client_id.as_str());
    member
}

/// What all members of this principal begin with, and nobody else's.
pub(super) fn principal_part(principal: &EntityRef) -> Vec<u8> {
    let mut part = Vec::with_capacity(128);
    push(&mut part, principal.as_str());
    part
}

fn push(member: &mut Vec<u8>, part: &str) {
    for byte in part.bytes() {
        member.push(byte);
        if byte == 0 {
            member.push(0xff);
        }
    }
    member.push(0);
}

/// The key that a member was made of.
pub(super) fn key(member: &[u8]) -> Result<TokenKey> {
    let mut parts = [const { Vec::new() }; 3];
    let mut bytes = member.iter().copied().peekable();
    for part in &mut parts {
        loop {
            match (bytes.next(), bytes.peek()) {
                (Some(0), Some(0xff)) => {
                    bytes.next();
                    part.push(0);
                }
                (Some(0), _) => break,
                (Some(byte), _) => part.push(byte),
                (None, _) => return Err(Wrong::Key.into()),
            }
        }
    }
    if bytes.next().is_some() {
        return Err(Wrong::Key.into());
    }
    let [principal, issuer, client_id] = parts;
    Ok(TokenKey {
        principal: EntityRef::parse(text(&principal)?).map_err(foreign)?,
        issuer: Issuer::new(text(&issuer)?).map_err(foreign)?,
        client_id: ClientId::new(text(&client_id)?).map_err(foreign)?,
    })
}

/// Adds fields and values as arguments.
pub(super) fn push_fields(record: &TokenRecord, script: &mut ScriptInvocation<'_>) {
    let metadata = &record.metadata;
    let mark = metadata.refreshing.as_ref();
    let owner: &[u8] = mark.map_or(&[], |mark| mark.owner.as_bytes());
    let until = mark.map_or_else(String::new, |mark| mark.until.as_millisecond().to_string());
    let [
        login,
        number,
        subject,
        expires_at,
        refreshable,
        refreshing_owner,
        ..,
    ] = FIELDS;
    let [.., refreshing_until, created_at, updated_at, key_id, sealed] = FIELDS;
    script
        .arg(login)
        .arg(&record.revision.login.as_bytes()[..])
        .arg(number)
        .arg(record.revision.number)
        .arg(subject)
        .arg(metadata.subject.as_str())
        .arg(expires_at)
        .arg(metadata.expires_at.as_millisecond())
        .arg(refreshable)
        .arg(u8::from(metadata.refreshable))
        .arg(refreshing_owner)
        .arg(owner)
        .arg(refreshing_until)
        .arg(until)
        .arg(created_at)
        .arg(metadata.created_at.as_millisecond())
        .arg(updated_at)
        .arg(metadata.updated_at.as_millisecond())
        .arg(key_id)
        .arg(record.key_id.as_str())
        .arg(sealed)
        .arg(&record.sealed[..]);
}

/// A purge takes the row if this lies before its instant: then the login has ended, and no mark runs any more.
pub(super) fn purgeable_from(metadata: &LoginMetadata) -> i64 {
    let end = metadata.expires_at.as_millisecond();
    match &metadata.refreshing {
        Some(mark) => end.max(mark.until.as_millisecond().saturating_sub(1)),
        None => end,
    }
}

/// A whole row; `None` if nothing stands there.
pub(super) fn record(mut values: Values) -> Result<Option<TokenRecord>> {
    if is_absent(&values) {
        return Ok(None);
    }
    if values.len() != FIELDS.len() {
        return Err(Wrong::Fields.into());
    }
    let sealed = values.pop().flatten().ok_or(Wrong::Fields)?;
    Ok(Some(TokenRecord {
        revision: revision(&values)?,
        metadata: metadata(&values)?,
        key_id: KeyId::new(text(field(&values, METADATA_FIELDS)?)?).map_err(foreign)?,
        sealed: sealed.into(),
    }))
}

/// Whether there is nothing at all: half a row is a damaged one.
pub(super) fn is_absent(values: &Values) -> bool {
    !values.is_empty() && values.iter().all(Option::is_none)
}

pub(super) fn revision(values: &Values) -> Result<Revision> {
    Ok(Revision {
        login: login_id(field(values, 0)?)?,
        number: parsed(field(values, 1)?)?,
    })
}

pub(super) fn metadata(values: &Values) -> Result<LoginMetadata> {
    let refreshable = match field(values, 4)? {
        b"0" => false,
        b"1" => true,
        _ => return Err(Wrong::Value.into()),
    };
    let mut metadata = LoginMetadata::new(
        Subject::new(text(field(values, 2)?)?).map_err(foreign)?,
        instant(field(values, 3)?)?,
        refreshable,
        instant(field(values, 7)?)?,
    );
    metadata.updated_at = instant(field(values, 8)?)?;
    metadata.refreshing = match (field(values, 5)?, field(values, 6)?) {
        (b"", b"") => None,
        (owner, until) => Some(RefreshMark {
            owner: login_id(owner)?,
            until: instant(until)?,
        }),
    };
    Ok(metadata)
}

fn field(values: &Values, index: usize) -> Result<&[u8]> {
    values
        .get(index)
        .and_then(Option::as_deref)
        .ok_or_else(|| Wrong::Fields.into())
}

pub(super) fn login_id(bytes: &[u8]) -> Result<LoginId> {
    bytes.try_into().map(LoginId::from_bytes).map_err(foreign)
}

/// As `Timestamp::from_millisecond`, which refuses the last second that a timestamp can hold.
fn instant(bytes: &[u8]) -> Result<Timestamp> {
    let millisecond: i64 = parsed(bytes)?;
    let nanosecond = i32::try_from(millisecond % 1_000).map_err(foreign)? * 1_000_000;
    Timestamp::new(millisecond / 1_000, nanosecond).map_err(foreign)
}

/// A number as it was written: nothing that only means the same passes for it.
pub(super) fn parsed<N>(bytes: &[u8]) -> Result<N>
where
    N: std::str::FromStr<Err = std::num::ParseIntError> + ToString,
{
    let text = text(bytes)?;
    let number: N = text.parse().map_err(foreign)?;
    match number.to_string() == text {
        true => Ok(number),
        false => Err(Wrong::Value.into()),
    }
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(foreign)
}

/// A row that none of us wrote. The source says what was wrong and holds no value.
fn foreign(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::RecordDamaged, DAMAGED).with_source(source)
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Wrong {
    #[error("not the key of a login")]
    Key,
    #[error("fields are missing")]
    Fields,
    #[error("a value of another form")]
    Value,
}

impl From<Wrong> for Error {
    fn from(wrong: Wrong) -> Self {
        foreign(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(principal: &str, issuer: &str, client: &str) -> TokenKey {
        TokenKey {
            principal: EntityRef::parse(principal).expect("a reference"),
            issuer: Issuer::new(issuer).expect("an issuer"),
            client_id: ClientId::new(client).expect("a client"),
        }
    }

    #[test]
    fn member_gives_its_key_back_and_keeps_the_order_of_keys() {
        let mut keys = Vec::new();
        for principal in [
            "user:default/a",
            "user:default/a!",
            "user:default/ab",
            "user:default/{a}",
        ] {
            for issuer in ["https://i", "https://i/", "https://i/*", "https://i/a:b"] {
                for client in ["a", "a b", "~", "A", "*"] {
                    keys.push(key_of(principal, issuer, client));
                }
            }
        }
        let mut members: Vec<_> = keys.iter().map(member).collect();

        for (key, member) in keys.iter().zip(&members) {
            assert_eq!(&super::key(member).expect("a key"), key);
            assert!(member.starts_with(&principal_part(&key.principal)));
        }
        keys.sort();
        members.sort();
        assert_eq!(members, keys.iter().map(member).collect::<Vec<_>>());
    }

    #[test]
    fn nul_inside_a_part_meets_no_other_key() {
        let mut inside = Vec::new();
        push(&mut inside, "a\0b");
        let mut between = Vec::new();
        push(&mut between, "a");
        push(&mut between, "b");

        assert_eq!(inside, b"a\0\xffb\0");
        assert_ne!(inside, between);
    }

    #[test]
    fn member_that_is_none_of_ours_is_damaged() {
        for member in [
            &b""[..],
            b"user:default/a\0https://i\0c",
            b"user:default/a\0https://i\0c\0more",
            b"nobody\0https://i\0c\0",
            b"user:default/a\0\xfe\0c\0",
        ] {
            let error = key(member).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::RecordDamaged, "{member:?}");
        }
    }

    #[test]
    fn number_written_in_another_way_is_damaged() {
        assert_eq!(parsed::<u64>(b"7").expect("a number"), 7);
        for other in [&b"07"[..], b"+7", b" 7", b"7 ", b"", b"-7", b"7.0"] {
            assert!(parsed::<u64>(other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn half_a_row_is_damaged_and_none_is_absent() {
        let mut half: Values = vec![Some(b"x".to_vec()); FIELDS.len()];
        half[3] = None;

        assert_eq!(record(vec![None; FIELDS.len()]).expect("nothing"), None);
        for values in [half, vec![], vec![Some(vec![0; 16])]] {
            let error = record(values).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::RecordDamaged);
        }
    }
}
