//! Who is calling: tokens of a loopback portal and a loopback issuer.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests"
)]

mod support;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{Request, header::AUTHORIZATION};
use kube_authn_core::{ErrorKind, ManualClock, Principal, PrincipalName, Secret};
use kube_authn_http::{BackstageCallers, Caller, Callers, OidcCallers, PrincipalMapping};
use serde_json::{Value, json};
use support::{FakeIssuer, NOW, Signer, client_id, clock, merge, transport};
use url::Url;

const USER: &str = "vnd.backstage.user";
const LIMITED: &str = "vnd.backstage.limited-user";
const PLUGIN: &str = "vnd.backstage.plugin";

/// A Backstage backend that publishes its keys.
#[derive(Clone)]
struct Portal(Arc<Inner>);

struct Inner {
    base_url: String,
    users: Signer,
    plugin: Signer,
    fetches: AtomicUsize,
    asked_plugins: Mutex<Vec<String>>,
    down: Mutex<bool>,
}

impl Portal {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let portal = Self(Arc::new(Inner {
            base_url: format!("http://{address}/api/auth"),
            users: Signer::p256("users"),
            plugin: Signer::p256("plugin"),
            fetches: AtomicUsize::new(0),
            asked_plugins: Mutex::default(),
            down: Mutex::new(false),
        }));
        let router = Router::new()
            .route("/api/auth/.well-known/jwks.json", get(user_keys))
            .route("/api/{plugin}/.backstage/auth/v1/jwks.json", get(plugin_keys))
            .with_state(portal.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        portal
    }

    fn callers(&self, clock: &ManualClock) -> Callers {
        let base_url = Url::parse(&self.0.base_url).expect("a URL");
        let ids = ["kubernetes", "cluster-auth"];
        let callers =
            BackstageCallers::new(&base_url, ids, transport(), Arc::new(clock.clone())).expect("callers");
        Callers::new().with(callers)
    }

    fn user_claims(&self, changes: Value) -> Value {
        let mut claims = json!({
            "iss": self.0.base_url, "sub": "user:default/Alice", "aud": "backstage", "iat": NOW, "exp": NOW + 3600,
        });
        merge(&mut claims, changes);
        claims
    }

    fn user(&self, changes: Value) -> String {
        text(
            &self
                .0
                .users
                .token_with_header(json!({ "typ": USER }), &self.user_claims(changes)),
        )
    }

    fn limited(&self, exp: i64) -> String {
        let claims = json!({ "sub": "user:default/alice", "iat": NOW, "exp": exp });
        text(&self.0.users.token_with_header(json!({ "typ": LIMITED }), &claims))
    }

    fn plugin(&self, changes: Value) -> String {
        let mut claims = json!({ "sub": "catalog", "aud": "kubernetes", "iat": NOW, "exp": NOW + 600 });
        merge(&mut claims, changes);
        text(&self.0.plugin.token_with_header(json!({ "typ": PLUGIN }), &claims))
    }
}

async fn user_keys(State(portal): State<Portal>) -> Response {
    portal.0.fetches.fetch_add(1, Ordering::SeqCst);
    if *portal.0.down.lock().expect("lock") {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    axum::Json(json!({ "keys": [portal.0.users.jwk()] })).into_response()
}

async fn plugin_keys(State(portal): State<Portal>, Path(plugin): Path<String>) -> Response {
    portal.0.asked_plugins.lock().expect("lock").push(plugin.clone());
    match plugin.as_str() {
        "catalog" => axum::Json(json!({ "keys": [portal.0.plugin.jwk()] })).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn text(token: &Secret) -> String {
    token.expose_str().expect("text").to_owned()
}

async fn authenticate(callers: &Callers, token: &str) -> kube_authn_core::Result<Caller> {
    let mut request = Request::get("/");
    if !token.is_empty() {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let (head, ()) = request.body(()).expect("a request").into_parts();
    callers.authenticate(&head).await
}

async fn refusal(callers: &Callers, token: &str) -> (ErrorKind, String) {
    let error = authenticate(callers, token).await.expect_err("refused");
    (error.kind(), error.to_string())
}

fn name(principal: &Principal) -> String {
    principal.to_string()
}

#[tokio::test]
async fn backstage_user_is_the_lower_cased_subject() {
    let portal = Portal::start().await;

    let caller = authenticate(&portal.callers(&clock()), &portal.user(json!({})))
        .await
        .expect("known");

    assert_eq!(name(&caller.principal), "user:default/alice");
    assert_eq!((caller.limited, caller.actor.is_none()), (false, true));
    assert_eq!(
        caller.principal.expires_at().map(|end| end.as_second()),
        Some(NOW + 3600)
    );
}

#[tokio::test]
async fn backstage_token_that_is_not_quite_one_is_refused() {
    let portal = Portal::start().await;
    let callers = portal.callers(&clock());
    let stranger = Signer::p256("users");
    let forged = stranger.token_with_header(json!({ "typ": USER }), &portal.user_claims(json!({})));
    let by_plugin = portal
        .0
        .plugin
        .token_with_header(json!({ "typ": USER }), &portal.user_claims(json!({})));

    for token in [
        text(&forged),
        text(&by_plugin),
        portal.user(json!({ "aud": "another" })),
        portal.user(json!({ "aud": null })),
        portal.user(json!({ "iss": "https://portal.example.com/api/auth" })),
        portal.user(json!({ "iss": null })),
        portal.user(json!({ "exp": NOW - 3600 })),
        portal.user(json!({ "exp": null })),
        portal.user(json!({ "nbf": NOW + 3600 })),
        portal.user(json!({ "sub": null })),
        portal.user(json!({ "sub": "alice" })),
        portal.user(json!({ "sub": "user:default/a b" })),
    ] {
        let (kind, message) = refusal(&callers, &token).await;
        assert_eq!(kind, ErrorKind::CallerUnknown, "{message}");
        assert!(message.starts_with("Illegal token: "), "{message}");
    }
}

#[tokio::test]
async fn token_of_no_known_type_is_illegal_and_none_is_missing() {
    let portal = Portal::start().await;
    let callers = portal.callers(&clock());
    let claims = portal.user_claims(json!({}));
    let typed = |typ: Value| text(&portal.0.users.token_with_header(json!({ "typ": typ }), &claims));
    let (header, rest) = portal
        .user(json!({}))
        .split_once('.')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("parts");
    let unsigned = format!(
        "{}.{rest}",
        support::encode(json!({ "typ": USER, "alg": "none" }).to_string())
    );
    let shared = format!(
        "{}.{rest}",
        support::encode(json!({ "typ": USER, "alg": "HS256" }).to_string())
    );

    for token in [
        typed(json!("JWT")),
        typed(Value::Null),
        typed(json!("VND.BACKSTAGE.USER")),
        unsigned,
        shared,
        header,
        "opaque".to_owned(),
    ] {
        assert_eq!(
            refusal(&callers, &token).await,
            (ErrorKind::CallerUnknown, "Illegal token".to_owned())
        );
    }
    assert_eq!(
        refusal(&callers, "").await,
        (ErrorKind::CallerUnknown, "Missing credentials".to_owned())
    );
    assert_eq!(refusal(&Callers::new(), "").await.1, "Missing credentials");
}

#[tokio::test]
async fn verified_token_is_remembered_until_it_ends() {
    let (portal, clock) = (Portal::start().await, clock());
    let callers = portal.callers(&clock);
    let token = portal.user(json!({}));
    authenticate(&callers, &token).await.expect("known");
    *portal.0.down.lock().expect("lock") = true;

    for _ in 0..3 {
        authenticate(&callers, &token).await.expect("remembered");
    }
    let mut changed = token.clone();
    changed.replace_range(token.len() - 3.., "AAA");
    assert!(
        authenticate(&callers, &changed).await.is_err(),
        "another signature is another token"
    );
    clock.advance_seconds(3600 + 61);

    assert_eq!(
        refusal(&callers, &token).await,
        (
            ErrorKind::CallerUnknown,
            "Illegal token: Token expired".to_owned()
        )
    );
}

#[tokio::test]
async fn portal_that_does_not_answer_makes_nobody_unknown() {
    let portal = Portal::start().await;
    *portal.0.down.lock().expect("lock") = true;

    let (kind, _) = refusal(&portal.callers(&clock()), &portal.user(json!({}))).await;

    assert_eq!(kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn limited_user_is_a_user_who_may_only_read() {
    let portal = Portal::start().await;

    let caller = authenticate(&portal.callers(&clock()), &portal.limited(NOW + 60))
        .await
        .expect("known");

    assert_eq!(
        (name(&caller.principal).as_str(), caller.limited),
        ("user:default/alice", true)
    );
}

#[tokio::test]
async fn limited_token_never_passes_for_a_full_one() {
    let portal = Portal::start().await;
    let claims = json!({ "sub": "user:default/alice", "iat": NOW, "exp": NOW + 60 });
    let retyped = text(&portal.0.users.token_with_header(json!({ "typ": USER }), &claims));

    assert!(authenticate(&portal.callers(&clock()), &retyped).await.is_err());
}

#[tokio::test]
async fn plugin_is_a_service_and_with_obo_acts_for_the_user() {
    let portal = Portal::start().await;
    let callers = portal.callers(&clock());

    let plugin = authenticate(&callers, &portal.plugin(json!({})))
        .await
        .expect("known");
    let acting = authenticate(
        &callers,
        &portal.plugin(json!({ "obo": portal.limited(NOW + 60) })),
    )
    .await
    .expect("known");

    assert_eq!(
        plugin.principal.name(),
        &PrincipalName::Service("plugin:catalog".into())
    );
    assert_eq!(name(&acting.principal), "user:default/alice");
    assert_eq!(
        acting.actor.as_ref().map(name).as_deref(),
        Some("service:plugin:catalog")
    );
    assert_eq!(
        (
            acting.limited,
            acting.principal.expires_at().map(|end| end.as_second())
        ),
        (false, Some(NOW + 60))
    );
}

#[tokio::test]
async fn plugin_token_for_another_plugin_or_of_another_key_is_refused() {
    let portal = Portal::start().await;
    let callers = portal.callers(&clock());
    let claims = json!({ "sub": "catalog", "aud": "kubernetes", "iat": NOW, "exp": NOW + 60 });
    let by_users_key = text(
        &portal
            .0
            .users
            .token_with_header(json!({ "typ": PLUGIN }), &claims),
    );
    let forged_user = text(&Signer::p256("users").token_with_header(
        json!({ "typ": LIMITED }),
        &json!({ "sub": "user:default/alice", "exp": NOW + 60 }),
    ));

    for token in [
        by_users_key,
        portal.plugin(json!({ "aud": "catalog" })),
        portal.plugin(json!({ "aud": null })),
        portal.plugin(json!({ "exp": NOW - 3600 })),
        portal.plugin(json!({ "obo": forged_user })),
        portal.plugin(json!({ "obo": portal.limited(NOW - 3600) })),
        portal.plugin(json!({ "obo": portal.user(json!({})) })),
        portal.plugin(json!({ "obo": 7 })),
    ] {
        assert_eq!(refusal(&callers, &token).await.0, ErrorKind::CallerUnknown);
    }
}

#[tokio::test]
async fn plugin_id_never_leads_to_an_address_of_the_senders_choice() {
    let portal = Portal::start().await;
    let callers = portal.callers(&clock());

    for id in [
        "../x",
        "a/b",
        "a?b",
        "a#b",
        "A",
        "evil.example",
        "%2e%2e",
        "",
        "a b",
        &"a".repeat(65),
    ] {
        assert!(
            authenticate(&callers, &portal.plugin(json!({ "sub": id })))
                .await
                .is_err(),
            "{id}"
        );
    }

    assert!(portal.0.asked_plugins.lock().expect("lock").is_empty());
}

#[tokio::test]
async fn strangers_with_made_up_plugin_ids_cannot_make_us_fetch_without_bound() {
    let portal = Portal::start().await;
    let callers = portal.callers(&clock());
    authenticate(&callers, &portal.plugin(json!({})))
        .await
        .expect("known");

    for number in 0..100 {
        let token = portal.plugin(json!({ "sub": format!("made-up-{number}") }));
        assert!(authenticate(&callers, &token).await.is_err());
    }

    let mut asked = portal.0.asked_plugins.lock().expect("lock").clone();
    asked.dedup();
    assert!(asked.len() <= 17, "{}", asked.len());
    authenticate(&callers, &portal.plugin(json!({ "exp": NOW + 500 })))
        .await
        .expect("a plugin that is known already");
}

async fn oidc(mapping: Option<PrincipalMapping>) -> (FakeIssuer, Signer, Callers) {
    let signer = Signer::rsa("k1");
    let issuer = FakeIssuer::start(&[&signer]).await;
    let mut callers = OidcCallers::new(issuer.client(), client_id(), Arc::new(clock()));
    if let Some(mapping) = mapping {
        callers = callers.with_principal(mapping);
    }
    (issuer, signer, Callers::new().with(callers))
}

fn by(claim: &str) -> Option<PrincipalMapping> {
    Some(PrincipalMapping::new(claim, "user", "default").expect("a mapping"))
}

#[tokio::test]
async fn oidc_caller_carries_what_was_verified() {
    let (issuer, signer, callers) = oidc(by("preferred_username")).await;
    let claims = issuer.claims(json!({
        "preferred_username": "Alice", "email": "Alice@Example.com", "email_verified": true,
        "groups": ["dev", "Führungskräfte", "ops team", ""],
    }));

    let caller = authenticate(&callers, &text(&signer.token(&claims)))
        .await
        .expect("known")
        .principal;

    assert_eq!(name(&caller), "user:default/alice");
    let (verified_issuer, subject) = caller.verified().expect("verified");
    assert_eq!(
        (verified_issuer.as_str(), subject.as_str()),
        (issuer.url(), "alice-sub")
    );
    assert_eq!(
        caller.email().map(ToString::to_string).as_deref(),
        Some("alice@example.com")
    );
    assert_eq!(caller.groups().collect::<Vec<_>>(), ["dev", "ops team"]);
    assert_eq!(caller.expires_at().map(|end| end.as_second()), Some(NOW + 3600));
}

#[tokio::test]
async fn oidc_caller_without_mapping_is_a_hash_of_issuer_and_subject() {
    let (issuer, signer, callers) = oidc(None).await;

    let alice = authenticate(&callers, &text(&signer.token(&issuer.claims(json!({})))))
        .await
        .expect("known");
    let bob = authenticate(
        &callers,
        &text(&signer.token(&issuer.claims(json!({ "sub": "bob-sub" })))),
    )
    .await
    .expect("known");

    let (alice, bob) = (name(&alice.principal), name(&bob.principal));
    let hash = alice.strip_prefix("user:oidc/").expect("a hash");
    assert_eq!(hash.len(), 32);
    assert!(hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    assert_ne!(alice, bob);
}

#[tokio::test]
async fn oidc_token_for_another_audience_or_without_the_claim_is_refused() {
    let (issuer, signer, callers) = oidc(by("preferred_username")).await;

    for changes in [
        json!({ "aud": "another", "preferred_username": "alice" }),
        json!({ "exp": NOW - 3600, "preferred_username": "alice" }),
        json!({}),
        json!({ "preferred_username": ["alice"] }),
        json!({ "preferred_username": "../alice" }),
        json!({ "preferred_username": "" }),
        json!({ "preferred_username": "alice", "groups": { "a": 1 } }),
    ] {
        let token = text(&signer.token(&issuer.claims(changes)));
        let (kind, message) = refusal(&callers, &token).await;
        assert_eq!(kind, ErrorKind::CallerUnknown);
        assert!(message.starts_with("Illegal token: "), "{message}");
    }
    let another = issuer.claims(json!({ "iss": "https://other.example/" }));
    assert_eq!(
        refusal(&callers, &text(&signer.token(&another))).await.1,
        "Illegal token"
    );
}

#[tokio::test]
async fn local_part_of_an_email_never_names_an_oidc_caller() {
    let (issuer, signer, callers) = oidc(by("email")).await;
    let evil = issuer.claims(json!({ "email": "alice@evil.example", "email_verified": true }));

    let caller = authenticate(&callers, &text(&signer.token(&evil)))
        .await
        .expect("known");

    assert_eq!(name(&caller.principal), "user:default/alice@evil.example");
}

#[tokio::test]
async fn bombs_are_refused_before_anybody_parses_them() {
    let (issuer, signer, callers) = oidc(None).await;
    let good = text(&signer.token(&issuer.claims(json!({}))));
    let deep = support::encode(format!(r#"{{"alg":"RS256","x":{}}}"#, "[".repeat(8000)));

    for bomb in [
        "a".repeat(1024 * 1024),
        ".".repeat(100_000),
        format!("{good}{}", "A".repeat(16 * 1024)),
        format!("{deep}.e30.c2ln"),
        format!("{good}.{good}.x"),
    ] {
        let (kind, message) = refusal(&callers, &bomb).await;
        assert_eq!(
            (kind, message.as_str()),
            (ErrorKind::CallerUnknown, "Illegal token")
        );
    }
}

#[tokio::test]
async fn callers_are_tried_in_order() {
    let portal = Portal::start().await;
    let signer = Signer::rsa("k1");
    let issuer = FakeIssuer::start(&[&signer]).await;
    let callers =
        portal
            .callers(&clock())
            .with(OidcCallers::new(issuer.client(), client_id(), Arc::new(clock())));

    let user = authenticate(&callers, &portal.user(json!({})))
        .await
        .expect("known");
    let oidc = authenticate(&callers, &text(&signer.token(&issuer.claims(json!({})))))
        .await
        .expect("known");

    assert_eq!(name(&user.principal), "user:default/alice");
    assert!(name(&oidc.principal).starts_with("user:oidc/"));
}
