//! The block `clusterAuth`: how users log in to clusters.

use std::collections::BTreeMap;

use kube_authn_core::{
    BindingRule, CaBundle, ClientId, ClusterName, EntityRef, IdentityBinding, Issuer, Lifetimes, LoginConfig,
    Problem, Secret, TokenForCluster,
};

use self::lifetimes::lifetimes;
use crate::{AppConfig, ConfigValue, InvalidConfig, findings::Findings};

mod lifetimes;

/// The login of each cluster of strategy `clusterAuth`: one for all, and those of single clusters.
#[derive(Clone, Debug, Default)]
pub struct Logins {
    default: Option<LoginConfig>,
    by_cluster: BTreeMap<String, LoginConfig>,
    expose_token: ExposeToken,
}

/// Who may read a stored token through the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExposeToken {
    /// Nobody.
    #[default]
    Never,
    /// Programs, on behalf of a user.
    Service,
    /// The user too.
    User,
}

impl Logins {
    /// The login of the cluster of this name; `None` if no issuer is configured for it.
    pub fn for_cluster(&self, name: &str) -> Option<&LoginConfig> {
        self.by_cluster.get(name).or(self.default.as_ref())
    }

    /// The login of clusters that have none of their own.
    pub fn default_login(&self) -> Option<&LoginConfig> {
        self.default.as_ref()
    }

    /// The clusters with a login of their own, by name.
    pub fn by_cluster(&self) -> impl Iterator<Item = (&str, &LoginConfig)> {
        self.by_cluster.iter().map(|(name, login)| (name.as_str(), login))
    }

    /// Who may read a stored token through the API.
    pub fn expose_token(&self) -> ExposeToken {
        self.expose_token
    }

    /// Reads the block alone, for a program that asks no locator and looks at no cluster.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn of(config: &AppConfig) -> Result<Self, InvalidConfig> {
        let mut findings = Findings::default();
        let logins = Self::read(config, &mut findings);
        match findings.problems.is_empty() {
            true => Ok(logins),
            false => Err(InvalidConfig::new(findings.problems)),
        }
    }

    /// Reads the block; an absent one gives no login.
    pub(crate) fn read(config: &AppConfig, findings: &mut Findings) -> Self {
        let block = config.value("clusterAuth");
        findings.extend(block.all_vanished());
        if findings.keep(block.optional_object().map(|block| block.is_some())) != Some(true) {
            return Self::default();
        }
        findings.extend(block.unknown_keys(&KEYS));
        let settings = Settings::read(&block, findings);
        let by_cluster = clusters(&block, &settings, findings);
        let default = settings.login();
        secret_needs_client(&block, default.as_ref(), findings);
        let expose_token = one_of(
            &block.child("exposeToken"),
            &[
                ("never", ExposeToken::Never),
                ("service", ExposeToken::Service),
                ("user", ExposeToken::User),
            ],
            findings,
        );
        if default.as_ref().is_some_and(|login| login.client_id.is_none()) {
            findings.warn(
                "clusterAuth.clientId is not set: tokens that the issuer made for any other client are accepted too",
            );
        }
        for (name, login) in by_cluster.iter().filter(|(_, login)| login.client_id.is_none()) {
            findings.warn(format!(
                "clusterAuth.clusters: cluster '{name}' has no clientId: tokens that {} made for any other client are \
                 accepted too",
                login.issuer
            ));
        }
        Self {
            default,
            by_cluster,
            expose_token: expose_token.unwrap_or_default(),
        }
    }
}

/// A login before its issuer is known.
#[derive(Clone)]
struct Settings {
    issuer: Option<Issuer>,
    client_id: Option<ClientId>,
    client_secret: Option<Secret>,
    audience: Option<ClientId>,
    ca: CaBundle,
    token_for_cluster: TokenForCluster,
    binding: IdentityBinding,
    lifetimes: Lifetimes,
    verify_signature: bool,
    guests: Vec<EntityRef>,
}

impl Settings {
    fn read(block: &ConfigValue<'_>, findings: &mut Findings) -> Self {
        let tokens = [
            ("id_token", TokenForCluster::IdToken),
            ("access_token", TokenForCluster::AccessToken),
        ];
        Self {
            issuer: issuer(block, findings),
            client_id: client_id(block, "clientId", findings),
            client_secret: client_secret(block, findings),
            audience: None,
            ca: findings
                .keep(block.child("caFile").ca_file())
                .flatten()
                .unwrap_or(CaBundle::System),
            token_for_cluster: one_of(&block.child("tokenForCluster"), &tokens, findings).unwrap_or_default(),
            binding: binding(&block.child("identityBinding"), findings),
            lifetimes: lifetimes(&block.child("lifetimes"), findings),
            verify_signature: verify_signature(block, findings),
            guests: guests(&block.child("guests"), findings),
        }
    }

    /// The same settings with what one cluster says otherwise. One issuer's CA never vouches for another issuer, and a secret
    /// is told to nobody but the issuer and as the client that it is written beside.
    fn overridden(&self, cluster: &ConfigValue<'_>, findings: &mut Findings) -> Self {
        let mut settings = self.clone();
        if let Some(issuer) = issuer(cluster, findings) {
            if settings.issuer.as_ref() != Some(&issuer) {
                settings.ca = CaBundle::System;
                settings.client_secret = None;
            }
            settings.issuer = Some(issuer);
        }
        if let Some(client_id) = client_id(cluster, "clientId", findings) {
            if settings.client_id.as_ref() != Some(&client_id) {
                settings.client_secret = None;
            }
            settings.client_id = Some(client_id);
        }
        if let Some(secret) = client_secret(cluster, findings) {
            settings.client_secret = Some(secret);
        }
        settings.audience = client_id(cluster, "audience", findings);
        if let Some(ca) = findings.keep(cluster.child("caFile").ca_file()).flatten() {
            settings.ca = ca;
        }
        settings
    }

    fn login(self) -> Option<LoginConfig> {
        let mut login = LoginConfig::new(self.issuer?);
        login.client_id = self.client_id;
        login.client_secret = self.client_secret;
        login.audience = self.audience;
        login.ca = self.ca;
        login.token_for_cluster = self.token_for_cluster;
        login.binding = self.binding;
        login.lifetimes = self.lifetimes;
        login.verify_signature = self.verify_signature;
        login.guests = self.guests;
        Some(login)
    }
}

fn clusters(
    block: &ConfigValue<'_>,
    settings: &Settings,
    findings: &mut Findings,
) -> BTreeMap<String, LoginConfig> {
    let mut logins: BTreeMap<String, LoginConfig> = BTreeMap::new();
    let default = settings.clone().login();
    let elements = findings
        .keep(block.child("clusters").optional_objects())
        .flatten();
    for element in elements.unwrap_or_default() {
        let Some(cluster) = findings.keep(element) else {
            continue;
        };
        findings.extend(cluster.unknown_keys(&CLUSTER_KEYS));
        let place = cluster.child("name");
        let name = place.string().and_then(|name| match ClusterName::new(name) {
            Ok(_) => Ok(name),
            Err(error) => Err(place.problem(error.to_string())),
        });
        let name = findings.keep(name);
        let issuer_is_wrong = issuer_problem(&cluster).is_some() || issuer_problem(block).is_some();
        let login = settings.overridden(&cluster, findings).login();
        if login.is_none() && !issuer_is_wrong {
            findings.push(cluster.child("issuer").missing());
        }
        secret_needs_client(&cluster, login.as_ref(), findings);
        if let (Some(name), Some(login)) = (name, &login) {
            for known in default.iter().chain(logins.values()) {
                findings.extend(unlike(&cluster, name, login, known));
            }
        }
        if let (Some(name), Some(login)) = (name, login)
            && logins.insert(name.to_owned(), login).is_some()
        {
            findings.push(place.problem(format!("Duplicate cluster name '{name}'")));
        }
    }
    logins
}

fn issuer(block: &ConfigValue<'_>, findings: &mut Findings) -> Option<Issuer> {
    let text = findings.keep(block.child("issuer").optional_string()).flatten()?;
    findings.keep(Issuer::new(text).map_err(|error| block.child("issuer").problem(error.to_string())))
}

/// Whether what stands under `issuer` is none, which is reported there.
fn issuer_problem(block: &ConfigValue<'_>) -> Option<Problem> {
    let mut findings = Findings::default();
    issuer(block, &mut findings);
    findings.problems.pop()
}

fn secret_needs_client(block: &ConfigValue<'_>, login: Option<&LoginConfig>, findings: &mut Findings) {
    let place = block.child("clientSecret");
    if !place.is_absent() && login.is_some_and(|login| login.client_id.is_none()) {
        findings.push(place.problem("a secret is one client's: set clientId too"));
    }
}

/// One login serves all clusters of its issuer and client, so all of them speak to the issuer in one way.
fn unlike(
    cluster: &ConfigValue<'_>,
    name: &str,
    login: &LoginConfig,
    known: &LoginConfig,
) -> Option<Problem> {
    let key = match login.shares_logins_with(known) {
        true if login.client_secret != known.client_secret => "clientSecret",
        true if login.ca != known.ca => "caFile",
        _ => return None,
    };
    Some(cluster.child(key).problem(format!(
        "cluster '{name}' shares its logins with others of issuer {} and the same clientId, and differs in {key}: set one \
         {key} for all of them",
        login.issuer
    )))
}

fn client_id(block: &ConfigValue<'_>, key: &str, findings: &mut Findings) -> Option<ClientId> {
    let place = block.child(key);
    let text = findings.keep(place.optional_string()).flatten()?;
    findings.keep(ClientId::new(text).map_err(|error| place.problem(error.to_string())))
}

fn client_secret(block: &ConfigValue<'_>, findings: &mut Findings) -> Option<Secret> {
    findings
        .keep(block.child("clientSecret").optional_secret())
        .flatten()
}

/// Deployments in the field carry `verifySignature: false`; taken by its word it would let anybody be anybody.
fn verify_signature(block: &ConfigValue<'_>, findings: &mut Findings) -> bool {
    let read = findings
        .keep(block.child("verifySignature").optional_bool())
        .flatten();
    let skip = findings
        .keep(block.child("dangerouslySkipVerification").optional_bool())
        .flatten();
    match (read.unwrap_or(true), skip.unwrap_or(false)) {
        (true, false) => true,
        (true, true) => {
            findings.warn(
                "clusterAuth.dangerouslySkipVerification has no effect without 'verifySignature: false': signatures \
                 are verified",
            );
            true
        }
        (false, false) => {
            findings.warn(
                "clusterAuth.verifySignature is false: signatures are verified nevertheless; remove the key (only \
                 'dangerouslySkipVerification: true' beside it turns verification off)",
            );
            true
        }
        (false, true) => {
            findings.warn(
                "clusterAuth.dangerouslySkipVerification is true: signatures are not verified, anybody who can post a \
                 token can pass for anybody",
            );
            false
        }
    }
}

fn binding(place: &ConfigValue<'_>, findings: &mut Findings) -> IdentityBinding {
    if place.is_absent() || place.as_text() == Some("auto") {
        return IdentityBinding::Auto;
    }
    let refused = |place: &ConfigValue<'_>| {
        place.problem("expected auto, or a list of subject, email, claim:<name>, first-use, none")
    };
    let rules = match place.optional_strings() {
        Ok(Some(rules)) if !rules.is_empty() => rules,
        Err(problem) if place.as_text().is_none() => {
            findings.push(problem);
            return IdentityBinding::Auto;
        }
        _ => {
            findings.push(refused(place));
            return IdentityBinding::Auto;
        }
    };
    let mut parsed = Vec::with_capacity(rules.len());
    for (index, rule) in rules.into_iter().enumerate() {
        match binding_rule(rule) {
            Some(rule) => parsed.push(rule),
            None => findings.push(refused(&place.element(index))),
        }
    }
    if parsed.contains(&BindingRule::None) {
        findings.warn(
            "clusterAuth.identityBinding holds none: whoever gets hold of a token can store it as their own",
        );
    }
    IdentityBinding::Rules(parsed)
}

fn binding_rule(rule: &str) -> Option<BindingRule> {
    Some(match rule {
        "subject" => BindingRule::Subject,
        "email" => BindingRule::Email,
        "first-use" => BindingRule::FirstUse,
        "none" => BindingRule::None,
        _ => match rule.strip_prefix("claim:").map(str::trim) {
            Some(claim) if !claim.is_empty() => BindingRule::Claim(claim.to_owned()),
            _ => return None,
        },
    })
}

fn guests(place: &ConfigValue<'_>, findings: &mut Findings) -> Vec<EntityRef> {
    let names = findings.keep(place.optional_strings()).flatten();
    let names = names.unwrap_or_else(|| GUESTS.to_vec());
    names
        .into_iter()
        .enumerate()
        .filter_map(|(index, name)| {
            let parsed = EntityRef::parse(name);
            findings.keep(parsed.map_err(|error| place.element(index).problem(error.to_string())))
        })
        .collect()
}

fn one_of<T: Copy>(place: &ConfigValue<'_>, choices: &[(&str, T)], findings: &mut Findings) -> Option<T> {
    let text = findings.keep(place.optional_string()).flatten()?;
    let chosen = choices.iter().find(|(name, _)| *name == text);
    if chosen.is_none() {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        findings.push(place.problem(format!("expected one of {}", names.join(", "))));
    }
    chosen.map(|(_, value)| *value)
}

const KEYS: [&str; 12] = [
    "issuer",
    "clientId",
    "clientSecret",
    "caFile",
    "verifySignature",
    "dangerouslySkipVerification",
    "tokenForCluster",
    "identityBinding",
    "exposeToken",
    "guests",
    "lifetimes",
    "clusters",
];

const CLUSTER_KEYS: [&str; 6] = ["name", "issuer", "clientId", "clientSecret", "audience", "caFile"];

/// Who Backstage's guest provider signs people in as, by its default and by its older one.
const GUESTS: [&str; 2] = ["user:default/guest", "user:development/guest"];

#[cfg(test)]
mod tests;
