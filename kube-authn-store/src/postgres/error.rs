//! What PostgreSQL said, as the family's error.

use std::{borrow::Cow, io, time::Duration};

use kube_authn_core::{Error, ErrorKind};
use rustls::CertificateError;

#[derive(Debug, thiserror::Error)]
pub(super) enum PostgresError {
    /// Without the details that PostgreSQL sends along: they may hold the row.
    #[error("PostgreSQL refused with {code}: {message}")]
    Refused { code: String, message: String },
    #[error("the connection failed")]
    Connection(#[source] sqlx::Error),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("all connections were in use for {0:?}")]
    Busy(Duration),
    #[error("what was said on the channel was not heard within {0:?}")]
    Unheard(Duration),
    #[error("the server is a standby, which may be behind")]
    Standby,
    #[error("the store was closed")]
    Closed,
}

impl From<sqlx::Error> for PostgresError {
    fn from(source: sqlx::Error) -> Self {
        match source {
            sqlx::Error::Database(error) => Self::Refused {
                code: error.code().map(Cow::into_owned).unwrap_or_default(),
                message: error.message().to_owned(),
            },
            source => Self::Connection(source),
        }
    }
}

impl PostgresError {
    /// Whether other connections that were opened earlier are as good as lost: the server restarted, went away, or has
    /// become one that takes no writes.
    pub(super) fn is_of_the_server(&self) -> bool {
        match self {
            Self::Connection(_) | Self::TimedOut(_) | Self::Standby => true,
            Self::Refused { code, .. } => ENDING.contains(&code.as_str()) || code == READ_ONLY,
            Self::Busy(_) | Self::Unheard(_) | Self::Closed => false,
        }
    }

    /// Whether nobody can have seen the statement: reading may simply be tried again on a new connection.
    pub(super) fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Connection(_) => true,
            Self::Refused { code, .. } => ENDING.contains(&code.as_str()),
            Self::TimedOut(_) | Self::Unheard(_) | Self::Standby | Self::Busy(_) | Self::Closed => false,
        }
    }

    /// Whether waiting does not help: somebody has to change the configuration or the server.
    pub(super) fn is_of_the_configuration(&self) -> bool {
        match self {
            Self::Refused { code, .. } => {
                code.starts_with(AUTHENTICATION)
                    || [NO_DATABASE, NO_PRIVILEGE, NO_SCHEMA].contains(&code.as_str())
                    || POOLED.contains(&code.as_str())
            }
            Self::Unheard(_) | Self::Connection(sqlx::Error::Tls(_) | sqlx::Error::Configuration(_)) => true,
            // What rustls says of a certificate comes so.
            Self::Connection(sqlx::Error::Io(error)) => error.kind() == io::ErrorKind::InvalidData,
            _ => false,
        }
    }

    /// A failure of the store at this place.
    pub(super) fn at(self, place: &str) -> Error {
        let (kind, message) = match &self {
            Self::Refused { code, .. } if code == READ_ONLY => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {place} takes no writes at the moment: it is read-only or a standby, name the primary"
                ),
            ),
            Self::Standby => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {place} is a standby: name the primary in kubeAuthn.store.url, or promote it"
                ),
            ),
            Self::Unheard(_) => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {place} does not tell who logged out: name the server itself in \
                     kubeAuthn.store.url, not a pooler, or let the pooler keep sessions"
                ),
            ),
            Self::Refused { code, .. } if POOLED.contains(&code.as_str()) => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {place} gives us other connections than ours: name the server itself in \
                     kubeAuthn.store.url, not a pooler, or let the pooler keep sessions"
                ),
            ),
            Self::Refused { code, .. } if code == NO_PRIVILEGE => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {place} refuses a statement: grant its user what docs/configuration.md names"
                ),
            ),
            Self::Refused { code, .. } if code == DISK_FULL => (
                ErrorKind::Unavailable,
                format!("the disk of the token store {place} is full: free some space, nothing was written"),
            ),
            Self::Refused { code, .. } if code == TOO_MANY_CONNECTIONS => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {place} has no connection left: raise max_connections, or run fewer replicas"
                ),
            ),
            Self::Refused { code, .. } if code == CANCELLED => (
                ErrorKind::Timeout,
                format!("the token store {place} did not answer in time: try again"),
            ),
            Self::TimedOut(_) | Self::Busy(_) => (
                ErrorKind::Unavailable,
                format!("the token store {place} did not answer in time: try again"),
            ),
            Self::Refused { .. } | Self::Connection(_) | Self::Closed => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {place} does not answer{}: look at the server and its log",
                    self.cause()
                ),
            ),
        };
        Error::new(kind, message)
            .with_retry_after(RETRY_AFTER)
            .with_source(self)
    }

    /// A failure at the start that somebody has to mend.
    pub(super) fn opening(self, place: &str) -> Error {
        let hint = match &self {
            Self::Refused { code, .. } if code.starts_with(AUTHENTICATION) => {
                "it refuses the user or the password"
            }
            Self::Refused { code, .. } if code == NO_DATABASE => "it has no such database",
            Self::Refused { code, .. } if code == NO_SCHEMA => "no schema of search_path exists",
            Self::Unheard(_) => POOLER,
            Self::Refused { code, .. } if POOLED.contains(&code.as_str()) => POOLER,
            Self::Refused { .. } => {
                "its user may not make the tables: grant what docs/configuration.md names"
            }
            _ => self.tls_hint(),
        };
        Error::new(
            ErrorKind::ConfigInvalid,
            format!("can't open the token store {place}: {hint} (kubeAuthn.store.url)"),
        )
        .with_source(self)
    }
}

impl PostgresError {
    /// Why there is no TLS connection as the URL asks for it.
    fn tls_hint(&self) -> &'static str {
        let rustls = match self {
            // The driver has no other word for it.
            Self::Connection(sqlx::Error::Tls(error))
                if error.to_string().contains("does not support TLS") =>
            {
                return "it has no TLS, and sslmode asks for it";
            }
            Self::Connection(sqlx::Error::Io(error)) => error
                .get_ref()
                .and_then(|error| error.downcast_ref::<rustls::Error>()),
            _ => None,
        };
        match rustls {
            Some(rustls::Error::InvalidCertificate(cause)) => match cause {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "its certificate is signed by an authority that sslrootcert does not hold"
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "its certificate is for another name than the host of the URL"
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "its certificate has expired"
                }
                _ => "its certificate is not acceptable",
            },
            _ => "no TLS connection as sslmode and sslrootcert ask for it",
        }
    }

    /// What the operating system said of the connection, in brackets.
    fn cause(&self) -> String {
        match self {
            Self::Connection(sqlx::Error::Io(error)) => format!(" ({})", error.kind()),
            _ => String::new(),
        }
    }
}

const POOLER: &str =
    "a pooler is between that does not keep sessions: name the server itself, or set its pool_mode = session";

// https://www.postgresql.org/docs/current/errcodes-appendix.html
const READ_ONLY: &str = "25006";
/// The class of refused logins.
const AUTHENTICATION: &str = "28";
const NO_DATABASE: &str = "3D000";
const NO_SCHEMA: &str = "3F000";
const NO_PRIVILEGE: &str = "42501";
/// A prepared statement that another made, or that is gone: the connection is not the one it was.
const POOLED: [&str; 2] = ["26000", "42P05"];
const DISK_FULL: &str = "53100";
const TOO_MANY_CONNECTIONS: &str = "53300";
const CANCELLED: &str = "57014";
/// The server shuts down, crashed, or is starting.
const ENDING: [&str; 3] = ["57P01", "57P02", "57P03"];

/// When a client should try again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
