//! Reading a token file that somebody else replaces at any moment, and that may be anything.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use kube_authn_core::{Error, ErrorKind, Secret};

#[derive(Debug)]
pub(super) struct TokenFile {
    /// Without white space around it; not empty.
    pub(super) token: Secret,
    pub(super) world_readable: bool,
}

/// Opens the file once and reads what was opened, on a thread that may wait. Links are followed: a projected token is
/// one. Nothing but a regular file is read, and opening a pipe does not wait for its writer.
pub(super) async fn read(path: PathBuf) -> Result<TokenFile, TokenFileError> {
    let asked = path.clone();
    tokio::task::spawn_blocking(move || read_now(&path))
        .await
        .unwrap_or_else(|lost| Err(TokenFileError::Unreadable(asked, io::Error::other(lost))))
}

fn read_now(path: &Path) -> Result<TokenFile, TokenFileError> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => TokenFileError::Missing(path.to_owned(), error),
        _ => TokenFileError::Unreadable(path.to_owned(), error),
    };
    let file = open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(TokenFileError::NoRegularFile(path.to_owned()));
    }
    let too_large = || TokenFileError::TooLarge(path.to_owned());
    let length = usize::try_from(metadata.len()).map_err(|_| too_large())?;
    if length > MAX_BYTES {
        return Err(too_large());
    }

    // Room for all there can be: a buffer that grows leaves copies of the token behind.
    let mut content = Vec::with_capacity(MAX_BYTES + 1);
    let outcome = file.take(MAX_BYTES as u64 + 1).read_to_end(&mut content);
    let content = Secret::new(content);
    outcome.map_err(unreadable)?;
    if content.len() > MAX_BYTES {
        return Err(too_large());
    }

    let token = super::trimmed(&content);
    match token.is_empty() {
        true => Err(TokenFileError::Empty(path.to_owned())),
        false => Ok(TokenFile {
            token,
            world_readable: is_world_readable(&metadata),
        }),
    }
}

#[cfg(unix)]
#[allow(clippy::disallowed_methods, reason = "the reader of the token file")]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

#[cfg(not(unix))]
#[allow(clippy::disallowed_methods, reason = "the reader of the token file")]
fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(unix)]
fn is_world_readable(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::mode(metadata) & 0o004 != 0
}

#[cfg(not(unix))]
fn is_world_readable(_: &std::fs::Metadata) -> bool {
    false
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TokenFileError {
    /// Backstage's text, which is Node's.
    #[error("ENOENT: no such file or directory, open '{}'", .0.display())]
    Missing(PathBuf, #[source] io::Error),
    #[error("cannot read the token file {}", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("the token file {} is no regular file", .0.display())]
    NoRegularFile(PathBuf),
    #[error("the token file {} is larger than 64 KiB", .0.display())]
    TooLarge(PathBuf),
    #[error("the token file {} is empty", .0.display())]
    Empty(PathBuf),
    #[error("the token file {} holds characters that no bearer token may have", .0.display())]
    Illegal(PathBuf),
    #[error("the token in {} has expired", .0.display())]
    Expired(PathBuf),
}

impl From<TokenFileError> for Error {
    fn from(failure: TokenFileError) -> Self {
        let (kind, text) = match &failure {
            TokenFileError::Missing(..) => (
                ErrorKind::ConfigInvalid,
                format!("{failure}: configure serviceAccountToken, or mount a service account into the pod"),
            ),
            TokenFileError::Unreadable(_, error) => (
                match error.kind() {
                    io::ErrorKind::PermissionDenied => ErrorKind::ConfigInvalid,
                    _ => ErrorKind::Unavailable,
                },
                format!("{failure}: {error}"),
            ),
            TokenFileError::NoRegularFile(_) | TokenFileError::TooLarge(_) | TokenFileError::Illegal(_) => {
                (ErrorKind::ConfigInvalid, failure.to_string())
            }
            TokenFileError::Empty(_) => (
                ErrorKind::Unavailable,
                format!("{failure}: the kubelet has not written it yet"),
            ),
            TokenFileError::Expired(_) => (
                ErrorKind::Unavailable,
                format!("{failure}: the kubelet has not renewed it"),
            ),
        };
        Self::new(kind, text).with_source(failure)
    }
}

/// A token travels in a header, and API servers take none of more than some KiB.
const MAX_BYTES: usize = 64 * 1024;
