//! What readiness writes into the log. In a binary of its own: whether a line is wanted is remembered for the whole process.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use http::Request;
use kube_authn_core::{Error, ErrorKind};
use kube_authn_http::Health;
use tower::ServiceExt;

#[tokio::test(start_paused = true)]
async fn outage_is_told_once_in_the_log_and_so_is_its_end() {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let writer = std::sync::Mutex::new(log.reopen().expect("the file"));
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(writer)
        .finish();
    let _log = tracing::subscriber::set_default(subscriber);
    let answers = Arc::new(AtomicBool::new(true));
    let store = answers.clone();
    let router = Health::new()
        .with_required("store", move || {
            let answers = store.load(Ordering::SeqCst);
            let down = || Error::new(ErrorKind::Unavailable, "down");
            async move { answers.then_some(()).ok_or_else(down) }
        })
        .router();

    for answer in [true, false, false, false, true, true] {
        answers.store(answer, Ordering::SeqCst);
        tokio::time::advance(Duration::from_secs(6)).await;
        let request = Request::get("/readyz").body(Body::empty()).expect("a request");
        router.clone().oneshot(request).await.expect("infallible");
    }

    let log = std::io::read_to_string(log).expect("the log");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(
        lines[0].contains("a readiness check failed check=\"store\" error=down"),
        "{log}"
    );
    assert!(
        lines[1].contains("a readiness check holds again check=\"store\""),
        "{log}"
    );
}
