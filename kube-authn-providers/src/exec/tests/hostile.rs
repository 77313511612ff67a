//! Plugins that are broken or mean harm, named after what they would do.

use super::*;

#[tokio::test]
async fn plugin_that_hangs_holds_nobody_up() {
    let plugin = Plugin::new("sleep 600 & sleep 600");
    let strategy = plugin.strategy().with_timeout(Duration::from_secs(1));

    let error = strategy
        .credential(&request("alice", &plugin.cluster()))
        .await
        .expect_err("too late");

    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.to_string(), "exec plugin plugin: it took longer than 1 s");
}

#[tokio::test]
async fn plugin_that_prints_for_ever_fills_no_memory() {
    let (kind, text) = Plugin::new("yes canary").failure().await;

    assert_eq!(
        (kind, text.as_str()),
        (
            ErrorKind::Unavailable,
            "exec plugin plugin: it printed more than 1 MiB"
        )
    );
}

#[tokio::test]
async fn grandchild_that_keeps_the_pipes_open_holds_nobody_up() {
    let answer = answer(&json!({ "token": "token" }));
    let plugin = Plugin::new(&format!("sleep 600 &\necho '{answer}'"));

    let credential = plugin.ask(&plugin.cluster()).await.expect("a credential");

    assert_eq!(sent(&credential), Secret::new("token"));
}

#[tokio::test]
async fn token_on_standard_error_never_reaches_a_message() {
    let (kind, text) = Plugin::new("echo canary; echo canary-token >&2; exit 1")
        .failure()
        .await;

    assert_eq!(kind, ErrorKind::Unavailable);
    assert_eq!(
        text,
        "exec plugin plugin: it ended with exit code 1 (13 bytes of errors, not shown): run it by hand"
    );
}

#[tokio::test]
async fn plugin_that_dies_of_a_signal_says_so() {
    let (_, text) = Plugin::new("kill -9 $$").failure().await;

    assert!(text.contains("a signal ended it"), "{text}");
}

#[tokio::test]
async fn answer_that_is_no_exec_credential_is_refused_without_being_shown() {
    let of = |api_version: &str, kind: &str, status: Value| json!({ "apiVersion": api_version, "kind": kind, "status": status });
    let token = json!({ "token": "canary" });
    let cases = [
        ("canary".into(), "not the JSON"),
        (json!(["canary"]), "not the JSON"),
        (of(V1, "ExecCredential", "canary".into()), "not the JSON"),
        (of(V1, "Secret", token.clone()), "not of kind ExecCredential"),
        (of(V1BETA1, "ExecCredential", token.clone()), "not of the version"),
        (of("canary", "ExecCredential", token), "not of the version"),
        (of(V1, "ExecCredential", Value::Null), "neither a token nor"),
        (
            of(V1, "ExecCredential", json!({ "token": "" })),
            "neither a token nor",
        ),
        (
            of(V1, "ExecCredential", json!({ "token": "canary\r\nx: y" })),
            "no bearer token may have",
        ),
        (
            of(V1, "ExecCredential", json!({ "clientKeyData": "canary" })),
            "without certificate",
        ),
        (
            of(
                V1,
                "ExecCredential",
                json!({ "clientKeyData": "canary", "clientCertificateData": "canary" }),
            ),
            "cannot be used",
        ),
        (
            of(
                V1,
                "ExecCredential",
                json!({ "token": "canary", "expirationTimestamp": "canary" }),
            ),
            "not RFC 3339",
        ),
        (
            of(
                V1,
                "ExecCredential",
                json!({ "token": "canary", "expirationTimestamp": "1970-01-01T00:00:00Z" }),
            ),
            "has expired",
        ),
    ];

    for (answer, expected) in cases {
        let (_, text) = Plugin::printing(&answer).failure().await;

        assert!(text.contains(expected), "{answer}: {text}");
    }
    let (_, text) = Plugin::new("").failure().await;
    assert!(text.contains("its answer of 0 bytes"), "{text}");
}

#[tokio::test]
async fn program_that_nobody_allowed_is_never_started() {
    let plugin = Plugin::new("touch \"$0.ran\"");
    let strategies = [
        ExecProvider::new(),
        ExecProvider::new().with_allowed([PathBuf::from("/bin/true")]),
        ExecProvider::new().with_allowed([plugin.folder.path().to_owned()]),
        ExecProvider::new().with_allowed([plugin.folder.path().join("./plugin/../plugin")]),
    ];

    for strategy in strategies {
        let error = strategy
            .credential(&request("alice", &plugin.cluster()))
            .await
            .expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(
            error.to_string().contains("kubeAuthn.strategies.exec.allow"),
            "{error}"
        );
        assert_eq!(strategy.validate(&plugin.cluster()).len(), 1);
    }
    assert!(!plugin.folder.path().join("plugin.ran").exists());
}

#[tokio::test]
async fn link_that_was_swapped_after_it_was_allowed_starts_nothing() {
    let folder = TempDir::new().expect("a folder");
    let (link, good, evil) = (
        folder.path().join("plugin"),
        folder.path().join("good"),
        folder.path().join("evil"),
    );
    write_program(&good, &format!("echo '{}'", answer(&json!({ "token": "good" }))));
    write_program(&evil, "touch \"$0.ran\"");
    symlink(&good, &link).expect("a link");
    let strategy = ExecProvider::new().with_allowed([link.clone()]);
    let asked = request("alice", &with_settings(&json!({ "command": link })));
    let credential = strategy.credential(&asked).await.expect("a credential");
    assert_eq!(sent(&credential), Secret::new("good"));

    fs::remove_file(&link).expect("removed");
    symlink(&evil, &link).expect("a link");
    let error = strategy.credential(&asked).await.expect_err("refused");

    assert!(error.to_string().contains("leads to another file"), "{error}");
    assert!(!folder.path().join("evil.ran").exists());
}

#[tokio::test]
async fn program_of_the_same_name_in_path_is_never_started() {
    for command in ["true", "./true", "../bin/true"] {
        let strategy = ExecProvider::new().with_allowed([PathBuf::from(command)]);
        let cluster = with_settings(&json!({ "command": command }));

        let problems = strategy.validate(&cluster);
        let error = strategy
            .credential(&request("alice", &cluster))
            .await
            .expect_err("refused");

        assert!(problems[0].message.contains("absolute path"), "{problems:?}");
        assert!(error.to_string().contains("absolute path"), "{error}");
    }
}

#[tokio::test]
async fn bare_name_is_that_of_an_allowed_program_and_of_no_other() {
    let (one, two) = (
        Plugin::printing(&answer(&json!({ "token": "one" }))),
        Plugin::printing(&answer(&json!({ "token": "two" }))),
    );
    let asked = request("alice", &with_settings(&json!({ "command": "plugin" })));
    let allowing = |paths: &[PathBuf]| ExecProvider::new().with_allowed(paths.to_vec());
    let refused = async |paths: &[PathBuf]| {
        let error = allowing(paths).credential(&asked).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        let problems = allowing(paths).validate(&asked.cluster);
        assert_eq!((problems.len(), &*problems[0].message), (1, &*error.to_string()));
        error.to_string()
    };

    let credential = allowing(&[PathBuf::from("/bin/true"), one.path()])
        .credential(&asked)
        .await;
    assert_eq!(sent(&credential.expect("a credential")), Secret::new("one"));

    let nowhere = refused(&[PathBuf::from("/bin/true"), one.path().join("x")]).await;
    assert_eq!(
        nowhere,
        "exec plugin plugin: no allowed program has that name, and PATH is not searched: add its absolute path to \
         kubeAuthn.strategies.exec.allow"
    );
    let several = refused(&[one.path(), two.path()]).await;
    assert!(
        several.contains("several allowed programs have that name"),
        "{several}"
    );
}

#[tokio::test]
async fn plugin_that_is_not_installed_is_told_with_the_hint() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("plugin");
    let strategy = ExecProvider::new().with_allowed([path.clone()]);
    let cluster = with_settings(&json!({ "command": path, "installHint": "get it from example.com" }));

    let error = strategy
        .credential(&request("alice", &cluster))
        .await
        .expect_err("refused");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    assert_eq!(
        error.to_string(),
        "exec plugin plugin: it is not there: get it from example.com"
    );
}

#[test]
fn plugin_that_everybody_can_change_is_warned_about() {
    let plugin = Plugin::new("true");
    fs::set_permissions(plugin.path(), fs::Permissions::from_mode(0o777)).expect("set");

    let log = logged(|| drop(plugin.strategy()));

    assert!(
        log.contains("every user of this machine can change this program"),
        "{log}"
    );
}
