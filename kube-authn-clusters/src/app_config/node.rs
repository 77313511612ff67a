//! A value of a configuration file that remembers its file.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Number, Value};

/// A value and the file that holds it. No `Debug`: values may be secrets.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) content: Content,
    pub(crate) file: Arc<str>,
    /// Whether the value, or a part of it, came from a variable or from a file of its own: it may be a secret.
    pub(crate) from_outside: bool,
}

/// What stands in the file, after substitution.
#[derive(Clone)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List {
        items: Vec<Node>,
        /// Elements that stand in the file and vanished by substitution.
        dropped: Vec<Vanished>,
    },
    Map(BTreeMap<String, Node>),
    /// Stands in the file, and has no value: reads as absent, but is not forgotten.
    Vanished(Vanished),
}

/// Why a value that stands in a file is not there: `environment variable TOKEN is not set`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vanished(pub(crate) Arc<str>);

impl Node {
    pub(crate) fn new(content: Content, file: &Arc<str>) -> Self {
        Self {
            content,
            file: file.clone(),
            from_outside: false,
        }
    }

    /// Says that who reads the file does not see the value there.
    pub(crate) fn out_of_sight(mut self) -> Self {
        self.from_outside = true;
        self.content = match self.content {
            Content::Map(entries) => Content::Map(
                entries
                    .into_iter()
                    .map(|(key, node)| (key, node.out_of_sight()))
                    .collect(),
            ),
            Content::List { items, dropped } => Content::List {
                items: items.into_iter().map(Self::out_of_sight).collect(),
                dropped,
            },
            scalar => scalar,
        };
        self
    }

    /// A value without substitutions.
    pub(crate) fn of_json(value: Value, file: &Arc<str>) -> Self {
        let content = match value {
            Value::Null => Content::Null,
            Value::Bool(value) => Content::Bool(value),
            Value::Number(number) => Content::Number(number),
            Value::String(text) => Content::Text(text),
            Value::Array(values) => Content::List {
                items: values
                    .into_iter()
                    .map(|value| Self::of_json(value, file))
                    .collect(),
                dropped: Vec::new(),
            },
            Value::Object(entries) => Content::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (key, Self::of_json(value, file)))
                    .collect(),
            ),
        };
        Self::new(content, file)
    }

    /// This value laid over a lower one.
    pub(crate) fn over(self, lower: Self) -> Self {
        let Self {
            content,
            file,
            from_outside,
        } = self;
        let content = match (content, lower.content) {
            (Content::Map(upper), Content::Map(lower)) => Content::Map(merge(upper, lower)),
            (Content::Vanished(why), Content::Null | Content::Vanished(_)) => Content::Vanished(why),
            (Content::Vanished(_), content) => {
                return Self { content, ..lower };
            }
            (content, _) => content,
        };
        Self {
            content,
            file,
            from_outside,
        }
    }

    /// Whether the value reads as absent.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.content, Content::Null | Content::Vanished(_))
    }

    /// The value as JSON, without what vanished.
    pub(crate) fn to_json(&self) -> Option<Value> {
        Some(match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List { items, .. } => items.iter().filter_map(Self::to_json).collect(),
            Content::Map(entries) => entries
                .iter()
                .filter_map(|(key, node)| Some((key.clone(), node.to_json()?)))
                .collect(),
            Content::Vanished(_) => return None,
        })
    }

    /// The word that type errors use.
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.content {
            Content::Null | Content::Vanished(_) => "null",
            Content::Bool(_) => "boolean",
            Content::Number(_) => "number",
            Content::Text(text) if text.is_empty() => "empty-string",
            Content::Text(_) => "string",
            Content::List { .. } => "array",
            Content::Map(_) => "object",
        }
    }
}

fn merge(upper: BTreeMap<String, Node>, mut lower: BTreeMap<String, Node>) -> BTreeMap<String, Node> {
    for (key, node) in upper {
        let merged = match lower.remove(&key) {
            Some(below) => node.over(below),
            None => node,
        };
        lower.insert(key, merged);
    }
    lower
}
