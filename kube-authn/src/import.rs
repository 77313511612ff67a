//! `kube-authn import`: takes over the plain logins of openportal.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    process::ExitCode,
    sync::Arc,
};

use clap::Args;
use kube_authn_clusters::{AppConfig, Logins};
use kube_authn_core::{
    Clock, EntityRef, Error, ErrorKind, LoginConfig, NewLogin, Result, Secret, SystemClock, TokenKey,
    TokenVault, usable,
};
use kube_authn_oidc::{IssuerClient, LoginVerifier, PostedTokens, stated_identity};
use kube_authn_store::{OpenportalTable, PlainLogin};
use rustls::crypto::aws_lc_rs::default_provider;

use crate::config::{Files, told};

/// Seals the logins of the table into the token store. Their tokens are verified as posted ones are; a subject that stands
/// under several users, there or here, is nobody's; and where a login is stored already, it stays. Run it, then drop the
/// table: its tokens are plain. Another run takes over who is left, and never who has logged out since.
#[derive(Debug, Args)]
pub(crate) struct Import {
    #[command(flatten)]
    files: Files,
    /// The database that holds the table: sqlite://portal.db or postgres://user@host/database?sslmode=verify-full, the
    /// password in PGPASSWORD or ~/.pgpass
    #[arg(long, value_name = "URL", value_parser = secret)]
    from: Secret,
    /// The table, with its schema before it or not
    #[arg(long, value_name = "NAME", default_value = "cluster_tokens")]
    table: String,
    /// Take refresh tokens over too, and with them logins whose tokens have ended. Nothing shows whose a refresh token is:
    /// this trusts that each row of the table was posted by its own user, which openportal never checked
    #[arg(long)]
    with_refresh_tokens: bool,
    /// Do not ask the issuer for its keys, for one that is out of reach: whoever could post to openportal can be anybody
    #[arg(long)]
    unverified: bool,
    /// Take over also users of earlier runs who have no login any more: it brings back who has logged out since
    #[arg(long)]
    again: bool,
    /// Write nothing, and say what would be taken over
    #[arg(long)]
    dry_run: bool,
}

/// An argument that no `Debug` shows: a URL that is refused may hold a password.
#[allow(clippy::unnecessary_wraps, reason = "what clap calls")]
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// What came of the rows.
#[derive(Debug, Default)]
struct Outcome {
    taken: u64,
    skipped: BTreeMap<String, Skipped>,
}

/// The rows that one reason kept out.
#[derive(Debug, Default)]
struct Skipped {
    rows: usize,
    /// Whose they are, as the table names them: the first ones.
    users: Vec<String>,
}

impl Skipped {
    fn add(&mut self, user: &str) {
        self.rows += 1;
        if self.users.len() < NAMED {
            self.users.push(user.escape_debug().to_string());
        }
    }

    /// For people: one line for each user, and how many more there are.
    fn lines(&self) -> impl Iterator<Item = String> {
        let more = self.rows - self.users.len();
        let more = (more > 0).then(|| format!("  and {more} more"));
        self.users.iter().map(|user| format!("  {user}")).chain(more)
    }
}

/// What is skipped, and why; or what stops the run.
enum Stop {
    Skipped(String),
    Failed(Error),
}

impl From<&str> for Stop {
    fn from(reason: &str) -> Self {
        Self::Skipped(reason.to_owned())
    }
}

impl Stop {
    /// What is wrong with a row's tokens, or with the run.
    fn of(error: Error) -> Self {
        match error.kind() {
            ErrorKind::TokenRejected | ErrorKind::Refused => Self::Skipped(error.to_string()),
            ErrorKind::RecordDamaged => UNREADABLE.into(),
            ErrorKind::Conflict => PRESENT.into(),
            _ => Self::Failed(error),
        }
    }
}

impl Import {
    pub(crate) async fn run(&self) -> ExitCode {
        let (config, administration) = match self.files.opened(!self.dry_run).await {
            Ok(opened) => opened,
            Err(code) => return code,
        };
        // What is sealed under a key that the service does not have, nobody can use.
        if let Err(error) = administration.refuse_retired_keys().await {
            return told(&error);
        }
        if self.unverified {
            eprintln!(
                "kube-authn: signatures are not verified: whoever could post tokens to openportal can be anybody"
            );
        }
        match self.import(&config, &administration.vault).await {
            Ok(outcome) => {
                let what = if self.dry_run {
                    "to be taken over"
                } else {
                    "taken over"
                };
                println!("{} {what}", outcome.taken);
                for (reason, skipped) in &outcome.skipped {
                    println!("{} skipped: {reason}", skipped.rows);
                    skipped.lines().for_each(|line| println!("{line}"));
                }
                ExitCode::SUCCESS
            }
            Err(error) => told(&error),
        }
    }

    async fn table(&self) -> Result<OpenportalTable> {
        // The argument was text.
        let url = String::from_utf8_lossy(self.from.expose());
        OpenportalTable::open(&url, &self.table).await
    }

    async fn import(&self, config: &AppConfig, vault: &TokenVault) -> Result<Outcome> {
        let verifiers = verifiers(&Logins::of(config)?, vault)?;
        let identities = self.identities(vault).await?;
        let mut outcome = Outcome::default();
        let mut table = self.table().await?;
        let mut after = String::new();
        loop {
            let page = table.page(&after, PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(outcome);
            };
            after.clone_from(&last.user);
            for row in page {
                let user = row.user.clone();
                match self.take(&verifiers, &identities, vault, row).await {
                    Ok(()) => outcome.taken += 1,
                    Err(Stop::Skipped(reason)) => outcome.skipped.entry(reason).or_default().add(&user),
                    Err(Stop::Failed(error)) => return Err(error),
                }
            }
        }
    }

    /// Whose tokens openportal was given it never looked. So each subject is counted first, over all rows of the table,
    /// whatever else is wrong with them, and over the stored logins.
    async fn identities(&self, vault: &TokenVault) -> Result<Identities> {
        let mut identities = Identities::default();
        let mut table = self.table().await?;
        let mut after = String::new();
        loop {
            let page = table.page(&after, PAGE).await?;
            let Some(last) = page.last() else {
                break;
            };
            after.clone_from(&last.user);
            for row in page {
                if let Some((issuer, subject)) = stated_identity(&row.id_token) {
                    let user = EntityRef::parse(&row.user).map_or(row.user, |user| user.to_string());
                    identities.add(&issuer, &subject, &user);
                }
            }
        }
        let mut after = None;
        loop {
            let page = vault.logins(after.as_ref(), PAGE.into()).await?;
            let Some(last) = page.last() else {
                return Ok(identities);
            };
            after = Some(last.key.clone());
            for login in &page {
                let (key, subject) = (&login.key, &login.metadata.subject);
                identities.add(key.issuer.as_str(), subject.as_str(), key.principal.as_str());
            }
        }
    }

    /// Stores the login of a row if it is its user's, as far as that can be told, and nothing stands there.
    async fn take(
        &self,
        verifiers: &[LoginVerifier],
        identities: &Identities,
        vault: &TokenVault,
        row: PlainLogin,
    ) -> Result<(), Stop> {
        let (verifier, key, login) = self.read(verifiers, row).await?;
        if !identities.is_only_of(&key, &login) {
            return Err(SHARED.into());
        }
        let pinned = vault.refuse_pinned_to_another(&key.principal, &key.issuer, &login.subject);
        pinned.await.map_err(|error| match error.kind() {
            ErrorKind::Refused => PINNED.into(),
            _ => Stop::of(error),
        })?;
        // Any client's, where the service takes any client's.
        let client_id = verifier.login().client_id.as_ref();
        let (user, issuer) = (&key.principal, &key.issuer);
        let present = vault.find(user, issuer, client_id).await.map_err(Stop::of)?;
        if present.is_none() && !self.again && vault.was_taken_over(user, issuer).await.map_err(Stop::of)? {
            return Err(BEFORE.into());
        }
        if !self.dry_run {
            let cut_off = |error| cut_off(user, error);
            // First: the login of a run that was stopped in between would come back after its user has logged out.
            vault.note_taken_over(user, issuer).await.map_err(cut_off)?;
            if present.is_none() {
                vault.log_in(&key, login).await.map_err(cut_off)?;
            }
        }
        match present {
            Some(_) => Err(PRESENT.into()),
            None => Ok(()),
        }
    }

    /// The login of a row, or why it is skipped.
    async fn read<'a>(
        &self,
        verifiers: &'a [LoginVerifier],
        row: PlainLogin,
    ) -> Result<(&'a LoginVerifier, TokenKey, NewLogin), Stop> {
        let user = EntityRef::parse(&row.user).map_err(|_| "user_entity_ref is no entity reference")?;
        let mut tokens = PostedTokens::new(row.id_token).with_access_token(row.access_token);
        tokens.refresh_token = row.refresh_token.filter(|_| self.with_refresh_tokens);
        let mut named = verifiers
            .iter()
            .filter(|verifier| verifier.is_named_by(&tokens.id_token));
        let Some(verifier) = named.next() else {
            return Err(ELSEWHERE.into());
        };
        let taken = verifier.take_over(&user, tokens, !self.unverified).await;
        let (key, login) = taken.map_err(|error| match Stop::of(error) {
            Stop::Failed(error) => Stop::Failed(unreached(error)),
            skipped @ Stop::Skipped(_) => skipped,
        })?;
        if row.issuer != UNKNOWN_ISSUER && row.issuer != key.issuer.as_str() {
            return Err("the row names another issuer than its ID token".into());
        }
        if verifier.login().guests.contains(&user) {
            return Err("guests do not log in to clusters".into());
        }
        let ended = !usable(login.expires_at, SystemClock.now());
        match ended && login.tokens.refresh_token.is_none() {
            true => Err("Token expired".into()),
            false => Ok((verifier, key, login)),
        }
    }
}

/// Who holds which subject of which issuer, by numbers: two of a hundred thousand share one by chance once in a thousand
/// million runs, and are skipped then.
#[derive(Default)]
struct Identities {
    /// `None`: several users.
    holders: HashMap<u64, Option<u64>>,
    hasher: RandomState,
}

impl Identities {
    fn add(&mut self, issuer: &str, subject: &str, user: &str) {
        let user = self.hasher.hash_one(user);
        let holder = self
            .holders
            .entry(self.hasher.hash_one((issuer, subject)))
            .or_insert(Some(user));
        if *holder != Some(user) {
            *holder = None;
        }
    }

    fn is_only_of(&self, key: &TokenKey, login: &NewLogin) -> bool {
        let identity = self
            .hasher
            .hash_one((key.issuer.as_str(), login.subject.as_str()));
        let user = self.hasher.hash_one(key.principal.as_str());
        self.holders.get(&identity) == Some(&Some(user))
    }
}

fn unreached(error: Error) -> Error {
    let text = format!("{error}: nothing is taken over unverified: try again, or run it with --unverified");
    Error::new(error.kind(), text).with_source(error)
}

/// Somebody has to know of her: no other run will say so.
fn cut_off(user: &EntityRef, error: Error) -> Stop {
    match Stop::of(error) {
        Stop::Failed(error) => {
            let text = format!(
                "{error}: the run stopped at {user}, who may be noted as taken over and have no login \
                 (kube-authn logins list): then another run leaves her out, and she logs in herself, or --again brings her back, \
                 with all who have logged out since"
            );
            Stop::Failed(Error::new(error.kind(), text).with_source(error))
        }
        skipped @ Stop::Skipped(_) => skipped,
    }
}

/// All logins of clusterAuth, each once, those of a pinned client first.
fn verifiers(logins: &Logins, vault: &TokenVault) -> Result<Vec<LoginVerifier>> {
    let mut verifiers: Vec<LoginVerifier> = Vec::new();
    let all = logins.default_login().into_iter();
    for login in all.chain(logins.by_cluster().map(|(_, login)| login)) {
        let known = |verifier: &LoginVerifier| login.shares_logins_with(verifier.login());
        if !verifiers.iter().any(known) {
            verifiers.push(verifier(login, vault)?);
        }
    }
    verifiers.sort_by_key(|verifier| verifier.login().client_id.is_none());
    match verifiers.is_empty() {
        true => Err(Error::new(
            ErrorKind::ConfigInvalid,
            "clusterAuth.issuer is not configured: it says whose tokens are taken over",
        )),
        false => Ok(verifiers),
    }
}

fn verifier(login: &LoginConfig, vault: &TokenVault) -> Result<LoginVerifier> {
    let issuer = IssuerClient::of_login(login, Arc::new(default_provider()))?;
    let clock = Arc::new(SystemClock);
    Ok(LoginVerifier::new(login.clone(), issuer, clock, vault.clone()))
}

const PRESENT: &str = "already there: the store holds a login of this user";
const BEFORE: &str =
    "taken over by an earlier run, and its user has no login any more: --again brings it back";
const UNREADABLE: &str = "the stored login of this user does not open: see kube-authn keys";
const SHARED: &str =
    "several users have tokens of one subject, in the table or in the store: whose they are cannot be told";
const PINNED: &str = "the user, or the subject of the tokens, is bound to another since first use";
const ELSEWHERE: &str = "its tokens are of no login of clusterAuth: another issuer or client, or malformed";
/// What openportal writes where a token had no issuer.
const UNKNOWN_ISSUER: &str = "unknown";
/// Users that are named for each reason: who has many has another way to look at the table.
const NAMED: usize = 20;
/// Rows in memory at once, at some four KiB each.
const PAGE: u16 = 200;
