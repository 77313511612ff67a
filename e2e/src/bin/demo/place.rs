//! The demo's folder: an app-config, a database, and the library assembled from them.

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn::kube_authn_clusters::{AppConfig, Environment};
use kube_authn_core::{ClusterAccess, EntityRef, Principal, Secret, TokenVault, secrecy::ExposeSecret};
use kube_authn_oidc::{AuthorizationRequest, LoginVerifier, PostedTokens, TokenClient};
use kube_authn_store::KeyRing;
use url::Url;

use crate::Failure;

/// The name that seed 004 gives to the cluster that users reach as themselves.
pub(crate) const OPENPORTAL: &str = "openportal";
/// The name that it gives to the same cluster reached with a service account.
pub(crate) const RANCHER_DESKTOP: &str = "rancher-desktop";

/// What the configuration is made of.
pub(crate) struct Facts {
    pub(crate) api_server: String,
    pub(crate) api_server_ca_pem: Vec<u8>,
    pub(crate) issuer: String,
    pub(crate) issuer_ca: Option<PathBuf>,
    pub(crate) client_id: String,
    pub(crate) service_account_token: String,
}

/// The folder, and the three lines of every embedding program.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    pub(crate) config: AppConfig,
    pub(crate) vault: TokenVault,
    pub(crate) access: ClusterAccess,
}

impl Place {
    pub(crate) async fn new(facts: &Facts) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("kube-authn-demo-").tempdir()?;
        let file = folder.path().join("app-config.yaml");
        let issuer_ca = match &facts.issuer_ca {
            Some(path) => format!("\n  caFile: {}", path.display()),
            None => String::new(),
        };
        let text = APP_CONFIG
            .replace("API_SERVER", &facts.api_server)
            .replace("ISSUER_CA", &issuer_ca)
            .replace("ISSUER", &facts.issuer)
            .replace("CLIENT_ID", &facts.client_id)
            .replace(
                "DATABASE",
                &folder.path().join("kube-authn.db").display().to_string(),
            );
        std::fs::write(&file, text)?;
        let environment = Environment::of([
            (
                "KUBERNETES_OPENPORTAL_CA_DATA",
                STANDARD.encode(&facts.api_server_ca_pem),
            ),
            ("K8S_SA_TOKEN", facts.service_account_token.clone()),
            (
                "KUBE_AUTHN_KEY",
                KeyRing::random_key_base64()?.expose_secret().to_owned(),
            ),
        ]);

        let config = AppConfig::load_with(&[&file], &environment)?;
        let vault = kube_authn::vault(&config)
            .await?
            .ok_or("the configuration has no clusterAuth cluster")?;
        let access = kube_authn::cluster_access(&config, Some(vault.clone())).await?;
        Ok(Self {
            folder,
            config,
            vault,
            access,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder.
    pub(crate) fn keep(self) -> PathBuf {
        self.folder.keep()
    }

    /// Code + PKCE at the issuer, verification, binding, and the sealed row: the whole login. `browse` opens the URL and
    /// comes back with the one that the issuer redirects to.
    pub(crate) async fn sign_in(
        &self,
        principal: &Principal,
        redirect_uri: Url,
        browse: impl AsyncFnOnce(&Url) -> Result<Url, Failure>,
    ) -> Result<Stored, Failure> {
        let verifier: LoginVerifier =
            kube_authn::login_verifier(&self.config, &self.vault, OPENPORTAL).await?;
        let issuer = verifier.verifier().issuer().clone();
        let client_id = verifier
            .login()
            .client_id
            .clone()
            .ok_or("no client id configured")?;
        let request =
            AuthorizationRequest::new(&*issuer.metadata().await?, &client_id, redirect_uri, &SCOPES)?;

        let back = browse(request.url()).await?;
        let code = request.answer(back.query().unwrap_or_default())?;
        let answer = TokenClient::new(issuer, client_id)
            .exchange(&request, &code)
            .await?;
        let posted = PostedTokens::of_login(answer, request.nonce())?;
        let secrets = [
            Some(&posted.id_token),
            posted.access_token.as_ref(),
            posted.refresh_token.as_ref(),
        ];
        let secrets = secrets.into_iter().flatten().cloned().collect();
        let verified = verifier.verify(principal, posted).await?;
        let expires_at = verified.login.expires_at.to_string();
        let subject = verified.login.subject.to_string();
        self.vault.log_in(&verified.key, verified.login).await?;
        Ok(Stored {
            subject,
            expires_at,
            secrets,
        })
    }

    /// Files of the database in which one of these secrets can be read, in whole or a part of it between dots.
    pub(crate) fn files_that_show(&self, secrets: &[Secret]) -> Result<Vec<PathBuf>, Failure> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.folder.path())? {
            let path = entry?.path();
            let bytes = std::fs::read(&path)?;
            let database = path.to_string_lossy().contains("kube-authn.db");
            let shows = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
            let parts = secrets
                .iter()
                .flat_map(|secret| secret.expose().split(|byte| *byte == b'.'));
            if database && parts.filter(|part| part.len() >= 16).any(shows) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

/// A login that is in the vault now, and the secrets in it, for looking whether they can be read anywhere.
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) expires_at: String,
    pub(crate) secrets: Vec<Secret>,
}

pub(crate) fn user(name: &str) -> Result<Principal, Failure> {
    Ok(Principal::user(EntityRef::parse(&format!(
        "user:default/{name}"
    ))?))
}

const SCOPES: [&str; 3] = ["email", "profile", "offline_access"];

/// Seed 004's configuration, with a store and a key.
const APP_CONFIG: &str = r"
clusterAuth:
  issuer: ISSUER
  clientId: CLIENT_IDISSUER_CA
kubernetes:
  serviceLocatorMethod:
    type: 'multiTenant'
  clusterLocatorMethods:
    - type: 'config'
      clusters:
        # users reach it as themselves
        - url: API_SERVER
          name: openportal
          authProvider: 'clusterAuth'
          skipTLSVerify: false
          caData: ${KUBERNETES_OPENPORTAL_CA_DATA}
        # the same API server with a service account: everybody is the same robot
        - url: API_SERVER
          name: rancher-desktop
          authProvider: 'serviceAccount'
          serviceAccountToken: ${K8S_SA_TOKEN}
          caData: ${KUBERNETES_OPENPORTAL_CA_DATA}
kubeAuthn:
  store: { type: sqlite, url: 'sqlite://DATABASE' }
  encryption:
    keys: [{ id: k1, key: '${KUBE_AUTHN_KEY}' }]
";
