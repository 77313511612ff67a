//! One global subscriber sees everything that any crate below us logs, at trace level. Alone in its binary, so that it
//! sees nothing else.

#![cfg(feature = "upstream")]
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]

mod support;

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::Request;
use kube_authn_core::{Body, Lane};
use support::*;
use tracing_subscriber::fmt::MakeWriter;

const CANARY: &str = "canary-3f9a77c1";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_never_shows_in_any_log_at_trace_level() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .init();
    let ca = Ca::new();
    let server = Server::start(ca.server(&[H2, H1]), |request, peer| async move {
        match request.headers().contains_key("upgrade") {
            true => echo_upgrade(request, peer).await,
            false => Ok(status(401)),
        }
    })
    .await;
    let strange = Server::start(None, echo_identity).await;

    for lane in [Lane::Http2, Lane::Http1] {
        for server in [&server, &strange] {
            let access = access(
                vec![cluster("a", server, &ca)],
                Strategy::new(|_| Ok(bearer(CANARY))),
                lane,
            );
            let request = access.request(&alice(), "a").expect("a request");
            let post = Request::post("/api")
                .header("authorization", format!("Bearer {CANARY}"))
                .header("cookie", CANARY)
                .body(Body::from(Bytes::from(CANARY)))
                .expect("a request");
            for http in [get("/api"), post, upgrade("/exec")] {
                let answer = access.send(&request, http).await;
                let shown = format!("{answer:?} {access:?} {request:?}");
                assert!(!shown.contains(CANARY), "{shown}");
            }
        }
    }

    let written = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
    // hyper itself is silent unless it is built with an unstable flag.
    for crate_below in ["h2::", "rustls::"] {
        assert!(written.contains(crate_below), "{crate_below} was not listened to");
    }
    let told: Vec<_> = written
        .lines()
        .filter(|line| line.contains(CANARY))
        .take(5)
        .collect();
    assert!(told.is_empty(), "{told:#?}");
}
