//! Keys and rows that the checks of stores use.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use crate::{
    ClientId, EntityRef, ErrorKind, Issuer, KeyId, LoginId, LoginMetadata, Result, Revision, Subject,
    TokenKey, TokenRecord,
};

#[track_caller]
pub(super) fn held<T>(line: u8, result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("line {line}: {error} ({error:?})"),
    }
}

#[track_caller]
pub(super) fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("a task of the check failed: {error}"),
    }
}

#[track_caller]
pub(super) fn conflict(what: &str, result: Result<()>) {
    match result {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "line 3: {what}"),
        Ok(()) => panic!("line 3: saved although it expected {what}"),
    }
}

pub(super) fn alice() -> TokenKey {
    key("alice", "https://issuer.example.com/", "kubernetes")
}

/// Keys that differ in one character of one part, among them all that a store might use to join, quote or match.
pub(super) fn near_equal_keys() -> Vec<TokenKey> {
    let names = [
        "alice", "alic", "alice.", "alice%", "alice_", "alice*", "alice?", "al[i]ce", "alice'", "alice\"",
        "alice\\", "alice;--", "{alice}", "a|lice",
    ];
    let issuers = [
        "https://i/",
        "https://i",
        "https://i/%",
        "https://i/*",
        "https://i/a:b",
    ];
    let clients = [
        "c", "C", "c ", "c:d", "c*", "c%", "c_", "c\\", "c'", "c\"", "c/d", "c,d", "c|d",
    ];
    names
        .map(|name| key(name, issuers[0], clients[0]))
        .into_iter()
        .chain(
            issuers[1..]
                .iter()
                .map(|issuer| key(names[0], issuer, clients[0])),
        )
        .chain(
            clients[1..]
                .iter()
                .map(|client| key(names[0], issuers[0], client)),
        )
        .collect()
}

pub(super) fn key(name: &str, issuer: &str, client: &str) -> TokenKey {
    let parts = (Issuer::new(issuer), ClientId::new(client));
    match parts {
        (Ok(issuer), Ok(client_id)) => TokenKey {
            principal: entity(&format!("user:default/{name}")),
            issuer,
            client_id,
        },
        parts => panic!("the check has an impossible key: {parts:?}"),
    }
}

pub(super) fn entity(text: &str) -> EntityRef {
    match EntityRef::parse(text) {
        Ok(entity) => entity,
        Err(error) => panic!("the check has an impossible name: {error}"),
    }
}

pub(super) fn at(millisecond: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH
        .checked_add(SignedDuration::from_millis(millisecond))
        .unwrap_or(Timestamp::MAX)
}

pub(super) fn numbered(index: usize) -> TokenRecord {
    record(1, index as u64 + 1)
}

/// A record whose every part tells which one it is.
pub(super) fn record(login: u8, number: u64) -> TokenRecord {
    let (subject, key_id) = (Subject::new(format!("subject {number}")), KeyId::new("key-1"));
    let (Ok(subject), Ok(key_id)) = (subject, key_id) else {
        panic!("the check has an impossible record");
    };
    let instant = at(1_800_000_000_000 + i64::from(login) * 1_000 + number.min(1_000_000) as i64);
    let mut metadata = LoginMetadata::new(subject, instant, true, at(1_600_000_000_001));
    metadata.updated_at = at(1_600_000_000_777);
    TokenRecord {
        revision: Revision {
            login: LoginId::from_bytes([login; 16]),
            number,
        },
        metadata,
        key_id,
        sealed: Bytes::from(number.to_be_bytes().repeat(150)),
    }
}
