//! Strategy `azure` against a loopback Entra, loopback managed identity services, and stand-ins for `az` and `azd`.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use kube_authn_core::{
    CaBundle, Clock, ClusterDetails, Credential, CredentialRequest, EntityRef, Error, ErrorKind,
    KubernetesAuthProvider, ManualClock, Principal, ProviderRegistry, Secret, StrategyOptions, SystemClock,
    conformance::provider::{self, ProviderFixture},
    http::{HeaderMap, header},
    jiff::Timestamp,
    rustls,
    serde_json::{Value, json},
};
use kube_authn_providers::{AzureConfig, AzureProvider, AzureSource, ManagedIdentity};
use support::{Answer, Entra, Seen};
use tempfile::TempDir;

#[path = "support/entra.rs"]
mod support;

const AKS: &str = "6dae42f8-4368-4678-94ff-3960e28e3630";

#[tokio::test]
async fn client_secret_is_sent_in_the_form_of_the_grant_and_nowhere_else() {
    let entra = Entra::start(token).await;

    let credential = credential(&provider(&entra, secret(&entra), &[]), &cluster(json!(null))).await;

    let seen = one(entra.take());
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str(), seen.query.len()),
        ("POST", "/home/oauth2/v2.0/token", 0)
    );
    assert_eq!(
        seen.form,
        fields(&[
            ("client_id", "client"),
            ("client_secret", "canary-secret"),
            ("grant_type", "client_credentials"),
            ("scope", &format!("{AKS}/.default")),
        ])
    );
    assert!(!format!("{:?}", seen.headers).contains("canary"));
    assert_eq!(sent(&credential.expect("a token")), "token-1");
}

#[tokio::test]
async fn environment_serves_as_azures_own_libraries_read_it() {
    let entra = Entra::start(token).await;
    let env = [
        ("AZURE_AUTHORITY_HOST", entra.https.as_str()),
        ("AZURE_TENANT_ID", "home"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_CLIENT_SECRET", "canary-secret"),
    ];

    let credential = credential(
        &provider(&entra, AzureConfig::default(), &env),
        &cluster(json!(null)),
    )
    .await;

    assert_eq!(sent(&credential.expect("a token")), "token-1");
    assert_eq!(one(entra.take()).path, "/home/oauth2/v2.0/token");
}

#[tokio::test]
async fn federated_token_is_read_again_for_each_token_and_trimmed() {
    let entra = Entra::start(token).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    fs::write(&file, "first\r\n").expect("written");
    let env = [
        ("AZURE_TENANT_ID", "home"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_FEDERATED_TOKEN_FILE", file.to_str().expect("a path")),
    ];
    let azure = provider(&entra, authority(&entra), &env);

    credential(&azure, &cluster(json!(null))).await.expect("a token");
    fs::write(&file, "second").expect("written");
    credential(&azure, &cluster(json!({ "tenantId": "other" })))
        .await
        .expect("a token");

    let seen = entra.take();
    let assertions: Vec<_> = seen
        .iter()
        .map(|seen| seen.form["client_assertion"].as_str())
        .collect();
    assert_eq!(assertions, ["first", "second"]);
    assert_eq!(
        seen[0].form.keys().collect::<Vec<_>>(),
        [
            "client_assertion",
            "client_assertion_type",
            "client_id",
            "grant_type",
            "scope"
        ]
    );
}

#[tokio::test]
async fn certificate_proves_the_client_and_its_key_never_travels() {
    let entra = Entra::start(token).await;
    let (certificate, key) = support::client_certificate();
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate_file, key_file) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&certificate_file, certificate).expect("written");
    fs::write(&key_file, key).expect("written");
    let mut config = authority(&entra);
    config.tenant_id = Some("home".to_owned());
    config.client_id = Some("client".to_owned());
    config.certificate_file = Some(certificate_file);
    config.certificate_key_file = Some(key_file);

    credential(&provider(&entra, config, &[]), &cluster(json!(null)))
        .await
        .expect("a token");

    let form = one(entra.take()).form;
    assert_eq!(
        form["client_assertion_type"],
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    );
    let parts: Vec<_> = form["client_assertion"].split('.').map(decoded).collect();
    assert_eq!(parts[0]["alg"], "PS256");
    assert_eq!(parts[1]["aud"], format!("{}/home/oauth2/v2.0/token", entra.https));
}

#[tokio::test]
async fn machine_is_asked_for_the_identity_that_was_chosen() {
    let entra = Entra::start(machine_token).await;
    let chosen = [
        (ManagedIdentity::SystemAssigned, None),
        (
            ManagedIdentity::ClientId("c".to_owned()),
            Some(("client_id", "c")),
        ),
        (
            ManagedIdentity::ObjectId("o".to_owned()),
            Some(("object_id", "o")),
        ),
        (
            ManagedIdentity::ResourceId("/r".to_owned()),
            Some(("msi_res_id", "/r")),
        ),
    ];
    for (identity, field) in chosen {
        let mut config = AzureConfig::default();
        config.managed_identity = Some(identity);
        let env = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", entra.http.as_str())];

        credential(&provider(&entra, config, &env), &cluster(json!(null)))
            .await
            .expect("a token");

        let seen = one(entra.take());
        let mut expected = fields(&[("api-version", "2018-02-01"), ("resource", AKS)]);
        expected.extend(field.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(
            (
                seen.method.as_str(),
                seen.path.as_str(),
                seen.headers["metadata"].as_str()
            ),
            ("GET", "/metadata/identity/oauth2/token", "true")
        );
        assert_eq!(seen.query, expected);
    }
}

#[tokio::test]
async fn app_service_gets_its_own_header_and_version() {
    let entra = Entra::start(machine_token).await;
    let endpoint = format!("{}/msi/token", entra.http);
    let env = [
        ("IDENTITY_ENDPOINT", endpoint.as_str()),
        ("IDENTITY_HEADER", "canary-header"),
    ];
    let mut config = AzureConfig::default();
    config.managed_identity = Some(ManagedIdentity::ResourceId("/r".to_owned()));

    credential(&provider(&entra, config, &env), &cluster(json!(null)))
        .await
        .expect("a token");

    let seen = one(entra.take());
    assert_eq!(
        (seen.path.as_str(), seen.headers["x-identity-header"].as_str()),
        ("/msi/token", "canary-header")
    );
    assert_eq!(
        seen.query,
        fields(&[
            ("api-version", "2019-08-01"),
            ("resource", AKS),
            ("mi_res_id", "/r")
        ])
    );
}

#[tokio::test]
async fn every_source_says_why_it_gives_no_token() {
    let entra = Entra::start(|_| Answer::json(404, "")).await;
    let env = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", entra.http.as_str())];

    let error = credential(
        &provider(&entra, AzureConfig::default(), &env),
        &cluster(json!(null)),
    )
    .await
    .expect_err("nothing is set up");

    let host = entra.http.trim_start_matches("http://");
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(
        error.to_string(),
        format!(
            "no source gives an Azure token: environment: neither AZURE_CLIENT_SECRET nor AZURE_CLIENT_CERTIFICATE_PATH is \
             set; workloadIdentity: AZURE_FEDERATED_TOKEN_FILE is not set; managedIdentity: {host} gives no Azure tokens; \
             azureCli: az is not on PATH; azureDeveloperCli: azd is not on PATH"
        )
    );
}

#[tokio::test]
async fn refused_source_is_never_followed_by_another_identity() {
    let entra = Entra::start(|_| refusal(7_000_222)).await;
    let tools = Tools::that(&az_prints("person"));
    let env = [
        ("AZURE_TENANT_ID", "home"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_CLIENT_SECRET", "canary-secret"),
        ("PATH", tools.path()),
    ];

    let error = credential(&provider(&entra, authority(&entra), &env), &cluster(json!(null)))
        .await
        .expect_err("refused");

    let host = entra.https.trim_start_matches("https://");
    assert_eq!(
        error.to_string(),
        format!(
            "no source gives an Azure token: environment: {host} refuses with AADSTS7000222: the client secret has expired: \
             make a new one"
        )
    );
    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(tools.argv(), "");
}

#[tokio::test]
async fn source_that_gave_a_token_is_never_replaced_by_another() {
    let entra = Entra::start(machine_token).await;
    let tools = Tools::that(&az_prints("person"));
    let env = [
        ("AZURE_POD_IDENTITY_AUTHORITY_HOST", entra.http.as_str()),
        ("PATH", tools.path()),
    ];
    let clock = clock();
    let azure = provider_at(&entra, AzureConfig::default(), &env, clock.clone());
    let cluster = cluster(json!(null));
    credential(&azure, &cluster).await.expect("a token");

    entra.answer(|_| Answer::json(400, ""));
    clock.advance_seconds(4000);
    let error = credential(&azure, &cluster)
        .await
        .expect_err("the machine's identity is gone");

    assert!(error.to_string().contains("managedIdentity: "), "{error}");
    assert!(!error.to_string().contains("azureCli"), "{error}");
    assert_eq!(tools.argv(), "");
}

#[tokio::test]
async fn source_works_again_after_a_failed_first_fetch() {
    let entra = Entra::start(|_| Answer::json(503, "")).await;
    let azure = provider(&entra, secret(&entra), &[]);
    let cluster = cluster(json!(null));
    let error = credential(&azure, &cluster).await.expect_err("Entra is down");
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::Unavailable, true)
    );

    entra.answer(token);
    let remembered = credential(&azure, &cluster).await;
    later(Duration::from_secs(2)).await;
    let recovered = credential(&azure, &cluster).await;

    assert!(remembered.is_err(), "a failure is remembered for a second");
    assert_eq!(sent(&recovered.expect("a token")), "token-1");
}

#[tokio::test]
async fn token_is_renewed_ahead_and_kept_while_that_fails() {
    let entra = Entra::start(machine_token).await;
    let mut config = AzureConfig::default();
    config.managed_identity = Some(ManagedIdentity::SystemAssigned);
    let env = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", entra.http.as_str())];
    let clock = clock();
    let azure = provider_at(&entra, config, &env, clock.clone());
    let cluster = cluster(json!(null));
    let first = credential(&azure, &cluster).await.expect("a token");

    clock.advance_seconds(44 * 60);
    let same = credential(&azure, &cluster).await.expect("a token");
    assert_eq!((same.generation(), entra.take().len()), (first.generation(), 1));

    entra.answer(|_| Answer::json(500, ""));
    clock.advance_seconds(2 * 60);
    let kept = credential(&azure, &cluster).await.expect("the old token");
    assert_eq!((kept.generation(), entra.take().len()), (first.generation(), 1));

    clock.advance_seconds(14 * 60);
    credential(&azure, &cluster).await.expect_err("it has ended");

    entra.answer(|_| machine_answer("renewed", 9000));
    later(Duration::from_secs(40)).await;
    let renewed = credential(&azure, &cluster).await.expect("a token");
    assert_eq!(sent(&renewed), "renewed");
}

#[tokio::test]
async fn all_who_wait_get_the_token_of_one_call_and_one_who_leaves_stops_nobody() {
    let entra = Entra::start(|seen| token(seen).after(Duration::from_millis(300))).await;
    let azure = provider(&entra, secret(&entra), &[]);
    let callers: Vec<_> = (0..50)
        .map(|number| {
            let (azure, cluster) = (azure.clone(), named(&format!("cluster-{number}"), json!(null)));
            tokio::spawn(async move { credential(&azure, &cluster).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;

    callers[0].abort();

    for caller in callers.into_iter().skip(1) {
        assert_eq!(sent(&caller.await.expect("a task").expect("a token")), "token-1");
    }
    assert_eq!(entra.take().len(), 1);
}

#[tokio::test]
async fn waiting_callers_share_one_failure() {
    let entra = Entra::start(|_| Answer::json(503, "").after(Duration::from_millis(200))).await;
    let azure = provider(&entra, secret(&entra), &[]);
    let cluster = cluster(json!(null));

    let answers = tokio::join!(
        credential(&azure, &cluster),
        credential(&azure, &cluster),
        credential(&azure, &cluster)
    );

    assert!(answers.0.is_err() && answers.1.is_err() && answers.2.is_err());
    assert_eq!(entra.take().len(), 1);
}

#[tokio::test]
async fn tenants_clients_and_applications_are_never_mixed() {
    let entra = Entra::start(|seen| {
        let name = format!("{}|{}|{}", seen.path, seen.form["client_id"], seen.form["scope"]);
        Answer::json(200, token_body(&URL_SAFE_NO_PAD.encode(name)))
    })
    .await;
    let azure = provider(&entra, secret(&entra), &[]);
    let clusters = [
        (
            json!(null),
            format!("/home/oauth2/v2.0/token|client|{AKS}/.default"),
        ),
        (
            json!({"tenantId": "b"}),
            format!("/b/oauth2/v2.0/token|client|{AKS}/.default"),
        ),
        (
            json!({"clientId": "x"}),
            format!("/home/oauth2/v2.0/token|x|{AKS}/.default"),
        ),
        (
            json!({"serverApplication": "s"}),
            "/home/oauth2/v2.0/token|client|s/.default".to_owned(),
        ),
    ];

    for _ in 0..2 {
        for (block, expected) in &clusters {
            let credential = credential(&azure, &cluster(block.clone()))
                .await
                .expect("a token");

            assert_eq!(sent(&credential), URL_SAFE_NO_PAD.encode(expected));
        }
    }
    assert_eq!(entra.take().len(), clusters.len());
}

#[tokio::test]
async fn machines_token_is_never_given_to_a_cluster_of_another_tenant() {
    let entra = Entra::start(machine_token).await;
    let mut config = AzureConfig::default();
    config.managed_identity = Some(ManagedIdentity::SystemAssigned);
    config.tenant_id = Some("home".to_owned());
    let env = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", entra.http.as_str())];
    let azure = provider(&entra, config, &env);

    let error = credential(&azure, &cluster(json!({"tenantId": "other"})))
        .await
        .expect_err("refused");
    credential(&azure, &cluster(json!({"tenantId": "home"})))
        .await
        .expect("a token");

    assert!(error.to_string().contains("its own tenant alone"), "{error}");
    assert_eq!(entra.take().len(), 1);
}

#[tokio::test]
async fn error_shows_the_code_and_nothing_else_of_the_answer() {
    let entra = Entra::start(|_| refusal(700_016)).await;

    let error = credential(&provider(&entra, secret(&entra), &[]), &cluster(json!(null)))
        .await
        .expect_err("refused");

    let told = everything(&error);
    assert!(told.contains("AADSTS700016"), "{told}");
    assert!(!told.contains("canary"), "{told}");
}

#[tokio::test]
async fn answers_that_are_no_token_are_refused() {
    for body in [
        "",
        "<html>canary</html>",
        "{}",
        r#"{"access_token":"a b","expires_in":3600}"#,
        "[]",
    ] {
        let entra = Entra::start(move |_| Answer::json(200, body)).await;

        let error = credential(&provider(&entra, secret(&entra), &[]), &cluster(json!(null)))
            .await
            .expect_err(body);

        assert_eq!(error.kind(), ErrorKind::Unexpected, "{body}: {error}");
        assert!(!everything(&error).contains("canary"), "{error:?}");
    }
    let entra = Entra::start(|_| Answer::json(200, "x".repeat(2 * 1024 * 1024))).await;
    let error = credential(&provider(&entra, secret(&entra), &[]), &cluster(json!(null))).await;
    assert!(
        error
            .expect_err("too large")
            .to_string()
            .contains("larger than 1 MiB")
    );
}

#[tokio::test]
async fn token_that_has_expired_on_arrival_is_refused_and_names_the_clock() {
    let entra = Entra::start(|_| machine_answer("old", -60)).await;
    let mut config = AzureConfig::default();
    config.managed_identity = Some(ManagedIdentity::SystemAssigned);
    let env = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", entra.http.as_str())];

    let error = credential(&provider(&entra, config, &env), &cluster(json!(null)))
        .await
        .expect_err("expired");

    assert!(
        error.to_string().contains("check this machine's clock"),
        "{error}"
    );
}

#[tokio::test]
async fn az_is_asked_as_azures_own_libraries_ask_it() {
    let entra = Entra::start(token).await;
    let tools = Tools::that(&az_prints("person"));

    let azure = provider(&entra, AzureConfig::default(), &only_tools(&tools));
    let credential = credential(&azure, &cluster(json!({"tenantId": "t"})))
        .await
        .expect("a token");

    assert_eq!(
        tools.argv(),
        format!("account\nget-access-token\n--output\njson\n--resource\n{AKS}\n--tenant\nt\n")
    );
    assert_eq!(sent(&credential), "person");
    assert_eq!(
        credential.expires_at(),
        Timestamp::from_second(4_000_000_000).ok()
    );
}

#[tokio::test]
async fn azd_is_asked_after_az_and_gives_its_own_shape() {
    let entra = Entra::start(token).await;
    let tools = Tools::that(
        r#"case "$0" in *azd) echo '{"token":"developer","expiresOn":"2096-10-02T07:06:40Z"}';; *) echo "AADSTS50173: canary" >&2; exit 1;; esac"#,
    );

    let azure = provider(&entra, AzureConfig::default(), &only_tools(&tools));
    let credential = credential(&azure, &cluster(json!(null))).await.expect("a token");

    assert!(tools.argv().ends_with(&format!(
        "auth\ntoken\n--output\njson\n--no-prompt\n--scope\n{AKS}/.default\n"
    )));
    assert_eq!(sent(&credential), "developer");
    assert_eq!(
        credential.expires_at(),
        Timestamp::from_second(4_000_000_000).ok()
    );
}

#[tokio::test]
async fn az_without_a_login_is_named_with_its_code_and_without_its_words() {
    let entra = Entra::start(token).await;
    let tools = Tools::that(r#"echo "ERROR: AADSTS50173: canary" >&2; exit 1"#);
    let mut config = AzureConfig::default();
    config.sources = Some(vec![AzureSource::AzureCli]);

    let azure = provider(&entra, config, &only_tools(&tools));
    let error = credential(&azure, &cluster(json!(null)))
        .await
        .expect_err("no login");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(
        error.to_string(),
        "no source gives an Azure token: azureCli: az ends with code 1 and AADSTS50173: log in with `az login`"
    );
    assert!(!everything(&error).contains("canary"));
}

#[tokio::test(start_paused = true)]
async fn az_that_hangs_is_ended() {
    let error = az_that("sleep 600").await;

    assert!(error.to_string().contains("it took longer than 13 s"), "{error}");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true));
}

#[tokio::test]
async fn az_that_misbehaves_harms_nothing() {
    for (behaviour, text) in [
        ("head -c 2000000 /dev/zero", "it printed more than 1 MiB"),
        ("echo canary", "printed something that is no token"),
        (
            r#"echo '{"accessToken":"canary"}'"#,
            "printed something that is no token",
        ),
    ] {
        let error = az_that(behaviour).await;

        assert!(error.to_string().contains(text), "{behaviour}: {error}");
        assert_eq!(error.kind(), ErrorKind::Unexpected, "{behaviour}");
        assert!(!everything(&error).contains("canary"), "{behaviour}");
    }
}

async fn az_that(behaves: &str) -> Error {
    let entra = Entra::start(token).await;
    let tools = Tools::that(behaves);
    let mut config = AzureConfig::default();
    config.sources = Some(vec![AzureSource::AzureCli]);
    let azure = provider(&entra, config, &only_tools(&tools));
    credential(&azure, &cluster(json!(null)))
        .await
        .expect_err(behaves)
}

#[test]
fn settings_that_cannot_work_are_found_all_at_once() {
    let mut config = AzureConfig::default();
    config.ca = Some(CaBundle::Pem(Arc::from(&b"none"[..])));
    let azure = AzureProvider::new(config, crypto(), &|_: &str| None);

    let problems = azure.validate(&cluster(json!({"tenantId": "../x", "tenant": 1, "clientId": 7})));

    let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "kubeAuthn.azure.tenant",
            "kubeAuthn.azure.tenantId",
            "kubeAuthn.azure.clientId",
            ""
        ]
    );
}

#[tokio::test]
async fn azure_keeps_the_contract() {
    let entra = Entra::start(token).await;
    let azure = provider(&entra, secret(&entra), &[]);
    let cluster = cluster(json!(null));
    let fixture = ProviderFixture::new(
        azure.clone(),
        request("alice", &cluster),
        request("bob", &cluster),
    )
    .with_canary(Secret::new("canary-secret"))
    .with_canary(Secret::new("token-1"))
    .refusing(
        request("alice", &self::cluster(json!({"tenantId": "a/b"}))),
        ErrorKind::ConfigInvalid,
    )
    .with_unworkable(
        self::cluster(json!({"tenantId": "a/b", "other": 1})),
        &["kubeAuthn.azure.tenantId", "kubeAuthn.azure.other"],
    );

    provider::all(&fixture).await;
    let registered = fixture
        .clone()
        .with_provider(ProviderRegistry::new().with(fixture.provider()));
    provider::all(&registered).await;
    provider::all(&registered.cached()).await;
}

#[tokio::test]
async fn refused_token_is_obtained_anew_unless_it_is_new_itself() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let entra =
        Entra::start(|_| machine_answer(&format!("token-{}", CALLS.fetch_add(1, Ordering::SeqCst)), 3600))
            .await;
    let mut config = AzureConfig::default();
    config.managed_identity = Some(ManagedIdentity::SystemAssigned);
    let env = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", entra.http.as_str())];
    let clock = clock();
    let azure = provider_at(&entra, config, &env, clock.clone());
    let request = request("alice", &cluster(json!(null)));
    let first = azure.credential(&request).await.expect("a token");

    assert!(!azure.invalidate(&request, &first).await);
    clock.advance_seconds(61);
    assert!(azure.invalidate(&request, &first).await);

    let second = azure.credential(&request).await.expect("a token");
    assert_eq!(
        (sent(&first).as_str(), sent(&second).as_str()),
        ("token-0", "token-1")
    );
    assert!(
        azure.invalidate(&request, &first).await,
        "another one is held by now"
    );
}

// ---- what the tests need

/// Links named `az` and `azd` in a folder of their own.
struct Tools(TempDir);

impl Tools {
    fn that(behaviour: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/az");
        for name in ["az", "azd"] {
            std::os::unix::fs::symlink(&script, folder.path().join(name)).expect("a link");
        }
        fs::write(folder.path().join("behaviour"), behaviour).expect("written");
        Self(folder)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().expect("a path")
    }

    fn argv(&self) -> String {
        fs::read_to_string(self.0.path().join("argv")).unwrap_or_default()
    }
}

/// The machine's identity service is another cloud's, so the tools come next.
fn only_tools(tools: &Tools) -> Vec<(&str, &str)> {
    vec![("MSI_ENDPOINT", "http://127.0.0.1:1/"), ("PATH", tools.path())]
}

fn az_prints(token: &str) -> String {
    format!(
        r#"echo '{{"accessToken":"{token}","expiresOn":"2000-01-01 00:00:00.000000","expires_on":4000000000,"tokenType":"Bearer"}}'"#
    )
}

fn crypto() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn authority(entra: &Entra) -> AzureConfig {
    let mut config = AzureConfig::default();
    config.authority_host = Some(entra.https.parse().expect("a URL"));
    config
}

fn secret(entra: &Entra) -> AzureConfig {
    let mut config = authority(entra);
    config.tenant_id = Some("home".to_owned());
    config.client_id = Some("client".to_owned());
    config.client_secret = Some(Secret::new("canary-secret"));
    config
}

fn provider(entra: &Entra, config: AzureConfig, env: &[(&str, &str)]) -> AzureProvider {
    provider_at(entra, config, env, SystemClock)
}

fn provider_at(
    entra: &Entra,
    mut config: AzureConfig,
    env: &[(&str, &str)],
    clock: impl Clock,
) -> AzureProvider {
    config.ca = Some(CaBundle::Pem(entra.ca.as_bytes().into()));
    let variable = |name: &str| {
        let found = env.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    AzureProvider::with_clock(config, crypto(), &variable, clock)
}

/// The instant at which the tests happen that move time.
fn clock() -> ManualClock {
    ManualClock::at(Timestamp::from_second(NOW).expect("an instant"))
}

/// What is measured in intervals is over; what the clock says stays.
async fn later(wait: Duration) {
    tokio::time::pause();
    tokio::time::advance(wait).await;
    tokio::time::resume();
}

fn cluster(block: Value) -> ClusterDetails {
    named("prod", block)
}

fn named(name: &str, block: Value) -> ClusterDetails {
    let block = json!({ "azure": block });
    ClusterDetails::builder(name, "https://prod.example.com")
        .auth_provider(AzureProvider::NAME)
        .options(StrategyOptions::new(
            block.as_object().expect("an object").clone(),
        ))
        .build()
        .expect("a cluster")
}

fn request(name: &str, cluster: &ClusterDetails) -> CredentialRequest {
    let user = EntityRef::parse(&format!("user:default/{name}")).expect("a reference");
    CredentialRequest::new(Principal::user(user), cluster.clone())
}

async fn credential(azure: &AzureProvider, cluster: &ClusterDetails) -> Result<Credential, Error> {
    azure.credential(&request("alice", cluster)).await
}

fn sent(credential: &Credential) -> String {
    let mut headers = HeaderMap::new();
    credential.apply(&mut headers);
    let line = headers[header::AUTHORIZATION].to_str().expect("text");
    line.trim_start_matches("Bearer ").to_owned()
}

fn token(_: &Seen) -> Answer {
    Answer::json(200, token_body("token-1"))
}

fn token_body(token: &str) -> Value {
    json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token})
}

fn machine_token(_: &Seen) -> Answer {
    machine_answer("token-1", 3600)
}

/// Numbers as texts, as the service gives them.
fn machine_answer(token: &str, life: i64) -> Answer {
    let expires_on = match life {
        ..0 => SystemClock.now().as_second() + life,
        _ => NOW + life,
    };
    Answer::json(
        200,
        json!({
            "access_token": token, "expires_on": expires_on.to_string(), "resource": AKS, "token_type": "Bearer",
        }),
    )
}

fn refusal(code: u32) -> Answer {
    let description = format!("AADSTS{code}: canary\r\nTrace ID: \"canary\"");
    let body = json!({"error": "invalid_client", "error_description": description, "error_codes": [code]});
    Answer::json(401, body)
}

fn one(seen: Vec<Seen>) -> Seen {
    assert_eq!(seen.len(), 1, "{seen:?}");
    seen.into_iter().next().expect("one")
}

fn fields(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn decoded(part: &str) -> Value {
    let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64url");
    kube_authn_core::serde_json::from_slice(&bytes).unwrap_or_default()
}

fn everything(error: &Error) -> String {
    let mut told = format!("{error} {error:?}");
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        told.push_str(&format!(" {source} {source:?}"));
        next = source.source();
    }
    told
}

/// In the future, so that machine answers are good for tests that go by the machine's clock too.
const NOW: i64 = 4_000_000_000;
