//! Why the API server could not be reached, in words.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use http::Method;
use rustls::{AlertDescription, CertificateError, pki_types::UnixTime};

use crate::{ClusterDetails, EgressProxy, Error, ErrorKind};

/// Why a request got no answer. `Clone`, since one failed connect answers many waiters.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the name does not resolve")]
    Resolve(#[source] Arc<io::Error>),
    #[error("its name resolves to a non-public address, and this cluster may have public ones alone")]
    NotPublic,
    #[error("{}", io_words(.0))]
    Connect(#[source] Arc<io::Error>),
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    #[error("its egress proxy at {at} {cause}")]
    Egress { at: String, cause: EgressCause },
    #[error("{}", tls_words(.0))]
    Tls(#[source] rustls::Error),
    #[error("{}", http_words(.source))]
    Http {
        /// Whether the API server surely did nothing with the request.
        unprocessed: bool,
        /// Whether the connection had answered before: the API server may have closed it while we wrote.
        reused: bool,
        source: Arc<hyper::Error>,
    },
    #[error("no answer within {0:?}")]
    HeadTimeout(Duration),
    /// The login or the credential ended before the answer came.
    #[error(transparent)]
    Cut(Error),
    /// Trust or client certificate cannot be used.
    #[error(transparent)]
    Settings(Error),
}

/// What an egress proxy has to do with it.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum EgressCause {
    #[error("cannot be reached: {0}")]
    Unreachable(#[source] Box<Failure>),
    /// The library's errors have no names; their words say what the proxy answered.
    #[error("opens no connection to it: {0}")]
    Refused(#[source] Arc<dyn StdError + Send + Sync>),
}

impl EgressCause {
    pub(crate) fn refused(error: impl StdError + Send + Sync + 'static) -> Self {
        Self::Refused(Arc::new(error))
    }

    pub(crate) fn of(self, proxy: &EgressProxy) -> Failure {
        Failure::Egress {
            at: proxy.to_string(),
            cause: self,
        }
    }
}

impl Failure {
    /// The failure of a connect or a handshake, told apart by what lies inside.
    pub(crate) fn connect(error: io::Error) -> Self {
        match find::<rustls::Error>(&error) {
            Some(tls) => Self::Tls(tls.clone()),
            None => Self::Connect(Arc::new(error)),
        }
    }

    pub(crate) fn http(source: hyper::Error, reused: bool) -> Self {
        let unprocessed = find::<h2::Error>(&source).is_some_and(|error| {
            error.is_remote()
                && (error.is_go_away()
                    || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)))
        });
        Self::Http {
            unprocessed,
            reused,
            source: Arc::new(source),
        }
    }

    /// Whether sending the request once more does no harm: the API server did nothing with it, or it changes nothing and
    /// a connection that had been idle turned out to be closed.
    pub(crate) fn may_replay(&self, method: &Method) -> bool {
        match self {
            Self::Http {
                unprocessed,
                reused,
                source,
            } => *unprocessed || (*reused && method.is_safe() && !source.is_parse() && !source.is_user()),
            _ => false,
        }
    }

    /// Whether the API server surely did nothing with the request, and wants no more of them on this connection.
    pub(crate) fn is_unprocessed(&self) -> bool {
        matches!(
            self,
            Self::Http {
                unprocessed: true,
                ..
            }
        )
    }

    /// Whether other trust could have made a difference.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The family's error, naming the cluster, where it is, and the cause.
    pub(crate) fn into_error(self, cluster: &ClusterDetails) -> Error {
        let name = cluster.name().as_str();
        let (kind, retryable) = match &self {
            Self::Cut(error) | Self::Settings(error) => return error.clone().with_cluster(name),
            Self::ConnectTimeout(_) | Self::HeadTimeout(_) => (ErrorKind::Timeout, true),
            Self::Tls(_) | Self::NotPublic => (ErrorKind::UpstreamUnreachable, false),
            Self::Http { source, .. } if source.is_timeout() => (ErrorKind::Timeout, true),
            Self::Http { source, .. } if source.is_user() => (ErrorKind::RequestInvalid, false),
            Self::Http { .. } | Self::Resolve(_) | Self::Connect(_) | Self::Egress { .. } => {
                (ErrorKind::UpstreamUnreachable, true)
            }
        };
        let server = cluster.server();
        let text = format!(
            "cannot reach cluster \"{name}\" at {}:{}: {self}",
            server.authority().host(),
            server.port()
        );
        Error::new(kind, text)
            .with_retryable(retryable)
            .with_cluster(name)
            .with_source(self)
    }
}

fn http_words(error: &hyper::Error) -> String {
    if error.is_user() {
        return "the body of the request ended early".to_owned();
    }
    if let Some(tls) = find::<rustls::Error>(error) {
        return tls_words(tls);
    }
    if error.is_parse() {
        return "the answer is not HTTP".to_owned();
    }
    match find::<io::Error>(error) {
        Some(error) => io_words(error),
        None if error.is_timeout() => "the connection stopped answering".to_owned(),
        None => "the connection broke off before the answer".to_owned(),
    }
}

fn io_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        io::ErrorKind::TimedOut => "the connection timed out".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            "the connection broke off".to_owned()
        }
        kind => kind.to_string(),
    }
}

fn tls_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(cause) => match cause {
            // A cluster that was set up anew has another CA of the same name: then the signature alone is wrong.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is signed by an authority that the cluster's CA does not hold".to_owned()
            }
            CertificateError::Expired => "its certificate has expired".to_owned(),
            CertificateError::ExpiredContext { time, not_after } => format!(
                "its certificate has expired: it was good until {}, and here it is {}",
                instant(*not_after),
                instant(*time)
            ),
            CertificateError::NotValidYet => "its certificate is not valid yet".to_owned(),
            CertificateError::NotValidYetContext { time, not_before } => format!(
                "its certificate is not valid yet: it will be from {}, and here it is {}",
                instant(*not_before),
                instant(*time)
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name".to_owned()
            }
            CertificateError::Revoked => "its certificate is revoked".to_owned(),
            other => format!("its certificate is not acceptable: {other}"),
        },
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown),
        ) => format!("it refused our client certificate: {alert:?}"),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        other => format!("the TLS handshake failed: {other}"),
    }
}

/// Both instants tell a certificate's end from a clock of ours that is wrong.
fn instant(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "never".to_owned(), |time| time.to_string())
}

/// The first error of this type among the error and its sources; an `io::Error` hides what it wraps from `source`.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_inside_an_io_error_is_named() {
        let tls = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let failure = Failure::connect(io::Error::new(io::ErrorKind::InvalidData, tls));

        assert!(failure.is_tls());
        assert!(
            failure.to_string().contains("signed by an authority"),
            "{failure}"
        );
    }

    #[test]
    fn refused_connection_names_cluster_and_address() {
        let cluster = ClusterDetails::builder("prod", "https://[::1]:6443/base")
            .auth_provider("aws")
            .build()
            .expect("a cluster");

        let error = Failure::connect(io::ErrorKind::ConnectionRefused.into()).into_error(&cluster);

        assert_eq!(
            (error.kind(), error.to_string().as_str(), error.is_retryable()),
            (
                ErrorKind::UpstreamUnreachable,
                "cannot reach cluster \"prod\" at [::1]:6443: connection refused",
                true
            )
        );
        assert!(StdError::source(&error).is_some());
    }
}
