//! The rights that a carrier needs
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>).

use std::fmt::Write;

use super::mapping::{Mapping, is_literal};

pub(super) fn cluster_role(mapping: &Mapping) -> String {
    let mut yaml = String::from(
        "apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: ClusterRole\n\
         metadata:\n  name: kube-authn-impersonation\n\
         rules:\n",
    );
    rule(
        &mut yaml,
        CORE,
        "users",
        &Names::Any("names of users are made from who calls"),
    );
    match (&mapping.of_principal, mapping.groups.as_slice()) {
        (true, _) => rule(
            &mut yaml,
            CORE,
            "groups",
            &Names::Any("groups come from the caller: list them in resourceNames if you know them"),
        ),
        (false, []) => {}
        (false, groups) => rule(
            &mut yaml,
            CORE,
            "groups",
            &Names::of(groups.iter().map(String::as_str)),
        ),
    }
    if let Some(uid) = &mapping.uid {
        rule(&mut yaml, AUTHENTICATION, "uids", &Names::of([uid.as_str()]));
    }
    for (key, value) in &mapping.extra {
        let resource = format!("userextras/{key}");
        rule(&mut yaml, AUTHENTICATION, &resource, &Names::of([value.as_str()]));
    }
    yaml
}

enum Names<'t> {
    These(Vec<&'t str>),
    Any(&'static str),
}

impl<'t> Names<'t> {
    fn of(templates: impl IntoIterator<Item = &'t str>) -> Self {
        let templates: Vec<_> = templates.into_iter().collect();
        match templates.iter().all(|template| is_literal(template)) {
            true => Self::These(templates),
            false => Self::Any("values are made from who calls"),
        }
    }
}

fn rule(yaml: &mut String, group: &str, resource: &str, names: &Names<'_>) {
    let mut line =
        format!("  - {{ apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"impersonate\"]");
    match names {
        Names::These(names) => {
            // A quoted scalar of YAML may be one of JSON; the names are printable ASCII.
            let quoted: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
            let _ = write!(line, ", resourceNames: [{}] }}", quoted.join(", "));
        }
        Names::Any(why) => {
            let _ = write!(line, " }} # without resourceNames: {why}");
        }
    }
    yaml.push_str(&line);
    yaml.push('\n');
}

const CORE: &str = "";
const AUTHENTICATION: &str = "authentication.k8s.io";
