//! Which way a request goes: short call, long stream, or upgrade.

use http::{HeaderMap, Uri, header};

/// What kind of request it is, as far as connections and deadlines are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "complete: each has its lane and its deadlines"
)]
pub enum Way {
    /// Answered and done.
    Short,
    /// Stays open: a watch, a log that is followed, a stream through the API server to a pod or service.
    Long,
    /// Leaves HTTP: exec, attach, port-forward.
    Upgrade,
}

impl Way {
    /// The way that [`ClusterAccess::send`](crate::ClusterAccess::send) takes for a request to this path of the API
    /// server, with these headers.
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        if is_upgrade(headers) {
            return Self::Upgrade;
        }
        let path = uri.path();
        let query = uri.query().unwrap_or_default();
        match is_true(query, "watch") || is_true(query, "follow") || has_long_segment(path) {
            true => Self::Long,
            false => Self::Short,
        }
    }
}

/// `Connection: Upgrade` together with `Upgrade` (RFC 9110 section 7.8), to a protocol of exec, attach and port-forward.
/// An upgrade to another HTTP is none: requests inside such a tunnel could claim any identity.
fn is_upgrade(headers: &HeaderMap) -> bool {
    let mut protocols = options(headers, header::UPGRADE).peekable();
    protocols.peek().is_some()
        && protocols.all(|protocol| TUNNELS.iter().any(|tunnel| protocol.eq_ignore_ascii_case(tunnel)))
        && options(headers, header::CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"))
}

/// A line that is no text counts as an option that nobody knows: the API server might read some of it.
fn options(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.to_str().unwrap_or("?").split(','))
        .map(str::trim)
}

/// As the API server reads it: there, and neither `false` nor `0` (`Convert_Slice_string_To_bool` of apimachinery).
fn is_true(query: &str, key: &str) -> bool {
    query
        .split('&')
        .filter_map(|pair| match pair.split_once('=') {
            Some((name, value)) if name == key => Some(value),
            None if pair == key => Some(""),
            _ => None,
        })
        .next()
        .is_some_and(|value| !value.eq_ignore_ascii_case("false") && value != "0")
}

/// `/api/v1/watch/...`, and what lies behind `.../proxy`, which the API server gives no deadline either.
fn has_long_segment(path: &str) -> bool {
    has_segment(path, "watch") || is_passed_on(path)
}

/// Whether the API server passes the request on to a pod, service or node.
pub(crate) fn is_passed_on(path: &str) -> bool {
    has_segment(path, "proxy")
}

fn has_segment(path: &str, name: &str) -> bool {
    path.split('/').any(|segment| segment == name)
}

/// What kube-apiserver streams over (`k8s.io/apimachinery/pkg/util/httpstream`).
const TUNNELS: [&str; 2] = ["websocket", "SPDY/3.1"];

#[cfg(test)]
mod tests {
    use super::*;

    fn way(uri: &str) -> Way {
        Way::of(&uri.parse().expect("a URI"), &HeaderMap::new())
    }

    #[test]
    fn watches_and_follows_are_long() {
        for uri in [
            "/api/v1/pods?watch=true",
            "/api/v1/pods?limit=5&watch=1",
            "/api/v1/pods?watch",
            "/api/v1/watch/pods",
            "/api/v1/namespaces/a/pods/p/log?follow=true",
            "/api/v1/namespaces/a/services/s/proxy/events",
        ] {
            assert_eq!(way(uri), Way::Long, "{uri}");
        }
        for uri in [
            "/api/v1/pods",
            "/api/v1/pods?watch=false",
            "/api/v1/pods?watch=0&follow=False",
            "/api/v1/pods?unwatch=true",
        ] {
            assert_eq!(way(uri), Way::Short, "{uri}");
        }
    }

    fn upgrading(connection: &str, upgrade: &str) -> Way {
        let request = http::Request::get("/exec")
            .header("connection", connection)
            .header("upgrade", upgrade)
            .body(())
            .expect("a request");
        Way::of(request.uri(), request.headers())
    }

    #[test]
    fn upgrade_needs_both_headers() {
        assert_eq!(upgrading("keep-alive, Upgrade", "SPDY/3.1"), Way::Upgrade);
        assert_eq!(upgrading("upgrade", "WebSocket"), Way::Upgrade);
        assert_eq!(upgrading("keep-alive", "websocket"), Way::Short);
        assert_eq!(upgrading("upgrade", ""), Way::Short);
    }

    #[test]
    fn upgrade_to_another_http_never_opens_a_tunnel() {
        for protocol in ["h2c", "HTTP/2.0", "websocket, h2c", "TLS/1.0"] {
            assert_eq!(
                upgrading("Upgrade, HTTP2-Settings", protocol),
                Way::Short,
                "{protocol}"
            );
        }
    }

    #[test]
    fn upgrade_hidden_in_bytes_that_are_no_text_never_opens_a_tunnel() {
        for hidden in [&b"h2c, \xff"[..], b"h2c\xff", b"\xff"] {
            let request = http::Request::get("/exec")
                .header("connection", "upgrade")
                .header("upgrade", hidden)
                .header("upgrade", "websocket")
                .body(())
                .expect("a request");

            assert_eq!(
                Way::of(request.uri(), request.headers()),
                Way::Short,
                "{hidden:?}"
            );
        }
    }
}
