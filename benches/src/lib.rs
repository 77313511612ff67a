//! What the benches share: a provider that mints a token without asking anybody, users, a server, and how to measure.

pub mod api_server;
pub mod loopback;
pub mod measure;
pub mod options;
pub mod process;

use std::{sync::Arc, time::Duration};

use criterion::Criterion;
use kube_authn_core::{
    CachingProvider, Clock, ClusterAccess, ClusterDetails, Clusters, Credential, CredentialRequest,
    CredentialScope, EntityRef, KubernetesAuthProvider, Metadata, Principal, Problem, ProviderRegistry,
    Result, Secret, SystemClock, UpstreamPool, async_trait,
};

/// A strategy of scope `User` whose token costs nothing, so that only the cache is measured.
#[derive(Clone, Debug, Default)]
pub struct Minting(Option<Secret>);

impl Minting {
    /// Gives everybody this token.
    pub fn always(token: Secret) -> Self {
        Self(Some(token))
    }
}

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
        let token = match &self.0 {
            Some(token) => token.clone(),
            None => Secret::new(format!("{TOKEN_OF_1_KIB}{}", request.principal)),
        };
        let hour = SystemClock.now() + Duration::from_secs(3600);
        Ok(Credential::bearer(&token)?.with_expires_at(hour))
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        false
    }
}

/// Criterion with short defaults; its arguments on the command line win.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args()
}

/// Access to one cluster over this pool, with room for the credentials of so many users.
pub fn access(
    provider: impl KubernetesAuthProvider,
    cluster: ClusterDetails,
    pool: UpstreamPool,
    users: usize,
) -> ClusterAccess {
    let registry = ProviderRegistry::new().with(provider);
    ClusterAccess::new(Clusters::new(vec![cluster]), cache(registry, users), pool)
}

/// A cache that evicts none of so many credentials: the bound is per shard, and shards fill unevenly.
pub fn cache(registry: ProviderRegistry, users: usize) -> CachingProvider<ProviderRegistry> {
    CachingProvider::with_clock_and_capacity(registry, Arc::new(SystemClock), 2 * users.max(1_000))
}

/// The user of this number.
///
/// # Panics
/// Never: the name is well-formed.
#[allow(clippy::expect_used, reason = "a bench may panic")]
pub fn user(number: usize) -> Principal {
    Principal::user(EntityRef::parse(&format!("user:default/user-{number}")).expect("a reference"))
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
