//! A loopback issuer that does what a test tells it to, and keys to sign with.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use axum::{
    Router,
    extract::{Form, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kube_authn_core::{
    CaBundle, ClientId, Issuer, KeyId, ManualClock, Secret, TlsTrust, TokenVault, Transport, jiff::Timestamp,
    rustls,
};
use kube_authn_oidc::{IdTokenVerifier, IssuerClient};
use kube_authn_store::{KeyRing, MemoryTokenStore};
use serde_json::{Map, Value, json};

/// The instant at which every test happens.
pub const NOW: i64 = 1_700_000_000;

pub fn clock() -> ManualClock {
    ManualClock::at(Timestamp::from_second(NOW).expect("an instant"))
}

pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A transport that trusts nobody's certificate: plain http on loopback needs none.
pub fn transport() -> Transport {
    let certificate =
        rcgen::generate_simple_self_signed(["unused.example".to_owned()]).expect("a certificate");
    transport_trusting(&certificate.cert.pem())
}

pub fn transport_trusting(pem: &str) -> Transport {
    let trust = TlsTrust::new(CaBundle::Pem(pem.as_bytes().into()));
    Transport::new(provider(), trust).expect("a transport")
}

/// A key that signs tokens.
pub enum Signer {
    Rsa {
        kid: String,
        pair: RsaKeyPair,
        pss: bool,
    },
    P256 {
        kid: String,
        pair: EcdsaKeyPair,
    },
}

impl Signer {
    pub fn rsa(kid: &str) -> Self {
        Self::Rsa {
            kid: kid.to_owned(),
            pair: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            pss: false,
        }
    }

    pub fn pss(kid: &str) -> Self {
        let Self::Rsa { kid, pair, .. } = Self::rsa(kid) else {
            unreachable!()
        };
        Self::Rsa { kid, pair, pss: true }
    }

    pub fn p256(kid: &str) -> Self {
        Self::P256 {
            kid: kid.to_owned(),
            pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
        }
    }

    pub fn kid(&self) -> &str {
        let (Self::Rsa { kid, .. } | Self::P256 { kid, .. }) = self;
        kid
    }

    /// The public key as PEM-less DER, for tests that abuse it as a shared secret.
    pub fn public_der(&self) -> Vec<u8> {
        match self {
            Self::Rsa { pair, .. } => pair.public_key().as_der().expect("DER").as_ref().to_vec(),
            Self::P256 { pair, .. } => pair.public_key().as_der().expect("DER").as_ref().to_vec(),
        }
    }

    pub fn jwk(&self) -> Value {
        match self {
            Self::Rsa { kid, pair, .. } => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kty": "RSA", "kid": kid, "n": encode(public.n), "e": encode(public.e)})
            }
            Self::P256 { kid, pair } => {
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": encode(&point[1..33]), "y": encode(&point[33..])})
            }
        }
    }

    /// Signs these claims under the usual header.
    pub fn token(&self, claims: &Value) -> Secret {
        self.token_with_header(json!({}), claims)
    }

    /// Signs these claims; `changes` are made to the usual header.
    pub fn token_with_header(&self, changes: Value, claims: &Value) -> Secret {
        let alg = match self {
            Self::Rsa { pss: false, .. } => "RS256",
            Self::Rsa { pss: true, .. } => "PS256",
            Self::P256 { .. } => "ES256",
        };
        let mut header = json!({"alg": alg, "kid": self.kid(), "typ": "JWT"});
        merge(&mut header, changes);
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.sign(message.as_bytes());
        Secret::new(format!("{message}.{}", encode(signature)))
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa { pair, pss, .. } => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let padding: &'static dyn aws_lc_rs::signature::RsaEncoding =
                    if *pss { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                pair.sign(padding, &random, message, &mut signature)
                    .expect("signed");
                signature
            }
            Self::P256 { pair, .. } => pair.sign(&random, message).expect("signed").as_ref().to_vec(),
        }
    }
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Adds or replaces members; `null` removes one.
pub fn merge(object: &mut Value, changes: Value) {
    let object: &mut Map<String, Value> = object.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object").clone() {
        match value {
            Value::Null => object.remove(&name),
            value => object.insert(name, value),
        };
    }
}

/// What a route of the issuer answers.
#[derive(Clone, Debug)]
pub enum Answer {
    Json(Value),
    Status(u16, String),
    Redirect(String),
    /// This many bytes of white space before a JSON object.
    Bytes(usize),
    /// This one, so many milliseconds later.
    Later(u64, Box<Answer>),
    /// Nothing, for longer than anybody waits.
    Silence,
}

#[derive(Clone)]
pub struct FakeIssuer(Arc<Inner>);

struct Inner {
    url: String,
    discovery: Mutex<Answer>,
    keys: Mutex<Answer>,
    token: Mutex<Answer>,
    discoveries: AtomicUsize,
    key_fetches: AtomicUsize,
    posts: Mutex<Vec<Vec<(String, String)>>>,
}

impl FakeIssuer {
    /// An issuer that publishes these keys.
    pub async fn start(keys: &[&Signer]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let issuer = Self(Arc::new(Inner {
            discovery: Mutex::new(Answer::Json(document(&url))),
            keys: Mutex::new(Answer::Json(key_set(keys))),
            token: Mutex::new(Answer::Status(500, String::new())),
            discoveries: AtomicUsize::new(0),
            key_fetches: AtomicUsize::new(0),
            posts: Mutex::default(),
            url,
        }));
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(serve_discovery))
            .route("/jwks", get(serve_keys))
            .route("/token", post(serve_token))
            .route("/revoke", post(serve_token))
            .with_state(issuer.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        issuer
    }

    pub fn url(&self) -> &str {
        &self.0.url
    }

    pub fn issuer(&self) -> Issuer {
        Issuer::new(self.url()).expect("an issuer")
    }

    pub fn client(&self) -> IssuerClient {
        IssuerClient::new(self.issuer(), transport())
    }

    pub fn verifier(&self) -> IdTokenVerifier {
        IdTokenVerifier::new(self.client(), Arc::new(clock())).with_client_id(client_id())
    }

    pub fn discovery(&self, answer: Answer) {
        *self.0.discovery.lock().expect("lock") = answer;
    }

    pub fn keys(&self, answer: Answer) {
        *self.0.keys.lock().expect("lock") = answer;
    }

    pub fn publish(&self, keys: &[&Signer]) {
        self.keys(Answer::Json(key_set(keys)));
    }

    pub fn tokens(&self, answer: Answer) {
        *self.0.token.lock().expect("lock") = answer;
    }

    pub fn key_fetches(&self) -> usize {
        self.0.key_fetches.load(Ordering::SeqCst)
    }

    pub fn discoveries(&self) -> usize {
        self.0.discoveries.load(Ordering::SeqCst)
    }

    /// The forms that were posted to the token or revocation endpoint.
    pub fn posts(&self) -> Vec<Vec<(String, String)>> {
        self.0.posts.lock().expect("lock").clone()
    }

    /// Claims of a good ID token of alice; `changes` are made to them.
    pub fn claims(&self, changes: Value) -> Value {
        let mut claims = json!({
            "iss": self.url(), "sub": "alice-sub", "aud": "kubernetes", "iat": NOW - 10, "exp": NOW + 3600,
        });
        merge(&mut claims, changes);
        claims
    }
}

pub fn client_id() -> ClientId {
    ClientId::new("kubernetes").expect("a client")
}

/// The discovery document of an issuer at this URL.
pub fn document(url: &str) -> Value {
    json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"),
        "revocation_endpoint": format!("{url}/revoke"),
        "jwks_uri": format!("{url}/jwks"),
        "authorization_response_iss_parameter_supported": true,
    })
}

pub fn key_set(keys: &[&Signer]) -> Value {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()})
}

async fn serve_discovery(State(issuer): State<FakeIssuer>) -> Response {
    issuer.0.discoveries.fetch_add(1, Ordering::SeqCst);
    let answer = issuer.0.discovery.lock().expect("lock").clone();
    serve(answer).await
}

async fn serve_keys(State(issuer): State<FakeIssuer>) -> Response {
    issuer.0.key_fetches.fetch_add(1, Ordering::SeqCst);
    let answer = issuer.0.keys.lock().expect("lock").clone();
    serve(answer).await
}

async fn serve_token(State(issuer): State<FakeIssuer>, Form(form): Form<Vec<(String, String)>>) -> Response {
    issuer.0.posts.lock().expect("lock").push(form);
    let answer = issuer.0.token.lock().expect("lock").clone();
    serve(answer).await
}

async fn serve(answer: Answer) -> Response {
    match answer {
        Answer::Json(value) => axum::Json(value).into_response(),
        Answer::Status(status, body) => {
            (StatusCode::from_u16(status).expect("a status"), body).into_response()
        }
        Answer::Redirect(to) => Redirect::temporary(&to).into_response(),
        Answer::Bytes(length) => {
            let mut body = vec![b' '; length];
            body.extend(b"{\"keys\":[]}");
            body.into_response()
        }
        Answer::Later(milliseconds, answer) => {
            tokio::time::sleep(std::time::Duration::from_millis(milliseconds)).await;
            Box::pin(serve(*answer)).await
        }
        Answer::Silence => std::future::pending().await,
    }
}

/// An empty vault in memory.
pub fn vault() -> TokenVault {
    let key = KeyRing::random_key().expect("a key");
    let ring = KeyRing::new(vec![(KeyId::new("k1").expect("an id"), key)]).expect("a key ring");
    TokenVault::new(MemoryTokenStore::new(), ring).with_clock(clock())
}
