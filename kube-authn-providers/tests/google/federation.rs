//! Accounts of other issuers, and accounts that are spoken for.

use kube_authn_core::StrategyOptions;
use url::Url;

use super::*;

pub(super) fn external(google: &Google, source: Value) -> Value {
    json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": google.url("/sts"),
        "credential_source": source,
    })
}

fn generate(account: &str) -> String {
    format!("/v1/projects/-/serviceAccounts/{account}:generateAccessToken")
}

#[tokio::test]
async fn federated_account_keeps_the_contract() {
    let (google, clock, folder) = (Google::start().await, clock(), Folder::new());
    let file = external(&google, json!({ "file": folder.write("canary-subject\n") }));

    keeps_the_contract(configured(&file, &clock), &clock, &["canary-subject"]).await;
}

#[tokio::test]
async fn token_of_another_issuer_is_exchanged_and_read_anew_each_time() {
    let (google, clock, folder) = (Google::start().await, clock(), Folder::new());
    let file = external(&google, json!({ "file": folder.write("canary-subject\n") }));
    let strategy = configured(&file, &clock);

    get(&strategy).await;
    folder.write("canary-rotated");
    clock.advance_seconds(3600);
    get(&strategy).await;

    let asked = google.asked();
    let expected = [
        ("audience", file["audience"].as_str().expect("text")),
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        (
            "requested_token_type",
            "urn:ietf:params:oauth:token-type:access_token",
        ),
        ("scope", BOTH_SCOPES),
        ("subject_token", "canary-subject"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
    ];
    assert_eq!(
        asked[0].form(),
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    assert_eq!(asked[0].header("authorization"), None);
    assert_eq!(asked[1].field("subject_token"), "canary-rotated");
}

#[tokio::test]
async fn subject_token_comes_from_a_url_with_its_headers_and_client_authentication_is_basic() {
    let (google, clock) = (Google::start().await, clock());
    let mut file = external(
        &google,
        json!({
            "url": google.url("/subject?api-version=1"),
            "headers": { "Metadata": "True" },
            "format": { "type": "json", "subject_token_field_name": "id_token" },
        }),
    );
    file["client_id"] = "client".into();
    file["client_secret"] = "canary?>".into();
    file["workforce_pool_user_project"] = "project".into();

    get(&configured(&file, &clock)).await;

    let asked = google.asked();
    assert_eq!(
        (asked[0].method.as_str(), asked[0].path.as_str()),
        ("GET", "/subject")
    );
    assert_eq!(asked[0].query, [("api-version".to_owned(), "1".to_owned())]);
    assert_eq!(asked[0].header("metadata"), Some("True"));
    assert_eq!(asked[1].field("subject_token"), "canary-subject");
    assert_eq!(
        asked[1].header("authorization"),
        Some("Basic Y2xpZW50OmNhbmFyeT8+")
    );
    assert!(asked[1].form().iter().all(|(name, _)| name != "options"));

    file.as_object_mut().expect("an object").remove("client_id");
    get(&configured(&file, &clock)).await;
    assert_eq!(google.asked()[1].field("options"), r#"{"userProject":"project"}"#);
}

#[tokio::test]
async fn federated_account_speaks_for_the_one_its_file_names() {
    let (google, clock, folder) = (Google::start().await, clock(), Folder::new());
    let mut file = external(&google, json!({ "file": folder.write("canary-subject") }));
    file["service_account_impersonation_url"] = google.url(&generate("sa@p.iam")).into();
    file["service_account_impersonation"] = json!({ "token_lifetime_seconds": 2800 });

    let credential = get(&configured(&file, &clock)).await;

    assert_eq!(sent(&credential), "token-2");
    assert_eq!(credential.expires_at(), Some(at(NOW + 3600)));
    let asked = google.asked();
    assert_eq!(asked[0].field("scope"), "https://www.googleapis.com/auth/iam");
    assert_eq!(
        (asked[1].method.as_str(), asked[1].path.as_str()),
        ("POST", generate("sa@p.iam").as_str())
    );
    assert_eq!(asked[1].header("authorization"), Some("Bearer canary-token-1"));
    assert_eq!(
        serde_json::from_slice::<Value>(&asked[1].body).expect("JSON"),
        json!({ "delegates": [], "scope": BOTH_SCOPES.split(' ').collect::<Vec<_>>(), "lifetime": "2800s" })
    );
}

#[tokio::test]
async fn file_of_an_impersonated_account_asks_by_its_source() {
    let (google, clock) = (Google::start().await, clock());
    let file = json!({
        "type": "impersonated_service_account",
        "service_account_impersonation_url": google.url(&generate("sa@p.iam")),
        "delegates": ["between@p.iam"],
        "source_credentials": login_file(&google),
    });

    get(&configured(&file, &clock)).await;

    let asked = google.asked();
    assert!(
        asked[0].form().iter().all(|(name, _)| name != "scope"),
        "the login has its own scopes"
    );
    assert_eq!(
        serde_json::from_slice::<Value>(&asked[1].body).expect("JSON")["delegates"],
        json!(["between@p.iam"])
    );
}

fn impersonating(name: &str, account: Option<&str>) -> ClusterDetails {
    let block = json!({ "googleServiceAccount": { "impersonate": account } });
    let options = StrategyOptions::new(block.as_object().expect("an object").clone());
    builder(name).options(options).build().expect("a cluster")
}

#[tokio::test]
async fn each_cluster_gets_the_account_it_names_by_one_token_of_our_own() {
    let (google, clock) = (Google::start().await, clock());
    let iam = Url::parse(&google.url("/")).expect("a URL");
    let strategy = configured(&key_file(&google), &clock)
        .with_impersonation("all@portal.iam.gserviceaccount.com")
        .with_iam_credentials_url(&iam);
    let credential = async |cluster: ClusterDetails| {
        let credential = strategy.credential(&request("alice", &cluster)).await;
        sent(&credential.expect("a credential"))
    };

    let one = "one@portal.iam.gserviceaccount.com";
    assert_eq!(credential(impersonating("a", Some(one))).await, "token-2");
    assert_eq!(credential(impersonating("b", None)).await, "token-3");
    assert_eq!(credential(impersonating("c", Some(one))).await, "token-2");
    assert_eq!(
        strategy.access_token().await.expect("a token"),
        Secret::new("canary-token-3")
    );

    let paths: Vec<_> = google.asked().into_iter().map(|asked| asked.path).collect();
    let expected = [
        "/token",
        &generate(one),
        &generate("all@portal.iam.gserviceaccount.com"),
    ];
    assert_eq!(paths, expected);
}

#[tokio::test]
async fn account_that_may_not_be_impersonated_says_which_role_is_missing() {
    let (google, clock) = (Google::start().await, clock());
    let iam = Url::parse(&google.url("/")).expect("a URL");
    let strategy = configured(&key_file(&google), &clock).with_iam_credentials_url(&iam);
    let cluster = impersonating("prod", Some("sa@portal.iam.gserviceaccount.com"));
    get(&strategy).await;
    google.next(200, r#"{"access_token":"canary-own","expires_in":3600}"#);
    google.next(
        403,
        r#"{"error":{"code":403,"message":"canary","status":"PERMISSION_DENIED"}}"#,
    );

    let error = strategy
        .credential(&request("alice", &cluster))
        .await
        .expect_err("refused");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    let text = error.to_string();
    let end = format!(
        "{} answers 403 PERMISSION_DENIED: grant the caller roles/iam.serviceAccountTokenCreator on the impersonated \
         account",
        google.host()
    );
    assert!(text.ends_with(&end) && !text.contains("canary"), "{text}");
}

#[tokio::test]
async fn subject_token_that_is_not_there_is_named_by_its_place() {
    let (google, clock, folder) = (Google::start().await, clock(), Folder::new());
    let path = folder.path();
    let json_source =
        json!({ "file": path, "format": { "type": "json", "subject_token_field_name": "id_token" } });
    for (source, content, expected) in [
        (json!({ "file": path }), " \n", "the subject token is not in "),
        (json_source.clone(), "canary", "the subject token is not in "),
        (
            json_source,
            r#"{"id_token":["canary"]}"#,
            "the subject token is not in ",
        ),
    ] {
        folder.write(content);

        let (kind, text) = refusal(&configured(&external(&google, source), &clock)).await;

        assert_eq!(kind, ErrorKind::Unavailable);
        assert!(text.ends_with(&format!("{expected}{}", path.display())), "{text}");
    }
    assert_eq!(google.asked().len(), 0);
}

#[tokio::test]
async fn account_without_a_token_of_our_own_says_once_why_there_is_none() {
    let (google, clock) = (Google::start().await, clock());
    let strategy = configured(&key_file(&google), &clock);
    let cluster = impersonating("prod", Some("sa@portal.iam.gserviceaccount.com"));
    google.next(400, r#"{"error":"invalid_grant"}"#);

    let error = strategy
        .credential(&request("alice", &cluster))
        .await
        .expect_err("refused");

    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(text.matches("Unable to obtain access token").count(), 1, "{text}");
    assert!(text.contains("answers 400 invalid_grant"), "{text}");
}
