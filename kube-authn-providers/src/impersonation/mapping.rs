//! From a principal to the user that an API server is told.

use std::collections::BTreeMap;

use kube_authn_core::{
    ClusterDetails, Error, ErrorKind, Impersonation, Principal, PrincipalName, Problem, Result,
};

use crate::options::Block;

/// What holds for all clusters unless one says otherwise. A template is a text with the placeholders `{name}`,
/// `{namespace}`, `{ref}`, `{email}`, `{issuer}` and `{subject}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImpersonationConfig {
    /// The strategy whose credential carries the user's name; `serviceAccount` if left out.
    pub carrier: Option<String>,
    /// Template of a user's name; `{name}` if left out.
    pub user: Option<String>,
    /// Template of a service's name, with the placeholder `{name}` alone. Left out: services are refused.
    pub service: Option<String>,
    /// Template of the unique identifier. Left out: none is sent.
    pub uid: Option<String>,
    /// Templates of groups. Left out: none but those of the principal, if they are taken.
    pub groups: Option<Vec<String>>,
    /// `principal` takes the groups that the caller's verifier read, `none` does not and is the default.
    pub groups_from: Option<String>,
    /// What stands before each group of the principal.
    pub groups_prefix: Option<String>,
    /// Templates of extra fields.
    pub extra: Option<BTreeMap<String, String>>,
}

/// The settings of one cluster.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) carrier: String,
    pub(super) user: String,
    pub(super) service: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) groups: Vec<String>,
    pub(super) of_principal: bool,
    pub(super) groups_prefix: String,
    pub(super) extra: BTreeMap<String, String>,
}

impl Mapping {
    pub(super) fn of(cluster: &ClusterDetails, defaults: &ImpersonationConfig) -> Result<Self, Vec<Problem>> {
        let mut block = Block::of(cluster, "impersonation", &KEYS);
        let mut text = |key: &str, default: &Option<String>| {
            let own = block.text(key).map(str::to_owned);
            own.or_else(|| default.clone())
        };
        let carrier = text("carrier", &defaults.carrier).unwrap_or_else(|| SERVICE_ACCOUNT.to_owned());
        let user = text("user", &defaults.user).unwrap_or_else(|| "{name}".to_owned());
        let service = text("service", &defaults.service);
        let uid = text("uid", &defaults.uid);
        let groups_from = text("groupsFrom", &defaults.groups_from);
        let groups_prefix = text("groupsPrefix", &defaults.groups_prefix).unwrap_or_default();
        let groups = match block.texts("groups") {
            Some(own) => own.into_iter().map(str::to_owned).collect(),
            None => defaults.groups.clone().unwrap_or_default(),
        };
        let extra = block.text_map("extra").or_else(|| defaults.extra.clone());
        let of_principal = match groups_from.as_deref() {
            None | Some("none") => false,
            Some("principal") => true,
            Some(_) => {
                block.refuse("groupsFrom", "expected one of none, principal");
                false
            }
        };
        let mapping = Self {
            carrier,
            user,
            service,
            uid,
            groups,
            of_principal,
            groups_prefix,
            extra: extra.unwrap_or_default(),
        };
        mapping.check(&mut block);
        match block.problems.is_empty() {
            true => Ok(mapping),
            false => Err(block.problems),
        }
    }

    /// What cannot work for anybody is told before anybody comes.
    fn check(&self, block: &mut Block<'_>) {
        let service = ("service".to_owned(), &self.service, &PLACEHOLDERS[..1]);
        let groups = self.groups.iter().enumerate();
        let groups = groups.map(|(at, group)| (format!("groups[{at}]"), group));
        let extra = self
            .extra
            .iter()
            .map(|(key, value)| (format!("extra.{key}"), value));
        let uid = self.uid.iter().map(|uid| ("uid".to_owned(), uid));
        let of_users = [("user".to_owned(), &self.user)]
            .into_iter()
            .chain(uid)
            .chain(groups)
            .chain(extra);
        let templates = of_users
            .map(|(key, template)| (key, template, &PLACEHOLDERS[..]))
            .chain(
                service
                    .1
                    .iter()
                    .map(|template| (service.0.clone(), template, service.2)),
            );
        for (key, template, known) in templates {
            if let Err(text) = check_template(template, known) {
                block.refuse(&key, text);
            }
        }
        if is_literal(&self.user) {
            block.refuse(
                "user",
                "expected a placeholder such as {name}: else all users would be one",
            );
        }
        if let Err(error) = Impersonation::user(&format!("{}x", self.groups_prefix)) {
            block.refuse("groupsPrefix", error.to_string());
        }
        for key in self.extra.keys() {
            if let Err(error) = Impersonation::user("x").and_then(|user| user.with_extra(key, "x")) {
                block.refuse(&format!("extra.{key}"), error.to_string());
            }
        }
    }

    /// Whom the API server is told.
    ///
    /// # Errors
    /// `Refused` if the principal is nobody, a service that is not mapped, lacks what a template needs, or would get a name
    /// that Kubernetes reserves.
    pub(super) fn impersonation(&self, principal: &Principal) -> Result<Impersonation> {
        let (user, fields) = match principal.name() {
            PrincipalName::User(_) => (self.user.as_str(), Fields::of_user(principal)),
            PrincipalName::Service(name) => match &self.service {
                Some(template) => (template.as_str(), Fields::of_service(name)),
                None => return Err(refused("services are not mapped to users of this cluster")),
            },
            // Nobody, and whatever may be added.
            _ => {
                return Err(Error::new(
                    ErrorKind::LoginRequired,
                    "nobody is impersonated: this cluster knows its users, log in first",
                ));
            }
        };
        let mut impersonation = Impersonation::user(&fields.render(user)?)?;
        if let Some(uid) = &self.uid {
            impersonation = impersonation.with_uid(&fields.render(uid)?)?;
        }
        for group in &self.groups {
            impersonation = impersonation.with_group(&fields.render(group)?)?;
        }
        if self.of_principal {
            for group in principal.groups() {
                impersonation = impersonation.with_group(&format!("{}{group}", self.groups_prefix))?;
            }
        }
        for (key, value) in &self.extra {
            impersonation = impersonation.with_extra(key, &fields.render(value)?)?;
        }
        Ok(impersonation)
    }
}

/// The values of the placeholders.
struct Fields(Vec<(&'static str, String)>);

impl Fields {
    fn of_user(principal: &Principal) -> Self {
        let mut fields = Vec::new();
        if let Some(user) = principal.entity_ref() {
            let rest = user.as_str().split_once(':').map_or("", |(_, rest)| rest);
            let namespace = rest.split_once('/').map_or("", |(namespace, _)| namespace);
            fields.push(("ref", user.as_str().to_owned()));
            // The bare name is one person's only among people of one namespace.
            if user.kind() == "user" {
                fields.push(("name", user.name().to_owned()));
                fields.push(("namespace", namespace.to_owned()));
            }
        }
        if let Some(email) = principal.email() {
            fields.push(("email", email.as_str().to_owned()));
        }
        if let Some((issuer, subject)) = principal.verified() {
            fields.push(("issuer", issuer.as_str().to_owned()));
            fields.push(("subject", subject.as_str().to_owned()));
        }
        Self(fields)
    }

    fn of_service(name: &str) -> Self {
        Self(vec![("name", name.to_owned())])
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| *known == name)?;
        Some(&found.1)
    }

    fn render(&self, template: &str) -> Result<String> {
        let is_ambiguous = template.contains("{name}")
            && !template.contains("{namespace}")
            && !template.contains("{ref}")
            && self
                .get("namespace")
                .is_some_and(|namespace| namespace != DEFAULT_NAMESPACE);
        if is_ambiguous {
            return Err(refused(
                "the user is not of namespace default, and the template does not tell namespaces apart: add {namespace}",
            ));
        }
        let mut rendered = String::new();
        for part in parts(template) {
            match part {
                Part::Text(text) => rendered.push_str(text),
                Part::Placeholder(name) => {
                    let value = self.get(name);
                    let missing = || {
                        refused(&format!(
                            "the principal has no {{{name}}}, which the template needs"
                        ))
                    };
                    rendered.push_str(value.ok_or_else(missing)?);
                }
            }
        }
        Ok(rendered)
    }
}

enum Part<'t> {
    Text(&'t str),
    Placeholder(&'t str),
}

fn parts(template: &str) -> impl Iterator<Item = Part<'_>> {
    template.split_inclusive('}').flat_map(|piece| {
        match piece.strip_suffix('}').and_then(|piece| piece.split_once('{')) {
            Some((text, name)) => [Some(Part::Text(text)), Some(Part::Placeholder(name))],
            None => [Some(Part::Text(piece)), None],
        }
        .into_iter()
        .flatten()
    })
}

/// Whether a template gives everybody the same.
pub(super) fn is_literal(template: &str) -> bool {
    parts(template).all(|part| matches!(part, Part::Text(_)))
}

fn check_template(template: &str, known: &[&str]) -> Result<(), String> {
    let mut sample = String::new();
    for part in parts(template) {
        match part {
            Part::Text(text) if text.contains(['{', '}']) => {
                return Err("a brace without its counterpart".to_owned());
            }
            Part::Text(text) => sample.push_str(text),
            Part::Placeholder(name) if known.contains(&name) => sample.push('x'),
            Part::Placeholder(_) => {
                let known: Vec<_> = known.iter().map(|name| format!("{{{name}}}")).collect();
                return Err(format!("unknown placeholder: expected {}", known.join(", ")));
            }
        }
    }
    match Impersonation::user(&sample) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Refused, format!("nobody is impersonated: {why}"))
}

pub(super) const CARRIER_KEY: &str = "kubeAuthn.impersonation.carrier";

const KEYS: [&str; 8] = [
    "carrier",
    "user",
    "service",
    "uid",
    "groups",
    "groupsFrom",
    "groupsPrefix",
    "extra",
];

const PLACEHOLDERS: [&str; 6] = ["name", "namespace", "ref", "email", "issuer", "subject"];
const SERVICE_ACCOUNT: &str = "serviceAccount";
const DEFAULT_NAMESPACE: &str = "default";
