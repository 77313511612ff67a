//! What SQLite said, as the family's error.

use std::{path::Path, time::Duration};

use kube_authn_core::{Error, ErrorKind};

#[derive(Debug, thiserror::Error)]
pub(super) enum SqliteError {
    #[error("the file can't be reached or made")]
    File(#[source] std::io::Error),
    #[error("it is no regular file")]
    NoFile,
    #[error("its folder is not there")]
    NoFolder,
    #[error("SQLite failed")]
    Statement(#[from] sqlx::Error),
}

impl SqliteError {
    /// A failure of a file that was open.
    pub(super) fn at(self, path: &Path) -> Error {
        let path = path.display();
        let (kind, message) = match self.code() {
            Some(FULL) => (
                ErrorKind::Unavailable,
                format!("the disk of the token store {path} is full: free some space, nothing was written"),
            ),
            Some(BUSY | LOCKED) => (
                ErrorKind::Unavailable,
                format!("the token store {path} is locked by another process: try again"),
            ),
            Some(CORRUPT | NOT_A_DATABASE) => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {path} is corrupt: restore it from a backup, or remove it and log in again"
                ),
            ),
            Some(READ_ONLY) => (
                ErrorKind::Unavailable,
                format!("the token store {path} is read-only: make the file and its folder writable"),
            ),
            _ if matches!(self, Self::Statement(sqlx::Error::PoolTimedOut)) => (
                ErrorKind::Timeout,
                format!("the token store {path} did not answer in time: try again"),
            ),
            _ => (
                ErrorKind::Unavailable,
                format!(
                    "the token store {path} does not answer: look at the disk and the file's permissions"
                ),
            ),
        };
        Error::new(kind, message)
            .with_retry_after(RETRY_AFTER)
            .with_source(self)
    }

    /// A failure while the file was opened, which somebody has to mend.
    pub(super) fn opening(self, path: &Path) -> Error {
        if let Some(BUSY | LOCKED) = self.code() {
            return self.at(path);
        }
        let hint = match (&self, self.code()) {
            (Self::NoFile, _) => "it is a folder, or something else that is no regular file",
            (Self::NoFolder, _) => "its folder is not there",
            (_, Some(NOT_A_DATABASE | CORRUPT)) => "it is no SQLite database, or a corrupt one",
            (_, Some(STATEMENT)) => {
                "its tables are not what its table kube_authn_schema says: restore it from a backup, or name another file"
            }
            _ => "its folder must exist, and the file must be readable and writable",
        };
        Error::new(
            ErrorKind::ConfigInvalid,
            format!(
                "can't open the token store {}: {hint} (kubeAuthn.store.url)",
                path.display()
            ),
        )
        .with_source(self)
    }

    /// SQLite's primary result code.
    fn code(&self) -> Option<u32> {
        let Self::Statement(sqlx::Error::Database(error)) = self else {
            return None;
        };
        let code: u32 = error.code()?.parse().ok()?;
        Some(code & 0xff)
    }
}

// Primary result codes: https://www.sqlite.org/rescode.html
/// A statement that does not fit the schema; all of ours fit the schema that we made.
const STATEMENT: u32 = 1;
const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const READ_ONLY: u32 = 8;
const CORRUPT: u32 = 11;
const FULL: u32 = 13;
const NOT_A_DATABASE: u32 = 26;

/// When a client should try again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
