//! An OpenID Connect issuer on loopback that only publishes its key, and tokens signed with it.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube_authn_benches::loopback::server_config;
use kube_authn_e2e::Authority;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const KEYS: &str = "/jwks";

pub(crate) struct Issuer {
    url: String,
    key: EcdsaKeyPair,
}

impl Issuer {
    /// Listens, with a certificate of this authority; must be called in a runtime, which serves it.
    pub(crate) async fn start(authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let acceptor = TlsAcceptor::from(Arc::new(server_config(authority).expect("TLS")));
        let documents = Arc::new([discovery(&url).to_string(), key_set(&key).to_string()]);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, documents) = (acceptor.clone(), documents.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let [discovery, keys] = &*documents;
                        let document = match request.uri().path() {
                            KEYS => keys,
                            _ => discovery,
                        };
                        let answer = json_answer(document.clone());
                        async { Ok::<_, Infallible>(answer) }
                    });
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        Self { url, key }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// An ID token of alice for this client, good for a day.
    pub(crate) fn id_token(&self, audience: &str) -> String {
        #[allow(
            clippy::disallowed_methods,
            reason = "the program believes the system's clock too"
        )]
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        let head = json!({ "alg": "ES256", "kid": "k1", "typ": "JWT" });
        let claims = json!({
            "iss": self.url, "sub": "alice", "aud": audience, "iat": now, "exp": now + 86_400,
            "email": "alice@example.com", "email_verified": true, "preferred_username": "alice",
            "name": "Alice Example", "groups": ["team-a", "team-a-dev"],
        });
        let message = format!("{}.{}", encode(head.to_string()), encode(claims.to_string()));
        let signature = self
            .key
            .sign(&SystemRandom::new(), message.as_bytes())
            .expect("signed");
        format!("{message}.{}", encode(signature))
    }
}

fn discovery(url: &str) -> Value {
    json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/auth"),
        "token_endpoint": format!("{url}/token"),
        "jwks_uri": format!("{url}{KEYS}"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

fn key_set(key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    let (x, y) = (encode(&point[1..33]), encode(&point[33..]));
    json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k1", "alg": "ES256", "use": "sig", "x": x, "y": y }] })
}

fn json_answer(document: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(document));
    let json = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
