//! Strategy `clientCertificate`: a certificate and its key, from files or from the configuration.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
#[cfg(feature = "upstream")]
use kube_authn_core::rustls::crypto::CryptoProvider;
use kube_authn_core::{
    ClientCertificate, Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, Error,
    ErrorKind, KubernetesAuthProvider, Metadata, Problem, Result, Secret, SystemClock,
};

use crate::regular_file::{self, FileError};

mod source;

use source::Source;

/// The application shows a client certificate in the TLS handshake: the user is its common name, the groups are its
/// organizations. Clones share what was read.
///
/// Files are read again each minute ([`Credential::refresh_at`]); a pair that changed gets connections of its own, and
/// what was read last is used until its end while the files cannot be read, do not belong together, or have expired.
#[derive(Clone)]
pub struct ClientCertificateProvider {
    clock: Arc<dyn Clock>,
    /// By the paths of certificate and key.
    last: Arc<Mutex<HashMap<(PathBuf, PathBuf), LastGood>>>,
    #[cfg(feature = "upstream")]
    crypto: Option<Arc<CryptoProvider>>,
}

/// It keeps its credential, so the same pair read again has the same generation.
#[derive(Clone)]
struct LastGood {
    certificate: ClientCertificate,
    credential: Credential,
}

impl ClientCertificateProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "clientCertificate";

    /// With the machine's clock.
    pub fn new() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            last: Arc::default(),
            #[cfg(feature = "upstream")]
            crypto: None,
        }
    }

    /// With another clock.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Checks that key and certificate belong together as soon as they are read: of two files one may be replaced before
    /// the other. Without it that shows in the handshake.
    #[cfg(feature = "upstream")]
    pub fn with_key_check(mut self, crypto: Arc<CryptoProvider>) -> Self {
        self.crypto = Some(crypto);
        self
    }

    fn checked(&self, chain: &[u8], key: Secret, now: Timestamp) -> Result<LastGood, CertificateError> {
        let certificate = ClientCertificate::from_pem(chain, key)?;
        #[cfg(feature = "upstream")]
        if let Some(crypto) = &self.crypto {
            certificate.check_key(crypto)?;
        }
        let credential = Credential::certificate(certificate.clone());
        let credential = match certificate.not_after() {
            Some(end) => credential.with_expires_at(end),
            None => credential,
        };
        match (credential.usable(now), certificate.not_after()) {
            (false, Some(end)) => Err(CertificateError::Expired(end)),
            _ => Ok(LastGood {
                certificate,
                credential,
            }),
        }
    }

    async fn of_files(&self, chain: PathBuf, key: PathBuf) -> Result<Credential> {
        let now = self.clock.now();
        let read = self.read(&chain, &key, now).await;
        let files = (chain, key);
        let mut all = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.get(&files);
        let found = match read {
            Ok(read) => match last.filter(|last| last.certificate == read.certificate) {
                Some(same) => same.clone(),
                None => read,
            },
            Err(failure) => match last.filter(|last| last.credential.usable(now)) {
                Some(last) => {
                    tracing::warn!(
                        error = &failure as &dyn std::error::Error,
                        file = %files.0.display(),
                        "cannot use the client certificate's files: what was read last is used until its end",
                    );
                    last.clone()
                }
                None => return Err(failure.of(&files)),
            },
        };
        let credential = found.credential.clone();
        all.insert(files, found);
        let again = now.checked_add(READ_AGAIN_AFTER).unwrap_or(Timestamp::MAX);
        Ok(credential.with_refresh_at(again))
    }

    async fn read(
        &self,
        chain: &PathBuf,
        key: &PathBuf,
        now: Timestamp,
    ) -> Result<LastGood, CertificateError> {
        let file = |path: &PathBuf| {
            let path = path.clone();
            async move {
                regular_file::read(path.clone())
                    .await
                    .map_err(|failure| CertificateError::File(path, failure))
            }
        };
        let (chain, key) = (file(chain).await?, file(key).await?);
        self.checked(chain.content.expose(), key.content, now)
    }
}

impl Default for ClientCertificateProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ClientCertificateProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificateProvider")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl KubernetesAuthProvider for ClientCertificateProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    /// Looks at data in the configuration; files are read where they are used.
    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        let mut problems = match Source::of(cluster) {
            Err(problems) => problems,
            Ok(Source::Files(..)) => Vec::new(),
            Ok(Source::Data(chain, key)) => match self.checked(chain.expose(), key, self.clock.now()) {
                Ok(_) => Vec::new(),
                Err(failure) => vec![Problem::new(source::DATA_KEY, failure.text())],
            },
        };
        if !cluster.server().is_https() {
            let text = "a client certificate needs https: without TLS the API server would see nobody";
            problems.push(Problem::new("url", text));
        }
        problems
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let source = Source::of(&request.cluster).map_err(|problems| crate::options::invalid(&problems))?;
        match source {
            Source::Files(chain, key) => self.of_files(chain, key).await,
            Source::Data(chain, key) => match self.checked(chain.expose(), key, self.clock.now()) {
                Ok(found) => Ok(found.credential),
                Err(failure) => Err(Error::new(failure.kind(), failure.text()).with_source(failure)),
            },
        }
    }

    /// Files may hold another pair by now; what stands in the configuration stays what it is.
    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        let now = self.clock.now();
        match Source::of(&request.cluster) {
            Ok(Source::Files(chain, key)) => match self.read(&chain, &key, now).await {
                Ok(read) => refused.client_certificate() != Some(&read.certificate),
                Err(_) => false,
            },
            Ok(Source::Data(..)) | Err(_) => false,
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error("the file {} cannot be used", .0.display())]
    File(PathBuf, #[source] FileError),
    #[error(transparent)]
    Unusable(#[from] Error),
    #[error("the client certificate has expired on {0}: renew it")]
    Expired(Timestamp),
}

impl CertificateError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::File(_, FileError::Unreadable(_)) => ErrorKind::Unavailable,
            Self::File(..) | Self::Unusable(_) | Self::Expired(_) => ErrorKind::ConfigInvalid,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::File(_, cause) => format!("{self}: {cause}"),
            Self::Unusable(_) | Self::Expired(_) => self.to_string(),
        }
    }

    fn of(self, (chain, _): &(PathBuf, PathBuf)) -> Error {
        let text = match &self {
            Self::File(..) => self.text(),
            Self::Unusable(_) | Self::Expired(_) => format!("{}: {}", chain.display(), self.text()),
        };
        Error::new(self.kind(), text).with_source(self)
    }
}

/// As client-go reads its certificate files (`transport/cert_rotation.go` looks every five minutes; tokens every one).
const READ_AGAIN_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
