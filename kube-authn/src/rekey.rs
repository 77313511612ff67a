//! `kube-authn rekey`: writes the rows of the token store anew under the newest key.

use std::process::ExitCode;

use clap::Args;
use kube_authn_core::{Rekeyed, Result, TokenVault};

use crate::config::{Files, told};

/// Writes every row anew that another key than the first of kubeAuthn.encryption.keys protects, as the configuration given
/// here has it: it must be the one that the service runs with; nobody is logged out, and the
/// service goes on meanwhile. Stopped in the middle, it goes on where it was when it is run again. Exits with 1 if rows are
/// left.
#[derive(Debug, Args)]
pub(crate) struct Rekey {
    #[command(flatten)]
    files: Files,
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
        if let Some(id) = administration.keys.ids().first() {
            eprintln!("kube-authn: writing under key \"{id}\", the first of kubeAuthn.encryption.keys here");
        }
        let done = match self.all(&administration.vault).await {
            Ok(done) => done,
            Err(error) => return told(&error),
        };
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
        match done.busy + done.damaged {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }

    async fn all(&self, vault: &TokenVault) -> Result<Rekeyed> {
        let mut sum = Rekeyed::default();
        let mut after = None;
        loop {
            let (done, next) = vault.rekey(after.as_ref(), self.dry_run).await?;
            sum += done;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(sum),
            }
        }
    }
}
