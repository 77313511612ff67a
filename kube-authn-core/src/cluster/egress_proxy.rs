//! The egress proxy on the way to an API server.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::Secret;

/// A proxy through which connections to an API server are opened: `http://` by CONNECT (RFC 9110 section 9.3.6), or
/// `socks5://` (RFC 1928), which resolves the server's name itself. `Debug` shows neither user nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct EgressProxy {
    kind: EgressProxyKind,
    /// Without brackets.
    host: String,
    port: u16,
    /// User and password, decoded.
    login: Option<(Secret, Secret)>,
}

/// How an egress proxy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EgressProxyKind {
    Http,
    Socks5,
}

impl EgressProxy {
    /// Parses `http://[user:password@]host[:port]` or `socks5://...`; the ports are 80 and 1080 if none is written, as in
    /// client-go.
    ///
    /// # Errors
    /// A sentence that says what is wrong; it repeats nothing of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("the proxy's url is no URL: {error}"))?;
        let (kind, default_port) = match url.scheme() {
            "http" => (EgressProxyKind::Http, 80),
            // Go resolves names at the proxy with either.
            "socks5" | "socks5h" => (EgressProxyKind::Socks5, 1080),
            _ => return Err("the proxy's url must begin with http:// or socks5://".to_owned()),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err("the proxy's url must be scheme, host and port alone".to_owned());
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err("the proxy's url has no host".to_owned()),
        };
        let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some((decoded(user), decoded(password.unwrap_or_default()))),
        };
        if let Some((user, password)) = &login
            && (user.len().max(password.len()) > 255
                || std::str::from_utf8(user).is_err()
                || std::str::from_utf8(password).is_err())
        {
            return Err("user and password of the proxy must be text of at most 255 bytes each".to_owned());
        }
        Ok(Self {
            kind,
            host,
            port: url.port().unwrap_or(default_port),
            login: login.map(|(user, password)| (Secret::new(user), Secret::new(password))),
        })
    }

    /// The host to connect to, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    #[cfg(feature = "upstream")]
    pub(crate) fn kind(&self) -> EgressProxyKind {
        self.kind
    }

    #[cfg(feature = "upstream")]
    pub(crate) fn login(&self) -> Option<&(Secret, Secret)> {
        self.login.as_ref()
    }
}

/// Where it is; never whom it knows us as.
impl Hash for EgressProxy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.kind, &self.host, self.port).hash(state);
    }
}

/// `host:port`, for messages.
impl fmt::Display for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressProxy")
            .field("kind", &self.kind)
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_those_of_client_go_unless_written() {
        for (text, expected) in [
            ("http://proxy.example.com", "proxy.example.com:80"),
            ("http://proxy.example.com:3128/", "proxy.example.com:3128"),
            ("socks5://[::1]", "[::1]:1080"),
            ("socks5h://127.0.0.1:9", "127.0.0.1:9"),
        ] {
            assert_eq!(EgressProxy::parse(text).expect(text).to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_such_proxy_is_refused_without_repeating_it() {
        for text in [
            "canary",
            "https://canary@proxy",
            "socks4://canary",
            "http://canary/path",
            "http://canary?a",
            "http://",
            "socks5://",
            &format!("http://{}:a@proxy", "canary".repeat(50)),
            "http://canary:%ff@proxy",
        ] {
            let refused = EgressProxy::parse(text).expect_err(text);

            assert!(!refused.contains("canary"), "{refused}");
        }
    }

    #[test]
    fn debug_shows_no_login_and_another_login_is_another_proxy() {
        let parse = |text| EgressProxy::parse(text).expect(text);
        let (one, two) = (parse("http://canary:canary%40@proxy"), parse("http://b:c@proxy"));

        assert!(!format!("{one:?} {one}").contains("canary"));
        assert_ne!(one, two);
        assert_eq!(one, parse("http://canary:canary%40@proxy:80"));
    }
}
