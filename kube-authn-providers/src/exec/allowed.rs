//! The list of allowed plugins.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::ExecError;

/// A plugin that may be started, and the file that its path led to when it was allowed.
#[derive(Clone, Debug)]
pub(super) struct Allowed {
    pub(super) path: PathBuf,
    file: Option<PathBuf>,
}

impl Allowed {
    pub(super) fn new(path: PathBuf) -> Self {
        let file = path.is_absolute().then(|| path.canonicalize().ok()).flatten();
        if let Some(file) = &file
            && is_writable_by_all(file).unwrap_or(false)
        {
            tracing::warn!(
                path = %file.display(),
                "every user of this machine can change this exec plugin, and so act as this service: chmod o-w",
            );
        }
        Self { path, file }
    }

    /// The file itself, without links, so that nothing can be swapped between this look and the start.
    pub(super) fn resolve(&self) -> Result<PathBuf, ExecError> {
        let now = self.path.canonicalize().map_err(ExecError::Missing)?;
        match &self.file {
            None => Err(ExecError::WasMissing),
            Some(file) if *file == now => Ok(now),
            Some(_) => Err(ExecError::Swapped),
        }
    }
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
