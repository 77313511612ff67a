//! Strategy `aws`: a token for EKS, signed in this process with the application's AWS credentials.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_credential_types::Credentials;
use jiff::Timestamp;
use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, KubernetesAuthProvider, Metadata,
    Problem, Result, SystemClock,
};
use tokio::sync::Mutex;
use tracing::{instrument::WithSubscriber, subscriber::NoSubscriber};

mod accounts;
mod cache;
mod credentials;
mod endpoint;
mod error;
mod options;
mod sigv4;

pub use accounts::{AwsAccount, AwsConfig, AwsKeys};

use accounts::{Link, RoleLink, With};
use cache::{Held, Slots};
use credentials::{Machine, Reader};
use endpoint::{Endpoint, Hosts};
use error::AwsError;
use options::Options;
use sigv4::Claim;

/// The application authenticates as an AWS principal. Clones share the credentials.
///
/// # Who is authenticated
/// The role that the cluster names (`assumeRole`), else the main account of the configuration, else whoever the machine is
/// to AWS. EKS maps that principal to a username and groups.
///
/// # Configuration
/// Of a cluster: `assumeRole`, `externalId`, `kubernetes.io/x-k8s-aws-id`, and `kubeAuthn.aws.{region,useFips,useDualStack}`.
/// Of all: [`AwsConfig`].
///
/// # Where the credential comes from
/// The token is the signed URL of a call of STS `GetCallerIdentity`, at the STS endpoint of the cluster's own region and
/// partition. Credentials come from static keys, a profile, or the default chain (environment, profile, SSO, web identity,
/// Pod Identity, ECS, IMDSv2, credential process), then through the account's role and the cluster's role.
///
/// # Lifetime and caching
/// A token lives 14 minutes, and no longer than the credentials that signed it. Credentials are kept by source, role and
/// external id, loaded once for all who wait, and renewed 16 minutes ahead of their end; while that fails, the last ones
/// serve until their end.
///
/// # Failures
/// `ConfigInvalid` without region or credentials, and where AWS refuses a role; `Unavailable` or `Timeout` where a source
/// does not answer. Each source that was tried is named with its own reason.
#[derive(Clone)]
pub struct AwsProvider(Arc<Inner>);

struct Inner {
    config: AwsConfig,
    clock: Arc<dyn Clock>,
    reader: Reader,
    hosts: Hosts,
    slots: Slots,
    machine: Mutex<Option<(Timestamp, Machine)>>,
}

/// Whom AWS sees behind a cluster's credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AwsCallerIdentity {
    /// The account id, 12 digits.
    pub account: String,
    /// The ARN of the user or of the assumed session.
    pub arn: String,
}

/// Everything that a token of a cluster depends on.
struct Plan<'a> {
    link: Link,
    endpoint: Endpoint,
    cluster_id: &'a str,
}

impl AwsProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "aws";

    /// With these accounts, and the machine's own AWS configuration beside them.
    pub fn new(config: AwsConfig) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Self(Arc::new(Inner {
            reader: Reader::new(clock.clone(), config.session_name.clone()),
            config,
            clock,
            hosts: Hosts::default(),
            slots: Slots::default(),
            machine: Mutex::default(),
        }))
    }

    /// The same accounts with another clock, and nothing cached.
    pub fn with_clock(self, clock: impl Clock) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(clock);
        Self(Arc::new(Inner {
            reader: self.0.reader.with_clock(clock.clone()),
            config: self.0.config.clone(),
            clock,
            hosts: Hosts::default(),
            slots: Slots::default(),
            machine: Mutex::default(),
        }))
    }

    /// Asks STS who signs for this cluster: one call, for people who look for a mistake.
    ///
    /// # Errors
    /// As `credential`; `ConfigInvalid` if AWS refuses the credentials.
    pub async fn caller_identity(&self, cluster: &ClusterDetails) -> Result<AwsCallerIdentity> {
        let plan = self.0.plan(cluster).await?;
        let held = self.0.credentials(&plan.link).await?;
        let caller = self.0.reader.caller(&plan.endpoint, held.credentials).await?;
        Ok(AwsCallerIdentity {
            account: caller.account,
            arn: caller.arn,
        })
    }
}

impl Inner {
    async fn plan<'a>(&self, cluster: &'a ClusterDetails) -> Result<Plan<'a>, AwsError> {
        let (options, _) = Options::of(cluster);
        let machine = self.machine().await;
        let config = &self.config;
        let region = match options.region {
            Some(region) => Some(region.into()),
            None => self.hosts.region_of(cluster.server().host()).await,
        };
        let fallback = || {
            let configured = config.region.as_deref();
            let account = configured.or_else(|| config.account_region(options.assume_role));
            account.map(Arc::from).or_else(|| machine.region.clone())
        };
        let endpoint = Endpoint {
            region: region.or_else(fallback).ok_or(AwsError::NoRegion)?,
            fips: options.use_fips.or(config.use_fips).unwrap_or(machine.use_fips),
            dual_stack: options
                .use_dual_stack
                .or(config.use_dual_stack)
                .unwrap_or(machine.use_dual_stack),
        };
        let role = options.assume_role.map(|arn| (arn, options.external_id));
        Ok(Plan {
            link: config.link(role, &endpoint, machine.region.as_deref())?,
            endpoint,
            cluster_id: options.cluster_id,
        })
    }

    async fn machine(&self) -> Machine {
        let mut known = self.machine.lock().await;
        let now = self.clock.now();
        if let Some((read_at, machine)) = known.as_ref()
            && now.duration_since(*read_at).unsigned_abs() < MACHINE_READ_AGAIN_AFTER
        {
            return machine.clone();
        }
        // What the SDK cannot parse it logs; the credentials' reader says so in an error of ours.
        let machine = self
            .reader
            .machine()
            .with_subscriber(NoSubscriber::default())
            .await;
        *known = Some((now, machine.clone()));
        machine
    }

    /// What is cached, else loaded by a task of its own: a caller that goes away takes nothing with it.
    fn credentials<'a>(
        self: &'a Arc<Self>,
        link: &'a Link,
    ) -> Pin<Box<dyn Future<Output = Result<Held>> + Send + 'a>> {
        Box::pin(async move {
            let now = self.clock.now();
            let slot = self.slots.slot(link, now);
            if let Some(held) = slot.fresh(now) {
                return Ok(held);
            }
            let (inner, link) = (self.clone(), link.clone());
            let filled = tokio::spawn(async move { slot.fill(&*inner.clock, inner.load(&link)).await });
            filled.await.unwrap_or_else(|_| Err(AwsError::Lost.into()))
        })
    }

    async fn load(self: &Arc<Self>, link: &Link) -> Result<Credentials> {
        Ok(match link {
            Link::Keys(account) => {
                let keys = self.config.keys(account.as_deref());
                let missing = || AwsError::NoCredentials("the account has no keys".to_owned());
                self.reader.keys(keys.ok_or_else(missing)?)?
            }
            Link::Profile(name, sts) => self.reader.profile(name, sts).await?,
            Link::Machine(sts) => self.reader.default_chain(sts).await?,
            Link::Role(role) => self.assume(role).await?,
        })
    }

    async fn assume(self: &Arc<Self>, role: &RoleLink) -> Result<Credentials> {
        Ok(match &role.with {
            With::TokenFile(file) => self.reader.assume_with_token(role, file).await?,
            With::Credentials(below) => {
                let below = self.credentials(below).await?;
                self.reader.assume(role, below.credentials).await?
            }
        })
    }

    async fn credential(self: &Arc<Self>, cluster: &ClusterDetails) -> Result<Credential> {
        let plan = self.plan(cluster).await?;
        let held = self.credentials(&plan.link).await?;
        let host = self.hosts.sts(&plan.endpoint).await?;
        let now = self.clock.now();
        let claim = Claim {
            host: &host,
            region: &plan.endpoint.region,
            cluster_id: plan.cluster_id,
            now,
        };
        let token = sigv4::token(&held.identity, &claim)?;
        // The token's date has whole seconds.
        let signed_at = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let end = signed_at.checked_add(sigv4::LIFETIME).unwrap_or(Timestamp::MAX);
        let end = held.expires_at.map_or(end, |session_end| session_end.min(end));
        Ok(Credential::bearer(&token)?.with_expires_at(end))
    }
}

#[async_trait]
impl KubernetesAuthProvider for AwsProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        Options::of(cluster).1
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        self.0.credential(&request.cluster).await
    }

    /// The next token is signed with credentials that are read anew, at most once a minute.
    async fn invalidate(&self, request: &CredentialRequest, _: &Credential) -> bool {
        let now = self.0.clock.now();
        match self.0.plan(&request.cluster).await {
            // Configured keys stay what they are.
            Ok(plan) if matches!(plan.link, Link::Keys(_)) => false,
            Ok(plan) => self.0.slots.slot(&plan.link, now).refuse(now),
            Err(_) => false,
        }
    }
}

impl fmt::Debug for AwsProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsProvider")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

/// Environment and configuration files, beside credentials.
const MACHINE_READ_AGAIN_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
