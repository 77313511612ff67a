#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod caller;
mod cluster_auth;
mod error;

pub use axum;

pub use self::{
    caller::{
        BackstageCallers, BearerToken, Caller, CallerAuthenticator, CallerRequest, Callers, HeaderCallers,
        OidcCallers, PrincipalMapping,
    },
    cluster_auth::{ClusterAuth, ClusterLogin, TokenExposure},
    error::{backstage_error, backstage_fields, kubernetes_status, token_api_error},
};
