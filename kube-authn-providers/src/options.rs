//! Reads a strategy's block among the cluster's options, and finds all that is wrong with it in one go.

use std::collections::BTreeMap;

use kube_authn_core::{
    ClusterDetails, Error, ErrorKind, Problem,
    serde_json::{Map, Value},
};

/// An object of the configuration: `kubeAuthn.exec` of a cluster, or one below it.
///
/// Values are read leniently as the configuration's own readers do: a substituted `"600"` is a number, `"true"` a boolean.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    path: String,
    values: Option<&'a Map<String, Value>>,
    pub(crate) problems: Vec<Problem>,
}

impl<'a> Block<'a> {
    /// The block of this name of the cluster. Any key but the known ones is a problem.
    pub(crate) fn of(cluster: &'a ClusterDetails, name: &str, known: &[&str]) -> Self {
        Self::new(format!("kubeAuthn.{name}"), cluster.options().get(name), known)
    }

    fn new(path: String, value: Option<&'a Value>, known: &[&str]) -> Self {
        let mut problems = Vec::new();
        let values = match value {
            None | Some(Value::Null) => None,
            Some(Value::Object(values)) => Some(values),
            Some(_) => {
                problems.push(Problem::new(&path, "expected an object"));
                None
            }
        };
        for key in values.into_iter().flat_map(Map::keys) {
            if !known.contains(&key.as_str()) {
                let text = format!("unknown key: expected one of {}", known.join(", "));
                problems.push(Problem::new(format!("{path}.{key}"), text));
            }
        }
        Self {
            path,
            values,
            problems,
        }
    }

    /// Whether the block is there at all.
    pub(crate) fn is_there(&self) -> bool {
        self.values.is_some()
    }

    /// Adds a problem at this key.
    pub(crate) fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.problems
            .push(Problem::new(format!("{}.{key}", self.path), message));
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.values?.get(key).filter(|value| !value.is_null())
    }

    /// A text that is not empty.
    pub(crate) fn text(&mut self, key: &str) -> Option<&'a str> {
        match self.value(key)? {
            Value::String(text) if !text.is_empty() => Some(text),
            _ => {
                self.refuse(key, "expected a text that is not empty");
                None
            }
        }
    }

    /// As [`Block::text`]; its absence is a problem.
    pub(crate) fn required_text(&mut self, key: &str) -> Option<&'a str> {
        if self.value(key).is_none() {
            self.refuse(key, "missing: a text is required");
        }
        self.text(key)
    }

    /// A text, empty if it is not there.
    pub(crate) fn text_or_empty(&mut self, key: &str) -> &'a str {
        match self.value(key) {
            None => "",
            Some(Value::String(text)) => text,
            Some(_) => {
                self.refuse(key, "expected a text");
                ""
            }
        }
    }

    /// One of these texts.
    pub(crate) fn choice(&mut self, key: &str, choices: &[&'static str]) -> Option<&'static str> {
        let text = self.text(key)?;
        let chosen = choices.iter().find(|choice| **choice == text).copied();
        if chosen.is_none() {
            self.refuse(key, format!("expected one of {}", choices.join(", ")));
        }
        chosen
    }

    pub(crate) fn flag(&mut self, key: &str) -> Option<bool> {
        let flag = match self.value(key)? {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        if flag.is_none() {
            self.refuse(key, "expected true or false");
        }
        flag
    }

    pub(crate) fn number(&mut self, key: &str) -> Option<u64> {
        let number = match self.value(key)? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        if number.is_none() {
            self.refuse(key, "expected a whole number");
        }
        number
    }

    /// A list of texts; `None` if the key is not there.
    pub(crate) fn texts(&mut self, key: &str) -> Option<Vec<&'a str>> {
        let list = self.value(key)?.as_array();
        let texts = list.and_then(|list| list.iter().map(Value::as_str).collect());
        if texts.is_none() {
            self.refuse(key, "expected a list of texts");
        }
        texts
    }

    /// An object of texts; `None` if the key is not there.
    pub(crate) fn text_map(&mut self, key: &str) -> Option<BTreeMap<String, String>> {
        let Some(map) = self.value(key)?.as_object() else {
            self.refuse(key, "expected an object");
            return None;
        };
        let mut texts = BTreeMap::new();
        for (name, value) in map {
            match value {
                Value::String(text) if !text.is_empty() => {
                    texts.insert(name.clone(), text.clone());
                }
                _ => self.refuse(&format!("{key}.{name}"), "expected a text that is not empty"),
            }
        }
        Some(texts)
    }

    /// A list of objects, each with these keys.
    pub(crate) fn blocks(&mut self, key: &str, known: &[&str]) -> Vec<Block<'a>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(list) = value.as_array() else {
            self.refuse(key, "expected a list of objects");
            return Vec::new();
        };
        let block = |(at, value)| Block::new(format!("{}.{key}[{at}]", self.path), Some(value), known);
        list.iter().enumerate().map(block).collect()
    }
}

/// That settings cannot be used, where it was not noticed before.
pub(crate) fn invalid(problems: &[Problem]) -> Error {
    let text = |problem: &Problem| format!("{}: {}", problem.key, problem.message);
    let texts: Vec<_> = problems.iter().map(text).collect();
    Error::new(ErrorKind::ConfigInvalid, texts.join("; "))
}
