//! What the tests of several strategies need.

use std::sync::{Arc, Mutex};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use kube_authn_core::{
    AuthMetadata, ClusterBuilder, ClusterDetails, Credential, CredentialRequest, EntityRef, Principal,
    ProviderRegistry, Secret,
    conformance::provider::{self, ProviderFixture},
    http::{HeaderMap, header},
};

/// A compact JWS of this subject that ends at this second, unsigned.
pub(crate) fn jwt(subject: &str, exp: i64) -> Secret {
    let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"{subject}","exp":{exp}}}"#));
    Secret::new(format!("e30.{claims}.c2lnbmF0dXJl"))
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("an instant")
}

pub(crate) fn user(name: &str) -> EntityRef {
    EntityRef::parse(&format!("user:default/{name}")).expect("a reference")
}

pub(crate) fn request(name: &str, cluster: &ClusterDetails) -> CredentialRequest {
    CredentialRequest::new(Principal::user(user(name)), cluster.clone())
}

pub(crate) fn cluster(provider: &str) -> ClusterBuilder {
    ClusterDetails::builder("prod", "https://prod.example.com").auth_provider(provider)
}

pub(crate) fn metadata(key: &str, value: &str) -> AuthMetadata {
    let mut metadata = AuthMetadata::default();
    metadata.insert(key, value);
    metadata
}

/// The token that goes over the wire.
pub(crate) fn sent(credential: &Credential) -> Secret {
    let mut headers = HeaderMap::new();
    credential.apply(&mut headers);
    let line = headers[header::AUTHORIZATION].as_bytes();
    Secret::new(line.strip_prefix(b"Bearer ").expect("a bearer"))
}

/// The contract holds for a strategy as such, behind a registry, and behind registry and cache.
pub(crate) async fn bare_registered_and_cached(fixture: ProviderFixture) {
    provider::all(&fixture).await;
    let registry = ProviderRegistry::new().with(fixture.provider());
    let registered = fixture.with_provider(registry);
    provider::all(&registered).await;
    provider::all(&registered.cached()).await;
}

/// What is logged meanwhile on this thread.
pub(crate) fn logged(act: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("the log").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = log.0.lock().expect("the log").clone();
    String::from_utf8(bytes).expect("text")
}
