//! The socket of a cluster in the background: `info` and `down`, one word per connection.

use std::{
    fmt, fs,
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream as BlockingStream,
    path::{Path, PathBuf},
};

use kube_authn_e2e::{Error, Result, TestCluster};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

/// What a person needs to use the cluster.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Info {
    api_server: String,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    ca: PathBuf,
    issuer_a: String,
    issuer_b: String,
    audit_log: PathBuf,
    folder: PathBuf,
}

impl Info {
    pub(crate) fn of(cluster: &TestCluster) -> Self {
        Self {
            api_server: cluster.api_server_url(),
            kubeconfig: cluster.admin_kubeconfig(),
            kubectl: cluster.tools().kubectl.clone(),
            ca: cluster.ca_path(),
            issuer_a: cluster.issuer_a().url().to_owned(),
            issuer_b: cluster.issuer_b().url().to_owned(),
            audit_log: cluster.audit_log(),
            folder: cluster.path().to_owned(),
        }
    }

    pub(crate) fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| Error::new(format!("read the cluster's answer: {error}")))
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "API server  {}", self.api_server)?;
        writeln!(f, "kubeconfig  {} (every right)", self.kubeconfig.display())?;
        writeln!(f, "kubectl     {}", self.kubectl.display())?;
        writeln!(f, "issuer A    {} (portal callers; client portal)", self.issuer_a)?;
        writeln!(
            f,
            "issuer B    {} (cluster users; clients kubernetes, kubernetes-short)",
            self.issuer_b
        )?;
        writeln!(f, "test CA     {}", self.ca.display())?;
        writeln!(
            f,
            "users       alice (view in team-a, edit in team-a-dev), bob, carol; any password"
        )?;
        writeln!(f, "audit log   {}", self.audit_log.display())?;
        write!(f, "logs        {}", self.folder.join("logs").display())
    }
}

/// Our end of the socket. Only one process per folder has it.
#[derive(Debug)]
pub(crate) struct Control {
    folder: PathBuf,
    _lock: File,
}

impl Control {
    pub(crate) fn listen(folder: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| Error::new(format!("use {}: {error}", folder.display()));
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = File::create(folder.join("lock")).map_err(failed)?;
        lock.try_lock()
            .map_err(|_| Error::new("a cluster is starting or running already"))?;
        // What a killed process has left.
        let _ = fs::remove_file(socket(folder));
        Ok(Self {
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// Answers `info` until somebody says `down`; that caller's connection is to be closed when the cluster has ended.
    pub(crate) async fn serve(&self, info: &Info) -> Result<UnixStream> {
        let failed = |error: std::io::Error| Error::new(format!("serve {}: {error}", self.folder.display()));
        let listener = UnixListener::bind(socket(&self.folder)).map_err(failed)?;
        let info = serde_json::to_vec(info).map_err(|error| Error::new(error.to_string()))?;
        loop {
            let (mut caller, _) = listener.accept().await.map_err(failed)?;
            let mut word = [0; 4];
            // A caller that goes away or says something else is no reason to end.
            if caller.read_exact(&mut word).await.is_err() {
                continue;
            }
            match &word {
                b"down" => return Ok(caller),
                _ => drop(caller.write_all(&info).await),
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(socket(&self.folder));
    }
}

/// Says one word to the cluster of `folder` and returns its answer when it has closed the connection; `None` when no
/// cluster runs there.
pub(crate) fn ask(folder: &Path, word: &str) -> Result<Option<String>> {
    let Ok(mut stream) = BlockingStream::connect(socket(folder)) else {
        return Ok(None);
    };
    let mut answer = String::new();
    stream
        .write_all(word.as_bytes())
        .and_then(|()| stream.read_to_string(&mut answer))
        .map_err(|error| Error::new(format!("ask the running cluster: {error}")))?;
    Ok(Some(answer))
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}
