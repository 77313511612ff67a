use std::sync::LazyLock;

use kube_authn_core::{Principal, StrategyOptions, rustls::crypto::aws_lc_rs, serde_json, serde_json::json};

use super::*;
use crate::test_support::cluster;

static KEY: LazyLock<String> = LazyLock::new(|| {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)
        .expect("a key")
        .serialize_pem()
});

fn key_file() -> serde_json::Value {
    json!({
        "type": "service_account",
        "project_id": "portal",
        "private_key_id": "k1",
        "private_key": *KEY,
        "client_email": "portal@portal.iam.gserviceaccount.com",
        "client_id": "1",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": "https://oauth2.googleapis.com/token",
    })
}

fn with(base: &serde_json::Value, field: &str, value: serde_json::Value) -> String {
    let mut changed = base.clone();
    changed[field] = value;
    changed.to_string()
}

fn without(base: &serde_json::Value, field: &str) -> String {
    let mut changed = base.clone();
    changed.as_object_mut().expect("an object").remove(field);
    changed.to_string()
}

fn no_environment(_: &str) -> Option<String> {
    None
}

fn provider(text: impl Into<Vec<u8>>) -> GoogleServiceAccountProvider {
    let credentials = GoogleCredentials::Json(Secret::new(text));
    let crypto = Arc::new(aws_lc_rs::default_provider());
    GoogleServiceAccountProvider::new(credentials, crypto, &no_environment)
}

fn problems(text: impl Into<Vec<u8>>) -> Vec<String> {
    let cluster = cluster(GoogleServiceAccountProvider::NAME)
        .build()
        .expect("a cluster");
    let problems = provider(text).validate(&cluster);
    problems.into_iter().map(|problem| problem.message).collect()
}

fn parsing(why: &str) -> Vec<String> {
    vec![format!(
        "Failed to parse Google Service Account credentials from config: {why}"
    )]
}

#[test]
fn key_file_of_google_is_taken() {
    for text in [
        key_file().to_string(),
        without(&key_file(), "type"),
        without(&key_file(), "token_uri"),
        with(&key_file(), "token_uri", json!("http://127.0.0.1:1/token")),
        with(&key_file(), "token_uri", json!("http://[::1]:1/token")),
    ] {
        assert_eq!(problems(text), Vec::<String>::new());
    }
}

#[test]
fn broken_credentials_are_refused_in_backstage_s_words_and_show_nothing_of_themselves() {
    let key = key_file();
    let missing = "The incoming JSON object does not contain a client_email field".to_owned();
    for (text, expected) in [
        (
            "{\"canary".to_owned(),
            parsing("EOF while parsing a string at line 1 column 8"),
        ),
        ("canary".to_owned(), parsing("expected value at line 1 column 1")),
        ("[\"canary\"]".to_owned(), parsing("expected a JSON object")),
        ("\"canary\"".to_owned(), parsing("expected a JSON object")),
        ("{}".to_owned(), vec![missing.clone()]),
        (without(&key, "client_email"), vec![missing.clone()]),
        (with(&key, "client_email", json!("")), vec![missing]),
        (
            with(&key, "client_email", json!(["canary"])),
            parsing("the field client_email has the wrong type"),
        ),
        (
            without(&key, "private_key"),
            parsing("The incoming JSON object does not contain a private_key field"),
        ),
        (
            with(&key, "private_key", json!("canary")),
            parsing("the field private_key holds no RSA key in PEM"),
        ),
        (
            with(&key, "type", json!("canary")),
            parsing(
                "unknown type: expected service_account, authorized_user, external_account or \
                 impersonated_service_account",
            ),
        ),
        (
            with(&key, "type", json!({ "canary": 1 })),
            parsing("the field type has the wrong type"),
        ),
        (
            with(
                &json!({ "type": "authorized_user" }),
                "client_id",
                json!("canary"),
            ),
            parsing("The incoming JSON object does not contain a client_secret field"),
        ),
        (" ".repeat(64 * 1024 + 1), parsing("larger than 64 KiB")),
        (
            "[".repeat(60_000),
            parsing("recursion limit exceeded at line 1 column 128"),
        ),
    ] {
        let found = problems(text.clone());

        assert_eq!(found, expected, "{}", text.get(..80).unwrap_or(&text));
        assert!(!format!("{found:?} {:?}", provider(text)).contains("canary"));
    }
}

#[test]
fn elliptic_key_is_refused() {
    let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();

    assert_eq!(
        problems(with(&key_file(), "private_key", key.into())),
        parsing("the field private_key holds no RSA key in PEM")
    );
}

#[test]
fn assertion_never_travels_over_http_beyond_loopback() {
    for url in [
        "http://oauth2.example.com/token",
        "http://127.0.0.1.example.com/",
        "http://169.254.169.254/",
        "https://user:canary@oauth2.example.com/",
        "file:///etc/passwd",
        "canary",
        "https://",
    ] {
        let found = problems(with(&key_file(), "token_uri", url.into()));

        let why = "the field token_uri holds no URL with https (http on loopback only)";
        assert_eq!(found, parsing(why), "{url}");
    }
}

#[test]
fn cluster_s_own_block_is_checked_as_a_whole() {
    let check = |block: serde_json::Value| {
        let block = json!({ "googleServiceAccount": block });
        let options = StrategyOptions::new(block.as_object().expect("an object").clone());
        let cluster = cluster(GoogleServiceAccountProvider::NAME).options(options);
        let problems = provider(key_file().to_string()).validate(&cluster.build().expect("a cluster"));
        problems
            .into_iter()
            .map(|problem| problem.key)
            .collect::<Vec<_>>()
    };
    let impersonate = "kubeAuthn.googleServiceAccount.impersonate";

    assert_eq!(check(json!(null)), Vec::<String>::new());
    assert_eq!(check(json!({ "impersonate": null })), Vec::<String>::new());
    assert_eq!(check(json!(1)), ["kubeAuthn.googleServiceAccount"]);
    for account in [
        json!(1),
        json!("a"),
        json!("@b.c"),
        json!("a@b.c/../x"),
        json!("a@b.c@d.e"),
        json!("ä@b.c"),
    ] {
        assert_eq!(
            check(json!({ "impersonate": account })),
            [impersonate],
            "{account}"
        );
    }
    assert_eq!(
        check(json!({ "impersonate": "", "scopes": [] })),
        ["kubeAuthn.googleServiceAccount.scopes", impersonate]
    );
}

#[test]
fn account_is_impersonated_only_where_the_feature_is_there() {
    let cluster = cluster(GoogleServiceAccountProvider::NAME)
        .build()
        .expect("a cluster");
    let check = |account| {
        let provider = provider(key_file().to_string()).with_impersonation(account);
        let problems = provider.validate(&cluster).into_iter();
        problems.map(|problem| problem.message).collect::<Vec<_>>()
    };
    let place = "kubeAuthn.strategies.googleServiceAccount.impersonate";

    let found = check("sa@portal.iam.gserviceaccount.com");
    match cfg!(feature = "google-federation") {
        true => assert_eq!(found, Vec::<String>::new()),
        false => assert_eq!(
            found,
            [format!(
                "{place}: impersonation is not in this build: enable the feature google-federation"
            )]
        ),
    }
    assert_eq!(
        check("sa@"),
        [format!(
            "{place}: expected the e-mail address of a service account, sa@project.iam.gserviceaccount.com"
        )]
    );
}

#[tokio::test]
async fn credentials_that_cannot_be_parsed_give_nobody_a_token() {
    let cluster = cluster(GoogleServiceAccountProvider::NAME)
        .build()
        .expect("a cluster");
    let request = CredentialRequest::new(Principal::anonymous(), cluster);

    let error = provider("canary")
        .credential(&request)
        .await
        .expect_err("refused");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(
        vec![error.to_string()],
        parsing("expected value at line 1 column 1")
    );
}

#[cfg(feature = "google-federation")]
mod federation {
    use super::*;

    fn external() -> serde_json::Value {
        json!({
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": "https://sts.googleapis.com/v1/token",
            "credential_source": { "file": "/var/run/token" },
        })
    }

    #[test]
    fn files_and_urls_are_places_of_a_subject_token() {
        for source in [
            json!({ "file": "/var/run/token" }),
            json!({ "file": "t", "format": { "type": "json", "subject_token_field_name": "id_token" } }),
            json!({ "url": "http://169.254.169.254/metadata/identity", "headers": { "Metadata": "True" } }),
            json!({ "url": "https://issuer.example.com/token" }),
        ] {
            let found = problems(with(&external(), "credential_source", source.clone()));
            assert_eq!(found, Vec::<String>::new(), "{source}");
        }
    }

    #[test]
    fn subject_token_comes_from_no_other_place() {
        for (source, why) in [
            (
                json!({}),
                "credential_source needs one of file, url and executable",
            ),
            (
                json!({ "file": "a", "url": "https://b" }),
                "credential_source needs one of file, url and executable",
            ),
            (json!("canary"), "expected a JSON object"),
            (
                json!({ "executable": { "command": "canary" }, "file": "a" }),
                "credential_source needs one of file, url and executable",
            ),
            (
                json!({ "executable": { "command": "/canary", "timeout_millis": 4999 } }),
                "timeout_millis must be 5000 to 120000",
            ),
            (
                json!({ "executable": { "command": "/canary 'open" } }),
                "the field executable.command has the wrong type",
            ),
            (
                json!({ "executable": {} }),
                "The incoming JSON object does not contain a command field",
            ),
            (
                json!({ "environment_id": "aws1" }),
                "this credential_source is not supported: use a file, a URL or an executable",
            ),
            (
                json!({ "url": "http://10.0.0.1/canary" }),
                "the field credential_source.url holds no URL with https (http on loopback only)",
            ),
            (
                json!({ "url": "https://b", "headers": { "a": "canary\n" } }),
                "the field credential_source.headers has the wrong type",
            ),
            (
                json!({ "file": "a", "format": { "type": "json" } }),
                "The incoming JSON object does not contain a subject_token_field_name field",
            ),
            (
                json!({ "file": "a", "format": { "type": "canary" } }),
                "the field format.type has the wrong type",
            ),
        ] {
            let found = problems(with(&external(), "credential_source", source.clone()));
            assert_eq!(found, parsing(why), "{source}");
        }
    }

    #[test]
    fn impersonated_accounts_are_not_nested_without_end() {
        let mut file = key_file();
        for _ in 0..20 {
            file = json!({
                "type": "impersonated_service_account",
                "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/x:generateAccessToken",
                "source_credentials": file,
            });
        }

        assert_eq!(
            problems(file.to_string()),
            parsing("source_credentials are nested too deeply")
        );
        assert_eq!(problems(file["source_credentials"].to_string()).len(), 1);
    }
}
