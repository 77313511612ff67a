//! A real kube-apiserver: the test cluster's, with a namespace of fifty pods.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::PostParams};
use kube_authn_e2e::{Options, TestCluster, fixtures};

use crate::{
    loopback::{Address, Served},
    process::{cpu_of, open_connections, process_of_api_server},
};

/// So many pods are some 155 KiB.
const PODS: usize = 50;
/// Where they are.
pub const NAMESPACE: &str = "team-50";

/// The cluster; it ends with this handle.
#[derive(Debug)]
pub struct ApiServer {
    cluster: Box<TestCluster>,
    address: Address,
    process: u32,
}

impl ApiServer {
    /// Starts it and waits until the last pod runs.
    ///
    /// # Panics
    /// If that fails.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    pub async fn start() -> Self {
        let cluster = TestCluster::start(Options::default())
            .await
            .expect("a test cluster");
        let client = cluster.client().await.expect("an admin client");
        fixtures::namespace(&client, NAMESPACE)
            .await
            .expect("a namespace");
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        for number in 0..PODS {
            let pod = fixtures::pod(&format!("web-{number}")).expect("a pod");
            pods.create(&PostParams::default(), &pod).await.expect("a pod");
        }
        fixtures::running(&client, NAMESPACE, &format!("web-{}", PODS - 1))
            .await
            .expect("pods that run");
        let url = cluster.api_server_url();
        let port = url.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let port = port.expect("a port");
        Self {
            address: Address {
                port,
                ca: cluster.ca_pem().to_owned(),
            },
            process: process_of_api_server(port).expect("the API server's process"),
            cluster: Box::new(cluster),
        }
    }

    /// The cluster that it belongs to.
    pub fn cluster(&self) -> &TestCluster {
        &self.cluster
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A token of the service account that may view everything.
    ///
    /// # Panics
    /// If there is none.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    pub async fn viewer_token(&self) -> String {
        let client = self.admin().await;
        let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
        fixtures::bound_token(&client, namespace, name, Duration::from_secs(7200))
            .await
            .expect("a token")
    }

    /// A client that may do everything.
    ///
    /// # Panics
    /// If there is none.
    #[allow(clippy::expect_used, reason = "a bench may panic")]
    pub async fn admin(&self) -> Client {
        self.cluster.client().await.expect("an admin client")
    }

    /// Processor time so far, and the connections that are open now.
    pub fn served(&self) -> Served {
        Served {
            connections: open_connections(self.address.port),
            cpu: cpu_of(self.process),
        }
    }
}
