//! A span around each request, so that its log lines can be told from others'.

use axum::{extract::Request, middleware::Next, response::Response};
use tracing::{Instrument, info_span};

/// Runs the request in a span with an ID, its method and its path. No query: it may hold anything.
pub(crate) async fn in_span(request: Request, next: Next) -> Response {
    let span = info_span!(
        "request",
        request_id = %format_args!("{:016x}", request_id()),
        method = %request.method(),
        path = request.uri().path(),
    );
    next.run(request).instrument(span).await
}

/// Random enough to tell requests apart in a log; zero without a source of randomness.
fn request_id() -> u64 {
    getrandom::u64().unwrap_or_default()
}
