//! `kube-authn logins`: who is logged in where, and an end to it.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use kube_authn_core::{
    ClientId, Clock, EntityRef, Error, Issuer, LoginMetadata, Result, SystemClock, TokenKey, TokenVault,
    serde_json::{Value, json},
    usable,
};

use crate::config::{Files, told};

/// Looks at stored logins, and ends them. Never shows a token.
#[derive(Debug, Args)]
pub(crate) struct Logins {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the stored logins: user, issuer, client, subject, state and end
    List(List),
    /// End logins of one user: every replica cuts their streams within a second
    End(End),
}

/// Reads the store a page at a time.
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    files: Files,
    /// Of this user alone, `user:default/alice`
    #[arg(long, value_name = "ENTITY", value_parser = |text: &str| EntityRef::parse(text))]
    user: Option<EntityRef>,
    /// Print a JSON list of {"user", "issuer", "clientId", "subject", "state", "expiresAt", "refreshable", "createdAt"}
    #[arg(long)]
    json: bool,
}

/// Exits with 1 if there is no such login. The issuer is not told: what it gave may go on elsewhere.
#[derive(Debug, Args)]
struct End {
    #[command(flatten)]
    files: Files,
    /// Whose logins, `user:default/alice`
    #[arg(long, value_name = "ENTITY", value_parser = |text: &str| EntityRef::parse(text))]
    user: EntityRef,
    /// At this issuer alone
    #[arg(long, value_name = "URL", value_parser = |text: &str| Issuer::new(text))]
    issuer: Option<Issuer>,
    /// Of this client alone
    #[arg(long, value_name = "ID", value_parser = |text: &str| ClientId::new(text))]
    client: Option<ClientId>,
}

/// Why printing ended.
enum Broken {
    Store(Error),
    Output(io::Error),
}

impl Logins {
    pub(crate) async fn run(&self) -> ExitCode {
        match &self.command {
            Command::List(list) => list.run().await,
            Command::End(end) => end.run().await,
        }
    }
}

impl List {
    async fn run(&self) -> ExitCode {
        let vault = match self.files.administration().await {
            Ok((_, administration)) => administration.vault,
            Err(code) => return code,
        };
        match self.print(&vault).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(Broken::Store(error)) => told(&error),
            Err(Broken::Output(error)) => {
                eprintln!("kube-authn: cannot print: {error}");
                ExitCode::FAILURE
            }
        }
    }

    async fn print(&self, vault: &TokenVault) -> Result<(), Broken> {
        let mut lines = Lines {
            json: self.json,
            first: true,
        };
        if let Some(user) = &self.user {
            for (key, _, metadata) in vault.list(user).await? {
                lines.print(&key, &metadata)?;
            }
            return lines.end();
        }
        let mut after: Option<TokenKey> = None;
        loop {
            let page = vault.logins(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else {
                return lines.end();
            };
            after = Some(last.key.clone());
            for login in &page {
                lines.print(&login.key, &login.metadata)?;
            }
        }
    }
}

impl End {
    async fn run(&self) -> ExitCode {
        let vault = match self.files.administration().await {
            Ok((_, administration)) => administration.vault,
            Err(code) => return code,
        };
        match self.end(&vault).await {
            Ok(0) => {
                eprintln!("kube-authn: {} has no such login", self.user);
                ExitCode::FAILURE
            }
            Ok(ended) => {
                println!("{ended} ended");
                ExitCode::SUCCESS
            }
            Err(error) => told(&error),
        }
    }

    async fn end(&self, vault: &TokenVault) -> Result<usize> {
        let mut ended = 0;
        for (key, ..) in vault.list(&self.user).await? {
            let meant = self.issuer.as_ref().is_none_or(|issuer| *issuer == key.issuer)
                && self.client.as_ref().is_none_or(|client| *client == key.client_id);
            if meant && vault.revoke(&key).await? {
                ended += 1;
            }
        }
        Ok(ended)
    }
}

/// Prints logins as they come: there may be many.
struct Lines {
    json: bool,
    first: bool,
}

impl Lines {
    fn print(&mut self, key: &TokenKey, metadata: &LoginMetadata) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let first = std::mem::replace(&mut self.first, false);
        match self.json {
            true => write!(
                out,
                "{}\n  {}",
                if first { "[" } else { "," },
                shown(key, metadata)
            ),
            false => writeln!(
                out,
                "{}  {}  {}  {}  {} {}",
                key.principal,
                key.issuer,
                key.client_id,
                metadata.subject.as_str().escape_debug(),
                state(metadata),
                metadata.expires_at,
            ),
        }
    }

    fn end(self) -> Result<(), Broken> {
        match (self.json, self.first) {
            (false, _) => Ok(()),
            (true, true) => Ok(writeln!(io::stdout(), "[]")?),
            (true, false) => Ok(writeln!(io::stdout(), "\n]")?),
        }
    }
}

fn shown(key: &TokenKey, metadata: &LoginMetadata) -> Value {
    json!({
        "user": key.principal.as_str(),
        "issuer": key.issuer.as_str(),
        "clientId": key.client_id.as_str(),
        "subject": metadata.subject.as_str(),
        "state": state(metadata),
        "expiresAt": metadata.expires_at.to_string(),
        "refreshable": metadata.refreshable,
        "createdAt": metadata.created_at.to_string(),
    })
}

/// The words of the metric `kube_authn_logins`.
fn state(metadata: &LoginMetadata) -> &'static str {
    match (
        usable(metadata.expires_at, SystemClock.now()),
        metadata.refreshable,
    ) {
        (true, _) => "usable",
        (false, true) => "refreshable",
        (false, false) => "ended",
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Rows in memory at once, at some two KiB each.
const PAGE: u32 = 500;
