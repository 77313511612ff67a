//! In a binary of its own: a place in the code that logs asks only once whether anybody listens, and tests that do not
//! listen would answer for the one that does.

#![cfg(unix)]
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
};

use kube_authn_core::{ClusterDetails, CredentialRequest, KubernetesAuthProvider, Principal};
use kube_authn_providers::ServiceAccountProvider;

#[tokio::test]
async fn token_that_every_user_can_read_is_warned_of_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let token = folder.path().join("token");
    fs::write(&token, "canary").expect("written");
    let strategy = ServiceAccountProvider::with_folder(folder.path());
    let cluster = ClusterDetails::builder("home", "https://127.0.0.1")
        .auth_provider(ServiceAccountProvider::NAME)
        .build()
        .expect("a cluster");
    let request = CredentialRequest::new(Principal::anonymous(), cluster);
    let allow = |mode| fs::set_permissions(&token, fs::Permissions::from_mode(mode)).expect("permissions");
    let log = Log::default();
    let _recording = log.record();

    allow(0o600);
    strategy.credential(&request).await.expect("a credential");
    assert_eq!(log.text(), "");
    allow(0o644);
    for _ in 0..3 {
        strategy.credential(&request).await.expect("a credential");
    }

    assert_eq!(log.text().matches("WARN").count(), 1, "{}", log.text());
    assert!(!log.text().contains("canary"), "{}", log.text());
}

/// Collects what `tracing` writes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn record(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("the lock")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
