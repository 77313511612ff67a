//! The API server's base URL.

use std::fmt;

use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use url::{Host, Url};

/// An API server's base URL, `scheme://host[:port][/path]`: http or https, without user info, query, fragment and
/// trailing slash. Host names are normalised as in the WHATWG URL standard.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    scheme: Scheme,
    authority: Authority,
    /// Without trailing slash; empty for the root.
    base_path: String,
    host: String,
    port: u16,
    loopback: bool,
}

impl ServerUrl {
    /// Parses the text.
    ///
    /// # Errors
    /// A sentence that says what is wrong; it repeats nothing that may be a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("the url is no URL: {error}"))?;
        let scheme = match url.scheme() {
            "https" => Scheme::HTTPS,
            "http" => Scheme::HTTP,
            other => {
                return Err(format!(
                    "the url must begin with https:// or http://, not {other}:"
                ));
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the url must not contain credentials".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the url must have neither query nor fragment".to_owned());
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err("the url has no host".to_owned());
        };
        let loopback = match &host {
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
            Host::Domain(name) => *name == "localhost",
        };
        let shown_host = host.to_string();
        let authority = match url.port() {
            Some(port) => format!("{shown_host}:{port}"),
            None => shown_host.clone(),
        };
        let base_path = url.path().trim_end_matches('/').to_owned();
        if !base_path.is_empty() {
            PathAndQuery::try_from(base_path.as_str())
                .map_err(|error| format!("the url's path is invalid: {error}"))?;
        }
        Ok(Self {
            scheme,
            authority: Authority::try_from(authority)
                .map_err(|error| format!("the url's host is invalid: {error}"))?,
            base_path,
            host: shown_host.trim_matches(['[', ']']).to_owned(),
            port,
            loopback,
        })
    }

    /// `https` or `http`.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Whether TLS is spoken.
    pub fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Whether the host is a loopback address or `localhost`.
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }

    /// `host` or `host:port`, as it goes into the `Host` header.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The host to connect to and to find in the certificate, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path that every request path is put behind, without trailing slash; empty for the root.
    pub fn base_path(&self) -> &str {
        &self.base_path
    }

    /// `scheme://host:port`, with the port always there.
    pub fn origin(&self) -> String {
        let host = self.authority.host();
        format!("{}://{host}:{}", self.scheme, self.port)
    }

    /// The URI of a request: this server, the base path, then path and query byte for byte.
    ///
    /// # Errors
    /// [`http::Error`] if base path and path together are no path.
    pub fn join(&self, path_and_query: &PathAndQuery) -> Result<Uri, http::Error> {
        let path = match self.base_path.as_str() {
            "" => path_and_query.clone(),
            base => PathAndQuery::try_from(format!("{base}{path_and_query}"))?,
        };
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.base_path)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_url_are_normalised() {
        let url = ServerUrl::parse("https://API.example.com:443/k8s/clusters/c-1/").expect("a URL");

        assert_eq!(url.to_string(), "https://api.example.com/k8s/clusters/c-1");
        assert_eq!(
            (url.host(), url.port(), url.base_path()),
            ("api.example.com", 443, "/k8s/clusters/c-1")
        );
    }

    #[test]
    fn ipv6_literals_work() {
        let url = ServerUrl::parse("https://[::1]:6443").expect("a URL");

        assert_eq!((url.host(), url.port(), url.is_loopback()), ("::1", 6443, true));
        assert_eq!(url.origin(), "https://[::1]:6443");
    }

    #[test]
    fn requests_keep_their_bytes() {
        let url = ServerUrl::parse("https://a/base").expect("a URL");
        let path = PathAndQuery::from_static("/api/v1/x%2Fy;z?b=2&a=1");

        assert_eq!(
            url.join(&path).expect("a URI").to_string(),
            "https://a/base/api/v1/x%2Fy;z?b=2&a=1"
        );
    }

    #[test]
    fn url_that_cannot_work_is_refused() {
        for text in [
            "",
            "kubernetes.default",
            "ftp://a",
            "https://",
            "https://u:p@a",
            "https://a/?q=1",
            "https://a/#f",
        ] {
            let message = ServerUrl::parse(text).expect_err("refused");

            assert!(!message.contains("u:p"), "{message}");
        }
    }
}
