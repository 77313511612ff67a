//! Which cluster a request names, and the path for its API server: decided on and forwarded as the same bytes.

use http::{Uri, Version, uri::PathAndQuery};
use kube_authn_core::{Error, ErrorKind, Result};

/// A request target, taken apart.
#[derive(Debug)]
pub(super) struct Target {
    /// The cluster that the path names, percent-decoded once; `None` where a header may name it.
    pub(super) cluster: Option<String>,
    /// Path and query for the API server.
    pub(super) uri: Uri,
}

/// Whether the path names its cluster; else a header does, and Backstage's client asks.
pub(super) fn names_cluster(uri: &Uri) -> bool {
    !uri.path().starts_with(BY_HEADER)
}

impl Target {
    /// # Errors
    /// `RequestInvalid` for a target that somebody on the way could read in two ways.
    pub(super) fn parse(uri: &Uri, version: Version) -> Result<Self> {
        // In HTTP/2 every request has an authority; it is ours, and ends here.
        if uri.authority().is_some() && version < Version::HTTP_2 {
            return Err(refuse(Trick::Authority));
        }
        let Some((cluster, path)) = split(uri.path()) else {
            return Err(Error::new(
                ErrorKind::RequestInvalid,
                "no path of the Kubernetes proxy",
            ));
        };
        let cluster = cluster.map(decode_name).transpose().map_err(refuse)?;
        let path = match path {
            "" => "/",
            path => path,
        };
        check(path).map_err(refuse)?;
        let joined = match uri.query() {
            Some(query) if !query.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Err(refuse(Trick::Byte));
            }
            Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
            None => PathAndQuery::try_from(path),
        };
        let uri = joined.map(Uri::from).map_err(|source| {
            Error::new(ErrorKind::RequestInvalid, "the path is none of HTTP").with_source(source)
        })?;
        Ok(Self { cluster, uri })
    }
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Trick {
    #[error("the request names a server of its own: send a path, the cluster decides on the server")]
    Authority,
    #[error("the path holds a dot segment: send the path that it stands for")]
    DotSegment,
    #[error("the path holds an empty segment: send single slashes")]
    EmptySegment,
    #[error("the path holds a backslash, plain or encoded")]
    Backslash,
    #[error("the target holds a control or non-ASCII character: percent-encode what may be encoded")]
    Byte,
    #[error("the path holds an encoded control character")]
    Control,
    #[error("the path's percent-encoding is broken: two hexadecimal digits follow a percent sign")]
    Encoding,
    #[error("the path's percent-encoding is no UTF-8")]
    Utf8,
    #[error("the path is percent-encoded again and again")]
    Depth,
}

fn refuse(trick: Trick) -> Error {
    Error::new(ErrorKind::RequestInvalid, trick.to_string()).with_source(trick)
}

/// The cluster's segment, if there is one, and what follows the proxy's own path.
fn split(path: &str) -> Option<(Option<&str>, &str)> {
    let (cluster, rest) = match path.strip_prefix(BY_HEADER) {
        Some(rest) => (None, rest),
        None => {
            let (name, rest) = path.strip_prefix(BY_NAME)?.split_once('/')?;
            (Some(name), rest.strip_prefix("proxy")?)
        }
    };
    (rest.is_empty() || rest.starts_with('/')).then_some((cluster, rest))
}

fn decode_name(segment: &str) -> Result<String, Trick> {
    String::from_utf8(decode(segment.as_bytes())?).map_err(|_| Trick::Utf8)
}

/// Refuses what the API server, a proxy before it, or a service behind it could take for another path. `%2F` stays: it
/// is no separator to the API server, but counts as one in the search for dot segments.
fn check(path: &str) -> Result<(), Trick> {
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Trick::Byte);
    }
    if path.contains("//") {
        return Err(Trick::EmptySegment);
    }
    look(path.as_bytes())?;
    if !path.contains('%') {
        return Ok(());
    }
    let mut text = decode(path.as_bytes())?;
    if std::str::from_utf8(&text).is_err() {
        return Err(Trick::Utf8);
    }
    for _ in 0..MAX_DEPTH {
        look(&text)?;
        match decode_again(&text) {
            Some(decoded) => text = decoded,
            None => return Ok(()),
        }
    }
    Err(Trick::Depth)
}

fn look(text: &[u8]) -> Result<(), Trick> {
    if text.contains(&b'\\') {
        return Err(Trick::Backslash);
    }
    if text.iter().any(u8::is_ascii_control) {
        return Err(Trick::Control);
    }
    // Some servers read `..;x` as `..` with a parameter (RFC 3986 section 3.3 leaves it to them).
    let is_dots = |segment: &[u8]| {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    };
    match text.split(|byte| *byte == b'/').any(is_dots) {
        true => Err(Trick::DotSegment),
        false => Ok(()),
    }
}

/// One round of percent-decoding.
fn decode(text: &[u8]) -> Result<Vec<u8>, Trick> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        decoded.push(match byte {
            b'%' => {
                let value = escape(after).ok_or(Trick::Encoding)?;
                rest = &after[2..];
                value
            }
            byte => byte,
        });
    }
    Ok(decoded)
}

/// Another round for whoever decodes once too often; what is no escape stands for itself. `None` if nothing changes.
fn decode_again(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        decoded.push(match escape(after).filter(|_| byte == b'%') {
            Some(value) => {
                rest = &after[2..];
                value
            }
            None => byte,
        });
    }
    (decoded.len() < text.len()).then_some(decoded)
}

fn escape(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? << 4 | digit(1)?).ok()
}

const BY_HEADER: &str = "/api/kubernetes/proxy";
const BY_NAME: &str = "/api/kubernetes/clusters/";

/// Nobody encodes a name of Kubernetes three times over.
const MAX_DEPTH: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(uri: &str) -> Result<Target> {
        Target::parse(&uri.parse().expect("a URI"), Version::HTTP_11)
    }

    #[test]
    fn legal_paths_keep_every_byte() {
        for path in [
            "/",
            "/api/v1/pods",
            "/api/v1/pods/",
            "/api/v1/pods?b=2&a=1&b=%2e%2e",
            "/api/v1/namespaces/a/services/https:s:443/proxy/x%2Fy%2fz",
            "/apis/x;y=1/z;..",
            "/a/..b/.c/d../...",
            "/a/100%25/%C3%BC/%7e~",
            "/a/%2525",
            "/a?",
            "/a?x=%00%5c\\{}|",
            "/a@b:c/$&'()*+,=!",
        ] {
            let target = parse(&format!("/api/kubernetes/proxy{path}")).expect(path);

            assert_eq!((target.uri.to_string().as_str(), target.cluster), (path, None));
        }
    }

    #[test]
    fn path_that_can_be_read_in_two_ways_is_refused() {
        for (path, trick) in [
            ("/..", Trick::DotSegment),
            ("/a/../b", Trick::DotSegment),
            ("/a/./b", Trick::DotSegment),
            ("/a/.", Trick::DotSegment),
            ("/a/%2e%2E/b", Trick::DotSegment),
            ("/a/.%2e", Trick::DotSegment),
            ("/a/%252e%252e/b", Trick::DotSegment),
            ("/a/%25%32e%2e/b", Trick::DotSegment),
            ("/a%2F..%2fb", Trick::DotSegment),
            ("/a%252f%2e%2e%252fb", Trick::DotSegment),
            ("/a/..;/b", Trick::DotSegment),
            ("/a/..%3bx/b", Trick::DotSegment),
            ("//other/a", Trick::EmptySegment),
            ("/a//b", Trick::EmptySegment),
            ("/a\\b", Trick::Backslash),
            ("/a/..%5cb", Trick::Backslash),
            ("/a%255Cb", Trick::Backslash),
            ("/a%00", Trick::Control),
            ("/a%0d%0aX:", Trick::Control),
            ("/a%2500", Trick::Control),
            ("/a%7f", Trick::Control),
            ("/a%", Trick::Encoding),
            ("/a%2", Trick::Encoding),
            ("/a%zz", Trick::Encoding),
            ("/a%+1", Trick::Encoding),
            ("/%c0%ae%c0%ae/a", Trick::Utf8),
            ("/a%252525252e", Trick::Depth),
        ] {
            assert_eq!(check(path), Err(trick), "{path}");
        }
    }

    #[test]
    fn cluster_is_decoded_once() {
        let target = parse("/api/kubernetes/clusters/a%2Fb%2520c/proxy/api?x").expect("a target");

        assert_eq!(target.cluster.as_deref(), Some("a/b%20c"));
        assert_eq!(target.uri, "/api?x");
        assert_eq!(
            parse("/api/kubernetes/clusters/a/proxy").expect("a target").uri,
            "/"
        );
    }

    #[test]
    fn server_of_the_clients_choice_is_refused() {
        let error = parse("http://other/api/kubernetes/proxy/a").expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::RequestInvalid);
    }
}
