//! Strategy `aws` as a whole, in a process of its own: its tokens beside those of `aws eks get-token`, before the
//! authenticator's own verifier, and with every source of credentials.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

#[path = "aws/programs.rs"]
mod programs;
#[path = "aws/sources.rs"]
mod sources;
#[path = "aws/stand_in.rs"]
mod stand_in;

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use programs::{AwsCli, Moto, Portal, Verifier};
use serde_json::{Value, json};
use stand_in::{Mood, Seen, StandIn, secret_of};

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", SECRET)];
const ROLE: &str = "arn:aws:iam::111122223333:role/eks";

fn cluster(name: &str, region: &str, rest: &Value) -> Value {
    let mut cluster = json!({
        "name": name,
        "url": format!("https://0A1B.gr7.{region}.eks.amazonaws.com"),
        "authProvider": "aws",
    });
    for (key, value) in rest.as_object().unwrap() {
        cluster[key] = value.clone();
    }
    cluster
}

fn config(clusters: &[Value]) -> Value {
    json!({ "kubernetes": {
        "serviceLocatorMethod": { "type": "multiTenant" },
        "clusterLocatorMethods": [{ "type": "config", "clusters": clusters }],
    } })
}

fn with(mut config: Value, key: &str, block: Value) -> Value {
    config[key] = block;
    config
}

fn url_of(token: &str) -> String {
    let encoded = token.strip_prefix("k8s-aws-v1.").unwrap();
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).unwrap()).unwrap()
}

fn parameter(token: &str, name: &str) -> String {
    let url = url_of(token);
    let value = url
        .split(['?', '&'])
        .find_map(|pair| pair.strip_prefix(&format!("{name}=")));
    value.unwrap_or_default().to_owned()
}

fn host(token: &str) -> String {
    url_of(token).split('/').nth(2).unwrap().to_owned()
}

/// Whose key signed.
fn signer(token: &str) -> String {
    parameter(token, "X-Amz-Credential")
        .split("%2F")
        .next()
        .unwrap()
        .to_owned()
}

/// Whose key signed a call, and for which region.
fn call_signer(seen: &Seen) -> (String, String) {
    let line = seen.headers["authorization"].to_str().unwrap();
    let scope = line.split("Credential=").nth(1).unwrap();
    let mut parts = scope.split('/');
    (parts.next().unwrap().to_owned(), parts.nth(1).unwrap().to_owned())
}

fn assumed(seen: &[Seen]) -> Vec<&str> {
    seen.iter()
        .filter_map(|seen| seen.form.get("RoleArn").map(String::as_str))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_byte_for_byte_those_of_the_aws_cli() {
    let mut cli = AwsCli::start();
    let session = ("AWS_SESSION_TOKEN", "IQoJb3JpZ2luX2VjEHQaCXVz/LWVhc3Q+tMSJH==");
    let fips = ("AWS_USE_FIPS_ENDPOINT", "true");
    let dual = ("AWS_USE_DUALSTACK_ENDPOINT", "true");
    let regions = [
        "us-east-1",
        "us-west-2",
        "eu-west-1",
        "ap-south-2",
        "cn-north-1",
        "cn-northwest-1",
        "us-gov-west-1",
        "us-gov-east-1",
        "us-iso-east-1",
        "us-isob-east-1",
        "eusc-de-east-1",
    ];
    let mut cases = Vec::new();
    for region in regions {
        cases.push((region, vec![], json!({})));
        cases.push((region, vec![session], json!({})));
    }
    cases.push(("us-west-2", vec![fips], json!({ "useFips": true })));
    cases.push(("us-gov-west-1", vec![fips, session], json!({ "useFips": true })));
    cases.push(("eu-west-1", vec![dual], json!({ "useDualStack": true })));
    cases.push(("cn-north-1", vec![dual], json!({ "useDualStack": true })));

    for (region, environment, options) in cases {
        let name = "Production_EU-1";
        let mut ours = options.clone();
        ours["region"] = region.into();
        let clusters = [cluster(
            name,
            "us-east-1",
            &json!({ "kubeAuthn": { "aws": ours } }),
        )];
        // FIPS and dual stack come from the cluster's options here, from the environment there.
        let own: Vec<_> = environment
            .iter()
            .copied()
            .filter(|pair| *pair == session)
            .chain(KEYS)
            .collect();
        let token = Portal::start(&config(&clusters), &own).token(name);

        let mut theirs: serde_json::Map<String, Value> = environment
            .iter()
            .chain(&KEYS)
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect();
        theirs.insert("AWS_STS_REGIONAL_ENDPOINTS".to_owned(), "regional".into());
        let expected = cli.token(&json!({
            "at": parameter(&token, "X-Amz-Date"),
            "arguments": ["--cluster-name", name, "--region", region],
            "environment": theirs,
        }));
        assert_eq!(
            token,
            expected,
            "{region} {options}: {} {}",
            url_of(&token),
            url_of(&expected)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_role_chains_are_byte_for_byte_those_of_the_aws_cli() {
    let moto = Moto::start().await;
    let mut cli = AwsCli::start();
    let accounts = json!({ "accounts": [{ "accountId": "111122223333", "roleName": "portal" }] });
    let first = "arn:aws:iam::111122223333:role/portal";
    for (aws, via) in [(json!({}), vec![]), (accounts, vec![first])] {
        let clusters = [cluster("prod", "eu-west-1", &json!({ "assumeRole": ROLE }))];
        let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", moto.url.as_str())];
        moto.seed().await;
        let token = Portal::start(&with(config(&clusters), "aws", aws), &environment).token("prod");

        moto.seed().await;
        let expected = cli.token(&json!({
            "at": parameter(&token, "X-Amz-Date"),
            "arguments": ["--cluster-name", "prod", "--region", "eu-west-1", "--role-arn", ROLE],
            "environment": {
                "AWS_ACCESS_KEY_ID": ID,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "eu-west-1",
                "AWS_STS_REGIONAL_ENDPOINTS": "regional",
            },
            "sts": moto.url,
            "via": via,
        }));
        assert_eq!(token, expected, "{} {}", url_of(&token), url_of(&expected));
        assert_ne!(signer(&token), ID);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authenticators_verifier_accepts_the_token_for_its_cluster_alone() {
    let mut verifier = Verifier::start();
    for (region, partition) in [
        ("us-east-1", "aws"),
        ("eu-west-1", "aws"),
        ("cn-north-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
        ("us-iso-east-1", "aws-iso"),
        ("us-isob-east-1", "aws-iso-b"),
    ] {
        let ours = json!({ "kubeAuthn": { "aws": { "region": region } } });
        let clusters = [cluster("prod", "us-east-1", &ours)];
        let session = ("AWS_SESSION_TOKEN", "a/b+c==");
        let token = Portal::start(&config(&clusters), &[KEYS[0], KEYS[1], session]).token("prod");

        let (place, key) = ((partition, region), (ID, SECRET));
        assert_eq!(
            verifier.verify(&token, "prod", place, key),
            Ok(ID.to_owned()),
            "{region}"
        );
        let other = verifier.verify(&token, "staging", place, key).unwrap_err();
        assert!(other.contains("SignatureDoesNotMatch"), "{other}");
        let wrong_key = verifier.verify(&token, "prod", place, (ID, "other")).unwrap_err();
        assert!(wrong_key.contains("SignatureDoesNotMatch"), "{wrong_key}");
    }
}

/// A36: what the verifier refuses, so that the accepted ones mean something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tampered_tokens_never_pass_the_verifier() {
    let mut verifier = Verifier::start();
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];
    let token = Portal::start(&config(&clusters), &KEYS).token("prod");
    let url = url_of(&token);
    for tampered in [
        format!("{url}&X-Extra=1"),
        format!("{url}&action=GetCallerIdentity"),
        url.replace("X-Amz-Expires=60", "X-Amz-Expires=900"),
        url.replace("X-Amz-Expires=60", "X-Amz-Expires=901"),
        url.replace("sts.eu-west-1.amazonaws.com", "sts.eu-west-1.evil.example"),
        url.replace("%3Bx-k8s-aws-id", ""),
        url.replace("https://", "http://"),
    ] {
        assert_ne!(tampered, url);
        let token = format!("k8s-aws-v1.{}", URL_SAFE_NO_PAD.encode(&tampered));

        let verdict = verifier.verify(&token, "prod", ("aws", "eu-west-1"), (ID, SECRET));
        assert!(verdict.is_err(), "{tampered}");
    }
}

/// A36: the override is for our own calls; whoever verifies the token would be sent there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_of_sts_in_the_environment_never_gets_into_a_token() {
    let aws = StandIn::start().await;
    let clusters = [cluster("prod", "eu-west-1", &json!({ "assumeRole": ROLE }))];
    for variable in ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"] {
        let token =
            Portal::start(&config(&clusters), &[KEYS[0], KEYS[1], (variable, &aws.url)]).token("prod");

        assert_eq!(host(&token), "sts.eu-west-1.amazonaws.com", "{variable}");
        assert_eq!(assumed(&aws.seen()), [ROLE], "{variable}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn role_is_assumed_in_the_clusters_region_with_its_external_id() {
    let aws = StandIn::start().await;
    let settings = json!({ "assumeRole": ROLE, "externalId": "ext/1" });
    let clusters = [cluster("prod", "eu-west-1", &settings)];
    let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", aws.url.as_str())];

    let token = Portal::start(&config(&clusters), &environment).token("prod");

    let seen = aws.seen();
    assert_eq!(signer(&token), "ASIAeks");
    assert_eq!(
        parameter(&token, "X-Amz-Security-Token"),
        "session%2Fof%2Beks%3D%3D"
    );
    let [call] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(call_signer(call), (ID.to_owned(), "eu-west-1".to_owned()));
    let form: Vec<_> = ["Action", "RoleArn", "ExternalId", "RoleSessionName"]
        .iter()
        .map(|key| call.form[*key].as_str())
        .collect();
    assert_eq!(form, ["AssumeRole", ROLE, "ext/1", "kube-authn"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn account_role_and_cluster_role_form_a_chain() {
    let aws = StandIn::start().await;
    let block = json!({
        "mainAccount": { "accessKeyId": "AKIAMAIN", "secretAccessKey": "s" },
        "accounts": [{ "accountId": "111122223333", "roleName": "portal", "externalId": "e", "region": "us-east-2" }],
        "accountDefaults": { "roleName": "default" },
    });
    let elsewhere = "arn:aws:iam::444455556666:role/eks2";
    let clusters = [
        cluster("listed", "eu-west-1", &json!({ "assumeRole": ROLE })),
        cluster("other", "eu-west-1", &json!({ "assumeRole": elsewhere })),
        cluster("own", "eu-west-1", &json!({})),
    ];
    let environment = [("AWS_ENDPOINT_URL_STS", aws.url.as_str())];
    let mut portal = Portal::start(&with(config(&clusters), "aws", block), &environment);

    assert_eq!(signer(&portal.token("listed")), "ASIAeks");
    let seen = aws.seen();
    assert_eq!(assumed(&seen), ["arn:aws:iam::111122223333:role/portal", ROLE]);
    assert_eq!(
        call_signer(&seen[0]),
        ("AKIAMAIN".to_owned(), "us-east-2".to_owned())
    );
    assert_eq!(seen[0].form["ExternalId"], "e");
    assert_eq!(
        call_signer(&seen[1]),
        ("ASIAportal".to_owned(), "eu-west-1".to_owned())
    );
    assert!(!seen[1].form.contains_key("ExternalId"));

    assert_eq!(signer(&portal.token("other")), "ASIAeks2");
    assert_eq!(
        assumed(&aws.seen()),
        ["arn:aws:iam::444455556666:role/default", elsewhere]
    );
    assert_eq!(signer(&portal.token("own")), "AKIAMAIN");
    assert!(aws.seen().is_empty());
}

/// Backstage's documentation, both blocks; its code refuses the first and forgets the role of the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documented_examples_of_backstage_work() {
    let aws = StandIn::start().await;
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];
    let keys = json!({
        "mainAccount": null,
        "accounts": [{ "accountId": "111122223333", "accessKeyId": "AKIADOC", "secretAccessKey": "s", "region": "eu-west-1" }],
        "accountDefaults": null,
    });
    let role = json!({
        "mainAccount": { "roleName": "portal", "region": "eu-west-1" },
        "accounts": null,
        "accountDefaults": null,
    });
    let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", aws.url.as_str())];

    let token = Portal::start(&with(config(&clusters), "aws", keys), &[]).token("prod");
    assert_eq!(signer(&token), "AKIADOC");

    let token = Portal::start(&with(config(&clusters), "aws", role), &environment).token("prod");
    assert_eq!(signer(&token), "ASIAportal");
    assert_eq!(assumed(&aws.seen()), ["arn:aws:iam::123456789012:role/portal"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_of_many_clusters_assume_a_role_once() {
    let aws = StandIn::start().await;
    aws.mood(Mood::Slow(Duration::from_millis(300)));
    let names: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
    let clusters: Vec<_> = names
        .iter()
        .map(|name| cluster(name, "eu-west-1", &json!({ "assumeRole": ROLE })))
        .collect();
    let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", aws.url.as_str())];
    let mut portal = Portal::start(&config(&clusters), &environment);
    let asked: Vec<&str> = names
        .iter()
        .chain(&names)
        .chain(&names)
        .map(String::as_str)
        .collect();

    let answers = portal.ask(&asked);

    assert!(
        answers.iter().all(|answer| answer["token"].is_string()),
        "{answers:?}"
    );
    assert_eq!(assumed(&aws.seen()), [ROLE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_role_names_the_cause_and_recovers_without_a_restart() {
    let aws = StandIn::start().await;
    let clusters = [
        cluster("prod", "eu-west-1", &json!({ "assumeRole": ROLE })),
        cluster("own", "eu-west-1", &json!({})),
    ];
    let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", aws.url.as_str())];
    let mut portal = Portal::start(&config(&clusters), &environment);

    aws.mood(Mood::Denying);
    let (kind, text) = portal.refusal("prod");
    assert_eq!(kind, "ConfigInvalid");
    assert_eq!(
        text,
        format!(
            "cannot assume role {ROLE}: AWS refuses with AccessDenied: User: arn:aws:iam::123456789012:user/portal is not \
             authorized to perform: sts:AssumeRole"
        )
    );
    assert_eq!(
        signer(&portal.token("own")),
        ID,
        "another cluster is not affected"
    );

    aws.mood(Mood::Fine);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(signer(&portal.token("prod")), "ASIAeks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_that_is_none_never_shows_a_secret() {
    let aws = StandIn::start().await;
    aws.mood(Mood::Babbling);
    let clusters = [cluster("prod", "eu-west-1", &json!({ "assumeRole": ROLE }))];
    let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", aws.url.as_str())];
    let mut portal = Portal::start(&config(&clusters), &environment);

    let (kind, text) = portal.refusal("prod");

    assert_eq!(kind, "Unavailable", "{text}");
    assert!(
        text.starts_with(&format!("cannot assume role {ROLE}: ")) && !text.contains("canary"),
        "{text}"
    );
    let log = std::fs::read_to_string(portal.folder().join("log")).unwrap();
    assert!(!log.contains("canary") && !log.contains(SECRET), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web_identity_token_is_read_again_and_sent_unsigned() {
    let aws = StandIn::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "first").unwrap();
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];
    let environment = [
        ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/irsa"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "~/token"),
        ("AWS_REGION", "us-east-2"),
        ("AWS_ENDPOINT_URL_STS", aws.url.as_str()),
    ];
    aws.mood(Mood::Denying);
    let mut portal = Portal::start_in(folder, &config(&clusters), &environment);

    portal.refusal("prod");
    std::fs::write(portal.folder().join("token"), "second").unwrap();
    aws.mood(Mood::Fine);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let token = portal.token("prod");

    let seen = aws.seen();
    let sent: Vec<_> = seen
        .iter()
        .map(|seen| seen.form["WebIdentityToken"].as_str())
        .collect();
    assert_eq!((sent.first(), sent.last()), (Some(&"first"), Some(&"second")));
    assert!(
        seen.iter()
            .all(|seen| !seen.headers.contains_key("authorization"))
    );
    assert_eq!(signer(&token), "ASIAirsa");
    assert_eq!(
        host(&token),
        "sts.eu-west-1.amazonaws.com",
        "the cluster's region, not the machine's"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_file_of_an_account_assumes_its_role() {
    let aws = StandIn::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "jwt\n").unwrap();
    let block = json!({ "accounts": [
        { "accountId": "111122223333", "roleName": "federated", "webIdentityTokenFile": file },
    ] });
    let clusters = [cluster("prod", "eu-west-1", &json!({ "assumeRole": ROLE }))];
    let environment = [("AWS_ENDPOINT_URL_STS", aws.url.as_str())];

    let token = Portal::start(&with(config(&clusters), "aws", block), &environment).token("prod");

    let seen = aws.seen();
    assert_eq!(seen[0].form["Action"], "AssumeRoleWithWebIdentity");
    assert_eq!(seen[0].form["WebIdentityToken"], "jwt");
    assert_eq!(call_signer(&seen[1]).0, "ASIAfederated");
    assert_eq!(signer(&token), "ASIAeks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instance_metadata_is_asked_with_a_session_token() {
    let aws = StandIn::start().await;
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];
    let environment = [
        ("AWS_EC2_METADATA_DISABLED", "false"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", aws.url.as_str()),
        // Metadata and container endpoints speak http, and never through a proxy.
        ("HTTP_PROXY", "http://127.0.0.1:9"),
    ];

    let token = Portal::start(&config(&clusters), &environment).token("prod");

    let seen = aws.seen();
    assert_eq!(signer(&token), "ASIAnode");
    assert_eq!(
        (seen[0].method.as_str(), seen[0].path.as_str()),
        ("PUT", "/latest/api/token")
    );
    assert_eq!(seen[0].headers["x-aws-ec2-metadata-token-ttl-seconds"], "21600");
    assert!(seen.len() > 2);
    for asked in &seen[1..] {
        assert_eq!(
            asked.headers["x-aws-ec2-metadata-token"], "imds-token",
            "{}",
            asked.path
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_identity_gets_the_token_as_it_stands_in_the_file() {
    let aws = StandIn::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "pod-jwt").unwrap();
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];
    let uri = format!("{}/pod", aws.url);
    let environment = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "~/token"),
    ];

    let token = Portal::start_in(folder, &config(&clusters), &environment).token("prod");

    let seen = aws.seen();
    assert_eq!(signer(&token), "ASIApod");
    assert_eq!(seen[0].headers["authorization"], "pod-jwt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn profile_of_an_account_gives_its_keys_and_a_process_may_be_one() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(".aws")).unwrap();
    let process =
        r#"echo '{"Version":1,"AccessKeyId":"ASIAPROCESS","SecretAccessKey":"s","SessionToken":"t"}'"#;
    let text = format!(
        "[default]\nregion = eu-north-1\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = s\n\
         [profile corp]\ncredential_process = {process}\n"
    );
    std::fs::write(folder.path().join(".aws/config"), text).unwrap();
    let block = json!({ "accounts": [{ "accountId": "111122223333", "profile": "corp" }] });
    let aws = StandIn::start().await;
    let outside = json!({ "url": "https://k8s.example.com" });
    let clusters = [
        cluster("own", "eu-west-1", &outside),
        cluster("listed", "eu-west-1", &json!({ "assumeRole": ROLE })),
    ];
    let environment = [("AWS_ENDPOINT_URL_STS", aws.url.as_str())];
    let mut portal = Portal::start_in(folder, &with(config(&clusters), "aws", block), &environment);

    let own = portal.token("own");
    assert_eq!(signer(&own), "AKIADEFAULT");
    assert_eq!(host(&own), "sts.eu-north-1.amazonaws.com", "the profile's region");
    portal.token("listed");
    assert_eq!(call_signer(&aws.seen()[0]).0, "ASIAPROCESS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_credential_process_writes_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(".aws")).unwrap();
    let text = "[default]\ncredential_process = sh -c 'echo canary >&2; echo canary; exit 3'\n";
    std::fs::write(folder.path().join(".aws/config"), text).unwrap();
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];
    let mut portal = Portal::start_in(folder, &config(&clusters), &[]);

    let (kind, text) = portal.refusal("prod");

    assert_eq!(kind, "Unavailable", "{text}");
    assert!(
        text.contains("exit status: 3") && !text.contains("canary"),
        "{text}"
    );
    let log = std::fs::read_to_string(portal.folder().join("log")).unwrap();
    assert!(!log.contains("canary"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_source_is_named_with_its_own_reason_when_all_fail() {
    let clusters = [cluster("prod", "eu-west-1", &json!({}))];

    let (kind, text) = Portal::start(&config(&clusters), &[]).refusal("prod");

    assert_eq!(kind, "ConfigInvalid");
    for source in [
        "Environment: ",
        "Profile: ",
        "WebIdentityToken: ",
        "EcsContainer: ",
        "Ec2InstanceMetadata: ",
    ] {
        assert!(text.contains(source), "{source} is missing in {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_without_a_region_is_refused_with_what_to_do() {
    let clusters = [cluster("prod", "", &json!({ "url": "https://k8s.example.com" }))];

    let refused = Portal::start(&config(&clusters), &KEYS).refusal("prod");
    let region = ("AWS_DEFAULT_REGION", "ap-east-1");
    let token = Portal::start(&config(&clusters), &[KEYS[0], KEYS[1], region]).token("prod");

    assert_eq!(refused.0, "ConfigInvalid");
    assert!(
        refused.1.starts_with("no AWS region is known for this cluster"),
        "{}",
        refused.1
    );
    assert_eq!(host(&token), "sts.ap-east-1.amazonaws.com");
}

/// The stand-in's own keys, so that what it gives is worth verifying.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_of_an_assumed_role_passes_the_verifier() {
    let aws = StandIn::start().await;
    let clusters = [cluster("prod", "eu-west-1", &json!({ "assumeRole": ROLE }))];
    let environment = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_STS", aws.url.as_str())];

    let token = Portal::start(&config(&clusters), &environment).token("prod");

    let key = ("ASIAeks", secret_of("eks"));
    let verdict = Verifier::start().verify(&token, "prod", ("aws", "eu-west-1"), (key.0, &key.1));
    assert_eq!(verdict, Ok(key.0.to_owned()));
}
