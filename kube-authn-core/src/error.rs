//! The one error of the family: a kind, a text for people, and where it came from.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc, time::Duration};

/// Result with the family's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, whether trying again helps, and for which provider and cluster.
///
/// Cloning shares the value, so one failed fetch answers many waiters. `Display` is the text for people: lower case,
/// what was attempted and what to do next, never a token, a key or an answer's body. [`Error::find`] gets it back out
/// of a foreign error such as `kube::Error::Service`.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    code: Option<&'static str>,
    retryable: bool,
    provider: Option<String>,
    cluster: Option<String>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The kinds of failure; each has one HTTP status and one stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller of our service is not authenticated.
    CallerUnknown,
    /// The user has no login for this cluster, or the login ended.
    LoginRequired,
    /// The user's token has expired.
    TokenExpired,
    /// A token failed verification.
    TokenRejected,
    /// The caller is known and may not do this.
    Refused,
    /// No cluster has this name.
    ClusterUnknown,
    /// The request is malformed.
    RequestInvalid,
    /// Another writer was first; load again and decide anew.
    Conflict,
    /// Too many attempts.
    RateLimited,
    /// The configuration cannot work.
    ConfigInvalid,
    /// A stored row does not open: moved, edited, or sealed with a key that is not in the key ring.
    RecordDamaged,
    /// Our own store or the issuer does not answer.
    Unavailable,
    /// The API server cannot be reached.
    UpstreamUnreachable,
    /// A deadline passed.
    Timeout,
    /// A defect, or an answer that no contract allows.
    Unexpected,
}

impl ErrorKind {
    /// The HTTP status that a service answers with, `400` to `504`.
    pub const fn status(self) -> u16 {
        match self {
            Self::CallerUnknown | Self::LoginRequired | Self::TokenExpired | Self::TokenRejected => 401,
            Self::Refused => 403,
            Self::ClusterUnknown => 404,
            Self::RequestInvalid => 400,
            Self::Conflict => 409,
            Self::RateLimited => 429,
            Self::ConfigInvalid | Self::RecordDamaged | Self::Unexpected => 500,
            Self::UpstreamUnreachable => 502,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The stable code of this kind, snake case, for programs. [`Error::code`] may be more exact.
    pub const fn code(self) -> &'static str {
        match self {
            Self::CallerUnknown => "not_authenticated",
            Self::LoginRequired => "no_tokens",
            Self::TokenExpired => "expired",
            Self::TokenRejected => "invalid_token",
            Self::Refused => "forbidden",
            Self::ClusterUnknown => "not_found",
            Self::RequestInvalid => "bad_request",
            Self::Conflict => "conflict",
            Self::RateLimited => "rate_limited",
            Self::ConfigInvalid => "config_invalid",
            Self::RecordDamaged => "record_damaged",
            Self::Unavailable => "unavailable",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::Timeout => "timeout",
            Self::Unexpected => "unexpected",
        }
    }

    const fn retryable(self) -> bool {
        matches!(
            self,
            Self::RateLimited | Self::Unavailable | Self::UpstreamUnreachable | Self::Timeout
        )
    }
}

impl Error {
    /// An error of this kind; `message` is lower case, without a full stop, and free of secrets.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            code: None,
            retryable: kind.retryable(),
            provider: None,
            cluster: None,
            retry_after: None,
            source: None,
        }))
    }

    /// The kind, which decides the HTTP status.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The stable code for programs: the kind's own, or a more exact one set with [`Error::with_code`].
    pub fn code(&self) -> &'static str {
        self.0.code.unwrap_or_else(|| self.0.kind.code())
    }

    /// Whether the same call, unchanged, may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The provider (strategy) that failed, if one was chosen.
    pub fn provider(&self) -> Option<&str> {
        self.0.provider.as_deref()
    }

    /// The name of the cluster concerned, if known.
    pub fn cluster(&self) -> Option<&str> {
        self.0.cluster.as_deref()
    }

    /// How long to wait before trying again, if the other side or our back-off said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// A more exact code than the kind's, such as `identity_mismatch` or `guest` of a refusal.
    pub fn with_code(self, code: &'static str) -> Self {
        self.edit(|inner| inner.code = Some(code))
    }

    /// Names the provider; the first one set wins.
    pub fn with_provider(self, provider: impl Into<String>) -> Self {
        self.edit(|inner| {
            inner.provider.get_or_insert_with(|| provider.into());
        })
    }

    /// Names the cluster; the first one set wins.
    pub fn with_cluster(self, cluster: impl Into<String>) -> Self {
        self.edit(|inner| {
            inner.cluster.get_or_insert_with(|| cluster.into());
        })
    }

    /// Says when to try again.
    pub fn with_retry_after(self, after: Duration) -> Self {
        self.edit(|inner| inner.retry_after = Some(after))
    }

    /// Overrides whether the same call may succeed later.
    pub fn with_retryable(self, retryable: bool) -> Self {
        self.edit(|inner| inner.retryable = retryable)
    }

    /// Attaches the cause, kept as an error (never as text).
    pub fn with_source(self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.edit(|inner| inner.source = Some(Arc::new(source)))
    }

    /// The family's error inside a foreign one, walking its sources; `kube::Error::Service` carries ours that way.
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        let mut out = f.debug_struct("Error");
        out.field("kind", &inner.kind).field("message", &inner.message);
        if let Some(provider) = &inner.provider {
            out.field("provider", provider);
        }
        if let Some(cluster) = &inner.cluster {
            out.field("cluster", cluster);
        }
        if let Some(source) = &inner.source {
            out.field("source", source);
        }
        out.finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// One mistake in the configuration, with the place to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The file that holds the value, as named by the reader; `None` where no file is involved.
    pub file: Option<String>,
    /// Full key path, `kubernetes.clusterLocatorMethods[0].clusters[1].url`; empty where none applies.
    pub key: String,
    /// The cluster concerned, if its name is known.
    pub cluster: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// A mistake at this key. Control characters are escaped, in all texts: a problem is one line of a log.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            file: None,
            key: one_line(key.into()),
            cluster: None,
            message: one_line(message.into()),
        }
    }

    /// Names the file that holds the value.
    pub fn with_file(mut self, file: impl Into<String>) -> Self {
        self.file = Some(one_line(file.into()));
        self
    }

    /// Names the cluster.
    pub fn with_cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = Some(one_line(cluster.into()));
        self
    }
}

fn one_line(text: String) -> String {
    match text.contains(char::is_control) {
        false => text,
        true => text
            .chars()
            .flat_map(|char| match char.is_control() {
                true => char.escape_default().collect::<Vec<_>>(),
                false => vec![char],
            })
            .collect(),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        if !self.key.is_empty() && !self.message.contains(&self.key) {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("service error")]
    struct Foreign(#[source] Error);

    #[test]
    fn is_found_inside_a_foreign_error() {
        let foreign = Foreign(Error::new(ErrorKind::LoginRequired, "log in").with_cluster("prod"));

        let found = Error::find(&foreign).expect("ours is inside");

        assert_eq!(
            (found.kind(), found.cluster()),
            (ErrorKind::LoginRequired, Some("prod"))
        );
    }

    #[test]
    fn first_provider_and_cluster_win() {
        let error = Error::new(ErrorKind::Timeout, "slow")
            .with_provider("inner")
            .with_provider("outer")
            .with_cluster("a")
            .with_cluster("b");

        assert_eq!((error.provider(), error.cluster()), (Some("inner"), Some("a")));
        assert!(error.is_retryable());
    }

    #[test]
    fn line_break_in_a_name_never_forges_a_line_of_the_log() {
        let problem = Problem::new("a.b\nc", "cluster 'x\r\nERROR \u{1b}[31m' is 'odd'\0")
            .with_file("f\n.yaml")
            .with_cluster("x\n");

        assert_eq!(
            problem.to_string(),
            "f\\n.yaml: a.b\\nc: cluster 'x\\r\\nERROR \\u{1b}[31m' is 'odd'\\u{0}"
        );
        assert_eq!(problem.cluster.as_deref(), Some("x\\n"));
    }

    #[test]
    fn editing_a_clone_leaves_the_original() {
        let original = Error::new(ErrorKind::Refused, "no");

        let changed = original.clone().with_code("guest");

        assert_eq!((original.code(), changed.code()), ("forbidden", "guest"));
    }
}
