//! Callers with an ID token of an OpenID Connect issuer.

use std::{fmt::Write, sync::Arc};

use async_trait::async_trait;
use aws_lc_rs::digest;
use kube_authn_core::{ClientId, Clock, EntityRef, Error, ErrorKind, Issuer, Principal, Result, Subject};
use kube_authn_oidc::{IdTokenVerifier, IssuerClient, UnverifiedToken, VerifiedIdToken};
use serde_json::Value;

use super::{Caller, CallerAuthenticator, CallerRequest, bearer::VerifiedTokens, illegal};

/// Accepts ID tokens of one issuer, issued for one audience. Clones share keys and memory.
///
/// The principal gets the token's issuer and subject, its verified e-mail address, its end, and the groups of claim `groups`;
/// groups that no header can carry are left out.
#[derive(Clone, Debug)]
pub struct OidcCallers {
    verifier: IdTokenVerifier,
    mapping: Option<PrincipalMapping>,
    clock: Arc<dyn Clock>,
    verified: Arc<VerifiedTokens>,
}

impl OidcCallers {
    /// Callers of this issuer with tokens for this audience. They are called `user:oidc/<hash>`, by issuer and subject.
    pub fn new(issuer: IssuerClient, audience: ClientId, clock: Arc<dyn Clock>) -> Self {
        Self {
            verifier: IdTokenVerifier::new(issuer, clock.clone()).with_client_id(audience),
            mapping: None,
            clock,
            verified: Arc::default(),
        }
    }

    /// Calls them by a claim instead.
    pub fn with_principal(mut self, mapping: PrincipalMapping) -> Self {
        self.mapping = Some(mapping);
        self
    }

    fn caller(&self, token: &VerifiedIdToken) -> Result<Caller> {
        let user = match &self.mapping {
            Some(mapping) => mapping.user(token)?,
            None => hashed(token.issuer(), token.subject())?,
        };
        let mut principal = Principal::user(user)
            .with_verified(token.issuer().clone(), token.subject().clone())
            .with_groups(groups(token)?)?
            .with_expires_at(token.expires_at());
        if let Some(email) = token.email() {
            principal = principal.with_email(email.clone());
        }
        Ok(Caller::new(principal))
    }
}

#[async_trait]
impl CallerAuthenticator for OidcCallers {
    async fn authenticate(&self, request: &CallerRequest<'_>) -> Result<Option<Caller>> {
        let Some(token) = &request.bearer else {
            return Ok(None);
        };
        if let Some(caller) = self.verified.get(token, self.clock.now()) {
            return Ok(Some(caller));
        }
        let issuer = self.verifier.issuer().issuer().as_str();
        if UnverifiedToken::read(token.expose()).is_none_or(|token| token.issuer() != Some(issuer)) {
            return Ok(None);
        }
        let verified = self
            .verifier
            .verify(&token.to_secret(), None)
            .await
            .map_err(illegal)?;
        let caller = self.caller(&verified).map_err(illegal)?;
        self.verified.put(token, &caller);
        Ok(Some(caller))
    }
}

/// From which claim a user's entity reference is made: `<kind>:<namespace>/<value of the claim>`.
///
/// Whoever can choose the claim's value at the issuer can be anybody: take one that only administrators set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrincipalMapping {
    claim: String,
    kind: String,
    namespace: String,
}

impl PrincipalMapping {
    /// By this claim, as an entity of this kind and namespace (`user`, `default`).
    ///
    /// # Errors
    /// `ConfigInvalid` if kind or namespace cannot stand in an entity reference.
    pub fn new(claim: &str, kind: &str, namespace: &str) -> Result<Self> {
        EntityRef::parse(&format!("{kind}:{namespace}/name")).map_err(|source| {
            Error::new(
                ErrorKind::ConfigInvalid,
                "kind and namespace of the principal cannot stand in an entity reference",
            )
            .with_source(source)
        })?;
        Ok(Self {
            claim: claim.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
        })
    }

    /// The whole value, never a part of it.
    fn user(&self, token: &VerifiedIdToken) -> Result<EntityRef> {
        let name = token.claim(&self.claim).and_then(Value::as_str).ok_or_else(|| {
            Error::new(
                ErrorKind::TokenRejected,
                format!("it has no text claim {}, which names the caller", self.claim),
            )
        })?;
        EntityRef::parse(&format!("{}:{}/{name}", self.kind, self.namespace)).map_err(|source| {
            let text = format!("its claim {} cannot stand in an entity reference", self.claim);
            Error::new(ErrorKind::TokenRejected, text).with_source(source)
        })
    }
}

/// `user:oidc/` and the first 16 bytes of SHA-256 over issuer and subject, each after its length (four bytes, big-endian), in
/// lower-case hexadecimal.
fn hashed(issuer: &Issuer, subject: &Subject) -> Result<EntityRef> {
    let mut hash = digest::Context::new(&digest::SHA256);
    for text in [issuer.as_str(), subject.as_str()] {
        // Both are far shorter than 4 GiB by construction.
        hash.update(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(text.as_bytes());
    }
    let mut name = String::from("user:oidc/");
    for byte in &hash.finish().as_ref()[..HASH_BYTES] {
        let _ = write!(name, "{byte:02x}");
    }
    EntityRef::parse(&name)
}

fn groups(token: &VerifiedIdToken) -> Result<Vec<&str>> {
    let wrong = || Error::new(ErrorKind::TokenRejected, "its claim groups has the wrong type");
    let groups = match token.claim("groups") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(many)) => many
            .iter()
            .map(|group| group.as_str().ok_or_else(wrong))
            .collect::<Result<_>>()?,
        Some(_) => return Err(wrong()),
    };
    let sendable =
        |group: &&str| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    Ok(groups.into_iter().filter(sendable).collect())
}

/// 128 bits: no two subjects of all issuers will ever share them.
const HASH_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn named(issuer: &str, subject: &str) -> String {
        let issuer = Issuer::new(issuer).expect("an issuer");
        let subject = Subject::new(subject).expect("a subject");
        hashed(&issuer, &subject).expect("a reference").to_string()
    }

    #[test]
    fn hashed_name_is_the_same_everywhere_and_nobody_elses() {
        let alice = named("https://login.example.com/", "alice-sub");

        // printf '\0\0\0\032https://login.example.com/\0\0\0\011alice-sub' | sha256sum | cut -c1-32
        assert_eq!(alice, "user:oidc/39ca5a41e51a804776e2ffb5a8d531cd");
        assert_ne!(alice, named("https://login.example.com/a", "lice-sub"));
        assert_ne!(alice, named("https://login.example.com", "/alice-sub"));
    }

    #[test]
    fn kind_and_namespace_that_end_a_name_early_are_refused() {
        assert!(PrincipalMapping::new("sub", "user", "default").is_ok());
        for (kind, namespace) in [
            ("user:x", "default"),
            ("user", "a/b"),
            ("", "default"),
            ("user", ""),
        ] {
            assert!(
                PrincipalMapping::new("sub", kind, namespace).is_err(),
                "{kind} {namespace}"
            );
        }
    }
}
