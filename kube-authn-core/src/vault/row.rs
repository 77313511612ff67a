//! From tokens to a row and back: what a row is bound to, and how tokens are written down before they are sealed.

use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::{
    Error, ErrorKind, Issuer, LoginMetadata, Result, Revision, Sealer, Secret, Subject, Token, TokenKey,
    TokenRecord, TokenSet,
};

/// What is sealed in a row beside the tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extra {
    /// When the issuer made the tokens (`iat`).
    pub(super) issued_at: Option<Timestamp>,
    /// Set once a stale refresh mark was taken over: the refresh token may be spent, and this is the one attempt.
    pub(super) retried: bool,
    /// Whom the caller's own token named that brought the login, and who issued it.
    pub(super) owner: Option<(Issuer, Subject)>,
    /// Fields of a newer version of ours, written back as they were read.
    pub(super) unknown: Vec<(u8, Secret)>,
}

/// Seals the tokens into the row of this key, revision and metadata.
pub(super) fn seal(
    sealer: &dyn Sealer,
    key: &TokenKey,
    revision: Revision,
    metadata: LoginMetadata,
    tokens: &TokenSet,
    extra: &Extra,
) -> Result<TokenRecord> {
    let metadata = to_milliseconds(metadata);
    let (key_id, sealed) = sealer.seal(&bound_to(key, revision, &metadata), &encode(tokens, extra))?;
    Ok(TokenRecord {
        revision,
        metadata,
        key_id,
        sealed,
    })
}

/// Opens a row that was found under this key.
///
/// # Errors
/// `RecordDamaged` if anything in it is not what was sealed there.
pub(super) fn open(sealer: &dyn Sealer, key: &TokenKey, record: &TokenRecord) -> Result<(TokenSet, Extra)> {
    let bound_to = bound_to(key, record.revision, &record.metadata);
    let plain = sealer.open(&record.key_id, &bound_to, &record.sealed)?;
    decode(plain.expose()).ok_or_else(damaged)
}

pub(super) fn damaged() -> Error {
    Error::new(
        ErrorKind::RecordDamaged,
        "the stored login does not open: its row was moved, edited or put back; log in again to replace it",
    )
}

/// Stores keep milliseconds, so nothing finer may be sealed.
fn to_milliseconds(mut metadata: LoginMetadata) -> LoginMetadata {
    let cut = |instant: &mut Timestamp| *instant = whole_milliseconds(*instant);
    cut(&mut metadata.expires_at);
    cut(&mut metadata.created_at);
    cut(&mut metadata.updated_at);
    if let Some(mark) = &mut metadata.refreshing {
        cut(&mut mark.until);
    }
    metadata
}

/// Everything that decides anything, unambiguous: a version byte, then fixed-width fields and length-prefixed texts.
fn bound_to(key: &TokenKey, revision: Revision, metadata: &LoginMetadata) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.push(BINDING_VERSION);
    for text in [
        TABLE,
        key.principal.as_str(),
        key.issuer.as_str(),
        key.client_id.as_str(),
        metadata.subject.as_str(),
    ] {
        put_bytes(&mut out, text.as_bytes());
    }
    out.extend_from_slice(revision.login.as_bytes());
    out.extend_from_slice(&revision.number.to_be_bytes());
    for instant in [metadata.expires_at, metadata.created_at, metadata.updated_at] {
        out.extend_from_slice(&instant.as_millisecond().to_be_bytes());
    }
    out.push(u8::from(metadata.refreshable));
    out.push(u8::from(metadata.refreshing.is_some()));
    if let Some(mark) = &metadata.refreshing {
        out.extend_from_slice(mark.owner.as_bytes());
        out.extend_from_slice(&mark.until.as_millisecond().to_be_bytes());
    }
    out
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // A field longer than 4 GiB cannot be made: names are at most 2 KiB, tokens come over the wire with their own limit.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A version byte, then fields of tag, length and bytes. A reader keeps fields that it does not know, so versions next
/// to each other read and rewrite each other's rows; the version byte changes only when that is impossible.
fn encode(tokens: &TokenSet, extra: &Extra) -> Zeroizing<Vec<u8>> {
    let timed = [
        (&tokens.id_token, ID_TOKEN, ID_TOKEN_END),
        (&tokens.access_token, ACCESS_TOKEN, ACCESS_TOKEN_END),
    ];
    let fields: Vec<(u8, Secret)> = timed
        .into_iter()
        .filter_map(|(token, tag, end_tag)| Some((token.as_ref()?, tag, end_tag)))
        .flat_map(|(token, tag, end_tag)| [(tag, token.secret.clone()), (end_tag, instant(token.expires_at))])
        .chain(tokens.refresh_token.clone().map(|token| (REFRESH_TOKEN, token)))
        .chain(extra.issued_at.map(|at| (ISSUED_AT, instant(at))))
        .chain(extra.retried.then(|| (RETRIED, Secret::new([]))))
        .chain(extra.owner.iter().flat_map(|(issuer, subject)| {
            [
                (OWNER_ISSUER, Secret::new(issuer.as_str())),
                (OWNER_SUBJECT, Secret::new(subject.as_str())),
            ]
        }))
        .chain(extra.unknown.iter().cloned())
        .collect();
    // Sized once: a vector that grows leaves unzeroed copies behind.
    let size = 1 + fields.iter().map(|(_, value)| 5 + value.len()).sum::<usize>();
    let mut out = Zeroizing::new(Vec::with_capacity(size));
    out.push(ENCODING_VERSION);
    for (tag, value) in &fields {
        out.push(*tag);
        put_bytes(&mut out, value.expose());
    }
    out
}

fn instant(at: Timestamp) -> Secret {
    Secret::new(at.as_millisecond().to_be_bytes())
}

fn decode(plain: &[u8]) -> Option<(TokenSet, Extra)> {
    let (&version, mut rest) = plain.split_first()?;
    if version != ENCODING_VERSION {
        return None;
    }
    let (mut tokens, mut extra) = (TokenSet::new(), Extra::default());
    let (mut id_token, mut access_token) = (PartialToken::default(), PartialToken::default());
    let (mut owner_issuer, mut owner_subject) = (None, None);
    while let Some((&tag, after)) = rest.split_first() {
        let (length, after) = after.split_first_chunk()?;
        let (value, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        rest = after;
        match tag {
            ID_TOKEN => id_token.secret = Some(Secret::new(value)),
            ID_TOKEN_END => id_token.expires_at = Some(read_instant(value)?),
            ACCESS_TOKEN => access_token.secret = Some(Secret::new(value)),
            ACCESS_TOKEN_END => access_token.expires_at = Some(read_instant(value)?),
            REFRESH_TOKEN => tokens.refresh_token = Some(Secret::new(value)),
            ISSUED_AT => extra.issued_at = Some(read_instant(value)?),
            RETRIED => extra.retried = true,
            OWNER_ISSUER => owner_issuer = Some(Issuer::new(std::str::from_utf8(value).ok()?).ok()?),
            OWNER_SUBJECT => owner_subject = Some(Subject::new(std::str::from_utf8(value).ok()?).ok()?),
            unknown => extra.unknown.push((unknown, Secret::new(value))),
        }
    }
    tokens.id_token = id_token.whole();
    tokens.access_token = access_token.whole();
    extra.owner = owner_issuer.zip(owner_subject);
    Some((tokens, extra))
}

#[derive(Default)]
struct PartialToken {
    secret: Option<Secret>,
    expires_at: Option<Timestamp>,
}

impl PartialToken {
    fn whole(self) -> Option<Token> {
        Some(Token {
            secret: self.secret?,
            expires_at: self.expires_at?,
        })
    }
}

fn read_instant(bytes: &[u8]) -> Option<Timestamp> {
    from_millisecond(i64::from_be_bytes(bytes.try_into().ok()?))
}

/// As stores keep it.
pub(super) fn whole_milliseconds(instant: Timestamp) -> Timestamp {
    from_millisecond(instant.as_millisecond()).unwrap_or(instant)
}

/// As `Timestamp::from_millisecond`, which refuses the last second that a timestamp can hold.
fn from_millisecond(millisecond: i64) -> Option<Timestamp> {
    let nanosecond = i32::try_from(millisecond % 1_000).ok()? * 1_000_000;
    Timestamp::new(millisecond / 1_000, nanosecond).ok()
}

/// First byte of what a row is bound to.
const BINDING_VERSION: u8 = 1;
/// First byte of what is sealed.
const ENCODING_VERSION: u8 = 1;
/// Which table: what is sealed here opens nowhere else.
const TABLE: &str = "kube-authn/logins";

const ID_TOKEN: u8 = 1;
const ID_TOKEN_END: u8 = 2;
const ACCESS_TOKEN: u8 = 3;
const ACCESS_TOKEN_END: u8 = 4;
const REFRESH_TOKEN: u8 = 5;
const ISSUED_AT: u8 = 6;
const RETRIED: u8 = 7;
const OWNER_ISSUER: u8 = 8;
const OWNER_SUBJECT: u8 = 9;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{ClientId, EntityRef, Issuer, KeyId, LoginId, RefreshMark, Subject};

    /// Seals nothing: only the shape of a row matters here.
    #[derive(Debug)]
    struct Open;

    impl Sealer for Open {
        fn seal(&self, _: &[u8], plain: &[u8]) -> Result<(KeyId, Bytes)> {
            Ok((KeyId::new("none")?, Bytes::copy_from_slice(plain)))
        }

        fn open(&self, _: &KeyId, _: &[u8], sealed: &[u8]) -> Result<Secret> {
            Ok(Secret::new(sealed))
        }
    }

    fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).expect("an instant")
    }

    fn tokens() -> TokenSet {
        TokenSet::new()
            .with_id_token(Token {
                secret: Secret::new("id"),
                expires_at: at(1_500),
            })
            .with_access_token(Token {
                secret: Secret::new("access"),
                expires_at: at(2_500),
            })
            .with_refresh_token(Secret::new("refresh"))
    }

    fn key(principal: &str, issuer: &str, client: &str) -> TokenKey {
        TokenKey {
            principal: EntityRef::parse(principal).expect("a reference"),
            issuer: Issuer::new(issuer).expect("an issuer"),
            client_id: ClientId::new(client).expect("a client"),
        }
    }

    fn metadata(subject: &str) -> LoginMetadata {
        LoginMetadata::new(Subject::new(subject).expect("a subject"), at(3), true, at(1))
    }

    #[test]
    fn tokens_are_read_back_as_they_were_written() {
        let extra = Extra {
            issued_at: Some(at(500)),
            retried: true,
            owner: Some((
                Issuer::new("https://i/").expect("an issuer"),
                Subject::new("s").expect("a subject"),
            )),
            unknown: vec![(200, Secret::new("of a newer version"))],
        };

        let (read, read_extra) = decode(&encode(&tokens(), &extra)).expect("readable");

        assert_eq!(read, tokens());
        assert_eq!(
            (
                read_extra.issued_at,
                read_extra.retried,
                read_extra.owner,
                read_extra.unknown
            ),
            (extra.issued_at, true, extra.owner, extra.unknown)
        );
    }

    #[test]
    fn unknown_encoding_version_is_damage() {
        let mut plain = encode(&tokens(), &Extra::default());
        plain[0] = 9;

        assert!(decode(&plain).is_none());
    }

    #[test]
    fn sealed_instants_are_cut_to_milliseconds() {
        let key = key("user:a/b", "https://i/", "c");
        let fine = Timestamp::new(1, 234_567_891).expect("an instant");
        let metadata = LoginMetadata::new(Subject::new("s").expect("a subject"), fine, false, fine);
        let revision = Revision {
            login: LoginId::from_bytes([1; 16]),
            number: 1,
        };

        let record = seal(&Open, &key, revision, metadata, &tokens(), &Extra::default()).expect("sealed");

        assert_eq!(
            (record.metadata.expires_at, record.metadata.created_at),
            (at(1_234), at(1_234))
        );
        assert_eq!(open(&Open, &key, &record).expect("open").0, tokens());
    }

    #[test]
    fn rows_that_differ_anywhere_are_bound_to_different_bytes() {
        let base_key = key("user:a/b", "https://i/", "c");
        let revision = |login: u8, number| Revision {
            login: LoginId::from_bytes([login; 16]),
            number,
        };
        let mut marked = metadata("s");
        marked.refreshing = Some(RefreshMark {
            owner: LoginId::from_bytes([9; 16]),
            until: at(9),
        });
        let mut unrefreshable = metadata("s");
        unrefreshable.refreshable = false;
        let mut longer = metadata("s");
        longer.expires_at = at(4);

        let all = [
            bound_to(&base_key, revision(1, 1), &metadata("s")),
            bound_to(&base_key, revision(1, 2), &metadata("s")),
            bound_to(&base_key, revision(2, 1), &metadata("s")),
            bound_to(&base_key, revision(1, 1), &metadata("t")),
            bound_to(&base_key, revision(1, 1), &marked),
            bound_to(&base_key, revision(1, 1), &unrefreshable),
            bound_to(&base_key, revision(1, 1), &longer),
            bound_to(
                &key("user:a/bc", "https://i/", "c"),
                revision(1, 1),
                &metadata("s"),
            ),
            bound_to(
                &key("user:a/b", "https://i/c", "c"),
                revision(1, 1),
                &metadata("s"),
            ),
            bound_to(
                &key("user:a/b", "https://i/", "cs"),
                revision(1, 1),
                &metadata("s"),
            ),
        ];

        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn truncated_tokens_never_pass_for_whole_ones(cut in 0usize..60) {
            let plain = encode(&tokens(), &Extra::default());
            prop_assume!(cut < plain.len());

            let read = decode(&plain[..cut]).map(|(tokens, _)| tokens);

            prop_assert_ne!(read, Some(tokens()));
        }
    }
}
