//! What went wrong between us and Redis, as the family's error.

use std::{fmt, io, sync::Arc, time::Duration};

use ::redis::{ErrorKind as RedisKind, RedisError};
use kube_authn_core::{Error, ErrorKind};

use super::url::Address;

#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no connection to {0}")]
    Connect(Address, #[source] Arc<io::Error>),
    #[error("no TLS connection to {0}")]
    Tls(Address, #[source] Arc<io::Error>),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// An input or output error: it says nothing of what was sent.
    #[error("the connection broke")]
    Broken(#[source] RedisError),
    /// The code alone, since what follows it may repeat arguments.
    #[error("Redis answered {0}")]
    Refused(String),
    #[error("Redis gave an answer of another form")]
    Answer,
    #[error("{0} knows no primary")]
    NoPrimary(Address),
    /// What a replica answers may be old, and what it took, if it takes writes at all, its primary knows nothing of.
    #[error("{0} is not the primary")]
    NotPrimary(Address),
    #[error("what was published was not heard")]
    Unheard,
    #[error("the store was closed")]
    Closed,
    #[error("a layout that this program does not know")]
    Layout,
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        match error.kind() {
            RedisKind::Io => Self::Broken(error),
            RedisKind::AuthenticationFailed => Self::Refused("WRONGPASS".to_owned()),
            RedisKind::Parse | RedisKind::UnexpectedReturnType => Self::Answer,
            _ => match error.code() {
                Some(code) => {
                    let named = error.detail().filter(|_| code == "ERR").and_then(code_of);
                    Self::Refused(named.unwrap_or(code).to_owned())
                }
                None => Self::Answer,
            },
        }
    }
}

impl Failure {
    /// Whether Redis said that it did nothing, and another node may do it.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self, Self::NotPrimary(_))
            || matches!(self.code(), Some("MOVED" | "ASK" | "READONLY" | "MASTERDOWN"))
    }

    /// Whether the connection is of no more use.
    pub(super) fn ends_connection(&self) -> bool {
        self.is_elsewhere()
            || matches!(self, Self::Broken(_) | Self::Timeout(_) | Self::Answer)
            || matches!(self.code(), Some("CLUSTERDOWN" | "NOAUTH"))
    }

    pub(super) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_))
    }

    /// Something that is none of ours stands under a key of ours.
    pub(super) fn is_wrong_type(&self) -> bool {
        self.code() == Some("WRONGTYPE")
    }

    /// Somebody has to mend the configuration: trying again will not help.
    pub(super) fn is_configuration(&self) -> bool {
        let codes = [
            "NOAUTH",
            "WRONGPASS",
            "NOPERM",
            NO_CLUSTER,
            NO_SENTINEL,
            NO_DATABASE,
        ];
        matches!(self, Self::Layout) || self.code().is_some_and(|code| codes.contains(&code))
    }

    pub(super) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(code) => Some(code),
            _ => None,
        }
    }

    /// As a failure of the store at this place.
    pub(super) fn at(self, place: &dyn fmt::Display) -> Error {
        if self.is_wrong_type() {
            return Error::new(ErrorKind::RecordDamaged, DAMAGED).with_source(self);
        }
        let (kind, what) = match &self {
            Self::Timeout(_) => (ErrorKind::Timeout, "did not answer in time: try again"),
            Self::Connect(..) | Self::Broken(_) => (
                ErrorKind::Unavailable,
                "can't be reached: look whether Redis runs, and at the network",
            ),
            Self::Tls(..) => (
                ErrorKind::Unavailable,
                "can't be trusted: look at Redis's certificate and at kubeAuthn.store.caFile",
            ),
            Self::NoPrimary(_) => (
                ErrorKind::Unavailable,
                "has no primary at the moment: wait for the failover, or look at the service name",
            ),
            Self::NotPrimary(_) => (ErrorKind::Unavailable, REPLICA),
            Self::Unheard => (
                ErrorKind::Unavailable,
                "does not tell who logged out: name the server itself in kubeAuthn.store.url, not a proxy",
            ),
            Self::Layout => (ErrorKind::ConfigInvalid, NEWER),
            Self::Closed => (ErrorKind::Unavailable, "was closed: open it again"),
            Self::Answer => (ErrorKind::Unavailable, "gave an answer that is none of Redis's"),
            Self::Refused(code) => (ErrorKind::Unavailable, refusal(code)),
        };
        Error::new(kind, format!("the token store {place} {what}"))
            .with_retry_after(RETRY_AFTER)
            .with_source(self)
    }

    /// A failure while the store was opened: what somebody has to mend is one of the configuration.
    pub(super) fn opening(self, place: &dyn fmt::Display) -> Error {
        match self.code() {
            Some(code) => Error::new(
                ErrorKind::ConfigInvalid,
                format!(
                    "can't open the token store {place}: it {} (kubeAuthn.store.url)",
                    refusal(code)
                ),
            )
            .with_source(self),
            None => self.at(place),
        }
    }
}

/// What a code of Redis means for whoever reads it (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
fn refusal(code: &str) -> &'static str {
    match code {
        "LOADING" => "is loading its data: try again",
        "READONLY" | "MASTERDOWN" => REPLICA,
        "CLUSTERDOWN" => "has no majority of its nodes: wait, or look at the cluster",
        "MOVED" | "ASK" | "TRYAGAIN" => "is moving its slots: try again",
        "OOM" => "is full, nothing was written: raise maxmemory",
        "MISCONF" => "can't write to its disk, nothing was written: look at Redis's log",
        "NOREPLICAS" => "has too few replicas, nothing was written: look at min-replicas-to-write",
        "BUSY" => "is busy with somebody's script: try again",
        "NOAUTH" | "WRONGPASS" => "does not accept the user or the password",
        NO_CLUSTER => "is no cluster: write redis:// or rediss:// for one server",
        NO_SENTINEL => "is no sentinel: name the sentinels, or write redis:// or rediss:// for one server",
        NO_DATABASE => "has no database of this number: look at the path of the URL",
        "NOPERM" => "does not let this user do what the store needs: look at its ACL",
        _ => "refused, nothing was written: look at Redis's log",
    }
}

const REPLICA: &str = "is a replica: wait for the failover, or name the primary";
const NEWER: &str =
    "was written by a newer program: upgrade this one, or choose another prefix in kubeAuthn.store.url";
pub(super) const DAMAGED: &str = "a row of the store is not as it was written: it was changed outside";

/// A code for what Redis says under `ERR` alone.
fn code_of(detail: &str) -> Option<&'static str> {
    let known = WORDS.iter().find(|(words, _)| detail.contains(words));
    known.map(|(_, code)| *code)
}

/// Of Redis 7.0, and of what came after it, Valkey included.
const WORDS: [(&str, &str); 5] = [
    ("The user executing the script can't", "NOPERM"),
    ("ACL failure in script", "NOPERM"),
    ("cluster support disabled", NO_CLUSTER),
    ("unknown command 'SENTINEL'", NO_SENTINEL),
    ("DB index is out of range", NO_DATABASE),
];
const NO_CLUSTER: &str = "NOCLUSTER";
const NO_SENTINEL: &str = "NOSENTINEL";
const NO_DATABASE: &str = "NODATABASE";

/// When a client should try again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: &str) -> Error {
        let detail = Some("canary: an argument of the command".to_owned());
        let error = ::redis::make_extension_error(code.to_owned(), detail);
        Failure::from(error).at(&"redis://h:1")
    }

    #[test]
    fn each_refusal_says_what_to_do_and_nothing_of_what_was_sent() {
        for (code, hint) in [
            ("LOADING", "try again"),
            ("READONLY", "wait for the failover"),
            ("MASTERDOWN", "wait for the failover"),
            ("CLUSTERDOWN", "no majority"),
            ("TRYAGAIN", "try again"),
            ("OOM", "raise maxmemory"),
            ("MISCONF", "disk"),
            ("NOREPLICAS", "min-replicas-to-write"),
            ("BUSY", "try again"),
            ("NOAUTH", "password"),
            ("NOPERM", "ACL"),
            ("ERR", "log"),
            ("ANYTHING", "log"),
        ] {
            let error = said(code);

            assert_eq!(error.kind(), ErrorKind::Unavailable, "{code}");
            assert!(
                error.is_retryable() && error.retry_after() == Some(RETRY_AFTER),
                "{code}"
            );
            let text = error.to_string();
            assert!(
                text.contains("redis://h:1") && text.contains(hint),
                "{code}: {text}"
            );
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
        assert_eq!(said("WRONGTYPE").kind(), ErrorKind::RecordDamaged);
    }

    #[test]
    fn what_a_script_may_not_is_a_matter_of_rights_in_the_words_of_every_version() {
        for detail in [
            "The user executing the script can't run this command or subcommand script: 1f, on @user_script:1.",
            "ACL failure in script: User x has no permissions to run the 'publish' command script: 1f",
        ] {
            let error = ::redis::make_extension_error("ERR".to_owned(), Some(detail.to_owned()));

            assert_eq!(Failure::from(error).code(), Some("NOPERM"), "{detail}");
        }
        let error = ::redis::make_extension_error("ERR".to_owned(), Some("another".to_owned()));
        assert_eq!(Failure::from(error).code(), Some("ERR"));
    }

    #[test]
    fn only_what_redis_did_not_do_may_be_done_elsewhere() {
        let elsewhere = |code: &str| Failure::Refused(code.to_owned()).is_elsewhere();

        assert!(
            ["MOVED", "ASK", "READONLY", "MASTERDOWN"]
                .into_iter()
                .all(elsewhere)
        );
        assert!(
            !["ERR", "OOM", "BUSY", "LOADING", "NOPERM"]
                .into_iter()
                .any(elsewhere)
        );
        let broken = RedisError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(!Failure::from(broken).is_elsewhere());
        assert!(!Failure::Timeout(RETRY_AFTER).is_elsewhere());
        let replica = Failure::NotPrimary(Address {
            host: "h".to_owned(),
            port: 1,
        });
        assert!(replica.is_elsewhere() && replica.ends_connection());
    }
}
