//! Which way a request goes: short call, long stream, or upgrade.

use http::{Request, header};

/// What kind of request it is, as far as connections are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Answered and done.
    Short,
    /// Stays open: a watch, a log that is followed, a stream through the API server to a pod or service.
    Long,
    /// Leaves HTTP: exec, attach, port-forward.
    Upgrade,
}

impl Way {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        if is_upgrade(request) {
            return Self::Upgrade;
        }
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        match is_true(query, "watch") || is_true(query, "follow") || has_long_segment(path) {
            true => Self::Long,
            false => Self::Short,
        }
    }
}

/// `Connection: Upgrade` together with `Upgrade` (RFC 9110 section 7.8).
fn is_upgrade<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
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
    path.split('/')
        .any(|segment| segment == "watch" || segment == "proxy")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(uri: &str) -> Way {
        Way::of(&Request::get(uri).body(()).expect("a request"))
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

    #[test]
    fn upgrade_needs_both_headers() {
        let both = Request::get("/exec")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "SPDY/3.1");
        let one = Request::get("/exec").header("upgrade", "websocket");

        assert_eq!(Way::of(&both.body(()).expect("a request")), Way::Upgrade);
        assert_eq!(Way::of(&one.body(()).expect("a request")), Way::Short);
    }
}
