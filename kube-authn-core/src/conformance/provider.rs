//! The contract of [`KubernetesAuthProvider`](crate::KubernetesAuthProvider), one function per line that can be checked from
//! outside.
//!
//! ```
//! use kube_authn_core::{
//!     ClusterDetails, CredentialRequest, EntityRef, ErrorKind, Principal, Secret,
//!     conformance::provider::{self, ProviderFixture},
//! };
//! # use kube_authn_core::*;
//! # #[derive(Debug)]
//! # struct Fixed(Secret);
//! # #[async_trait]
//! # impl KubernetesAuthProvider for Fixed {
//! #     fn name(&self) -> &str { "fixed" }
//! #     fn scope(&self, _: &ClusterDetails) -> CredentialScope { CredentialScope::Application }
//! #     fn validate(&self, _: &ClusterDetails) -> Vec<Problem> { Vec::new() }
//! #     fn public_metadata(&self, _: &ClusterDetails) -> Metadata { Metadata::new() }
//! #     async fn credential(&self, _: &CredentialRequest) -> Result<Credential> { Credential::bearer(&self.0) }
//! #     async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool { false }
//! # }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = ClusterDetails::builder("prod", "https://prod.example.com").auth_provider("fixed").build()?;
//! let user = |name| EntityRef::parse(name).map(|user| CredentialRequest::new(Principal::user(user), cluster.clone()));
//!
//! let fixture = ProviderFixture::new(
//!     Fixed(Secret::new("canary")), user("user:default/alice")?, user("user:default/bob")?,
//! )
//! .with_canary(Secret::new("canary"));
//! provider::all(&fixture).await;
//! provider::all(&fixture.cached()).await;
//! # Ok(())
//! # }
//! ```

use std::{future::Future, sync::Arc, time::Duration};

use http::HeaderMap;

use super::transcript::Transcript;
use crate::{ClusterDetails, Credential, CredentialRequest, CredentialScope, Error, Secret};

pub use super::provider_fixture::ProviderFixture;

/// Every check, in the order of the contract.
///
/// Run it on a current-thread runtime with time enabled (as `#[tokio::test]` is): only there are the log lines of tasks
/// that a provider spawns seen.
pub async fn all(fixture: &ProviderFixture) {
    name_never_changes(fixture).await;
    scope_depends_on_the_cluster_alone(fixture).await;
    credential_serves_nobody_beyond_its_scope(fixture).await;
    validate_reports_all_problems_without_a_runtime(fixture).await;
    public_metadata_holds_no_secret(fixture).await;
    credential_is_valid_now_and_states_its_end(fixture).await;
    unservable_request_is_refused(fixture).await;
    concurrent_calls_never_cross(fixture).await;
    dropped_call_harms_no_other(fixture).await;
    refusal_drops_that_credential_and_no_login(fixture).await;
    nothing_shows_a_secret(fixture).await;
}

/// Line 1: the name is there and stays.
pub async fn name_never_changes(fixture: &ProviderFixture) {
    let name = fixture.provider.name().to_owned();
    assert!(!name.is_empty(), "line 1: the name is empty");

    fixture.credential(1, &fixture.alice).await;

    assert_eq!(fixture.provider.name(), name, "line 1: the name changed");
}

/// Line 2: who asked for what before makes no difference to the scope.
pub async fn scope_depends_on_the_cluster_alone(fixture: &ProviderFixture) {
    let cluster = &fixture.alice.cluster;
    let scope = fixture.provider.scope(cluster);

    fixture.credential(2, &fixture.alice).await;
    fixture.credential(2, &fixture.bob).await;

    assert_eq!(
        fixture.provider.scope(cluster),
        scope,
        "line 2: the scope changed"
    );
    assert_eq!(
        fixture.provider.scope(&fixture.bob.cluster),
        scope,
        "line 2: one cluster, two scopes (or the fixture's requests are for two clusters)"
    );
}

/// Line 2: the application's credential is everybody's, a user's or a request's is its own.
pub async fn credential_serves_nobody_beyond_its_scope(fixture: &ProviderFixture) {
    let alice = fixture.identity_of(&fixture.credential(2, &fixture.alice).await);
    let bob = fixture.identity_of(&fixture.credential(2, &fixture.bob).await);

    let application = fixture.provider.scope(&fixture.alice.cluster) == CredentialScope::Application;
    assert!(
        (alice == bob) == (application || fixture.anonymous),
        "line 2: the credentials do not belong to whom the scope says"
    );
}

/// Line 3: `validate` names every problem, finds none in a cluster that works, and needs no runtime, hence no network of
/// it.
pub async fn validate_reports_all_problems_without_a_runtime(fixture: &ProviderFixture) {
    let keys_of = |cluster: &ClusterDetails| {
        let outside = std::thread::scope(|scope| scope.spawn(|| fixture.provider.validate(cluster)).join());
        let Ok(problems) = outside else {
            panic!("line 3: validate panics outside a runtime");
        };
        let mut keys: Vec<_> = problems.into_iter().map(|problem| problem.key).collect();
        keys.sort();
        keys
    };

    let none: [&str; 0] = [];
    assert_eq!(
        keys_of(&fixture.alice.cluster),
        none,
        "line 3: a cluster that works"
    );
    for (cluster, keys) in &fixture.unworkable {
        let mut expected = keys.clone();
        expected.sort_unstable();
        assert_eq!(keys_of(cluster), expected, "line 3: cluster {}", cluster.name());
    }
}

/// Line 4: a browser learns no secret.
pub async fn public_metadata_holds_no_secret(fixture: &ProviderFixture) {
    let clusters = fixture.unworkable.iter().map(|(cluster, _)| cluster);
    for cluster in clusters.chain([&fixture.alice.cluster]) {
        for (key, value) in fixture.provider.public_metadata(cluster) {
            assert_no_secret(fixture, 4, "public_metadata", &format!("{key}: {value}"));
        }
    }
}

/// Line 5: what is handed out is worth sending, is not anonymous by mistake, and states its end.
pub async fn credential_is_valid_now_and_states_its_end(fixture: &ProviderFixture) {
    for request in [&fixture.alice, &fixture.bob] {
        let credential = fixture.credential(5, request).await;

        assert!(
            credential.usable(fixture.clock.now()),
            "line 5: it has expired, or its login ended"
        );
        assert_eq!(credential.is_anonymous(), fixture.anonymous, "line 5: anonymous");
        if let Some(end) = fixture.expires_at {
            assert!(
                credential.expires_at().is_some_and(|stated| stated <= end),
                "line 5: states {:?}, ends {end}",
                credential.expires_at()
            );
        }
    }
}

/// Line 5: without what it needs the strategy gives an error of the right kind, before and after it served others.
pub async fn unservable_request_is_refused(fixture: &ProviderFixture) {
    for _ in 0..2 {
        for (request, kind) in &fixture.refused {
            match soon(5, fixture.provider.credential(request)).await {
                Ok(_) => panic!(
                    "line 5: {} gets a credential instead of {kind:?}",
                    request.principal
                ),
                Err(error) => assert_eq!(error.kind(), *kind, "line 5: {error}"),
            }
        }
        fixture.credential(5, &fixture.alice).await;
        fixture.credential(5, &fixture.bob).await;
    }
}

/// Line 6: of many calls at once each gets its own.
pub async fn concurrent_calls_never_cross(fixture: &ProviderFixture) {
    let alice = fixture.identity_of(&fixture.credential(6, &fixture.alice).await);
    let bob = fixture.identity_of(&fixture.credential(6, &fixture.bob).await);
    let mut calls = Vec::new();
    for number in 0..CALLS_AT_ONCE {
        let fixture = fixture.clone();
        calls.push(tokio::spawn(async move {
            let request = if number % 3 == 0 {
                &fixture.bob
            } else {
                &fixture.alice
            };
            fixture.identity_of(&fixture.credential(6, request).await)
        }));
    }

    for (number, call) in calls.into_iter().enumerate() {
        let Ok(got) = call.await else {
            panic!("line 6: a call failed among {CALLS_AT_ONCE} at once");
        };
        let own = if number % 3 == 0 { &bob } else { &alice };
        assert!(got == *own, "line 6: a call got another's credential");
    }
}

/// Line 6: whoever stops waiting takes nothing with him.
pub async fn dropped_call_harms_no_other(fixture: &ProviderFixture) {
    let alice = fixture.identity_of(&fixture.credential(6, &fixture.alice).await);
    let waiting = tokio::spawn({
        let fixture = fixture.clone();
        async move { fixture.identity_of(&fixture.credential(6, &fixture.alice).await) }
    });

    for _ in 0..CALLS_AT_ONCE {
        let mut call = fixture.provider.credential(&fixture.alice);
        std::future::poll_fn(|context| {
            let _answer = call.as_mut().poll(context);
            std::task::Poll::Ready(())
        })
        .await;
        drop(call);
    }

    assert!(
        waiting.await.is_ok_and(|got| got == alice),
        "line 6: a waiting call was lost with a dropped one"
    );
    assert!(
        fixture.identity_of(&fixture.credential(6, &fixture.alice).await) == alice,
        "line 6: nothing is served after dropped calls"
    );
}

/// Line 7: a 401 changes no login, touches nobody else's credential, and if another one is promised, another one comes.
pub async fn refusal_drops_that_credential_and_no_login(fixture: &ProviderFixture) {
    let provider = &fixture.provider;
    let refused = fixture.credential(7, &fixture.alice).await;
    let alice = fixture.identity_of(&refused);
    let bob = fixture.identity_of(&fixture.credential(7, &fixture.bob).await);

    for _ in 0..3 {
        let another = soon(7, provider.invalidate(&fixture.alice, &refused)).await;
        let next = fixture.credential(7, &fixture.alice).await;

        assert!(
            !another || next.generation() != refused.generation(),
            "line 7: another credential was promised and the refused one came"
        );
        assert!(
            fixture.identity_of(&next) == alice,
            "line 7: another identity after a 401"
        );
    }
    soon(7, provider.invalidate(&fixture.alice, &Credential::anonymous())).await;

    assert!(
        fixture.identity_of(&fixture.credential(7, &fixture.bob).await) == bob,
        "line 7: the refusal changed somebody else's credential"
    );
}

/// Line 8: no canary in `Debug`, in an error or its causes, in a problem, or in a log line of any level.
pub async fn nothing_shows_a_secret(fixture: &ProviderFixture) {
    let transcript = Arc::new(Transcript::default());
    let mut shown = vec![format!("{:?}", fixture.provider)];
    {
        let _recording = tracing::subscriber::set_default(transcript.clone());
        let refused = fixture.refused.iter().map(|(request, _)| request);
        for request in refused.chain([&fixture.alice, &fixture.bob]) {
            shown.push(format!("{request:?}"));
            match soon(8, fixture.provider.credential(request)).await {
                Ok(credential) => {
                    shown.push(format!("{credential:?}"));
                    soon(8, fixture.provider.invalidate(request, &credential)).await;
                }
                Err(error) => shown.push(everything_about(&error)),
            }
        }
        for (cluster, _) in &fixture.unworkable {
            for problem in fixture.provider.validate(cluster) {
                shown.push(format!("{problem} {problem:?}"));
            }
        }
    }
    shown.push(format!("{:?}", fixture.provider));

    for text in shown {
        assert_no_secret(fixture, 8, "Debug or an error", &text);
    }
    assert_no_secret(fixture, 8, "a log line", &transcript.text());
}

impl ProviderFixture {
    async fn credential(&self, line: u8, request: &CredentialRequest) -> Credential {
        match soon(line, self.provider.credential(request)).await {
            Ok(credential) => credential,
            Err(error) => panic!("line {line}: {} gets no credential: {error}", request.principal),
        }
    }

    fn identity_of(&self, credential: &Credential) -> String {
        let mut headers = HeaderMap::new();
        credential.apply(&mut headers);
        (self.identity)(&headers)
    }
}

fn assert_no_secret(fixture: &ProviderFixture, line: u8, place: &str, text: &str) {
    let shown = |canary: &Secret| {
        !canary.is_empty()
            && text
                .as_bytes()
                .windows(canary.len())
                .any(|window| window == canary.expose())
    };
    assert!(
        !fixture.canaries.iter().any(shown),
        "line {line}: {place} shows a secret"
    );
}

fn everything_about(error: &Error) -> String {
    let mut text = String::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        text.push_str(&format!("{error} {error:?} "));
        next = error.source();
    }
    text
}

async fn soon<T>(line: u8, call: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => answer,
        Err(_) => panic!("line {line}: no answer within {PATIENCE:?}"),
    }
}

const CALLS_AT_ONCE: usize = 64;

/// Far more than any healthy source needs, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
