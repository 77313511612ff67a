//! What the benches share: a provider that mints a token without asking anybody, users, and percentiles.

use std::time::{Duration, Instant};

use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, EntityRef, KubernetesAuthProvider,
    Metadata, Principal, Problem, Result, Secret, SystemClock, async_trait,
};

/// A strategy of scope `User` whose token costs nothing, so that only the cache is measured.
#[derive(Debug)]
pub struct Minting;

#[async_trait]
impl KubernetesAuthProvider for Minting {
    fn name(&self) -> &str {
        "minting"
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::User
    }

    fn validate(&self, _: &ClusterDetails) -> Vec<Problem> {
        Vec::new()
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let token = Secret::new(format!("{TOKEN_OF_1_KIB}{}", request.principal));
        let hour = SystemClock.now() + Duration::from_secs(3600);
        Ok(Credential::bearer(&token)?.with_expires_at(hour))
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        false
    }
}

/// The user of this number.
///
/// # Panics
/// Never: the name is well-formed.
#[allow(clippy::expect_used, reason = "a bench may panic")]
pub fn user(number: usize) -> Principal {
    Principal::user(EntityRef::parse(&format!("user:default/user-{number}")).expect("a reference"))
}

/// Median and 99th percentile of `samples` calls, each timed on its own; about 25 ns of each are the clock's.
pub fn percentiles(samples: usize, mut call: impl FnMut(usize)) -> (Duration, Duration) {
    let mut times: Vec<_> = (0..samples)
        .map(|sample| {
            let start = Instant::now();
            call(sample);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[samples / 2], times[samples * 99 / 100])
}

/// A step of a generator good enough to defeat the caches (Knuth, MMIX).
pub fn next_random(state: &mut u64) -> usize {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*state >> 33).unwrap_or(0)
}

/// ID tokens are about this long.
const TOKEN_OF_1_KIB: &str = {
    const BYTES: [u8; 1024] = [b'x'; 1024];
    match std::str::from_utf8(&BYTES) {
        Ok(text) => text,
        Err(_) => "",
    }
};
