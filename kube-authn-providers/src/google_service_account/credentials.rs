//! Where the credentials are: the configuration, a file, or the places that Google's own tools look at.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use kube_authn_core::{Result, Secret, rustls::crypto::CryptoProvider};
use url::Url;

use super::{
    account::{Account, MAX_BYTES},
    error::{FileError, GoogleError, configured, configured_text},
};

/// Where the credentials come from. `Debug` shows no content.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum GoogleCredentials {
    /// What Google calls application default credentials: the file that `GOOGLE_APPLICATION_CREDENTIALS` names, else
    /// gcloud's `application_default_credentials.json` (in `CLOUDSDK_CONFIG` or `~/.config/gcloud`), else the metadata
    /// server (`GCE_METADATA_HOST`, by default `169.254.169.254`).
    #[default]
    Default,
    /// The content of a credentials file (JSON, at most 64 KiB).
    Json(Secret),
    /// A credentials file, read again when it changes.
    File(PathBuf),
}

/// The credentials that are in force. While a file cannot be read or used, its last good content is.
pub(super) struct Source {
    place: Place,
    crypto: Arc<CryptoProvider>,
    last: Mutex<Option<LastRead>>,
}

enum Place {
    Json(Result<Current, FileError>),
    File(PathBuf),
    Default {
        named: Option<PathBuf>,
        gcloud: Option<PathBuf>,
        /// `None`: `GCE_METADATA_HOST` is malformed.
        metadata: Option<Current>,
    },
}

/// A file's content as it was read last, and what it says.
struct LastRead {
    content: Secret,
    current: Current,
}

/// An account and where it comes from. Clones are the same account.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) account: Arc<Account>,
    /// For errors: which account, from where.
    pub(super) described: Arc<str>,
    /// It may change at any time.
    pub(super) from_file: bool,
}

impl Source {
    pub(super) fn new(
        credentials: GoogleCredentials,
        crypto: Arc<CryptoProvider>,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Self {
        let place = match credentials {
            GoogleCredentials::Json(text) => {
                let account = Account::parse(text.expose(), &crypto);
                Place::Json(account.map(|account| Current::new(account, CONFIGURED, false)))
            }
            GoogleCredentials::File(path) => Place::File(path),
            GoogleCredentials::Default => {
                let set = |name: &str| env(name).filter(|value| !value.is_empty());
                let gcloud = set("CLOUDSDK_CONFIG")
                    .map(PathBuf::from)
                    .or_else(|| gcloud_folder(&set));
                let gcloud = gcloud.map(|folder| folder.join("application_default_credentials.json"));
                Place::Default {
                    named: set(NAMED).map(PathBuf::from),
                    metadata: metadata(set("GCE_METADATA_HOST").as_deref(), gcloud.as_deref()),
                    gcloud,
                }
            }
        };
        Self {
            place,
            crypto,
            last: Mutex::new(None),
        }
    }

    /// What is wrong with credentials that stand in the configuration.
    pub(super) fn problem(&self) -> Option<String> {
        match &self.place {
            Place::Json(Err(failure)) => Some(configured_text(failure)),
            _ => None,
        }
    }

    /// The account whose credentials stand in the configuration.
    #[cfg(feature = "google-federation")]
    pub(super) fn configured(&self) -> Option<&Account> {
        match &self.place {
            Place::Json(Ok(current)) => Some(&current.account),
            _ => None,
        }
    }

    /// The account as it stands now. Without a file of credentials it stays what it is.
    pub(super) async fn current(&self) -> Result<Current> {
        match &self.place {
            Place::Json(read) => read.clone().map_err(configured),
            Place::File(path) => {
                let current = self.file(path, CREDENTIALS_FILE).await;
                current.map_err(|failure| failure.of_source(CREDENTIALS_FILE))
            }
            Place::Default {
                named: Some(path), ..
            } => {
                let current = self.file(path, NAMED).await;
                current.map_err(|failure| failure.of_source(NAMED))
            }
            Place::Default {
                named: None,
                gcloud,
                metadata,
            } => {
                if let Some(path) = gcloud {
                    match self.file(path, GCLOUD).await {
                        Err(GoogleError::Unreadable { source, .. })
                            if source.kind() == io::ErrorKind::NotFound => {}
                        current => return current.map_err(|failure| failure.of_source(GCLOUD)),
                    }
                }
                let malformed = || GoogleError::MetadataHost.of_source("application default credentials");
                metadata.clone().ok_or_else(malformed)
            }
        }
    }

    /// What the file says now; if it cannot be read or used, what it said last.
    async fn file(&self, path: &Path, named: &str) -> Result<Current, GoogleError> {
        let asked = path.to_owned();
        let content = tokio::task::spawn_blocking(move || read(&asked))
            .await
            .unwrap_or_else(|lost| Err(io::Error::other(lost)))
            .map_err(|source| GoogleError::Unreadable {
                path: path.to_owned(),
                source,
            });
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(content), Some(last)) = (&content, &*last)
            && last.content == *content
        {
            return Ok(last.current.clone());
        }
        let found = content.and_then(|content| {
            let account =
                Account::parse(content.expose(), &self.crypto).map_err(|source| GoogleError::Unusable {
                    path: path.to_owned(),
                    source,
                })?;
            let place = format!("{named} ({})", path.display());
            let current = Current::new(account, &place, true);
            Ok(LastRead { content, current })
        });
        match (found, &*last) {
            (Ok(found), _) => Ok(last.insert(found).current.clone()),
            (Err(failure), Some(last)) => {
                tracing::warn!(
                    error = &failure as &dyn std::error::Error,
                    "the file of Google credentials stays as it was read last",
                );
                Ok(last.current.clone())
            }
            (Err(failure), None) => Err(failure),
        }
    }
}

impl Current {
    fn new(account: Account, place: &str, from_file: bool) -> Self {
        let described = match account.email() {
            Some(email) => format!("{email}, the account of {place}"),
            None => place.to_owned(),
        };
        Self {
            account: Arc::new(account),
            described: described.into(),
            from_file,
        }
    }

    /// Whether it is the same account with the same credentials.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.account, &other.account)
    }

    /// Whether it is the same account, perhaps with other credentials.
    pub(super) fn is_same_identity(&self, other: &Self) -> bool {
        let email = self.account.email();
        self.is(other) || (email.is_some() && email == other.account.email())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Place::Json(_) => CONFIGURED,
            Place::File(_) => CREDENTIALS_FILE,
            Place::Default { .. } => "default",
        };
        f.debug_tuple("Source").field(&place).finish()
    }
}

/// A regular file of at most [`MAX_BYTES`]; opening a pipe does not wait for its writer.
#[allow(
    clippy::disallowed_methods,
    reason = "the reader of Google's credentials files"
)]
pub(super) fn read(path: &Path) -> io::Result<Secret> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path)?;
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if !file.metadata()?.is_file() {
        return refuse("it is no regular file");
    }
    // Room for all there can be: a buffer that grows leaves copies of the key behind.
    let mut content = Vec::with_capacity(MAX_BYTES + 1);
    let outcome = file.take(MAX_BYTES as u64 + 1).read_to_end(&mut content);
    let content = Secret::new(content);
    outcome?;
    match content.len() > MAX_BYTES {
        true => refuse("it is larger than 64 KiB"),
        false => Ok(content),
    }
}

/// The metadata server, `host[:port]`, when no file is there.
fn metadata(host: Option<&str>, gcloud: Option<&Path>) -> Option<Current> {
    let host = host
        .filter(|host| *host != METADATA_NAME)
        .unwrap_or(METADATA_HOST);
    let url = Url::parse(&format!("http://{host}/")).ok()?;
    if url.path() != "/" || !url.username().is_empty() || url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    let looked_at = match gcloud {
        Some(path) => format!("{} is not there", path.display()),
        None => "there is no home folder".to_owned(),
    };
    let described = format!("{NAMED} is not set; {looked_at}; the metadata server");
    Some(Current::new(Account::Metadata(url), &described, gcloud.is_some()))
}

/// Where gcloud keeps its settings.
fn gcloud_folder(set: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    match cfg!(windows) {
        true => Some(PathBuf::from(set("APPDATA")?).join("gcloud")),
        false => Some(PathBuf::from(set("HOME")?).join(".config/gcloud")),
    }
}

const CONFIGURED: &str = "kubernetes.googleServiceAccountCredentials";
const CREDENTIALS_FILE: &str = "kubeAuthn.strategies.googleServiceAccount.credentialsFile";
const NAMED: &str = "GOOGLE_APPLICATION_CREDENTIALS";
const GCLOUD: &str = "gcloud's application default credentials";

/// <https://cloud.google.com/compute/docs/metadata/querying-metadata>. The address and not the name, as Google's library for
/// Go: nobody can lead it elsewhere.
const METADATA_HOST: &str = "169.254.169.254";
const METADATA_NAME: &str = "metadata.google.internal";
