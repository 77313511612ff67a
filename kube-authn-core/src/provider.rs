//! The strategy: how a credential for a cluster is obtained.
//!
//! A whole implementation, registered beside the built-in ones:
//!
//! ```
//! use kube_authn_core::{
//!     ClusterDetails, Credential, CredentialRequest, CredentialScope, KubernetesAuthProvider, Metadata, Problem,
//!     ProviderRegistry, Result, Secret, async_trait,
//! };
//!
//! #[derive(Debug)]
//! struct Fixed(Secret);
//!
//! #[async_trait]
//! impl KubernetesAuthProvider for Fixed {
//!     fn name(&self) -> &str { "fixed" }
//!     fn scope(&self, _: &ClusterDetails) -> CredentialScope { CredentialScope::Application }
//!     fn validate(&self, _: &ClusterDetails) -> Vec<Problem> { Vec::new() }
//!     fn public_metadata(&self, _: &ClusterDetails) -> Metadata { Metadata::new() }
//!     async fn credential(&self, _: &CredentialRequest) -> Result<Credential> { Credential::bearer(&self.0) }
//!     async fn invalidate(&self, _: &CredentialRequest, _: &Credential) -> bool { false }
//! }
//!
//! let registry = ProviderRegistry::new().with(Fixed(Secret::new("token")));
//! # let _ = registry;
//! ```

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;

use crate::{ClusterDetails, Credential, Principal, Problem, Result, Secret};

/// What a browser may know of a cluster's strategy.
pub type Metadata = BTreeMap<String, String>;

/// Obtains a credential for a cluster: one strategy, one value of `authProvider`.
///
/// # Contract
/// Each line is a check of the conformance suite (feature `conformance`).
///
/// 1. `name` never changes and is not empty.
/// 2. `scope` depends on the cluster alone. A credential of scope `Application` serves every caller; of scope `User`
///    only the principal it was made for; of scope `Request` only the request that offered it.
/// 3. `validate` reports all problems at once and touches no network.
/// 4. `public_metadata` holds nothing secret.
/// 5. `credential` fails closed: never another identity than the one its scope names, never anonymous in place of a
///    missing token, never an expired token. It states `expires_at` whenever the credential has an end.
/// 6. `credential` may be called concurrently, and dropping its future harms no other call.
/// 7. `invalidate` is told which credential the API server refused with 401. It drops what it cached of exactly that
///    credential, deletes no stored login, changes none but by one refresh a minute, and says whether another try may give
///    another credential, or an error that says more than the refusal.
/// 8. No error, log line or `Debug` shows a secret.
#[async_trait]
pub trait KubernetesAuthProvider: fmt::Debug + Send + Sync + 'static {
    /// The wire value of `authProvider`.
    fn name(&self) -> &str;

    /// How far one credential for this cluster may be shared.
    fn scope(&self, cluster: &ClusterDetails) -> CredentialScope;

    /// Everything about the cluster's settings that cannot work.
    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem>;

    /// What a browser may know of the strategy for this cluster.
    fn public_metadata(&self, cluster: &ClusterDetails) -> Metadata;

    /// A credential that is valid now.
    ///
    /// # Errors
    /// `LoginRequired` or `TokenExpired` if the user has to act; `ConfigInvalid` if an administrator has to;
    /// `Unavailable` or `Timeout` if the source of the credential does not answer.
    async fn credential(&self, request: &CredentialRequest) -> Result<Credential>;

    /// The API server refused this credential: may another try give another one?
    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool;
}

#[async_trait]
impl<P: KubernetesAuthProvider + ?Sized> KubernetesAuthProvider for Arc<P> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn scope(&self, cluster: &ClusterDetails) -> CredentialScope {
        (**self).scope(cluster)
    }

    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        (**self).validate(cluster)
    }

    fn public_metadata(&self, cluster: &ClusterDetails) -> Metadata {
        (**self).public_metadata(cluster)
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        (**self).credential(request).await
    }

    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        (**self).invalidate(request, refused).await
    }
}

/// How far one credential may be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(
    clippy::exhaustive_enums,
    reason = "complete: one place makes a cache key of each"
)]
pub enum CredentialScope {
    /// The application's own: one per cluster.
    Application,
    /// The user's: one per principal and cluster. The strategy alone decides who the user is there, so a caller cannot
    /// put an `Authorization` of its own in its place.
    User,
    /// This request's alone: never cached.
    Request,
}

/// For whom, for which cluster, and with which tokens at hand. Handles throughout: a clone is three counters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CredentialRequest {
    /// On whose behalf.
    pub principal: Principal,
    /// For which cluster.
    pub cluster: ClusterDetails,
    /// What the caller offers with this request.
    pub auth: RequestAuth,
}

impl CredentialRequest {
    /// A request without offered tokens.
    pub fn new(principal: Principal, cluster: ClusterDetails) -> Self {
        Self {
            principal,
            cluster,
            auth: RequestAuth::default(),
        }
    }

    /// Adds the tokens that the caller offers.
    pub fn with_auth(mut self, auth: RequestAuth) -> Self {
        self.auth = auth;
        self
    }
}

/// Tokens that a caller offers with a request, by strategy or by OIDC token provider. Names are matched without regard
/// to case, since they may have travelled in header names. Clones share the tokens.
#[derive(Clone, Debug, Default)]
pub struct RequestAuth(Option<Arc<Offers>>);

#[derive(Clone, Debug, Default)]
struct Offers {
    tokens: Vec<Offered>,
    authorization: Option<Secret>,
}

#[derive(Clone, Debug)]
struct Offered {
    provider: String,
    token_provider: Option<String>,
    token: Secret,
}

impl RequestAuth {
    /// Nothing offered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers a token for a strategy, as `auth.google` does; the last one offered counts.
    pub fn with_token(self, provider: impl Into<String>, token: Secret) -> Self {
        self.with(Offered {
            provider: provider.into(),
            token_provider: None,
            token,
        })
    }

    /// Offers an ID token of an OIDC token provider, as `auth.oidc.okta` does; the last one offered counts.
    pub fn with_oidc_token(self, token_provider: impl Into<String>, token: Secret) -> Self {
        self.with(Offered {
            provider: OIDC.to_owned(),
            token_provider: Some(token_provider.into()),
            token,
        })
    }

    /// Offers a token under what follows `Backstage-Kubernetes-Authorization-` in a header's name: a strategy, or `oidc-`
    /// and a token provider.
    pub fn with_header(self, name: &str, token: Secret) -> Self {
        let prefix = name.get(..OIDC_PREFIX.len()).unwrap_or_default();
        match prefix.eq_ignore_ascii_case(OIDC_PREFIX) {
            true => self.with_oidc_token(&name[OIDC_PREFIX.len()..], token),
            false => self.with_token(name, token),
        }
    }

    /// Offers a whole `Authorization` line, scheme included, in place of what the strategy would send. Refused where the
    /// strategy's scope is [`CredentialScope::User`].
    pub fn with_authorization(mut self, line: Secret) -> Self {
        self.offers().authorization = Some(line);
        self
    }

    /// The `Authorization` line offered in place of the strategy's.
    pub fn authorization(&self) -> Option<&Secret> {
        self.0.as_ref()?.authorization.as_ref()
    }

    /// The token offered for a strategy.
    pub fn token(&self, provider: &str) -> Option<&Secret> {
        self.find(|offered| {
            offered.token_provider.is_none() && offered.provider.eq_ignore_ascii_case(provider)
        })
    }

    /// The ID token offered for an OIDC token provider.
    pub fn oidc_token(&self, token_provider: &str) -> Option<&Secret> {
        self.find(|offered| {
            offered
                .token_provider
                .as_deref()
                .is_some_and(|name| name.eq_ignore_ascii_case(token_provider))
        })
    }

    /// Whether nothing is offered.
    pub fn is_empty(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|offers| offers.tokens.is_empty() && offers.authorization.is_none())
    }

    fn with(mut self, offered: Offered) -> Self {
        self.offers().tokens.push(offered);
        self
    }

    fn offers(&mut self) -> &mut Offers {
        Arc::make_mut(self.0.get_or_insert_default())
    }

    fn find(&self, wanted: impl Fn(&Offered) -> bool) -> Option<&Secret> {
        self.0
            .as_ref()?
            .tokens
            .iter()
            .rev()
            .find(|offered| wanted(offered))
            .map(|offered| &offered.token)
    }
}

/// Backstage's key of ID tokens, below which they stand by token provider.
const OIDC: &str = "oidc";
const OIDC_PREFIX: &str = "oidc-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_of_offered_tokens_are_split_as_backstage_does() {
        let auth = RequestAuth::new()
            .with_header("google", Secret::new("g"))
            .with_header("OIDC-corp-sso", Secret::new("c"))
            .with_header("my-own", Secret::new("m"));

        assert_eq!(auth.token("google"), Some(&Secret::new("g")));
        assert_eq!(auth.oidc_token("corp-sso"), Some(&Secret::new("c")));
        assert_eq!(auth.token("my-own"), Some(&Secret::new("m")));
        assert_eq!(auth.authorization(), None);
    }

    #[test]
    fn offered_tokens_are_found_whatever_the_case() {
        let auth = RequestAuth::new()
            .with_token("google", Secret::new("g"))
            .with_oidc_token("corpsso", Secret::new("old"))
            .with_oidc_token("corpsso", Secret::new("new"));

        assert_eq!(auth.token("Google"), Some(&Secret::new("g")));
        assert_eq!(auth.oidc_token("corpSso"), Some(&Secret::new("new")));
        assert_eq!((auth.token("oidc"), auth.oidc_token("google")), (None, None));
    }
}
