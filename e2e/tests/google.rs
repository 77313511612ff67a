//! Strategy `googleServiceAccount` beside Google's own library for Python: what both ask of one recording server.
#![allow(clippy::expect_used, reason = "helpers of tests are tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests it"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kube_authn::kube_authn_providers::{GoogleCredentials, GoogleServiceAccountProvider};
use kube_authn_core::AccessTokenSource;
use serde_json::{Value, json};

/// What was asked, as far as both sides have to agree.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Value,
}

/// Google on loopback. Whatever it is asked, the answer has a token.
#[derive(Clone)]
struct Google {
    host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Google {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let google = Self {
            host: listener.local_addr().expect("an address").to_string(),
            asked: Arc::default(),
        };
        let asked = google.asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let asked = asked.clone();
                thread::spawn(move || answer(stream.expect("a connection"), &asked));
            }
        });
        google
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    /// The requests for tokens since the last look: google-auth also asks the metadata server who it is.
    fn asked(&self) -> Vec<Asked> {
        let mut asked = std::mem::take(&mut *self.asked.lock().expect("unpoisoned"));
        asked.retain(|asked| asked.method == "POST" || asked.path.ends_with("/token"));
        asked
    }
}

fn answer(mut stream: TcpStream, asked: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a connection"));
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).expect("a line") == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers: BTreeMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");

    let mut words = lines[0].split(' ').map(str::to_owned);
    let (method, target) = words.next().zip(words.next()).expect("a request line");
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let answer = match path {
        path if path.ends_with(":generateAccessToken") => {
            json!({ "accessToken": "impersonated", "expireTime": "2099-01-01T00:00:00Z" })
        }
        path if path.ends_with("/default/") => {
            json!({ "aliases": ["default"], "email": "default", "scopes": [] })
        }
        _ => json!({ "access_token": "token", "expires_in": 3600, "token_type": "Bearer" }),
    };
    asked.lock().expect("unpoisoned").push(Asked {
        method,
        path: path.to_owned(),
        query: url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect(),
        body: read(headers.get("content-type").map(String::as_str), &body),
        headers: headers
            .into_iter()
            .filter(|(name, _)| COMPARED.contains(&name.as_str()))
            .collect(),
    });
    let answer = answer.to_string();
    let head =
        "HTTP/1.1 200 OK\r\nmetadata-flavor: Google\r\ncontent-type: application/json\r\nconnection: close";
    write!(
        stream,
        "{head}\r\ncontent-length: {}\r\n\r\n{answer}",
        answer.len()
    )
    .expect("written");
}

/// A form as an object, its assertion taken apart and without the times, which differ between two calls.
fn read(content_type: Option<&str>, body: &[u8]) -> Value {
    match content_type {
        Some("application/json") => {
            let mut body: Value = serde_json::from_slice(body).expect("JSON");
            // An empty list is left out by one side and written by the other.
            if body["delegates"] == json!([]) {
                body["delegates"] = Value::Null;
            }
            body
        }
        Some(_) => {
            let fields = url::form_urlencoded::parse(body).into_owned();
            fields
                .map(|(name, value)| match name.as_str() {
                    "assertion" => (name, assertion(&value)),
                    _ => (name, value.into()),
                })
                .collect()
        }
        None => Value::Null,
    }
}

fn assertion(text: &str) -> Value {
    let part = |part: &str| -> Value {
        let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    let mut parts = text.split('.');
    let (header, mut claims) = parts.next().map(part).zip(parts.next().map(part)).expect("a JWS");
    let (from, until) = (claims["iat"].as_i64(), claims["exp"].as_i64());
    claims["exp"] = (until.expect("exp") - from.expect("iat")).into();
    claims["iat"] = 0.into();
    let signature = URL_SAFE_NO_PAD
        .decode(parts.next().expect("a signature"))
        .expect("base64url");
    json!({ "header": header, "claims": claims, "signature bytes": signature.len() })
}

/// Headers that the token depends on; the rest says which library it is.
const COMPARED: [&str; 3] = ["authorization", "content-type", "metadata-flavor"];

/// What google-auth asks for a file, or for the metadata server if there is none; it gets a token.
fn google_auth(google: &Google, file: Option<&Path>) -> Vec<Asked> {
    let python = kube_authn_e2e::python().expect("Python with google-auth");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/google_token.py");
    let output = Command::new(python)
        .arg(script)
        .args(file)
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("GOOGLE", google.url(""))
        .env("GCE_METADATA_HOST", &google.host)
        .env("GCE_METADATA_IP", &google.host)
        .env("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1")
        .output()
        .expect("started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    google.asked()
}

/// What we ask.
async fn ours(google: &Google, credentials: GoogleCredentials) -> Vec<Asked> {
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let env = |name: &str| match name {
        "GCE_METADATA_HOST" => Some(google.host.clone()),
        "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES" => Some("1".to_owned()),
        _ => None,
    };
    let provider =
        GoogleServiceAccountProvider::new(credentials, crypto, &env).with_executables(["/bin/sh".into()]);
    provider.access_token().await.expect("a token");
    google.asked()
}

async fn asks_the_same(google: &Google, file: &Value) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("credentials.json");
    fs::write(&path, file.to_string()).expect("written");

    let theirs = google_auth(google, Some(&path));
    let ours = ours(google, GoogleCredentials::File(path)).await;

    assert!(!theirs.is_empty());
    assert_eq!(ours, theirs);
}

fn login_file(google: &Google) -> Value {
    json!({
        "type": "authorized_user",
        "client_id": "client",
        "client_secret": "secret&=+ ",
        "refresh_token": "1//refresh",
        "token_uri": google.url("/token"),
    })
}

fn external_file(google: &Google, subject: &Path) -> Value {
    json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": google.url("/sts"),
        "client_id": "client",
        "client_secret": "secret?>",
        "credential_source": {
            "file": subject,
            "format": { "type": "json", "subject_token_field_name": "id_token" },
        },
    })
}

fn impersonation_url(google: &Google) -> String {
    google.url("/v1/projects/-/serviceAccounts/sa@portal.iam.gserviceaccount.com:generateAccessToken")
}

#[tokio::test]
async fn key_of_a_service_account_asks_as_google_auth_does() {
    let google = Google::start();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");

    asks_the_same(
        &google,
        &json!({
            "type": "service_account",
            "project_id": "portal",
            "private_key_id": "key-1",
            "private_key": key.serialize_pem(),
            "client_email": "sa@portal.iam.gserviceaccount.com",
            "token_uri": google.url("/token"),
        }),
    )
    .await;
}

#[tokio::test]
async fn login_of_gcloud_asks_as_google_auth_does() {
    let google = Google::start();

    asks_the_same(&google, &login_file(&google)).await;
}

#[tokio::test]
async fn metadata_server_is_asked_as_google_auth_does() {
    let google = Google::start();

    let theirs = google_auth(&google, None);
    let ours = ours(&google, GoogleCredentials::Default).await;

    assert_eq!(theirs.len(), 1);
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn federated_account_asks_as_google_auth_does_with_and_without_impersonation() {
    let google = Google::start();
    let subject = tempfile::NamedTempFile::new().expect("a file");
    fs::write(subject.path(), r#"{"id_token":"subject"}"#).expect("written");
    let mut file = external_file(&google, subject.path());

    asks_the_same(&google, &file).await;
    file["service_account_impersonation_url"] = impersonation_url(&google).into();
    asks_the_same(&google, &file).await;
    file["service_account_impersonation"] = json!({ "token_lifetime_seconds": 2800 });
    asks_the_same(&google, &file).await;
}

#[tokio::test]
async fn impersonated_account_asks_as_google_auth_does() {
    let google = Google::start();

    asks_the_same(
        &google,
        &json!({
            "type": "impersonated_service_account",
            "service_account_impersonation_url": impersonation_url(&google),
            "delegates": ["between@portal.iam.gserviceaccount.com"],
            "source_credentials": login_file(&google),
        }),
    )
    .await;
}

/// The program hands on what it was told, so that the subject tokens tell whether both were told the same. Without
/// impersonation: there google-auth tells the program nothing of the account, other than its own text and AIP-4117 say.
#[tokio::test]
async fn program_of_a_federated_account_is_told_what_google_auth_tells_it() {
    let google = Google::start();
    let script = tempfile::NamedTempFile::new().expect("a file");
    let program = r#"told=$(env | grep ^GOOGLE_EXTERNAL_ACCOUNT_ | grep -v _ALLOW_ | sort | base64 -w0)
echo "{\"version\":1,\"success\":true,\"token_type\":\"urn:ietf:params:oauth:token-type:id_token\",\"id_token\":\"$1 $told\"}""#;
    fs::write(script.path(), program).expect("written");
    let mut file = external_file(&google, script.path());
    let command = format!("/bin/sh {} 'two words'", script.path().display());
    file["credential_source"] = json!({ "executable": { "command": command, "timeout_millis": 5000 } });

    asks_the_same(&google, &file).await;
}
