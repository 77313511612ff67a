//! `kube-authn rekey`: writes the rows of the token store anew under the newest key.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Args;
use kube_authn::Administration;
use kube_authn_core::{Error, ErrorKind, Rekeyed, Result, TokenVault};

use crate::config::{Files, told};

/// Writes every row anew that another key than the first of kubeAuthn.encryption.keys protects, as the configuration given
/// here has it: it must be the one that the service runs with, and is refused where the store shows that it is not. Nobody is
/// logged out, and the service goes on meanwhile. Stopped in the middle, it goes on where it was when it is run again. Exits
/// with 1 if rows are left, those of lost keys aside.
#[derive(Debug, Args)]
pub(crate) struct Rekey {
    #[command(flatten)]
    files: Files,
    /// The key to write under, the first one here: needed while no row is under it, to say that every service has it
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Write nothing, and say what would be written
    #[arg(long)]
    dry_run: bool,
}

impl Rekey {
    pub(crate) async fn run(&self) -> ExitCode {
        let administration = match self.files.administration().await {
            Ok((_, administration)) => administration,
            Err(code) => return code,
        };
        if let Err(error) = self.refuse_stale(&administration).await {
            return told(&error);
        }
        if let Some(id) = administration.keys.ids().first() {
            eprintln!("kube-authn: writing under key \"{id}\", the first of kubeAuthn.encryption.keys here");
        }
        let mut done = Rekeyed::default();
        if let Err(error) = self.all(&administration.vault, &mut done).await {
            eprintln!(
                "kube-authn: it stopped after {} rows: run it again for the rest",
                visited(&done)
            );
            return told(&error);
        }
        let what = if self.dry_run { "to be written" } else { "written" };
        println!(
            "{} {what} under the newest key, {} protected by it already, {} being refreshed, {} that do not open",
            done.rewritten, done.current, done.busy, done.damaged
        );
        if done.busy > 0 {
            eprintln!(
                "kube-authn: rows that are being refreshed were left alone: run it again in two minutes"
            );
        }
        if done.damaged > 0 {
            eprintln!(
                "kube-authn: rows that do not open stay as they are: their key is not configured (see kube-authn keys), or \
                 they were changed outside"
            );
        }
        if done.lost > 0 {
            eprintln!(
                "kube-authn: {} rows of lost keys are left: they count as not there, and new logins take their place",
                done.lost
            );
        }
        match done.busy + done.damaged {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    /// What is written under a key that a service does not have, that service cannot read. So a configuration that may be
    /// older than the services' own writes nothing.
    async fn refuse_stale(&self, administration: &Administration) -> Result<()> {
        let ids = administration.keys.ids();
        let Some(first) = ids.first() else {
            return Ok(());
        };
        if let Some(key) = self.key.as_deref().filter(|key| *key != first.as_str()) {
            return Err(refused(&format!(
                "--key is \"{}\", and the first of kubeAuthn.encryption.keys here is \"{first}\"",
                key.escape_debug()
            )));
        }
        let rows = administration.vault.rows_by_key().await?;
        if let Some(missing) = administration.missing_keys(&rows) {
            return Err(refused(&format!(
                "the token store holds rows under keys that are not in kubeAuthn.encryption.keys here: {missing}: take the \
                 configuration that the service runs with, or name a key that nobody has any more in \
                 kubeAuthn.encryption.lost"
            )));
        }
        if let Err(error) = administration.refuse_changed_keys(&rows) {
            return Err(refused(&error.to_string()));
        }
        let is_new = !rows.is_empty() && !rows.contains_key(first);
        match is_new && self.key.is_none() && !self.dry_run {
            true => Err(refused(&format!(
                "no row is under key \"{first}\", the first of kubeAuthn.encryption.keys here: if every service has that key, \
                 say so with --key {first}; if this configuration is older than theirs, they could not read what is written"
            ))),
            false => Ok(()),
        }
    }

    /// Adds up what is done, and on a terminal shows how far it is.
    async fn all(&self, vault: &TokenVault, sum: &mut Rekeyed) -> Result<()> {
        let shows = io::stderr().is_terminal();
        let mut after = None;
        loop {
            let page = vault.rekey(after.as_ref(), self.dry_run).await;
            if shows {
                // The line begins anew with every page, and is empty at the end.
                eprint!("\r\x1b[K");
            }
            let (done, next) = page?;
            *sum += done;
            let Some(next) = next else { return Ok(()) };
            after = Some(next);
            if shows {
                eprint!("kube-authn: {} rows so far", visited(sum));
            }
        }
    }
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::ConfigInvalid, format!("nothing is written: {why}"))
}

fn visited(done: &Rekeyed) -> u64 {
    done.rewritten + done.current + done.busy + done.damaged + done.lost
}
