//! Sources of credentials that no other test reaches: IAM Identity Center (SSO), and the container endpoint as ECS uses it.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    cluster, config, parameter,
    programs::Portal,
    signer,
    stand_in::{Mood, StandIn},
};

/// A home with this profile, and this cached login under its file name.
fn home(profile: &str, cached: Option<(&str, &Value)>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join(".aws/sso/cache");
    fs::create_dir_all(&cache).unwrap();
    fs::write(folder.path().join(".aws/config"), profile).unwrap();
    if let Some((identifier, login)) = cached {
        fs::write(cache.join(file_of(identifier)), login.to_string()).unwrap();
    }
    folder
}

/// SHA-1 of the start URL or of the session's name, as the AWS CLI names its files.
fn file_of(identifier: &str) -> &'static str {
    match identifier {
        START_URL => "fb0b4664660fa8e50530e537dd97dd9a500e83d0.json",
        SESSION => "ee0bfd2552fbd840c02cc48b6e823320543c450f.json",
        other => panic!("{other}"),
    }
}

const START_URL: &str = "https://portal.awsapps.example/start";
const SESSION: &str = "corp";

/// A profile with the keys of its own, as the AWS CLI 1 writes it.
const LEGACY: &str = "[default]\nsso_start_url = https://portal.awsapps.example/start\nsso_region = eu-west-1\n\
                      sso_account_id = 111122223333\nsso_role_name = reader\n";

/// A profile with a session, whose login renews itself.
const WITH_SESSION: &str = "[default]\nsso_session = corp\nsso_account_id = 111122223333\nsso_role_name = reader\n\
                            [sso-session corp]\nsso_start_url = https://portal.awsapps.example/start\n\
                            sso_region = eu-west-1\n";

fn login(expires_at: &str) -> Value {
    json!({ "accessToken": "canary-login", "expiresAt": expires_at, "startUrl": START_URL, "region": "eu-west-1" })
}

fn portal(folder: TempDir, aws: &StandIn) -> Portal {
    let environment = [
        ("AWS_ENDPOINT_URL_SSO", aws.url.as_str()),
        ("AWS_ENDPOINT_URL_SSO_OIDC", aws.url.as_str()),
    ];
    Portal::start_in(
        folder,
        &config(&[cluster("prod", "eu-west-1", &json!({}))]),
        &environment,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn login_of_identity_center_is_taken_from_the_cli_s_cache() {
    for (profile, identifier) in [(LEGACY, START_URL), (WITH_SESSION, SESSION)] {
        let aws = StandIn::start().await;
        let folder = home(profile, Some((identifier, &login("2099-01-01T00:00:00Z"))));

        let token = portal(folder, &aws).token("prod");

        let seen = aws.seen();
        assert_eq!(signer(&token), "ASIAreader");
        assert_eq!(
            parameter(&token, "X-Amz-Security-Token"),
            "session%2Fof%2Breader%3D%3D"
        );
        let [call] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(
            (
                call.method.as_str(),
                call.path.as_str(),
                call.headers["x-amz-sso_bearer_token"].as_bytes()
            ),
            ("GET", "/federation/credentials", &b"canary-login"[..])
        );
        assert_eq!(
            call.query.as_deref(),
            Some("role_name=reader&account_id=111122223333")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_that_ends_is_renewed_with_its_refresh_token() {
    let aws = StandIn::start().await;
    let mut cached = login("2020-01-01T00:00:00Z");
    cached["refreshToken"] = "canary-refresh".into();
    cached["clientId"] = "client".into();
    cached["clientSecret"] = "canary-client".into();
    cached["registrationExpiresAt"] = "2099-01-01T00:00:00Z".into();
    let mut portal = portal(home(WITH_SESSION, Some((SESSION, &cached))), &aws);

    let token = portal.token("prod");

    let seen = aws.seen();
    assert_eq!(signer(&token), "ASIAreader");
    assert_eq!(
        (seen[0].method.as_str(), seen[0].path.as_str()),
        ("POST", "/token")
    );
    let asked: Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!(
        asked,
        json!({
            "grantType": "refresh_token", "refreshToken": "canary-refresh", "clientId": "client",
            "clientSecret": "canary-client",
        })
    );
    assert_eq!(seen[1].headers["x-amz-sso_bearer_token"], "renewed-login");
    no_canary(portal.folder());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn login_that_is_over_or_missing_says_how_to_log_in_and_is_found_again_without_a_restart() {
    let aws = StandIn::start().await;
    for cached in [None, Some((SESSION, &login("2020-01-01T00:00:00Z")))] {
        let mut portal = portal(home(WITH_SESSION, cached), &aws);

        let (kind, text) = portal.refusal("prod");

        assert_eq!(kind, "ConfigInvalid", "{text}");
        assert!(
            text.contains("aws sso login") && !text.contains("canary"),
            "{text}"
        );
        assert!(aws.seen().is_empty());

        let file = portal.folder().join(".aws/sso/cache").join(file_of(SESSION));
        fs::write(file, login("2099-01-01T00:00:00Z").to_string()).unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        assert_eq!(signer(&portal.token("prod")), "ASIAreader");
        aws.seen();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn login_that_identity_center_refuses_says_how_to_log_in() {
    let aws = StandIn::start().await;
    aws.mood(Mood::Denying);
    let folder = home(LEGACY, Some((START_URL, &login("2099-01-01T00:00:00Z"))));
    let mut portal = portal(folder, &aws);

    let (kind, text) = portal.refusal("prod");

    assert_eq!(
        (kind.as_str(), text.as_str()),
        (
            "ConfigInvalid",
            "the login at IAM Identity Center does not hold, run `aws sso login` as the user of this service: service error: \
             UnauthorizedException: Session token not found or invalid"
        )
    );
    no_canary(portal.folder());
}

/// As an ECS agent offers it: the address and the authorization stand in the environment, or the latter in a file that is
/// written anew now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_endpoint_gets_the_authorization_of_the_environment_or_of_the_file() {
    let aws = StandIn::start().await;
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];
    let uri = format!("{}/ecs", aws.url);
    let uri = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str());
    let of_value = [uri, ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Basic value")];
    let of_file = [
        uri,
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "~/token"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Basic unused"),
    ];
    let sent = || {
        let seen = aws.seen();
        let sent = seen
            .iter()
            .map(|seen| seen.headers["authorization"].to_str().unwrap());
        sent.map(str::to_owned).collect::<Vec<_>>()
    };

    let token = Portal::start(&config(&clusters), &of_value).token("prod");
    assert_eq!(
        (signer(&token).as_str(), sent()),
        ("ASIAecs", vec!["Basic value".to_owned()])
    );

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), "Basic first").unwrap();
    aws.mood(Mood::Denying);
    let mut portal = Portal::start_in(folder, &config(&clusters), &of_file);
    let (_, text) = portal.refusal("prod");
    assert_eq!(
        text,
        "cannot read AWS credentials: Non-success status from HTTP credential provider: StatusCode(403)"
    );
    fs::write(portal.folder().join("token"), "Basic second").unwrap();
    aws.mood(Mood::Fine);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(signer(&portal.token("prod")), "ASIAecs");

    let sent = sent();
    assert_eq!(
        (sent.first().unwrap().as_str(), sent.last().unwrap().as_str()),
        ("Basic first", "Basic second")
    );
}

/// Plain http leaves this machine for the addresses of the container services alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_endpoint_elsewhere_never_gets_the_authorization() {
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];
    let environment = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/ecs"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "canary"),
    ];

    let (kind, text) = Portal::start(&config(&clusters), &environment).refusal("prod");

    assert_eq!(kind, "ConfigInvalid", "{text}");
    assert!(text.contains("192.0.2.1") && !text.contains("canary"), "{text}");
}

fn no_canary(folder: &Path) {
    let log = fs::read_to_string(folder.join("log")).unwrap();
    assert!(!log.contains("canary"), "{log}");
}
