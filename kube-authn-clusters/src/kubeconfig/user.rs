//! What a user entry becomes: a strategy and its settings.

use std::path::Path;

use kube_authn_core::{ClusterBuilder, Problem, Secret, StrategyOptions};
use serde_json::{Map, Value, json};

use crate::ConfigValue;

/// What a user entry becomes.
pub(super) enum UserCredential {
    Token(Secret),
    Options(&'static str, Map<String, Value>),
}

impl UserCredential {
    pub(super) fn of(self, builder: ClusterBuilder) -> ClusterBuilder {
        match self {
            Self::Token(token) => builder
                .auth_provider("serviceAccount")
                .service_account_token(token),
            Self::Options(strategy, options) => {
                let block = Map::from_iter([(strategy.to_owned(), Value::Object(options))]);
                builder
                    .auth_provider(strategy)
                    .options(StrategyOptions::new(block))
            }
        }
    }
}

pub(super) fn certificate(user: &ConfigValue<'_>, folder: &Path) -> Result<UserCredential, Problem> {
    let mut options = Map::new();
    for (data, file, names) in [
        (
            "client-certificate-data",
            "client-certificate",
            ("certData", "certFile"),
        ),
        ("client-key-data", "client-key", ("keyData", "keyFile")),
    ] {
        if let Some(data) = user.child(data).optional_string()? {
            options.insert(names.0.to_owned(), data.into());
        } else if let Some(file) = user.child(file).optional_string()? {
            options.insert(names.1.to_owned(), folder.join(file).display().to_string().into());
        } else {
            let text = format!("{file} is missing: a certificate and its key come together");
            return Err(user.problem(text));
        }
    }
    Ok(UserCredential::Options("clientCertificate", options))
}

pub(super) fn exec(exec: &ConfigValue<'_>, folder: &Path) -> Result<UserCredential, Problem> {
    exec.optional_object()?;
    let place = exec.child("command");
    let command = place.string()?;
    if exec.child("interactiveMode").as_text() == Some("Always") {
        return Err(exec
            .child("interactiveMode")
            .problem("the plugin wants a terminal, and there is none"));
    }
    let mut options = Map::new();
    // A path is relative to the file; a bare name is looked up among the allowed programs by the strategy.
    let command = match command.contains('/') {
        true => folder.join(command).display().to_string(),
        false => command.to_owned(),
    };
    options.insert("command".to_owned(), command.into());
    for key in ["apiVersion", "args", "env", "installHint", "provideClusterInfo"] {
        if let Some(value) = exec.child(key).json() {
            options.insert(key.to_owned(), value);
        }
    }
    options
        .entry("apiVersion")
        .or_insert(json!("client.authentication.k8s.io/v1beta1"));
    Ok(UserCredential::Options("exec", options))
}
