use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::Semaphore;

use super::*;
use crate::{
    ClusterDetails, EntityRef, LoginHandle, LoginId, ManualClock, Metadata, Principal, Problem, Secret,
    async_trait,
};

/// A strategy whose answers the test decides.
#[derive(Debug)]
struct Scripted {
    scope: CredentialScope,
    fetches: AtomicUsize,
    /// Each fetch takes one permit; a test that holds them back holds the fetches back.
    gate: Semaphore,
    lifetime: Option<SignedDuration>,
    refresh_after: Option<SignedDuration>,
    clock: ManualClock,
    failure: Mutex<Option<Error>>,
    login: Mutex<Option<LoginHandle>>,
    another_after_refusal: AtomicBool,
    refusals: AtomicUsize,
}

impl Scripted {
    fn new(scope: CredentialScope) -> Arc<Self> {
        Self::with_refresh_after(scope, None)
    }

    fn with_refresh_after(scope: CredentialScope, refresh_after: Option<SignedDuration>) -> Arc<Self> {
        Arc::new(Self {
            scope,
            refresh_after,
            fetches: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            lifetime: Some(SignedDuration::from_secs(600)),
            clock: ManualClock::at(Timestamp::UNIX_EPOCH),
            failure: Mutex::default(),
            login: Mutex::default(),
            another_after_refusal: AtomicBool::new(true),
            refusals: AtomicUsize::new(0),
        })
    }

    fn cache(self: &Arc<Self>) -> CachingProvider<Arc<Self>> {
        CachingProvider::with_clock_and_capacity(self.clone(), Arc::new(self.clock.clone()), 100_000)
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    fn fail_with(&self, kind: ErrorKind) {
        *self.failure.lock().expect("the lock") = Some(Error::new(kind, "scripted"));
    }

    fn succeed(&self) {
        *self.failure.lock().expect("the lock") = None;
    }
}

#[async_trait]
impl KubernetesAuthProvider for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        self.scope
    }

    fn validate(&self, _: &ClusterDetails) -> Vec<Problem> {
        Vec::new()
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let number = self.fetches.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.expect("the gate is open").forget();
        if let Some(error) = self.failure.lock().expect("the lock").clone() {
            return Err(error);
        }
        let token = format!("{}@{}#{number}", request.principal, request.cluster.name()).replace(' ', "");
        let mut credential = Credential::bearer(&Secret::new(token))?;
        if let Some(lifetime) = self.lifetime {
            credential = credential.with_expires_at(self.clock.now() + lifetime);
        }
        if let Some(after) = self.refresh_after {
            credential = credential.with_refresh_at(self.clock.now() + after);
        }
        if let Some(login) = self.login.lock().expect("the lock").clone() {
            credential = credential.with_login(login);
        }
        Ok(credential)
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        self.refusals.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.another_after_refusal.load(Ordering::SeqCst)
    }
}

fn cluster(name: &str) -> ClusterDetails {
    ClusterDetails::builder(name, "https://a")
        .auth_provider("scripted")
        .build()
        .expect("a cluster")
}

fn user(name: &str) -> Principal {
    Principal::user(EntityRef::parse(&format!("user:default/{name}")).expect("a reference"))
}

fn request() -> CredentialRequest {
    CredentialRequest::new(user("alice"), cluster("prod"))
}

fn token_of(credential: &Credential) -> String {
    let mut headers = http::HeaderMap::new();
    credential.apply(&mut headers);
    let line = headers[http::header::AUTHORIZATION].to_str().expect("text");
    line.trim_start_matches("Bearer ").to_owned()
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn waiters_share_one_fetch_though_the_first_one_leaves() {
    let provider = Scripted::new(CredentialScope::User);
    provider.gate.forget_permits(Semaphore::MAX_PERMITS);
    let (cache, request) = (provider.cache(), request());
    let ask = || {
        let (cache, request) = (cache.clone(), request.clone());
        tokio::spawn(async move {
            cache
                .credential(&request)
                .await
                .map(|credential| credential.generation())
        })
    };
    let first = ask();
    until(|| provider.fetches() == 1).await;
    let others: Vec<_> = (0..32).map(|_| ask()).collect();
    tokio::task::yield_now().await;

    first.abort();
    provider.gate.add_permits(1);

    let mut generations = Vec::new();
    for other in others {
        generations.push(other.await.expect("not cancelled").expect("a credential"));
    }
    generations.dedup();
    assert_eq!((generations.len(), provider.fetches()), (1, 1));
}

#[tokio::test]
async fn warm_credential_is_served_without_a_fetch() {
    let provider = Scripted::new(CredentialScope::User);
    let (cache, request) = (provider.cache(), request());
    assert!(cache.peek(&request).is_none());

    let fetched = cache.credential(&request).await.expect("a credential");

    let peeked = cache.peek(&request).expect("warm");
    assert_eq!(
        (peeked.generation(), provider.fetches()),
        (fetched.generation(), 1)
    );
}

#[tokio::test]
async fn credential_fetched_before_the_refusal_is_never_handed_out() {
    let provider = Scripted::new(CredentialScope::User);
    let (cache, request) = (provider.cache(), request());
    let refused = cache.credential(&request).await.expect("a credential");
    provider.clock.advance_seconds(590);
    provider.gate.forget_permits(Semaphore::MAX_PERMITS);
    let waiting = tokio::spawn({
        let (cache, request) = (cache.clone(), request.clone());
        async move { cache.credential(&request).await }
    });
    until(|| provider.fetches() == 2).await;

    assert!(cache.invalidate(&request, &refused).await);
    provider.gate.add_permits(2);

    let got = waiting.await.expect("not cancelled").expect("a credential");
    assert_eq!(
        (token_of(&got).rsplit('#').next(), provider.fetches()),
        (Some("2"), 3)
    );
}

#[tokio::test]
async fn old_credential_is_kept_while_a_refresh_fails() {
    let provider = Scripted::new(CredentialScope::Application);
    let (cache, request) = (provider.cache(), request());
    let first = cache.credential(&request).await.expect("a credential");
    provider.clock.advance_seconds(500);
    provider.fail_with(ErrorKind::Unavailable);

    let second = cache.credential(&request).await.expect("the old one");
    until(|| provider.fetches() == 2).await;
    for _ in 0..100 {
        cache.credential(&request).await.expect("the old one");
    }

    assert_eq!(second.generation(), first.generation());
    assert_eq!(provider.fetches(), 2, "no storm");
}

#[tokio::test]
async fn refresh_ahead_of_the_end_makes_nobody_wait() {
    let provider = Scripted::new(CredentialScope::Application);
    let (cache, request) = (provider.cache(), request());
    let first = cache.credential(&request).await.expect("a credential");
    provider.clock.advance_seconds(500);

    let second = cache.credential(&request).await.expect("the old one");
    until(|| cache.peek(&request).is_some()).await;

    let third = cache.peek(&request).expect("the new one");
    assert_eq!(second.generation(), first.generation());
    assert_ne!(third.generation(), first.generation());
}

#[tokio::test]
async fn source_is_asked_again_as_soon_as_the_strategy_says() {
    let minute = SignedDuration::from_secs(60);
    let provider = Scripted::with_refresh_after(CredentialScope::Application, Some(minute));
    let (cache, request) = (provider.cache(), request());
    let first = cache.credential(&request).await.expect("a credential");
    provider.clock.advance_seconds(59);
    assert!(cache.peek(&request).is_some(), "not yet due");
    provider.clock.advance_seconds(1);

    let second = cache.credential(&request).await.expect("the old one");
    until(|| cache.peek(&request).is_some()).await;

    let third = cache.peek(&request).expect("the new one");
    assert_eq!(second.generation(), first.generation());
    assert_ne!(third.generation(), first.generation());
}

#[tokio::test(start_paused = true)]
async fn failure_is_remembered_for_seconds_and_then_forgotten() {
    let provider = Scripted::new(CredentialScope::Application);
    let (cache, request) = (provider.cache(), request());
    provider.fail_with(ErrorKind::Unavailable);
    for _ in 0..100 {
        assert_eq!(
            cache.credential(&request).await.expect_err("failing").kind(),
            ErrorKind::Unavailable
        );
    }
    assert_eq!(provider.fetches(), 1);

    provider.succeed();
    tokio::time::advance(Duration::from_secs(2)).await;

    assert!(cache.credential(&request).await.is_ok());
}

#[tokio::test]
async fn missing_login_is_asked_for_again_at_once() {
    let provider = Scripted::new(CredentialScope::User);
    let (cache, request) = (provider.cache(), request());
    provider.fail_with(ErrorKind::LoginRequired);
    assert!(cache.credential(&request).await.is_err());

    provider.succeed();

    assert!(cache.credential(&request).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn truly_refused_credential_does_not_double_the_load() {
    let provider = Scripted::new(CredentialScope::User);
    let (cache, request) = (provider.cache(), request());
    let mut refetches = 0;

    for _ in 0..100 {
        let credential = cache.credential(&request).await.expect("a credential");
        refetches += usize::from(cache.invalidate(&request, &credential).await);
    }

    assert_eq!((refetches, provider.fetches()), (1, 2));
    tokio::time::advance(REFETCH_PAUSE).await;
    let credential = cache.credential(&request).await.expect("a credential");
    assert!(cache.invalidate(&request, &credential).await);
}

#[tokio::test]
async fn all_who_were_refused_the_same_credential_try_again_and_the_source_is_asked_once() {
    let provider = Scripted::new(CredentialScope::Application);
    let (cache, request) = (provider.cache(), request());
    let refused = cache.credential(&request).await.expect("a credential");

    let asking: Vec<_> = (0..50)
        .map(|_| {
            let (cache, request, refused) = (cache.clone(), request.clone(), refused.clone());
            tokio::spawn(async move { cache.invalidate(&request, &refused).await })
        })
        .collect();
    // Whoever asked first hangs up; the others get their answer all the same.
    tokio::task::yield_now().await;
    asking[0].abort();
    for other in asking.into_iter().skip(1) {
        assert!(other.await.expect("not cancelled"));
    }

    assert!(cache.invalidate(&request, &refused).await, "nor who comes late");
    let second = cache.credential(&request).await.expect("a credential");
    assert!(cache.invalidate(&request, &refused).await);
    assert!(!cache.invalidate(&request, &second).await, "it is truly refused");
    assert_eq!(
        (provider.refusals.load(Ordering::SeqCst), provider.fetches()),
        (1, 2)
    );
}

#[tokio::test]
async fn refusal_of_an_older_credential_costs_no_fetch() {
    let provider = Scripted::new(CredentialScope::User);
    let (cache, request) = (provider.cache(), request());
    let stranger = Credential::anonymous();
    cache.credential(&request).await.expect("a credential");

    assert!(cache.invalidate(&request, &stranger).await);

    assert!(cache.peek(&request).is_some());
    assert_eq!(provider.fetches(), 1);
}

#[tokio::test]
async fn cached_credential_dies_with_its_login() {
    let provider = Scripted::new(CredentialScope::User);
    let login = LoginHandle::new(LoginId::from_bytes([3; 16]));
    *provider.login.lock().expect("the lock") = Some(login.clone());
    let (cache, request) = (provider.cache(), request());
    cache.credential(&request).await.expect("a credential");

    login.end();
    provider.fail_with(ErrorKind::LoginRequired);

    assert!(cache.peek(&request).is_none());
    assert_eq!(
        cache.credential(&request).await.expect_err("ended").kind(),
        ErrorKind::LoginRequired
    );
}

#[tokio::test]
async fn credential_that_has_expired_is_never_handed_out() {
    let provider = Scripted::new(CredentialScope::User);
    let (cache, request) = (provider.cache(), request());
    cache.credential(&request).await.expect("a credential");

    provider.clock.advance_seconds(3600);
    provider.fail_with(ErrorKind::TokenExpired);

    assert!(cache.peek(&request).is_none());
    assert_eq!(
        cache.credential(&request).await.expect_err("expired").kind(),
        ErrorKind::TokenExpired
    );
}

#[tokio::test]
async fn application_credential_is_fetched_once_for_everybody() {
    let provider = Scripted::new(CredentialScope::Application);
    let (cache, prod) = (provider.cache(), cluster("prod"));

    for name in ["alice", "bob", "carol"] {
        cache
            .credential(&CredentialRequest::new(user(name), prod.clone()))
            .await
            .expect("a credential");
    }

    assert_eq!((provider.fetches(), cache.len()), (1, 1));
}

#[tokio::test]
async fn credential_of_a_request_is_never_cached() {
    let provider = Scripted::new(CredentialScope::Request);
    let (cache, request) = (provider.cache(), request());

    for _ in 0..3 {
        cache.credential(&request).await.expect("a credential");
    }

    assert_eq!((provider.fetches(), cache.len()), (3, 0));
    assert!(cache.peek(&request).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn answer_never_belongs_to_another_user_or_cluster() {
    let provider = Scripted::new(CredentialScope::User);
    let cache = provider.cache();
    let users: Arc<Vec<_>> = Arc::new((0..1000).map(|n| user(&format!("alice-{n}"))).collect());
    let clusters: Arc<Vec<_>> = Arc::new((0..50).map(|n| cluster(&format!("prod-{n}"))).collect());

    let tasks: Vec<_> = (0..64_u64)
        .map(|task| {
            let (cache, users, clusters) = (cache.clone(), users.clone(), clusters.clone());
            tokio::spawn(async move {
                let mut random = task.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
                for _ in 0..1000 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let index = usize::try_from(random >> 33).expect("31 bits");
                    let (user, cluster) = (&users[index % 1000], &clusters[index / 1000 % 50]);
                    let request = CredentialRequest::new(user.clone(), cluster.clone());
                    let got = token_of(&cache.credential(&request).await.expect("a credential"));
                    assert_eq!(
                        got.split('#').next(),
                        Some(format!("{user}@{}", cluster.name()).as_str())
                    );
                }
            })
        })
        .collect();

    for task in tasks {
        task.await.expect("no crossing");
    }
}

#[tokio::test]
async fn cache_stays_within_its_bound() {
    let provider = Scripted::new(CredentialScope::User);
    let cache =
        CachingProvider::with_clock_and_capacity(provider.clone(), Arc::new(provider.clock.clone()), 512);
    let prod = cluster("prod");

    for number in 0..5_000 {
        let request = CredentialRequest::new(user(&format!("u{number}")), prod.clone());
        cache.credential(&request).await.expect("a credential");
    }

    assert!(cache.len() <= 512, "{}", cache.len());
}

#[tokio::test]
async fn clusters_that_left_take_their_credentials_with_them() {
    let provider = Scripted::new(CredentialScope::User);
    let cache = provider.cache();
    let (kept, left) = (cluster("kept"), cluster("left"));
    let requests: HashMap<_, _> = [&kept, &left]
        .into_iter()
        .map(|cluster| {
            (
                cluster.name().clone(),
                CredentialRequest::new(user("alice"), cluster.clone()),
            )
        })
        .collect();
    for request in requests.values() {
        cache.credential(request).await.expect("a credential");
    }

    cache.retain_clusters(&ClusterSet::default().next(vec![kept.clone()]));

    assert!(cache.peek(&requests[kept.name()]).is_some());
    assert!(cache.peek(&requests[left.name()]).is_none());
}
