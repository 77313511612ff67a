use serde_json::json;

use super::*;
use crate::Environment;

fn located(layers: &[(&str, &str)]) -> Located {
    let config = AppConfig::from_texts(layers, &Environment::of([("EMPTY", "")])).expect("a configuration");
    let method = config
        .value("kubernetes.clusterLocatorMethods")
        .optional_objects()
        .expect("a list")
        .expect("there")
        .remove(0)
        .expect("an object");
    ConfigLocator::new(&config, &method).located
}

/// One cluster with these keys beside a name, a url and a provider.
fn with_keys(keys: &str) -> Located {
    let yaml = format!(
        "kubernetes: {{ clusterLocatorMethods: [{{ type: config, clusters: [{{ name: a, url: 'https://a', \
         authProvider: aws, {keys} }}] }}] }}"
    );
    located(&[("app-config.yaml", &yaml)])
}

fn list(clusters: &str) -> Located {
    let yaml =
        format!("kubernetes: {{ clusterLocatorMethods: [{{ type: config, clusters: [{clusters}] }}] }}");
    located(&[("app-config.yaml", &yaml)])
}

fn problems(located: &Located) -> Vec<(&str, &str)> {
    located
        .problems
        .iter()
        .map(|problem| {
            let key = problem.key.strip_prefix("kubernetes.clusterLocatorMethods[0].");
            (key.unwrap_or(&problem.key), problem.message.as_str())
        })
        .collect()
}

#[test]
fn every_key_reaches_its_cluster() {
    let located = with_keys(
        "title: A, skipTLSVerify: 'yes', skipMetricsLookup: 0, assumeRole: arn, externalId: id, \
         oidcTokenProvider: okta, serviceAccountToken: top, \
         authMetadata: { kubernetes.io/auth-provider: oidc, kubernetes.io/aws-external-id: other, \
           serviceAccountToken: canary, free: [1], nothing: null }, \
         customResources: [{ group: g, apiVersion: v1, plural: ps }], dashboardUrl: 'https://d', \
         dashboardApp: rancher, dashboardParameters: { x: 1 }",
    );

    let [cluster] = &located.clusters[..] else {
        panic!("{:?}", located.problems)
    };
    let metadata: Vec<_> = cluster.auth_metadata().iter().collect();
    assert_eq!(
        metadata,
        [
            ("free", &json!([1])),
            ("kubernetes.io/auth-provider", &json!("oidc")),
            ("kubernetes.io/aws-assume-role", &json!("arn")),
            ("kubernetes.io/aws-external-id", &json!("other")),
            ("kubernetes.io/oidc-token-provider", &json!("okta")),
        ]
    );
    assert_eq!(cluster.auth_provider(), "oidc");
    assert_eq!(cluster.service_account_token(), Some(&Secret::new("canary")));
    assert_eq!(
        (cluster.title(), cluster.skip_metrics_lookup()),
        (Some("A"), Some(false))
    );
    assert!(cluster.trust().skip_verify());
    assert_eq!(cluster.custom_resources().map(<[_]>::len), Some(1));
    let dashboard = cluster.dashboard();
    assert_eq!(
        (
            dashboard.url.as_deref(),
            dashboard.app.as_deref(),
            dashboard.parameters.clone()
        ),
        (Some("https://d"), Some("rancher"), Some(json!({ "x": 1 })))
    );
    assert!(!format!("{located:?}").contains("canary"));
}

#[test]
fn defaults_are_the_peers() {
    let located = with_keys("title: null, authMetadata: null, customResources: []");

    let [cluster] = &located.clusters[..] else {
        panic!("{:?}", located.problems)
    };
    assert_eq!((cluster.title(), cluster.skip_metrics_lookup()), (None, None));
    assert!(!cluster.trust().skip_verify() && !cluster.allows_insecure_user_credentials());
    assert_eq!(cluster.custom_resources(), Some(&[][..]));
    assert!(list("").clusters.is_empty() && list("").problems.is_empty());
}

#[test]
fn one_bad_cluster_hides_no_good_one_and_all_mistakes_are_told() {
    let located = list(
        "{ name: good, url: 'https://a', authProvider: aws }, 5, \
         { name: bad, url: 'ftp://x', caData: '%%', skipTLSVerify: maybe, title: '' }, \
         { url: 'https://b', authProvider: aws }, { name: good, url: 'https://c', authProvider: aws }, \
         { name: late, url: 'https://d', authProvider: aws, customResources: [{ group: g }] }",
    );

    let names: Vec<_> = located
        .clusters
        .iter()
        .map(|cluster| cluster.name().as_str())
        .collect();
    assert_eq!(names, ["good"]);
    assert_eq!(located.clusters[0].server().host(), "a");
    let file = "'app-config.yaml'";
    let at = "kubernetes.clusterLocatorMethods[0].clusters";
    assert_eq!(
        problems(&located),
        [
            (
                "clusters[1]",
                &*format!(
                    "Invalid type in config for key '{at}[1]' in {file}, got number, wanted object-array"
                )
            ),
            (
                "clusters[2].authProvider",
                "cluster 'bad' has no auth provider configured; this must be specified via the 'authProvider' or \
                 'authMetadata.kubernetes.io/auth-provider' parameter"
            ),
            (
                "clusters[2].skipTLSVerify",
                &*format!(
                    "Unable to convert config value for key '{at}[2].skipTLSVerify' in {file} to a boolean"
                )
            ),
            (
                "clusters[2].title",
                &*format!(
                    "Invalid type in config for key '{at}[2].title' in {file}, got empty-string, wanted string"
                )
            ),
            (
                "clusters[2].url",
                "the url must begin with https:// or http://, not ftp:"
            ),
            (
                "clusters[2].caData",
                "caData is not base64 of PEM: Invalid symbol 37, offset 0."
            ),
            (
                "clusters[3].name",
                &*format!("Missing required config value at '{at}[3].name' in {file}")
            ),
            ("clusters[4].name", "Duplicate cluster name 'good'"),
            (
                "clusters[5].customResources[0].apiVersion",
                &*format!(
                    "Missing required config value at '{at}[5].customResources[0].apiVersion' in {file}"
                )
            ),
            (
                "clusters[5].customResources[0].plural",
                &*format!("Missing required config value at '{at}[5].customResources[0].plural' in {file}")
            ),
        ]
    );
    assert_eq!(located.problems[1].cluster.as_deref(), Some("bad"));
}

#[test]
fn blank_provider_in_the_metadata_does_not_fall_back() {
    let located = with_keys("authMetadata: { kubernetes.io/auth-provider: '' }");

    assert!(
        problems(&located)[0]
            .1
            .starts_with("cluster 'a' has no auth provider configured")
    );
    assert_eq!(
        with_keys("authMetadata: { kubernetes.io/auth-provider: null }")
            .clusters
            .len(),
        1
    );
}

#[test]
fn secret_that_vanished_never_becomes_another_identity_or_trust() {
    for (keys, key) in [
        ("serviceAccountToken: '${GONE}'", "serviceAccountToken"),
        ("serviceAccountToken: '${GONE:-}'", "serviceAccountToken"),
        ("serviceAccountToken: { $env: GONE }", "serviceAccountToken"),
        (
            "authMetadata: { serviceAccountToken: 'x${GONE}' }",
            "authMetadata.serviceAccountToken",
        ),
        ("caData: '${GONE}'", "caData"),
        ("caFile: '${GONE}'", "caFile"),
        ("assumeRole: '${GONE}'", "assumeRole"),
        (
            "authMetadata: { kubernetes.io/aws-assume-role: '${GONE}' }",
            "authMetadata.kubernetes.io/aws-assume-role",
        ),
        (
            "authMetadata: { kubernetes.io/aws-external-id: '${GONE}' }",
            "authMetadata.kubernetes.io/aws-external-id",
        ),
        (
            "authMetadata: { kubernetes.io/oidc-token-provider: '${GONE}' }",
            "authMetadata.kubernetes.io/oidc-token-provider",
        ),
        (
            "authMetadata: { kubernetes.io/auth-provider: '${GONE}' }",
            "authMetadata.kubernetes.io/auth-provider",
        ),
        ("authMetadata: '${GONE}'", "authMetadata"),
    ] {
        let located = with_keys(keys);

        assert!(located.clusters.is_empty(), "{keys}");
        let problems = problems(&located);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].0, format!("clusters[0].{key}"));
        assert!(
            problems[0].1.contains("environment variable GONE is not set"),
            "{problems:?}"
        );
    }
}

#[test]
fn empty_secret_is_a_type_error() {
    let located =
        list("{ name: a, url: 'https://a', authProvider: serviceAccount, serviceAccountToken: '${EMPTY}' }");

    assert!(located.clusters.is_empty());
    assert_eq!(
        problems(&located),
        [(
            "clusters[0].serviceAccountToken",
            "Invalid type in config for key 'kubernetes.clusterLocatorMethods[0].clusters[0].serviceAccountToken' in \
             'app-config.yaml', got empty-string, wanted string"
        )]
    );
}

const POD: &str = "{ name: pod, url: 'http://kubernetes.default.svc', authProvider: serviceAccount";

#[test]
fn pods_own_identity_needs_the_token_absent_from_every_layer() {
    let file = |keys: &str| {
        format!("kubernetes: {{ clusterLocatorMethods: [{{ type: config, clusters: [{POD}{keys} }}] }}] }}")
    };
    let plain = file("");

    assert_eq!(
        located(&[("a.yaml", &plain), ("b.yaml", &plain)]).clusters.len(),
        1
    );
    for keys in [
        ", serviceAccountToken: '${GONE}'",
        ", serviceAccountToken: null",
        ", authMetadata: { serviceAccountToken: null }",
        ", serviceAccountToken: given",
    ] {
        let located = located(&[("base.yaml", &file(keys)), ("local.yaml", &plain)]);

        assert!(located.clusters.is_empty(), "{keys}");
        assert_eq!(located.problems.len(), 1, "{:?}", located.problems);
        assert_eq!(located.problems[0].file.as_deref(), Some("base.yaml"));
        assert!(
            located.problems[0]
                .message
                .contains("to use the pod's own identity")
        );
    }
    let given = located(&[
        ("a.yaml", &file(", serviceAccountToken: '${GONE}'")),
        ("b.yaml", &file(", serviceAccountToken: given")),
    ]);
    assert_eq!(given.clusters.len(), 1, "{:?}", given.problems);
}

#[test]
fn stored_user_credentials_never_travel_unprotected_unless_the_cluster_says_so() {
    let cluster = |keys: &str| list(&format!("{{ name: a, authProvider: clusterAuth, {keys} }}"));

    assert_eq!(cluster("url: 'https://a'").clusters.len(), 1);
    for (keys, key) in [
        ("url: 'http://a'", "clusters[0].url"),
        ("url: 'http://127.0.0.1:1'", "clusters[0].url"),
        (
            "url: 'https://a', skipTLSVerify: true",
            "clusters[0].skipTLSVerify",
        ),
    ] {
        let refused = cluster(keys);
        let allowed = cluster(&format!("{keys}, dangerouslyAllowInsecureUserCredentials: true"));

        assert!(refused.clusters.is_empty());
        assert_eq!(problems(&refused)[0].0, key);
        assert_eq!(allowed.clusters.len(), 1, "{:?}", allowed.problems);
    }
}

#[test]
fn ca_file_that_cannot_work_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let rubbish = folder.path().join("ca.pem");
    std::fs::write(&rubbish, "no certificate").expect("written");
    for (path, cause) in [
        (rubbish, "no PEM block"),
        (folder.path().to_owned(), "no regular file"),
        (folder.path().join("none.pem"), "No such file"),
    ] {
        let located = with_keys(&format!("caFile: '{}'", path.display()));

        let problems = problems(&located);
        assert_eq!(problems[0].0, "clusters[0].caFile");
        assert!(problems[0].1.contains(cause), "{problems:?}");
    }
}

#[test]
fn line_break_in_a_cluster_name_never_becomes_a_cluster_or_a_line_of_the_log() {
    for name in [
        "a\\nERROR forged",
        "a\\r\\nImpersonate-User: root",
        "a\\0",
        "\u{fc}",
        "a\\e[31m",
    ] {
        for provider in ["authProvider: aws", "title: x"] {
            let located = list(&format!("{{ name: \"{name}\", url: 'https://a', {provider} }}"));

            assert!(located.clusters.is_empty(), "{name}");
            assert!(!located.problems.is_empty());
            for problem in &located.problems {
                let told = format!("{problem} {:?}", problem.cluster);
                assert!(!told.contains(char::is_control), "{told:?}");
            }
        }
    }
}

#[test]
fn options_of_strategies_are_kept_and_a_mistyped_one_is_named() {
    let kept = with_keys("kubeAuthn: { exec: { command: /bin/x }, clientCertificate: { keyData: k } }");
    let options = kept.clusters[0].options();
    assert_eq!(options.get("exec"), Some(&json!({ "command": "/bin/x" })));
    assert_eq!(
        options.secret("clientCertificate.keyData"),
        Some(&Secret::new("k"))
    );

    let refused = with_keys("kubeAuthn: { tokenRequests: {}, aws: { region: '${GONE}' } }");
    let messages: Vec<_> = refused
        .problems
        .iter()
        .map(|problem| problem.message.as_str())
        .collect();
    assert!(refused.clusters.is_empty());
    assert!(
        messages[0].contains("kubeAuthn.tokenRequests': did you mean 'tokenRequest'?"),
        "{messages:?}"
    );
    assert!(
        messages[1].contains("environment variable GONE is not set"),
        "{messages:?}"
    );
}
