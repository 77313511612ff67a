use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kube_authn_core::{
    BindingRule, CachingProvider, ClientId, Expected, IdentityBinding, Issuer, KeyId, LoginEvents,
    LoginMetadata, ManualClock, NewLogin, Principal, ProviderRegistry, Revision, Secret, Subject,
    TokenForCluster, TokenKey, TokenRecord, TokenSet, TokenStore, conformance::provider::ProviderFixture,
};
use kube_authn_store::{KeyRing, MemoryTokenStore};

use super::*;
use crate::{ServiceAccountProvider, test_support::*};

const NOW: i64 = 1_000_000;

/// A vault in which users log in, and the strategy over it.
struct World {
    store: MemoryTokenStore,
    vault: TokenVault,
    clock: ManualClock,
    config: LoginConfig,
}

impl World {
    fn new() -> Self {
        let (store, clock) = (MemoryTokenStore::new(), ManualClock::at(at(NOW)));
        Self {
            vault: TokenVault::new(store.clone(), key_ring(7)).with_clock(clock.clone()),
            store,
            clock,
            config: LoginConfig::new(issuer()).with_client_id(client_id()),
        }
    }

    fn strategy(&self) -> ClusterAuthProvider {
        ClusterAuthProvider::new(self.vault.clone(), HashMap::new(), Some(self.config.clone()))
            .with_clock(self.clock.clone())
    }

    /// Logs a user in with an ID token that ends at this second, and an access token that ends a minute later.
    async fn log_in(&self, name: &str, exp: i64) -> Revision {
        let token = |secret, exp| Token {
            secret,
            expires_at: at(exp),
        };
        let tokens = TokenSet::new()
            .with_id_token(token(jwt(name, exp), exp))
            .with_access_token(token(
                Secret::new(format!("access-canary-{name}-{exp}")),
                exp + 60,
            ))
            .with_refresh_token(Secret::new(format!("refresh-canary-{name}")));
        let login = NewLogin::new(Subject::new(name).expect("a subject"), tokens, at(exp));
        self.vault.log_in(&key(name), login).await.expect("stored")
    }
}

fn key_ring(byte: u8) -> KeyRing {
    let id = KeyId::new(&format!("k{byte}")).expect("an id");
    KeyRing::new(vec![(id, Secret::new([byte; 32]))]).expect("a ring")
}

fn issuer() -> Issuer {
    Issuer::new("https://login.example.com/").expect("an issuer")
}

fn client_id() -> ClientId {
    ClientId::new("kubernetes").expect("a client")
}

fn key(name: &str) -> TokenKey {
    TokenKey {
        principal: user(name),
        issuer: issuer(),
        client_id: client_id(),
    }
}

fn prod() -> ClusterDetails {
    cluster(ClusterAuthProvider::NAME).build().expect("a cluster")
}

async fn refusal(
    strategy: &impl KubernetesAuthProvider,
    request: &CredentialRequest,
) -> (ErrorKind, &'static str, String) {
    let error = strategy.credential(request).await.expect_err("refused");
    (error.kind(), error.code(), error.to_string())
}

#[tokio::test]
async fn keeps_the_contract() {
    let world = World::new();
    for name in ["alice", "bob"] {
        world.log_in(name, NOW + 600).await;
    }
    world.log_in("dave", NOW + 30).await;
    let prod = prod();
    let insecure = cluster(ClusterAuthProvider::NAME)
        .skip_tls_verify(true)
        .build()
        .expect("a cluster");
    let fixture = ProviderFixture::new(world.strategy(), request("alice", &prod), request("bob", &prod))
        .with_clock(world.clock.clone())
        .with_expires_at(at(NOW + 600))
        .refusing(request("carol", &prod), ErrorKind::LoginRequired)
        .refusing(request("dave", &prod), ErrorKind::TokenExpired)
        .refusing(
            CredentialRequest::new(Principal::anonymous(), prod.clone()),
            ErrorKind::CallerUnknown,
        )
        .refusing(
            CredentialRequest::new(Principal::service("plugin"), prod.clone()),
            ErrorKind::CallerUnknown,
        )
        .refusing(request("alice", &insecure), ErrorKind::ConfigInvalid)
        .with_unworkable(insecure, &["skipTLSVerify"])
        .with_canary(jwt("alice", NOW + 600))
        .with_canary(jwt("bob", NOW + 600))
        .with_canary(jwt("dave", NOW + 30))
        .with_canary(Secret::new("canary"));

    bare_registered_and_cached(fixture).await;
}

#[tokio::test]
async fn id_token_is_sent_and_its_end_is_stated() {
    let world = World::new();
    world.log_in("alice", NOW + 600).await;

    let credential = world
        .strategy()
        .credential(&request("alice", &prod()))
        .await
        .expect("a credential");

    assert_eq!(sent(&credential), jwt("alice", NOW + 600));
    assert_eq!(credential.expires_at(), Some(at(NOW + 600)));
}

#[tokio::test]
async fn access_token_is_sent_where_it_is_configured_and_its_own_end_is_stated() {
    let mut world = World::new();
    world.config.token_for_cluster = TokenForCluster::AccessToken;
    world.log_in("alice", NOW + 10).await;

    let credential = world
        .strategy()
        .credential(&request("alice", &prod()))
        .await
        .expect("a credential");

    assert_eq!(
        sent(&credential),
        Secret::new(format!("access-canary-alice-{}", NOW + 10))
    );
    assert_eq!(credential.expires_at(), Some(at(NOW + 70)));
}

/// Alice, as a token of this issuer with this subject proved.
fn verified(issuer: &str, subject: &str) -> CredentialRequest {
    let (issuer, subject) = (
        Issuer::new(issuer).expect("an issuer"),
        Subject::new(subject).expect("a subject"),
    );
    let principal = Principal::user(user("alice")).with_verified(issuer, subject);
    CredentialRequest::new(principal, prod())
}

#[tokio::test]
async fn name_that_passed_on_never_reaches_the_login_of_who_had_it() {
    let world = World::new();
    world.log_in("alice", NOW + 600).await;
    let strategy = world.strategy();
    let cache =
        CachingProvider::with_clock_and_capacity(strategy.clone(), Arc::new(world.clock.clone()), 100);
    let (own, successor) = (
        verified("https://login.example.com/", "alice"),
        verified("https://login.example.com/", "mallory"),
    );

    let credential = cache.credential(&own).await.expect("a credential");

    let no_login = (ErrorKind::LoginRequired, "no_tokens", NO_LOGIN.to_owned());
    assert_eq!(refusal(&strategy, &successor).await, no_login);
    let cached = cache.credential(&successor).await.expect_err("refused");
    assert_eq!(cached.kind(), ErrorKind::LoginRequired);
    // Another token is there, but none of hers.
    world.log_in("alice", NOW + 700).await;
    assert!(strategy.invalidate(&own, &credential).await);
    assert!(!strategy.invalidate(&successor, &credential).await);
}

#[tokio::test]
async fn subject_of_another_issuer_or_binding_decides_nothing() {
    let mut world = World::new();
    world.log_in("alice", NOW + 600).await;

    let elsewhere = world
        .strategy()
        .credential(&verified("https://portal.example.com/", "17"))
        .await;
    world.config.binding = IdentityBinding::Rules(vec![BindingRule::Email]);
    let pairwise = world
        .strategy()
        .credential(&verified("https://login.example.com/", "alice-of-the-portal"))
        .await;

    assert_eq!(sent(&elsewhere.expect("a credential")), jwt("alice", NOW + 600));
    assert_eq!(sent(&pairwise.expect("a credential")), jwt("alice", NOW + 600));
}

#[tokio::test]
async fn name_that_passed_on_is_known_by_whose_token_brought_the_login_whatever_the_binding() {
    let mut world = World::new();
    world.config.binding = IdentityBinding::Rules(vec![BindingRule::FirstUse]);
    let (portal, own) = (
        Issuer::new("https://portal.example.com/").expect("an issuer"),
        Subject::new("17").expect("a subject"),
    );
    let tokens = TokenSet::new().with_id_token(Token {
        secret: jwt("alice", NOW + 600),
        expires_at: at(NOW + 600),
    });
    let login = NewLogin::new(Subject::new("alice").expect("a subject"), tokens, at(NOW + 600))
        .with_owner(portal, own);
    world.vault.log_in(&key("alice"), login).await.expect("stored");
    let strategy = world.strategy();

    strategy
        .credential(&verified("https://portal.example.com/", "17"))
        .await
        .expect("hers");
    strategy
        .credential(&verified("https://elsewhere.example.com/", "18"))
        .await
        .expect("no token of the portal");

    let no_login = (ErrorKind::LoginRequired, "no_tokens", NO_LOGIN.to_owned());
    let successor = verified("https://portal.example.com/", "18");
    assert_eq!(refusal(&strategy, &successor).await, no_login);
}

#[tokio::test]
async fn refusals_have_the_texts_that_front_ends_know() {
    let world = World::new();
    world.log_in("dave", NOW - 1).await;
    let strategy = world.strategy();

    assert_eq!(
        refusal(&strategy, &CredentialRequest::new(Principal::anonymous(), prod())).await,
        (
            ErrorKind::CallerUnknown,
            "not_authenticated",
            "User authentication required. Please log in to Backstage.".to_owned()
        )
    );
    assert_eq!(
        refusal(&strategy, &request("carol", &prod())).await,
        (
            ErrorKind::LoginRequired,
            "no_tokens",
            "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster."
                .to_owned()
        )
    );
    assert_eq!(
        refusal(&strategy, &request("dave", &prod())).await,
        (
            ErrorKind::TokenExpired,
            "expired",
            "Cluster authentication expired. Please re-authenticate at Settings → Auth Providers.".to_owned()
        )
    );
}

#[tokio::test]
async fn expired_token_never_reaches_the_api_server() {
    let world = World::new();
    world.log_in("alice", NOW + 600).await;
    let strategy = world.strategy();
    let cache =
        CachingProvider::with_clock_and_capacity(strategy.clone(), Arc::new(world.clock.clone()), 100);
    let request = request("alice", &prod());
    cache.credential(&request).await.expect("a credential");

    world.clock.advance_seconds(569);
    assert!(cache.credential(&request).await.is_ok());
    world.clock.advance_seconds(1);

    assert!(cache.peek(&request).is_none());
    let error = cache.credential(&request).await.expect_err("expired");
    assert_eq!(error.kind(), ErrorKind::TokenExpired);
    assert_eq!(refusal(&strategy, &request).await.0, ErrorKind::TokenExpired);
}

#[tokio::test]
async fn login_whose_grant_was_withdrawn_is_an_expired_one() {
    let world = World::new();
    let tokens = TokenSet::new();
    let login = NewLogin::new(Subject::new("alice").expect("a subject"), tokens, at(NOW + 600));
    world.vault.log_in(&key("alice"), login).await.expect("stored");

    let (kind, ..) = refusal(&world.strategy(), &request("alice", &prod())).await;

    assert_eq!(kind, ErrorKind::TokenExpired);
}

#[tokio::test]
async fn each_cluster_has_the_login_of_its_own_issuer() {
    let world = World::new();
    world.log_in("alice", NOW + 600).await;
    let other = LoginConfig::new(Issuer::new("https://other.example.com").expect("an issuer"));
    let strategy = ClusterAuthProvider::new(
        world.vault.clone(),
        HashMap::from([("other".to_owned(), other)]),
        Some(world.config.clone()),
    )
    .with_clock(world.clock.clone());
    let elsewhere = ClusterDetails::builder("other", "https://other.example.com")
        .auth_provider(ClusterAuthProvider::NAME)
        .build()
        .expect("a cluster");

    assert!(strategy.credential(&request("alice", &prod())).await.is_ok());
    let (kind, ..) = refusal(&strategy, &request("alice", &elsewhere)).await;
    assert_eq!(kind, ErrorKind::LoginRequired, "no token of another issuer");
}

#[tokio::test]
async fn cluster_without_an_issuer_is_refused_by_key() {
    let world = World::new();
    let strategy = ClusterAuthProvider::new(world.vault.clone(), HashMap::new(), None);

    let problems = strategy.validate(&prod());
    let (kind, _, text) = refusal(&strategy, &request("alice", &prod())).await;

    assert_eq!(problems.len(), 1);
    assert_eq!(
        (problems[0].key.as_str(), problems[0].message.as_str()),
        ("clusterAuth.issuer", text.as_str())
    );
    assert_eq!(kind, ErrorKind::ConfigInvalid);
}

#[tokio::test]
async fn stored_token_never_travels_unprotected_unless_the_cluster_says_so() {
    let world = World::new();
    world.log_in("alice", NOW + 600).await;
    let strategy = world.strategy();
    for (url, skip, key) in [
        ("http://prod.example.com", false, "url"),
        ("http://127.0.0.1:8080", false, "url"),
        ("https://prod.example.com", true, "skipTLSVerify"),
    ] {
        let insecure = |allow| {
            ClusterDetails::builder("prod", url)
                .auth_provider(ClusterAuthProvider::NAME)
                .skip_tls_verify(skip)
                .dangerously_allow_insecure_user_credentials(allow)
                .build()
                .expect("a cluster")
        };

        let refused = refusal(&strategy, &request("alice", &insecure(false))).await;

        assert_eq!(refused.0, ErrorKind::ConfigInvalid, "{url}");
        assert_eq!(strategy.validate(&insecure(false))[0].key, key);
        let allowed = request("alice", &insecure(true));
        assert!(strategy.credential(&allowed).await.is_ok(), "{url}");
        assert!(strategy.validate(&allowed.cluster).is_empty());
    }
}

#[tokio::test]
async fn refusal_by_the_api_server_leaves_the_login_as_it_is() {
    let world = World::new();
    let revision = world.log_in("alice", NOW + 600).await;
    let (strategy, request) = (world.strategy(), request("alice", &prod()));
    let refused = strategy.credential(&request).await.expect("a credential");

    for _ in 0..3 {
        assert!(
            !strategy.invalidate(&request, &refused).await,
            "there is no other token"
        );
    }

    let row = world
        .store
        .load(&key("alice"))
        .await
        .expect("a store")
        .expect("a row");
    assert_eq!(row.revision, revision);
    assert!(strategy.credential(&request).await.is_ok());

    world.log_in("alice", NOW + 900).await;
    assert!(
        strategy.invalidate(&request, &refused).await,
        "she logged in anew"
    );
    world.vault.log_out(&key("alice")).await.expect("logged out");
    assert!(!strategy.invalidate(&request, &refused).await);
}

/// A registry where a service account's token lies ready, for this very cluster too.
fn beside_a_service_account(strategy: ClusterAuthProvider) -> (ProviderRegistry, tempfile::TempDir) {
    let folder = tempfile::TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("token"), "the-applications-token").expect("written");
    let registry = ProviderRegistry::new()
        .with(ServiceAccountProvider::with_folder(folder.path()))
        .with(strategy);
    (registry, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn user_who_logs_out_in_mid_flight_never_becomes_the_service_account() {
    let world = World::new();
    world.log_in("alice", NOW + 600).await;
    let (registry, _folder) = beside_a_service_account(world.strategy());
    let cache = CachingProvider::with_clock_and_capacity(registry, Arc::new(world.clock.clone()), 100);
    let prod = cluster(ClusterAuthProvider::NAME)
        .service_account_token(Secret::new("the-applications-token"))
        .build()
        .expect("a cluster");
    let request = request("alice", &prod);
    let (logged_out, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (cache, request) = (cache.clone(), request.clone());
            let (logged_out, served) = (logged_out.clone(), served.clone());
            tokio::spawn(async move {
                let mut refused = 0;
                while refused < 50 {
                    let over = logged_out.load(Ordering::SeqCst);
                    match cache.credential(&request).await {
                        Ok(credential) => {
                            assert_eq!(sent(&credential), jwt("alice", NOW + 600));
                            assert!(!over, "a credential after the logout");
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) => {
                            assert_eq!(error.kind().status(), 401);
                            assert_eq!(error.kind(), ErrorKind::LoginRequired, "{error}");
                            refused += usize::from(over);
                        }
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    while served.load(Ordering::SeqCst) < 100 {
        tokio::task::yield_now().await;
    }

    world.vault.log_out(&key("alice")).await.expect("logged out");
    logged_out.store(true, Ordering::SeqCst);

    for caller in callers {
        caller.await.expect("no other identity");
    }
    let error = cache.credential(&request).await.expect_err("logged out");
    assert_eq!(
        (error.to_string().as_str(), error.cluster()),
        (NO_LOGIN, Some("prod"))
    );
}

#[tokio::test]
async fn damaged_row_never_becomes_another_identity() {
    let world = World::new();
    world.log_in("alice", NOW + 600).await;
    let other_key = TokenVault::new(world.store.clone(), key_ring(8)).with_clock(world.clock.clone());
    let strategy = ClusterAuthProvider::new(other_key, HashMap::new(), Some(world.config.clone()));
    let (registry, _folder) = beside_a_service_account(strategy);

    let (kind, ..) = refusal(&registry, &request("alice", &prod())).await;

    assert_eq!(kind, ErrorKind::RecordDamaged);
}

#[tokio::test]
async fn store_that_is_down_never_becomes_another_identity_nor_a_missing_login() {
    let vault = TokenVault::new(Down, key_ring(7));
    let strategy = ClusterAuthProvider::new(vault, HashMap::new(), Some(LoginConfig::new(issuer())));
    let (registry, _folder) = beside_a_service_account(strategy);
    let request = request("alice", &prod());

    let (kind, ..) = refusal(&registry, &request).await;

    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(!registry.invalidate(&request, &Credential::anonymous()).await);
}

/// A store whose medium is gone.
#[derive(Debug)]
struct Down;

fn down<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unavailable, "the disk is gone"))
}

#[async_trait]
impl TokenStore for Down {
    async fn load(&self, _: &TokenKey) -> Result<Option<TokenRecord>> {
        down()
    }

    async fn save(&self, _: &TokenKey, _: &TokenRecord, _: Expected) -> Result<()> {
        down()
    }

    async fn delete(&self, _: &TokenKey) -> Result<bool> {
        down()
    }

    async fn list(&self, _: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        down()
    }

    async fn purge(&self, _: Timestamp, _: u32) -> Result<u32> {
        down()
    }

    async fn scan(&self, _: Option<&TokenKey>, _: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        down()
    }

    async fn events(&self) -> Result<LoginEvents> {
        down()
    }
}
