#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod administration;
mod assemble;
mod files;
mod purge;
mod reach;
mod reload;
mod service;

pub use kube_authn_clusters;
pub use kube_authn_core;
pub use kube_authn_http;
pub use kube_authn_oidc;
pub use kube_authn_providers;
pub use kube_authn_store;

pub use self::administration::Administration;
pub use self::assemble::{
    cluster_access, cluster_access_with, effective_config, impersonation_rules, login_verifier, vault,
};
pub use self::files::check_files;
pub use self::purge::Purge;
pub use self::reach::{Identity, Reach, reach};
pub use self::reload::Reload;
pub use self::service::{Refreshes, Service, service, service_for};
