//! `kube-authn import`: takes over the plain logins of openportal.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    process::ExitCode,
};

use clap::Args;
use kube_authn_clusters::{AppConfig, Logins};
use kube_authn_core::{
    Clock, EntityRef, Error, ErrorKind, Login, LoginConfig, NewLogin, Result, SystemClock, TokenKey,
    TokenVault, usable,
};
use kube_authn_oidc::{PostedTokens, unverified_login};
use kube_authn_store::{OpenportalTable, PlainLogin};

use crate::config::{Files, told};

/// Seals every login of the table into the token store. Issuer, client, subject and end must be those of clusterAuth; whose
/// login it is, is the table's word. Run again, it changes nothing that is newer. Delete the table afterwards: its tokens are
/// plain.
#[derive(Debug, Args)]
pub(crate) struct Import {
    #[command(flatten)]
    files: Files,
    /// The database that holds the table: sqlite://portal.db or postgres://user:password@host/database
    #[arg(long, value_name = "URL")]
    from: String,
    /// The table, with its schema before it or not
    #[arg(long, value_name = "NAME", default_value = "cluster_tokens")]
    table: String,
    /// Write nothing, and say what would be taken over
    #[arg(long)]
    dry_run: bool,
}

/// What came of the rows.
#[derive(Debug, Default)]
struct Outcome {
    taken: u64,
    skipped: BTreeMap<String, u64>,
}

impl Import {
    pub(crate) async fn run(&self) -> ExitCode {
        let (config, administration) = match self.files.administration().await {
            Ok(opened) => opened,
            Err(code) => return code,
        };
        match self.import(&config, &administration.vault).await {
            Ok(outcome) => {
                let what = if self.dry_run {
                    "to be taken over"
                } else {
                    "taken over"
                };
                println!("{} {what}", outcome.taken);
                for (reason, rows) in &outcome.skipped {
                    println!("{rows} skipped: {reason}");
                }
                ExitCode::SUCCESS
            }
            Err(error) => told(&error),
        }
    }

    async fn import(&self, config: &AppConfig, vault: &TokenVault) -> Result<Outcome> {
        let logins = configured(&Logins::of(config)?)?;
        let shared = self.shared_subjects(&logins).await?;
        let mut outcome = Outcome::default();
        let mut table = OpenportalTable::open(&self.from, &self.table).await?;
        let mut after = String::new();
        loop {
            let page = table.page(&after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(outcome);
            };
            after.clone_from(&last.user);
            for row in page {
                let read = read(&logins, row).and_then(|(key, login)| match shared.is_shared(&key, &login) {
                    true => Err(SHARED.to_owned()),
                    false => Ok((key, login)),
                });
                let stored = match read {
                    Ok((key, login)) => self.store(vault, &key, login).await?,
                    Err(reason) => Err(reason),
                };
                match stored {
                    Ok(()) => outcome.taken += 1,
                    Err(reason) => *outcome.skipped.entry(reason).or_default() += 1,
                }
            }
        }
    }

    /// A subject of an issuer that stands under several users: openportal never looked whose tokens it was given.
    async fn shared_subjects(&self, logins: &[LoginConfig]) -> Result<Subjects> {
        let mut subjects = Subjects::default();
        let mut table = OpenportalTable::open(&self.from, &self.table).await?;
        let mut after = String::new();
        loop {
            let page = table.page(&after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(subjects);
            };
            after.clone_from(&last.user);
            for row in page {
                if let Ok((key, login)) = read(logins, row) {
                    subjects.add(&key, &login);
                }
            }
        }
    }

    /// Stores the login if what stands there is older; else says why not.
    async fn store(&self, vault: &TokenVault, key: &TokenKey, login: NewLogin) -> Result<Result<(), String>> {
        match vault.load(key).await {
            Ok(Some(present)) if !is_newer(&login, &present) => return Ok(Err(NEWER.to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::RecordDamaged => return Ok(Err(UNREADABLE.to_owned())),
            Err(error) => return Err(error),
        }
        if self.dry_run {
            return Ok(Ok(()));
        }
        match vault.log_in(key, login).await {
            Ok(_) => Ok(Ok(())),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(Err(NEWER.to_owned())),
            Err(error) => Err(error),
        }
    }
}

/// How many users each subject stands under, by a number for each: two of a hundred thousand share one by chance once in a
/// thousand million runs, and are skipped then.
#[derive(Default)]
struct Subjects {
    users: HashMap<u64, u32>,
    hasher: RandomState,
}

impl Subjects {
    fn number(&self, key: &TokenKey, login: &NewLogin) -> u64 {
        self.hasher
            .hash_one((key.issuer.as_str(), login.subject.as_str()))
    }

    fn add(&mut self, key: &TokenKey, login: &NewLogin) {
        *self.users.entry(self.number(key, login)).or_default() += 1;
    }

    fn is_shared(&self, key: &TokenKey, login: &NewLogin) -> bool {
        self.users
            .get(&self.number(key, login))
            .is_some_and(|users| *users > 1)
    }
}

/// All logins of clusterAuth, each once.
fn configured(logins: &Logins) -> Result<Vec<LoginConfig>> {
    let mut configured: Vec<LoginConfig> = Vec::new();
    let all = logins.default_login().into_iter();
    for login in all.chain(logins.by_cluster().map(|(_, login)| login)) {
        let same = |known: &LoginConfig| known.issuer == login.issuer && known.client_id == login.client_id;
        if !configured.iter().any(same) {
            configured.push(login.clone());
        }
    }
    match configured.is_empty() {
        true => Err(Error::new(
            ErrorKind::ConfigInvalid,
            "clusterAuth.issuer is not configured: it says whose tokens are taken over",
        )),
        false => Ok(configured),
    }
}

/// The login of a row, or why it is skipped.
fn read(logins: &[LoginConfig], row: PlainLogin) -> Result<(TokenKey, NewLogin), String> {
    let user =
        EntityRef::parse(&row.user).map_err(|_| "user_entity_ref is no entity reference".to_owned())?;
    let mut tokens = PostedTokens::new(row.id_token).with_access_token(row.access_token);
    tokens.refresh_token = row.refresh_token;
    let mut reason = String::new();
    for login in logins {
        match unverified_login(login, &user, tokens.clone()) {
            Ok((key, taken)) => {
                if row.issuer != UNKNOWN_ISSUER && row.issuer != key.issuer.as_str() {
                    return Err("the row names another issuer than its ID token".to_owned());
                }
                if login.guests.contains(&user) {
                    return Err("guests do not log in to clusters".to_owned());
                }
                let ended = !usable(taken.expires_at, SystemClock.now());
                if ended && taken.tokens.refresh_token.is_none() {
                    return Err("expired, and there is no refresh token".to_owned());
                }
                return Ok((key, taken));
            }
            Err(error) => reason = error.to_string(),
        }
    }
    match logins {
        [_] => Err(reason),
        _ => Err(
            "its tokens are of no login of clusterAuth: another issuer or client, malformed, or without end"
                .to_owned(),
        ),
    }
}

/// By the instant at which the issuer made the tokens, else by their end. The same login once more is not.
fn is_newer(login: &NewLogin, present: &Login) -> bool {
    match (login.issued_at, present.issued_at()) {
        (Some(new), Some(old)) => new > old,
        _ => login.expires_at > present.metadata.expires_at,
    }
}

const NEWER: &str = "the store holds this login or a newer one";
const UNREADABLE: &str = "the stored login of this user does not open: see kube-authn keys";
const SHARED: &str = "several users have tokens of one subject: whose they are cannot be told";
/// What openportal writes where a token had no issuer.
const UNKNOWN_ISSUER: &str = "unknown";
/// Rows in memory at once, at some four KiB each.
const PAGE: u16 = 200;
