use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_core::{
    ManualClock, StrategyOptions,
    conformance::provider::ProviderFixture,
    serde_json::{Value, json},
};
use tempfile::TempDir;

use super::*;
use crate::test_support::*;

const NOW: i64 = 1_000_000;
/// The end of the certificates: 1970-01-20.
const END: i64 = 19 * 86_400;

/// Certificate and key, PEM.
fn pair(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("params");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.not_after = rcgen::date_time_ymd(1970, 1, 20);
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

struct Files(TempDir);

impl Files {
    fn with((certificate, key): &(String, String)) -> Self {
        let files = Self(TempDir::new().expect("a folder"));
        files.replace("tls.crt", certificate);
        files.replace("tls.key", key);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn replace(&self, name: &str, content: &str) {
        fs::write(self.path("new"), content).expect("written");
        fs::rename(self.path("new"), self.path(name)).expect("replaced");
    }

    fn asked(&self) -> CredentialRequest {
        let block = json!({ "certFile": self.path("tls.crt"), "keyFile": self.path("tls.key") });
        request("alice", &with_settings(&block))
    }
}

fn with_settings(settings: &Value) -> ClusterDetails {
    let block = json!({ "clientCertificate": settings });
    cluster(ClientCertificateProvider::NAME)
        .options(StrategyOptions::new(
            block.as_object().expect("an object").clone(),
        ))
        .build()
        .expect("a cluster")
}

fn with_data((certificate, key): &(String, String)) -> ClusterDetails {
    with_settings(&json!({ "certData": STANDARD.encode(certificate), "keyData": STANDARD.encode(key) }))
}

fn strategy() -> (ClientCertificateProvider, ManualClock) {
    let clock = ManualClock::at(at(NOW));
    (ClientCertificateProvider::new().with_clock(clock.clone()), clock)
}

async fn shown(strategy: &ClientCertificateProvider, asked: &CredentialRequest) -> ClientCertificate {
    let credential = strategy.credential(asked).await.expect("a credential");
    credential.client_certificate().expect("a certificate").clone()
}

fn certificate((chain, key): &(String, String)) -> ClientCertificate {
    ClientCertificate::from_pem(chain.as_bytes(), Secret::new(key.as_str())).expect("a certificate")
}

#[tokio::test]
async fn keeps_the_contract() {
    let (pair, files) = (pair("robot"), Files::with(&pair("robot")));
    let missing = with_settings(&json!({ "certFile": "/nowhere/tls.crt", "keyFile": "/nowhere/tls.key" }));
    let half = with_settings(&json!({ "certFile": "/x", "keyPath": "/x", "certData": 7 }));
    let rubbish = with_settings(&json!({ "certData": "canary!", "keyData": "canary!" }));
    let no_pem =
        with_settings(&json!({ "certData": STANDARD.encode("c"), "keyData": STANDARD.encode("canary") }));
    let plain = ClusterDetails::builder("prod", "http://prod.example.com")
        .auth_provider(ClientCertificateProvider::NAME)
        .options(with_data(&pair).options().clone())
        .build()
        .expect("a cluster");
    for alice in [files.asked(), request("alice", &with_data(&pair))] {
        let bob = request("bob", &alice.cluster);
        let fixture = ProviderFixture::new(strategy().0, alice, bob)
            .with_clock(ManualClock::at(at(NOW)))
            .with_expires_at(at(END))
            .refusing(request("alice", &missing), ErrorKind::ConfigInvalid)
            .refusing(request("alice", &half), ErrorKind::ConfigInvalid)
            .refusing(request("alice", &no_pem), ErrorKind::ConfigInvalid)
            .with_unworkable(
                half.clone(),
                &[
                    "kubeAuthn.clientCertificate.keyPath",
                    "kubeAuthn.clientCertificate.certData",
                ],
            )
            .with_unworkable(
                rubbish.clone(),
                &[
                    "kubeAuthn.clientCertificate.certData",
                    "kubeAuthn.clientCertificate.keyData",
                ],
            )
            .with_unworkable(no_pem.clone(), &["kubeAuthn.clientCertificate.certData"])
            .with_unworkable(plain.clone(), &["url"])
            .with_unworkable(
                cluster(ClientCertificateProvider::NAME)
                    .build()
                    .expect("a cluster"),
                &["kubeAuthn.clientCertificate.certFile"],
            )
            .with_canary(Secret::new("canary"))
            .with_canary(Secret::new(pair.1.lines().nth(1).expect("base64")));

        bare_registered_and_cached(fixture).await;
    }
}

#[tokio::test]
async fn replaced_pair_is_taken_up_and_the_same_pair_stays_the_same_credential() {
    let (one, two) = (pair("one"), pair("two"));
    let files = Files::with(&one);
    let (strategy, _) = strategy();
    let first = strategy.credential(&files.asked()).await.expect("a credential");
    let same = strategy.credential(&files.asked()).await.expect("a credential");
    assert_eq!(first.generation(), same.generation());
    assert_eq!(first.refresh_at(), Some(at(NOW + 60)));
    assert!(!strategy.invalidate(&files.asked(), &first).await);

    files.replace("tls.crt", &two.0);
    files.replace("tls.key", &two.1);

    assert!(strategy.invalidate(&files.asked(), &first).await);
    assert_eq!(shown(&strategy, &files.asked()).await, certificate(&two));
}

#[tokio::test]
async fn last_pair_is_used_until_its_end_while_the_files_are_broken() {
    let one = pair("one");
    let files = Files::with(&one);
    let (strategy, clock) = strategy();
    shown(&strategy, &files.asked()).await;

    for broken in [
        "",
        "-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n",
        &"x".repeat(70_000),
    ] {
        files.replace("tls.crt", broken);
        assert_eq!(shown(&strategy, &files.asked()).await, certificate(&one));
    }
    fs::remove_file(files.path("tls.crt")).expect("removed");
    assert_eq!(shown(&strategy, &files.asked()).await, certificate(&one));
    clock.advance_seconds(END + 1 - NOW);

    let error = strategy.credential(&files.asked()).await.expect_err("over");
    assert!(
        error
            .to_string()
            .contains("tls.crt cannot be used: it is not there"),
        "{error}"
    );
}

#[tokio::test]
async fn expired_certificate_is_named_with_its_end() {
    let (strategy, clock) = strategy();
    clock.advance_seconds(END + 1 - NOW);
    let one = pair("one");

    let of_files = strategy
        .credential(&Files::with(&one).asked())
        .await
        .expect_err("over");
    let of_data = strategy
        .credential(&request("alice", &with_data(&one)))
        .await
        .expect_err("over");

    for error in [of_files, of_data] {
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        let expected = "the client certificate has expired on 1970-01-20T00:00:00Z: renew it";
        assert!(error.to_string().ends_with(expected), "{error}");
    }
    assert_eq!(strategy.validate(&with_data(&one)).len(), 1);
}

#[tokio::test]
async fn what_is_no_regular_file_is_never_read() {
    let files = Files::with(&pair("one"));
    fs::remove_file(files.path("tls.key")).expect("removed");
    fs::create_dir(files.path("tls.key")).expect("a folder");

    let error = strategy()
        .0
        .credential(&files.asked())
        .await
        .expect_err("refused");

    assert!(
        error
            .to_string()
            .ends_with("tls.key cannot be used: it is no regular file"),
        "{error}"
    );
}

#[cfg(feature = "upstream")]
#[tokio::test]
async fn half_a_rotation_is_no_new_pair() {
    let crypto = Arc::new(kube_authn_core::rustls::crypto::aws_lc_rs::default_provider());
    let (one, two) = (pair("one"), pair("two"));
    let files = Files::with(&one);
    let strategy = strategy().0.with_key_check(crypto);
    shown(&strategy, &files.asked()).await;

    files.replace("tls.crt", &two.0);
    assert_eq!(shown(&strategy, &files.asked()).await, certificate(&one));
    files.replace("tls.key", &two.1);
    assert_eq!(shown(&strategy, &files.asked()).await, certificate(&two));
}
