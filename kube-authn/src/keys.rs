//! `kube-authn keys`: which key protects how many rows of the token store.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use kube_authn::Administration;
use kube_authn_core::{
    KeyId, Result, Sealer,
    serde_json::{Value, json},
};

use crate::config::{Files, told};

/// Logins, first-use pins and the notes of import are rows alike. The first of kubeAuthn.encryption.keys writes. A key that
/// was the first one can be taken out once no row is under it; one that was just added has none yet. Exits with 1 if a key protects rows and is not configured, or if none of its rows opens.
#[derive(Debug, Args)]
pub(crate) struct Keys {
    #[command(flatten)]
    files: Files,
    /// Print one JSON object: {"keys": [{"id", "rows", "writes", "configured", "opens"}]}
    #[arg(long)]
    json: bool,
}

/// One key, configured or found in the store.
pub(crate) struct Use {
    id: KeyId,
    rows: u64,
    writes: bool,
    configured: bool,
    /// Unless it has rows and none of them opens.
    opens: bool,
    lost: bool,
}

impl Use {
    /// Whether rows cannot be read for want of it, and nobody said that it is lost.
    pub(crate) fn is_missing(&self) -> bool {
        !self.opens && !self.lost
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "id": self.id.as_str(), "rows": self.rows, "writes": self.writes, "configured": self.configured,
            "opens": self.opens,
        })
    }

    /// For people; ids are as wide as this.
    pub(crate) fn line(&self, width: usize) -> String {
        let note = match (self.writes, self.configured, self.lost, self.rows) {
            (_, true, ..) if !self.opens => {
                "ANOTHER KEY: none of its rows opens, put the one back that had this id"
            }
            (true, ..) => "writes",
            (_, true, _, 0) => "reads: no row is under it",
            (_, true, ..) => "reads: kube-authn rekey frees it",
            (_, false, true, _) => "lost: its rows count as not there",
            (_, false, false, _) => "NOT CONFIGURED: put it back into kubeAuthn.encryption.keys",
        };
        format!("{:<width$}  {:>9} rows  {note}", self.id.as_str(), self.rows)
    }
}

impl Keys {
    pub(crate) async fn run(&self) -> ExitCode {
        let administration = match self.files.administration().await {
            Ok((_, administration)) => administration,
            Err(code) => return code,
        };
        let keys = match uses(&administration).await {
            Ok(keys) => keys,
            Err(error) => return told(&error),
        };
        let printed = match self.json {
            true => print_json(&keys),
            false => print_text(&keys),
        };
        let missing = keys.iter().any(Use::is_missing);
        match printed {
            Ok(()) if !missing => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// In the order of the configuration, then those that are not configured.
pub(crate) async fn uses(administration: &Administration) -> Result<Vec<Use>> {
    let mut rows = administration.vault.rows_by_key().await?;
    let configured = administration.keys.ids().into_iter().enumerate();
    let mut keys: Vec<_> = configured
        .map(|(index, id)| {
            let found = rows.remove(&id);
            Use {
                rows: found.map_or(0, |key| key.rows),
                id,
                writes: index == 0,
                configured: true,
                opens: found.is_none_or(|key| key.opens),
                lost: false,
            }
        })
        .collect();
    keys.extend(rows.into_iter().map(|(id, key)| Use {
        lost: administration.keys.is_lost(&id),
        id,
        rows: key.rows,
        writes: false,
        configured: false,
        opens: false,
    }));
    Ok(keys)
}

fn print_json(keys: &[Use]) -> io::Result<()> {
    let keys: Vec<Value> = keys.iter().map(Use::json).collect();
    writeln!(io::stdout().lock(), "{}", json!({ "keys": keys }))
}

fn print_text(keys: &[Use]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    lines(keys).try_for_each(|line| writeln!(out, "{line}"))
}

/// One line for each, ids in one column.
pub(crate) fn lines(keys: &[Use]) -> impl Iterator<Item = String> {
    let width = keys.iter().map(|key| key.id.as_str().len()).max();
    keys.iter().map(move |key| key.line(width.unwrap_or_default()))
}
