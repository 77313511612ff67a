//! On whose behalf a request is made.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::{Arc, LazyLock},
};

use jiff::Timestamp;

use crate::{Error, ErrorKind, Result};

/// A Backstage entity reference, `kind:namespace/name`, lower-cased: `user:default/alice`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityRef(Arc<str>);

impl EntityRef {
    /// Parses `kind:namespace/name` and lower-cases it.
    ///
    /// # Errors
    /// `RequestInvalid` unless all three parts are there and hold visible ASCII without `:` and `/`, at most 253
    /// characters in all. Anything else could end a header or a log line early.
    pub fn parse(text: &str) -> Result<Self> {
        let parts = text
            .split_once(':')
            .and_then(|(kind, rest)| Some((kind, rest.split_once('/')?)));
        let well_formed = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b':' && byte != b'/')
        };
        match parts {
            Some((kind, (namespace, name)))
                if text.len() <= MAX_NAME_LENGTH && [kind, namespace, name].into_iter().all(well_formed) =>
            {
                Ok(Self(text.to_ascii_lowercase().into()))
            }
            _ => Err(Error::new(
                ErrorKind::RequestInvalid,
                "not an entity reference: expected kind:namespace/name in visible ASCII, such as user:default/alice",
            )),
        }
    }

    /// The whole reference, `user:default/alice`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind, `user`.
    pub fn kind(&self) -> &str {
        self.0.split_once(':').map_or("", |(kind, _)| kind)
    }

    /// The name without kind and namespace, `alice`.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(_, name)| name)
    }
}

impl fmt::Display for EntityRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntityRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Declares a text that is checked once and then compared exactly.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $legal:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes the text; it is compared byte for byte.
            ///
            /// # Errors
            /// `RequestInvalid` if it is empty, too long, or holds a character that this text may not have.
            pub fn new(text: impl AsRef<str>) -> Result<Self> {
                let text = text.as_ref();
                let legal: fn(&str) -> bool = $legal;
                if text.is_empty() || text.len() > $max || !legal(text) {
                    return Err(Error::new(
                        ErrorKind::RequestInvalid,
                        concat!("not ", $what),
                    ));
                }
                Ok(Self(text.into()))
            }

            /// The text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text! {
    /// An issuer identifier: an https URL without query and fragment (http only on loopback), compared byte for byte,
    /// the trailing slash included (OpenID Connect Core section 2, `iss`).
    Issuer, "an issuer: expected an https URL without query and fragment (http on loopback only)", 2048, is_issuer
}

checked_text! {
    /// The `sub` claim: 1 to 255 visible ASCII characters or spaces (OpenID Connect Core section 2).
    Subject, "a subject: expected 1 to 255 printable ASCII characters", 255, is_printable_ascii
}

checked_text! {
    /// An OAuth 2.0 client identifier (RFC 6749 section 2.2): 1 to 255 printable ASCII characters.
    ClientId, "a client identifier: expected 1 to 255 printable ASCII characters", 255, is_printable_ascii
}

checked_text! {
    /// An e-mail address that the issuer says is verified (`email_verified`), lower-cased for comparison by the verifier.
    VerifiedEmail, "an e-mail address", 254, |text| is_printable_ascii(text) && text.contains('@') && !text.contains(' ')
}

fn is_printable_ascii(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

fn is_issuer(text: &str) -> bool {
    let Ok(url) = url::Url::parse(text) else {
        return false;
    };
    let loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => return false,
    };
    (url.scheme() == "https" || (url.scheme() == "http" && loopback))
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none()
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Who a [`Principal`] is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PrincipalName {
    /// A person.
    User(EntityRef),
    /// A program, by the name that its verifier knows it under.
    Service(Arc<str>),
    /// Nobody in particular.
    Anonymous,
}

/// On whose behalf a request is made: a user, a service, or nobody.
///
/// Made only by a verifier or by the embedding program, never from strings in a request. Equality and hash cover
/// everything but `expires_at`, so nothing cached carries the groups of an earlier login. Clones share the value.
#[derive(Clone)]
pub struct Principal(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    name: PrincipalName,
    verified: Option<(Issuer, Subject)>,
    email: Option<VerifiedEmail>,
    groups: Vec<Arc<str>>,
    expires_at: Option<Timestamp>,
    hash: u64,
}

impl Principal {
    /// A person.
    pub fn user(user: EntityRef) -> Self {
        Self::from_name(PrincipalName::User(user))
    }

    /// A program, by the name that its verifier knows it under (printable ASCII; anything else is escaped).
    pub fn service(name: &str) -> Self {
        Self::from_name(PrincipalName::Service(name.escape_default().to_string().into()))
    }

    /// Nobody in particular: reaches only clusters whose strategy is not about users.
    pub fn anonymous() -> Self {
        Self::from_name(PrincipalName::Anonymous)
    }

    fn from_name(name: PrincipalName) -> Self {
        let inner = Inner {
            name,
            verified: None,
            email: None,
            groups: Vec::new(),
            expires_at: None,
            hash: 0,
        };
        Self(Arc::new(inner)).edit(|_| {})
    }

    /// Adds the issuer and subject that a verifier read from a verified token.
    pub fn with_verified(self, issuer: Issuer, subject: Subject) -> Self {
        self.edit(|inner| inner.verified = Some((issuer, subject)))
    }

    /// Adds an e-mail address that the issuer calls verified.
    pub fn with_email(self, email: VerifiedEmail) -> Self {
        self.edit(|inner| inner.email = Some(email))
    }

    /// Sets the groups.
    ///
    /// # Errors
    /// `Refused` if a group is empty or holds control characters or non-ASCII: it could end a header early.
    pub fn with_groups<G: AsRef<str>>(self, groups: impl IntoIterator<Item = G>) -> Result<Self> {
        let groups = groups
            .into_iter()
            .map(|group| match group.as_ref() {
                group if !group.is_empty() && is_printable_ascii(group) => Ok(Arc::from(group)),
                _ => Err(Error::new(
                    ErrorKind::Refused,
                    "a group of the caller is empty or holds characters other than printable ASCII",
                )),
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(self.edit(|inner| inner.groups = groups))
    }

    /// Sets the UTC instant from which the principal is no longer known to be who it is.
    pub fn with_expires_at(self, expires_at: Timestamp) -> Self {
        self.edit(|inner| inner.expires_at = Some(expires_at))
    }

    /// Who it is.
    pub fn name(&self) -> &PrincipalName {
        &self.0.name
    }

    /// The entity reference of a user, `None` for services and nobody.
    pub fn entity_ref(&self) -> Option<&EntityRef> {
        match &self.0.name {
            PrincipalName::User(user) => Some(user),
            PrincipalName::Service(_) | PrincipalName::Anonymous => None,
        }
    }

    /// Issuer and subject of the token that proved the identity, if one did.
    pub fn verified(&self) -> Option<(&Issuer, &Subject)> {
        self.0
            .verified
            .as_ref()
            .map(|(issuer, subject)| (issuer, subject))
    }

    /// The verified e-mail address, if there is one.
    pub fn email(&self) -> Option<&VerifiedEmail> {
        self.0.email.as_ref()
    }

    /// The groups, in the verifier's order.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.groups.iter().map(|group| &**group)
    }

    /// UTC instant from which the principal is no longer known to be who it is; `None` if it has no end.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.0.expires_at
    }

    /// The hash over everything that equality covers, computed once.
    pub(crate) fn precomputed_hash(&self) -> u64 {
        self.0.hash
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        change(inner);
        let mut hasher = HASHER.build_hasher();
        inner.name.hash(&mut hasher);
        inner.verified.hash(&mut hasher);
        inner.email.hash(&mut hasher);
        inner.groups.hash(&mut hasher);
        inner.hash = hasher.finish();
        self
    }
}

impl PartialEq for Principal {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&*self.0, &*other.0);
        Arc::ptr_eq(&self.0, &other.0)
            || (a.hash == b.hash
                && a.name == b.name
                && a.verified == b.verified
                && a.email == b.email
                && a.groups == b.groups)
    }
}

impl Eq for Principal {}

impl Hash for Principal {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Principal")
            .field("name", &self.0.name)
            .field("verified", &self.0.verified)
            .field("groups", &self.0.groups)
            .field("expires_at", &self.0.expires_at)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.name {
            PrincipalName::User(user) => user.fmt(f),
            PrincipalName::Service(name) => write!(f, "service:{name}"),
            PrincipalName::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// Seeded per process: names come from outside, and must not be able to fill one bucket.
static HASHER: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

/// Longest entity reference: three DNS subdomains of Backstage's 63 characters with room, as a Kubernetes name (253).
const MAX_NAME_LENGTH: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> Principal {
        Principal::user(EntityRef::parse("user:default/alice").expect("a reference"))
    }

    #[test]
    fn entity_reference_is_lower_cased() {
        let parsed = EntityRef::parse("User:Default/Alice").expect("a reference");

        assert_eq!(
            (parsed.as_str(), parsed.kind(), parsed.name()),
            ("user:default/alice", "user", "alice")
        );
    }

    #[test]
    fn line_break_in_a_name_never_becomes_a_principal() {
        for text in [
            "user:default/a\r\nX: y",
            "user:default/",
            "alice",
            "user:default/a/b",
            "user:default/ä",
            "a:b:c/d",
        ] {
            assert!(EntityRef::parse(text).is_err(), "{text:?}");
        }
        for group in [
            "x\r\nImpersonate-Group: system:masters",
            "x\0",
            "x\n",
            "gr\u{fc}n",
            "",
        ] {
            assert!(alice().with_groups(["dev", group]).is_err(), "{group:?}");
        }
        assert!(
            !Principal::service("x\r\ny\0\u{fc}")
                .to_string()
                .contains(|c: char| c.is_control() || !c.is_ascii())
        );
    }

    #[test]
    fn other_groups_are_another_principal() {
        let dev = alice().with_groups(["dev"]).expect("groups");
        let ops = alice().with_groups(["ops"]).expect("groups");

        assert_ne!(dev, ops);
        assert_eq!(dev, dev.clone().with_expires_at(Timestamp::UNIX_EPOCH));
        assert_eq!(
            dev.precomputed_hash(),
            dev.clone()
                .with_expires_at(Timestamp::UNIX_EPOCH)
                .precomputed_hash()
        );
    }

    #[test]
    fn issuer_over_plain_http_is_refused_off_loopback() {
        assert!(Issuer::new("https://login.example.com/").is_ok());
        assert!(Issuer::new("http://127.0.0.1:9000").is_ok());
        for text in [
            "http://login.example.com/",
            "https://a/?x=1",
            "https://a/#f",
            "https://u:p@a/",
            "login",
            "",
        ] {
            assert!(Issuer::new(text).is_err(), "{text:?}");
        }
    }
}
