//! The demo's folder: an app-config, certificates, a database, and `kube-authn serve` started from them.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_core::{Secret, secrecy::ExposeSecret};
use kube_authn_e2e::{Authority, Serve, Served, TestCluster};
use kube_authn_store::KeyRing;

use crate::{Failure, telling::Telling};

/// The name that seed 004 gives to the cluster that users reach as themselves.
pub(crate) const OPENPORTAL: &str = "openportal";
/// The name that it gives to the same cluster reached with a service account.
pub(crate) const RANCHER_DESKTOP: &str = "rancher-desktop";

/// What the configuration is made of.
pub(crate) struct Facts<'a> {
    pub(crate) api_server: String,
    pub(crate) api_server_ca_pem: Vec<u8>,
    /// Where users log in for the cluster.
    pub(crate) issuer: String,
    pub(crate) client_id: String,
    /// Where callers are from; the same issuer or another one.
    pub(crate) callers_issuer: String,
    pub(crate) callers_audience: String,
    /// The claim that names the caller; none is a hash of issuer and subject.
    pub(crate) callers_claim: Option<&'static str>,
    /// Of both issuers.
    pub(crate) issuer_ca: Option<PathBuf>,
    pub(crate) service_account_token: String,
    /// Signs the service's certificate.
    pub(crate) authority: &'a Authority,
    pub(crate) port: u16,
    /// Its supervisor ends the service also if the demo is killed.
    pub(crate) cluster: Option<&'a TestCluster>,
}

/// The folder and the service.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    ca_pem: String,
    pub(crate) served: Served,
}

impl Place {
    pub(crate) async fn new(facts: &Facts<'_>) -> Result<Self, Failure> {
        // What is in the cluster's folder goes with it even if we are killed: tokens and keys are in this one.
        let parent = facts
            .cluster
            .map_or_else(env::temp_dir, |cluster| cluster.path().to_owned());
        let folder = tempfile::Builder::new()
            .prefix("kube-authn-demo-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let config = folder.path().join("app-config.yaml");
        fs::write(&config, facts.app_config(&folder.path().join("kube-authn.db")))?;
        facts
            .authority
            .serving("kube-authn")?
            .write(folder.path(), "serving")?;
        let ca_pem = facts.authority.pem().to_owned();
        fs::write(folder.path().join("ca.pem"), &ca_pem)?;

        let served = Serve {
            program: &program()?,
            config: &config,
            environment: vec![
                (
                    "KUBERNETES_OPENPORTAL_CA_DATA",
                    STANDARD.encode(&facts.api_server_ca_pem),
                ),
                ("K8S_SA_TOKEN", facts.service_account_token.clone()),
                (
                    "KUBE_AUTHN_KEY",
                    KeyRing::random_key_base64()?.expose_secret().to_owned(),
                ),
                ("RUST_LOG", "info,kube_authn=debug".to_owned()),
            ],
            drain: DRAIN,
            cluster: facts.cluster,
        }
        .start()
        .await?;
        Ok(Self {
            folder,
            ca_pem,
            served,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Who signed the service's certificate.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The same, as a file.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.path().join("ca.pem")
    }

    /// Stops the service. The folder goes, unless it is to be kept or something did not hold.
    pub(crate) async fn end(self, keep: bool, telling: &mut Telling) -> Result<(), Failure> {
        let ended = match self.served.stop().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("kube-authn serve ended badly ({status})").into()),
            Err(error) => Err(error.into()),
        };
        let failed = !telling.all_hold() || ended.is_err();
        if keep || failed {
            let folder = self.folder.keep();
            let kept = env::temp_dir().join(folder.file_name().unwrap_or_default());
            fs::rename(folder, &kept)?;
            telling.line(format!("kept: {}", kept.display()));
            if failed {
                telling.line(format!("the service's log: {}", kept.join(LOG).display()));
            }
        }
        ended
    }

    /// Files of the database, and the service's log, in which one of these secrets can be read, in whole or a part of it
    /// between dots.
    pub(crate) fn files_that_show(&self, secrets: &[Secret]) -> Result<Vec<PathBuf>, Failure> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !(name.starts_with("kube-authn.db") || name == LOG) {
                continue;
            }
            let bytes = fs::read(&path)?;
            let shows = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
            let mut parts = secrets
                .iter()
                .flat_map(|secret| secret.expose().split(|byte| *byte == b'.'))
                .filter(|part| part.len() >= 16);
            if parts.any(shows) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

impl Facts<'_> {
    fn app_config(&self, database: &Path) -> String {
        let ca_file = |indent: &str| match &self.issuer_ca {
            Some(path) => format!("\n{indent}caFile: '{}'", path.display()),
            None => String::new(),
        };
        let principal = match self.callers_claim {
            Some(claim) => format!("\n      principal: {{ claim: {claim} }}"),
            None => String::new(),
        };
        APP_CONFIG
            .replace("<api server>", &self.api_server)
            .replace("<issuer>", &self.issuer)
            .replace("<client id>", &self.client_id)
            .replace("<issuer CA>", &ca_file("  "))
            .replace("<callers' issuer>", &self.callers_issuer)
            .replace("<callers' audience>", &self.callers_audience)
            .replace("<callers' CA>", &ca_file("      "))
            .replace("<principal>", &principal)
            .replace("<port>", &self.port.to_string())
            .replace("<database>", &database.display().to_string())
    }
}

/// The program itself, built beside this one.
fn program() -> Result<PathBuf, Failure> {
    let program = env::current_exe()?.with_file_name("kube-authn-program");
    match program.is_file() {
        true => Ok(program),
        false => Err(format!(
            "there is no {}: build it with `cargo build -p kube-authn-e2e --bins`",
            program.display()
        )
        .into()),
    }
}

/// As `Serve` names it.
const LOG: &str = "kube-authn.log";
/// Nobody waits longer than this for the demo's end.
const DRAIN: Duration = Duration::from_secs(1);

/// Seed 004's configuration, with callers, a store and a key, over https.
const APP_CONFIG: &str = r"
clusterAuth:
  issuer: <issuer>
  clientId: <client id><issuer CA>
kubernetes:
  serviceLocatorMethod:
    type: 'multiTenant'
  clusterLocatorMethods:
    - type: 'config'
      clusters:
        # users reach it as themselves
        - url: <api server>
          name: openportal
          authProvider: 'clusterAuth'
          skipTLSVerify: false
          caData: ${KUBERNETES_OPENPORTAL_CA_DATA}
        # the same API server with a service account: everybody is the same robot
        - url: <api server>
          name: rancher-desktop
          authProvider: 'serviceAccount'
          serviceAccountToken: ${K8S_SA_TOKEN}
          caData: ${KUBERNETES_OPENPORTAL_CA_DATA}
backend:
  listen: 127.0.0.1:<port>
  https:
    certificate:
      cert: { $file: serving.pem }
      key: { $file: serving.key }
kubeAuthn:
  # whoever has an ID token of this issuer for this audience may call
  callers:
    - type: oidc
      issuer: <callers' issuer>
      audience: <callers' audience><callers' CA><principal>
  store: { type: sqlite, url: 'sqlite://<database>' }
  encryption:
    keys: [{ id: k1, key: '${KUBE_AUTHN_KEY}' }]
";
