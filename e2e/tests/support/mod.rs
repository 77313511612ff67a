//! The library as a service uses it, against the test cluster: an app-config, the vault, the access, people who sign in.
#![allow(dead_code, reason = "each test binary takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

pub(crate) mod fleet;
pub(crate) mod log;
pub(crate) mod pod;
pub(crate) mod recorder;
pub(crate) mod relay;
pub(crate) mod stage;
pub(crate) mod stand_in;
pub(crate) mod way;

use std::{
    fmt::Display,
    future::Future,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use kube_authn::kube_authn_clusters::{AppConfig, Environment};
use kube_authn_core::{
    Body, ClusterAccess, CredentialRequest, EntityRef, Error, Principal, Result, Secret, TokenKey,
    TokenVault, secrecy::ExposeSecret,
};
use kube_authn_e2e::{Browser, TestCluster, fixtures};
use kube_authn_oidc::{AuthorizationRequest, LoginVerifier, PostedTokens, TokenClient};
use kube_authn_store::KeyRing;
use serde_json::{Value, json};
use url::Url;

/// Seed 004's cluster that users reach as themselves.
pub(crate) const OPENPORTAL: &str = "openportal";
/// The same API server with the portal's service account.
pub(crate) const RANCHER_DESKTOP: &str = "rancher-desktop";
/// The same API server with an ID token that the caller offers under [`OFFERED`].
pub(crate) const PASS_THROUGH: &str = "pass-through";
pub(crate) const OFFERED: &str = "portal-oidc";

pub(crate) const NO_LOGIN: &str =
    "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster.";
pub(crate) const EXPIRED_LOGIN: &str =
    "Cluster authentication expired. Please re-authenticate at Settings → Auth Providers.";

/// A service: configuration, vault and access, in a folder of its own.
pub(crate) struct Portal {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: AppConfig,
    pub(crate) vault: TokenVault,
    pub(crate) access: ClusterAccess,
    pub(crate) encryption_key: Secret,
    verifier: LoginVerifier,
    issuer_ca: String,
}

/// A login that is in the vault, and the secrets in it.
pub(crate) struct Stored {
    pub(crate) key: TokenKey,
    pub(crate) secrets: Vec<Secret>,
}

/// Seed 004's configuration for this cluster, JSON being YAML.
pub(crate) fn app_config(cluster: &TestCluster) -> Value {
    let url = cluster.api_server_url();
    json!({
        "clusterAuth": {
            "issuer": cluster.issuer_b().url(),
            "clientId": "kubernetes",
            "caFile": cluster.ca_path(),
        },
        "kubernetes": {
            "serviceLocatorMethod": { "type": "multiTenant" },
            "clusterLocatorMethods": [{ "type": "config", "clusters": [
                { "name": OPENPORTAL, "url": url, "authProvider": "clusterAuth", "caData": "${CA_DATA}" },
                { "name": RANCHER_DESKTOP, "url": url, "authProvider": "serviceAccount",
                  "serviceAccountToken": "${K8S_SA_TOKEN}", "caData": "${CA_DATA}" },
                { "name": PASS_THROUGH, "url": url, "authProvider": "oidc", "oidcTokenProvider": OFFERED,
                  "caData": "${CA_DATA}" },
            ]}],
        },
        "kubeAuthn": {
            "store": { "type": "sqlite", "url": "sqlite://${FOLDER}/kube-authn.db" },
            "encryption": { "keys": [{ "id": "k1", "key": "${KUBE_AUTHN_KEY}" }] },
        },
    })
}

/// The entry of one cluster in [`app_config`].
pub(crate) fn cluster_entry<'a>(config: &'a mut Value, name: &str) -> &'a mut Value {
    config["kubernetes"]["clusterLocatorMethods"][0]["clusters"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .find(|entry| entry["name"] == name)
        .unwrap()
}

impl Portal {
    pub(crate) async fn new(cluster: &TestCluster) -> Self {
        Self::with_config(cluster, &app_config(cluster)).await
    }

    pub(crate) async fn with_config(cluster: &TestCluster, config: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("app-config.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let key = KeyRing::random_key_base64().unwrap();
        let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
        let environment = Environment::of([
            ("FOLDER", folder.path().display().to_string()),
            ("CA_DATA", STANDARD.encode(cluster.ca_pem())),
            ("KUBE_AUTHN_KEY", key.expose_secret().to_owned()),
            (
                "K8S_SA_TOKEN",
                fixtures::secret_token(&cluster.client().await.unwrap(), namespace, name)
                    .await
                    .unwrap(),
            ),
        ]);
        let config = AppConfig::load_with(&[&file], &environment).unwrap();
        let vault = kube_authn::vault(&config).await.unwrap().unwrap();
        let access = kube_authn::cluster_access(&config, Some(vault.clone()))
            .await
            .unwrap();
        let verifier = kube_authn::login_verifier(&config, &vault, OPENPORTAL)
            .await
            .unwrap();
        Self {
            folder,
            config,
            vault,
            access,
            encryption_key: Secret::new(key.expose_secret().as_bytes()),
            verifier,
            issuer_ca: cluster.ca_pem().to_owned(),
        }
    }

    /// Signs `user:default/<name>` in as `name`: code and PKCE at the issuer, verification, the sealed row.
    pub(crate) async fn sign_in(&self, name: &str) -> (Principal, Stored) {
        let principal = user(name);
        let stored = self.try_sign_in(&principal, name).await.unwrap();
        (principal, stored)
    }

    /// The same, with what went wrong between us and the issuer.
    pub(crate) async fn try_sign_in(&self, principal: &Principal, name: &str) -> Result<Stored> {
        let posted = self.tokens_of(name).await?;
        self.hand_over(principal, posted).await
    }

    /// Code and PKCE alone.
    pub(crate) async fn tokens_of(&self, name: &str) -> Result<PostedTokens> {
        let issuer = self.verifier.verifier().issuer().clone();
        let client_id = self.verifier.login().client_id.clone().unwrap();
        let redirect_uri = Url::parse("http://127.0.0.1:8000/callback").unwrap();
        let scopes = ["email", "profile", "offline_access"];
        let metadata = issuer.metadata().await?;
        let request = AuthorizationRequest::new(&metadata, &client_id, redirect_uri, &scopes)?;
        let back = Browser::new(&self.issuer_ca)
            .unwrap()
            .follow_login(request.url(), name)
            .await
            .unwrap();
        let code = request.answer(back.query().unwrap_or_default())?;
        let answer = TokenClient::new(issuer, client_id)
            .exchange(&request, &code)
            .await?;
        PostedTokens::of_login(answer, request.nonce())
    }

    /// Verifies, binds and stores.
    pub(crate) async fn hand_over(&self, principal: &Principal, posted: PostedTokens) -> Result<Stored> {
        let secrets = [
            Some(&posted.id_token),
            posted.access_token.as_ref(),
            posted.refresh_token.as_ref(),
        ];
        let secrets = secrets.into_iter().flatten().cloned().collect();
        let verified = self.verifier.verify(principal, posted).await?;
        self.vault.log_in(&verified.key, verified.login).await?;
        Ok(Stored {
            key: verified.key,
            secrets,
        })
    }

    pub(crate) async fn pods(&self, principal: &Principal, cluster: &str, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.access.client(principal, cluster).await.unwrap(), namespace)
    }

    /// The pods' names, through a fresh client: whatever is wrong comes as one text.
    pub(crate) async fn list(
        &self,
        principal: &Principal,
        cluster: &str,
        namespace: &str,
    ) -> Result<Vec<String>, String> {
        let client = self
            .access
            .client(principal, cluster)
            .await
            .map_err(|error| chain(&error))?;
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let list = pods
            .list(&ListParams::default())
            .await
            .map_err(|error| chain(&error))?;
        Ok(list.iter().map(ResourceExt::name_any).collect())
    }

    /// One request on the one request path.
    pub(crate) async fn send(&self, principal: &Principal, http: Request<Body>) -> Result<Response<Bytes>> {
        let request = self.access.request(principal, OPENPORTAL)?;
        send(&self.access, &request, http).await
    }
}

pub(crate) async fn send(
    access: &ClusterAccess,
    request: &CredentialRequest,
    http: Request<Body>,
) -> Result<Response<Bytes>> {
    let (head, body) = access.send(request, http).await?.into_parts();
    Ok(Response::from_parts(
        head,
        body.collect().await.unwrap().to_bytes(),
    ))
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

pub(crate) fn user(name: &str) -> Principal {
    Principal::user(EntityRef::parse(&format!("user:default/{name}")).unwrap())
}

/// An error and all its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Our error inside kube's.
pub(crate) fn ours(error: &kube::Error) -> &Error {
    Error::find(error).unwrap_or_else(|| panic!("not ours: {error}"))
}

/// Waits for something that another process does, at most as long as this.
pub(crate) async fn within<T>(limit: Duration, what: impl Display, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}

/// Asks again until the answer is there.
pub(crate) async fn eventually<T>(
    limit: Duration,
    what: impl Display,
    ask: impl AsyncFn() -> Option<T>,
) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
