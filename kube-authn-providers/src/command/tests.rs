#![allow(clippy::disallowed_methods, reason = "looks at what children leave behind")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use tempfile::TempDir;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Command {
    Command::new("/bin/sh").args(["-c", script]).timeout(PATIENCE)
}

/// Whether a process of this number still runs; a zombie does not.
fn runs(id: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", id.trim()));
    status.is_ok_and(|stat| !stat.contains(") Z "))
}

async fn ended(id: &str) -> bool {
    for _ in 0..200 {
        if !runs(id) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

async fn content(path: &Path) -> String {
    for _ in 0..500 {
        if let Ok(text) = fs::read_to_string(path)
            && text.ends_with('\n')
        {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the child wrote nothing");
}

#[tokio::test]
async fn output_errors_and_exit_code_are_told() {
    let finished = shell("printf out; printf err >&2; exit 3")
        .run()
        .await
        .expect("ran");

    assert_eq!(finished.code, Some(3));
    assert_eq!(finished.stdout, Secret::new("out"));
    assert_eq!(finished.stderr, Secret::new("err"));
}

#[tokio::test]
async fn child_that_hangs_is_killed_with_everything_it_started() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("ids");
    let script = format!("sleep 600 & echo $$ $! > {}; wait", file.display());

    let outcome = shell(&script).timeout(Duration::from_secs(2)).run().await;

    assert!(matches!(outcome, Err(CommandError::Timeout(_))), "{outcome:?}");
    for id in content(&file).await.split_whitespace() {
        assert!(ended(id).await, "{id} still runs");
    }
}

#[tokio::test]
async fn child_that_nobody_waits_for_is_killed() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("ids");
    let command = shell(&format!("sleep 600 & echo $$ $! > {}; wait", file.display()));
    let waiting = tokio::spawn(command.run());
    let ids = content(&file).await;

    waiting.abort();

    for id in ids.split_whitespace() {
        assert!(ended(id).await, "{id} still runs");
    }
}

#[tokio::test]
async fn grandchild_that_holds_the_pipes_is_not_waited_for() {
    let finished = shell("sleep 600 & echo $!").run().await.expect("ran");

    let id = finished.stdout.expose_str().expect("text").to_owned();
    assert!(ended(&id).await, "{id} still runs");
}

#[tokio::test]
async fn grandchild_that_left_the_group_and_holds_the_pipes_is_not_waited_for() {
    let finished = shell("setsid sleep 30 & echo out").run().await.expect("ran");

    assert_eq!(finished.stdout, Secret::new("out\n"));
}

#[tokio::test]
async fn endless_output_is_cut_and_endless_errors_are_dropped() {
    let outcome = shell("yes").run().await;
    assert!(matches!(outcome, Err(CommandError::TooMuchOutput)), "{outcome:?}");

    let finished = shell("head -c 10000000 /dev/zero >&2; echo out")
        .run()
        .await
        .expect("ran");
    assert_eq!(finished.stdout, Secret::new("out\n"));
    assert_eq!(finished.stderr.len(), MAX_ERRORS);
}

#[tokio::test]
async fn child_reads_nothing_and_leads_a_group_of_its_own() {
    let finished = shell("cat; ps -o pgid= -p $$ | tr -d ' '; echo $$").run().await;

    let finished = finished.expect("ran");
    let ids: Vec<_> = finished
        .stdout
        .expose_str()
        .expect("text")
        .split_whitespace()
        .collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn program_is_never_searched_in_path() {
    for program in ["sh", "./sh", ""] {
        let outcome = Command::new(program).run().await;

        assert!(
            matches!(outcome, Err(CommandError::Relative)),
            "{program}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn child_sees_what_it_is_given_and_only_what_is_named() {
    let seen = |command: Command| async move {
        let finished = command.run().await.expect("ran");
        finished.stdout.expose_str().expect("text").to_owned()
    };
    let command = || shell("env").env("GIVEN", "value");

    let all = seen(command()).await;
    let named = seen(command().passed_on(PassedOn::Named(vec!["PATH".to_owned()]))).await;

    // The test runner sets this one.
    assert!(
        all.contains("CARGO_MANIFEST_DIR=") && all.contains("GIVEN=value\n"),
        "{all}"
    );
    assert!(
        named.contains("PATH=") && named.contains("GIVEN=value\n"),
        "{named}"
    );
    assert!(!named.contains("CARGO_MANIFEST_DIR="), "{named}");
}

#[tokio::test]
async fn file_that_is_no_program_is_a_failure() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("plugin");
    fs::write(&file, "text").expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");

    let outcome = Command::new(&file).run().await;

    assert!(matches!(outcome, Err(CommandError::Start(_))), "{outcome:?}");
}

#[test]
fn our_own_settings_never_reach_a_child() {
    let named = PassedOn::Named(vec!["KUBE_AUTHN_KEY".to_owned(), "HOME".to_owned()]);

    for passed_on in [PassedOn::All, named] {
        assert!(!passed_on.includes(OsStr::new("KUBE_AUTHN_KEY")));
        assert!(!passed_on.includes(OsStr::new("kube_authn_key")));
        assert!(passed_on.includes(OsStr::new("HOME")));
    }
}
