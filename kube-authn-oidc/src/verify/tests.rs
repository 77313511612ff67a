#![allow(clippy::needless_pass_by_value, reason = "JSON literals read better so")]

use std::path::Path;

use kube_authn_core::{CaBundle, ManualClock, TlsTrust, Transport};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::jwks::KeySet;

const NOW: i64 = 1_700_000_000;

fn issuer() -> IssuerClient {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let trust = TlsTrust::new(CaBundle::Pem(certificate.cert.pem().into_bytes().into()));
    let transport = Transport::new(provider, trust).expect("a transport");
    IssuerClient::new(Issuer::new("https://a.example/").expect("an issuer"), transport)
}

/// A verifier of claims alone: it opens no connection.
fn verifier() -> IdTokenVerifier {
    let clock = ManualClock::at(Timestamp::from_second(NOW).expect("an instant"));
    IdTokenVerifier::new(issuer(), Arc::new(clock)).dangerously_without_signatures()
}

fn pinned() -> IdTokenVerifier {
    verifier().with_client_id(ClientId::new("kubernetes").expect("a client"))
}

fn token(changes: Value) -> Secret {
    let mut claims = json!({
        "iss": "https://a.example/", "sub": "alice", "aud": "kubernetes", "iat": NOW - 10, "exp": NOW + 3600,
    });
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => claims.as_object_mut().expect("an object").remove(name),
            value => claims
                .as_object_mut()
                .expect("an object")
                .insert(name.clone(), value.clone()),
        };
    }
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    Secret::new(format!(
        "{}.{}.c2ln",
        encode(&json!({"alg": "RS256"})),
        encode(&claims)
    ))
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn message(verifier: &IdTokenVerifier, changes: Value) -> String {
    match run(verifier.verify(&token(changes.clone()), None)) {
        Ok(_) => panic!("accepted: {changes}"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TokenRejected);
            error.to_string()
        }
    }
}

#[test]
fn good_token_says_who_it_is() {
    let token = token(json!({"email": "Alice@Example.com", "email_verified": true, "team": "a"}));

    let verified = run(pinned().verify(&token, None)).expect("verified");

    assert_eq!(verified.subject().as_str(), "alice");
    assert_eq!(verified.client_id().as_str(), "kubernetes");
    assert_eq!(
        verified.email().map(VerifiedEmail::as_str),
        Some("alice@example.com")
    );
    assert_eq!(verified.expires_at().as_second(), NOW + 3600);
    assert_eq!(verified.claim("team"), Some(&json!("a")));
    assert!(!format!("{verified:?}").contains("alice"));
}

#[test]
fn texts_of_the_seed_are_kept() {
    assert_eq!(
        message(&verifier(), json!({"iss": "https://a.example"})),
        "Invalid issuer: expected https://a.example/, got https://a.example"
    );
    assert_eq!(message(&verifier(), json!({"sub": null})), "Missing sub claim");
    assert_eq!(message(&verifier(), json!({"exp": NOW - 60})), "Token expired");
    let error = run(verifier().verify(&Secret::new("opaque"), None)).expect_err("no JWT");
    assert!(error.to_string().starts_with("Invalid JWT format"));
}

#[test]
fn issuer_that_is_none_is_not_repeated() {
    for issuer in ["canary", "https://a.example/?canary", "https://canary@a.example/"] {
        assert!(!message(&verifier(), json!({ "iss": issuer })).contains("canary"));
    }
}

#[test]
fn audience_or_authorized_party_of_another_client_is_refused() {
    for changes in [
        json!({"aud": "other"}),
        json!({"aud": ["other"]}),
        json!({"aud": ["kubernetes", "other"]}),
        json!({"aud": ["kubernetes", "other"], "azp": "other"}),
        json!({"aud": "kubernetes", "azp": "other"}),
        json!({"aud": "other", "azp": "kubernetes"}),
        json!({"aud": "KUBERNETES"}),
        json!({"aud": "kubernetes "}),
        json!({"azp": ["kubernetes"]}),
        json!({"aud": []}),
    ] {
        message(&pinned(), changes);
    }
    for changes in [
        json!({"aud": ["kubernetes"]}),
        json!({"aud": ["other", "kubernetes"], "azp": "kubernetes"}),
    ] {
        assert!(run(pinned().verify(&token(changes), None)).is_ok());
    }
}

#[test]
fn client_that_is_not_pinned_is_read_from_the_token() {
    let client =
        |changes| run(verifier().verify(&token(changes), None)).map(|token| token.client_id().to_string());

    assert_eq!(client(json!({"aud": ["a", "b"], "azp": "b"})).expect("azp"), "b");
    assert_eq!(client(json!({"aud": ["a"]})).expect("the only audience"), "a");
    assert!(client(json!({"aud": ["a", "b"]})).is_err());
}

#[test]
fn clocks_that_differ_by_five_minutes_never_make_an_expired_token_good() {
    for changes in [
        json!({"exp": NOW - 300}),
        json!({"nbf": NOW + 300}),
        json!({"iat": NOW + 300}),
        json!({"exp": NOW - 60}),
        json!({"nbf": NOW + 61}),
        json!({"iat": NOW + 61}),
    ] {
        message(&verifier(), changes);
    }
    for changes in [
        json!({"exp": NOW - 59}),
        json!({"nbf": NOW + 60}),
        json!({"iat": NOW + 60}),
        json!({"iat": null}),
    ] {
        assert!(run(verifier().verify(&token(changes), None)).is_ok());
    }
}

#[test]
fn clock_that_jumps_is_believed_at_once() {
    let clock = ManualClock::at(Timestamp::from_second(NOW).expect("an instant"));
    let verifier = IdTokenVerifier::new(issuer(), Arc::new(clock.clone())).dangerously_without_signatures();
    let good = |token: &Secret| run(verifier.verify(token, None)).is_ok();
    let token = token(json!({}));

    assert!(good(&token));
    clock.advance_seconds(3600 + 60);
    assert!(!good(&token));
    clock.advance_seconds(-3600);
    assert!(good(&token));
}

#[test]
fn token_without_end_is_refused_unless_a_lifetime_is_assumed() {
    let mut lifetimes = Lifetimes::default();
    message(&verifier(), json!({"exp": null}));

    lifetimes.assume = Some(Duration::from_secs(3600));
    let assuming = verifier().with_lifetimes(lifetimes);
    let verified = run(assuming.verify(&token(json!({"exp": null})), None)).expect("verified");

    assert_eq!(verified.expires_at().as_second(), NOW - 10 + 3600);
    // Posting it again later does not make it live longer.
    assert_eq!(
        message(&assuming, json!({"exp": null, "iat": NOW - 4000})),
        "Token expired"
    );
    // A wrong type is not "no exp".
    message(&assuming, json!({"exp": "tomorrow"}));
}

#[test]
fn longest_lifetime_cuts_a_long_token() {
    let mut lifetimes = Lifetimes::default();
    lifetimes.max = Some(Duration::from_secs(600));
    let capped = verifier().with_lifetimes(lifetimes);

    let verified = run(capped.verify(&token(json!({"exp": NOW + 100_000_000})), None)).expect("verified");

    assert_eq!(verified.expires_at().as_second(), NOW - 10 + 600);
    assert_eq!(message(&capped, json!({"iat": NOW - 700})), "Token expired");
}

#[test]
fn token_with_another_nonce_or_none_is_refused() {
    let nonce = Nonce::new(Secret::new("n-0S6_WzA2Mj"));
    let good = |changes| run(verifier().verify(&token(changes), Some(&nonce))).is_ok();

    assert!(good(json!({"nonce": "n-0S6_WzA2Mj"})));
    for changes in [
        json!({}),
        json!({"nonce": ""}),
        json!({"nonce": "other"}),
        json!({"nonce": ["n-0S6_WzA2Mj"]}),
    ] {
        assert!(!good(changes));
    }
}

#[test]
fn access_token_of_another_login_is_refused() {
    // The example of OpenID Connect Core, appendix A.3.
    let access_token = Secret::new("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y");
    let own = |changes, access_token: &Secret| {
        run(verifier().verify(&token(changes), None))
            .expect("verified")
            .expect_own(access_token)
    };

    assert!(own(json!({"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}), &access_token).is_ok());
    assert!(own(json!({}), &access_token).is_ok());
    let error = own(
        json!({"at_hash": "77QmUPtjPfzWtF2AnpK9RQ"}),
        &Secret::new("other"),
    )
    .expect_err("another");
    assert_eq!(error.kind(), ErrorKind::TokenRejected);
    assert!(own(json!({}), &token(json!({}))).is_ok());
    let error = own(json!({}), &token(json!({"sub": "bob"}))).expect_err("somebody else's");
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Refused, "identity_mismatch")
    );
    assert!(own(json!({}), &token(json!({"sub": null}))).is_err());
}

#[test]
fn signatures_of_rfc_7515_verify_and_a_changed_bit_does_not() {
    for (keys, token) in RFC_7515 {
        let set = KeySet::parse(issuer().issuer(), keys.as_bytes()).expect("a key set");

        let verdict = |token: &str| set.check(&Jws::parse(token.as_bytes()).expect("a token").signed());

        assert_eq!(verdict(token), Verdict::Verified);
        let changed = token
            .replacen(".eyJpc3Mi", ".eyJpc3Mj", 1)
            .replacen(".UGF5bG9hZA", ".UGF5bG9hZQ", 1);
        assert_eq!(verdict(&changed), Verdict::Forged);
    }
}

#[test]
fn key_of_another_type_use_or_algorithm_never_verifies() {
    let (keys, token) = RFC_7515[0];
    let verdict = |name: &str, value: Value| {
        let mut set: Value = serde_json::from_str(keys).expect("JSON");
        set["keys"][0][name] = value;
        let set = KeySet::parse(issuer().issuer(), set.to_string().as_bytes()).expect("a key set");
        set.check(&Jws::parse(token.as_bytes()).expect("a token").signed())
    };

    assert_eq!(verdict("use", json!("sig")), Verdict::Verified);
    assert_eq!(verdict("alg", json!("RS256")), Verdict::Verified);
    for (name, value) in [
        ("use", json!("enc")),
        ("use", json!("other")),
        ("key_ops", json!(["sign"])),
        ("alg", json!("PS256")),
        ("alg", json!("RSA-OAEP")),
        ("alg", json!(7)),
        ("kty", json!("EC")),
        ("kty", json!("oct")),
        ("kty", json!("unknown")),
        ("kty", json!(null)),
        ("n", json!("not base64!")),
    ] {
        assert_eq!(verdict(name, value.clone()), Verdict::NoKey, "{name} {value}");
    }
}

#[test]
fn keys_that_are_not_understood_hide_no_good_one() {
    let (keys, token) = RFC_7515[1];
    let mut set: Value = serde_json::from_str(keys).expect("JSON");
    let good = set["keys"][0].take();
    set["keys"] = json!([7, null, {}, {"kty": "LMS"}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-999"}, good]);

    let set = KeySet::parse(issuer().issuer(), set.to_string().as_bytes()).expect("a key set");

    assert_eq!(
        set.check(&Jws::parse(token.as_bytes()).expect("a token").signed()),
        Verdict::Verified
    );
}

proptest! {
    #[test]
    fn token_whose_times_do_not_hold_is_never_accepted(
        exp in (NOW - 200) as f64..(NOW + 200) as f64,
        nbf in NOW - 200..NOW + 200,
        iat in NOW - 200..NOW + 200,
    ) {
        let token = token(json!({ "exp": exp, "nbf": nbf, "iat": iat }));

        let accepted = run(verifier().verify(&token, None)).is_ok();

        prop_assert_eq!(accepted, exp.floor() > (NOW - 60) as f64 && nbf <= NOW + 60 && iat <= NOW + 60);
    }

    #[test]
    fn time_of_any_size_gives_an_answer_and_no_panic(exp in any::<f64>(), nbf in any::<i64>(), iat in any::<u64>()) {
        let token = token(json!({ "exp": exp, "nbf": nbf, "iat": iat }));

        if let Ok(verified) = run(verifier().verify(&token, None)) {
            prop_assert!(verified.expires_at().as_second() > NOW - 60);
        }
    }

    #[test]
    fn any_bytes_give_an_answer_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let error = run(verifier().verify(&Secret::new(bytes), None)).expect_err("no token");

        prop_assert_eq!(error.kind(), ErrorKind::TokenRejected);
    }
}

#[test]
fn ca_file_that_is_missing_is_never_the_system_roots() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    for ca in [
        CaBundle::File(Path::new("/nonexistent/ca.pem").into()),
        CaBundle::Pem(Arc::from(&b""[..])),
    ] {
        let error = Transport::new(provider.clone(), TlsTrust::new(ca)).expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    }
}

/// RFC 7515 appendices A.2 (RS256), A.3 (ES256) and A.4 (ES512): key set and token.
const RFC_7515: [(&str, &str); 3] = [
    (
        r#"{"keys":[{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}]}"#,
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    ),
    (
        r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#,
        "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ),
    (
        r#"{"keys":[{"kty":"EC","crv":"P-521","x":"AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk","y":"ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"}]}"#,
        "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn",
    ),
];
