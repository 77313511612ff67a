//! Where the credential for a cluster comes from, in words.

use kube_authn_core::{ClusterDetails, serde_json::Value};

/// A few words for people: which of the strategy's sources this cluster's settings choose.
pub(super) fn credential_source(cluster: &ClusterDetails) -> String {
    let option = |strategy: &str, key: &str| {
        let value = cluster.options().get(strategy).and_then(|block| block.get(key));
        value.and_then(Value::as_str).map(str::to_owned)
    };
    let metadata = |key: &str| cluster.auth_metadata().get(key);
    match cluster.auth_provider() {
        "serviceAccount" => match (
            option("tokenRequest", "serviceAccount"),
            cluster.service_account_token(),
        ) {
            (Some(account), _) => {
                let namespace = option("tokenRequest", "namespace").unwrap_or_default();
                format!("tokens minted for {namespace}/{account}")
            }
            (None, Some(_)) => "configured token".to_owned(),
            (None, None) => "the pod's own token".to_owned(),
        },
        "localKubectlProxy" => "none is sent".to_owned(),
        "oidc" => {
            let provider = metadata("kubernetes.io/oidc-token-provider").unwrap_or("?");
            format!("ID token of {provider}, offered by the caller")
        }
        "aks" | "google" => "token offered by the caller".to_owned(),
        "clusterAuth" => "the user's stored login".to_owned(),
        "aws" => match metadata("kubernetes.io/aws-assume-role") {
            Some(role) => format!("EKS token of the role {role}"),
            None => "EKS token of the main account".to_owned(),
        },
        "azure" => "Entra token of the application".to_owned(),
        "googleServiceAccount" => match option("googleServiceAccount", "impersonate") {
            Some(account) => format!("Google access token of {account}"),
            None => "Google access token of the application".to_owned(),
        },
        "exec" => {
            let command = option("exec", "command").unwrap_or_default();
            format!("the plugin {command}")
        }
        "clientCertificate" => match option("clientCertificate", "certFile") {
            Some(file) => format!("the certificate in {file}"),
            None => "configured certificate".to_owned(),
        },
        "impersonation" => {
            let carrier = option("impersonation", "carrier").unwrap_or_else(|| "serviceAccount".to_owned());
            format!("the user's name on a credential of {carrier}")
        }
        _ => "strategy of the program's own".to_owned(),
    }
}
