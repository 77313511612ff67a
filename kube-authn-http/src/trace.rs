//! A span around each request, so that its log lines can be told from others'.

use std::borrow::Cow;

use axum::{extract::Request, middleware::Next, response::Response};
use http::Method;
use tracing::{Instrument, Span, info_span};

/// Runs the request in a span with an ID, its method and its path. No query: it may hold anything.
pub(crate) async fn in_span(request: Request, next: Next) -> Response {
    let span = span(request.method(), request.uri().path());
    next.run(request).instrument(span).await
}

/// The span of a request.
pub(crate) fn span(method: &Method, path: &str) -> Span {
    info_span!(
        "request",
        request_id = %format_args!("{:016x}", request_id()),
        %method,
        path = &*shown(path),
    )
}

/// A path for the log and for people: of one longer than 1 KiB the beginning, and `…` for the rest. Anybody may send one of
/// 64 KiB, known or not.
pub(crate) fn shown(path: &str) -> Cow<'_, str> {
    match path.len() > MAX_SHOWN_BYTES {
        true => Cow::Owned(format!("{}…", &path[..path.floor_char_boundary(MAX_SHOWN_BYTES)])),
        false => Cow::Borrowed(path),
    }
}

const MAX_SHOWN_BYTES: usize = 1024;

/// Random enough to tell requests apart in a log; zero without a source of randomness.
fn request_id() -> u64 {
    getrandom::u64().unwrap_or_default()
}
