//! Subject tokens that a program prints.

use super::{federation::external, *};

const SHELL: &str = "/bin/sh";
const OPT_IN: (&str, &str) = ("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1");

/// A shell script in a folder of its own.
struct Script(tempfile::TempDir);

impl Script {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("script"), text).expect("written");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// As gcloud writes it into a file.
    fn source(&self, more: Value) -> Value {
        let mut executable = more;
        let script = self.path("script");
        executable["command"] = format!("{SHELL} {} 'two words' x", script.display()).into();
        json!({ "executable": executable })
    }
}

fn printing(answer: &Value) -> Script {
    Script::new(&format!("touch \"${{0}}.ran\"\ncat <<'END'\n{answer}\nEND"))
}

fn good() -> Value {
    json!({
        "version": 1, "success": true, "token_type": "urn:ietf:params:oauth:token-type:jwt",
        "id_token": "canary-subject", "expiration_time": NOW + 60,
    })
}

fn allowing(file: &Value, clock: &ManualClock) -> GoogleServiceAccountProvider {
    let file = GoogleCredentials::Json(Secret::new(file.to_string()));
    strategy(file, &[OPT_IN], clock).with_executables([PathBuf::from(SHELL)])
}

#[tokio::test]
async fn account_of_a_program_keeps_the_contract() {
    let (google, clock, script) = (Google::start().await, clock(), printing(&good()));
    let mut answer = good();
    answer["expiration_time"] = (NOW + 1_000_000).into();
    fs::write(script.path("script"), format!("echo '{answer}'")).expect("written");
    let file = external(&google, script.source(json!({})));

    keeps_the_contract(allowing(&file, &clock), &clock, &["canary-subject"]).await;
}

#[tokio::test]
async fn program_is_told_of_the_account_and_its_token_is_exchanged() {
    let script = Script::new(&format!(
        "env | grep ^GOOGLE_EXTERNAL_ACCOUNT_ | sort >\"$0.env\"\necho \"$*\" >\"$0.args\"\necho '{}'",
        good()
    ));
    let (google, clock) = (Google::start().await, clock());
    let mut file = external(
        &google,
        script.source(json!({ "output_file": script.path("none") })),
    );
    file["service_account_impersonation_url"] = google
        .url("/v1/projects/-/serviceAccounts/sa@p.iam:generateAccessToken")
        .into();

    get(&allowing(&file, &clock)).await;

    assert_eq!(google.asked()[0].field("subject_token"), "canary-subject");
    #[allow(clippy::disallowed_methods, reason = "what the program was told")]
    let read = |name: &str| fs::read_to_string(script.path(name)).expect("told");
    assert_eq!(read("script.args"), "two words x\n");
    assert_eq!(
        read("script.env"),
        format!(
            "GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE={}\nGOOGLE_EXTERNAL_ACCOUNT_ID=sa@p.iam\n\
             GOOGLE_EXTERNAL_ACCOUNT_IMPERSONATED_EMAIL=sa@p.iam\nGOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE=0\n\
             GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE={}\nGOOGLE_EXTERNAL_ACCOUNT_REVOKE=0\n\
             GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE=urn:ietf:params:oauth:token-type:jwt\n",
            file["audience"].as_str().expect("text"),
            script.path("none").display(),
        )
    );
}

#[tokio::test]
async fn assertion_of_saml_is_a_token_too() {
    let (google, clock) = (Google::start().await, clock());
    let script = printing(&json!({
        "version": 1, "success": true, "token_type": "urn:ietf:params:oauth:token-type:saml2",
        "saml_response": "canary-assertion",
    }));

    get(&allowing(&external(&google, script.source(json!({}))), &clock)).await;

    assert_eq!(google.asked()[0].field("subject_token"), "canary-assertion");
}

#[tokio::test]
async fn program_is_never_started_unless_list_and_environment_allow_it() {
    let (google, clock, script) = (Google::start().await, clock(), printing(&good()));
    let file = external(&google, script.source(json!({})));
    let credentials = || GoogleCredentials::Json(Secret::new(file.to_string()));
    let shell = || [PathBuf::from(SHELL)];
    let not_allowed = "it is not allowed: add its absolute path to kubeAuthn.strategies.googleServiceAccount.allowExecutables";
    let no_opt_in = "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES is not 1 in the environment of this service";
    for (strategy, why) in [
        (strategy(credentials(), &[OPT_IN], &clock), not_allowed),
        (
            strategy(credentials(), &[OPT_IN], &clock).with_executables([script.path("script")]),
            not_allowed,
        ),
        (
            strategy(credentials(), &[], &clock).with_executables(shell()),
            no_opt_in,
        ),
        (
            strategy(credentials(), &[(OPT_IN.0, "true")], &clock).with_executables(shell()),
            no_opt_in,
        ),
    ] {
        let (kind, text) = refusal(&strategy).await;

        let expected = format!("the program {SHELL} gives no subject token: {why}");
        assert_eq!(kind, ErrorKind::ConfigInvalid);
        assert!(text.ends_with(&expected), "{text}");
        let problems = strategy.validate(&cluster("prod"));
        assert_eq!(problems[0].message, expected);
    }
    assert!(!script.path("script.ran").exists() && google.asked().is_empty());
}

#[tokio::test]
async fn program_that_gives_no_token_is_named_and_nothing_it_printed_is_shown() {
    let (google, clock) = (Google::start().await, clock());
    let with = |key: &str, value: Value| {
        let mut answer = good();
        answer[key] = value;
        format!("echo '{answer}'")
    };
    for (script, kind, why) in [
        (
            "echo canary; echo canary >&2; exit 3".to_owned(),
            ErrorKind::Unavailable,
            "it ended with exit code 3: run it by hand",
        ),
        (
            "kill -9 $$".to_owned(),
            ErrorKind::Unavailable,
            "it ended with a signal: run it by hand",
        ),
        (
            "echo canary".to_owned(),
            ErrorKind::Unavailable,
            "its answer of 7 bytes is none of version 1 in JSON",
        ),
        (
            "echo '{\"version\":1,\"success\":false,\"code\":\"canary\",\"message\":\"canary\"}'".to_owned(),
            ErrorKind::Unavailable,
            "it answers that it has none: run it by hand",
        ),
        (
            with("version", 2.into()),
            ErrorKind::ConfigInvalid,
            "its answer is of a version later than 1",
        ),
        (
            with("expiration_time", (NOW - 1).into()),
            ErrorKind::Unavailable,
            "its token has expired",
        ),
        (
            with("token_type", "canary".into()),
            ErrorKind::ConfigInvalid,
            "its token_type is neither a JWT nor SAML 2",
        ),
        (
            with("id_token", Value::Null),
            ErrorKind::Unavailable,
            "its answer holds no token of its token_type",
        ),
        (
            "head -c 2000000 /dev/zero".to_owned(),
            ErrorKind::Unavailable,
            "it printed more than 1 MiB",
        ),
    ] {
        let script = Script::new(&script);
        let strategy = allowing(&external(&google, script.source(json!({}))), &clock);

        let (told, text) = refusal(&strategy).await;

        let expected = format!("the program {SHELL} gives no subject token: {why}");
        assert_eq!(told, kind, "{text}");
        assert!(text.ends_with(&expected) && !text.contains("canary"), "{text}");
    }
    assert!(google.asked().is_empty());
}

#[tokio::test]
async fn answer_in_the_file_is_used_while_it_is_good() {
    let (google, clock) = (Google::start().await, clock());
    let mut kept = good();
    kept["id_token"] = "canary-kept".into();
    let endless = {
        let mut endless = kept.clone();
        endless
            .as_object_mut()
            .expect("an object")
            .remove("expiration_time");
        endless
    };
    let expired = {
        let mut expired = kept.clone();
        expired["expiration_time"] = (NOW - 1).into();
        expired
    };
    for (content, sent) in [
        (kept.to_string(), "canary-kept"),
        (endless.to_string(), "canary-subject"),
        (expired.to_string(), "canary-subject"),
        ("rubbish".to_owned(), "canary-subject"),
    ] {
        let script = printing(&good());
        fs::write(script.path("kept"), content).expect("written");
        let source = script.source(json!({ "output_file": script.path("kept") }));

        get(&allowing(&external(&google, source), &clock)).await;

        assert_eq!(google.asked()[0].field("subject_token"), sent);
        assert_eq!(script.path("script.ran").exists(), sent == "canary-subject");
    }
    // What prints nothing has written there.
    let script = Script::new(&format!(
        "echo '{}' >\"$GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE\"",
        good()
    ));
    let source = script.source(json!({ "output_file": script.path("kept") }));
    get(&allowing(&external(&google, source), &clock)).await;
    assert_eq!(google.asked()[0].field("subject_token"), "canary-subject");
}
