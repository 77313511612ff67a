#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod authorize;
mod binding;
mod discovery;
mod exchange;
mod jwks;
mod login;
mod pkce;
mod takeover;
mod verify;

pub use url;

pub use self::{
    authorize::{AuthorizationCode, AuthorizationRequest, Nonce},
    binding::bind,
    discovery::{IssuerClient, IssuerMetadata},
    exchange::{RefreshFailure, TokenAnswer, TokenClient},
    login::{LoginVerifier, PostedTokens, VerifiedLogin},
    pkce::CodeVerifier,
    takeover::stated_identity,
    verify::{IdTokenVerifier, LEEWAY, TypedToken, UnverifiedToken, VerifiedIdToken},
};
