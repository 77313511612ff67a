//! A cluster's own settings: Backstage's metadata and the block `kubeAuthn.aws`.

use kube_authn_core::{ClusterDetails, Problem};
use serde_json::Value;

use super::accounts::Arn;

/// What a cluster says about its token.
#[derive(Debug, Default)]
pub(super) struct Options<'a> {
    /// The name that the cluster's verifier signs with.
    pub(super) cluster_id: &'a str,
    pub(super) assume_role: Option<&'a str>,
    pub(super) external_id: Option<&'a str>,
    pub(super) region: Option<&'a str>,
    pub(super) use_fips: Option<bool>,
    pub(super) use_dual_stack: Option<bool>,
}

impl<'a> Options<'a> {
    /// What can be used, and everything that cannot.
    pub(super) fn of(cluster: &'a ClusterDetails) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let metadata = |key| {
            let value = cluster.auth_metadata().get(key)?.trim();
            (!value.is_empty()).then_some(value)
        };
        let assume_role = metadata(ASSUME_ROLE);
        if let Some(Err(error)) = assume_role.map(Arn::parse) {
            problems.push(Problem::new("assumeRole", error.to_string()));
        }
        let mut options = Self {
            cluster_id: metadata(CLUSTER_ID).unwrap_or(cluster.name().as_str()),
            assume_role,
            external_id: metadata(EXTERNAL_ID),
            ..Self::default()
        };
        match cluster.options().get("aws") {
            None | Some(Value::Null) => {}
            Some(Value::Object(block)) => {
                for (key, value) in block {
                    options.read(key, value, &mut problems);
                }
            }
            Some(_) => problems.push(Problem::new("kubeAuthn.aws", "expected an object")),
        }
        (options, problems)
    }

    fn read(&mut self, key: &str, value: &'a Value, problems: &mut Vec<Problem>) {
        let mut wrong = |wanted: &str| {
            problems.push(Problem::new(
                format!("kubeAuthn.aws.{key}"),
                format!("expected {wanted}"),
            ));
        };
        match (key, value) {
            ("region" | "useFips" | "useDualStack", Value::Null) => {}
            ("region", Value::String(region)) if !region.is_empty() => self.region = Some(region),
            ("region", _) => wrong("the name of a region"),
            ("useFips", value) => match boolean(value) {
                Some(value) => self.use_fips = Some(value),
                None => wrong("true or false"),
            },
            ("useDualStack", value) => match boolean(value) {
                Some(value) => self.use_dual_stack = Some(value),
                None => wrong("true or false"),
            },
            _ => wrong("one of the keys region, useFips, useDualStack"),
        }
    }
}

/// Text too, since `${VARIABLE}` gives nothing else.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// Backstage's `assumeRole`, `externalId` and `x-k8s-aws-id` (`ANNOTATION_KUBERNETES_AWS_*`).
const ASSUME_ROLE: &str = "kubernetes.io/aws-assume-role";
const EXTERNAL_ID: &str = "kubernetes.io/aws-external-id";
const CLUSTER_ID: &str = "kubernetes.io/x-k8s-aws-id";
