//! The environment and the files that credentials come from.

use std::path::{Path, PathBuf};

use kube_authn_core::Secret;

use super::error::AzureError;
use crate::regular_file;

/// What the environment says: the variables of Azure's own libraries and of the AKS webhook. An empty one counts as unset.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    pub(super) client_id: Option<String>,
    pub(super) tenant_id: Option<String>,
    pub(super) client_secret: Option<Secret>,
    pub(super) certificate_file: Option<PathBuf>,
    pub(super) has_certificate_password: bool,
    pub(super) send_certificate_chain: bool,
    pub(super) federated_token_file: Option<PathBuf>,
    pub(super) authority_host: Option<String>,
    /// App Service, Functions, Container Apps.
    pub(super) identity_endpoint: Option<String>,
    pub(super) identity_header: Option<Secret>,
    /// A host with managed identities of a kind that is not read here, by the name of the variable that tells.
    pub(super) other_host: Option<&'static str>,
    /// Another address of the instance metadata service.
    pub(super) metadata_host: Option<String>,
    pub(super) az: Option<PathBuf>,
    pub(super) azd: Option<PathBuf>,
}

impl Environment {
    pub(super) fn read(env: &impl Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let (endpoint, header) = (env("IDENTITY_ENDPOINT"), env("IDENTITY_HEADER").map(Secret::new));
        let path = env("PATH").unwrap_or_default();
        // Service Fabric sets the two above as well.
        let other_host = [
            ("IDENTITY_SERVER_THUMBPRINT", true),
            ("IMDS_ENDPOINT", endpoint.is_some() && header.is_none()),
            ("MSI_ENDPOINT", endpoint.is_none()),
        ]
        .into_iter()
        .find(|(name, counts)| *counts && env(name).is_some());
        Self {
            client_id: env("AZURE_CLIENT_ID"),
            tenant_id: env("AZURE_TENANT_ID"),
            client_secret: env("AZURE_CLIENT_SECRET").map(Secret::new),
            certificate_file: env("AZURE_CLIENT_CERTIFICATE_PATH").map(PathBuf::from),
            has_certificate_password: env("AZURE_CLIENT_CERTIFICATE_PASSWORD").is_some(),
            send_certificate_chain: env("AZURE_CLIENT_SEND_CERTIFICATE_CHAIN")
                .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true")),
            federated_token_file: env("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from),
            authority_host: env("AZURE_AUTHORITY_HOST"),
            identity_endpoint: endpoint,
            identity_header: header,
            other_host: other_host.map(|(name, _)| name),
            metadata_host: env("AZURE_POD_IDENTITY_AUTHORITY_HOST"),
            az: find(&path, "az"),
            azd: find(&path, "azd"),
        }
    }
}

/// The first program of this name in the absolute folders of `PATH`: never in whatever folder we were started in.
fn find(path: &str, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(program))
        .find(|program| program.is_file())
}

/// What a file holds, off the async threads.
pub(super) async fn read(path: &Path) -> Result<Secret, AzureError> {
    let read = regular_file::read(path.to_owned()).await;
    read.map(|file| file.content)
        .map_err(|error| AzureError::Misconfigured(format!("cannot read {}: {error}", path.display())))
}
