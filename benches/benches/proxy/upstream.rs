//! What is proxied to: the stand-in with an issuer of our own, or the test cluster's kube-apiserver with its issuers.

use std::{fs, path::Path};

use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::{Api, api::PostParams};
use kube_authn_benches::{
    api_server::{ApiServer, NAMESPACE},
    loopback::{Address, LIST, Loopback, SMALL, Served},
};
use kube_authn_e2e::Authority;
use serde_json::{Value, json};

use crate::{Asked, issuer::Issuer, subjects::configuration};

const AUDIENCE: &str = "portal";
const CLIENT: &str = "kubernetes";

pub(crate) struct Upstream {
    server: Server,
    /// Alice's token as a caller.
    caller: String,
    /// What the token endpoint answered when she logged in to the cluster.
    tokens: Value,
    /// Of the callers and of the login.
    issuers: [String; 2],
    issuers_ca: String,
}

enum Server {
    StandIn(Loopback),
    Real(Box<ApiServer>),
}

impl Upstream {
    /// Must be called in a runtime, which serves the issuer.
    pub(crate) async fn stand_in(authority: &Authority) -> Self {
        let issuer = Issuer::start(authority).await;
        let id_token = issuer.id_token(CLIENT);
        Self {
            server: Server::StandIn(Loopback::start()),
            caller: issuer.id_token(AUDIENCE),
            tokens: json!({ "id_token": id_token, "access_token": "unused", "expires_in": 86_400 }),
            issuers: [issuer.url().to_owned(), issuer.url().to_owned()],
            issuers_ca: authority.pem().to_owned(),
        }
    }

    /// Alice may view the namespace of fifty pods.
    pub(crate) async fn real() -> Self {
        let server = Box::new(ApiServer::start().await);
        let bindings: Api<RoleBinding> = Api::namespaced(server.admin().await, NAMESPACE);
        let binding = json!({
            "metadata": { "name": "alice-viewer" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice@example.com" }],
        });
        let binding = serde_json::from_value(binding).expect("a role binding");
        let created = bindings.create(&PostParams::default(), &binding).await;
        created.expect("a role binding");
        let cluster = server.cluster();
        let (a, b) = (cluster.issuer_a(), cluster.issuer_b());
        let caller = a.id_token("alice", AUDIENCE).await.expect("a token");
        let tokens = b.sign_in("alice", CLIENT).await.expect("tokens");
        Self {
            caller,
            tokens,
            issuers: [a.url().to_owned(), b.url().to_owned()],
            issuers_ca: cluster.ca_pem().to_owned(),
            server: Server::Real(server),
        }
    }

    /// The first is the one for latency.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        let asked = |what, path, concurrency| Asked {
            what,
            path,
            concurrency,
        };
        match &self.server {
            Server::StandIn(_) => vec![
                asked("2 KiB", SMALL, 1),
                asked("2 KiB", SMALL, 16),
                asked("2 KiB", SMALL, 64),
                asked("155 KiB", LIST, 16),
                asked("155 KiB", LIST, 64),
            ],
            Server::Real(_) => [1, 16, 64]
                .map(|callers| asked("50 pods", LIST, callers))
                .to_vec(),
        }
    }

    pub(crate) fn address(&self) -> &Address {
        match &self.server {
            Server::StandIn(server) => server.address(),
            Server::Real(server) => server.address(),
        }
    }

    /// Connections: of the stand-in those accepted so far, of the API server those open now.
    pub(crate) fn served(&mut self) -> Served {
        match &mut self.server {
            Server::StandIn(server) => server.served(),
            Server::Real(server) => server.served(),
        }
    }

    pub(crate) fn caller(&self) -> &str {
        &self.caller
    }

    pub(crate) fn tokens(&self) -> &Value {
        &self.tokens
    }

    /// The token that reaches the API server.
    pub(crate) fn login(&self) -> &str {
        self.tokens["id_token"].as_str().unwrap_or_default()
    }

    pub(crate) fn write_certificates(&self, folder: &Path) {
        fs::write(folder.join("upstream.pem"), &self.address().ca).expect("a file");
        fs::write(folder.join("issuers.pem"), &self.issuers_ca).expect("a file");
    }

    /// The app-config of `kube-authn serve`, for files in this folder.
    pub(crate) fn configuration(&self, folder: &Path) -> Value {
        let [callers, logins] = &self.issuers;
        let ca = folder.join("issuers.pem");
        let caller = json!({
            "type": "oidc", "issuer": callers, "audience": AUDIENCE, "caFile": ca,
            "principal": { "claim": "preferred_username" },
        });
        let login = json!({ "issuer": logins, "clientId": CLIENT, "caFile": ca });
        configuration(self.address(), folder, &caller, &login)
    }
}
