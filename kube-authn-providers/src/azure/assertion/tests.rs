use jsonwebtoken::{DecodingKey, Validation};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use serde_json::{Value, json};

use super::*;
use kube_authn_core::serde_json;

fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> (Secret, Secret, Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate_for(algorithm).expect("a key");
    let certificate = CertificateParams::new(Vec::new())
        .expect("parameters")
        .self_signed(&key)
        .expect("a certificate");
    (
        Secret::new(certificate.pem()),
        Secret::new(key.serialize_pem()),
        certificate.der().to_vec(),
        key.der_bytes().to_vec(),
    )
}

fn claims() -> Claims<'static> {
    Claims::new(
        "https://login.example.com/t/oauth2/v2.0/token",
        "client",
        Timestamp::from_second(1_700_000_000).expect("an instant"),
    )
    .expect("claims")
}

#[test]
fn assertion_verifies_under_the_certificate_that_it_names() {
    let (chain, key, der, public) = certificate(&rcgen::PKCS_RSA_SHA256);
    let claims = claims();

    let signed = sign(&chain, &key, &claims, true).expect("signed");

    let mut validation = Validation::new(Algorithm::PS256);
    validation.validate_exp = false;
    validation.set_audience(&["https://login.example.com/t/oauth2/v2.0/token"]);
    let token =
        jsonwebtoken::decode::<Value>(signed.expose(), &DecodingKey::from_rsa_der(&public), &validation)
            .expect("a valid signature");
    assert_eq!(
        token.claims,
        json!({
            "aud": "https://login.example.com/t/oauth2/v2.0/token", "iss": "client", "sub": "client",
            "jti": claims.jti, "iat": 1_700_000_000, "nbf": 1_700_000_000, "exp": 1_700_000_600,
        })
    );
    let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    assert_eq!(token.header.x5t_s256, Some(URL_SAFE_NO_PAD.encode(thumbprint)));
    assert_eq!(token.header.x5c, Some(vec![STANDARD.encode(&der)]));
}

#[test]
fn key_and_certificate_may_stand_in_one_file_in_any_order() {
    let (chain, key, ..) = certificate(&rcgen::PKCS_RSA_SHA256);
    for parts in [[&key, &chain], [&chain, &key]] {
        let file = Secret::new([parts[0].expose(), parts[1].expose()].concat());

        sign(&file, &file, &claims(), false).expect("signed");
    }
}

#[test]
fn two_assertions_never_have_the_same_id() {
    assert_ne!(claims().jti, claims().jti);
}

#[test]
fn unusable_files_are_named_without_their_content() {
    let (chain, key, ..) = certificate(&rcgen::PKCS_RSA_SHA256);
    let (_, elliptic, ..) = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
    let nothing = Secret::new("canary");

    for (chain, key, wrong) in [
        (
            &nothing,
            &key,
            "holds no PEM certificate: PKCS#12 is not read, convert it",
        ),
        (&chain, &nothing, "comes with no PEM key that is not encrypted"),
        (&chain, &elliptic, NO_RSA_KEY),
    ] {
        assert_eq!(sign(chain, key, &claims(), false).expect_err("refused"), wrong);
    }
}
