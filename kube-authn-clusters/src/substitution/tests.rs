use proptest::prelude::*;

use super::*;
use crate::AppConfig;

fn environment() -> Environment {
    Environment::of([("A", " a "), ("B", "b"), ("EMPTY", ""), ("NESTED", "${B}")])
}

fn text(input: &str) -> String {
    match substitute(input, &environment()) {
        Substituted::Text(text) => text,
        Substituted::Vanished(why) => panic!("{input} vanished: {}", why.0),
    }
}

fn vanished(input: &str) -> String {
    match substitute(input, &environment()) {
        Substituted::Text(text) => panic!("{input} became {text}"),
        Substituted::Vanished(why) => why.0.to_string(),
    }
}

#[test]
fn every_form_is_substituted_once() {
    for (input, expected) in [
        ("${A}", "a"),
        ("${ A }-${B}", "a-b"),
        ("${EMPTY}", ""),
        ("x${EMPTY}y", "xy"),
        ("${UNSET:- d }", "d"),
        ("${EMPTY:-d}", "d"),
        ("${A:-d}", "a"),
        ("${UNSET:-a:-b}", "a:-b"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${B}$${B}", "b${B}"),
        ("$", "$"),
        ("a$b", "a$b"),
        ("${A", "${A"),
        ("${A{${B}", "${A{b"),
        ("${UNSET:-${B}}", "${UNSET:-b}"),
        ("${NESTED}", "${B}"),
        ("ü${B}ü", "übü"),
    ] {
        assert_eq!(text(input), expected, "{input}");
    }
}

#[test]
fn unset_variable_takes_the_whole_text_with_it() {
    assert_eq!(vanished("${UNSET}"), "environment variable UNSET is not set");
    assert_eq!(
        vanished("a ${B} ${UNSET} z"),
        "environment variable UNSET is not set"
    );
    assert_eq!(vanished("${A-d}"), "environment variable A-d is not set");
    assert_eq!(vanished("${}"), "environment variable  is not set");
    for input in ["${UNSET:-}", "${EMPTY:- }"] {
        assert!(vanished(input).ends_with("and its default is empty"), "{input}");
    }
}

fn resolve_in(directory: &Path, value: Value) -> Result<Node, Failed> {
    resolve(
        value,
        &directory.join("app-config.yaml"),
        &Arc::from("app-config.yaml"),
        &environment(),
    )
}

fn json_in(directory: &Path, yaml: &str) -> Result<Option<Value>, String> {
    let value = parse(yaml, Path::new("x.yaml")).expect("YAML");
    resolve_in(directory, value)
        .map(|node| node.to_json())
        .map_err(|failed| format!("{}: {}", failed.path, failed.cause))
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    folder
}

#[test]
fn file_and_env_are_read() {
    let folder = folder(&[("secrets/token", "  t${B}oken \r\n\n")]);

    let json = json_in(
        folder.path(),
        "{ a: { $file: secrets/token }, b: { $env: A }, c: { $env: UNSET }, d: [{ $env: UNSET }, 1] }",
    );

    assert_eq!(
        json,
        Ok(Some(
            serde_json::json!({ "a": "  t${B}oken", "b": "a", "d": [1] })
        ))
    );
}

#[test]
fn include_takes_a_part_and_substitutes_inside_it() {
    let folder = folder(&[
        (
            "parts/one.yaml",
            "deep:\n  part: { x: \"${B}\", y: { $include: two.json } }\n  text: ${B}\n",
        ),
        ("parts/two.json", "{ \"k\": [\"${A}\"] }"),
    ]);

    let json = json_in(
        folder.path(),
        "{ a: { $include: 'parts/one.yaml#deep.part' }, b: { $include: 'parts/one.yaml#deep.text' }, \
           c: { $include: 'parts/one.yaml#deep.none' } }",
    );

    assert_eq!(
        json,
        Ok(Some(
            serde_json::json!({ "a": { "x": "b", "y": { "k": ["a"] } }, "b": "${B}" })
        ))
    );
}

#[test]
fn directive_that_cannot_be_done_names_its_place_and_cause() {
    let folder = folder(&[
        ("a.yaml", "x: 1"),
        ("loop.yaml", "again: { $include: loop.yaml }"),
        ("bad.yaml", "a: ["),
    ]);
    for (yaml, message) in [
        (
            "{ a: { $env: A, b: 1 } }",
            ".a: include key $env should not have adjacent keys",
        ),
        (
            "{ a: [{ $env: 1 }] }",
            ".a[0]: $env include value is not a string",
        ),
        (
            "{ a: { $file: '${UNSET}' } }",
            ".a: $file substitution value was undefined",
        ),
        ("{ a: { $other: x } }", ".a: unknown include $other"),
        (
            "{ a: { $include: a.txt } }",
            ".a: no configuration parser available for included file a.txt",
        ),
        (
            "{ a: { $include: 'a.yaml#x.y' } }",
            ".a: value at 'x' in included file a.yaml is not an object",
        ),
        (
            "{ a: { $include: 'a.yaml#z.y' } }",
            ".a: value at 'z' in included file a.yaml is not an object",
        ),
    ] {
        assert_eq!(json_in(folder.path(), yaml), Err(message.to_owned()), "{yaml}");
    }
    for (yaml, part) in [
        (
            "{ a: { $file: none } }",
            ".a: failed to read file none, No such file",
        ),
        (
            "{ a: { $file: . } }",
            ".a: failed to read file ., it is a directory",
        ),
        (
            "{ a: { $include: bad.yaml } }",
            ".a: failed to parse included file bad.yaml, ",
        ),
        ("{ a: { $include: loop.yaml } }", "includes deep"),
    ] {
        let error = json_in(folder.path(), yaml).expect_err(yaml);

        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn token_in_place_of_a_file_name_never_shows_in_the_error() {
    let folder = folder(&[]);
    for directive in ["$file", "$include"] {
        for argument in ["${TOKEN}", "${TOKEN}.yaml", "x/${TOKEN}.json#a.b"] {
            let yaml = format!("{{ a: {{ {directive}: '{argument}' }} }}");
            let environment = Environment::of([("TOKEN", "canary")]);
            let path = folder.path().join("app-config.yaml");
            let text = yaml.as_str();
            let error = AppConfig::from_texts(&[(path.to_str().expect("text"), text)], &environment)
                .expect_err("no such file")
                .to_string();

            assert!(error.contains("${TOKEN}") && !error.contains("canary"), "{error}");
        }
    }
    let environment = Environment::of([("TOKEN", "canary")]);
    let config = AppConfig::from_texts(
        &[("app-config.yaml", "{ a: { $env: '${TOKEN}' } }")],
        &environment,
    )
    .expect("a configuration");
    let problem = config
        .value("a")
        .optional_secret()
        .expect_err("vanished")
        .to_string();
    assert!(
        problem.contains("${TOKEN}") && !problem.contains("canary"),
        "{problem}"
    );
}

proptest! {
    #[test]
    fn text_without_a_dollar_stays_as_it_is(input in "[^$]*") {
        prop_assert_eq!(substitute(&input, &environment()), Substituted::Text(input));
    }

    #[test]
    fn no_text_makes_it_panic(input in any::<String>(), pieces in "([$]{0,3}|[{}]|:-|A|B|EMPTY|é| ){0,12}") {
        let _ = substitute(&input, &environment());
        let _ = substitute(&pieces, &environment());
    }

    #[test]
    fn escaped_text_comes_back(name in "[A-Z:-]{0,8}") {
        prop_assert_eq!(
            substitute(&format!("$${{{name}}}"), &environment()),
            Substituted::Text(format!("${{{name}}}"))
        );
    }
}
