//! Strategy `google`: the Google access token that the caller offers, passed on.

use crate::offered::{Offered, OfferedTokenProvider};

/// The user authenticates at GKE with an access token that the caller offers under `auth.google`.
pub type GoogleProvider = OfferedTokenProvider<Google>;

/// Strategy `google`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Google;

impl Offered for Google {
    const NAME: &'static str = "google";
    const VENDOR: &'static str = "Google";
    const ISSUER: &'static str = "Google";
}
