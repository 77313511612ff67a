//! Whom an application's credential speaks for.

use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{Error, ErrorKind, Result};

/// A user, its groups, unique identifier and extra fields, as an API server takes them from a caller that may impersonate
/// (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>). Clones share the value;
/// `Debug` shows none of it.
///
/// Names that Kubernetes reserves cannot stand in one: nobody becomes `system:masters`, a node or a service account.
#[derive(Clone, PartialEq, Eq)]
pub struct Impersonation(Arc<Vec<(HeaderName, HeaderValue)>>);

impl Impersonation {
    /// This user, without groups but `system:authenticated`, which the API server adds.
    ///
    /// # Errors
    /// `Refused` if the name is empty, longer than 1,024 characters, begins or ends with a space, holds anything but
    /// printable ASCII, or begins with `system:` in any spelling.
    pub fn user(name: &str) -> Result<Self> {
        let line = (USER, checked("user", name)?);
        Ok(Self(Arc::new(vec![line])))
    }

    /// Adds a group.
    ///
    /// # Errors
    /// As [`Impersonation::user`].
    pub fn with_group(self, name: &str) -> Result<Self> {
        let value = checked("group", name)?;
        Ok(self.with(GROUP, value))
    }

    /// Sets the unique identifier.
    ///
    /// # Errors
    /// As [`Impersonation::user`].
    pub fn with_uid(self, uid: &str) -> Result<Self> {
        let value = checked("uid", uid)?;
        Ok(self.with(UID, value))
    }

    /// Adds a value of an extra field.
    ///
    /// # Errors
    /// As [`Impersonation::user`] for the value; `Refused` if the key is not of lower-case letters, digits and `.-_/`, or
    /// belongs to `kubernetes.io` or `k8s.io`.
    pub fn with_extra(self, key: &str, value: &str) -> Result<Self> {
        let value = checked("extra field", value)?;
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_/".contains(&byte);
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let is_reserved = RESERVED_DOMAINS
            .iter()
            .any(|reserved| domain == *reserved || domain.ends_with(&format!(".{reserved}")));
        if key.is_empty() || key.len() > MAX_LENGTH || !key.bytes().all(legal) || is_reserved {
            return Err(Error::new(
                ErrorKind::Refused,
                "the key of an extra field is of lower-case letters, digits and .-_/, and not of kubernetes.io",
            ));
        }
        // A slash is the one character of these that no header name may have.
        let name = format!("impersonate-extra-{}", key.replace('/', "%2f"));
        let name = HeaderName::try_from(name).map_err(|source| {
            Error::new(ErrorKind::Refused, "the key of an extra field is no header name").with_source(source)
        })?;
        Ok(self.with(name, value))
    }

    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &*self.0 {
            headers.append(name, value.clone());
        }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        Arc::make_mut(&mut self.0).push((name, value));
        self
    }
}

impl fmt::Debug for Impersonation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Impersonation({} lines)", self.0.len())
    }
}

fn checked(what: &str, text: &str) -> Result<HeaderValue> {
    let refuse = |why: &str| {
        Error::new(
            ErrorKind::Refused,
            format!("nobody is impersonated: the {what} {why}"),
        )
    };
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    // White space at the ends is trimmed on the way: another name would arrive than the one that was looked at.
    if text.is_empty() || text.len() > MAX_LENGTH || !printable || text.trim() != text {
        return Err(refuse("is empty, too long, or not printable ASCII"));
    }
    if text
        .get(..RESERVED_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX))
    {
        return Err(refuse("begins with system:, which Kubernetes reserves"));
    }
    HeaderValue::from_str(text).map_err(|source| refuse("is no header value").with_source(source))
}

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");

const MAX_LENGTH: usize = 1024;
/// <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-subjects>
const RESERVED_PREFIX: &str = "system:";
const RESERVED_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credential, Secret};

    #[test]
    fn lines_of_the_user_replace_those_of_the_caller() {
        let impersonation = Impersonation::user("alice")
            .and_then(|user| user.with_group("team-a"))
            .and_then(|user| user.with_group("team b"))
            .and_then(|user| user.with_uid("42"))
            .and_then(|user| user.with_extra("example.com/scope", "read"))
            .expect("an impersonation");
        let credential = Credential::bearer(&Secret::new("t"))
            .and_then(|credential| credential.with_impersonation(impersonation))
            .expect("a credential");
        let mut headers = HeaderMap::new();
        for name in ["impersonate-user", "impersonate-group", "impersonate-extra-a"] {
            headers.insert(name, HeaderValue::from_static("root"));
        }

        credential.apply(&mut headers);

        let all = |name: &str| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(all("impersonate-user"), ["alice"]);
        assert_eq!(all("impersonate-group"), ["team-a", "team b"]);
        assert_eq!(all("impersonate-uid"), ["42"]);
        assert_eq!(all("impersonate-extra-example.com%2fscope"), ["read"]);
        assert_eq!(headers.len(), 6);
    }

    #[test]
    fn reserved_or_ambiguous_name_is_never_impersonated() {
        for name in [
            "system:admin",
            "system:masters",
            "SYSTEM:masters",
            "system:serviceaccount:kube-system:x",
            "system:",
            "",
            " alice",
            "alice ",
            "alice\r\nimpersonate-group: system:masters",
            "al\u{ef}ce",
        ] {
            for refused in [
                Impersonation::user(name),
                Impersonation::user("a").and_then(|user| user.with_group(name)),
                Impersonation::user("a").and_then(|user| user.with_uid(name)),
                Impersonation::user("a").and_then(|user| user.with_extra("key", name)),
            ] {
                assert_eq!(refused.expect_err(name).kind(), ErrorKind::Refused);
            }
        }
        for key in [
            "",
            "Key",
            "a b",
            "a:b",
            "kubernetes.io/x",
            "authentication.kubernetes.io/pod-name",
            "k8s.io/a",
        ] {
            let refused = Impersonation::user("a").and_then(|user| user.with_extra(key, "value"));

            assert!(refused.is_err(), "{key}");
        }
    }

    #[test]
    fn nobody_is_impersonated_without_a_credential() {
        let impersonation = Impersonation::user("alice").expect("an impersonation");

        let refused = Credential::anonymous().with_impersonation(impersonation);

        assert_eq!(refused.expect_err("refused").kind(), ErrorKind::ConfigInvalid);
    }
}
