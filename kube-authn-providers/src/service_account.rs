//! Strategy `serviceAccount`: a service account's token, from the configuration or mounted into the pod.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
#[cfg(feature = "upstream")]
use kube_authn_core::UpstreamPool;
use kube_authn_core::{
    Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, Error, ErrorKind,
    KubernetesAuthProvider, Metadata, Problem, Result, Secret, SystemClock, UnverifiedClaims,
};
use tokio::sync::Mutex;

mod in_cluster;
#[cfg(feature = "upstream")]
mod minting;
mod token_file;
mod token_request;

use crate::options::invalid;
use token_file::{TokenFile, TokenFileError};
use token_request::TokenRequest;

/// The application authenticates as a service account. Clones share the last token that was read.
///
/// A cluster with `serviceAccountToken` gets that token. Any other gets the one mounted into the pod, which the kubelet
/// replaces long before it ends: the file is read at each call, and each credential asks to be replaced a minute later
/// ([`Credential::refresh_at`]). While the file cannot be read, the last token that could be is used until its end.
#[derive(Clone, Debug)]
pub struct ServiceAccountProvider {
    folder: Arc<Path>,
    clock: Arc<dyn Clock>,
    mounted: Arc<Mounted>,
    #[cfg(feature = "upstream")]
    pool: Option<UpstreamPool>,
}

#[derive(Debug, Default)]
struct Mounted {
    last: Mutex<Option<LastGood>>,
    warned: AtomicBool,
}

/// The last token that could be read. It keeps its credential, so the same token read again has the same generation.
#[derive(Clone, Debug)]
struct LastGood {
    token: Secret,
    credential: Credential,
    /// Refused by an API server since it was read.
    refused: bool,
}

impl ServiceAccountProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "serviceAccount";

    /// With the folder that Kubernetes mounts, [`DEFAULT_FOLDER`].
    pub fn new() -> Self {
        Self::with_folder(DEFAULT_FOLDER)
    }

    /// With another folder that holds `token` and `ca.crt`.
    pub fn with_folder(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into().into(),
            clock: Arc::new(SystemClock),
            mounted: Arc::default(),
            #[cfg(feature = "upstream")]
            pool: None,
        }
    }

    /// With another clock.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Serves clusters with `kubeAuthn.tokenRequest`: the configured or mounted token asks the API server, over these
    /// connections, for short-lived ones of the service account that is named there.
    #[cfg(feature = "upstream")]
    pub fn with_token_requests(mut self, pool: UpstreamPool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// The cluster that this pod runs in, if that is what is meant: strategy `serviceAccount`, no token configured, and
    /// the folder holds a `ca.crt`. URL, CA and `skipTLSVerify` of the configuration are then ignored, as in Backstage:
    /// the server is `https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT` (http for the ports 80, 8080 and 8001)
    /// and the CA is that file, read again when it changes.
    ///
    /// `env` reads a variable of the environment. Call this once, when the configuration is read.
    ///
    /// # Errors
    /// `ConfigInvalid` if the folder is there and a variable is not, or if either cannot work.
    pub fn in_cluster(
        &self,
        env: &impl Fn(&str) -> Option<String>,
        cluster: &ClusterDetails,
    ) -> Result<Option<ClusterDetails>> {
        match cluster.auth_provider() == Self::NAME && cluster.service_account_token().is_none() {
            true => self.in_cluster_as_carrier(env, cluster),
            false => Ok(None),
        }
    }

    /// The same for a cluster of another strategy, without token, to which this one's credential carries users' names.
    ///
    /// # Errors
    /// As [`ServiceAccountProvider::in_cluster`].
    pub fn in_cluster_as_carrier(
        &self,
        env: &impl Fn(&str) -> Option<String>,
        cluster: &ClusterDetails,
    ) -> Result<Option<ClusterDetails>> {
        if cluster.service_account_token().is_some() {
            return Ok(None);
        }
        in_cluster::resolve(&self.folder, env, cluster).map_err(|error| {
            error
                .with_provider(Self::NAME)
                .with_cluster(cluster.name().as_str())
        })
    }

    async fn mounted(&self) -> Result<Credential> {
        let mut last = self.mounted.last.lock().await;
        let now = self.clock.now();
        let failure = match self.read(last.as_ref(), now).await {
            Ok(found) => {
                let credential = found.credential.clone();
                *last = Some(found);
                return Ok(credential.with_refresh_at(read_again_at(now)));
            }
            Err(failure) => failure,
        };
        match last.as_ref().filter(|last| last.serves(now)) {
            Some(last) => {
                tracing::warn!(
                    error = &failure as &dyn std::error::Error,
                    "cannot read the service account's token again: the last one is used until its end",
                );
                Ok(last.credential.clone().with_refresh_at(read_again_at(now)))
            }
            None => Err(failure.into()),
        }
    }

    /// What the file holds now.
    async fn read(&self, last: Option<&LastGood>, now: Timestamp) -> Result<LastGood, TokenFileError> {
        let path = self.folder.join(TOKEN_FILE);
        let TokenFile {
            token,
            world_readable,
        } = token_file::read(path.clone()).await?;
        if world_readable && !self.mounted.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                path = %path.display(),
                "every user of this machine can read the service account's token: set runAsUser or fsGroup on the pod",
            );
        }
        let found = match last.filter(|last| last.token == token) {
            Some(last) => last.clone(),
            None => LastGood::new(token).ok_or_else(|| TokenFileError::Illegal(path.clone()))?,
        };
        match found.credential.usable(now) {
            true => Ok(LastGood {
                refused: false,
                ..found
            }),
            false => Err(TokenFileError::Expired(path)),
        }
    }

    /// The token that stands for the application itself.
    async fn own(&self, cluster: &ClusterDetails) -> Result<Credential> {
        match cluster.service_account_token() {
            Some(token) => self.configured(token),
            None => self.mounted().await,
        }
    }

    #[cfg(feature = "upstream")]
    async fn minted(&self, asked: &TokenRequest, cluster: &ClusterDetails) -> Result<Credential> {
        let pool = self.pool.as_ref().ok_or_else(|| not_served(asked))?;
        let own = self.own(cluster).await?;
        asked.mint(pool, cluster, &own, self.clock.now()).await
    }

    #[cfg(not(feature = "upstream"))]
    async fn minted(&self, asked: &TokenRequest, _: &ClusterDetails) -> Result<Credential> {
        Err(not_served(asked))
    }

    fn configured(&self, token: &Secret) -> Result<Credential> {
        let credential = bearer_with_end(&trimmed(token))
            .ok_or_else(|| Error::new(ErrorKind::ConfigInvalid, ILLEGAL_CONFIGURED_TOKEN))?;
        match credential.usable(self.clock.now()) {
            true => Ok(credential),
            false => Err(Error::new(
                ErrorKind::ConfigInvalid,
                "the serviceAccountToken has expired: configure a new one",
            )),
        }
    }
}

impl Default for ServiceAccountProvider {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl KubernetesAuthProvider for ServiceAccountProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    /// Looks at what is configured alone: whether a mounted one is there is known where the pod runs.
    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        cluster
            .service_account_token()
            .filter(|token| Credential::bearer(&trimmed(token)).is_err())
            .map(|_| Problem::new("serviceAccountToken", ILLEGAL_CONFIGURED_TOKEN))
            .into_iter()
            .chain(TokenRequest::of(cluster).err().into_iter().flatten())
            .collect()
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        match TokenRequest::of(&request.cluster).map_err(|problems| invalid(&problems))? {
            Some(asked) => self.minted(&asked, &request.cluster).await,
            None => self.own(&request.cluster).await,
        }
    }

    /// Has another token made, or reads the file again; a configured token stays what it is.
    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        if let Ok(Some(_)) = TokenRequest::of(&request.cluster) {
            return true;
        }
        if request.cluster.service_account_token().is_some() {
            return false;
        }
        let mut last = self.mounted.last.lock().await;
        let now = self.clock.now();
        if let Ok(found) = self.read(last.as_ref(), now).await {
            *last = Some(found);
        }
        let Some(last) = last.as_mut() else { return false };
        if refused.carries(&last.token) {
            last.refused = true;
        }
        last.serves(now)
    }
}

impl LastGood {
    /// `None` if the token cannot stand in a header.
    fn new(token: Secret) -> Option<Self> {
        Some(Self {
            credential: bearer_with_end(&token)?,
            token,
            refused: false,
        })
    }

    fn serves(&self, now: Timestamp) -> bool {
        !self.refused && self.credential.usable(now)
    }
}

fn not_served(asked: &TokenRequest) -> Error {
    asked.failed(
        ErrorKind::ConfigInvalid,
        "this program has no connections for it: with_token_requests",
    )
}

fn bearer_with_end(token: &Secret) -> Option<Credential> {
    let credential = Credential::bearer(token).ok()?;
    let end = UnverifiedClaims::of(token.expose()).and_then(|claims| claims.expires_at());
    Some(match end {
        Some(end) => credential.with_expires_at(end),
        None => credential,
    })
}

/// Without the line break that editors and `base64 -d` leave at the end.
fn trimmed(token: &Secret) -> Secret {
    Secret::new(token.expose().trim_ascii())
}

fn read_again_at(now: Timestamp) -> Timestamp {
    now.checked_add(READ_AGAIN_AFTER).unwrap_or(Timestamp::MAX)
}

/// Where Kubernetes mounts the service account of a pod
/// (<https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>).
pub const DEFAULT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

const TOKEN_FILE: &str = "token";
const CA_FILE: &str = "ca.crt";

/// As client-go: read again every minute, ten seconds ahead (`transport/token_source.go`).
const READ_AGAIN_AFTER: Duration = Duration::from_secs(50);

const ILLEGAL_CONFIGURED_TOKEN: &str =
    "the serviceAccountToken is empty or holds characters that no bearer token may have";

#[cfg(test)]
mod tests;
