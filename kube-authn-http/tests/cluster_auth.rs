//! The token API, request by request.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests"
)]

mod support;

use axum::body::Body;
use http::header;
use kube_authn_core::ErrorKind;
use kube_authn_http::TokenExposure;
use serde_json::{Value, json};
use support::{Answer, Answered, NARROW, NOW, Service, Signer, VERIFIED, as_caller, clock, refusal};

const STATUS: &str = "/api/cluster-auth/status";
const TOKEN: &str = "/api/cluster-auth/token";
const TOKENS: &str = "/api/cluster-auth/tokens";
const MISMATCH: &str = "identity_mismatch";

#[tokio::test]
async fn posted_tokens_are_stored_and_status_says_so() {
    let service = Service::start().await;

    let stored = service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    let status = service.get("alice", STATUS).await;

    assert_eq!(
        (stored.status, stored.json()),
        (
            200,
            json!({
                "status": "ok",
                "message": "Tokens received and stored successfully",
                "user": "user:default/alice",
                "expiresAt": "2023-11-14T23:13:20.000Z",
                "cluster": "openportal",
            })
        )
    );
    assert_eq!(
        (status.status, status.json()),
        (
            200,
            json!({
                "authenticated": true,
                "expiresAt": "2023-11-14T23:13:20.000Z",
                "user": "user:default/alice",
                "clusters": [{
                    "name": "openportal",
                    "issuer": service.issuer.url(),
                    "authenticated": true,
                    "expiresAt": "2023-11-14T23:13:20.000Z",
                    "refreshable": true,
                    "refreshing": false,
                    "subject": "alice-sub",
                }],
            })
        )
    );
}

#[tokio::test]
async fn name_that_passed_on_never_shows_or_hands_out_the_login_of_who_had_it() {
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &["openportal"])]).await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    let ask = async |path: &str, subject: &str| -> Answered {
        let request = as_caller("alice", "GET", path)
            .header(VERIFIED, format!("{} {subject}", service.issuer.url()))
            .body(Body::empty());
        service.send(request.expect("a request")).await
    };

    let own = (ask(STATUS, "alice-sub").await, ask(TOKEN, "alice-sub").await);
    let successors = (ask(STATUS, "mallory").await, ask(TOKEN, "mallory").await);

    assert_eq!(own.0.json()["authenticated"], json!(true));
    assert_eq!(own.1.status, 200);
    let status = successors.0.json();
    assert_eq!(
        (&status["authenticated"], &status["clusters"][0]["refreshable"]),
        (&json!(false), &json!(false))
    );
    assert!(!successors.0.text.contains("alice-sub"), "{}", successors.0.text);
    assert_eq!(
        (successors.1.status, successors.1.json()["code"].as_str()),
        (401, Some("no_tokens"))
    );
}

#[tokio::test]
async fn status_without_tokens_has_no_expiry() {
    let service = Service::start().await;

    let status = service.get("alice", STATUS).await.json();

    assert_eq!(status["authenticated"], json!(false));
    assert_eq!(status.get("expiresAt"), None);
    assert_eq!(
        status["clusters"],
        json!([{ "name": "openportal", "issuer": service.issuer.url(), "authenticated": false, "refreshable": false, "refreshing": false }])
    );
}

#[tokio::test]
async fn expired_login_is_not_authenticated_and_shows_when_it_ended() {
    let clock = clock();
    let service = Service::with(
        TokenExposure::User,
        clock.clone(),
        &[("kubernetes", &["openportal"])],
    )
    .await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;

    clock.advance_seconds(3570);
    let status = service.get("alice", STATUS).await.json();
    let token = service.get("alice", TOKEN).await;

    assert_eq!(status["authenticated"], json!(false));
    assert_eq!(status["expiresAt"], json!("2023-11-14T23:13:20.000Z"));
    assert_eq!(
        token.refusal(),
        refusal(
            401,
            "Token expired",
            "Cluster token has expired. Please re-authenticate.",
            "expired"
        )
    );
}

#[tokio::test]
async fn caller_whom_nobody_knows_gets_the_seeds_texts() {
    let service = Service::start().await;

    let status = service.get("", STATUS).await;
    let token = service.get("", TOKEN).await;
    let posted = service.post("", &service.tokens("alice-sub", json!({}))).await;
    let deleted = service.delete("", TOKENS).await;

    assert_eq!(
        status.refusal(),
        refusal(
            401,
            "Unauthorized",
            "User not authenticated or invalid credentials",
            "not_authenticated"
        )
    );
    for refused in [token, posted, deleted] {
        assert_eq!(
            refused.refusal(),
            refusal(
                401,
                "Not authenticated",
                "Missing credentials",
                "not_authenticated"
            )
        );
        assert_eq!(refused.headers[header::WWW_AUTHENTICATE], "Bearer");
    }
}

#[tokio::test]
async fn service_principals_are_refused_everywhere() {
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &["openportal"])]).await;
    let posted = service
        .post("plugin", &service.tokens("alice-sub", json!({})))
        .await;

    for answer in [
        posted,
        service.get("plugin", STATUS).await,
        service.get("plugin", TOKEN).await,
        service.delete("plugin", TOKENS).await,
    ] {
        assert_eq!(
            answer.refusal(),
            refusal(
                403,
                "Forbidden",
                "This endpoint does not allow 'service' credentials",
                "forbidden"
            )
        );
    }
}

#[tokio::test]
async fn limited_user_token_reads_the_status_and_nothing_else() {
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &["openportal"])]).await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    let posted = service
        .post("limited:alice", &service.tokens("alice-sub", json!({})))
        .await;

    for answer in [
        posted,
        service.get("limited:alice", TOKEN).await,
        service.delete("limited:alice", TOKENS).await,
    ] {
        assert_eq!(
            answer.refusal(),
            refusal(
                401,
                "Not authenticated",
                "Illegal limited user token",
                "not_authenticated"
            )
        );
    }
    assert_eq!(
        service.get("limited:alice", STATUS).await.json()["authenticated"],
        json!(true)
    );
}

#[tokio::test]
async fn guests_cannot_log_in_under_either_name() {
    let service = Service::start().await;

    for guest in ["default/guest", "development/guest", "Development/Guest"] {
        let refused = service.post(guest, &service.tokens("guest-sub", json!({}))).await;

        let (status, error, message, code) = refused.refusal();
        assert_eq!(
            (status, error.as_str(), code.as_str()),
            (403, "Forbidden", "guest")
        );
        assert!(message.starts_with("Guest users cannot "), "{message}");
    }
}

#[tokio::test]
async fn body_that_is_none_is_refused_with_its_own_status() {
    let service = Service::start().await;
    let post = |content_type: &'static str, body: String| {
        let request = as_caller("alice", "POST", TOKENS)
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body))
            .expect("a request");
        service.send(request)
    };
    let large = format!(r#"{{"id_token":"{}"}}"#, "a".repeat(64 * 1024));
    let deep = format!(r#"{{"id_token":{}}}"#, "[".repeat(60_000));

    for (content_type, body, status, message) in [
        (
            "text/plain",
            "{}".to_owned(),
            415,
            "the body must be JSON: send Content-Type: application/json",
        ),
        (
            "application/x-www-form-urlencoded",
            "id_token=a".to_owned(),
            415,
            "the body must be JSON: send Content-Type: application/json",
        ),
        ("application/json", large, 413, "the body is larger than 64 KiB"),
        (
            "application/json",
            "{".to_owned(),
            400,
            "the body is no JSON object",
        ),
        (
            "application/json",
            "[]".to_owned(),
            400,
            "the body is no JSON object",
        ),
        ("application/json", deep, 400, "the body is no JSON object"),
        (
            "application/json",
            "{}".to_owned(),
            400,
            "access_token and id_token are required",
        ),
        (
            "Application/JSON; charset=utf-8",
            r#"{"id_token":7}"#.to_owned(),
            400,
            "id_token must be a string",
        ),
    ] {
        let refused = post(content_type, body).await;
        assert_eq!(
            refused.refusal(),
            refusal(status, "Invalid token payload", message, "bad_request")
        );
    }
}

#[tokio::test]
async fn body_without_length_is_cut_off_at_the_limit() {
    let service = Service::start().await;
    let chunks = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1024]));
    let request = as_caller("alice", "POST", TOKENS)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from_stream(chunks))
        .expect("a request");

    assert_eq!(service.send(request).await.status, 413);
}

#[tokio::test]
async fn token_that_does_not_verify_is_refused_with_the_seeds_texts() {
    let service = Service::start().await;
    let stranger = Signer::p256("k1");
    let mut forged = service.tokens("alice-sub", json!({}));
    forged["id_token"] = stranger
        .token(&service.issuer.claims(json!({})))
        .expose_str()
        .expect("text")
        .into();
    let with_id_token = |id_token: String| json!({ "access_token": "a", "id_token": id_token });

    for (body, message) in [
        (with_id_token("opaque".to_owned()), "Invalid JWT format"),
        (with_id_token(".".repeat(50_000)), "Invalid JWT format"),
        (with_id_token("a".repeat(50_000)), "Invalid JWT format"),
        (
            service.tokens("alice-sub", json!({ "sub": null })),
            "Missing sub claim",
        ),
        (
            service.tokens("alice-sub", json!({ "exp": NOW - 61 })),
            "Token expired",
        ),
        (
            service.tokens("alice-sub", json!({ "iss": "https://evil.example/" })),
            "Invalid issuer: expected ",
        ),
        (
            service.tokens("alice-sub", json!({ "aud": "another" })),
            "the token is not issued for client kubernetes",
        ),
        (forged, "Signature verification failed: "),
    ] {
        let (status, error, text, code) = service.post("alice", &body).await.refusal();
        assert_eq!(
            (status, error.as_str(), code.as_str()),
            (401, "Invalid token", "invalid_token"),
            "{message}"
        );
        assert!(text.starts_with(message), "{text}");
    }
    assert_eq!(
        service.get("alice", STATUS).await.json()["authenticated"],
        json!(false)
    );
}

#[tokio::test]
async fn tokens_of_bob_are_never_stored_under_alice() {
    let service = Service::start().await;
    let (alices, bobs) = (
        service.tokens("alice-sub", json!({})),
        service.tokens("bob-sub", json!({})),
    );
    assert_eq!(service.post("alice", &alices).await.status, 200);
    assert_eq!(service.post("bob", &bobs).await.status, 200);

    let swapped = [
        service.post("alice", &bobs).await,
        service.post("bob", &alices).await,
    ];

    for refused in swapped {
        let (status, error, _, code) = refused.refusal();
        assert_eq!(
            (status, error.as_str(), code.as_str()),
            (403, "Forbidden", MISMATCH)
        );
    }
    for (user, subject) in [("alice", "alice-sub"), ("bob", "bob-sub")] {
        let status = service.get(user, STATUS).await.json();
        assert_eq!(status["clusters"][0]["subject"], json!(subject));
    }
}

#[tokio::test]
async fn id_token_of_alice_with_an_access_token_of_bob_is_refused() {
    let service = Service::start().await;
    let mut mixed = service.tokens("alice-sub", json!({}));
    mixed["access_token"] = service.tokens("bob-sub", json!({}))["id_token"].clone();

    let (status, _, _, code) = service.post("alice", &mixed).await.refusal();

    assert_eq!((status, code.as_str()), (403, MISMATCH));
}

#[tokio::test]
async fn local_part_of_an_email_never_makes_the_user() {
    let service = Service::start().await;
    let evil = json!({ "email": "alice@evil.example", "email_verified": true });

    let stored = service
        .post("mallory", &service.tokens("mallory-sub", evil))
        .await
        .json();

    assert_eq!(stored["user"], json!("user:default/mallory"));
    assert_eq!(
        service.get("alice", STATUS).await.json()["authenticated"],
        json!(false)
    );
}

#[tokio::test]
async fn user_named_by_a_parameter_or_field_is_ignored() {
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &["openportal"])]).await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    let asked = "?user=user:default/alice&userEntityRef=user:default/alice";

    let status = service.get("bob", &format!("{STATUS}{asked}")).await.json();
    let token = service.get("bob", &format!("{TOKEN}{asked}")).await;
    let deleted = service.delete("bob", &format!("{TOKENS}{asked}")).await;
    let mut body = service.tokens("bob-sub", json!({}));
    body["user"] = json!("user:default/alice");
    let stored = service.post("bob", &body).await.json();

    assert_eq!(
        (&status["user"], &status["authenticated"]),
        (&json!("user:default/bob"), &json!(false))
    );
    assert_eq!((token.status, deleted.status), (401, 404));
    assert_eq!(stored["user"], json!("user:default/bob"));
    assert_eq!(
        service.get("alice", STATUS).await.json()["authenticated"],
        json!(true)
    );
}

#[tokio::test]
async fn whether_another_user_has_tokens_changes_no_answer() {
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &["openportal"])]).await;
    let ask = || async {
        [
            service.get("bob", STATUS).await,
            service
                .get(
                    "bob",
                    &format!("{STATUS}?cluster=openportal&user=user:default/alice"),
                )
                .await,
            service.get("bob", TOKEN).await,
            service.delete("bob", TOKENS).await,
            service.delete("bob", &format!("{TOKENS}?idempotent=true")).await,
            service
                .get("bob", "/api/cluster-auth/tokens/user:default/alice")
                .await,
            service.get("bob", "/api/cluster-auth/user-emails").await,
            service.get("bob", "/api/cluster-auth/stats").await,
        ]
        .map(|answer| (answer.status, answer.text, format!("{:?}", answer.headers)))
    };

    let before = ask().await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    let after = ask().await;

    assert_eq!(before, after);
}

#[tokio::test]
async fn older_login_never_replaces_a_newer_one() {
    let service = Service::start().await;
    service
        .post("alice", &service.tokens("alice-sub", json!({ "iat": NOW - 5 })))
        .await;

    let (status, error, _, code) = service
        .post("alice", &service.tokens("alice-sub", json!({ "iat": NOW - 100 })))
        .await
        .refusal();
    let newer = service
        .post("alice", &service.tokens("alice-sub", json!({ "iat": NOW - 1 })))
        .await;

    assert_eq!(
        (status, error.as_str(), code.as_str()),
        (409, "Conflict", "conflict")
    );
    assert_eq!(newer.status, 200);
}

#[tokio::test]
async fn login_is_found_by_the_token_and_by_the_named_cluster() {
    let logins: &[(&str, &[&str])] = &[("kubernetes", &["prod", "stage"]), ("legacy", &["old"])];
    let service = Service::with(TokenExposure::User, clock(), logins).await;
    let with_cluster = |aud: Value, cluster: Option<&str>| {
        let mut body = service.tokens("alice-sub", json!({ "aud": aud, "azp": "legacy" }));
        body["cluster"] = cluster.into();
        body
    };

    let legacy = service
        .post("alice", &with_cluster(json!("legacy"), None))
        .await
        .json();
    let wrong = service
        .post("alice", &with_cluster(json!("legacy"), Some("prod")))
        .await;
    let unknown = service
        .post("alice", &with_cluster(json!("legacy"), Some("nowhere")))
        .await;
    let neither = service
        .post("alice", &service.tokens("alice-sub", json!({ "aud": "x" })))
        .await;
    let both = service
        .post("alice", &with_cluster(json!(["legacy", "kubernetes"]), None))
        .await;
    let named = service
        .post(
            "alice",
            &with_cluster(json!(["legacy", "kubernetes"]), Some("old")),
        )
        .await;

    assert_eq!(legacy["cluster"], json!("old"));
    for refused in [wrong, unknown, neither] {
        let (status, _, _, code) = refused.refusal();
        assert_eq!((status, code.as_str()), (401, "invalid_token"));
    }
    let (status, _, message, _) = both.refusal();
    assert_eq!(status, 400);
    assert!(
        message.contains("prod, stage") && message.contains("old"),
        "{message}"
    );
    assert_eq!(named.status, 200);
}

#[tokio::test]
async fn status_is_true_only_if_every_asked_cluster_has_a_login() {
    let logins: &[(&str, &[&str])] = &[("kubernetes", &["prod", "stage"]), ("legacy", &["old"])];
    let service = Service::with(TokenExposure::User, clock(), logins).await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;

    let all = service.get("alice", STATUS).await.json();
    let prod = service
        .get("alice", &format!("{STATUS}?cluster=prod"))
        .await
        .json();
    let old = service
        .get("alice", &format!("{STATUS}?cluster=old"))
        .await
        .json();
    let unknown = service.get("alice", &format!("{STATUS}?cluster=x")).await;

    assert_eq!(
        (
            &all["authenticated"],
            &all["clusters"].as_array().expect("a list").len()
        ),
        (&json!(false), &3)
    );
    assert_eq!(
        (&prod["authenticated"], &prod["clusters"][0]["name"]),
        (&json!(true), &json!("prod"))
    );
    assert_eq!(old["authenticated"], json!(false));
    assert_eq!(
        unknown.refusal(),
        refusal(404, "Not found", "Cluster 'x' not found", "not_found")
    );
}

#[tokio::test]
async fn token_is_handed_out_only_where_the_configuration_says_so() {
    for (exposure, user, service_of_user) in [
        (TokenExposure::Never, 403, 403),
        (TokenExposure::Service, 403, 200),
        (TokenExposure::User, 200, 200),
    ] {
        let service = Service::with(exposure, clock(), &[("kubernetes", &["openportal"])]).await;
        let tokens = service.tokens("alice-sub", json!({}));
        service.post("alice", &tokens).await;

        for (caller, status) in [("alice", user), ("plugin-for:alice", service_of_user)] {
            let answer = service.get(caller, TOKEN).await;
            assert_eq!(answer.status, status, "{exposure:?} {caller}");
            match status {
                200 => assert_eq!(
                    answer.json(),
                    json!({
                        "access_token": tokens["id_token"],
                        "token_type": "Bearer",
                        "expires_at": "2023-11-14T23:13:20.000Z",
                        "token_use": "id",
                    })
                ),
                _ => assert_eq!(answer.refusal().3, "token_not_exposed"),
            }
        }
    }
}

#[tokio::test]
async fn logins_own_token_is_never_handed_out_for_a_cluster_that_gets_another() {
    let logins: &[(&str, &[&str])] = &[("kubernetes", &["openportal", NARROW])];
    let service = Service::with(TokenExposure::User, clock(), logins).await;
    let tokens = service.tokens("alice-sub", json!({}));
    service.post("alice", &tokens).await;
    let narrow = format!("{TOKEN}?cluster={NARROW}");

    service.issuer.tokens(Answer::Status(
        400,
        json!({ "error": "invalid_target" }).to_string(),
    ));
    let refused = service.get("alice", &narrow).await;
    let unnamed = service.get("alice", TOKEN).await;
    let own = service.get("alice", &format!("{TOKEN}?cluster=openportal")).await;

    for answer in [&refused, &unnamed] {
        assert!(!answer.text.contains(tokens["id_token"].as_str().expect("text")));
    }
    assert_eq!(refused.refusal().3, "config_invalid");
    assert_eq!(
        unnamed.refusal(),
        refusal(
            400,
            "Invalid token payload",
            "the clusters of the login get different tokens: name one of them with ?cluster=",
            "bad_request"
        )
    );
    assert_eq!(own.json()["access_token"], tokens["id_token"]);
}

#[tokio::test]
async fn token_made_for_a_cluster_s_audience_is_handed_out_as_the_cluster_gets_it() {
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &[NARROW])]).await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    let made = service.tokens("alice-sub", json!({ "aud": NARROW, "exp": NOW + 600 }))["id_token"].clone();
    service.issuer.tokens(Answer::Json(json!({
        "access_token": made,
        "issued_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "token_type": "N_A",
    })));
    for path in [TOKEN, &format!("{TOKEN}?cluster={NARROW}")] {
        assert_eq!(
            service.get("alice", path).await.json(),
            json!({
                "access_token": made,
                "token_type": "Bearer",
                "expires_at": "2023-11-14T22:23:20.000Z",
                "token_use": "id",
            })
        );
    }
    assert_eq!(service.issuer.posts().len(), 1, "cached");
}

#[tokio::test]
async fn token_that_is_not_there_is_answered_as_in_the_seed() {
    let service = Service::with(TokenExposure::User, clock(), &[("kubernetes", &["openportal"])]).await;

    let answer = service.get("alice", TOKEN).await;

    assert_eq!(
        answer.refusal(),
        refusal(
            401,
            "Not authenticated",
            "No cluster tokens found. Please authenticate first.",
            "no_tokens"
        )
    );
}

#[tokio::test]
async fn logout_revokes_and_the_next_request_gets_the_seeds_text() {
    let service = Service::start().await;
    service.issuer.tokens(Answer::Status(200, String::new()));
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    let request = service
        .access
        .request(&support::user("alice"), "openportal")
        .expect("a cluster");
    service
        .access
        .credential(&request)
        .await
        .expect("a credential, now cached");

    let deleted = service.delete("alice", TOKENS).await;
    let refused = service.access.credential(&request).await.expect_err("logged out");

    assert_eq!(
        (deleted.status, deleted.json()),
        (
            200,
            json!({
                "status": "ok",
                "message": "Tokens deleted successfully",
                "revoked": true,
                "clusters": ["openportal"],
            })
        )
    );
    assert_eq!(
        (refused.kind(), refused.to_string().as_str()),
        (
            ErrorKind::LoginRequired,
            "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster."
        )
    );
    let posts = service.issuer.posts();
    assert!(posts[0].contains(&("token".to_owned(), "canary-refresh-alice-sub".to_owned())));
}

#[tokio::test]
async fn logout_succeeds_whatever_the_issuer_says() {
    let service = Service::start().await;
    service.issuer.tokens(Answer::Status(500, "boom".to_owned()));
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;

    let deleted = service.delete("alice", TOKENS).await;

    assert_eq!((deleted.status, &deleted.json()["revoked"]), (200, &json!(false)));
    assert_eq!(
        service.get("alice", STATUS).await.json()["authenticated"],
        json!(false)
    );
}

#[tokio::test]
async fn second_logout_is_404_unless_the_caller_calls_it_idempotent() {
    let service = Service::start().await;

    let again = service.delete("alice", TOKENS).await;
    let idempotent = service
        .delete("alice", &format!("{TOKENS}?idempotent=true"))
        .await;

    assert_eq!(
        again.refusal(),
        refusal(404, "Not found", "No tokens found for user", "not_found")
    );
    assert_eq!(
        (idempotent.status, &idempotent.json()["clusters"]),
        (200, &json!([]))
    );
}

#[tokio::test]
async fn logout_of_one_cluster_ends_its_login_and_no_other() {
    let logins: &[(&str, &[&str])] = &[("kubernetes", &["prod", "stage"]), ("legacy", &["old"])];
    let service = Service::with(TokenExposure::User, clock(), logins).await;
    service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;
    service
        .post("alice", &service.tokens("alice-sub", json!({ "aud": "legacy" })))
        .await;
    service.post("bob", &service.tokens("bob-sub", json!({}))).await;

    let deleted = service
        .delete("alice", &format!("{TOKENS}?cluster=stage"))
        .await
        .json();

    assert_eq!(deleted["clusters"], json!(["prod", "stage"]));
    let state = |answer: Value| {
        answer["clusters"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|cluster| cluster["authenticated"] == json!(true))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        state(service.get("alice", STATUS).await.json()),
        [false, false, true]
    );
    assert_eq!(
        state(service.get("bob", STATUS).await.json()),
        [true, true, false]
    );
    assert_eq!(
        service
            .delete("alice", &format!("{TOKENS}?cluster=x"))
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn form_of_another_site_never_uses_up_the_posts_of_a_user() {
    let service = Service::start().await;
    for _ in 0..20 {
        let form = as_caller("alice", "POST", TOKENS)
            .header(header::CONTENT_TYPE, "text/plain")
            .body(Body::from("{}"));
        assert_eq!(service.send(form.expect("a request")).await.status, 415);
    }

    let stored = service
        .post("alice", &service.tokens("alice-sub", json!({})))
        .await;

    assert_eq!(stored.status, 200, "{}", stored.text);
}

#[tokio::test]
async fn user_who_posts_too_often_waits_and_nobody_else_does() {
    let clock = clock();
    let service = Service::with(
        TokenExposure::Never,
        clock.clone(),
        &[("kubernetes", &["openportal"])],
    )
    .await;
    let tokens = service.tokens("alice-sub", json!({}));
    for _ in 0..10 {
        let broken = service.post("alice", &json!({})).await;
        assert_eq!(broken.status, 400);
    }

    let refused = service.post("alice", &tokens).await;
    let other = service.post("bob", &service.tokens("bob-sub", json!({}))).await;
    let status = service.get("alice", STATUS).await;
    clock.advance_seconds(6);
    let later = service.post("alice", &tokens).await;

    assert_eq!(
        (refused.status, refused.json()),
        (
            429,
            json!({
                "error": "Too many requests",
                "message": "tokens were posted too often: try again in 6 s",
                "code": "rate_limited",
            })
        )
    );
    assert_eq!(refused.headers[header::RETRY_AFTER], "6");
    assert_eq!((other.status, status.status, later.status), (200, 200, 200));
}
