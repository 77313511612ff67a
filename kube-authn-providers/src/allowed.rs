//! Programs that the administrator allowed: by path, and by the file that the path led to then.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A program that may be started, and the file that its path led to when it was allowed.
#[derive(Clone, Debug)]
pub(crate) struct Allowed {
    pub(crate) path: PathBuf,
    file: Option<PathBuf>,
}

impl Allowed {
    pub(crate) fn new(path: PathBuf) -> Self {
        let file = path.is_absolute().then(|| path.canonicalize().ok()).flatten();
        if let Some(file) = &file
            && is_writable_by_all(file).unwrap_or(false)
        {
            tracing::warn!(
                path = %file.display(),
                "every user of this machine can change this program, and so act as this service: chmod o-w",
            );
        }
        Self { path, file }
    }

    /// The file itself, without links, so that nothing can be swapped between this look and the start.
    pub(crate) fn resolve(&self) -> Result<PathBuf, AllowedError> {
        let now = self.path.canonicalize().map_err(AllowedError::Missing)?;
        match &self.file {
            None => Err(AllowedError::WasMissing),
            Some(file) if *file == now => Ok(now),
            Some(_) => Err(AllowedError::Swapped),
        }
    }
}

/// Why a program that is allowed is not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AllowedError {
    #[error("it was not there when the list of allowed programs was read")]
    WasMissing,
    #[error("it is not there")]
    Missing(#[source] io::Error),
    #[error("it leads to another file than when the list of allowed programs was read")]
    Swapped,
}

#[cfg(unix)]
fn is_writable_by_all(file: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;

    Ok(file.metadata()?.mode() & 0o002 != 0)
}

#[cfg(not(unix))]
fn is_writable_by_all(_: &Path) -> io::Result<bool> {
    Ok(false)
}
