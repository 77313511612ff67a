//! `kubeAuthn.strategies.impersonation`.

use std::collections::BTreeMap;

use crate::{ConfigValue, findings::Findings};

/// What holds for all clusters of strategy `impersonation`, unless a cluster's own `kubeAuthn.impersonation` says otherwise.
/// The strategy checks the templates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImpersonationSettings {
    /// The strategy whose credential carries the user's name.
    pub carrier: Option<String>,
    /// Template of a user's name.
    pub user: Option<String>,
    /// Template of a service's name.
    pub service: Option<String>,
    /// Template of the user's unique identifier.
    pub uid: Option<String>,
    /// Templates of groups.
    pub groups: Option<Vec<String>>,
    /// `none` or `principal`.
    pub groups_from: Option<String>,
    /// What stands before each group of the principal.
    pub groups_prefix: Option<String>,
    /// Templates of extra fields.
    pub extra: Option<BTreeMap<String, String>>,
}

impl ImpersonationSettings {
    pub(super) fn read(block: &ConfigValue<'_>, findings: &mut Findings) -> Self {
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self::default();
        }
        findings.extend(block.unknown_keys(&KEYS));
        let groups = findings.keep(block.child("groups").optional_strings()).flatten();
        let extra = block.child("extra");
        let fields = findings.keep(extra.optional_object().map(|there| there.is_some()));
        let mut text = |place: ConfigValue<'_>| {
            let read = findings.keep(place.optional_string().map(|text| text.map(str::to_owned)));
            read.flatten()
        };
        Self {
            carrier: text(block.child("carrier")),
            user: text(block.child("user")),
            service: text(block.child("service")),
            uid: text(block.child("uid")),
            groups_from: text(block.child("groupsFrom")),
            groups_prefix: text(block.child("groupsPrefix")),
            extra: (fields == Some(true)).then(|| {
                let fields = extra.entries();
                fields
                    .filter_map(|(key, value)| Some((key.to_owned(), text(value)?)))
                    .collect()
            }),
            groups: groups.map(|groups| groups.into_iter().map(str::to_owned).collect()),
        }
    }
}

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
