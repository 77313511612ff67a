//! Locator `localKubectlProxy`: the cluster behind `kubectl proxy` on this machine.

use async_trait::async_trait;
use kube_authn_core::{ClusterDetails, ClusterLocator, Error, Located, Result};

/// One cluster, `local`, at `http://localhost:8001`, where `kubectl proxy` listens and authenticates by itself.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LocalKubectlProxyLocator;

impl LocalKubectlProxyLocator {
    /// The wire name, `localKubectlProxy`.
    pub const NAME: &str = "localKubectlProxy";

    /// The locator; it has no settings.
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl ClusterLocator for LocalKubectlProxyLocator {
    fn name(&self) -> &str {
        Self::NAME
    }

    async fn locate(&self) -> Result<Located> {
        let cluster = ClusterDetails::builder("local", URL)
            .auth_provider(Self::NAME)
            .skip_metrics_lookup(true)
            .build()
            .map_err(Error::from)?;
        Ok(Located::new(vec![cluster], Vec::new()))
    }
}

/// Default address of `kubectl proxy` (`kubectl proxy --help`, `--port`).
const URL: &str = "http://localhost:8001";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_one_cluster_without_metrics() {
        let located = LocalKubectlProxyLocator::new().locate().await.expect("located");

        let [cluster] = &located.clusters[..] else {
            panic!("one cluster")
        };
        assert_eq!(
            (
                cluster.name().as_str(),
                cluster.server().to_string(),
                cluster.auth_provider(),
                cluster.skip_metrics_lookup()
            ),
            (
                "local",
                "http://localhost:8001".to_owned(),
                "localKubectlProxy",
                Some(true)
            )
        );
    }
}
