//! What locators need from the program that assembles them.

#[cfg(feature = "catalog")]
use std::sync::Arc;

#[cfg(feature = "catalog")]
use kube_authn_core::EntityReader;

#[cfg(feature = "gke")]
use crate::GoogleApi;

/// Parties that locators ask. A locator whose party is not there is a problem of the configuration.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Outside {
    /// The catalog that `type: catalog` asks.
    #[cfg(feature = "catalog")]
    pub catalog: Option<Arc<dyn EntityReader>>,
    /// What `type: gke` asks.
    #[cfg(feature = "gke")]
    pub google: Option<GoogleApi>,
}
