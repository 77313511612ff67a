//! A strategy of your own, registered beside the built-in ones: here, tokens that another program leaves in a variable.
//!
//! ```sh
//! cargo run -p kube-authn-examples --example custom_provider
//! ```
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example"
)]

use kube_authn::kube_authn_clusters::{AppConfig, Environment};
use kube_authn_core::{
    ClusterDetails, Credential, CredentialRequest, CredentialScope, Error, ErrorKind, KubernetesAuthProvider,
    Metadata, Principal, Problem, Result, Secret, async_trait,
};

/// One token per cluster, from the variable that the cluster's `authMetadata` names.
#[derive(Debug)]
struct VariableProvider;

#[async_trait]
impl KubernetesAuthProvider for VariableProvider {
    fn name(&self) -> &str {
        "variable"
    }

    /// One credential for everybody: `User` would keep one for each principal, `Request` none.
    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        match variable(cluster) {
            Some(_) => Vec::new(),
            None => vec![Problem::new(
                "authMetadata.example.com/variable",
                "name the variable that holds the token",
            )],
        }
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let token = variable(&request.cluster).and_then(|name| std::env::var(name).ok());
        let token = token.ok_or_else(|| {
            Error::new(
                ErrorKind::ConfigInvalid,
                "the variable is not set: set it and start again",
            )
        })?;
        Credential::bearer(&Secret::new(token))
    }

    async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool {
        false
    }
}

fn variable(cluster: &ClusterDetails) -> Option<&str> {
    cluster.auth_metadata().get("example.com/variable")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = AppConfig::from_texts(&[("app-config.yaml", APP_CONFIG)], &Environment::process())?;

    // The five lines: the built-in strategies stay.
    let access =
        kube_authn::cluster_access_with(&config, None, |registry| registry.with(VariableProvider)).await?;

    for cluster in access.clusters().current().iter() {
        let request = access.request(&Principal::anonymous(), cluster.name().as_str())?;
        match access.credential(&request).await {
            Ok(credential) => println!("{}: {credential:?}", cluster.name()),
            Err(error) => println!("{}: {error} (provider {:?})", cluster.name(), error.provider()),
        }
    }
    Ok(())
}

const APP_CONFIG: &str = r"
kubernetes:
  serviceLocatorMethod: { type: multiTenant }
  clusterLocatorMethods:
    - type: config
      clusters:
        - name: custom
          url: https://127.0.0.1:6443
          authProvider: variable
          authMetadata: { example.com/variable: HOME_CLUSTER_TOKEN }
        - name: built-in
          url: http://localhost:8001
          authProvider: localKubectlProxy
";
