//! Backstage's block `aws`: its rules and texts (`@backstage/integration-aws-node`), without its two traps.

use kube_authn_core::Secret;

use crate::{AppConfig, ConfigValue, findings::Findings};

/// The accounts that the application has credentials for.
///
/// A block that is absent, empty or `null` says nothing. Two things are read that Backstage's documentation shows and its
/// code refuses or forgets: an account with keys and a region, and `mainAccount.roleName`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AwsAccounts {
    /// Who the application is by itself.
    pub main_account: AwsAccountConfig,
    /// Who it is in other accounts, in the order of the file, each id once.
    pub accounts: Vec<(String, AwsAccountConfig)>,
    /// The role to assume in accounts that are not listed.
    pub account_defaults: AwsAccountConfig,
}

/// What the block says about one account; each part may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AwsAccountConfig {
    /// Access key id and secret access key.
    pub keys: Option<(String, Secret)>,
    /// A profile of the machine's AWS configuration files.
    pub profile: Option<String>,
    /// The role to assume.
    pub role_name: Option<String>,
    /// The partition of the role.
    pub partition: Option<String>,
    /// Where STS is called.
    pub region: Option<String>,
    /// The external id that the role asks for.
    pub external_id: Option<String>,
    /// A file with an OIDC token to assume the role with.
    pub web_identity_token_file: Option<String>,
}

/// An account as it is written, where half a key is possible.
struct Written {
    access_key_id: Option<String>,
    secret_access_key: Option<Secret>,
    rest: AwsAccountConfig,
}

impl AwsAccounts {
    /// `is_used` says whether a cluster's strategy is `aws`: only then is a value that vanished by substitution a problem.
    pub(crate) fn read(config: &AppConfig, is_used: bool, findings: &mut Findings) -> Self {
        let block = config.value("aws");
        if is_used {
            findings.extend(block.all_vanished());
        }
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self::default();
        }
        let main = block.child("mainAccount");
        let defaults = block.child("accountDefaults");
        Self {
            main_account: account(&main, &Rules::MAIN, MAIN, findings),
            accounts: accounts(&block.child("accounts"), findings),
            account_defaults: account(&defaults, &Rules::DEFAULTS, DEFAULTS, findings),
        }
    }
}

fn accounts(list: &ConfigValue<'_>, findings: &mut Findings) -> Vec<(String, AwsAccountConfig)> {
    let mut accounts: Vec<(String, AwsAccountConfig)> = Vec::new();
    let elements = findings.keep(list.optional_objects()).flatten();
    for element in elements.unwrap_or_default() {
        let Some(element) = findings.keep(element) else {
            continue;
        };
        let Some(id) = findings.keep(element.child("accountId").string()) else {
            continue;
        };
        let found = account(
            &element,
            &Rules::LISTED,
            &format!("AWS integration account {id}"),
            findings,
        );
        match accounts.iter_mut().find(|(known, _)| known == id) {
            Some((_, known)) => {
                findings.warn(format!(
                    "{} names account {id} again: the last entry counts",
                    list.key()
                ));
                *known = found;
            }
            None => accounts.push((id.to_owned(), found)),
        }
    }
    accounts
}

fn account(place: &ConfigValue<'_>, rules: &Rules, who: &str, findings: &mut Findings) -> AwsAccountConfig {
    if findings.keep(place.optional_object().map(drop)).is_none() || place.is_absent() {
        return AwsAccountConfig::default();
    }
    let written = written(place, rules, findings);
    // What vanished is told by itself, if it matters.
    let is_whole = place.all_vanished().is_empty();
    if let Some(broken) = rules.broken(&written).filter(|_| is_whole) {
        findings.push(place.problem(format!("{who} has {broken}")));
    }
    AwsAccountConfig {
        keys: written.access_key_id.zip(written.secret_access_key),
        ..written.rest
    }
}

fn written(place: &ConfigValue<'_>, rules: &Rules, findings: &mut Findings) -> Written {
    let mut text = |key: &str| {
        let read = place.child(key).optional_string();
        findings.keep(read).flatten().map(str::to_owned)
    };
    let (access_key_id, secret) = match rules.has_keys {
        true => (text("accessKeyId"), text("secretAccessKey")),
        false => (None, None),
    };
    Written {
        access_key_id,
        secret_access_key: secret.map(|secret| Secret::new(secret.trim())),
        rest: AwsAccountConfig {
            keys: None,
            profile: rules.has_keys.then(|| text("profile")).flatten(),
            role_name: text("roleName"),
            partition: text("partition"),
            region: text("region"),
            external_id: text("externalId"),
            web_identity_token_file: rules
                .has_token_file
                .then(|| text("webIdentityTokenFile"))
                .flatten(),
        },
    }
}

/// Which keys an entry has, and what must come together.
struct Rules {
    has_keys: bool,
    has_token_file: bool,
    /// Whether a region needs a role or keys beside it.
    region_needs_role: bool,
}

impl Rules {
    const MAIN: Self = Self {
        has_keys: true,
        has_token_file: false,
        region_needs_role: false,
    };
    const LISTED: Self = Self {
        has_keys: true,
        has_token_file: true,
        region_needs_role: true,
    };
    const DEFAULTS: Self = Self {
        has_keys: false,
        has_token_file: true,
        region_needs_role: true,
    };

    /// The first rule that is broken, in Backstage's order and words.
    fn broken(&self, written: &Written) -> Option<&'static str> {
        let rest = &written.rest;
        let (id, secret) = (
            written.access_key_id.is_some(),
            written.secret_access_key.is_some(),
        );
        let (profile, role) = (rest.profile.is_some(), rest.role_name.is_some());
        let external_id = rest.external_id.is_some();
        let token_file = rest.web_identity_token_file.is_some();
        // Backstage refuses the keys and region of its own documentation.
        let lone_region = rest.region.is_some() && self.region_needs_role && !role && !id;
        let rules = [
            (
                id && !secret,
                "an access key ID configured, but no secret access key.",
            ),
            (
                !id && secret,
                "a secret access key configured, but no access key ID",
            ),
            (
                profile && id,
                "both an access key ID and a profile configured, but only one must be specified",
            ),
            (
                profile && role && self.has_token_file,
                "both an access key ID and a role name configured, but only one must be specified",
            ),
            (
                !role && external_id,
                "an external ID configured, but no role name.",
            ),
            (lone_region, "an STS region configured, but no role name."),
            (
                !role && rest.partition.is_some(),
                "an IAM partition configured, but no role name.",
            ),
            (
                token_file && id,
                "both a web identity token file and static credentials configured, but only one must be specified",
            ),
            (
                token_file && profile,
                "both a web identity token file and a profile configured, but only one must be specified",
            ),
            (
                token_file && !role,
                "a web identity token file configured, but no role name.",
            ),
            (
                token_file && external_id,
                "both a web identity token file and an external ID configured; AssumeRoleWithWebIdentity does not support \
                 external IDs.",
            ),
        ];
        rules.iter().find(|(broken, _)| *broken).map(|(_, text)| *text)
    }
}

const MAIN: &str = "The main AWS integration account";
const DEFAULTS: &str = "AWS integration account default configuration";

#[cfg(test)]
mod tests;
