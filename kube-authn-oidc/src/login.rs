//! From posted tokens to a login that may be stored: the whole story in [`LoginVerifier::verify`].

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use kube_authn_core::{
    AuditEvent, ClientId, Clock, Error, ErrorKind, Login, LoginConfig, MAX_JWT_BYTES, NewLogin, Principal,
    Result, Secret, Subject, Token, TokenForCluster, TokenKey, TokenSet, TokenVault, UnverifiedClaims,
};

use crate::{
    authorize::Nonce,
    binding::bind,
    discovery::IssuerClient,
    exchange::{TokenAnswer, TokenClient},
    verify::{IdTokenVerifier, VerifiedIdToken, claims::Claims, rejected},
};

/// Tokens that somebody brings and says are his.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PostedTokens {
    /// The ID token: it says who it is.
    pub id_token: Secret,
    /// The access token that came with it.
    pub access_token: Option<Secret>,
    /// The refresh token that came with it.
    pub refresh_token: Option<Secret>,
    /// The nonce of the login, when the flow was ours.
    pub nonce: Option<Nonce>,
    /// The service that brings them on the user's behalf, for the audit log.
    pub actor: Option<Principal>,
    /// Lifetime of the access token as the issuer gave it with the tokens.
    pub expires_in: Option<Duration>,
}

impl PostedTokens {
    /// An ID token alone.
    pub fn new(id_token: Secret) -> Self {
        Self {
            id_token,
            access_token: None,
            refresh_token: None,
            nonce: None,
            actor: None,
            expires_in: None,
        }
    }

    /// What a token endpoint gave to a login of ours, which began with this nonce.
    ///
    /// # Errors
    /// `TokenRejected` if there is no ID token in it.
    pub fn of_login(answer: TokenAnswer, nonce: &Nonce) -> Result<Self> {
        let id_token = answer
            .id_token
            .ok_or_else(|| rejected("the issuer gave no ID token: ask for the scope openid"))?;
        Ok(Self {
            id_token,
            access_token: Some(answer.access_token),
            refresh_token: answer.refresh_token,
            nonce: Some(nonce.clone()),
            actor: None,
            expires_in: answer.expires_in,
        })
    }

    /// Adds the access token.
    pub fn with_access_token(mut self, token: Secret) -> Self {
        self.access_token = Some(token);
        self
    }

    /// Adds the refresh token.
    pub fn with_refresh_token(mut self, token: Secret) -> Self {
        self.refresh_token = Some(token);
        self
    }
}

/// A login that was verified and bound: `vault.log_in(&key, login)` stores it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VerifiedLogin {
    /// Whose login, at which issuer, for which client.
    pub key: TokenKey,
    /// Subject, tokens, and when they were made and end.
    pub login: NewLogin,
}

/// Verifies posted tokens and binds them to the user who posts them, by the rules of one login. Clones share everything.
#[derive(Clone, Debug)]
pub struct LoginVerifier {
    login: Arc<LoginConfig>,
    verifier: IdTokenVerifier,
    clock: Arc<dyn Clock>,
    vault: TokenVault,
}

impl LoginVerifier {
    /// A verifier for this login; `issuer` must be a client of the login's issuer. The vault keeps the first-use pins.
    pub fn new(login: LoginConfig, issuer: IssuerClient, clock: Arc<dyn Clock>, vault: TokenVault) -> Self {
        let mut verifier = IdTokenVerifier::new(issuer, clock.clone()).with_lifetimes(login.lifetimes);
        if let Some(client_id) = &login.client_id {
            verifier = verifier.with_client_id(client_id.clone());
        }
        if !login.verify_signature {
            verifier = verifier.dangerously_without_signatures();
        }
        Self {
            login: Arc::new(login),
            verifier,
            clock,
            vault,
        }
    }

    /// The login.
    pub fn login(&self) -> &LoginConfig {
        &self.login
    }

    /// The verifier of the login's tokens.
    pub fn verifier(&self) -> &IdTokenVerifier {
        &self.verifier
    }

    /// The token endpoint, as this client; with the login's secret if it is the login's own client.
    pub fn token_client(&self, client_id: &ClientId) -> TokenClient {
        let client = TokenClient::new(self.verifier.issuer().clone(), client_id.clone());
        match &self.login.client_secret {
            Some(secret) if self.login.client_id.as_ref() == Some(client_id) => {
                client.with_client_secret(secret.clone())
            }
            _ => client,
        }
    }

    /// Whether a token says that it is of this login's issuer and client: to choose among several logins, before anything is
    /// verified.
    pub fn is_named_by(&self, id_token: &Secret) -> bool {
        let Some(claims) = Claims::unverified(id_token.expose()) else {
            return false;
        };
        let is = |name: &str, expected: &str| claims.text(name).is_ok_and(|claim| claim == Some(expected));
        let for_client = self.login.client_id.as_ref().is_none_or(|client_id| {
            let client_id = client_id.as_str();
            is("azp", client_id)
                || claims
                    .audience()
                    .is_ok_and(|aud| aud.iter().any(|aud| aud == client_id))
        });
        is("iss", self.login.issuer.as_str()) && for_client
    }

    /// A login of this principal that may be stored: the ID token is verified, the other tokens belong to it, the token
    /// that clusters get is one that an API server can verify, and all of it is the principal's own.
    ///
    /// # Errors
    /// `TokenRejected` if a token does not verify; `Refused` with code `guest`, `identity_mismatch` or `forbidden` if it
    /// may not be the principal's (both emit [`AuditEvent::LoginRefused`]); `Unavailable` or `Timeout` if the issuer's keys
    /// cannot be fetched; else as [`TokenVault::pin`].
    pub async fn verify(&self, principal: &Principal, posted: PostedTokens) -> Result<VerifiedLogin> {
        let actor = posted.actor.clone();
        let mut verified = self.verified(principal, posted).await;
        if let Ok(verified) = &mut verified {
            verified.login.actor.clone_from(&actor);
        }
        if let (Err(failure), Some(user)) = (&verified, principal.entity_ref())
            && matches!(failure.kind(), ErrorKind::Refused | ErrorKind::TokenRejected)
        {
            AuditEvent::LoginRefused {
                principal: user,
                actor: actor.as_ref(),
                issuer: Some(&self.login.issuer),
                reason: failure.code(),
            }
            .emit();
        }
        verified
    }

    async fn verified(&self, principal: &Principal, posted: PostedTokens) -> Result<VerifiedLogin> {
        let identity = self
            .verifier
            .verify(&posted.id_token, posted.nonce.as_ref())
            .await?;
        let tokens = self.token_set(&identity, posted).await?;
        let mut login = self.new_login(identity.subject().clone(), identity.issued_at(), tokens)?;
        login.owner = principal
            .verified()
            .map(|(issuer, subject)| (issuer.clone(), subject.clone()));
        let user = bind(&self.login, principal, &identity, &self.vault).await?;
        Ok(VerifiedLogin {
            key: TokenKey {
                principal: user.clone(),
                issuer: identity.issuer().clone(),
                client_id: identity.client_id().clone(),
            },
            login,
        })
    }

    /// What a refresh of this login gave, verified: same subject, same client (OpenID Connect Core section 12.2). Tokens
    /// that the issuer did not renew are taken over.
    ///
    /// # Errors
    /// `LoginRequired` if the token that clusters get was not renewed; `Refused` with code `identity_mismatch` if the new
    /// tokens are somebody else's; else as [`LoginVerifier::verify`].
    pub async fn verify_refreshed(&self, login: &Login, answer: TokenAnswer) -> Result<NewLogin> {
        let (subject, client_id) = (&login.metadata.subject, &login.key.client_id);
        let refresh_token = answer
            .refresh_token
            .or_else(|| login.tokens.refresh_token.clone());
        let Some(id_token) = answer.id_token else {
            if self.login.token_for_cluster != TokenForCluster::AccessToken {
                return Err(Error::new(
                    ErrorKind::LoginRequired,
                    "the issuer renewed the login without an ID token: log in again",
                ));
            }
            let expires_at = self
                .verifier
                .verify_access_token(&answer.access_token, subject, client_id)
                .await?;
            let mut tokens = login.tokens.clone().with_access_token(Token {
                secret: answer.access_token,
                expires_at,
            });
            tokens.refresh_token = refresh_token;
            return self.new_login(subject.clone(), Some(self.clock.now()), tokens);
        };
        let identity = self.verifier.verify(&id_token, None).await?;
        if identity.subject() != subject || identity.client_id() != client_id {
            return Err(Error::new(
                ErrorKind::Refused,
                "the issuer renewed the login with tokens of somebody else: log in again",
            )
            .with_code("identity_mismatch"));
        }
        let mut renewed = PostedTokens::new(id_token).with_access_token(answer.access_token);
        renewed.refresh_token = refresh_token;
        renewed.expires_in = answer.expires_in;
        let tokens = self.token_set(&identity, renewed).await?;
        self.new_login(subject.clone(), identity.issued_at(), tokens)
    }

    /// A token for this audience, which the issuer makes out of the stored token that clusters get (RFC 8693), verified.
    ///
    /// # Errors
    /// As [`TokenClient::exchange_token`] and [`IdTokenVerifier::verify_exchanged`].
    pub async fn token_for_audience(
        &self,
        login: &Login,
        token: &Secret,
        audience: &ClientId,
    ) -> Result<Token> {
        let secret = self
            .token_client(&login.key.client_id)
            .exchange_token(token, self.login.token_for_cluster, audience)
            .await?;
        let expires_at = self
            .verifier
            .verify_exchanged(&secret, &login.metadata.subject, audience)
            .await?;
        Ok(Token { secret, expires_at })
    }

    /// The same for tokens that were stored elsewhere.
    pub(crate) fn for_stored(&self, accept_ended: bool, signatures: bool) -> Self {
        let mut verifier = self.verifier.clone();
        if accept_ended {
            verifier = verifier.accepting_ended();
        }
        if !signatures {
            verifier = verifier.dangerously_without_signatures();
        }
        Self {
            verifier,
            ..self.clone()
        }
    }

    pub(crate) fn new_login(
        &self,
        subject: Subject,
        issued_at: Option<Timestamp>,
        tokens: TokenSet,
    ) -> Result<NewLogin> {
        let expires_at = self
            .login
            .token_for_cluster(&tokens)
            .map(|token| token.expires_at)
            .ok_or_else(|| rejected("clusters of this login get the access token, and there is none"))?;
        let mut login = NewLogin::new(subject, tokens, expires_at);
        login.issued_at = issued_at;
        Ok(login)
    }

    /// The tokens that belong to a verified ID token, each with its own end.
    pub(crate) async fn token_set(
        &self,
        identity: &VerifiedIdToken,
        posted: PostedTokens,
    ) -> Result<TokenSet> {
        let mut tokens = TokenSet::new().with_id_token(Token {
            secret: posted.id_token,
            expires_at: identity.expires_at(),
        });
        if let Some(secret) = posted.access_token {
            sendable(&secret)?;
            identity.expect_own(&secret)?;
            let expires_at = match self.login.token_for_cluster {
                TokenForCluster::AccessToken => {
                    self.verifier
                        .verify_access_token(&secret, identity.subject(), identity.client_id())
                        .await?
                }
                _ => self.unverified_end(&secret, posted.expires_in, identity),
            };
            tokens = tokens.with_access_token(Token { secret, expires_at });
        }
        if let Some(secret) = posted.refresh_token.filter(|token| !token.is_empty()) {
            sendable(&secret)?;
            tokens = tokens.with_refresh_token(secret);
        }
        Ok(tokens)
    }

    /// When an access token that no cluster gets ends, as far as anybody says: itself, the issuer, else the ID token.
    fn unverified_end(
        &self,
        token: &Secret,
        expires_in: Option<Duration>,
        identity: &VerifiedIdToken,
    ) -> Timestamp {
        let stated = UnverifiedClaims::of(token.expose()).and_then(|claims| claims.expires_at());
        let counted = || {
            let lifetime = SignedDuration::try_from(expires_in?).ok()?;
            self.clock.now().checked_add(lifetime).ok()
        };
        stated.or_else(counted).unwrap_or(identity.expires_at())
    }
}

/// Access and refresh tokens are printable ASCII (RFC 6749 appendix A): anything else would end a header or a form early.
fn sendable(token: &Secret) -> Result<()> {
    let printable = token
        .expose()
        .iter()
        .all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    match !token.is_empty() && token.len() <= MAX_JWT_BYTES && printable {
        true => Ok(()),
        false => Err(rejected(
            "a posted token is empty, longer than 16 KiB, or not printable ASCII",
        )),
    }
}
