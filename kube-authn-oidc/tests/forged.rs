//! Forged and misused tokens against an issuer that signs properly.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests read better so"
)]

mod support;

use aws_lc_rs::hmac;
use kube_authn_core::{ErrorKind, Secret};
use serde_json::json;
use support::{FakeIssuer, Signer, encode, merge};

/// A token with a signature that somebody made up.
fn forge(
    header: serde_json::Value,
    claims: &serde_json::Value,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Secret {
    let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let signature = encode(sign(message.as_bytes()));
    Secret::new(format!("{message}.{signature}"))
}

async fn refused(issuer: &FakeIssuer, token: &Secret) -> String {
    let error = issuer.verifier().verify(token, None).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::TokenRejected, "{error}");
    error.to_string()
}

#[tokio::test]
async fn rsa_pss_and_ecdsa_signatures_verify() {
    for key in [Signer::rsa("k"), Signer::pss("k"), Signer::p256("k")] {
        let issuer = FakeIssuer::start(&[&key]).await;

        let verified = issuer
            .verifier()
            .verify(&key.token(&issuer.claims(json!({}))), None)
            .await;

        assert_eq!(verified.expect("verified").subject().as_str(), "alice-sub");
    }
}

#[tokio::test]
async fn unsigned_token_never_passes() {
    let key = Signer::rsa("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let claims = issuer.claims(json!({}));

    for alg in ["none", "None", "NONE", ""] {
        refused(
            &issuer,
            &forge(json!({"alg": alg, "kid": "k"}), &claims, |_| Vec::new()),
        )
        .await;
    }
    refused(
        &issuer,
        &forge(json!({"alg": "RS256", "kid": "k"}), &claims, |_| Vec::new()),
    )
    .await;
    refused(&issuer, &forge(json!({"kid": "k"}), &claims, |_| Vec::new())).await;
}

#[tokio::test]
async fn public_key_never_serves_as_a_shared_secret() {
    let key = Signer::rsa("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let claims = issuer.claims(json!({}));

    for secret in [
        key.public_der(),
        key.jwk()["n"].to_string().into_bytes(),
        key.jwk().to_string().into_bytes(),
    ] {
        let token = forge(json!({"alg": "HS256", "kid": "k"}), &claims, |message| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message)
                .as_ref()
                .to_vec()
        });
        refused(&issuer, &token).await;
    }
}

#[tokio::test]
async fn zero_ecdsa_signature_never_verifies() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let claims = issuer.claims(json!({}));

    for signature in [
        vec![0; 64],
        vec![0; 63],
        vec![0; 96],
        vec![0xff; 64],
        vec![0x30, 6, 2, 1, 0, 2, 1, 0],
        Vec::new(),
    ] {
        let text = refused(
            &issuer,
            &forge(json!({"alg": "ES256", "kid": "k"}), &claims, |_| signature),
        )
        .await;
        assert!(text.starts_with("Signature verification failed: "), "{text}");
    }
}

#[tokio::test]
async fn key_in_the_tokens_own_header_is_never_used() {
    let (real, evil) = (Signer::rsa("k"), Signer::rsa("evil"));
    let issuer = FakeIssuer::start(&[&real]).await;
    let evil_issuer = FakeIssuer::start(&[&evil]).await;
    let address = format!("{}/jwks", evil_issuer.url());

    for changes in [
        json!({"jwk": evil.jwk()}),
        json!({"jwk": evil.jwk(), "kid": "k"}),
        json!({"jku": address}),
        json!({"jku": address, "kid": "k"}),
        json!({"x5u": address, "kid": null}),
        json!({"x5c": ["AAAA"], "kid": null}),
    ] {
        refused(
            &issuer,
            &evil.token_with_header(changes, &issuer.claims(json!({}))),
        )
        .await;
    }
    assert_eq!(evil_issuer.key_fetches(), 0);
}

#[tokio::test]
async fn algorithm_of_another_key_type_never_verifies() {
    let (rsa, ec) = (Signer::rsa("k"), Signer::p256("k"));
    let issuer = FakeIssuer::start(&[&rsa]).await;
    let claims = issuer.claims(json!({}));

    for alg in ["PS256", "RS384", "RS512"] {
        let text = refused(&issuer, &rsa.token_with_header(json!({ "alg": alg }), &claims)).await;
        assert!(text.starts_with("Signature verification failed: "), "{text}");
    }
    for alg in ["ES256", "ES384", "ES512"] {
        let text = refused(&issuer, &rsa.token_with_header(json!({ "alg": alg }), &claims)).await;
        assert!(text.starts_with("Failed to get signing key: "), "{text}");
    }
    refused(&issuer, &ec.token(&claims)).await;
}

#[tokio::test]
async fn critical_header_is_refused_although_the_signature_is_good() {
    let key = Signer::rsa("k");
    let issuer = FakeIssuer::start(&[&key]).await;

    let token = key.token_with_header(json!({"crit": ["exp"], "exp": 1}), &issuer.claims(json!({})));

    refused(&issuer, &token).await;
}

#[tokio::test]
async fn another_kind_of_token_never_passes_as_an_id_token() {
    let key = Signer::rsa("k");
    let issuer = FakeIssuer::start(&[&key]).await;

    for typ in ["at+jwt", "AT+JWT", "application/at+jwt", "logout+jwt"] {
        refused(
            &issuer,
            &key.token_with_header(json!({"typ": typ}), &issuer.claims(json!({}))),
        )
        .await;
    }
}

#[tokio::test]
async fn signature_is_checked_before_any_claim() {
    let (real, evil) = (Signer::rsa("k"), Signer::rsa("k"));
    let issuer = FakeIssuer::start(&[&real]).await;

    let forged = evil.token(&issuer.claims(json!({"iss": "https://other.example/", "exp": 1})));

    assert!(
        refused(&issuer, &forged)
            .await
            .starts_with("Signature verification failed: ")
    );
}

#[tokio::test]
async fn key_of_another_issuer_with_the_same_key_id_never_verifies() {
    let (key_a, key_b) = (Signer::rsa("shared"), Signer::rsa("shared"));
    let (a, b) = (
        FakeIssuer::start(&[&key_a]).await,
        FakeIssuer::start(&[&key_b]).await,
    );
    let (verifier_a, verifier_b) = (a.verifier(), b.verifier());

    assert!(
        verifier_a
            .verify(&key_a.token(&a.claims(json!({}))), None)
            .await
            .is_ok()
    );
    assert!(
        verifier_b
            .verify(&key_b.token(&b.claims(json!({}))), None)
            .await
            .is_ok()
    );
    // Signed by b, saying that it is a's; and honestly b's, shown to a.
    assert!(
        verifier_a
            .verify(&key_b.token(&a.claims(json!({}))), None)
            .await
            .is_err()
    );
    assert!(
        verifier_a
            .verify(&key_b.token(&b.claims(json!({}))), None)
            .await
            .is_err()
    );
    // Signed by a, saying that it is b's, shown to a: the issuer decides.
    let error = verifier_a
        .verify(&key_a.token(&b.claims(json!({}))), None)
        .await
        .expect_err("another issuer");
    assert_eq!(
        error.to_string(),
        format!("Invalid issuer: expected {}, got {}", a.url(), b.url())
    );
}

#[tokio::test]
async fn issuer_with_a_trailing_slash_is_another_issuer() {
    let key = Signer::rsa("k");
    let issuer = FakeIssuer::start(&[&key]).await;

    for other in [
        format!("{}/", issuer.url()),
        issuer.url().to_uppercase(),
        issuer.url().replace("127.0.0.1", "localhost"),
    ] {
        let text = refused(&issuer, &key.token(&issuer.claims(json!({ "iss": other })))).await;
        assert!(text.starts_with("Invalid issuer: expected "), "{text}");
    }
}

#[tokio::test]
async fn bomb_costs_neither_time_nor_a_fetch() {
    let key = Signer::rsa("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let began = std::time::Instant::now();
    let good = key.token(&issuer.claims(json!({})));
    let good = good.expose_str().expect("text");
    let mut zipped = json!({"alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF"});
    merge(&mut zipped, json!({"kid": "k"}));

    for bomb in [
        "a".repeat(1024 * 1024),
        ".".repeat(100_000),
        format!("{good}{}", ".".repeat(100_000)),
        format!("{good}."),
        format!("{}.a.b.c.d", encode(zipped.to_string())),
        format!(
            "{}.e30.AAAA",
            encode(format!(r#"{{"alg":"RS256","x":{}"#, "[".repeat(9_000)))
        ),
    ] {
        refused(&issuer, &Secret::new(bomb)).await;
    }

    assert!(began.elapsed() < std::time::Duration::from_secs(2));
    assert_eq!((issuer.discoveries(), issuer.key_fetches()), (0, 0));
}

#[tokio::test]
async fn deep_claims_are_refused_although_the_signature_is_good() {
    let key = Signer::p256("k");
    let issuer = FakeIssuer::start(&[&key]).await;
    let deep = format!(
        r#"{{"iss":"{}","x":{}{}}}"#,
        issuer.url(),
        "[".repeat(2_000),
        "]".repeat(2_000)
    );
    let message = format!(
        "{}.{}",
        encode(json!({"alg": "ES256", "kid": "k"}).to_string()),
        encode(deep)
    );

    let token = Secret::new(format!("{message}.{}", encode(key.sign(message.as_bytes()))));

    assert!(refused(&issuer, &token).await.starts_with("Invalid JWT format"));
}
