//! Callers whom a gateway in front of us has authenticated, named by a header.

use std::{fmt, net::IpAddr, sync::Arc};

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue};
use kube_authn_core::{EntityRef, Error, ErrorKind, Principal, Result};

use super::{Caller, CallerAuthenticator, CallerRequest};

/// Believes a header of trusted peers. Clones share the rule.
///
/// The header names a user: an entity reference, or a name alone, which is one of kind `user` in namespace `default`. From
/// any other peer it means nothing. A second line of it, or one spelled with underscores (`X_Forwarded_User`), is refused: a
/// client may have sent it past the gateway. What another site made a browser send ([`CallerRequest::is_cross_site`]) is
/// refused too: browsers attach by themselves what the gateway knows its users by.
#[derive(Clone)]
pub struct HeaderCallers {
    header: HeaderName,
    is_trusted: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

impl HeaderCallers {
    /// Callers named by this header, if `is_trusted` says yes to the address at the other end of the connection.
    pub fn new(header: HeaderName, is_trusted: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self {
            header,
            is_trusted: Arc::new(is_trusted),
        }
    }

    /// The one value of the header, under its own spelling.
    fn value<'a>(&self, headers: &'a HeaderMap) -> Result<Option<&'a HeaderValue>> {
        let other_spelling = headers
            .keys()
            .any(|name| *name != self.header && same_header(name, &self.header));
        let mut values = headers.get_all(&self.header).iter();
        match (values.next(), values.next(), other_spelling) {
            (value, None, false) => Ok(value),
            _ => Err(refused("stands there twice, or in another spelling")),
        }
    }
}

#[async_trait]
impl CallerAuthenticator for HeaderCallers {
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>> {
        // A peer that the server does not name is nobody's.
        if !request.peer.is_some_and(|peer| (self.is_trusted)(peer.ip())) {
            return Ok(None);
        }
        let Some(value) = self.value(request.headers)? else {
            return Ok(None);
        };
        if request.is_cross_site() {
            return Err(Error::new(
                ErrorKind::Refused,
                "a page of another site made the browser send this: call from a page of this one",
            ));
        }
        let name = value
            .to_str()
            .map_err(|source| refused("is not ASCII").with_source(source))?;
        let user = match name.contains(':') {
            true => EntityRef::parse(name),
            false => EntityRef::parse(&format!("user:default/{name}")),
        };
        let user = user.map_err(|source| refused("names nobody").with_source(source))?;
        Ok(Some(Caller::new(Principal::user(user))))
    }

    fn headers(&self) -> Vec<HeaderName> {
        vec![self.header.clone()]
    }
}

impl fmt::Debug for HeaderCallers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeaderCallers")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// Whether servers that make variables of headers cannot tell these two apart.
fn same_header(one: &HeaderName, other: &HeaderName) -> bool {
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
    one.as_str()
        .bytes()
        .map(dashed)
        .eq(other.as_str().bytes().map(dashed))
}

fn refused(why: &str) -> Error {
    let text = format!("the gateway's user header {why}: authenticate again");
    Error::new(ErrorKind::CallerUnknown, text)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::extract::ConnectInfo;
    use http::Request;

    use super::*;

    const USER: HeaderName = HeaderName::from_static("x-forwarded-user");

    async fn authenticate(peer: Option<&str>, lines: &[(&str, &str)]) -> Result<Option<String>> {
        let callers = HeaderCallers::new(USER, |peer| peer.to_string() == "127.0.0.1");
        let mut request = Request::get("/");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        if let Some(peer) = peer {
            let address = SocketAddr::new(peer.parse().expect("an address"), 1234);
            head.extensions.insert(ConnectInfo(address));
        }
        let request = CallerRequest::new(&head)?;
        let caller = callers.authenticate(&request).await?;
        Ok(caller.map(|caller| caller.principal.to_string()))
    }

    #[tokio::test]
    async fn trusted_peer_names_the_user() {
        for (value, user) in [
            ("alice", "user:default/alice"),
            ("Alice", "user:default/alice"),
            ("user:team-a/alice", "user:team-a/alice"),
        ] {
            let caller = authenticate(Some("127.0.0.1"), &[("X-Forwarded-User", value)]).await;
            assert_eq!(caller.expect("accepted").as_deref(), Some(user));
        }
    }

    #[tokio::test]
    async fn header_of_an_untrusted_peer_names_nobody() {
        for peer in [Some("127.0.0.2"), Some("::1"), None] {
            let caller = authenticate(peer, &[("X-Forwarded-User", "alice")]).await;
            assert_eq!(caller.expect("ignored"), None, "{peer:?}");
        }
    }

    #[tokio::test]
    async fn duplicate_or_underscored_header_is_refused() {
        for lines in [
            &[("X-Forwarded-User", "alice"), ("X-Forwarded-User", "bob")][..],
            &[("X-Forwarded-User", "alice"), ("X_Forwarded_User", "bob")],
            &[("X_Forwarded_User", "bob")],
            &[("X-Forwarded_User", "bob")],
        ] {
            assert!(authenticate(Some("127.0.0.1"), lines).await.is_err(), "{lines:?}");
        }
    }

    #[tokio::test]
    async fn local_part_of_an_email_is_never_the_user() {
        let caller = authenticate(Some("127.0.0.1"), &[("X-Forwarded-User", "alice@evil.example")]).await;

        assert_eq!(
            caller.expect("accepted").as_deref(),
            Some("user:default/alice@evil.example")
        );
    }

    #[tokio::test]
    async fn name_that_is_no_reference_is_refused() {
        for value in ["", "a/b", "user:default/", "a b", "user:default/a/b"] {
            assert!(
                authenticate(Some("127.0.0.1"), &[("X-Forwarded-User", value)])
                    .await
                    .is_err(),
                "{value:?}"
            );
        }
    }
}
