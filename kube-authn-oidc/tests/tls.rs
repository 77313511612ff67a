//! Whose certificate an issuer may show.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "tests read better so"
)]

mod support;

use std::sync::Arc;

use kube_authn_core::{CaBundle, ErrorKind, Issuer, TlsTrust, Transport, jiff::Timestamp, rustls};
use kube_authn_oidc::{IdTokenVerifier, IssuerClient};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer as Signing, KeyPair};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::json;
use support::{NOW, Signer, document, key_set, transport_trusting};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

/// A certificate authority of our own.
struct Authority {
    pem: String,
    signing: Signing<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            pem,
            signing: Signing::new(params, key),
        }
    }

    /// TLS settings of a server with a certificate for this name.
    fn server(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &self.signing).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
        let config = rustls::ServerConfig::builder_with_provider(support::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a configuration");
        TlsAcceptor::from(Arc::new(config))
    }
}

/// An https issuer whose key set is served under another certificate than its discovery document.
async fn issuer(discovery: TlsAcceptor, keys: TlsAcceptor, key: &Signer) -> Issuer {
    let bind = async || {
        tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port")
    };
    let (first, second) = (bind().await, bind().await);
    let port = |listener: &tokio::net::TcpListener| listener.local_addr().expect("an address").port();
    let url = format!("https://localhost:{}", port(&first));
    let mut answer = document(&url);
    support::merge(
        &mut answer,
        json!({"jwks_uri": format!("https://localhost:{}/jwks", port(&second))}),
    );
    serve(first, discovery, answer.to_string());
    serve(second, keys, key_set(&[key]).to_string());
    Issuer::new(url).expect("an issuer")
}

fn serve(listener: tokio::net::TcpListener, tls: TlsAcceptor, body: String) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not like the certificate hangs up here.
            let Ok(mut stream) = tls.accept(stream).await else {
                continue;
            };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
}

async fn verify(issuer: Issuer, ca: &str, key: &Signer) -> Result<(), kube_authn_core::Error> {
    let claims = json!({"iss": issuer.as_str(), "sub": "s", "aud": "c", "exp": NOW + 60});
    let clock = kube_authn_core::ManualClock::at(Timestamp::from_second(NOW).expect("an instant"));
    let verifier = IdTokenVerifier::new(IssuerClient::new(issuer, transport_trusting(ca)), Arc::new(clock));
    verifier.verify(&key.token(&claims), None).await.map(|_| ())
}

#[tokio::test]
async fn issuer_under_the_configured_ca_is_believed() {
    let (ca, key) = (Authority::new(), Signer::p256("k"));
    let issuer = issuer(ca.server("localhost"), ca.server("localhost"), &key).await;

    verify(issuer, &ca.pem, &key).await.expect("verified");
}

#[tokio::test]
async fn discovery_or_keys_under_another_ca_or_name_are_never_believed() {
    let (ca, other, key) = (Authority::new(), Authority::new(), Signer::p256("k"));

    for (discovery, keys) in [
        (other.server("localhost"), ca.server("localhost")),
        (ca.server("localhost"), other.server("localhost")),
        (ca.server("other.example"), ca.server("localhost")),
        (ca.server("localhost"), ca.server("other.example")),
    ] {
        let error = verify(issuer(discovery, keys, &key).await, &ca.pem, &key)
            .await
            .expect_err("not trusted");

        assert_eq!(
            (error.kind(), error.is_retryable()),
            (ErrorKind::Unavailable, false)
        );
        assert!(
            error.to_string().contains("its certificate is not trusted"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn issuer_under_a_private_ca_is_never_believed_by_the_system_roots() {
    let (ca, key) = (Authority::new(), Signer::p256("k"));
    let issuer = issuer(ca.server("localhost"), ca.server("localhost"), &key).await;

    // A machine without roots refuses earlier.
    if let Ok(transport) = Transport::new(support::provider(), TlsTrust::new(CaBundle::System)) {
        let error = IssuerClient::new(issuer, transport)
            .metadata()
            .await
            .expect_err("not trusted");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
