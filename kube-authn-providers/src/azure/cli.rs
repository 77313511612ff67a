//! Whoever is logged in to `az` or `azd`: the vendor's own programs, run without a shell.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use kube_authn_core::{ErrorKind, Secret, UnverifiedClaims, serde_json};
use serde::Deserialize;

use super::{error::AzureError, options::Wanted, tokens::Fetched};
use crate::command::{Command, Finished};

/// A token of the Azure CLI's account
/// (<https://learn.microsoft.com/cli/azure/account#az-account-get-access-token>).
pub(super) async fn azure_cli(
    program: Option<&PathBuf>,
    wanted: &Wanted,
    tenant: Option<&str>,
) -> Result<Fetched, AzureError> {
    let mut args = vec![
        "account",
        "get-access-token",
        "--output",
        "json",
        "--resource",
        &wanted.application,
    ];
    if let Some(tenant) = tenant {
        args.extend(["--tenant", tenant]);
    }
    let printed = run("az", program, &args, "log in with `az login`").await?;
    let answer: AzToken = serde_json::from_slice(printed.expose()).map_err(|_| no_token("az"))?;
    let token = Secret::new(answer.access_token);
    // `expiresOn` is local time of the machine that ran it; before 2.54 there was nothing else.
    let stated = answer
        .expires_on
        .and_then(|second| Timestamp::from_second(second).ok());
    let claimed = || UnverifiedClaims::of(token.expose())?.expires_at();
    let expires_at = stated.or_else(claimed).ok_or_else(|| no_token("az"))?;
    Ok(Fetched { token, expires_at })
}

/// A token of the Azure Developer CLI's account
/// (<https://learn.microsoft.com/azure/developer/azure-developer-cli/reference#azd-auth-token>).
pub(super) async fn azure_developer_cli(
    program: Option<&PathBuf>,
    wanted: &Wanted,
    tenant: Option<&str>,
) -> Result<Fetched, AzureError> {
    let scope = wanted.scope();
    let mut args = vec![
        "auth",
        "token",
        "--output",
        "json",
        "--no-prompt",
        "--scope",
        &scope,
    ];
    if let Some(tenant) = tenant {
        args.extend(["--tenant-id", tenant]);
    }
    let printed = run("azd", program, &args, "log in with `azd auth login`").await?;
    let answer: AzdToken = serde_json::from_slice(printed.expose()).map_err(|_| no_token("azd"))?;
    Ok(Fetched {
        token: Secret::new(answer.token),
        expires_at: answer.expires_on.parse().map_err(|_| no_token("azd"))?,
    })
}

/// What the program printed.
async fn run(
    name: &'static str,
    program: Option<&PathBuf>,
    args: &[&str],
    login: &str,
) -> Result<Secret, AzureError> {
    let program: &Path = program.ok_or_else(|| AzureError::Absent(format!("{name} is not on PATH")))?;
    let command = Command::new(program).args(args).timeout(TIME_LIMIT);
    let finished = command
        .run()
        .await
        .map_err(|error| AzureError::not_run(name, &error))?;
    match finished.code {
        Some(0) => Ok(finished.stdout),
        _ => Err(AzureError::Tool {
            program: name,
            reason: refusal(&finished, login),
            kind: ErrorKind::ConfigInvalid,
        }),
    }
}

/// Its errors name accounts and tenants; what counts in them are Entra's codes.
fn refusal(finished: &Finished, login: &str) -> String {
    let code = finished
        .code
        .map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
    let said = String::from_utf8_lossy(finished.stderr.expose());
    let digits = said.split("AADSTS").nth(1).map(|after| {
        after
            .chars()
            .take_while(char::is_ascii_digit)
            .take(MAX_CODE_DIGITS)
            .collect::<String>()
    });
    let entra = digits.filter(|digits| !digits.is_empty());
    let entra = entra
        .map(|digits| format!(" and AADSTS{digits}"))
        .unwrap_or_default();
    format!("ends with {code}{entra}: {login}")
}

fn no_token(program: &'static str) -> AzureError {
    AzureError::Tool {
        program,
        reason: "printed something that is no token".to_owned(),
        kind: ErrorKind::Unexpected,
    }
}

#[derive(Deserialize)]
struct AzToken {
    #[serde(rename = "accessToken")]
    access_token: String,
    expires_on: Option<i64>,
}

#[derive(Deserialize)]
struct AzdToken {
    token: String,
    #[serde(rename = "expiresOn")]
    expires_on: String,
}

/// A little more than Azure's own libraries give it: it starts a Python interpreter.
const TIME_LIMIT: Duration = Duration::from_secs(13);

const MAX_CODE_DIGITS: usize = 10;
