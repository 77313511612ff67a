//! `APP_CONFIG_a_b_c`: values of the environment, laid over all files.

use std::{collections::BTreeMap, sync::Arc};

use kube_authn_core::Problem;
use serde_json::Value;

use super::{
    Environment,
    node::{Content, Node},
};

/// The layer that the variables make, if there are any. Values are JSON if they parse, else text; nothing in them is
/// substituted, and empty ones say nothing. The texts of the errors are Backstage's; they repeat no value.
pub(super) fn layer(environment: &Environment) -> Result<Option<Node>, Problem> {
    let mut layer = BTreeMap::new();
    // In the order of their names, so that a value comes before what would nest in it.
    for (name, value) in environment.starting_with(PREFIX) {
        let key = name.strip_prefix(PREFIX).unwrap_or_default();
        if value.is_empty() {
            continue;
        }
        put(&mut layer, key, &value).map_err(|text| Problem::new(&name, text).with_file(FILE))?;
    }
    Ok((!layer.is_empty()).then(|| node(Content::Map(layer))))
}

fn put(mut level: &mut BTreeMap<String, Node>, key: &str, value: &str) -> Result<(), String> {
    let parts: Vec<&str> = key.split('_').collect();
    let Some((last, above)) = parts.split_last() else {
        return Ok(());
    };
    for (index, part) in above.iter().enumerate() {
        check(part, key)?;
        let below = level
            .entry((*part).to_owned())
            .or_insert_with(|| node(Content::Map(BTreeMap::new())));
        let Content::Map(entries) = &mut below.content else {
            let taken = parts.get(..=index).unwrap_or_default().join("_");
            return Err(format!(
                "Could not nest config for key '{key}' under existing value '{taken}'"
            ));
        };
        level = entries;
    }
    check(last, key)?;
    if level.contains_key(*last) {
        return Err(format!("Refusing to override existing config at key '{key}'"));
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    if value.is_null() {
        return Err(format!(
            "Failed to parse JSON-serialized config value for key '{key}', Error: value may not be null"
        ));
    }
    let file = Arc::from(FILE);
    level.insert((*last).to_owned(), Node::of_json(value, &file).out_of_sight());
    Ok(())
}

fn node(content: Content) -> Node {
    Node::new(content, &Arc::from(FILE)).out_of_sight()
}

/// `/^[a-z][a-z0-9]*(?:[-_][a-z][a-z0-9]*)*$/i`, of which an underscore is split away before.
fn check(part: &str, key: &str) -> Result<(), String> {
    let word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_alphabetic())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    match part.split('-').all(word) {
        true => Ok(()),
        false => Err(format!("Invalid env config key '{key}'")),
    }
}

const PREFIX: &str = "APP_CONFIG_";
/// What Backstage's texts call this layer.
const FILE: &str = "env";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::AppConfig;

    fn read(variables: &[(&str, &str)]) -> Result<Value, String> {
        let environment = Environment::of(variables.iter().copied());
        let file = "a: { b: 1, c: [1, 2] }\nkept: true";
        let config =
            AppConfig::from_texts(&[("app-config.yaml", file)], &environment).map_err(|invalid| {
                invalid
                    .problems
                    .into_iter()
                    .map(|problem| problem.message)
                    .collect::<String>()
            })?;
        Ok(config.root().json().expect("a configuration"))
    }

    #[test]
    fn variables_lie_over_the_files() {
        let read = read(&[
            ("APP_CONFIG_a_b", "2"),
            ("APP_CONFIG_a_c", "[3]"),
            ("APP_CONFIG_new_deep-key", "plain ${A} text"),
            ("APP_CONFIG_flag", "true"),
            ("APP_CONFIG_empty", ""),
            ("APP_CONFIG_quoted", "\"7\""),
            ("APP_CONFIG_object", "{\"x\":1}"),
            ("APP_CONFIG_object_y", "2"),
            ("APP_CONFIGX", "ignored"),
            ("A", "never put in"),
        ]);

        let expected = json!({
            "a": { "b": 2, "c": [3] },
            "kept": true,
            "new": { "deep-key": "plain ${A} text" },
            "flag": true,
            "quoted": "7",
            "object": { "x": 1, "y": 2 },
        });
        assert_eq!(read, Ok(expected));
    }

    #[test]
    fn what_cannot_be_placed_gives_the_peers_text() {
        for (variables, text) in [
            (vec![("APP_CONFIG_1a", "x")], "Invalid env config key '1a'"),
            (vec![("APP_CONFIG_a__b", "x")], "Invalid env config key 'a__b'"),
            (vec![("APP_CONFIG_", "x")], "Invalid env config key ''"),
            (
                vec![("APP_CONFIG_x", "1"), ("APP_CONFIG_x_y", "2")],
                "Could not nest config for key 'x_y' under existing value 'x'",
            ),
            (
                vec![("APP_CONFIG_x", "{\"y\":1}"), ("APP_CONFIG_x_y", "2")],
                "Refusing to override existing config at key 'x_y'",
            ),
            (
                vec![("APP_CONFIG_x", "null")],
                "Failed to parse JSON-serialized config value for key 'x', Error: value may not be null",
            ),
        ] {
            assert_eq!(read(&variables), Err(text.to_owned()));
        }
    }

    #[test]
    fn wrong_type_names_the_environment() {
        let environment = Environment::of([("APP_CONFIG_v", "7")]);
        let config = AppConfig::from_texts(&[], &environment).expect("a configuration");

        let problem = config.value("v").string().expect_err("a number");

        assert_eq!(
            problem.message,
            "Invalid type in config for key 'v' in 'env', got number, wanted string"
        );
    }
}
