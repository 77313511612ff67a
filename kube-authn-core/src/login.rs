//! How users log in to clusters: issuer, client, which token a cluster gets, binding, lifetimes.

use std::time::Duration;

use crate::{
    AuditEvent, CaBundle, ClientId, EntityRef, Issuer, Login, Principal, Secret, TokenSet, token::Token,
};

/// One login as configured. Clusters that name the same issuer and client share it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoginConfig {
    /// Who issues the tokens.
    pub issuer: Issuer,
    /// The client they are issued for; `None`: `aud` is not pinned, and the client is read from the token.
    pub client_id: Option<ClientId>,
    /// The client's secret, if it is a confidential client (RFC 6749 section 2.1) and not a public one.
    pub client_secret: Option<Secret>,
    /// The audience (`aud`) of the tokens that a cluster gets, if it is not the client: such tokens are made from the
    /// login's own by an exchange (RFC 8693).
    pub audience: Option<ClientId>,
    /// Trust for the issuer's own endpoints.
    pub ca: CaBundle,
    /// Which token clusters get.
    pub token_for_cluster: TokenForCluster,
    /// How tokens are bound to the user who brings them.
    pub binding: IdentityBinding,
    /// Bounds on how long tokens are believed.
    pub lifetimes: Lifetimes,
    /// Whether signatures are verified; off only with the configuration's dangerous switch.
    pub verify_signature: bool,
    /// Users who may never log in to a cluster.
    pub guests: Vec<EntityRef>,
}

impl LoginConfig {
    /// A login at this issuer, with every default.
    pub fn new(issuer: Issuer) -> Self {
        Self {
            issuer,
            client_id: None,
            client_secret: None,
            audience: None,
            ca: CaBundle::System,
            token_for_cluster: TokenForCluster::IdToken,
            binding: IdentityBinding::Auto,
            lifetimes: Lifetimes::default(),
            verify_signature: true,
            guests: Vec::new(),
        }
    }

    /// Pins the client that tokens must be issued for.
    pub fn with_client_id(mut self, client_id: ClientId) -> Self {
        self.client_id = Some(client_id);
        self
    }

    /// Whether both are of one issuer and client, so that one login serves the clusters of both.
    pub fn shares_logins_with(&self, other: &Self) -> bool {
        self.issuer == other.issuer && self.client_id == other.client_id
    }

    /// Whether a stored login is the principal's own, and not one that somebody else left under the name that she has now.
    /// If it is not, emits [`AuditEvent::LoginWithheld`].
    ///
    /// Logins are found by name, and a name can pass on. A token of the issuer whose token brought the login
    /// ([`Login::owner`]) must name the same subject; and so must one of the login's own issuer where the binding compares
    /// subjects: by other rules a login may have another subject than its user's token, at an issuer that gives each client a
    /// subject of its own (OpenID Connect Core section 8.1, `pairwise`).
    pub fn is_own(&self, principal: &Principal, login: &Login) -> bool {
        let Some((issuer, caller)) = principal.verified() else {
            return true;
        };
        let brought_by = login.owner().filter(|(owner, _)| *owner == issuer);
        let bound = (self.compares_subjects() && *issuer == login.key.issuer)
            .then_some((issuer, &login.metadata.subject));
        let Some((_, subject)) = brought_by
            .into_iter()
            .chain(bound)
            .find(|(_, subject)| *subject != caller)
        else {
            return true;
        };
        AuditEvent::LoginWithheld {
            principal: &login.key.principal,
            issuer,
            subject,
            caller,
        }
        .emit();
        false
    }

    fn compares_subjects(&self) -> bool {
        match &self.binding {
            IdentityBinding::Auto => true,
            IdentityBinding::Rules(rules) => rules.contains(&BindingRule::Subject),
        }
    }

    /// The token of the set that clusters get.
    pub fn token_for_cluster<'a>(&self, tokens: &'a TokenSet) -> Option<&'a Token> {
        match self.token_for_cluster {
            TokenForCluster::IdToken => tokens.id_token.as_ref(),
            TokenForCluster::AccessToken => tokens.access_token.as_ref(),
        }
    }
}

/// Which token a cluster gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenForCluster {
    /// The ID token: the one whose `iss` and `aud` an API server verifies.
    #[default]
    IdToken,
    /// The access token, where an issuer makes it a signed JWT that the API server accepts.
    AccessToken,
}

/// How posted tokens are bound to the user who posts them. Never by the local part of an e-mail address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityBinding {
    /// Same issuer as the caller's own token: equal subjects; else both e-mail addresses verified and equal; else first use.
    #[default]
    Auto,
    /// These rules in order: the first that applies decides.
    Rules(Vec<BindingRule>),
}

/// One rule of binding.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BindingRule {
    /// The caller's issuer is the token's, and the subjects are equal.
    Subject,
    /// Both e-mail addresses are verified and equal.
    Email,
    /// The named claim equals the caller's entity reference.
    Claim(String),
    /// The first subject that a user brings stays the user's, and nobody else's.
    FirstUse,
    /// No binding at all.
    None,
}

/// Bounds on how long tokens are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lifetimes {
    /// Lifetime of a token that states none; `None` refuses such a token.
    pub assume: Option<Duration>,
    /// Longest lifetime that is believed; `None` believes the token.
    pub max: Option<Duration>,
    /// How long a stream may outlive its credential.
    pub stream_grace: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            assume: None,
            max: None,
            stream_grace: STREAM_GRACE,
        }
    }
}

/// Time for a client to see the end of a watch coming and to start the next one with a fresh credential.
const STREAM_GRACE: Duration = Duration::from_secs(30);
