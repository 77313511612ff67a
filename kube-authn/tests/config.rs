//! `kube-authn config print` and `kube-authn schedule`, as people run them.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

use std::{fs, process::Command};

use serde_json::{Value, json};

/// Exit code, standard output and standard error of the program in a folder of these files, with these variables alone.
fn run(
    files: &[(&str, &str)],
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_kube-authn"))
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const BASE: &str = "
app: { title: Portal }
kubernetes:
  clusterLocatorMethods:
    - { type: config, clusters: [{ name: prod, serviceAccountToken: '${TOKEN}' }, { name: 'on', caData: '${GONE}' }] }
";

#[test]
fn merged_configuration_names_the_layer_of_each_value_and_no_secret() {
    let files = [
        ("app-config.yaml", BASE),
        ("app-config.production.yaml", "app: { title: Production }"),
        ("app-config.local.yaml", "app: { debug: true }"),
    ];
    let variables = [
        ("BACKSTAGE_ENV", "production"),
        ("TOKEN", "topsecret"),
        ("APP_CONFIG_app_port", "7"),
    ];

    let (code, printed, errors) = run(&files, &variables, &["config", "print"]);

    let expected = "\
app:
  debug: true  # app-config.local.yaml
  port: 7  # env
  title: Production  # app-config.production.yaml
kubernetes:
  clusterLocatorMethods:
    - clusters:
        - name: prod  # app-config.yaml
          serviceAccountToken: \"[redacted]\"  # app-config.yaml
        - caData: null  # app-config.yaml: environment variable GONE is not set
          name: \"on\"  # app-config.yaml
      type: config  # app-config.yaml
";
    assert_eq!((code, printed.as_str(), errors.as_str()), (Some(0), expected, ""));

    let (_, printed, _) = run(&files, &variables, &["config", "print", "--json"]);
    let list: Value = serde_json::from_str(&printed).unwrap();
    assert!(!printed.contains("topsecret"));
    assert_eq!(
        list[0],
        json!({ "key": "app.debug", "value": true, "file": "app-config.local.yaml" })
    );

    let (_, printed, _) = run(&files, &variables, &["config", "print", "--show-secrets"]);
    assert!(printed.contains("serviceAccountToken: topsecret  # app-config.yaml"));
}

#[test]
fn file_that_is_not_there_is_named() {
    let (code, printed, errors) = run(&[], &[], &["config", "print"]);

    assert_eq!((code, printed.as_str()), (Some(1), ""));
    assert!(
        errors.starts_with("error     app-config.yaml: cannot read the configuration file"),
        "{errors}"
    );
}

#[test]
fn schedule_tells_kind_and_seconds_or_next_times() {
    let schedule = |arguments: &[&str]| {
        let (code, printed, errors) = run(&[], &[], &[&["schedule", "--json"], arguments].concat());
        (
            code,
            serde_json::from_str(&printed).unwrap_or(Value::Null),
            errors,
        )
    };

    let duration = json!({ "kind": "duration", "seconds": 93_600 });
    assert_eq!(schedule(&["P1DT2H"]), (Some(0), duration, String::new()));
    let manual = json!({ "kind": "manual" });
    assert_eq!(schedule(&["manual"]), (Some(0), manual, String::new()));

    let (code, cron, _) = schedule(&["30 2 * * *", "--timezone", "Asia/Tokyo"]);
    assert_eq!(
        (code, &cron["kind"], &cron["timezone"]),
        (Some(0), &"cron".into(), &"Asia/Tokyo".into())
    );
    let next: Vec<_> = cron["next"]
        .as_array()
        .unwrap()
        .iter()
        .map(|time| time.as_str().unwrap())
        .collect();
    assert_eq!(next.len(), 5);
    assert!(next.iter().all(|time| time.ends_with("T17:30:00Z")), "{next:?}");

    for (wrong, text) in [
        ("30", "The value cannot be a plain number"),
        ("* * *", "Too few fields"),
        ("-1h", "Negative durations are not allowed"),
        ("{ hours: x }", "to a number"),
    ] {
        let (code, _, errors) = schedule(&[wrong]);
        assert_eq!(code, Some(1));
        assert!(errors.contains(text), "{errors}");
    }
}
