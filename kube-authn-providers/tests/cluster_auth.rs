//! Refresh of users' logins and exchange of their tokens, against a loopback issuer.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests read better so"
)]

#[path = "../../kube-authn-oidc/tests/support/mod.rs"]
mod support;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kube_authn_core::{
    CachingProvider, Claim, ClientId, ClusterDetails, Credential, CredentialRequest, EntityRef, Error,
    ErrorKind, Expected, KeyId, KubernetesAuthProvider, Login, LoginConfig, LoginEvents, LoginId,
    LoginMetadata, ManualClock, NewLogin, Principal, Result, Revision, Secret, Subject, Token, TokenKey,
    TokenRecord, TokenSet, TokenStore, TokenVault, async_trait, jiff::Timestamp,
};
use kube_authn_oidc::LoginVerifier;
use kube_authn_providers::ClusterAuthProvider;
use kube_authn_store::{KeyRing, MemoryTokenStore};
use serde_json::{Value, json};
use support::{Answer, FakeIssuer, NOW, Signer, client_id, clock};

/// The issuer, the store, and processes over both.
struct World {
    issuer: FakeIssuer,
    key: Signer,
    store: FaultyStore,
    ring: KeyRing,
    clock: ManualClock,
    config: LoginConfig,
}

/// One process.
#[derive(Clone)]
struct Process {
    vault: TokenVault,
    strategy: ClusterAuthProvider,
}

impl World {
    async fn new() -> Self {
        let key = Signer::p256("k");
        let issuer = FakeIssuer::start(&[&key]).await;
        let secret = KeyRing::random_key().expect("a key");
        Self {
            config: LoginConfig::new(issuer.issuer()).with_client_id(client_id()),
            ring: KeyRing::new(vec![(KeyId::new("k1").expect("an id"), secret)]).expect("a key ring"),
            store: FaultyStore::default(),
            clock: clock(),
            issuer,
            key,
        }
    }

    fn process(&self) -> Process {
        let vault = TokenVault::new(self.store.clone(), self.ring.clone()).with_clock(self.clock.clone());
        let clock = Arc::new(self.clock.clone());
        let verifier = LoginVerifier::new(self.config.clone(), self.issuer.client(), clock, vault.clone());
        let strategy = ClusterAuthProvider::new(vault.clone(), HashMap::new(), Some(self.config.clone()))
            .with_clock(self.clock.clone())
            .with_issuers([verifier])
            .expect("a strategy");
        Process { vault, strategy }
    }

    /// Alice's login, whose ID token lives an hour and ends in so many seconds.
    async fn log_in(&self, process: &Process, ends_in: i64) -> Secret {
        let (id_token, end) = self.id_token(
            json!({"iat": NOW + ends_in - 3600, "exp": NOW + ends_in}),
            ends_in,
        );
        let tokens = TokenSet::new()
            .with_id_token(Token {
                secret: id_token.clone(),
                expires_at: end,
            })
            .with_refresh_token(Secret::new("refresh-1"));
        let login = NewLogin::new(Subject::new("alice-sub").expect("a subject"), tokens, end)
            .with_issued_at(at(NOW + ends_in - 3600));
        process.vault.log_in(&key(self), login).await.expect("stored");
        id_token
    }

    fn id_token(&self, claims: Value, ends_in: i64) -> (Secret, Timestamp) {
        (self.key.token(&self.issuer.claims(claims)), at(NOW + ends_in))
    }

    /// What the token endpoint gives to a refresh: an ID token of an hour, and the next refresh token.
    fn renewal(&self, claims: Value) -> (Secret, Answer) {
        let mut all = json!({"iat": NOW, "exp": NOW + 3600});
        support::merge(&mut all, claims);
        let id_token = self.key.token(&self.issuer.claims(all));
        let answer = Answer::Json(json!({
            "access_token": "access", "token_type": "Bearer", "refresh_token": "refresh-2",
            "id_token": id_token.expose_str(),
        }));
        (id_token, answer)
    }

    fn answers(&self, answer: Answer) {
        self.issuer.tokens(answer);
    }

    /// The refresh tokens that were spent, and the tokens that were revoked.
    fn posts(&self) -> (Vec<String>, Vec<String>) {
        let field = |name: &str| {
            let forms = self.issuer.posts();
            let value = |form: &Vec<(String, String)>| {
                form.iter()
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.clone())
            };
            forms.iter().filter_map(value).collect()
        };
        (field("refresh_token"), field("token"))
    }
}

impl Process {
    async fn credential(&self) -> Result<Credential> {
        self.strategy.credential(&request()).await
    }

    async fn sends(&self, token: &Secret) -> bool {
        self.credential()
            .await
            .is_ok_and(|credential| credential.carries(token))
    }

    async fn login(&self, world: &World) -> Option<Login> {
        self.vault.load(&key(world)).await.expect("the vault")
    }

    async fn refusal(&self) -> (ErrorKind, String) {
        let error = self.credential().await.expect_err("refused");
        (error.kind(), error.to_string())
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("an instant")
}

fn alice() -> EntityRef {
    EntityRef::parse("user:default/alice").expect("a reference")
}

fn key(world: &World) -> TokenKey {
    TokenKey {
        principal: alice(),
        issuer: world.issuer.issuer(),
        client_id: client_id(),
    }
}

fn request() -> CredentialRequest {
    request_of(Principal::user(alice()))
}

fn request_of(principal: Principal) -> CredentialRequest {
    let cluster = ClusterDetails::builder("prod", "https://prod.example.com")
        .auth_provider(ClusterAuthProvider::NAME)
        .build()
        .expect("a cluster");
    CredentialRequest::new(principal, cluster)
}

fn expired() -> (ErrorKind, String) {
    let text = "Cluster authentication expired. Please re-authenticate at Settings → Auth Providers.";
    (ErrorKind::TokenExpired, text.to_owned())
}

async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    for _ in 0..200 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not within five seconds: {what}");
}

#[tokio::test]
async fn token_that_lives_long_enough_costs_the_issuer_nothing() {
    let world = World::new().await;
    let process = world.process();
    let stored = world.log_in(&process, 1_000).await;

    let credential = process.credential().await.expect("a credential");

    assert!(credential.carries(&stored));
    // 12 to 15 minutes before the end.
    let due = credential.refresh_at().expect("an instant");
    assert!((at(NOW + 100)..=at(NOW + 280)).contains(&due), "{due}");
    process.strategy.settled().await;
    assert_eq!((world.issuer.discoveries(), world.posts().0.len()), (0, 0));
}

#[tokio::test]
async fn logins_made_together_are_never_due_together() {
    let world = World::new().await;
    let process = world.process();
    let mut due = std::collections::BTreeSet::new();

    for _ in 0..40 {
        process.vault.log_out(&key(&world)).await.expect("logged out");
        world.log_in(&process, 3_000).await;
        let credential = process.credential().await.expect("a credential");
        due.insert(credential.refresh_at().expect("an instant"));
    }

    let (first, last) = (due.first().expect("one"), due.last().expect("one"));
    let spread = last.duration_since(*first).as_secs();
    assert!(
        due.len() > 20 && spread > 60,
        "{} instants within {spread} s",
        due.len()
    );
}

#[tokio::test]
async fn many_logins_that_end_together_never_become_a_storm() {
    let world = World::new().await;
    let process = world.process();
    let (_, answer) = world.renewal(json!({}));
    world.answers(Answer::Later(2_000, Box::new(answer)));
    let users: Vec<_> = (0..40).map(|index| format!("user:default/u{index}")).collect();
    for user in &users {
        let (id_token, end) = world.id_token(json!({"exp": NOW + 10}), 10);
        let tokens = TokenSet::new()
            .with_id_token(Token {
                secret: id_token,
                expires_at: end,
            })
            .with_refresh_token(Secret::new(user.as_bytes()));
        let key = TokenKey {
            principal: EntityRef::parse(user).expect("a reference"),
            ..key(&world)
        };
        let login = NewLogin::new(Subject::new("alice-sub").expect("a subject"), tokens, end);
        process.vault.log_in(&key, login).await.expect("stored");
    }

    let callers: Vec<_> = users
        .iter()
        .map(|user| {
            let principal = Principal::user(EntityRef::parse(user).expect("a reference"));
            let (strategy, request) = (process.strategy.clone(), request_of(principal));
            tokio::spawn(async move { strategy.credential(&request).await })
        })
        .collect();

    eventually("as many calls as are made at once", async || {
        world.posts().0.len() >= 32
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.posts().0.len(), 32);
    for caller in callers {
        assert!(caller.await.expect("an answer").is_ok());
    }
    assert_eq!(world.posts().0.len(), 40);
}

#[tokio::test]
async fn login_that_is_due_is_refreshed_while_its_token_is_served() {
    let world = World::new().await;
    let process = world.process();
    let stored = world.log_in(&process, 300).await;
    let (renewed, answer) = world.renewal(json!({}));
    world.answers(Answer::Later(300, Box::new(answer)));

    let before = process.credential().await.expect("a credential");

    assert!(before.carries(&stored), "nobody waits");
    assert_eq!(before.refresh_at(), Some(at(NOW + 1)));
    process.strategy.settled().await;
    assert!(process.sends(&renewed).await);
    let login = process.login(&world).await.expect("a login");
    assert_eq!(login.tokens.refresh_token, Some(Secret::new("refresh-2")));
    assert_eq!(
        login.handle.is_ended(),
        before.login().expect("a login").is_ended()
    );
    assert_eq!(world.posts().0, ["refresh-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refresh_token_is_never_spent_twice_by_many_callers_of_many_processes() {
    let world = World::new().await;
    let processes: Vec<_> = (0..4).map(|_| world.process()).collect();
    world.log_in(&processes[0], 10).await;
    let (renewed, answer) = world.renewal(json!({}));
    world.answers(Answer::Later(1_500, Box::new(answer)));

    let callers: Vec<_> = (0..128)
        .map(|index| {
            let process = processes[index % 4].clone();
            tokio::spawn(async move { process.credential().await })
        })
        .collect();

    for caller in callers {
        let credential = caller.await.expect("an answer").expect("a credential");
        assert!(credential.carries(&renewed));
    }
    assert_eq!(world.posts(), (vec!["refresh-1".to_owned()], vec![]));
}

#[tokio::test]
async fn caller_who_hangs_up_never_cuts_a_refresh_off() {
    let world = World::new().await;
    let process = world.process();
    world.log_in(&process, 10).await;
    let (renewed, answer) = world.renewal(json!({}));
    world.answers(Answer::Later(400, Box::new(answer)));

    let hung_up = tokio::time::timeout(Duration::from_millis(100), process.credential()).await;

    assert!(hung_up.is_err());
    process.strategy.settled().await;
    assert!(process.sends(&renewed).await);
    assert_eq!(world.posts().0.len(), 1);
}

#[tokio::test]
async fn withdrawn_grant_never_leaves_a_login_that_looks_alive() {
    let world = World::new().await;
    let process = world.process();
    world.log_in(&process, 300).await;
    world.answers(Answer::Status(400, json!({"error": "invalid_grant"}).to_string()));
    let before = process.credential().await.expect("still good");

    process.strategy.settled().await;

    assert_eq!(process.refusal().await, expired());
    assert!(before.login().expect("a login").is_ended(), "streams are cut");
    assert!(!process.login(&world).await.expect("a row").metadata.refreshable);
    assert_eq!(world.posts().0.len(), 1, "nobody asks again");
}

#[tokio::test]
async fn issuer_that_is_in_trouble_never_ends_a_login() {
    for trouble in [
        Answer::Status(500, "canary".to_owned()),
        Answer::Status(503, json!({"error": "invalid_grant"}).to_string()),
        Answer::Status(401, json!({"error": "invalid_client"}).to_string()),
        Answer::Status(429, String::new()),
        Answer::Status(200, "canary".to_owned()),
    ] {
        let world = World::new().await;
        let process = world.process();
        let stored = world.log_in(&process, 300).await;
        world.answers(trouble.clone());

        assert!(process.sends(&stored).await);
        process.strategy.settled().await;

        // Nobody asks again for a while.
        for _ in 0..5 {
            assert!(process.sends(&stored).await, "{trouble:?}");
        }
        process.strategy.settled().await;
        assert_eq!(world.posts().0.len(), 1, "{trouble:?}");
        world.clock.advance_seconds(290);
        let error = process.credential().await.expect_err("the token has ended");
        assert_ne!(error.kind(), ErrorKind::LoginRequired, "{trouble:?}");
        assert_ne!(error.kind(), ErrorKind::TokenExpired, "{trouble:?}");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        let login = process.login(&world).await.expect("a login");
        assert_eq!(login.tokens.refresh_token, Some(Secret::new("refresh-1")));
    }
}

#[tokio::test]
async fn login_is_refreshed_as_soon_as_the_issuer_is_back() {
    let world = World::new().await;
    let process = world.process();
    world.log_in(&process, 10).await;
    world.answers(Answer::Status(503, String::new()));
    let error = process.credential().await.expect_err("the issuer is down");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error
            .retry_after()
            .is_some_and(|after| after <= Duration::from_secs(2))
    );

    let (renewed, answer) = world.renewal(json!({}));
    world.answers(answer);

    eventually("the new token", async || process.sends(&renewed).await).await;
    assert_eq!(world.posts().0, ["refresh-1", "refresh-1"]);
}

/// A token endpoint that takes the form and breaks off.
async fn breaking_off(world: &World) -> Arc<AtomicUsize> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address: SocketAddr = listener.local_addr().expect("an address");
    let mut document = support::document(world.issuer.url());
    support::merge(
        &mut document,
        json!({"token_endpoint": format!("http://{address}/token")}),
    );
    world.issuer.discovery(Answer::Json(document));
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 64]).await;
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    taken
}

#[tokio::test]
async fn answer_that_was_lost_allows_one_more_attempt_and_no_third() {
    let world = World::new().await;
    let process = world.process();
    let stored = world.log_in(&process, 600).await;
    let taken = breaking_off(&world).await;

    assert!(process.sends(&stored).await);
    process.strategy.settled().await;
    assert_eq!(taken.load(Ordering::SeqCst), 1);
    assert!(
        process
            .login(&world)
            .await
            .expect("a login")
            .metadata
            .refreshing
            .is_some()
    );
    // Other processes, which know nothing of it.
    world.clock.advance_seconds(60);
    for _ in 0..3 {
        let another = world.process();
        assert!(another.sends(&stored).await, "used to its end");
        another.strategy.settled().await;
        assert_eq!(taken.load(Ordering::SeqCst), 2);
        world.clock.advance_seconds(60);
    }
    world.clock.advance_seconds(600);

    assert_eq!(world.process().refusal().await, expired());
    assert_eq!(taken.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn refresh_with_tokens_of_another_subject_never_replaces_a_login() {
    let world = World::new().await;
    let process = world.process();
    let stored = world.log_in(&process, 300).await;
    let (_, answer) = world.renewal(json!({"sub": "mallory-sub"}));
    world.answers(answer);

    assert!(process.sends(&stored).await);
    process.strategy.settled().await;

    assert!(process.sends(&stored).await);
    let login = process.login(&world).await.expect("a login");
    assert_eq!(login.tokens.id_token.expect("a token").secret, stored);
    assert_eq!(login.metadata.subject.as_str(), "alice-sub");
    world.clock.advance_seconds(290);
    let error = process.credential().await.expect_err("refused");
    assert_eq!(error.code(), "identity_mismatch");
}

#[tokio::test]
async fn refresh_token_is_never_lost_for_keys_that_cannot_be_fetched() {
    let world = World::new().await;
    let process = world.process();
    world.log_in(&process, 10).await;
    let (renewed, answer) = world.renewal(json!({}));
    world.answers(answer);
    world.issuer.keys(Answer::Status(500, String::new()));

    let error = process.credential().await.expect_err("nothing verifies");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let login = process.login(&world).await.expect("a login");
    assert_eq!(login.tokens.refresh_token, Some(Secret::new("refresh-2")));

    world.issuer.publish(&[&world.key]);
    for _ in 0..400 {
        if process.sends(&renewed).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(world.posts().0[..2], ["refresh-1", "refresh-2"]);
    assert!(process.sends(&renewed).await);
}

#[tokio::test]
async fn logout_during_a_refresh_stays_one_and_what_came_is_revoked() {
    let world = World::new().await;
    let process = world.process();
    world.log_in(&process, 10).await;
    let (_, answer) = world.renewal(json!({}));
    world.answers(Answer::Later(500, Box::new(answer)));
    let waiting = tokio::spawn({
        let process = process.clone();
        async move { process.refusal().await }
    });
    eventually("the refresh", async || world.posts().0.len() == 1).await;

    // By another process.
    let elsewhere = world.process();
    assert!(elsewhere.vault.log_out(&key(&world)).await.expect("logged out"));

    let (kind, _) = waiting.await.expect("an answer");
    assert_eq!(kind, ErrorKind::LoginRequired);
    process.strategy.settled().await;
    assert!(process.login(&world).await.is_none());
    assert_eq!(
        world.posts(),
        (vec!["refresh-1".into()], vec!["refresh-2".into()])
    );
}

#[tokio::test]
async fn new_login_during_a_refresh_is_never_overwritten() {
    let world = World::new().await;
    let process = world.process();
    world.log_in(&process, 10).await;
    let (_, answer) = world.renewal(json!({}));
    world.answers(Answer::Later(500, Box::new(answer)));
    let waiting = tokio::spawn({
        let process = process.clone();
        async move { process.credential().await }
    });
    eventually("the refresh", async || world.posts().0.len() == 1).await;

    let new = world.log_in(&world.process(), 1_800).await;

    let credential = waiting.await.expect("an answer").expect("a credential");
    assert!(credential.carries(&new));
    assert_eq!(world.posts().1, ["refresh-2"]);
}

#[tokio::test]
async fn store_that_fails_when_the_issuer_has_answered_loses_no_grant() {
    for written in [false, true] {
        let world = World::new().await;
        let process = world.process();
        world.log_in(&process, 10).await;
        let (renewed, answer) = world.renewal(json!({}));
        world.answers(Answer::Later(300, Box::new(answer)));
        let waiting = tokio::spawn({
            let process = process.clone();
            async move { process.credential().await }
        });
        eventually("the refresh", async || world.posts().0.len() == 1).await;

        // Whether or not it wrote what it says it didn't.
        world.store.fail_saves(3, written);

        let credential = waiting.await.expect("an answer").expect("a credential");
        assert!(credential.carries(&renewed), "written: {written}");
        let login = process.login(&world).await.expect("a login");
        assert_eq!(login.tokens.refresh_token, Some(Secret::new("refresh-2")));
        assert!(login.metadata.refreshing.is_none());
        assert_eq!(world.posts(), (vec!["refresh-1".into()], vec![]));
    }
}

#[tokio::test]
async fn process_that_waits_for_another_takes_what_that_one_got() {
    let world = World::new().await;
    let (process, another) = (world.process(), world.process());
    world.log_in(&another, 10).await;
    let seen = another.login(&world).await.expect("a login");
    let owner = LoginId::random().expect("a name");
    let claim = another.vault.claim_refresh(&seen, owner, at(NOW + 60)).await;
    let Ok(Claim::Ours(claimed)) = claim else {
        panic!("not ours")
    };
    let waiting = tokio::spawn({
        let process = process.clone();
        async move { process.credential().await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;

    let (renewed, _) = world.renewal(json!({}));
    let tokens = TokenSet::new().with_id_token(Token {
        secret: renewed.clone(),
        expires_at: at(NOW + 3600),
    });
    let login = NewLogin::new(claimed.metadata.subject.clone(), tokens, at(NOW + 3600));
    another
        .vault
        .finish_refresh(&claimed, login)
        .await
        .expect("finished");

    assert!(
        waiting
            .await
            .expect("an answer")
            .expect("a credential")
            .carries(&renewed)
    );
    assert_eq!(world.posts().0.len(), 0);
}

/// A login that nobody has to refresh, written so long ago that a refusal of its token may refresh it.
async fn log_in_long_ago(world: &World, process: &Process) -> Credential {
    world.clock.advance_seconds(-61);
    let stored = world.log_in(process, 3_000).await;
    world.clock.advance_seconds(61);
    let credential = process.credential().await.expect("a credential");
    assert!(credential.carries(&stored));
    credential
}

/// What an API server has refused once, by now with a new token.
async fn refreshed_after_a_refusal(world: &World, process: &Process) -> Credential {
    let refused = log_in_long_ago(world, process).await;
    let (_, answer) = world.renewal(json!({}));
    world.answers(answer);
    assert!(process.strategy.invalidate(&request(), &refused).await);
    process.credential().await.expect("a credential")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_token_is_refreshed_once_by_many_callers_of_many_processes() {
    let world = World::new().await;
    let processes: Vec<_> = (0..4).map(|_| world.process()).collect();
    let refused = log_in_long_ago(&world, &processes[0]).await;
    let (renewed, answer) = world.renewal(json!({}));
    world.answers(Answer::Later(1_000, Box::new(answer)));

    let callers: Vec<_> = (0..64)
        .map(|index| {
            let (process, refused) = (processes[index % 4].clone(), refused.clone());
            tokio::spawn(async move {
                let another = process.strategy.invalidate(&request(), &refused).await;
                (another, process.credential().await)
            })
        })
        .collect();

    for caller in callers {
        let (another, credential) = caller.await.expect("an answer");
        assert!(another);
        assert!(credential.expect("a credential").carries(&renewed));
    }
    assert_eq!(world.posts(), (vec!["refresh-1".to_owned()], vec![]));
}

#[tokio::test]
async fn refused_token_costs_one_call_over_all_processes_also_while_the_issuer_is_in_trouble() {
    let world = World::new().await;
    let (here, elsewhere) = (world.process(), world.process());
    let refused = refreshed_after_a_refusal(&world, &here).await;
    world.clock.advance_seconds(60);

    // Both have read the row before one of them tries: the other one still looks for the issuer then.
    let document = support::document(world.issuer.url());
    world
        .issuer
        .discovery(Answer::Later(500, Box::new(Answer::Json(document))));
    world.answers(Answer::Status(503, String::new()));
    let request = request();
    let tries = tokio::join!(
        here.strategy.invalidate(&request, &refused),
        elsewhere.strategy.invalidate(&request, &refused)
    );

    assert_eq!(tries, (false, false));
    assert_eq!(world.posts().0, ["refresh-1", "refresh-2"]);
}

#[tokio::test]
async fn token_that_is_truly_refused_never_costs_more_than_one_refresh_a_minute() {
    let world = World::new().await;
    let (here, elsewhere) = (world.process(), world.process());
    let renewed = refreshed_after_a_refusal(&world, &here).await;

    for second in 0..59 {
        assert!(!here.strategy.invalidate(&request(), &renewed).await, "{second}");
        assert!(
            !elsewhere.strategy.invalidate(&request(), &renewed).await,
            "{second}"
        );
        world.clock.advance_seconds(1);
    }
    assert_eq!(world.posts().0, ["refresh-1"]);

    world.clock.advance_seconds(1);
    let (_, answer) = world.renewal(json!({"exp": NOW + 7200}));
    world.answers(answer);
    assert!(elsewhere.strategy.invalidate(&request(), &renewed).await);
    assert_eq!(world.posts().0, ["refresh-1", "refresh-2"]);
}

#[tokio::test]
async fn refused_token_that_was_replaced_meanwhile_costs_no_refresh() {
    let world = World::new().await;
    let (here, elsewhere) = (world.process(), world.process());
    let refused = log_in_long_ago(&world, &here).await;
    let (renewed, answer) = world.renewal(json!({}));
    world.answers(answer);
    assert!(elsewhere.strategy.invalidate(&request(), &refused).await);
    world.clock.advance_seconds(61);

    assert!(here.strategy.invalidate(&request(), &refused).await);

    assert!(here.sends(&renewed).await);
    assert_eq!(world.posts().0, ["refresh-1"]);
}

#[tokio::test]
async fn refused_token_of_a_login_made_a_moment_ago_or_without_a_refresh_token_is_left_alone() {
    let world = World::new().await;
    let process = world.process();
    world.log_in(&process, 3_000).await;
    let young = process.credential().await.expect("a credential");
    let (secret, end) = world.id_token(json!({"exp": NOW + 600}), 600);
    let tokens = TokenSet::new().with_id_token(Token {
        secret,
        expires_at: end,
    });
    let login = NewLogin::new(Subject::new("bob-sub").expect("a subject"), tokens, end);
    let bob = EntityRef::parse("user:default/bob").expect("a reference");
    let bobs = TokenKey {
        principal: bob.clone(),
        ..key(&world)
    };
    process.vault.log_in(&bobs, login).await.expect("stored");
    let bob = request_of(Principal::user(bob));
    let lasting = process.strategy.credential(&bob).await.expect("a credential");

    let is_young_replaced = process.strategy.invalidate(&request(), &young).await;
    world.clock.advance_seconds(61);
    let is_lasting_replaced = process.strategy.invalidate(&bob, &lasting).await;

    assert_eq!((is_young_replaced, is_lasting_replaced), (false, false));
    assert_eq!((world.issuer.discoveries(), world.posts().0.len()), (0, 0));
}

#[tokio::test]
async fn refused_token_of_a_withdrawn_grant_ends_the_login() {
    let world = World::new().await;
    let process = world.process();
    let refused = log_in_long_ago(&world, &process).await;
    world.answers(Answer::Status(400, json!({"error": "invalid_grant"}).to_string()));

    assert!(process.strategy.invalidate(&request(), &refused).await);

    assert!(refused.login().expect("a login").is_ended());
    assert_eq!(process.refusal().await, expired());
}

#[tokio::test]
async fn refused_token_never_ends_a_login_while_its_issuer_is_in_trouble() {
    let world = World::new().await;
    let process = world.process();
    let refused = log_in_long_ago(&world, &process).await;
    world.answers(Answer::Status(503, String::new()));

    assert!(!process.strategy.invalidate(&request(), &refused).await);
    assert!(!process.strategy.invalidate(&request(), &refused).await);

    assert_eq!(world.posts().0, ["refresh-1"]);
    let login = process.login(&world).await.expect("a login");
    assert!(login.metadata.refreshable && !login.handle.is_ended());
    assert!(process.credential().await.is_ok());
}

/// An answer to an exchange for the audience `narrow`, with a token that lives a while.
fn exchanged(world: &World, lives: i64) -> (Secret, Answer) {
    let claims = json!({"aud": "narrow", "azp": "kubernetes", "exp": NOW + lives});
    let token = world.key.token(&world.issuer.claims(claims));
    let answer = Answer::Json(json!({
        "access_token": token.expose_str(), "token_type": "N_A",
        "issued_token_type": "urn:ietf:params:oauth:token-type:id_token",
    }));
    (token, answer)
}

#[tokio::test]
async fn token_of_the_clusters_audience_lies_in_the_cache_alone_and_dies_with_the_login() {
    let mut world = World::new().await;
    world.config.audience = Some(ClientId::new("narrow").expect("an audience"));
    let process = world.process();
    let stored = world.log_in(&process, 2_000).await;
    let row = world.store.load(&key(&world)).await.expect("a row");
    let (narrow, answer) = exchanged(&world, 900);
    world.answers(answer);
    let clock = Arc::new(world.clock.clone());
    let cache = CachingProvider::with_clock_and_capacity(process.strategy.clone(), clock, 10);
    let request = request();

    for _ in 0..3 {
        let credential = cache.credential(&request).await.expect("a credential");
        assert!(credential.carries(&narrow) && !credential.carries(&stored));
        assert_eq!(credential.expires_at(), Some(at(NOW + 900)));
    }

    assert_eq!(world.issuer.posts().len(), 1, "one exchange");
    assert_eq!(world.store.load(&key(&world)).await.expect("a row"), row);
    process.vault.log_out(&key(&world)).await.expect("logged out");
    assert!(cache.peek(&request).is_none());
    let error = cache.credential(&request).await.expect_err("logged out");
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
}

#[tokio::test]
async fn refused_exchange_never_falls_back_to_the_logins_own_token() {
    let mut world = World::new().await;
    world.config.audience = Some(ClientId::new("narrow").expect("an audience"));
    let process = world.process();
    world.log_in(&process, 2_000).await;
    for (status, code, kind) in [
        (400, "invalid_target", ErrorKind::ConfigInvalid),
        (400, "invalid_grant", ErrorKind::TokenExpired),
        (500, "server_error", ErrorKind::Unavailable),
    ] {
        world.answers(Answer::Status(status, json!({"error": code}).to_string()));

        // A process of its own: this one would not ask again at once.
        assert_eq!(world.process().refusal().await.0, kind);
    }
    assert!(
        process.login(&world).await.expect("a login").metadata.refreshable,
        "it stays"
    );
}

#[tokio::test]
async fn exchange_that_failed_never_becomes_a_storm_and_its_user_is_told() {
    let mut world = World::new().await;
    world.config.audience = Some(ClientId::new("narrow").expect("an audience"));
    let process = world.process();
    world.log_in(&process, 2_000).await;
    world.answers(Answer::Status(400, json!({"error": "invalid_grant"}).to_string()));

    for _ in 0..20 {
        assert_eq!(process.refusal().await, expired());
    }

    assert_eq!(world.issuer.posts().len(), 1);
    // Who logs in anew does not wait.
    process.vault.log_out(&key(&world)).await.expect("logged out");
    world.log_in(&process, 2_000).await;
    let (narrow, answer) = exchanged(&world, 900);
    world.answers(answer);
    assert!(process.sends(&narrow).await);
}

#[tokio::test]
async fn refresh_that_gives_the_same_token_is_never_begun_again_at_once() {
    let world = World::new().await;
    let process = world.process();
    let stored = world.log_in(&process, 300).await;
    world.answers(Answer::Json(json!({
        "access_token": "access", "token_type": "Bearer", "refresh_token": "refresh-2",
        "id_token": stored.expose_str(),
    })));

    for _ in 0..5 {
        assert!(process.sends(&stored).await);
        process.strategy.settled().await;
    }

    assert_eq!(world.posts().0, ["refresh-1"]);
    let again = process.credential().await.expect("a credential").refresh_at();
    assert!(again.is_some_and(|again| again > at(NOW + 20)), "{again:?}");
    // Once the token has ended, it may be another.
    world.clock.advance_seconds(280);
    let (renewed, answer) = world.renewal(json!({}));
    world.answers(answer);
    assert!(process.sends(&renewed).await);
}

#[tokio::test]
async fn refusal_of_the_issuer_is_told_also_when_the_claim_is_lost() {
    let world = World::new().await;
    let process = world.process();
    world.log_in(&process, 10).await;
    world.answers(Answer::Later(500, Box::new(Answer::Status(503, String::new()))));
    let waiting = tokio::spawn({
        let process = process.clone();
        async move { process.refusal().await }
    });
    eventually("the refresh", async || world.posts().0.len() == 1).await;

    let elsewhere = world.process();
    let claimed = elsewhere.login(&world).await.expect("a login");
    elsewhere.vault.release_refresh(&claimed).await.expect("released");

    let (kind, text) = waiting.await.expect("an answer");
    assert_eq!(kind, ErrorKind::Unavailable, "{text}");
}

/// A store in memory that says of so many saves that they failed.
#[derive(Clone, Debug, Default)]
struct FaultyStore {
    inner: MemoryTokenStore,
    failing: Arc<AtomicUsize>,
    writing: Arc<std::sync::atomic::AtomicBool>,
}

impl FaultyStore {
    fn fail_saves(&self, count: usize, written: bool) {
        self.writing.store(written, Ordering::SeqCst);
        self.failing.store(count, Ordering::SeqCst);
    }
}

#[async_trait]
impl TokenStore for FaultyStore {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        self.inner.load(key).await
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        let fails = self
            .failing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        if !fails {
            return self.inner.save(key, record, expected).await;
        }
        if self.writing.load(Ordering::SeqCst) {
            self.inner.save(key, record, expected).await?;
        }
        Err(Error::new(ErrorKind::Unavailable, "the store is restarting"))
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        self.inner.delete(key).await
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        self.inner.list(principal).await
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        self.inner.purge(ended_before, limit).await
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        self.inner.scan(after, limit).await
    }

    async fn events(&self) -> Result<LoginEvents> {
        self.inner.events().await
    }
}
