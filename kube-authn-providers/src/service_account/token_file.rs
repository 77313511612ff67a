//! The token file, which somebody else replaces at any moment.

use std::{io, path::PathBuf};

use kube_authn_core::{Error, ErrorKind, Secret};

use crate::regular_file::{self, FileError};

#[derive(Debug)]
pub(super) struct TokenFile {
    /// Without white space around it; not empty.
    pub(super) token: Secret,
    pub(super) world_readable: bool,
}

/// Reads the file, which is a link where Kubernetes mounts it.
pub(super) async fn read(path: PathBuf) -> Result<TokenFile, TokenFileError> {
    let file = match regular_file::read(path.clone()).await {
        Ok(file) => file,
        Err(FileError::Missing(error)) => return Err(TokenFileError::Missing(path, error)),
        Err(FileError::Unreadable(error)) => return Err(TokenFileError::Unreadable(path, error)),
        Err(FileError::NoRegularFile) => return Err(TokenFileError::NoRegularFile(path)),
        Err(FileError::TooLarge) => return Err(TokenFileError::TooLarge(path)),
    };
    let token = super::trimmed(&file.content);
    match token.is_empty() {
        true => Err(TokenFileError::Empty(path)),
        false => Ok(TokenFile {
            token,
            world_readable: file.world_readable,
        }),
    }
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
