//! Who signs for a cluster: the configured accounts, and the chain of credentials from them to the cluster's role.

use std::{collections::BTreeMap, sync::Arc};

use kube_authn_core::Secret;

use super::{endpoint::Endpoint, error::AwsError};

/// Accounts and defaults, as Backstage's block `aws` and `kubeAuthn.strategies.aws` say. The default is a configuration
/// without any: whoever the machine is.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct AwsConfig {
    /// Who the application is by itself. `role_name` is a role of the account that its credentials belong to.
    pub main_account: AwsAccount,
    /// Who the application is in other accounts, by account id (12 digits).
    pub accounts: BTreeMap<String, AwsAccount>,
    /// The role to assume in accounts that are not listed; only its role is read.
    pub account_defaults: AwsAccount,
    /// The region of clusters whose URL does not name one.
    pub region: Option<String>,
    /// Whether to use FIPS 140 endpoints, unless a cluster says otherwise.
    pub use_fips: Option<bool>,
    /// Whether to use dual-stack endpoints, unless a cluster says otherwise.
    pub use_dual_stack: Option<bool>,
    /// The name of assumed sessions, 2 to 64 characters of `[A-Za-z0-9_=,.@-]`; left out: `kube-authn`.
    pub session_name: Option<String>,
}

/// One account: keys, or a profile, or whoever the machine is; then perhaps a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AwsAccount {
    /// Static keys.
    pub keys: Option<AwsKeys>,
    /// A profile of the machine's own AWS configuration files.
    pub profile: Option<String>,
    /// The role to assume, by its name without path.
    pub role_name: Option<String>,
    /// The partition of the role: `aws-cn`. Left out: that of the cluster's own role.
    pub partition: Option<String>,
    /// Where STS is called. Left out: in the cluster's region.
    pub region: Option<String>,
    /// The external id that the role asks for.
    pub external_id: Option<String>,
    /// A file with an OIDC token to assume the role with, in place of credentials. Read again each time.
    pub web_identity_token_file: Option<String>,
}

/// Static keys of an IAM user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "static keys are these two")]
pub struct AwsKeys {
    /// The access key's id.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: Secret,
}

/// Where credentials come from; equal links are one entry of the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Link {
    /// The static keys of an account; `None` is the main account.
    Keys(Option<Arc<str>>),
    /// A profile of the machine's AWS configuration files.
    Profile(Arc<str>, Endpoint),
    /// The default chain.
    Machine(Endpoint),
    /// A role assumed with what another link gives, or with a token file.
    Role(Arc<RoleLink>),
}

/// A role to assume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RoleLink {
    pub(super) role: Role,
    pub(super) external_id: Option<String>,
    pub(super) with: With,
    pub(super) sts: Endpoint,
}

/// What a role is assumed with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum With {
    Credentials(Link),
    TokenFile(String),
}

/// Which role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Arn(String),
    /// By its name, in the account of whoever assumes it.
    OfCaller(String),
}

/// `arn:<partition>:<service>:<region>:<account>:<resource>`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Arn<'a> {
    partition: &'a str,
    account: &'a str,
}

impl<'a> Arn<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, AwsError> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        match parts[..] {
            ["arn", partition, _, _, account, resource] if !partition.is_empty() && !resource.is_empty() => {
                Ok(Self { partition, account })
            }
            _ => Err(AwsError::MalformedArn),
        }
    }
}

impl AwsConfig {
    /// Who signs for a cluster with this role, external id and endpoint. `machine_region` is where the default chain
    /// calls STS if no account says so.
    pub(super) fn link(
        &self,
        assume_role: Option<(&str, Option<&str>)>,
        sts: &Endpoint,
        machine_region: Option<&str>,
    ) -> Result<Link, AwsError> {
        let at = |region: Option<&str>| Endpoint {
            region: region.map_or_else(|| sts.region.clone(), Arc::from),
            ..sts.clone()
        };
        let places = Places {
            role: &at,
            source: &|region: Option<&str>| at(region.or(machine_region)),
        };
        let Some((arn, external_id)) = assume_role else {
            return Ok(self.main(&places));
        };
        let parsed = Arn::parse(arn)?;
        let below = self.for_account(&parsed, &places);
        Ok(Link::Role(Arc::new(RoleLink {
            role: Role::Arn(arn.to_owned()),
            external_id: external_id.map(str::to_owned),
            with: With::Credentials(below),
            sts: sts.clone(),
        })))
    }

    /// The region that an account states for the clusters it signs for.
    pub(super) fn account_region(&self, assume_role: Option<&str>) -> Option<&str> {
        let account = match assume_role.and_then(|arn| Arn::parse(arn).ok()) {
            Some(arn) => self.accounts.get(arn.account),
            None => self.main_account().1,
        };
        account?.region.as_deref()
    }

    fn main(&self, places: &Places<'_>) -> Link {
        let (id, account) = self.main_account();
        let Some(account) = account else {
            return Link::Machine((places.source)(None));
        };
        let source = source(account, id, places);
        let Some(role_name) = &account.role_name else {
            return source;
        };
        Link::Role(Arc::new(RoleLink {
            role: Role::OfCaller(role_name.clone()),
            external_id: account.external_id.clone(),
            with: With::Credentials(source),
            sts: (places.role)(account.region.as_deref()),
        }))
    }

    /// The main account, or the one that Backstage's documentation shows in its place: a single account with keys and a
    /// region and no role, which Backstage itself refuses to read.
    fn main_account(&self) -> (Option<&str>, Option<&AwsAccount>) {
        let main = &self.main_account;
        if main.keys.is_some() || main.profile.is_some() || main.role_name.is_some() {
            return (None, Some(main));
        }
        let mut accounts = self.accounts.iter();
        match (accounts.next(), accounts.next()) {
            (Some((id, only)), None) if only.stands_for_main() => (Some(id), Some(only)),
            _ => (None, Some(main)),
        }
    }

    fn for_account(&self, arn: &Arn<'_>, places: &Places<'_>) -> Link {
        match self.accounts.get(arn.account) {
            Some(account) => self.account(account, arn, places),
            None if self.account_defaults.role_name.is_some() && !arn.account.is_empty() => {
                self.account(&self.account_defaults, arn, places)
            }
            None => self.main(places),
        }
    }

    fn account(&self, account: &AwsAccount, arn: &Arn<'_>, places: &Places<'_>) -> Link {
        let Some(role_name) = &account.role_name else {
            return source(account, Some(arn.account), places);
        };
        let partition = account.partition.as_deref().unwrap_or(arn.partition);
        let with = match &account.web_identity_token_file {
            Some(file) => With::TokenFile(file.clone()),
            None if account.keys.is_some() => With::Credentials(Link::Keys(Some(arn.account.into()))),
            None => With::Credentials(self.main(places)),
        };
        Link::Role(Arc::new(RoleLink {
            role: Role::Arn(format!("arn:{partition}:iam::{}:role/{role_name}", arn.account)),
            external_id: account.external_id.clone(),
            with,
            sts: (places.role)(account.region.as_deref()),
        }))
    }

    /// The keys of an account; `None` is the main account.
    pub(super) fn keys(&self, account: Option<&str>) -> Option<&AwsKeys> {
        match account {
            Some(id) => self.accounts.get(id)?.keys.as_ref(),
            None => self.main_account.keys.as_ref(),
        }
    }
}

impl AwsAccount {
    fn stands_for_main(&self) -> bool {
        self.keys.is_some() && self.region.is_some() && self.role_name.is_none()
    }
}

/// Where STS is called, by the region that an account states.
struct Places<'a> {
    role: &'a dyn Fn(Option<&str>) -> Endpoint,
    source: &'a dyn Fn(Option<&str>) -> Endpoint,
}

fn source(account: &AwsAccount, id: Option<&str>, places: &Places<'_>) -> Link {
    match (&account.keys, &account.profile) {
        (Some(_), _) => Link::Keys(id.map(Arc::from)),
        (None, Some(profile)) => Link::Profile(
            profile.as_str().into(),
            (places.source)(account.region.as_deref()),
        ),
        (None, None) => Link::Machine((places.source)(account.region.as_deref())),
    }
}

#[cfg(test)]
mod tests;
