//! The API server of a [`TestCluster`]: when it is ready, and how tests make trouble for it.

use std::time::Instant;

use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1::Node, rbac::v1::ClusterRole};
use kube::{Api, Client};

use super::{NODE, POLL, START_LIMIT, TestCluster};
use crate::{
    certificates::Authority,
    error::{Context, Error, Result},
    issuer::Issuer,
    settings,
};

impl TestCluster {
    /// Ends the API server; etcd keeps its data.
    ///
    /// # Errors
    /// When it doesn't end.
    pub async fn stop_api_server(&mut self) -> Result<()> {
        match self.api_server.take() {
            Some(mut api_server) => api_server.stop().await,
            None => Ok(()),
        }
    }

    /// Starts the API server on the port it always had, and waits until it is ready and accepts the tokens of every
    /// issuer that answers.
    ///
    /// # Errors
    /// When it isn't ready within two minutes.
    pub async fn start_api_server(&mut self) -> Result<()> {
        let arguments = settings::api_server(self.path(), self.ports);
        let api_server = self
            .folder
            .start("kube-apiserver", &self.tools.kube_apiserver, arguments)?;
        self.api_server = Some(api_server);
        let client = self.client().await?;
        let begin = Instant::now();
        loop {
            let request = http::Request::get("/readyz")
                .body(Vec::new())
                .context("write a request")?;
            let Err(error) = client.request_text(request).await else {
                break;
            };
            self.check_programs()?;
            if begin.elapsed() > START_LIMIT {
                return Err(error).context("wait for the API server");
            }
            tokio::time::sleep(POLL).await;
        }
        tokio::try_join!(
            self.accepts(&self.issuer_a, "portal"),
            self.accepts(&self.issuer_b, "kubernetes")
        )?;
        Ok(())
    }

    /// Ends the API server and starts it again.
    ///
    /// # Errors
    /// As [`TestCluster::start_api_server`].
    pub async fn restart_api_server(&mut self) -> Result<()> {
        self.stop_api_server().await?;
        self.start_api_server().await
    }

    /// Gives the running API server a new certificate and key of the test CA; returns when it shows them.
    ///
    /// # Errors
    /// When it doesn't within two minutes.
    pub async fn replace_serving_certificate(&self) -> Result<()> {
        self.replace_serving_certificate_by(&self.ca).await
    }

    /// The same with a certificate of another authority, which no client of this cluster trusts, the node included.
    ///
    /// # Errors
    /// As [`TestCluster::replace_serving_certificate`].
    pub async fn replace_serving_certificate_by(&self, authority: &Authority) -> Result<()> {
        let identity = authority.serving("kube-apiserver")?;
        identity.write(self.path(), "kube-apiserver")?;
        let begin = Instant::now();
        while !crate::http::shows(self.ports.api_server, &identity.certificate).await? {
            if begin.elapsed() > START_LIMIT {
                return Err(Error::new("the API server doesn't show its new certificate"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits for what happens after readiness: `view` gets its rules, the node registers.
    pub(super) async fn settle(&mut self, client: &Client) -> Result<()> {
        let roles: Api<ClusterRole> = Api::all(client.clone());
        let nodes: Api<Node> = Api::all(client.clone());
        let begin = Instant::now();
        loop {
            let mut filled = true;
            for name in ["view", "edit", "admin"] {
                let role = roles.get_opt(name).await.context("read a role")?;
                filled &= role
                    .and_then(|role| role.rules)
                    .is_some_and(|rules| !rules.is_empty());
            }
            let node = nodes.get_opt(NODE).await.context("read the node")?;
            let address = node
                .and_then(|node| node.status)
                .and_then(|status| status.daemon_endpoints);
            if filled && address.is_some() {
                return Ok(());
            }
            self.check_programs()?;
            if begin.elapsed() > START_LIMIT {
                return Err(Error::new("the controllers or the node don't come up"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the API server has the issuer's keys. An issuer that doesn't answer is a test's own doing.
    async fn accepts(&self, issuer: &Issuer, client_id: &str) -> Result<()> {
        let Ok(token) = issuer.id_token("readiness", client_id).await else {
            return Ok(());
        };
        let reviews: Api<SelfSubjectReview> = Api::all(self.client_with_token(&token).await?);
        let begin = Instant::now();
        loop {
            let Err(error) = reviews
                .create(&Default::default(), &SelfSubjectReview::default())
                .await
            else {
                return Ok(());
            };
            if begin.elapsed() > START_LIMIT {
                return Err(error).context(format!(
                    "wait until the API server accepts tokens of {}",
                    issuer.url()
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
