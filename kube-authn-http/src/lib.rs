#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod caller;
mod error;

pub use axum;

pub use self::{
    caller::{
        BackstageCallers, BearerToken, Caller, CallerAuthenticator, CallerRequest, Callers, HeaderCallers,
        OidcCallers, PrincipalMapping,
    },
    error::{kubernetes_status, token_api_error},
};
