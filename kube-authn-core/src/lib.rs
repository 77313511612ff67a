#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "upstream")]
mod access;
mod audit;
mod caching;
mod claims;
mod clock;
mod cluster;
#[cfg(feature = "conformance")]
pub mod conformance;
mod credential;
mod error;
#[cfg(feature = "client")]
mod kube_client;
mod locator;
mod login;
mod principal;
mod provider;
mod registry;
mod secret;
mod source;
mod store;
#[cfg(feature = "upstream")]
pub mod tls;
mod token;
#[cfg(feature = "upstream")]
mod transport;
#[cfg(feature = "upstream")]
mod upstream;
mod vault;

pub use async_trait::async_trait;
pub use bytes;
pub use http;
#[cfg(feature = "upstream")]
pub use http_body;
#[cfg(feature = "upstream")]
pub use hyper;
pub use jiff;
#[cfg(feature = "upstream")]
pub use rustls;
pub use secrecy;
pub use serde_json;
#[cfg(feature = "client")]
pub use {kube, tower};

#[cfg(feature = "client")]
pub use self::kube_client::PrincipalService;
#[cfg(feature = "upstream")]
pub use self::transport::{Connection, MAX_RESPONSE_BYTES, Transport, resolves_to_public_addresses};
#[cfg(feature = "upstream")]
pub use self::{
    access::{ClusterAccess, SentAuditId},
    upstream::{Body, BoxError, ConnectionCount, Lane, ResponseBody, Upstream, UpstreamPool, Way},
};
pub use self::{
    audit::AuditEvent,
    caching::{CachingProvider, DEFAULT_CAPACITY, REFETCH_PAUSE},
    claims::{MAX_JWT_BYTES, UnverifiedClaims},
    clock::{Clock, ManualClock, SystemClock},
    cluster::{
        AuthMetadata, CaBundle, ClusterBuilder, ClusterDetails, ClusterName, ClusterStamp, CustomResource,
        Dashboard, EgressProxy, InvalidCluster, ServerUrl, StrategyOptions, TlsTrust, UpstreamKey,
        is_public_address, parse_ca,
    },
    credential::{ClientCertificate, Credential, Impersonation, strip_identity},
    error::{Error, ErrorKind, Problem, Result},
    locator::{ClusterLocator, ClusterSet, Clusters, Located},
    login::{BindingRule, IdentityBinding, Lifetimes, LoginConfig, TokenForCluster},
    principal::{ClientId, EntityRef, Issuer, Principal, PrincipalName, Subject, VerifiedEmail},
    provider::{CredentialRequest, CredentialScope, KubernetesAuthProvider, Metadata, RequestAuth},
    registry::ProviderRegistry,
    secret::Secret,
    source::{AccessTokenSource, EntityReader},
    store::{Expected, LoginEvent, LoginEvents, Sealer, TokenStore},
    token::{
        KeyId, LoginHandle, LoginId, LoginMetadata, RefreshMark, Revision, Token, TokenKey, TokenRecord,
        TokenSet, USABLE_MARGIN, WeakLoginHandle, refresh_margin, usable,
    },
    vault::{Claim, KeyRows, Login, LoginCount, NewLogin, Rekeyed, StoredLogin, TokenVault},
};
