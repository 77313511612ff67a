#![doc = include_str!("../README.md")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod browser;
mod certificates;
mod cluster;
mod error;
pub mod fixtures;
mod http;
mod issuer;
mod process;
mod served;
mod settings;
mod tools;

pub use browser::Browser;
pub use certificates::{Authority, Identity};
pub use cluster::{NODE, Options, TestCluster};
pub use error::{Error, Result};
pub use http::Http;
pub use issuer::Issuer;
pub use served::{Caller, Serve, Served, write_private};
pub use tools::{KUBERNETES_VERSION, Tools, cache_folder, eks_verifier, python};
