//! What siblings get from each other without knowing each other.

use std::fmt;

use async_trait::async_trait;
use serde_json::Value;

use crate::{Result, Secret};

/// Gives access tokens of the application for a vendor's own APIs, such as Google's list of clusters.
#[async_trait]
pub trait AccessTokenSource: fmt::Debug + Send + Sync + 'static {
    /// An access token that is valid now.
    ///
    /// # Errors
    /// As the strategy that it comes from.
    async fn access_token(&self) -> Result<Secret>;
}

/// Reads entities of a software catalog.
#[async_trait]
pub trait EntityReader: fmt::Debug + Send + Sync + 'static {
    /// All entities that match, in Backstage's filter syntax: `kind=resource,spec.type=kubernetes-cluster`.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if the catalog does not answer, `ConfigInvalid` if it refuses us.
    async fn entities(&self, filter: &str) -> Result<Vec<Value>>;
}
