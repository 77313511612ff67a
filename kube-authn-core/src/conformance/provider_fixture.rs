//! What the checks of a provider work with.

use std::{fmt, sync::Arc};

use http::{HeaderMap, header};
use jiff::Timestamp;

use crate::{
    CachingProvider, Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, ErrorKind,
    KubernetesAuthProvider, Metadata, Problem, Result, Secret, SystemClock, async_trait,
};

/// What the checks need to know of an implementation. Clones share the provider.
#[derive(Clone)]
pub struct ProviderFixture {
    pub(super) provider: Arc<dyn KubernetesAuthProvider>,
    pub(super) alice: CredentialRequest,
    pub(super) bob: CredentialRequest,
    pub(super) identity: Arc<Identity>,
    pub(super) anonymous: bool,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) refused: Vec<(CredentialRequest, ErrorKind)>,
    pub(super) unworkable: Vec<(ClusterDetails, Vec<&'static str>)>,
    pub(super) canaries: Vec<Secret>,
    pub(super) clock: Arc<dyn Clock>,
}

/// Reads from header lines whom they name.
type Identity = dyn Fn(&HeaderMap) -> String + Send + Sync;

impl ProviderFixture {
    /// A provider, and requests of two users for one cluster that must each get a credential, again and again.
    pub fn new(
        provider: impl KubernetesAuthProvider,
        alice: CredentialRequest,
        bob: CredentialRequest,
    ) -> Self {
        Self {
            provider: Arc::new(provider),
            alice,
            bob,
            identity: Arc::new(authorization_line),
            anonymous: false,
            expires_at: None,
            refused: Vec::new(),
            unworkable: Vec::new(),
            canaries: Vec::new(),
            clock: Arc::new(SystemClock),
        }
    }

    /// The provider, to be wrapped.
    pub fn provider(&self) -> Arc<dyn KubernetesAuthProvider> {
        self.provider.clone()
    }

    /// Another provider for the same requests, usually a wrapper around the first.
    pub fn with_provider(mut self, provider: impl KubernetesAuthProvider) -> Self {
        self.provider = Arc::new(provider);
        self
    }

    /// The same requests through [`CachingProvider`]: a provider must pass bare and cached.
    pub fn cached(self) -> Self {
        let cache = CachingProvider::with_clock_and_capacity(
            self.provider.clone(),
            self.clock.clone(),
            CACHE_CAPACITY,
        );
        self.with_provider(Cached(cache))
    }

    /// How to read from header lines whom they name. Left out: the whole `Authorization` line names somebody, which is
    /// right where one identity always gets one token.
    pub fn with_identity(mut self, identity: impl Fn(&HeaderMap) -> String + Send + Sync + 'static) -> Self {
        self.identity = Arc::new(identity);
        self
    }

    /// The strategy is to send nothing. Left out: an anonymous credential is a failure.
    pub fn anonymous(mut self) -> Self {
        self.anonymous = true;
        self
    }

    /// The UTC instant at which the two users' credentials end, which the provider must state.
    pub fn with_expires_at(mut self, expires_at: Timestamp) -> Self {
        self.expires_at = Some(expires_at);
        self
    }

    /// A request that lacks what the strategy needs, or offers something expired, and the kind of the refusal.
    pub fn refusing(mut self, request: CredentialRequest, kind: ErrorKind) -> Self {
        self.refused.push((request, kind));
        self
    }

    /// A cluster whose settings cannot work, and the keys of everything that is wrong with it.
    pub fn with_unworkable(mut self, cluster: ClusterDetails, keys: &[&'static str]) -> Self {
        self.unworkable.push((cluster, keys.to_vec()));
        self
    }

    /// A secret that the provider knows or is given: a token, a key, a password.
    pub fn with_canary(mut self, canary: Secret) -> Self {
        self.canaries.push(canary);
        self
    }

    /// The clock that the provider goes by. Left out: the machine's.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

impl fmt::Debug for ProviderFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderFixture")
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

/// The cache as a provider, so that it passes the same checks.
#[derive(Debug)]
struct Cached(CachingProvider<Arc<dyn KubernetesAuthProvider>>);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KubernetesAuthProvider for Cached {
    fn name(&self) -> &str {
        self.0.provider().name()
    }

    fn scope(&self, cluster: &ClusterDetails) -> CredentialScope {
        self.0.provider().scope(cluster)
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        self.0.provider().validate(cluster)
    }

    fn public_metadata(&self, cluster: &ClusterDetails) -> Metadata {
        self.0.provider().public_metadata(cluster)
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        match self.0.peek(request) {
            Some(credential) => Ok(credential),
            None => self.0.credential(request).await,
        }
    }

    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        self.0.invalidate(request, refused).await
    }
}

fn authorization_line(headers: &HeaderMap) -> String {
    headers
        .get(header::AUTHORIZATION)
        .map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned())
        .unwrap_or_default()
}

/// Room for every request of a fixture.
const CACHE_CAPACITY: usize = 10_000;
