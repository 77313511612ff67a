//! `kubeAuthn.strategies`: settings of strategies that hold for all clusters, by their `authProvider`.

mod aws;
mod azure;
mod exec;
mod google_service_account;
mod impersonation;

pub use aws::AwsSettings;
pub use azure::{AzureManagedIdentity, AzureSettings};
pub use exec::ExecSettings;
pub use google_service_account::GoogleServiceAccountSettings;
pub use impersonation::ImpersonationSettings;

use crate::{AppConfig, ConfigValue, findings::Findings};

/// What the block says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StrategySettings {
    /// Strategy `aws`.
    pub aws: AwsSettings,
    /// Strategy `azure`.
    pub azure: AzureSettings,
    /// Strategy `exec`.
    pub exec: ExecSettings,
    /// Strategy `googleServiceAccount`.
    pub google_service_account: GoogleServiceAccountSettings,
    /// Strategy `impersonation`.
    pub impersonation: ImpersonationSettings,
}

impl StrategySettings {
    pub(crate) fn read(config: &AppConfig, block: &ConfigValue<'_>, findings: &mut Findings) -> Self {
        if findings.keep(block.optional_object().map(drop)).is_none() {
            return Self::default();
        }
        findings.extend(block.unknown_keys(&[
            "aws",
            "azure",
            "exec",
            "googleServiceAccount",
            "impersonation",
        ]));
        Self {
            aws: AwsSettings::read(&block.child("aws"), findings),
            azure: AzureSettings::read(&block.child("azure"), findings),
            exec: ExecSettings::read(&block.child("exec"), findings),
            google_service_account: GoogleServiceAccountSettings::read(config, findings),
            impersonation: ImpersonationSettings::read(&block.child("impersonation"), findings),
        }
    }
}
