//! Strategy `aks`: the Entra token that the caller offers for AKS, passed on.

use crate::offered::{Offered, OfferedTokenProvider};

/// The user authenticates at AKS with an Entra token that the caller offers under `auth.aks`. Without one the user has to log
/// in; Backstage goes on as anonymous.
pub type AksProvider = OfferedTokenProvider<Aks>;

/// Strategy `aks`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Aks;

impl Offered for Aks {
    const NAME: &'static str = "aks";
    const VENDOR: &'static str = "AKS";
    const ISSUER: &'static str = "Microsoft Entra";
}
