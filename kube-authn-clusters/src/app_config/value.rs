//! Typed reads.

use std::{fmt, path::Path};

use kube_authn_core::{CaBundle, Problem, Secret, parse_ca};
use serde_json::Value;

use super::node::{Content, Node};

/// A place in the configuration: its full key path, the file that holds it, and the value there if there is one.
///
/// `null` reads as absent. The error texts are Backstage's. `Debug` shows the place and no value.
#[derive(Clone)]
pub struct ConfigValue<'a> {
    pub(super) node: Option<&'a Node>,
    pub(super) key: String,
    file: &'a str,
}

impl<'a> ConfigValue<'a> {
    pub(crate) fn root(node: &'a Node) -> Self {
        Self {
            node: Some(node),
            key: String::new(),
            file: &node.file,
        }
    }

    /// The full key path, `kubernetes.clusterLocatorMethods[0].type`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The file that holds the value; of an absent one, the file that holds what is around it.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// Whether there is no value, `null` included.
    pub fn is_absent(&self) -> bool {
        self.node.is_none_or(Node::is_absent)
    }

    /// Whether the key stands in the file at all, with a value, with `null`, or with one that vanished.
    pub(crate) fn stands(&self) -> bool {
        self.node.is_some()
    }

    /// The place under this key.
    pub fn child(&self, key: &str) -> Self {
        let node = match self.node.map(|node| &node.content) {
            Some(Content::Map(entries)) => entries.get(key),
            _ => None,
        };
        let key = match self.key.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.key),
        };
        self.place(node, key)
    }

    /// The places under all keys of an object that have a value; nothing for anything else.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Self)> {
        self.keys()
            .map(|key| (key, self.child(key)))
            .filter(|(_, value)| !value.is_absent())
    }

    /// The keys of an object, also those without a value.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        let entries = match self.node.map(|node| &node.content) {
            Some(Content::Map(entries)) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten().map(|(key, _)| key.as_str())
    }

    /// The text, if there is one.
    ///
    /// # Errors
    /// A type error for anything but text, and for empty text.
    pub fn optional_string(&self) -> Result<Option<&'a str>, Problem> {
        match self.present() {
            None => Ok(None),
            Some(node) => match &node.content {
                Content::Text(text) if !text.is_empty() => Ok(Some(text)),
                _ => Err(self.wrong_type(node, "string")),
            },
        }
    }

    /// The text.
    ///
    /// # Errors
    /// As [`ConfigValue::optional_string`], and if there is none.
    pub fn string(&self) -> Result<&'a str, Problem> {
        self.optional_string()?.ok_or_else(|| self.missing())
    }

    /// The text as a secret, if there is one.
    ///
    /// # Errors
    /// As [`ConfigValue::optional_string`]; also if it stands in a file and vanished by substitution.
    pub fn optional_secret(&self) -> Result<Option<Secret>, Problem> {
        Ok(self.unvanished()?.optional_string()?.map(Secret::new))
    }

    /// The boolean, if there is one: a real one, or text or a number that reads as one (`yes`, `off`, `1`).
    ///
    /// # Errors
    /// A type error for lists and objects, a conversion error for other texts and numbers.
    pub fn optional_bool(&self) -> Result<Option<bool>, Problem> {
        let Some(node) = self.present() else {
            return Ok(None);
        };
        let text = match &node.content {
            Content::Bool(value) => return Ok(Some(*value)),
            Content::Text(text) => text.trim().to_ascii_lowercase(),
            Content::Number(number) => number.to_string(),
            _ => return Err(self.wrong_type(node, "boolean")),
        };
        match text.as_str() {
            "y" | "yes" | "true" | "1" | "on" => Ok(Some(true)),
            "n" | "no" | "false" | "0" | "off" => Ok(Some(false)),
            _ => Err(self.unconvertible("a boolean")),
        }
    }

    /// The number, if there is one: a real one, or text that reads as one.
    ///
    /// # Errors
    /// A type error for anything but a number or text, a conversion error for other texts.
    pub fn optional_number(&self) -> Result<Option<f64>, Problem> {
        let Some(node) = self.present() else {
            return Ok(None);
        };
        let number = match &node.content {
            Content::Number(number) => number.as_f64(),
            Content::Text(text) => text.trim().parse().ok(),
            _ => return Err(self.wrong_type(node, "number")),
        };
        match number.filter(|number: &f64| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.unconvertible("a number")),
        }
    }

    /// This place again, if it holds an object or nothing.
    ///
    /// # Errors
    /// A type error for anything else.
    pub fn optional_object(&self) -> Result<Option<&Self>, Problem> {
        match self.present() {
            None => Ok(None),
            Some(node) if matches!(node.content, Content::Map(_)) => Ok(Some(self)),
            Some(node) => Err(self.wrong_type(node, "object")),
        }
    }

    /// The elements of a list of objects, if there is one. An element that is no object stands among them as its
    /// problem, so that one bad element hides no good one.
    ///
    /// # Errors
    /// A type error for anything but a list.
    #[allow(clippy::type_complexity, reason = "each element succeeds or fails by itself")]
    pub fn optional_objects(&self) -> Result<Option<Vec<Result<Self, Problem>>>, Problem> {
        let check = |item: Self| match item.node.map(|node| &node.content) {
            Some(Content::Map(_)) => Ok(item),
            _ => Err(item.wrong_element("object-array")),
        };
        let items = self.optional_list("object-array")?;
        Ok(items.map(|items| items.into_iter().map(check).collect()))
    }

    /// The elements of a list of texts, if there is one.
    ///
    /// # Errors
    /// A type error for anything but a list, and for an element that is no text or empty.
    pub fn optional_strings(&self) -> Result<Option<Vec<&'a str>>, Problem> {
        let check = |item: Self| match item.node.map(|node| &node.content) {
            Some(Content::Text(text)) if !text.is_empty() => Ok(text.as_str()),
            _ => Err(item.wrong_element("string-array")),
        };
        self.optional_list("string-array")?
            .map(|items| items.into_iter().map(check).collect())
            .transpose()
    }

    fn optional_list(&self, wanted: &str) -> Result<Option<Vec<Self>>, Problem> {
        let Some(node) = self.present() else {
            return Ok(None);
        };
        match &node.content {
            Content::List { items, .. } => Ok(Some(self.items(items))),
            _ => Err(self.wrong_type(node, wanted)),
        }
    }

    fn items(&self, items: &'a [Node]) -> Vec<Self> {
        (0..items.len()).map(|index| self.element(index)).collect()
    }

    /// How many elements a list has; 0 for anything else.
    pub fn length(&self) -> usize {
        match self.node.map(|node| &node.content) {
            Some(Content::List { items, .. }) => items.len(),
            _ => 0,
        }
    }

    /// The place of an element of a list.
    pub fn element(&self, index: usize) -> Self {
        let node = match self.node.map(|node| &node.content) {
            Some(Content::List { items, .. }) => items.get(index),
            _ => None,
        };
        self.place(node, format!("{}[{index}]", self.key))
    }

    /// The value as JSON, whatever it is; `None` if there is none.
    pub fn json(&self) -> Option<Value> {
        self.present().and_then(Node::to_json)
    }

    /// Whether there is text, as a duration's reader asks.
    pub(crate) fn as_text(&self) -> Option<&'a str> {
        match self.node.map(|node| &node.content) {
            Some(Content::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// This place again, unless its value stands in a file and vanished by substitution.
    ///
    /// # Errors
    /// A problem naming what it stands for.
    pub fn unvanished(&self) -> Result<&Self, Problem> {
        match self.vanished() {
            None => Ok(self),
            Some(why) => Err(self.vanished_problem(why)),
        }
    }

    /// Everything here and below that stands in a file and vanished by substitution.
    pub(crate) fn all_vanished(&self) -> Vec<Problem> {
        match self.node.map(|node| &node.content) {
            Some(Content::Vanished(why)) => vec![self.vanished_problem(&why.0)],
            Some(Content::Map(entries)) => {
                let below = entries.keys().map(|key| self.child(key));
                below.flat_map(|value| value.all_vanished()).collect()
            }
            Some(Content::List { items, dropped }) => {
                let here = dropped.iter().map(|why| self.vanished_problem(&why.0));
                let below = self.items(items).into_iter();
                here.chain(below.flat_map(|value| value.all_vanished())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A problem at this place.
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(&self.key, message).with_file(self.file)
    }

    /// That a value is needed here.
    pub fn missing(&self) -> Problem {
        let hint = self.vanished().map(|why| format!(" ({why})")).unwrap_or_default();
        self.problem(format!(
            "Missing required config value at '{}' in '{}'{hint}",
            self.key,
            self.file_name()
        ))
    }

    /// The PEM file that this path names, if there is one: readable, with at least one certificate.
    ///
    /// # Errors
    /// A type error for anything but text; what is wrong with the file; that the value vanished by substitution.
    pub(crate) fn ca_file(&self) -> Result<Option<CaBundle>, Problem> {
        let Some(path) = self.unvanished()?.optional_string()? else {
            return Ok(None);
        };
        let bundle = CaBundle::File(Path::new(path).into());
        let pem = bundle.read().map_err(|error| self.problem(error.to_string()))?;
        parse_ca(&pem.unwrap_or_default())
            .map_err(|cause| self.problem(format!("the CA file {path} cannot be used: {cause}")))?;
        Ok(Some(bundle))
    }

    fn vanished_problem(&self, why: &str) -> Problem {
        self.problem(format!(
            "no value for '{}' in '{}': {why}; set it or remove the key",
            self.key,
            self.file_name()
        ))
    }

    fn wrong_element(&self, wanted: &str) -> Problem {
        match self.node {
            Some(node) => self.wrong_type(node, wanted),
            None => self.missing(),
        }
    }

    fn wrong_type(&self, node: &Node, wanted: &str) -> Problem {
        self.problem(format!(
            "Invalid type in config for key '{}' in '{}', got {}, wanted {wanted}",
            self.key,
            self.file_name(),
            node.type_name()
        ))
    }

    fn unconvertible(&self, wanted: &str) -> Problem {
        self.problem(format!(
            "Unable to convert config value for key '{}' in '{}' to {wanted}",
            self.key,
            self.file_name()
        ))
    }

    /// The name that Backstage's texts use: the file without its folder.
    fn file_name(&self) -> &str {
        let name = Path::new(self.file).file_name().and_then(|name| name.to_str());
        name.unwrap_or(self.file)
    }

    pub(super) fn vanished(&self) -> Option<&'a str> {
        match self.node.map(|node| &node.content) {
            Some(Content::Vanished(why)) => Some(&why.0),
            _ => None,
        }
    }

    fn present(&self) -> Option<&'a Node> {
        self.node.filter(|node| !node.is_absent())
    }

    fn place(&self, node: Option<&'a Node>, key: String) -> Self {
        let file = node.map_or(self.file, |node| &node.file);
        Self { node, key, file }
    }
}

impl fmt::Debug for ConfigValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigValue")
            .field("key", &self.key)
            .field("file", &self.file)
            .field("absent", &self.is_absent())
            .finish_non_exhaustive()
    }
}
