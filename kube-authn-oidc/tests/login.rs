//! From a browser's answer to a login that may be stored: exchange, verification, binding.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests read better so"
)]

mod support;

use std::sync::Arc;

use kube_authn_core::{
    BindingRule, ClientId, EntityRef, Error, ErrorKind, IdentityBinding, LoginConfig, NewLogin, Principal,
    Secret, Subject, Token, TokenForCluster, TokenVault, VerifiedEmail,
};
use kube_authn_oidc::{
    AuthorizationRequest, LoginVerifier, PostedTokens, RefreshFailure, TokenClient, VerifiedLogin, url::Url,
};
use serde_json::{Value, json};
use support::{Answer, FakeIssuer, NOW, Signer, client_id, clock};

fn user(name: &str) -> Principal {
    Principal::user(EntityRef::parse(name).expect("an entity reference"))
}

fn alice() -> Principal {
    user("user:default/alice")
}

fn subject(text: &str) -> Subject {
    Subject::new(text).expect("a subject")
}

fn email(text: &str) -> VerifiedEmail {
    VerifiedEmail::new(text).expect("an address")
}

struct Scene {
    issuer: FakeIssuer,
    key: Signer,
    verifier: LoginVerifier,
    vault: TokenVault,
}

impl Scene {
    async fn new(change: impl FnOnce(&mut LoginConfig)) -> Self {
        let key = Signer::p256("k");
        let issuer = FakeIssuer::start(&[&key]).await;
        let mut login = LoginConfig::new(issuer.issuer()).with_client_id(client_id());
        login.guests = vec![EntityRef::parse("user:development/guest").expect("an entity reference")];
        change(&mut login);
        let vault = support::vault();
        let verifier = LoginVerifier::new(login, issuer.client(), Arc::new(clock()), vault.clone());
        Self {
            issuer,
            key,
            verifier,
            vault,
        }
    }

    async fn with_rules(rules: Vec<BindingRule>) -> Self {
        Self::new(|login| login.binding = IdentityBinding::Rules(rules)).await
    }

    fn token(&self, changes: Value) -> Secret {
        self.key.token(&self.issuer.claims(changes))
    }

    async fn post(&self, who: &Principal, changes: Value) -> Result<VerifiedLogin, Error> {
        self.verifier
            .verify(who, PostedTokens::new(self.token(changes)))
            .await
    }

    async fn refused(&self, who: &Principal, changes: Value) -> &'static str {
        let error = self.post(who, changes).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        error.code()
    }
}

#[tokio::test]
async fn first_use_pins_one_subject_to_one_user() {
    let scene = Scene::new(|_| ()).await;

    let login = scene.post(&alice(), json!({})).await.expect("first use");

    assert_eq!(login.key.principal.as_str(), "user:default/alice");
    assert_eq!(
        (&login.key.issuer, &login.key.client_id),
        (&scene.issuer.issuer(), &client_id())
    );
    assert_eq!(login.login.subject, subject("alice-sub"));
    assert_eq!(login.login.expires_at.as_second(), NOW + 3600);
    assert!(scene.post(&alice(), json!({})).await.is_ok());
    assert_eq!(
        scene.refused(&alice(), json!({"sub": "bob-sub"})).await,
        "identity_mismatch"
    );
    assert_eq!(
        scene.refused(&user("user:default/bob"), json!({})).await,
        "identity_mismatch"
    );
}

#[tokio::test]
async fn subject_of_the_same_issuer_decides_in_both_directions() {
    let scene = Scene::new(|_| ()).await;
    let known = |sub: &str| alice().with_verified(scene.issuer.issuer(), subject(sub));

    assert!(scene.post(&known("alice-sub"), json!({})).await.is_ok());
    // Equal e-mail addresses do not outvote different subjects of one issuer.
    let same_email = json!({"email": "a@b.example", "email_verified": true});
    let somebody = known("somebody").with_email(email("a@b.example"));
    assert_eq!(scene.refused(&somebody, same_email).await, "identity_mismatch");
}

#[tokio::test]
async fn bobs_tokens_are_never_stored_under_alice() {
    let scene = Scene::new(|_| ()).await;
    let alice = alice().with_email(email("alice@example.com"));
    let verified = |address: &str| json!({"email": address, "email_verified": true});

    assert!(scene.post(&alice, verified("Alice@Example.com")).await.is_ok());
    for other in ["bob@example.com", "alice@evil.example"] {
        assert_eq!(scene.refused(&alice, verified(other)).await, "identity_mismatch");
    }
}

#[tokio::test]
async fn unverified_email_never_binds() {
    let scene = Scene::with_rules(vec![BindingRule::Email]).await;
    let alice = alice().with_email(email("alice@example.com"));

    for claims in [
        json!({"email": "alice@example.com"}),
        json!({"email": "alice@example.com", "email_verified": false}),
        json!({"email_verified": true}),
    ] {
        assert_eq!(scene.refused(&alice, claims).await, "identity_mismatch");
    }
    assert_eq!(
        scene
            .refused(
                &self::alice(),
                json!({"email": "alice@example.com", "email_verified": true})
            )
            .await,
        "identity_mismatch"
    );
}

#[tokio::test]
async fn claim_binds_the_whole_entity_reference_only() {
    let scene = Scene::with_rules(vec![BindingRule::Claim("entity".to_owned())]).await;

    assert!(
        scene
            .post(&alice(), json!({"entity": "User:Default/Alice"}))
            .await
            .is_ok()
    );
    for claim in [
        json!("alice"),
        json!("user:default/bob"),
        json!(["user:default/alice"]),
        json!(""),
        json!(7),
    ] {
        assert_eq!(
            scene.refused(&alice(), json!({ "entity": claim })).await,
            "identity_mismatch"
        );
    }
    assert_eq!(scene.refused(&alice(), json!({})).await, "identity_mismatch");
}

#[tokio::test]
async fn rules_apply_in_their_order() {
    let scene = Scene::with_rules(vec![
        BindingRule::Subject,
        BindingRule::Claim("entity".to_owned()),
        BindingRule::None,
    ])
    .await;
    let known = alice().with_verified(scene.issuer.issuer(), subject("somebody"));

    assert_eq!(
        scene
            .refused(&known, json!({"entity": "user:default/alice"}))
            .await,
        "identity_mismatch"
    );
    assert_eq!(
        scene
            .refused(&alice(), json!({"entity": "user:default/bob"}))
            .await,
        "identity_mismatch"
    );
    assert!(scene.post(&alice(), json!({})).await.is_ok());
}

#[tokio::test]
async fn token_names_the_login_that_it_is_for() {
    let scene = Scene::new(|_| ()).await;
    let any_client = Scene::new(|login| login.client_id = None).await;
    let named = |scene: &Scene, changes: Value| scene.verifier.is_named_by(&scene.token(changes));

    assert!(named(&scene, json!({})) && named(&scene, json!({"aud": ["other", "kubernetes"]})));
    assert!(named(&any_client, json!({"aud": "other"})));
    assert!(
        !named(&scene, json!({"aud": "other"}))
            && !named(&any_client, json!({"iss": "https://other.example"}))
    );
    assert!(!scene.verifier.is_named_by(&Secret::new("opaque")));
}

#[tokio::test]
async fn guests_services_and_nobody_never_log_in() {
    let scene = Scene::with_rules(vec![BindingRule::None]).await;

    assert_eq!(
        scene.refused(&user("user:Development/Guest"), json!({})).await,
        "guest"
    );
    assert_eq!(
        scene
            .refused(&Principal::service("plugin:catalog"), json!({}))
            .await,
        "forbidden"
    );
    assert_eq!(
        scene.refused(&Principal::anonymous(), json!({})).await,
        "forbidden"
    );
}

#[tokio::test]
async fn access_token_of_somebody_else_is_refused() {
    let scene = Scene::new(|_| ()).await;
    let posted = |access: Secret| PostedTokens::new(scene.token(json!({}))).with_access_token(access);

    let bobs = scene
        .verifier
        .verify(&alice(), posted(scene.token(json!({"sub": "bob-sub"}))))
        .await;

    assert_eq!(bobs.expect_err("bob's").code(), "identity_mismatch");
    assert!(
        scene
            .verifier
            .verify(&alice(), posted(scene.token(json!({"aud": "api"}))))
            .await
            .is_ok()
    );
    assert!(
        scene
            .verifier
            .verify(&alice(), posted(Secret::new("opaque")))
            .await
            .is_ok()
    );
    for bad in ["", "a\nb", "ü"] {
        let error = scene
            .verifier
            .verify(&alice(), posted(Secret::new(bad)))
            .await
            .expect_err("not sendable");
        assert_eq!(error.kind(), ErrorKind::TokenRejected);
    }
}

#[tokio::test]
async fn cluster_never_gets_an_access_token_that_nobody_can_verify() {
    let scene = Scene::new(|login| login.token_for_cluster = TokenForCluster::AccessToken).await;
    let verify = async |access: Option<Secret>| {
        let mut posted = PostedTokens::new(scene.token(json!({})));
        posted.access_token = access;
        scene.verifier.verify(&alice(), posted).await
    };
    let other_key = Signer::p256("k").token(&scene.issuer.claims(json!({})));

    let login = verify(Some(
        scene.token(json!({"aud": "api", "azp": "kubernetes", "exp": NOW + 60})),
    ))
    .await;
    assert_eq!(login.expect("verified").login.expires_at.as_second(), NOW + 60);
    for bad in [
        None,
        Some(Secret::new("opaque")),
        Some(Secret::new("a.b.c.d.e")),
        Some(other_key),
        Some(scene.token(json!({"iss": "https://other.example/"}))),
        Some(scene.token(json!({"exp": NOW - 100}))),
        Some(scene.token(json!({"azp": "other"}))),
        Some(scene.token(json!({"aud": "api"}))),
    ] {
        assert_eq!(
            verify(bad).await.expect_err("refused").kind(),
            ErrorKind::TokenRejected
        );
    }
    let bobs = verify(Some(scene.token(json!({"sub": "bob-sub"}))))
        .await
        .expect_err("bob's");
    assert_eq!(bobs.code(), "identity_mismatch");
}

#[tokio::test]
async fn access_token_that_names_another_client_anywhere_is_never_stored() {
    let scene = Scene::new(|login| login.token_for_cluster = TokenForCluster::AccessToken).await;
    let verify = async |claims| {
        let posted = PostedTokens::new(scene.token(json!({}))).with_access_token(scene.token(claims));
        scene.verifier.verify(&alice(), posted).await
    };

    for claims in [
        json!({"azp": "other", "client_id": "kubernetes"}),
        json!({"azp": "kubernetes", "client_id": "other"}),
    ] {
        let error = verify(claims).await.expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::TokenRejected);
    }
    let both = json!({"azp": "kubernetes", "client_id": "kubernetes"});
    assert!(verify(both).await.is_ok());
}

#[tokio::test]
async fn signature_is_believed_only_if_the_login_says_so() {
    let forged = |scene: &Scene| Signer::p256("k").token(&scene.issuer.claims(json!({})));
    let strict = Scene::new(|_| ()).await;
    let lax = Scene::new(|login| login.verify_signature = false).await;

    assert!(
        strict
            .verifier
            .verify(&alice(), PostedTokens::new(forged(&strict)))
            .await
            .is_err()
    );
    assert!(
        lax.verifier
            .verify(&alice(), PostedTokens::new(forged(&lax)))
            .await
            .is_ok()
    );
    // Every other check stays.
    let expired = Signer::p256("k").token(&lax.issuer.claims(json!({"exp": NOW - 100})));
    assert!(
        lax.verifier
            .verify(&alice(), PostedTokens::new(expired))
            .await
            .is_err()
    );
    let hmac = support::encode(r#"{"alg":"none"}"#);
    let unsigned = format!(
        "{hmac}.{}.",
        support::encode(lax.issuer.claims(json!({})).to_string())
    );
    assert!(
        lax.verifier
            .verify(&alice(), PostedTokens::new(Secret::new(unsigned)))
            .await
            .is_err()
    );
}

async fn begun(scene: &Scene) -> (TokenClient, AuthorizationRequest) {
    let client = scene.issuer.client();
    let metadata = client.metadata().await.expect("metadata");
    let redirect = Url::parse("http://127.0.0.1:8000/").expect("a URL");
    let request =
        AuthorizationRequest::new(&metadata, &client_id(), redirect, &["email"]).expect("a request");
    (TokenClient::new(client, client_id()), request)
}

fn parameter(request: &AuthorizationRequest, name: &str) -> String {
    let pair = request.url().query_pairs().find(|(key, _)| key == name);
    pair.expect("the parameter").1.into_owned()
}

#[tokio::test]
async fn code_becomes_a_login() {
    let scene = Scene::new(|_| ()).await;
    let (client, request) = begun(&scene).await;
    let id_token = scene.token(json!({"nonce": parameter(&request, "nonce")}));
    scene.issuer.tokens(Answer::Json(json!({
        "access_token": "opaque", "token_type": "Bearer", "expires_in": 60, "refresh_token": "refresh",
        "id_token": id_token.expose_str(),
    })));
    let iss: String = url::form_urlencoded::byte_serialize(scene.issuer.url().as_bytes()).collect();

    let code = request
        .answer(&format!(
            "code=c-1&state={}&iss={iss}",
            parameter(&request, "state")
        ))
        .expect("a code");
    let answer = client.exchange(&request, &code).await.expect("tokens");
    let posted = PostedTokens::of_login(answer, request.nonce()).expect("an ID token");
    let login = scene.verifier.verify(&alice(), posted).await.expect("a login");

    assert_eq!(login.login.tokens.refresh_token, Some(Secret::new("refresh")));
    assert_eq!(
        login
            .login
            .tokens
            .access_token
            .expect("an access token")
            .expires_at
            .as_second(),
        NOW + 60
    );
    let form = &scene.issuer.posts()[0];
    let field = |name: &str| {
        form.iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    assert_eq!(field("grant_type"), Some("authorization_code"));
    assert_eq!(field("code"), Some("c-1"));
    assert_eq!(field("client_id"), Some("kubernetes"));
    assert_eq!(field("redirect_uri"), Some("http://127.0.0.1:8000/"));
    let verifier =
        kube_authn_oidc::CodeVerifier::new(Secret::new(field("code_verifier").expect("a verifier")))
            .expect("legal");
    assert_eq!(verifier.challenge(), parameter(&request, "code_challenge"));
}

/// What the token endpoint gives to a refresh.
async fn refreshed(scene: &Scene, login: &VerifiedLogin, answer: Value) -> Result<NewLogin, Error> {
    let stored = match scene.vault.load(&login.key).await.expect("the vault") {
        Some(stored) => stored,
        None => {
            scene
                .vault
                .log_in(&login.key, login.login.clone())
                .await
                .expect("stored");
            scene
                .vault
                .load(&login.key)
                .await
                .expect("the vault")
                .expect("a login")
        }
    };
    let mut body = json!({"access_token": "renewed", "token_type": "Bearer"});
    support::merge(&mut body, answer);
    scene.issuer.tokens(Answer::Json(body));
    let client = TokenClient::new(scene.issuer.client(), client_id());
    let answer = client.refresh(&Secret::new("refresh")).await?;
    scene.verifier.verify_refreshed(&stored, answer).await
}

#[tokio::test]
async fn refresh_renews_a_login_only_with_its_own_tokens() {
    let scene = Scene::new(|login| login.client_id = None).await;
    let posted = PostedTokens::new(scene.token(json!({}))).with_refresh_token(Secret::new("refresh"));
    let login = scene.verifier.verify(&alice(), posted).await.expect("a login");
    let renew = async |changes: Value| {
        let id_token = scene.token(changes);
        refreshed(&scene, &login, json!({"id_token": id_token.expose_str()})).await
    };

    let renewed = renew(json!({"exp": NOW + 7200, "iat": NOW}))
        .await
        .expect("renewed");
    assert_eq!(renewed.expires_at.as_second(), NOW + 7200);
    assert_eq!(renewed.tokens.refresh_token, Some(Secret::new("refresh")));
    for somebody_else in [json!({"sub": "bob-sub"}), json!({"aud": "other"})] {
        assert_eq!(
            renew(somebody_else).await.expect_err("refused").code(),
            "identity_mismatch"
        );
    }
    let error = refreshed(&scene, &login, json!({}))
        .await
        .expect_err("no ID token");
    assert_eq!(error.kind(), ErrorKind::LoginRequired);
    let rotated = json!({"id_token": scene.token(json!({})).expose_str(), "refresh_token": "rotated"});
    let renewed = refreshed(&scene, &login, rotated).await.expect("renewed");
    assert_eq!(renewed.tokens.refresh_token, Some(Secret::new("rotated")));
}

#[tokio::test]
async fn refresh_without_id_token_renews_a_login_whose_clusters_get_the_access_token() {
    let scene = Scene::new(|login| login.token_for_cluster = TokenForCluster::AccessToken).await;
    let posted = PostedTokens::new(scene.token(json!({}))).with_access_token(scene.token(json!({})));
    let login = scene.verifier.verify(&alice(), posted).await.expect("a login");
    let renew = async |changes: Value| {
        let access_token = scene.token(changes);
        refreshed(&scene, &login, json!({"access_token": access_token.expose_str()})).await
    };

    let renewed = renew(json!({"exp": NOW + 7200})).await.expect("renewed");

    assert_eq!(renewed.expires_at.as_second(), NOW + 7200);
    assert_eq!(
        renew(json!({"sub": "bob-sub"})).await.expect_err("bob's").code(),
        "identity_mismatch"
    );
    assert!(renew(json!({"exp": NOW - 100})).await.is_err());
}

#[tokio::test]
async fn id_token_of_another_login_is_refused() {
    let scene = Scene::new(|_| ()).await;
    let (client, request) = begun(&scene).await;
    let (_, other) = begun(&scene).await;
    let id_token = scene.token(json!({"nonce": parameter(&other, "nonce")}));
    scene.issuer.tokens(Answer::Json(json!({
        "access_token": "opaque", "token_type": "Bearer", "id_token": id_token.expose_str(),
    })));
    let iss: String = url::form_urlencoded::byte_serialize(scene.issuer.url().as_bytes()).collect();
    let code = request
        .answer(&format!(
            "code=c&state={}&iss={iss}",
            parameter(&request, "state")
        ))
        .expect("a code");

    let answer = client.exchange(&request, &code).await.expect("tokens");
    let posted = PostedTokens::of_login(answer, request.nonce()).expect("an ID token");

    assert_eq!(
        scene
            .verifier
            .verify(&alice(), posted)
            .await
            .expect_err("another nonce")
            .kind(),
        ErrorKind::TokenRejected
    );
}

#[tokio::test]
async fn only_invalid_grant_ends_a_login() {
    let scene = Scene::new(|_| ()).await;
    let (client, _) = begun(&scene).await;
    let outcome = async |answer: Answer| {
        scene.issuer.tokens(answer);
        let failure = client
            .refresh(&Secret::new("refresh"))
            .await
            .expect_err("refused");
        assert!(!format!("{failure:?} {}", failure.error()).contains("canary"));
        let became = match failure {
            RefreshFailure::Withdrawn(_) => "gone",
            RefreshFailure::Unspent(_) => "as it was",
            _ => "perhaps spent",
        };
        (became, failure.error().kind())
    };
    let wire = |error: &str| json!({"error": error, "error_description": "canary"}).to_string();

    assert_eq!(
        outcome(Answer::Status(400, wire("invalid_grant"))).await,
        ("gone", ErrorKind::LoginRequired)
    );
    for (answer, kind) in [
        (
            Answer::Status(401, wire("invalid_client")),
            ErrorKind::ConfigInvalid,
        ),
        (Answer::Status(400, wire("canary")), ErrorKind::Unavailable),
        (Answer::Status(500, wire("invalid_grant")), ErrorKind::Unavailable),
        (Answer::Status(503, String::new()), ErrorKind::Unavailable),
        (Answer::Status(429, String::new()), ErrorKind::RateLimited),
        (
            Answer::Redirect("http://127.0.0.1:1/".to_owned()),
            ErrorKind::Unavailable,
        ),
    ] {
        assert_eq!(outcome(answer).await, ("as it was", kind));
    }
    for (answer, kind) in [
        (Answer::Status(200, "canary".to_owned()), ErrorKind::Unexpected),
        (Answer::Bytes(2 << 20), ErrorKind::Unexpected),
    ] {
        assert_eq!(outcome(answer).await, ("perhaps spent", kind));
    }
    assert_eq!(scene.issuer.posts().len(), 9);
}

#[tokio::test]
async fn call_that_reached_nobody_spends_nothing() {
    let scene = Scene::new(|_| ()).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = closed.local_addr().expect("an address");
    drop(closed);
    let mut document = support::document(scene.issuer.url());
    support::merge(
        &mut document,
        json!({"token_endpoint": format!("http://{address}/token")}),
    );
    scene.issuer.discovery(Answer::Json(document));
    let client = TokenClient::new(scene.issuer.client(), client_id());

    let failure = client
        .refresh(&Secret::new("refresh"))
        .await
        .expect_err("nobody there");

    assert!(matches!(failure, RefreshFailure::Unspent(_)), "{failure:?}");
    assert_eq!(failure.error().kind(), ErrorKind::Unavailable);
}

/// A token exchange of alice's token for the audience `narrow`, and the form that was posted.
async fn for_narrow(scene: &Scene, answer: Answer) -> (Result<Token, Error>, Vec<(String, String)>) {
    let posted = PostedTokens::new(scene.token(json!({})));
    let verified = scene.verifier.verify(&alice(), posted).await.expect("a login");
    scene
        .vault
        .log_in(&verified.key, verified.login)
        .await
        .expect("stored");
    let login = scene.vault.load(&verified.key).await.expect("the vault");
    let narrow = ClientId::new("narrow").expect("an audience");
    scene.issuer.tokens(answer);

    let token = Secret::new("subject-token");
    let made = scene
        .verifier
        .token_for_audience(&login.expect("a login"), &token, &narrow)
        .await;
    (made, scene.issuer.posts().last().expect("a form").clone())
}

fn exchanged(scene: &Scene, claims: Value) -> Answer {
    let mut all = json!({"aud": "narrow", "azp": "kubernetes", "exp": NOW + 300});
    support::merge(&mut all, claims);
    Answer::Json(json!({
        "access_token": scene.token(all).expose_str(), "token_type": "N_A",
        "issued_token_type": "urn:ietf:params:oauth:token-type:id_token",
    }))
}

#[tokio::test]
async fn token_of_a_login_becomes_one_of_another_audience() {
    let scene = Scene::new(|_| ()).await;

    let (token, form) = for_narrow(&scene, exchanged(&scene, json!({}))).await;

    assert_eq!(token.expect("a token").expires_at.as_second(), NOW + 300);
    let form: Vec<_> = form
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let id_token = "urn:ietf:params:oauth:token-type:id_token";
    assert_eq!(
        form,
        [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", "subject-token"),
            ("subject_token_type", id_token),
            ("requested_token_type", id_token),
            ("audience", "narrow"),
            ("client_id", "kubernetes"),
        ]
    );
}

#[tokio::test]
async fn exchanged_token_of_another_subject_or_audience_is_never_used() {
    let scene = Scene::new(|_| ()).await;
    for (claims, code) in [
        (json!({"sub": "bob-sub"}), "identity_mismatch"),
        (json!({"aud": "kubernetes"}), "invalid_token"),
        (json!({"iss": "https://other.example"}), "invalid_token"),
        (json!({"exp": NOW - 100}), "invalid_token"),
    ] {
        let (refused, _) = for_narrow(&scene, exchanged(&scene, claims.clone())).await;

        assert_eq!(refused.expect_err("refused").code(), code, "{claims}");
    }
    let opaque = json!({
        "access_token": "canary", "token_type": "Bearer",
        "issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token",
    });
    let (refused, _) = for_narrow(&scene, Answer::Json(opaque)).await;
    let error = refused.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unexpected);
    assert!(!format!("{error:?}").contains("canary"));
}

#[tokio::test]
async fn refused_exchange_says_what_to_do() {
    let scene = Scene::new(|_| ()).await;
    let refusal = json!({"error": "invalid_target"}).to_string();

    let (refused, _) = for_narrow(&scene, Answer::Status(400, refusal)).await;

    let error = refused.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert!(
        error.to_string().ends_with(
            "makes no token for audience narrow (invalid_target): allow client kubernetes to exchange its tokens for it"
        ),
        "{error}"
    );
}

#[tokio::test]
async fn refresh_token_is_never_sent_twice() {
    let scene = Scene::new(|_| ()).await;
    let (client, _) = begun(&scene).await;

    for fault in [
        Answer::Status(503, String::new()),
        Answer::Status(502, String::new()),
        Answer::Status(504, String::new()),
    ] {
        scene.issuer.tokens(fault);
        assert!(client.refresh(&Secret::new("refresh")).await.is_err());
    }

    assert_eq!(scene.issuer.posts().len(), 3);
}

#[tokio::test]
async fn revocation_says_whether_it_happened() {
    let scene = Scene::new(|_| ()).await;
    let (client, _) = begun(&scene).await;
    let token = Secret::new("refresh");

    scene.issuer.tokens(Answer::Status(200, String::new()));
    assert!(client.revoke(&token).await.expect("revoked"));
    scene.issuer.tokens(Answer::Status(
        400,
        r#"{"error":"unsupported_token_type"}"#.to_owned(),
    ));
    assert!(!client.revoke(&token).await.expect("not offered"));
    scene.issuer.tokens(Answer::Status(503, String::new()));
    assert_eq!(
        client.revoke(&token).await.expect_err("down").kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        scene.issuer.posts()[0][0],
        ("token".to_owned(), "refresh".to_owned())
    );
}

#[tokio::test]
async fn stored_tokens_that_the_issuer_did_not_sign_are_never_taken_over() {
    let scene = Scene::new(|_| {}).await;
    let user = EntityRef::parse("user:default/alice").expect("an entity reference");
    let forged = Signer::p256("k").token(&scene.issuer.claims(json!({})));
    let stored = |token| PostedTokens::new(token).with_refresh_token(Secret::new("r"));

    let refused = scene
        .verifier
        .take_over(&user, stored(forged.clone()), true)
        .await;
    let genuine = scene
        .verifier
        .take_over(&user, stored(scene.token(json!({ "exp": NOW - 3_600 }))), true)
        .await;
    let believed = scene.verifier.take_over(&user, stored(forged), false).await;

    assert_eq!(refused.expect_err("forged").kind(), ErrorKind::TokenRejected);
    assert!(genuine.is_ok() && believed.is_ok());
    scene.issuer.keys(Answer::Status(503, String::new()));
    let another = Signer::p256("unknown").token(&scene.issuer.claims(json!({})));
    assert!(
        scene
            .verifier
            .take_over(&user, stored(another), true)
            .await
            .is_err()
    );
}
