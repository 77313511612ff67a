//! Several processes of `kube-authn serve` over one store, and somebody who calls them.

use std::{fs, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Request;
use kube_authn_core::{Secret, secrecy::ExposeSecret};
use kube_authn_e2e::{Caller, Serve, Served, TestCluster};
use kube_authn_store::KeyRing;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::OPENPORTAL;

/// Processes with one configuration, each in a folder of its own. They end when this is dropped.
pub(crate) struct Fleet {
    pub(crate) cluster: &'static TestCluster,
    pub(crate) processes: Vec<Served>,
    folder: TempDir,
    key: String,
    config: Value,
}

impl Fleet {
    /// So many processes over this store (`kubeAuthn.store`); `${FOLDER}` in it is a folder that all of them share.
    pub(crate) async fn start(
        cluster: &'static TestCluster,
        count: usize,
        store: &Value,
        mut config: Value,
    ) -> Self {
        config["backend"] = json!({ "listen": "127.0.0.1:0" });
        config["kubeAuthn"] = json!({
            "store": store,
            "encryption": { "keys": [{ "id": "k1", "key": "${KUBE_AUTHN_KEY}" }] },
            "callers": [{
                "type": "oidc",
                "issuer": cluster.issuer_a().url(),
                "audience": "portal",
                "caFile": cluster.ca_path(),
                "principal": { "claim": "preferred_username" },
            }],
        });
        let mut fleet = Self {
            cluster,
            processes: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
            key: KeyRing::random_key_base64().unwrap().expose_secret().to_owned(),
            config,
        };
        for _ in 0..count {
            fleet.add().await;
        }
        fleet
    }

    /// One more.
    pub(crate) async fn add(&mut self) {
        let folder = self
            .folder
            .path()
            .join(format!("process-{}", self.processes.len()));
        fs::create_dir_all(&folder).unwrap();
        let config = folder.join("app-config.yaml");
        fs::write(&config, self.config.to_string()).unwrap();
        let serve = Serve {
            program: Path::new(env!("CARGO_BIN_EXE_kube-authn-program")),
            config: &config,
            environment: vec![
                ("FOLDER", self.folder.path().display().to_string()),
                ("CA_DATA", STANDARD.encode(self.cluster.ca_pem())),
                ("KUBE_AUTHN_KEY", self.key.clone()),
            ],
            drain: Duration::from_secs(1),
            cluster: None,
        };
        self.processes.push(serve.start().await.unwrap());
    }

    /// Somebody who calls one of the processes with a token of issuer A.
    pub(crate) async fn caller(&self, name: &str, process: usize) -> Caller {
        let token = self.cluster.issuer_a().id_token(name, "portal").await.unwrap();
        Caller::new(
            &self.processes[process],
            self.cluster.ca_pem(),
            Secret::new(token),
        )
        .unwrap()
    }

    /// The same person at another process.
    pub(crate) fn at(&self, caller: &Caller, process: usize) -> Caller {
        let served = &self.processes[process];
        Caller::new(served, self.cluster.ca_pem(), caller.token().clone()).unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(&self, process: usize) {
        let pid = self.processes[process].pid().unwrap();
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }
}

/// `clusterAuth` of issuer B, and clusters of the strategy by name and URL.
pub(crate) fn config(cluster: &TestCluster, clusters: &[(&str, &str)]) -> Value {
    let clusters: Vec<_> = clusters
        .iter()
        .map(|(name, url)| {
            json!({ "name": name, "url": url, "authProvider": "clusterAuth", "caData": "${CA_DATA}" })
        })
        .collect();
    json!({
        "clusterAuth": {
            "issuer": cluster.issuer_b().url(),
            "clientId": "kubernetes",
            "caFile": cluster.ca_path(),
        },
        "kubernetes": {
            "serviceLocatorMethod": { "type": "multiTenant" },
            "clusterLocatorMethods": [{ "type": "config", "clusters": clusters }],
        },
    })
}

/// Any request to the cluster, as this caller.
pub(crate) async fn ask(caller: &Caller) -> (u16, Value) {
    let path = format!("/api/kubernetes/clusters/{OPENPORTAL}/proxy/version");
    caller.get(&path).await.unwrap()
}

/// Hands tokens over to the service.
pub(crate) async fn post(caller: &Caller, tokens: &Value) {
    let request = Request::post("/api/cluster-auth/tokens");
    let (status, answer) = caller.send(request, tokens).await.unwrap();
    assert_eq!(status, 200, "{answer}");
}
