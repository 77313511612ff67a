//! The program, as people and scripts run it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

const AUTH: &str = include_str!("../../kube-authn-clusters/tests/fixtures/openportal-auth.yaml");
const KUBERNETES: &str = include_str!("../../kube-authn-clusters/tests/fixtures/openportal-kubernetes.yaml");

/// What a run gave: exit code, standard output, standard error.
#[derive(Debug, PartialEq, Eq)]
struct Run(Option<i32>, String, String);

impl Run {
    fn json(&self) -> Value {
        serde_json::from_str(&self.1).expect("one JSON object on standard output")
    }

    /// The texts of all errors of `--json`.
    fn messages(&self) -> Vec<String> {
        let errors = self.json()["errors"].as_array().unwrap().clone();
        errors
            .iter()
            .map(|error| error["message"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A folder with configuration files, and the program run in it without any other variable than these.
struct Place(TempDir);

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Run {
        let output = Command::new(env!("CARGO_BIN_EXE_kube-authn"))
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let run = Run(
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        );
        assert!(!run.2.contains("panicked"), "{arguments:?}: {}", run.2);
        run
    }
}

fn ca_data() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    STANDARD.encode(certificate.pem())
}

/// One cluster of this provider, with these further lines.
fn one_cluster(more: &str) -> String {
    format!(
        "kubernetes:
  serviceLocatorMethod: {{ type: multiTenant }}
  clusterLocatorMethods:
    - type: config
      clusters:
        - name: prod
          url: https://prod.example.com
{more}"
    )
}

#[test]
fn five_different_mistakes_are_told_in_one_go_each_with_file_and_key() {
    let place = Place::new(&[
        (
            "app-config.yaml",
            "
kubernetes:
  serviceLocatorMethod: { type: multiTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - { name: provider, url: https://a, authProvider: magic }
        - { name: ca, url: https://b, authProvider: localKubectlProxy, caFile: gone.pem }
        - { name: url, url: not a url, authProvider: localKubectlProxy }
        - { name: good, url: https://d, authProvider: localKubectlProxy }
",
        ),
        (
            "app-config.production.yaml",
            "
clusterAuth: { issuer: https://login.example.com/, clientId: kubernetes, verifySignatures: true }
kubeAuthn: { encryption: { keys: [{ id: k1, key: '${KUBE_AUTHN_KEY}' }] } }
",
        ),
    ]);

    let layers = [
        "check",
        "--config",
        "app-config.yaml",
        "--config",
        "app-config.production.yaml",
    ];
    let text = place.run(&layers, &[]);
    let json = place.run(&[&layers[..], &["--json"]].concat(), &[]);

    let base = "app-config.yaml";
    let production = "app-config.production.yaml";
    let at = |index: usize, key: &str| format!("kubernetes.clusterLocatorMethods[0].clusters[{index}].{key}");
    let expected: BTreeSet<(String, String, Option<String>)> = [
        (base, at(0, "authProvider"), Some("provider")),
        (base, at(1, "caFile"), Some("ca")),
        (base, at(2, "url"), Some("url")),
        (production, "clusterAuth.verifySignatures".to_owned(), None),
        (production, "kubeAuthn.encryption.keys[0].key".to_owned(), None),
    ]
    .map(|(file, key, cluster)| (file.to_owned(), key, cluster.map(str::to_owned)))
    .into();
    let field = |error: &Value, name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
    let report = json.json();
    let errors = report["errors"].as_array().unwrap();
    let told: BTreeSet<_> = errors
        .iter()
        .map(|error| {
            assert!(!field(error, "message").unwrap().is_empty());
            (
                field(error, "file").unwrap(),
                field(error, "key").unwrap(),
                field(error, "cluster"),
            )
        })
        .collect();
    assert_eq!((told, errors.len()), (expected.clone(), 5));
    assert_eq!(names(&report), ["good"]);
    assert_eq!((json.0, text.0), (Some(1), Some(1)));
    for (file, key, _) in expected {
        let line = format!("error     {file}: {key}: ");
        assert_eq!(
            text.1.lines().filter(|shown| shown.starts_with(&line)).count(),
            1,
            "{}",
            text.1
        );
    }
    assert!(
        text.1.ends_with("1 cluster, 0 warnings, 5 errors\n"),
        "{}",
        text.1
    );
}

#[test]
fn portal_with_user_logins_gives_two_clusters_four_warnings_and_no_error() {
    let place = Place::new(&[("auth.yaml", AUTH), ("kubernetes.yaml", KUBERNETES)]);
    let ca_data = ca_data();

    let run = place.run(
        &["check", "--config", "auth.yaml", "kubernetes.yaml", "--json"],
        &[
            ("KUBERNETES_OPENPORTAL_CA_DATA", &ca_data),
            ("K8S_SA_TOKEN", "canary"),
        ],
    );

    let report = run.json();
    assert_eq!((run.0, &report["errors"]), (Some(0), &json!([])));
    assert_eq!(
        report["clusters"],
        json!([
            {
                "name": "openportal",
                "url": "https://hcp-ebadc4bb-307d-482e-a9d9-fdca15fd5ff1.spot.rackspace.com/",
                "authMetadata": { "kubernetes.io/auth-provider": "clusterAuth" },
                "skipTLSVerify": false,
                "skipMetricsLookup": false,
                "caData": ca_data,
            },
            {
                "name": "rancher-desktop",
                "url": "https://127.0.0.1:6443",
                "authMetadata": {
                    "kubernetes.io/auth-provider": "serviceAccount",
                    "serviceAccountToken": "[redacted]",
                },
                "skipTLSVerify": true,
                "skipMetricsLookup": false,
            },
        ])
    );
    let warnings: Vec<_> = report["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect();
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    for part in [
        "verifySignature",
        "clientId",
        "skipTLSVerify",
        "kubeAuthn.encryption.keys",
    ] {
        assert_eq!(
            warnings.iter().filter(|text| text.contains(part)).count(),
            1,
            "{part}: {warnings:?}"
        );
    }
}

#[test]
fn unset_service_account_token_never_becomes_another_identity() {
    let place = Place::new(&[("auth.yaml", AUTH), ("kubernetes.yaml", KUBERNETES)]);

    // The variable that seed 004 exports has another name than the one it reads.
    let run = place.run(
        &["check", "--config", "auth.yaml", "kubernetes.yaml", "--json"],
        &[
            ("KUBERNETES_OPENPORTAL_CA_DATA", &ca_data()),
            ("KUBERNETES_SERVICE_ACCOUNT_TOKEN", "t"),
        ],
    );

    let key = "kubernetes.clusterLocatorMethods[0].clusters[1].serviceAccountToken";
    let report = run.json();
    assert_eq!(
        report["errors"],
        json!([{
            "file": "kubernetes.yaml",
            "key": key,
            "cluster": "rancher-desktop",
            "message": format!("no value for '{key}' in 'kubernetes.yaml': environment variable K8S_SA_TOKEN is not set; \
                                set it or remove the key"),
        }])
    );
    assert_eq!((run.0, names(&report)), (Some(1), vec!["openportal".to_owned()]));
}

#[test]
fn bad_input_is_one_clear_line_and_1() {
    let mistakes = [
        (
            "          authProvider: magic\n",
            "authProvider \"magic\" has no config associated with it",
        ),
        (
            "          authProvider: aws\n          caFile: gone.pem\n",
            "gone.pem",
        ),
        (
            "          authProvider: serviceAccount\n          serviceAccountToken: { $file: folder }\n",
            "folder",
        ),
        (
            "          authProvider: serviceAccount\n          serviceAccountToken: { $file: gone }\n",
            "gone",
        ),
        (
            "          authProvider: localKubectlProxy\n          caData: bm90IGEgUEVN\n",
            "caData",
        ),
        (
            "          authProvider: localKubectlProxy\nclusterAuth: { issuers: [] }\n",
            "clusterAuth.issuers",
        ),
        (
            "          authProvider: localKubectlProxy\nkubeAuthn: { listen: 1 }\n",
            "kubeAuthn.listen",
        ),
        (
            "          authProvider: localKubectlProxy\nkubeAuthn: { store: { type: paper } }\n",
            "kubeAuthn.store.type",
        ),
        (
            "          authProvider: localKubectlProxy\nkubeAuthn: { encryption: { keys: [{ id: k1, key: c2hvcnQ= }] } }\n",
            "kubeAuthn.encryption.keys[0].key",
        ),
        (
            "          authProvider: oidc\n",
            "Must specify a token provider for 'oidc' strategy",
        ),
        ("          authProvider: clusterAuth\n", "clusterAuth.issuer"),
    ];
    for (lines, expected) in mistakes {
        let place = Place::new(&[("app-config.yaml", &one_cluster(lines))]);
        fs::create_dir(place.path().join("folder")).unwrap();

        let run = place.run(&["check", "--config", "app-config.yaml"], &[]);

        let errors: Vec<_> = run.1.lines().filter(|line| line.starts_with("error")).collect();
        assert!(
            matches!(errors[..], [line] if line.contains(expected)),
            "{expected}: {run:?}"
        );
        assert!(errors[0].starts_with("error     app-config.yaml: "), "{errors:?}");
        assert_eq!(run.0, Some(1), "{expected}");
    }
}

#[test]
fn configuration_that_cannot_be_read_is_one_clear_line_and_1() {
    let place = Place::new(&[("broken.yaml", "kubernetes: ["), ("text.yaml", "just text")]);
    fs::create_dir(place.path().join("folder")).unwrap();
    fs::write(place.path().join("binary.yaml"), [0xff, 0xfe, 0]).unwrap();

    for file in ["gone.yaml", "folder", "broken.yaml", "text.yaml", "binary.yaml"] {
        let run = place.run(&["check", "--config", file], &[]);

        let errors: Vec<_> = run.1.lines().filter(|line| line.starts_with("error")).collect();
        assert!(
            matches!(errors[..], [line] if line.starts_with(&format!("error     {file}: "))),
            "{run:?}"
        );
        assert_eq!((run.0, run.2.as_str()), (Some(1), ""), "{file}");
    }
}

#[test]
fn wrong_usage_is_2() {
    let place = Place::new(&[("app-config.yaml", "")]);
    for arguments in [
        &[][..],
        &["check", "--config"],
        &["check", "app-config.yaml"],
        &["check", "--config", "app-config.yaml", "--yaml"],
        &["serve-me"],
        &["keygen", "now"],
    ] {
        let run = place.run(arguments, &[]);

        assert_eq!((run.0, run.1.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(
            run.2.contains("--help") || run.2.contains("Usage: kube-authn"),
            "{arguments:?}: {}",
            run.2
        );
    }
}

#[test]
fn configuration_without_clusters_is_a_warning_and_0() {
    let place = Place::new(&[("app-config.yaml", "app: { title: Portal }\n")]);

    let run = place.run(&["check", "--config", "app-config.yaml", "--json"], &[]);

    let warning = "Failed to initialize kubernetes backend: valid kubernetes config is missing";
    assert_eq!(
        run.json(),
        json!({ "clusters": [], "warnings": [warning], "errors": [] })
    );
    assert_eq!(run.0, Some(0));
}

#[test]
fn every_option_of_a_cluster_is_shown_under_backstages_names() {
    let place = Place::new(&[(
        "app-config.yaml",
        &one_cluster(
            "          title: Production
          authProvider: serviceAccount
          serviceAccountToken: sa-canary
          skipMetricsLookup: true
          caFile: ca.pem
          authMetadata: { example.com/team: a, example.com/api-token: m-canary, example.com/PASSWORD: p-canary }
          dashboardUrl: https://dashboard.example.com
          dashboardApp: standard
          dashboardParameters: { projectId: x }
          customResources: [{ group: g, apiVersion: v1, plural: ps }]
",
        ),
    )]);
    let pem = STANDARD.decode(ca_data()).unwrap();
    fs::write(place.path().join("ca.pem"), pem).unwrap();
    let command = ["check", "--config", "app-config.yaml", "--json"];

    let (redacted, shown) = (
        place.run(&command, &[]),
        place.run(&[&command[..], &["--show-secrets"]].concat(), &[]),
    );
    let text = place.run(&command[..3], &[]);

    let expected = |token: &str, metadata: &str, password: &str| {
        json!({
            "name": "prod",
            "title": "Production",
            "url": "https://prod.example.com",
            "authMetadata": {
                "kubernetes.io/auth-provider": "serviceAccount",
                "serviceAccountToken": token,
                "example.com/team": "a",
                "example.com/api-token": metadata,
                "example.com/PASSWORD": password,
            },
            "skipTLSVerify": false,
            "skipMetricsLookup": true,
            "caFile": "ca.pem",
            "dashboardUrl": "https://dashboard.example.com",
            "dashboardApp": "standard",
            "dashboardParameters": { "projectId": "x" },
            "customResources": [{ "group": "g", "apiVersion": "v1", "plural": "ps" }],
        })
    };
    let hidden = "[redacted]";
    assert_eq!(
        redacted.json()["clusters"],
        json!([expected(hidden, hidden, hidden)])
    );
    assert_eq!(
        shown.json()["clusters"],
        json!([expected("sa-canary", "m-canary", "p-canary")])
    );
    assert!(!text.1.contains("canary"), "{}", text.1);
}

#[test]
fn check_twice_says_the_same() {
    let clusters: String = (0..20)
        .map(|number| {
            format!(
                "        - {{ name: c{number}, url: https://c{number}, authProvider: magic{number}, authMetadata: {{ a: x, b: y, c: z }} }}\n"
            )
        })
        .collect();
    let place = Place::new(&[(
        "app-config.yaml",
        &one_cluster(&format!("          authProvider: aws\n{clusters}")),
    )]);

    let runs: Vec<_> = (0..5)
        .map(|_| place.run(&["check", "--config", "app-config.yaml", "--json"], &[]))
        .collect();

    assert_eq!(runs[0].messages().len(), runs[1].messages().len());
    assert!(runs.windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn no_environment_makes_check_log_a_secret() {
    let place = Place::new(&[(
        "app-config.yaml",
        &one_cluster("          authProvider: serviceAccount\n          serviceAccountToken: ${TOKEN}\n"),
    )]);

    let run = place.run(
        &["check", "--config", "app-config.yaml"],
        &[("TOKEN", "canary-3f9a77c1"), ("RUST_LOG", "trace")],
    );

    assert_eq!(run.0, Some(0));
    assert!(!run.1.contains("canary") && !run.2.contains("canary"), "{run:?}");
}

#[test]
fn keygen_prints_another_key_each_time_and_nothing_else() {
    let place = Place::new(&[]);

    let runs: Vec<_> = (0..3).map(|_| place.run(&["keygen"], &[])).collect();

    for run in &runs {
        let key = run.1.strip_suffix('\n').unwrap();
        assert_eq!(
            (STANDARD.decode(key).unwrap().len(), run.0, run.2.as_str()),
            (32, Some(0), "")
        );
    }
    assert_eq!(runs.iter().map(|run| &run.1).collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn key_of_keygen_is_accepted_where_check_asks_for_one() {
    let place = Place::new(&[
        ("auth.yaml", AUTH),
        ("kubernetes.yaml", KUBERNETES),
        (
            "key.yaml",
            "kubeAuthn: { encryption: { keys: [{ id: k1, key: '${KUBE_AUTHN_KEY}' }] } }\n",
        ),
    ]);
    let key = place.run(&["keygen"], &[]).1;

    let run = place.run(
        &[
            "check",
            "--config",
            "auth.yaml",
            "kubernetes.yaml",
            "key.yaml",
            "--json",
        ],
        &[
            ("KUBERNETES_OPENPORTAL_CA_DATA", &ca_data()),
            ("K8S_SA_TOKEN", "t"),
            ("KUBE_AUTHN_KEY", key.trim_end()),
        ],
    );

    assert_eq!(
        (run.0, run.json()["warnings"].as_array().unwrap().len()),
        (Some(0), 3)
    );
    assert!(!run.1.contains("encryption"), "{}", run.1);
}

/// What the portal's own process needs, and where it listens: none of it is ours to refuse.
#[test]
fn plain_backstage_file_has_no_error() {
    let config = format!(
        "{}backend:
  baseUrl: http://localhost:7007
  listen: {{ port: 7007 }}
  cors: {{ origin: http://localhost:3000, methods: [GET, HEAD], credentials: true }}
  csp: {{ connect-src: [\"'self'\", 'http:', 'https:'] }}
  database: {{ client: better-sqlite3, connection: ':memory:' }}
  reading: {{ allow: [{{ host: example.com }}] }}
",
        one_cluster("          authProvider: localKubectlProxy\n")
    );
    for listen in ["{ port: 7007 }", "':7007'", "{ host: 0.0.0.0, port: '7007' }"] {
        let config = config.replace("{ port: 7007 }", listen);
        let place = Place::new(&[("app-config.yaml", &config)]);

        let run = place.run(&["check", "--config", "app-config.yaml", "--json"], &[]);

        assert_eq!(run.json()["errors"], json!([]), "{listen}");
        assert_eq!((run.0, run.2.as_str()), (Some(0), ""), "{listen}");
    }
}

/// Certificate and key of a server, PEM.
fn server_certificate(years: std::ops::Range<i32>) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["portal.example.com".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(years.start, 1, 2);
    params.not_after = rcgen::date_time_ymd(years.end, 1, 2);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// An app-config that listens with `cert.pem` and `key.pem`.
const HTTPS: &str = "
backend:
  https: { certificate: { cert: { $file: cert.pem }, key: { $file: key.pem } } }
";

#[test]
fn listen_address_and_certificate_that_serve_would_refuse_are_errors_with_file_and_key() {
    let (certificate, key) = server_certificate(2020..4000);
    let (_, other_key) = server_certificate(2020..4000);
    let pem = [("cert.pem", &*certificate), ("key.pem", &*key)];
    for (config, pem, places) in [
        ("backend: { listen: here }", &pem[..0], &["backend.listen"][..]),
        (
            "backend: { listen: here, https: true }",
            &pem[..0],
            &["backend.listen", "backend.https"],
        ),
        (HTTPS, &pem[..0], &["backend.https.certificate.cert"]),
        (HTTPS, &pem[..1], &["backend.https.certificate.key"]),
        (
            HTTPS,
            &[pem[0], ("key.pem", "no key")],
            &["backend.https.certificate"],
        ),
        (
            HTTPS,
            &[pem[0], ("key.pem", &other_key)],
            &["backend.https.certificate"],
        ),
        (
            HTTPS,
            &[("cert.pem", "cert.pem"), pem[1]],
            &["backend.https.certificate"],
        ),
    ] {
        let place = Place::new(&[pem, &[("app-config.yaml", config)]].concat());

        let run = place.run(&["check", "--config", "app-config.yaml", "--json"], &[]);
        let serve = place.run(&["serve", "--config", "app-config.yaml"], &[]);

        let report = run.json();
        let told: Vec<_> = report["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|error| {
                assert_eq!(error["file"], "app-config.yaml", "{report}");
                error["key"].as_str().unwrap()
            })
            .collect();
        assert_eq!(told, places, "{config}");
        assert_eq!((run.0, serve.0), (Some(1), Some(1)), "{config}");
        for text in run.messages() {
            assert!(
                serve.2.contains(&text),
                "serve does not say {text:?}: {}",
                serve.2
            );
            assert!(!text.contains("PRIVATE KEY-----"), "{text}");
        }
    }
}

#[test]
fn callers_that_serve_could_not_tell_are_errors_with_file_and_key() {
    for (config, key, said) in [
        (
            "backend: { baseUrl: 'http://portal.example.com' }",
            "backend.baseUrl",
            "expected https (http on loopback)",
        ),
        (
            "kubeAuthn: { callers: [{ type: backstage, baseUrl: 'http://portal.example.com/api/auth' }] }",
            "kubeAuthn.callers",
            "expected https (http on loopback)",
        ),
    ] {
        let place = Place::new(&[("app-config.yaml", config)]);

        let run = place.run(&["check", "--config", "app-config.yaml", "--json"], &[]);
        let serve = place.run(&["serve", "--config", "app-config.yaml"], &[]);

        let error = &run.json()["errors"][0];
        assert_eq!(
            (&error["file"], &error["key"]),
            (&json!("app-config.yaml"), &json!(key))
        );
        assert!(run.messages()[0].contains(said), "{run:?}");
        assert!(
            serve.2.contains(&format!("error     app-config.yaml: {key}: ")),
            "{serve:?}"
        );
        assert_eq!((run.0, serve.0), (Some(1), Some(1)));
    }
}

#[test]
fn certificate_outside_its_time_is_a_warning() {
    for (years, said) in [
        (2000..2001, Some("expired at 2001-01-02T00:00:00Z")),
        (3000..4000, Some("is not valid before 3000-01-02T00:00:00Z")),
        (2000..4000, None),
    ] {
        let (certificate, key) = server_certificate(years);
        let place = Place::new(&[
            ("app-config.yaml", HTTPS),
            ("cert.pem", &certificate),
            ("key.pem", &key),
        ]);

        let run = place.run(&["check", "--config", "app-config.yaml", "--json"], &[]);

        assert_eq!(run.0, Some(0), "{}", run.1);
        let warnings = run.json()["warnings"].to_string();
        assert_eq!(
            warnings.contains("backend.https.certificate.cert"),
            said.is_some(),
            "{warnings}"
        );
        assert!(said.is_none_or(|said| warnings.contains(said)), "{warnings}");
    }
}

fn names(report: &Value) -> Vec<String> {
    let clusters = report["clusters"].as_array().unwrap();
    clusters
        .iter()
        .map(|cluster| cluster["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn rules_that_impersonation_needs_are_shown_as_text_and_are_no_part_of_json() {
    let config = "
kubeAuthn:
  strategies: { impersonation: { user: 'portal:{name}' } }
kubernetes:
  serviceLocatorMethod: { type: multiTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - name: prod
          url: https://prod.example.com
          authProvider: impersonation
          serviceAccountToken: t
          kubeAuthn: { impersonation: { groups: [portal-users] } }
";
    let place = Place::new(&[("app-config.yaml", config)]);

    let text = place.run(&["check", "--config", "app-config.yaml"], &[]);
    let json = place.run(&["check", "--config", "app-config.yaml", "--json"], &[]);

    assert_eq!(text.0, Some(0), "{text:?}");
    assert!(
        text.1
            .contains("rules     prod: the carrier of users' names needs no more than\n"),
        "{}",
        text.1
    );
    assert!(
        text.1
            .contains("verbs: [\"impersonate\"], resourceNames: [\"portal-users\"] }"),
        "{}",
        text.1
    );
    let keys: Vec<_> = json.json().as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["clusters", "errors", "warnings"]);
}

#[test]
fn plugin_that_is_not_allowed_is_named_with_the_key_that_would_allow_it() {
    let config = "
kubernetes:
  serviceLocatorMethod: { type: multiTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - name: prod
          url: https://prod.example.com
          authProvider: exec
          kubeAuthn: { exec: { command: /usr/bin/get-token } }
";
    let place = Place::new(&[("app-config.yaml", config)]);

    let run = place.run(&["check", "--config", "app-config.yaml", "--json"], &[]);

    assert_eq!(
        run.messages(),
        [
            "Invalid cluster 'prod': exec plugin /usr/bin/get-token: it is not allowed: add it to \
          kubeAuthn.strategies.exec.allow"
        ]
    );
    assert_eq!(
        run.json()["errors"][0]["key"],
        "kubernetes.clusterLocatorMethods[0].clusters[0].kubeAuthn.exec.command"
    );
}

/// A configuration with a cluster that takes logins, this store and these keys.
fn with_logins(store: &str, keys: &str) -> String {
    format!(
        "
clusterAuth: {{ issuer: 'https://issuer.example.com/', clientId: kubernetes }}
kubernetes:
  clusterLocatorMethods:
    - type: config
      clusters: [{{ name: a, url: 'https://a.example.com', authProvider: clusterAuth }}]
kubeAuthn:
  callers: [{{ type: header, trustedPeers: [127.0.0.1/32], user: X-User }}]
  store: {store}
  encryption: {{ keys: {keys} }}
"
    )
}

const ONE_KEY: &str = "[{ id: k1, key: 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=' }]";

/// The one problem of a configuration as `check` tells it, after `serve` refused to start with it too.
fn told_and_refused(config: &str) -> (Value, String) {
    let place = Place::new(&[("app-config.yaml", config)]);
    fs::create_dir(place.path().join("folder")).unwrap();
    let serve = place.run(&["serve"], &[]);
    let check = place.run(&["check", "--json"], &[]);
    let errors = check.json()["errors"].as_array().unwrap().clone();
    assert_eq!((serve.0, check.0), (Some(1), Some(1)), "{config}{}", serve.2);
    let [error] = &errors[..] else {
        panic!("{config}{errors:?}")
    };
    assert_eq!(error["file"], "app-config.yaml");
    let files: Vec<_> = fs::read_dir(place.path()).unwrap().collect();
    assert_eq!(files.len(), 2, "something was made: {files:?}");
    (
        error["key"].clone(),
        error["message"].as_str().unwrap().to_owned(),
    )
}

#[test]
fn keys_that_serve_would_refuse_are_told_with_their_key() {
    let same = ONE_KEY.replace(']', ", ") + &ONE_KEY.replace('[', "").replace("k1", "k2");
    let zeros = ONE_KEY.replace("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", &"A".repeat(43));
    for (keys, says) in [
        (same.as_str(), "encryption key \"k2\" is the same as \"k1\""),
        (zeros.as_str(), "encryption key \"k1\" is all zeros"),
        ("[]", "the list is empty"),
    ] {
        let (key, message) = told_and_refused(&with_logins("{ type: sqlite }", keys));
        assert_eq!(key, "kubeAuthn.encryption.keys", "{keys}");
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn file_of_a_store_that_serve_could_not_open_is_told_with_its_key() {
    for (url, says) in [
        ("sqlite://", "not the URL of an SQLite store"),
        ("sqlite://:memory:", "not the URL of an SQLite store"),
        ("sqlite::memory:", "not the URL of an SQLite store"),
        ("sqlite://x.db?mode=ro", "without parameters"),
        ("sqlite://nowhere/x.db", "nowhere/x.db: its folder is not there"),
        ("sqlite://folder", "folder: it is a folder"),
        ("sqlite://app-config.yaml/x.db", "app-config.yaml/x.db"),
    ] {
        let store = format!("{{ type: sqlite, url: '{url}' }}");
        let (key, message) = told_and_refused(&with_logins(&store, ONE_KEY));
        assert_eq!(key, "kubeAuthn.store.url", "{url}");
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn url_of_a_server_that_serve_would_refuse_is_told_with_its_key() {
    for (url, says) in [
        (
            "postgres://u:canary@db/d?sslmode=verify-full&sslrootcert=/nope.pem",
            "cannot use the file /nope.pem of sslrootcert: No such file",
        ),
        (
            "postgres://u:canary@db/d?sslmode=verify-full&sslrootcert=app-config.yaml",
            "cannot use the file app-config.yaml of sslrootcert: the CA holds no PEM block",
        ),
        ("postgres://u:canary@db/d?sslmode=bogus", "sslmode must be one of"),
        (
            "postgres://u:canary@db/?sslmode=verify-full",
            "it names no database",
        ),
    ] {
        let store = format!("{{ type: postgres, url: '{url}' }}");
        let (key, message) = told_and_refused(&with_logins(&store, ONE_KEY));
        assert_eq!(key, "kubeAuthn.store.url", "{url}");
        assert!(message.contains(says) && !message.contains("canary"), "{message}");
    }
}

/// What strategies read when they need it; a service starts all the same.
#[test]
fn files_that_strategies_name_are_looked_at_and_each_bad_one_is_told_with_its_key() {
    let config = "
aws:
  accounts:
    - { accountId: '111122223333', roleName: r, webIdentityTokenFile: empty }
kubeAuthn:
  strategies:
    exec: { allow: [/nowhere/plugin, /bin/sh] }
    googleServiceAccount: { credentialsFile: broken.json }
    azure: { tenantId: t, clientId: c, certificateFile: cert.pem, certificateKeyFile: other.pem }
kubernetes:
  serviceLocatorMethod: { type: multiTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - name: gone
          url: https://gone.example.com
          authProvider: clientCertificate
          kubeAuthn: { clientCertificate: { certFile: gone.pem, keyFile: key.pem } }
        - name: good
          url: https://good.example.com
          authProvider: clientCertificate
          kubeAuthn: { clientCertificate: { certFile: cert.pem, keyFile: key.pem } }
";
    let (certificate, key) = server_certificate(2000..4000);
    let (_, other) = server_certificate(2000..4000);
    let place = Place::new(&[
        ("app-config.yaml", config),
        ("cert.pem", &certificate),
        ("key.pem", &key),
        ("other.pem", &other),
        ("empty", "\n"),
        ("broken.json", "{ canary"),
    ]);

    let run = place.run(&["check", "--json"], &[]);

    let report = run.json();
    let errors = report["errors"].as_array().unwrap();
    let told: Vec<_> = errors
        .iter()
        .map(|error| (error["key"].as_str().unwrap(), error["message"].as_str().unwrap()))
        .collect();
    let strategies = "kubeAuthn.strategies";
    let expected = [
        (
            "aws.accounts[0].webIdentityTokenFile".to_owned(),
            "the file empty: it is empty",
        ),
        (
            format!("{strategies}.exec.allow[0]"),
            "the file /nowhere/plugin: No such file",
        ),
        (format!("{strategies}.azure.certificateKeyFile"), "cert.pem: "),
        (
            format!("{strategies}.googleServiceAccount.credentialsFile"),
            "cannot use broken.json: ",
        ),
        (
            "kubernetes.clusterLocatorMethods[0].clusters[0].kubeAuthn.clientCertificate.certFile".to_owned(),
            "gone.pem",
        ),
    ];
    assert_eq!(told.len(), expected.len(), "{report}");
    for ((key, message), (expected_key, words)) in told.iter().zip(&expected) {
        assert_eq!(key, expected_key);
        assert!(
            message.contains(words) && !message.contains("canary"),
            "{message}"
        );
    }
    assert!(
        errors.iter().all(|error| error["file"] == "app-config.yaml"),
        "{report}"
    );
    assert_eq!((run.0, names(&report)), (Some(1), vec!["good".to_owned()]));
}

#[test]
fn file_that_is_no_file_never_makes_check_wait() {
    let config = "
kubeAuthn:
  strategies:
    googleServiceAccount: { credentialsFile: /dev/zero }
    azure: { tenantId: t, clientId: c, federatedTokenFile: pipe }
";
    let place = Place::new(&[("app-config.yaml", config)]);
    let made = Command::new("mkfifo")
        .arg(place.path().join("pipe"))
        .status()
        .unwrap();
    assert!(made.success());

    let run = place.run(&["check", "--json"], &[]);

    let messages = run.messages();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(
        messages.iter().all(|text| text.contains("it is no regular file")),
        "{messages:?}"
    );
}

#[test]
fn file_that_no_strategy_would_read_for_its_size_is_told() {
    let config = "
kubeAuthn:
  strategies:
    azure: { tenantId: t, clientId: c, federatedTokenFile: large }
";
    let place = Place::new(&[("app-config.yaml", config), ("large", &"x".repeat(64 * 1024 + 1))]);

    let run = place.run(&["check", "--json"], &[]);

    let messages = run.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].contains("more than 65536 bytes"), "{messages:?}");
}
