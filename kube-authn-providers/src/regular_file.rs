//! Reading a file that somebody else replaces at any moment, and that may be anything.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use kube_authn_core::Secret;

/// What was read.
#[derive(Debug)]
pub(crate) struct RegularFile {
    pub(crate) content: Secret,
    pub(crate) world_readable: bool,
}

/// Opens the file once and reads what was opened, on a thread that may wait. Links are followed: what Kubernetes mounts is
/// one. Nothing but a regular file of at most [`MAX_BYTES`] is read, and opening a pipe does not wait for its writer.
pub(crate) async fn read(path: PathBuf) -> Result<RegularFile, FileError> {
    tokio::task::spawn_blocking(move || read_now(&path))
        .await
        .unwrap_or_else(|lost| Err(FileError::Unreadable(io::Error::other(lost))))
}

fn read_now(path: &Path) -> Result<RegularFile, FileError> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(FileError::NoRegularFile);
    }
    let length = usize::try_from(metadata.len()).map_err(|_| FileError::TooLarge)?;
    if length > MAX_BYTES {
        return Err(FileError::TooLarge);
    }

    // Room for all there can be: a buffer that grows leaves copies of the secret behind.
    let mut content = Vec::with_capacity(MAX_BYTES + 1);
    let outcome = file.take(MAX_BYTES as u64 + 1).read_to_end(&mut content);
    let content = Secret::new(content);
    outcome?;
    match content.len() > MAX_BYTES {
        true => Err(FileError::TooLarge),
        false => Ok(RegularFile {
            content,
            world_readable: is_world_readable(&metadata),
        }),
    }
}

#[cfg(unix)]
#[allow(
    clippy::disallowed_methods,
    reason = "the reader of tokens, certificates and keys"
)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

#[cfg(not(unix))]
#[allow(
    clippy::disallowed_methods,
    reason = "the reader of tokens, certificates and keys"
)]
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

/// Why there is no content.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("it is not there")]
    Missing(#[source] io::Error),
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    #[error("it is no regular file")]
    NoRegularFile,
    #[error("it is larger than 64 KiB")]
    TooLarge,
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing(error),
            _ => Self::Unreadable(error),
        }
    }
}

/// A token travels in a header, and API servers take none of more than some KiB; a certificate chain is a few KiB.
pub(crate) const MAX_BYTES: usize = 64 * 1024;
