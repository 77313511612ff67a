//! `${VAR}`, `${VAR:-default}` and `$${VAR}` in text values; `$env`, `$file` and `$include` objects.
//!
//! The rules are those of Backstage's `config-loader`. What vanishes because a variable is unset is remembered with
//! its reason, so that a secret that vanished can be told from one that was never there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

use crate::app_config::{
    Environment,
    node::{Content, Node, Vanished},
    parse, read_text,
};

/// What became of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Substituted {
    Text(String),
    Vanished(Vanished),
}

/// A substitution that cannot be done, and where in the file.
#[derive(Debug)]
pub(crate) struct Failed {
    /// `.a.b[0]`, empty at the root.
    pub(crate) path: String,
    pub(crate) cause: String,
}

/// Replaces `${VAR}` and `${VAR:-default}` once, from left to right; `$${VAR}` stands for the text `${VAR}`.
///
/// The whole text vanishes with the first variable that is unset, or that is unset or empty and has an empty default.
pub(crate) fn substitute(text: &str, environment: &Environment) -> Substituted {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(found) = find_expression(rest) {
        out.push_str(found.before);
        match found.escaped {
            true => {
                out.push_str("${");
                out.push_str(found.expression);
                out.push('}');
            }
            false => match evaluate(found.expression, environment) {
                Substituted::Text(value) => out.push_str(&value),
                vanished @ Substituted::Vanished(_) => return vanished,
            },
        }
        rest = found.after;
    }
    out.push_str(rest);
    Substituted::Text(out)
}

struct Found<'a> {
    before: &'a str,
    escaped: bool,
    expression: &'a str,
    after: &'a str,
}

/// The first match of `\$?\$\{[^{}]*\}`.
fn find_expression(text: &str) -> Option<Found<'_>> {
    let mut from = 0;
    loop {
        let open = from + text.get(from..)?.find("${")?;
        let inside = text.get(open + 2..)?;
        let end = inside.find(['{', '}'])?;
        if inside.as_bytes().get(end) != Some(&b'}') {
            from = open + 2;
            continue;
        }
        let before = text.get(..open)?;
        let (before, escaped) = match before.strip_suffix('$') {
            Some(shorter) => (shorter, true),
            None => (before, false),
        };
        return Some(Found {
            before,
            escaped,
            expression: inside.get(..end)?,
            after: inside.get(end + 1..)?,
        });
    }
}

fn evaluate(expression: &str, environment: &Environment) -> Substituted {
    let (name, default) = match expression.split_once(":-") {
        Some((name, default)) => (name.trim(), Some(default.trim())),
        None => (expression.trim(), None),
    };
    let value = environment.get(name).map(|value| value.trim().to_owned());
    match (value, default) {
        (Some(value), None) => Substituted::Text(value),
        (Some(value), Some(_)) if !value.is_empty() => Substituted::Text(value),
        (None, None) => vanished(format!("environment variable {name} is not set")),
        (_, Some("")) => vanished(format!(
            "environment variable {name} is not set or empty, and its default is empty"
        )),
        (_, Some(default)) => Substituted::Text(default.to_owned()),
    }
}

fn vanished(why: String) -> Substituted {
    Substituted::Vanished(Vanished(why.into()))
}

/// Turns what a file holds into nodes, everything substituted. `path` is where the file lies, `file` its name in errors.
pub(crate) fn resolve(
    value: Value,
    path: &Path,
    file: &Arc<str>,
    environment: &Environment,
) -> Result<Node, Failed> {
    let mut resolver = Resolver {
        environment,
        file,
        files_left: MAX_INCLUDED_FILES,
    };
    let directory = path.parent().unwrap_or(Path::new(""));
    let place = Place {
        directory: directory.to_owned(),
        depth: 0,
    };
    resolver.value(value, &mut String::new(), &place)
}

struct Resolver<'a> {
    environment: &'a Environment,
    file: &'a Arc<str>,
    files_left: usize,
}

/// Where relative names point, and how many includes led here.
struct Place {
    directory: PathBuf,
    depth: usize,
}

impl Resolver<'_> {
    fn value(&mut self, value: Value, path: &mut String, place: &Place) -> Result<Node, Failed> {
        match value {
            Value::Object(entries) => match directive(&entries) {
                Some(name) => self.directive(&name, &entries, path, place),
                None => self.content(Value::Object(entries), path, place),
            },
            Value::String(text) => Ok(match substitute(&text, self.environment) {
                Substituted::Text(same) if same == text => self.node(Content::Text(same)),
                Substituted::Text(text) => self.node(Content::Text(text)).out_of_sight(),
                Substituted::Vanished(why) => self.node(Content::Vanished(why)),
            }),
            other => self.content(other, path, place),
        }
    }

    /// A value that is no directive and no text to substitute; what lies inside it may be.
    fn content(&mut self, value: Value, path: &mut String, place: &Place) -> Result<Node, Failed> {
        let content = match value {
            Value::Null => Content::Null,
            Value::Bool(value) => Content::Bool(value),
            Value::Number(number) => Content::Number(number),
            Value::String(text) => Content::Text(text),
            Value::Array(values) => self.list(values, path, place)?,
            Value::Object(entries) => {
                let mut out = std::collections::BTreeMap::new();
                for (key, value) in entries {
                    let length = path.len();
                    path.push('.');
                    path.push_str(&key);
                    let node = self.value(value, path, place)?;
                    path.truncate(length);
                    out.insert(key, node);
                }
                Content::Map(out)
            }
        };
        Ok(self.node(content))
    }

    fn list(&mut self, values: Vec<Value>, path: &mut String, place: &Place) -> Result<Content, Failed> {
        let (mut items, mut dropped) = (Vec::with_capacity(values.len()), Vec::new());
        for (index, value) in values.into_iter().enumerate() {
            let length = path.len();
            path.push_str(&format!("[{index}]"));
            let node = self.value(value, path, place)?;
            path.truncate(length);
            match node.content {
                Content::Vanished(why) => dropped.push(why),
                _ => items.push(node),
            }
        }
        Ok(Content::List { items, dropped })
    }

    fn directive(
        &mut self,
        name: &str,
        entries: &Map<String, Value>,
        path: &mut String,
        place: &Place,
    ) -> Result<Node, Failed> {
        let fail = |cause: String| Failed {
            path: path.clone(),
            cause,
        };
        if entries.len() != 1 {
            return Err(fail(format!("include key {name} should not have adjacent keys")));
        }
        // Errors show the argument as it stands in the file: what a variable holds may be the secret itself.
        let Some(shown) = entries.get(name).and_then(Value::as_str) else {
            return Err(fail(format!("{name} include value is not a string")));
        };
        let Substituted::Text(argument) = substitute(shown, self.environment) else {
            return Err(fail(format!("{name} substitution value was undefined")));
        };
        match name {
            "$env" => Ok(match self.environment.get(&argument) {
                Some(value) => self.node(Content::Text(value.trim().to_owned())).out_of_sight(),
                None => self.node(Content::Vanished(Vanished(
                    format!("environment variable {shown} is not set").into(),
                ))),
            }),
            "$file" => {
                self.count_file().map_err(fail)?;
                let text = read_text(&place.directory.join(&argument))
                    .map_err(|cause| fail(format!("failed to read file {shown}, {cause}")))?;
                Ok(self
                    .node(Content::Text(text.trim_end().to_owned()))
                    .out_of_sight())
            }
            "$include" => self.include(&argument, shown, path, place),
            unknown => Err(fail(format!("unknown include {unknown}"))),
        }
    }

    fn include(
        &mut self,
        argument: &str,
        shown: &str,
        path: &mut String,
        place: &Place,
    ) -> Result<Node, Failed> {
        let fail = |cause: String| Failed {
            path: path.clone(),
            cause,
        };
        let (name, key) = match argument.split_once('#') {
            Some((name, key)) => (name, Some(key).filter(|key| !key.is_empty())),
            None => (argument, None),
        };
        let file = place.directory.join(name);
        let name = shown.split_once('#').map_or(shown, |(name, _)| name);
        let extension = file.extension().and_then(|extension| extension.to_str());
        if !matches!(extension, Some("json" | "yaml" | "yml")) {
            return Err(fail(format!(
                "no configuration parser available for included file {name}"
            )));
        }
        if place.depth >= MAX_INCLUDE_DEPTH {
            return Err(fail(format!(
                "included file {name} is more than {MAX_INCLUDE_DEPTH} includes deep"
            )));
        }
        self.count_file().map_err(fail)?;
        let text = read_text(&file).map_err(|cause| fail(format!("failed to read file {name}, {cause}")))?;
        let value = parse(&text, &file)
            .map_err(|cause| fail(format!("failed to parse included file {name}, {cause}")))?;
        let Some(value) = select(value, key, name).map_err(fail)? else {
            return Ok(self.node(Content::Vanished(Vanished(
                format!("included file {name} has no key '{}'", key.unwrap_or_default()).into(),
            ))));
        };
        let place = Place {
            directory: file.parent().unwrap_or(Path::new("")).to_owned(),
            depth: place.depth + 1,
        };
        self.content(value, path, &place)
    }

    fn count_file(&mut self) -> Result<(), String> {
        self.files_left = self
            .files_left
            .checked_sub(1)
            .ok_or_else(|| format!("more than {MAX_INCLUDED_FILES} files are included"))?;
        Ok(())
    }

    fn node(&self, content: Content) -> Node {
        Node::new(content, self.file)
    }
}

/// The first key that begins with `$`.
fn directive(entries: &Map<String, Value>) -> Option<String> {
    entries.keys().find(|key| key.starts_with('$')).cloned()
}

/// The part of an included file that `#a.b` names; `None` if only the last key is absent.
fn select(mut value: Value, key: Option<&str>, name: &str) -> Result<Option<Value>, String> {
    let Some(key) = key else {
        return Ok(Some(value));
    };
    let parts: Vec<&str> = key.split('.').collect();
    for (index, part) in parts.iter().enumerate() {
        let Value::Object(mut entries) = value else {
            return Err(format!(
                "value at '{}' in included file {name} is not an object",
                parts.get(..index).unwrap_or_default().join(".")
            ));
        };
        value = match entries.remove(*part) {
            Some(value) => value,
            None if index + 1 == parts.len() => return Ok(None),
            None => Value::Null,
        };
    }
    Ok(Some(value))
}

/// Enough for any tree of files that a person keeps in mind; a file that includes itself ends here.
const MAX_INCLUDE_DEPTH: usize = 16;

/// Files that include each other twice grow without bound in breadth too.
const MAX_INCLUDED_FILES: usize = 1_000;

#[cfg(test)]
mod tests;
