use serde_json::json;

use super::*;

fn environment() -> Environment {
    Environment::of([("SET", "value"), ("EMPTY", "")])
}

fn load(layers: &[(&str, &str)]) -> AppConfig {
    AppConfig::from_texts(layers, &environment()).expect("a configuration")
}

fn refused(layers: &[(&str, &str)]) -> String {
    AppConfig::from_texts(layers, &environment())
        .expect_err("refused")
        .to_string()
}

fn message<T: std::fmt::Debug>(read: Result<T, Problem>) -> String {
    read.expect_err("a problem").message
}

#[test]
fn layers_merge_objects_and_replace_the_rest() {
    let config = load(&[
        (
            "base.yaml",
            "a: { x: 1, y: 2, z: 3, list: [1, 2] }\nb: low\nc: low\nd: low",
        ),
        (
            "local.yaml",
            "a: { y: 20, z: null, list: [3] }\nb: ${UNSET}\nc: ${EMPTY}\nd: ${SET}",
        ),
    ]);

    assert_eq!(
        config.root().json(),
        Some(json!({
            "a": { "x": 1, "y": 20, "z": null, "list": [3] }, "b": "low", "c": "", "d": "value"
        }))
    );
    let files = ["a.x", "a.y", "b", "d"].map(|key| config.value(key).file());
    assert_eq!(files, ["base.yaml", "local.yaml", "base.yaml", "local.yaml"]);
    assert!(config.value("a.z").is_absent());
}

#[test]
fn errors_have_the_peers_texts() {
    let config = load(&[(
        "conf/app-config.yaml",
        "a: { text: '', number: 5, list: [a, 1], objects: [{ x: 1 }, 2], flag: maybe, nothing: null, gone: '${UNSET}' }",
    )]);
    let at = |key: &str| config.value("a").child(key);

    assert_eq!(
        message(at("none").string()),
        "Missing required config value at 'a.none' in 'app-config.yaml'"
    );
    assert_eq!(
        message(at("nothing").string()),
        "Missing required config value at 'a.nothing' in 'app-config.yaml'"
    );
    assert_eq!(
        message(at("gone").string()),
        "Missing required config value at 'a.gone' in 'app-config.yaml' (environment variable UNSET is not set)"
    );
    assert_eq!(
        message(at("text").optional_string()),
        "Invalid type in config for key 'a.text' in 'app-config.yaml', got empty-string, wanted string"
    );
    assert_eq!(
        message(at("number").string()),
        "Invalid type in config for key 'a.number' in 'app-config.yaml', got number, wanted string"
    );
    assert_eq!(
        message(at("list").optional_strings()),
        "Invalid type in config for key 'a.list[1]' in 'app-config.yaml', got number, wanted string-array"
    );
    let objects = at("objects").optional_objects().expect("a list").expect("there");
    assert_eq!(objects.iter().filter(|element| element.is_ok()).count(), 1);
    assert_eq!(
        message(objects[1].clone()),
        "Invalid type in config for key 'a.objects[1]' in 'app-config.yaml', got number, wanted object-array"
    );
    assert_eq!(
        message(at("flag").optional_bool()),
        "Unable to convert config value for key 'a.flag' in 'app-config.yaml' to a boolean"
    );
    assert_eq!(
        message(at("flag").optional_number()),
        "Unable to convert config value for key 'a.flag' in 'app-config.yaml' to a number"
    );
    let problem = at("number").string().expect_err("a problem");
    assert_eq!(
        (problem.file.as_deref(), problem.key.as_str()),
        (Some("conf/app-config.yaml"), "a.number")
    );
}

#[test]
fn booleans_and_numbers_convert() {
    let config = load(&[(
        "a.yaml",
        "a: yes\nb: ' OFF '\nc: 1\nd: true\ne: '1.5'\nf: 0\ng: null",
    )]);
    let bools = ["a", "b", "c", "d", "f", "g"].map(|key| config.value(key).optional_bool());

    assert_eq!(
        bools,
        [Some(true), Some(false), Some(true), Some(true), Some(false), None].map(Ok)
    );
    assert_eq!(config.value("e").optional_number(), Ok(Some(1.5)));
}

#[test]
fn yaml_is_1_2() {
    let config = load(&[(
        "a.yaml",
        "yes: yes\nc: 1_000\nd: 1.5\ne: 0x10\nf: ~\n'5': x\n6: y\n",
    )]);

    assert_eq!(
        config.root().json(),
        Some(json!({ "yes": "yes", "c": "1_000", "d": 1.5, "e": 16, "f": null, "5": "x", "6": "y" }))
    );
}

#[test]
fn json_is_read_with_tabs_and_without_duplicates() {
    let config = load(&[("a.json", "{\n\t\"a\": [1, \"\\u00e9\\/\"],\n\t\"b\": {}\n}")]);

    assert_eq!(config.root().json(), Some(json!({ "a": [1, "é/"], "b": {} })));
    assert_eq!(
        refused(&[("a.json", "{ \"a\": 1, \"a\": 2 }")]),
        "a.json: cannot parse the configuration file: invalid JSON: duplicate key 'a' at line 1 column 13"
    );
    assert_eq!(
        refused(&[("a.json", "{ a: 1 }")]),
        "a.json: cannot parse the configuration file: invalid JSON: key must be a string at line 1 column 3"
    );
}

#[test]
fn text_that_cannot_be_parsed_is_one_line_with_file_and_place() {
    for text in [
        "a: [",
        "a: 1\na: 2",
        "a: b: c",
        "a: *none",
        "a: !x y\n&",
        "<<: { a: 1 }",
        "a: 'x\nb: 2",
    ] {
        let error = AppConfig::from_texts(&[("conf/a.yaml", text)], &environment())
            .expect_err(text)
            .to_string();

        assert!(
            error.starts_with("conf/a.yaml: cannot parse the configuration file: "),
            "{error}"
        );
        assert!(
            error.contains("line ") && !error.contains('\n'),
            "{text:?}: {error}"
        );
    }
    assert!(refused(&[("a.yaml", "- 1")]).contains("expected an object at the root"));
    assert_eq!(load(&[("a.yaml", "")]).root().json(), Some(json!({})));
    assert_eq!(load(&[("a.yaml", "# nothing\n")]).root().json(), Some(json!({})));
    assert_eq!(load(&[]).root().json(), Some(json!({})));
}

#[test]
fn secret_in_a_broken_file_never_shows_in_the_error() {
    for text in [
        "a: 'canary",
        "a: \"canary\\q\"",
        "a: *canary",
        "a: !canary x",
        "a: !canary",
        "a: !!int canary",
        "a: &canary",
        "a: [canary",
        "a: {canary",
        "canary: x: y",
        "a: |canary\n  x",
        "a: canary\n b",
        "%canary\n---\na: 1",
        "? [canary]\n: 1",
        "? {canary: 1}\n: 1",
        "a: @canary",
        "a: `canary`",
        "a: !!binary canary",
        "a: -.inf\nb: !!float canary",
        "a: 1\n...\ncanary\n---\n- x",
    ] {
        match AppConfig::from_texts(&[("a.yaml", text)], &environment()) {
            Ok(config) => assert!(!format!("{config:?} {:?}", config.root()).contains("canary")),
            Err(error) => assert!(
                !format!("{error} {error:?}").contains("canary"),
                "{text:?}: {error}"
            ),
        }
    }
}

#[test]
fn bomb_of_aliases_is_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let deep = format!("a: {}1{}", "[".repeat(20_000), "]".repeat(20_000));

    for text in [bomb, deep] {
        let error = refused(&[("a.yaml", &text)]);

        assert!(error.len() < 300, "{error}");
    }
}

#[test]
fn files_that_cannot_be_read_are_all_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = folder.path().join("good.yaml");
    let large = folder.path().join("large.yaml");
    let binary = folder.path().join("binary.yaml");
    std::fs::write(&good, "\u{feff}a: 1").expect("written");
    std::fs::write(&large, vec![b'#'; 10 * 1024 * 1024 + 1]).expect("written");
    std::fs::write(&binary, b"a: \xff").expect("written");
    let missing = folder.path().join("missing.yaml");

    let error = AppConfig::load_with(
        &[&good, &missing, &folder.path().to_owned(), &large, &binary],
        &environment(),
    )
    .expect_err("refused");

    let causes = [
        "No such file",
        "it is a directory",
        "it is larger than 10 MiB",
        "it is not UTF-8 text",
    ];
    assert_eq!(error.problems.len(), 4);
    for (problem, cause) in error.problems.iter().zip(causes) {
        let file = problem.file.as_deref().expect("a file");
        assert!(
            problem.message.contains(cause) && problem.to_string().starts_with(file),
            "{problem}"
        );
    }
    assert!(AppConfig::load_with(&[good], &environment()).is_ok());
}

#[test]
fn unknown_key_is_told_its_neighbour() {
    let config = load(&[("a.yaml", "b: { isuer: x, quite-else: null, issuer: y }")]);

    let messages: Vec<String> = config
        .value("b")
        .unknown_keys(&["issuer", "clientId"])
        .into_iter()
        .map(|problem| problem.message)
        .collect();

    assert_eq!(
        messages,
        [
            "unknown key 'b.isuer': did you mean 'issuer'?",
            "unknown key 'b.quite-else': known keys are issuer, clientId"
        ]
    );
}
