//! Somebody at the portal: a caller token, and a kubectl that knows it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use kube_authn_core::Secret;
use kube_authn_e2e::{Caller, TestCluster};
use tokio::process::Command;

use crate::{
    Failure,
    place::{OPENPORTAL, Place},
    telling::Telling,
};

pub(crate) struct Person {
    pub(crate) name: &'static str,
    pub(crate) caller: Caller,
    pub(crate) kubeconfig: PathBuf,
    kubectl: PathBuf,
    home: PathBuf,
}

impl Person {
    /// Signs in at the portal, which is issuer A, and gets a kubeconfig.
    pub(crate) async fn arrive(
        cluster: &TestCluster,
        place: &Place,
        name: &'static str,
    ) -> Result<Self, Failure> {
        let token = cluster.issuer_a().id_token(name, "portal").await?;
        let caller = Caller::new(&place.served, place.ca_pem(), Secret::new(token))?;
        let kubeconfig = place.path().join(format!("{name}.kubeconfig"));
        caller.write_kubeconfig(&kubeconfig, OPENPORTAL)?;
        Ok(Self {
            name,
            caller,
            kubeconfig,
            kubectl: cluster.tools().kubectl.clone(),
            home: place.path().to_owned(),
        })
    }

    /// The kubectl that was built for the test cluster.
    pub(crate) fn kubectl(&self) -> &Path {
        &self.kubectl
    }

    /// Runs kubectl and shows what it prints; what it says when it fails is the error.
    pub(crate) async fn runs(&self, arguments: &str, telling: &Telling) -> Result<String, Failure> {
        telling.line(format!("{}$ kubectl {arguments}", self.name));
        let output = self.command(arguments).output().await?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim_end().into());
        }
        let text = String::from_utf8(output.stdout)?;
        telling.line(&text);
        Ok(text)
    }

    /// kubectl with the person's kubeconfig and nothing else of the machine's.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.kubectl);
        command
            // Ctrl-C at the terminal is for us alone.
            .process_group(0)
            .env_remove("KUBECONFIG")
            .env("HOME", &self.home)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments.split_ascii_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}
