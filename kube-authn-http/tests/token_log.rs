//! What the token API writes into the audit log. In a binary of its own: the log is the whole process's.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests"
)]

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use kube_authn_http::TokenExposure;
use serde_json::json;
use support::{Service, VERIFIED, as_caller, clock};

#[tokio::test]
async fn token_that_is_handed_out_and_service_that_acts_for_a_user_are_never_left_out_of_the_log() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &["openportal"])]).await;
    let tokens = service.tokens("alice-sub", json!({}));
    let (token, all) = ("/api/cluster-auth/token", "/api/cluster-auth/tokens");

    service.post("plugin-for:alice", &tokens).await;
    service.get("plugin-for:alice", token).await;
    service.get("alice", token).await;
    service.post("plugin-for:bob", &tokens).await;
    service.post("plugin-for:guest", &tokens).await;
    let successor = as_caller("alice", "GET", token)
        .header(VERIFIED, format!("{} mallory", service.issuer.url()))
        .body(axum::body::Body::empty());
    service.send(successor.expect("a request")).await;
    service.delete("plugin-for:alice", all).await;
    service.post("alice", &tokens).await;
    service.delete("alice", all).await;

    let text = log.text();
    let told: Vec<_> = text
        .lines()
        .filter(|line| line.contains("kube_authn::audit"))
        .filter_map(|line| {
            let event = line.split("event=\"").nth(1)?.split('"').next()?;
            Some((event, line.contains("actor=service:plugin:catalog")))
        })
        .filter(|(event, _)| *event != "identity_pinned")
        .collect();
    assert_eq!(
        told,
        [
            ("login_stored", true),
            ("token_exposed", true),
            ("token_exposed", false),
            ("login_refused", true),
            ("login_refused", true),
            ("login_withheld", false),
            ("login_ended", true),
            ("login_stored", false),
            ("login_ended", false),
        ],
        "{text}"
    );
    assert!(
        text.contains("event=\"token_exposed\" principal=user:default/alice"),
        "{text}"
    );
    assert!(!text.contains("canary") && !text.contains("eyJ"), "{text}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
