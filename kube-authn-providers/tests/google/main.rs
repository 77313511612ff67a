//! Strategy `googleServiceAccount` against Google on loopback.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests"
)]

#[cfg(all(unix, feature = "google-federation"))]
mod executable;
#[cfg(feature = "google-federation")]
mod federation;
mod server;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kube_authn_core::{
    AccessTokenSource, ClusterBuilder, ClusterDetails, Credential, CredentialRequest, EntityRef, ErrorKind,
    KubernetesAuthProvider, ManualClock, Principal, ProviderRegistry, Secret,
    conformance::provider::{self, ProviderFixture},
    http::HeaderMap,
    jiff::Timestamp,
    rustls::crypto::aws_lc_rs as provider_of_rustls,
    serde_json::{self, Value, json},
};
use kube_authn_providers::{GoogleCredentials, GoogleServiceAccountProvider};
use server::Google;

const NOW: i64 = 1_700_000_000;
const EMAIL: &str = "portal@portal.iam.gserviceaccount.com";
const BOTH_SCOPES: &str =
    "https://www.googleapis.com/auth/cloud-platform https://www.googleapis.com/auth/userinfo.email";

static KEY: LazyLock<rcgen::KeyPair> =
    LazyLock::new(|| rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key"));

fn key_file(google: &Google) -> Value {
    json!({
        "type": "service_account",
        "private_key_id": "key-1",
        "private_key": KEY.serialize_pem(),
        "client_email": EMAIL,
        "token_uri": google.url("/token"),
    })
}

fn login_file(google: &Google) -> Value {
    json!({
        "type": "authorized_user",
        "client_id": "client",
        "client_secret": "canary-client-secret",
        "refresh_token": "canary-refresh-token",
        "token_uri": google.url("/token"),
    })
}

fn clock() -> ManualClock {
    ManualClock::at(at(NOW))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("an instant")
}

fn strategy(
    credentials: GoogleCredentials,
    env: &[(&str, &str)],
    clock: &ManualClock,
) -> GoogleServiceAccountProvider {
    let crypto = Arc::new(provider_of_rustls::default_provider());
    let env = |name: &str| {
        let found = env.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    GoogleServiceAccountProvider::new(credentials, crypto, &env).with_clock(clock.clone())
}

fn configured(file: &Value, clock: &ManualClock) -> GoogleServiceAccountProvider {
    strategy(GoogleCredentials::Json(Secret::new(file.to_string())), &[], clock)
}

fn builder(name: &str) -> ClusterBuilder {
    ClusterDetails::builder(name, "https://prod.example.com")
        .auth_provider(GoogleServiceAccountProvider::NAME)
}

fn cluster(name: &str) -> ClusterDetails {
    builder(name).build().expect("a cluster")
}

fn request(user: &str, cluster: &ClusterDetails) -> CredentialRequest {
    let user = EntityRef::parse(&format!("user:default/{user}")).expect("a reference");
    CredentialRequest::new(Principal::user(user), cluster.clone())
}

fn sent(credential: &Credential) -> String {
    let mut headers = HeaderMap::new();
    credential.apply(&mut headers);
    headers["authorization"]
        .to_str()
        .expect("text")
        .replace("Bearer canary-", "")
}

async fn get(strategy: &GoogleServiceAccountProvider) -> Credential {
    let request = request("alice", &cluster("prod"));
    strategy.credential(&request).await.expect("a credential")
}

async fn refusal(strategy: &GoogleServiceAccountProvider) -> (ErrorKind, String) {
    let request = request("alice", &cluster("prod"));
    let error = strategy.credential(&request).await.expect_err("refused");
    (error.kind(), error.to_string())
}

/// One token is everybody's, whatever its number.
async fn keeps_the_contract(strategy: GoogleServiceAccountProvider, clock: &ManualClock, canaries: &[&str]) {
    let mut fixture = ProviderFixture::new(
        strategy,
        request("alice", &cluster("prod")),
        request("bob", &cluster("prod")),
    )
    .with_identity(|headers| headers.contains_key("authorization").to_string())
    .with_clock(clock.clone())
    .with_expires_at(at(NOW + 3600))
    .with_canary(Secret::new("canary-token"));
    for canary in canaries {
        fixture = fixture.with_canary(Secret::new(*canary));
    }
    provider::all(&fixture).await;
    let registry = ProviderRegistry::new().with(fixture.provider());
    let registered = fixture.with_provider(registry);
    provider::all(&registered).await;
    provider::all(&registered.cached()).await;
}

#[tokio::test]
async fn key_keeps_the_contract() {
    let (google, clock) = (Google::start().await, clock());
    let pem = KEY.serialize_pem();
    let body = pem.lines().nth(3).expect("a line of the key");

    keeps_the_contract(configured(&key_file(&google), &clock), &clock, &[body]).await;
}

#[tokio::test]
async fn login_keeps_the_contract() {
    let (google, clock) = (Google::start().await, clock());
    let canaries = ["canary-client-secret", "canary-refresh-token"];

    keeps_the_contract(configured(&login_file(&google), &clock), &clock, &canaries).await;
}

#[tokio::test]
async fn metadata_server_keeps_the_contract() {
    let (google, clock) = (Google::start().await, clock());
    let env = [("GCE_METADATA_HOST", google.host())];
    let env = [(env[0].0, env[0].1.as_str())];

    keeps_the_contract(strategy(GoogleCredentials::Default, &env, &clock), &clock, &[]).await;
}

#[tokio::test]
async fn key_signs_an_assertion_for_both_scopes_which_is_exchanged() {
    let (google, clock) = (Google::start().await, clock());

    let credential = get(&configured(&key_file(&google), &clock)).await;

    assert_eq!(sent(&credential), "token-1");
    assert_eq!(credential.expires_at(), Some(at(NOW + 3600)));
    let asked = google.asked_once();
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token"));
    assert_eq!(
        asked.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(asked.form().len(), 2);
    assert_eq!(
        asked.field("grant_type"),
        "urn:ietf:params:oauth:grant-type:jwt-bearer"
    );
    let assertion = asked.field("assertion");
    let (text, signature) = assertion.rsplit_once('.').expect("a signature");
    let parts: Vec<Value> = text.split('.').map(decoded).collect();
    assert_eq!(
        parts,
        [
            json!({ "alg": "RS256", "typ": "JWT", "kid": "key-1" }),
            json!({
                "iss": EMAIL, "aud": google.url("/token"), "scope": BOTH_SCOPES, "iat": NOW, "exp": NOW + 3600,
            }),
        ]
    );
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, KEY.public_key_raw())
        .verify(text.as_bytes(), &signature)
        .expect("signed with the key");
}

fn decoded(part: &str) -> Value {
    let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url without padding");
    serde_json::from_slice(&bytes).expect("JSON")
}

#[tokio::test]
async fn login_of_gcloud_is_refreshed_for_both_scopes() {
    let (google, clock) = (Google::start().await, clock());

    get(&configured(&login_file(&google), &clock)).await;

    let form = google.asked_once().form();
    let expected = [
        ("client_id", "client"),
        ("client_secret", "canary-client-secret"),
        ("grant_type", "refresh_token"),
        ("refresh_token", "canary-refresh-token"),
        ("scope", BOTH_SCOPES),
    ];
    assert_eq!(
        form,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
}

#[tokio::test]
async fn metadata_server_is_asked_for_both_scopes_and_has_to_show_its_flavor() {
    let (google, clock) = (Google::start().await, clock());
    let host = google.host();
    let strategy = strategy(
        GoogleCredentials::Default,
        &[("GCE_METADATA_HOST", &host)],
        &clock,
    );

    google.next(200, r#"{"access_token":"canary-of-somebody","expires_in":3600}"#);
    let (kind, text) = refusal(&strategy).await;
    google.asked();
    tokio::time::sleep(Duration::from_secs(5)).await;
    get(&strategy).await;

    assert_eq!(kind, ErrorKind::ConfigInvalid);
    assert!(
        text.contains("answers without Metadata-Flavor: Google: it is no metadata server"),
        "{text}"
    );
    let asked = google.asked_once();
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        (
            "GET",
            "/computeMetadata/v1/instance/service-accounts/default/token"
        )
    );
    assert_eq!(
        asked.query,
        [("scopes".to_owned(), BOTH_SCOPES.replace(' ', ","))]
    );
    assert_eq!(asked.header("metadata-flavor"), Some("Google"));
}

#[tokio::test]
async fn all_clusters_and_callers_wait_for_one_call() {
    let (google, clock) = (Google::start().await, clock());
    google.slow(100);
    let strategy = configured(&key_file(&google), &clock);
    let callers: Vec<_> = (0..64)
        .map(|number| {
            let (strategy, cluster) = (strategy.clone(), cluster(&format!("c{number}")));
            tokio::spawn(async move {
                strategy
                    .credential(&request("alice", &cluster))
                    .await
                    .expect("a token")
            })
        })
        .collect();
    // The one who began the call goes away.
    tokio::time::sleep(Duration::from_millis(30)).await;
    callers[0].abort();

    for caller in callers.into_iter().skip(1) {
        assert_eq!(sent(&caller.await.expect("no panic")), "token-1");
    }
    assert_eq!(
        strategy.access_token().await.expect("a token"),
        Secret::new("canary-token-1")
    );
    assert_eq!(google.asked().len(), 1);
}

#[tokio::test]
async fn all_who_wait_for_a_call_that_fails_share_the_failure() {
    let (google, clock) = (Google::start().await, clock());
    google.slow(100);
    google.next(503, "canary");
    let strategy = configured(&key_file(&google), &clock);
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let strategy = strategy.clone();
            tokio::spawn(async move { refusal(&strategy).await.0 })
        })
        .collect();

    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), ErrorKind::Unavailable);
    }
    assert_eq!(google.asked().len(), 1);
}

#[tokio::test]
async fn old_token_is_used_while_a_new_one_cannot_be_had_and_then_replaced() {
    let (google, clock) = (Google::start().await, clock());
    let strategy = configured(&key_file(&google), &clock);
    let first = get(&strategy).await;
    let renewed_at = first.refresh_at().expect("it is renewed ahead").as_second();
    assert_eq!(renewed_at, NOW + 3600 - 720);

    clock.advance_seconds(3600 - 721);
    assert_eq!(get(&strategy).await.generation(), first.generation());
    assert_eq!(google.asked().len(), 1);
    clock.advance_seconds(1);
    google.next(500, "canary");
    let kept = get(&strategy).await;
    assert_eq!((sent(&kept), google.asked().len()), ("token-1".to_owned(), 1));
    assert_eq!(kept.refresh_at(), Some(at(renewed_at + 5)));
    assert_eq!(
        (sent(&get(&strategy).await), google.asked().len()),
        ("token-1".to_owned(), 0)
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    let second = get(&strategy).await;
    assert_eq!((sent(&second), google.asked().len()), ("token-2".to_owned(), 1));
    assert_eq!(second.expires_at(), Some(at(renewed_at + 3600)));
}

#[tokio::test]
async fn expired_token_is_never_used_though_no_new_one_comes() {
    let (google, clock) = (Google::start().await, clock());
    let strategy = configured(&key_file(&google), &clock);
    get(&strategy).await;
    clock.advance_seconds(3590);
    google.next(500, "canary");

    let (kind, text) = refusal(&strategy).await;

    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(
        text.ends_with(&format!("{} answers 500 Internal Server Error", google.host())),
        "{text}"
    );
}

#[tokio::test]
async fn token_that_a_cluster_refuses_is_asked_for_anew_once() {
    let (google, clock) = (Google::start().await, clock());
    let strategy = configured(&key_file(&google), &clock);
    let requests = [request("alice", &cluster("a")), request("alice", &cluster("b"))];
    let refused = strategy.credential(&requests[0]).await.expect("a credential");

    for request in &requests {
        assert!(strategy.invalidate(request, &refused).await);
        let new = strategy.credential(request).await.expect("a credential");
        assert_eq!(sent(&new), "token-2");
    }
    assert_eq!(google.asked().len(), 2);
}

#[tokio::test]
async fn refusal_of_google_names_account_host_status_and_code_and_what_to_do() {
    const UNABLE: &str = "Unable to obtain access token for Google Cloud authentication. Check your credentials configuration.";
    let (google, clock) = (Google::start().await, clock());
    let host = google.host();
    let source = format!("{UNABLE} {EMAIL}, the account of kubernetes.googleServiceAccountCredentials:");
    for (status, body, kind, expected) in [
        (
            400,
            r#"{"error":"invalid_grant","error_description":"canary"}"#,
            ErrorKind::ConfigInvalid,
            format!(
                "{host} answers 400 invalid_grant: the key or login was withdrawn, or this machine's clock is wrong"
            ),
        ),
        (
            400,
            r#"{"error":"canary"}"#,
            ErrorKind::ConfigInvalid,
            format!("{host} answers 400 Bad Request"),
        ),
        (
            403,
            "canary",
            ErrorKind::ConfigInvalid,
            format!("{host} answers 403 Forbidden"),
        ),
        (
            429,
            "canary",
            ErrorKind::Unavailable,
            format!("{host} answers 429 Too Many Requests"),
        ),
        (
            302,
            "canary",
            ErrorKind::Unavailable,
            format!("{host} answers 302 Found"),
        ),
        (
            200,
            "canary",
            ErrorKind::Unavailable,
            format!("the answer of {host} is no access token"),
        ),
        (
            200,
            "{}",
            ErrorKind::Unavailable,
            format!("the answer of {host} is no access token"),
        ),
    ] {
        google.next(status, body);

        let found = refusal(&configured(&key_file(&google), &clock)).await;

        assert_eq!(found, (kind, format!("{source} {expected}")), "{body}");
    }
}

#[tokio::test]
async fn answer_that_is_no_token_never_becomes_one() {
    let (google, clock) = (Google::start().await, clock());
    let long = "a".repeat(16 * 1024 + 1);
    for answer in [
        json!({ "access_token": "a b", "expires_in": 3600 }),
        json!({ "access_token": "a\r\nImpersonate-User: root", "expires_in": 3600 }),
        json!({ "access_token": "", "expires_in": 3600 }),
        json!({ "access_token": 1, "expires_in": 3600 }),
        json!({ "access_token": long, "expires_in": 3600 }),
        json!({ "access_token": "a" }),
        json!({ "access_token": "a", "expires_in": 0 }),
        json!({ "access_token": "a", "expires_in": -1 }),
        json!({ "access_token": "a", "expires_in": "soon" }),
        json!({ "access_token": "a", "expires_in": 3600, "token_type": "mac" }),
        json!(["a"]),
    ] {
        google.next(200, answer.to_string());

        let (kind, text) = refusal(&configured(&key_file(&google), &clock)).await;

        assert_eq!(kind, ErrorKind::Unavailable, "{answer}");
        assert!(text.ends_with("is no access token"), "{text}");
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::TempDir::new().expect("a folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("credentials.json")
    }

    fn write(&self, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(), content).expect("written");
        self.path()
    }
}

fn from_file(path: &Path, clock: &ManualClock) -> GoogleServiceAccountProvider {
    strategy(GoogleCredentials::File(path.to_owned()), &[], clock)
}

#[tokio::test]
async fn new_key_file_is_in_force_within_a_minute_and_a_broken_one_never() {
    let (google, clock, folder) = (Google::start().await, clock(), Folder::new());
    let strategy = from_file(&folder.write(key_file(&google).to_string()), &clock);
    let first = get(&strategy).await;
    assert_eq!(first.refresh_at(), Some(at(NOW + 60)));

    folder.write("{ broken");
    assert_eq!(get(&strategy).await.generation(), first.generation());
    fs::remove_file(folder.path()).expect("removed");
    assert_eq!(get(&strategy).await.generation(), first.generation());
    let mut other = key_file(&google);
    other["private_key_id"] = "key-2".into();
    folder.write(other.to_string());
    assert_eq!(sent(&get(&strategy).await), "token-2");
    let asked = google.asked();
    let header = asked[1].field("assertion");
    assert_eq!(
        decoded(header.split('.').next().expect("a header"))["kid"],
        "key-2"
    );
}

#[tokio::test]
async fn token_of_the_account_before_is_used_for_its_new_key_alone() {
    let (google, clock, folder) = (Google::start().await, clock(), Folder::new());
    let strategy = from_file(&folder.write(key_file(&google).to_string()), &clock);
    get(&strategy).await;

    // A new key of the account takes a while to be known everywhere.
    let mut new_key = key_file(&google);
    new_key["private_key_id"] = "key-2".into();
    folder.write(new_key.to_string());
    google.next(400, r#"{"error":"invalid_grant"}"#);
    assert_eq!(sent(&get(&strategy).await), "token-1");

    let mut other_account = key_file(&google);
    other_account["client_email"] = "other@portal.iam.gserviceaccount.com".into();
    folder.write(other_account.to_string());
    google.next(400, r#"{"error":"invalid_grant"}"#);
    assert_eq!(refusal(&strategy).await.0, ErrorKind::ConfigInvalid);
}

#[tokio::test]
async fn file_that_cannot_be_used_is_named_and_not_shown() {
    let (google, clock, folder) = (Google::start().await, clock(), Folder::new());
    let strategy = from_file(&folder.path(), &clock);
    let path = folder.path().display().to_string();

    let (kind, text) = refusal(&strategy).await;
    assert_eq!(kind, ErrorKind::ConfigInvalid);
    assert!(
        text.contains(&format!("cannot read {path}: No such file or directory")),
        "{text}"
    );
    for (content, why) in [
        ("canary".to_owned(), "expected value at line 1 column 1"),
        (" ".repeat(64 * 1024 + 1), "it is larger than 64 KiB"),
    ] {
        folder.write(content);
        let (kind, text) = refusal(&strategy).await;
        assert_eq!(kind, ErrorKind::ConfigInvalid);
        assert!(
            text.ends_with(&format!("{path}: {why}")) && !text.contains("canary"),
            "{text}"
        );
    }
    folder.write(key_file(&google).to_string());
    assert_eq!(sent(&get(&strategy).await), "token-1");
}

#[tokio::test]
async fn places_of_google_s_tools_are_looked_at_in_their_order() {
    let (google, clock, folder) = (Google::start().await, clock(), Folder::new());
    let (host, home) = (google.host(), folder.0.path().display().to_string());
    let gcloud = folder.0.path().join(".config/gcloud");
    fs::create_dir_all(&gcloud).expect("a folder");
    let gcloud = gcloud.join("application_default_credentials.json");
    let named = folder.path().display().to_string();
    let asked_by = async |env: &[(&str, &str)]| {
        get(&strategy(GoogleCredentials::Default, env, &clock)).await;
        let asked = google.asked_once();
        match asked.method.as_str() {
            "GET" => "metadata".to_owned(),
            _ => asked
                .field("grant_type")
                .rsplit(':')
                .next()
                .expect("a grant")
                .to_owned(),
        }
    };
    let env = [("HOME", home.as_str()), ("GCE_METADATA_HOST", host.as_str())];
    let all = [env[0], env[1], ("GOOGLE_APPLICATION_CREDENTIALS", named.as_str())];

    assert_eq!(asked_by(&env).await, "metadata");
    fs::write(&gcloud, login_file(&google).to_string()).expect("written");
    assert_eq!(asked_by(&env).await, "refresh_token");
    folder.write(key_file(&google).to_string());
    assert_eq!(asked_by(&all).await, "jwt-bearer");

    // What is named is meant: nothing else stands in for it.
    fs::remove_file(folder.path()).expect("removed");
    let (kind, text) = refusal(&strategy(GoogleCredentials::Default, &all, &clock)).await;
    assert_eq!(kind, ErrorKind::ConfigInvalid);
    assert!(
        text.contains(&format!("GOOGLE_APPLICATION_CREDENTIALS: cannot read {named}")),
        "{text}"
    );
    fs::write(&gcloud, "{}").expect("written");
    let (_, text) = refusal(&strategy(GoogleCredentials::Default, &env, &clock)).await;
    assert!(
        text.ends_with("The incoming JSON object does not contain a client_email field"),
        "{text}"
    );
    assert_eq!(google.asked().len(), 0);
}

#[tokio::test]
async fn without_any_credentials_each_place_is_named() {
    let clock = clock();
    let env = [("HOME", "/nonexistent"), ("GCE_METADATA_HOST", "127.0.0.1:1")];

    let (kind, text) = refusal(&strategy(GoogleCredentials::Default, &env, &clock)).await;

    assert_eq!(kind, ErrorKind::Unavailable);
    assert_eq!(
        text,
        "Unable to obtain access token for Google Cloud authentication. Check your credentials configuration. \
         GOOGLE_APPLICATION_CREDENTIALS is not set; \
         /nonexistent/.config/gcloud/application_default_credentials.json is not there; the metadata server: \
         cannot reach 127.0.0.1:1: no address of it accepts a connection"
    );
}

#[tokio::test]
async fn metadata_server_is_never_asked_beyond_this_machine_and_its_link() {
    let clock = clock();
    for host in [
        "10.0.0.1",
        "metadata.example.com",
        "user@127.0.0.1",
        "127.0.0.1/path?",
        "[",
    ] {
        let env = [("GCE_METADATA_HOST", host)];

        let (kind, _) = refusal(&strategy(GoogleCredentials::Default, &env, &clock)).await;

        assert_eq!(kind, ErrorKind::ConfigInvalid, "{host}");
    }
}
