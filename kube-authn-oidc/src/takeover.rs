//! Taking over tokens that another program stored for a user.

use kube_authn_core::{EntityRef, NewLogin, Result, Secret, TokenKey};

use crate::{
    login::{LoginVerifier, PostedTokens},
    verify::claims::Claims,
};

impl LoginVerifier {
    /// A login of tokens that another program stored for this user: each one is verified as a posted one is, within the
    /// lifetimes of this login, but **nothing binds them to the user**: whose they are is the caller's to find out, or the
    /// other program's word. Tokens that have ended are taken if a refresh token comes along.
    ///
    /// Without `signatures` the issuer is not asked, and whoever could write to the other program's store can be anybody.
    ///
    /// # Errors
    /// `TokenRejected` or `Refused` if the tokens do not verify; `Unavailable` or `Timeout` if the issuer's keys cannot be
    /// fetched.
    pub async fn take_over(
        &self,
        user: &EntityRef,
        mut stored: PostedTokens,
        signatures: bool,
    ) -> Result<(TokenKey, NewLogin)> {
        stored.access_token = stored.access_token.filter(|token| !token.is_empty());
        stored.refresh_token = stored.refresh_token.filter(|token| !token.is_empty());
        let verifier = self.for_stored(stored.refresh_token.is_some(), signatures);
        let identity = verifier.verifier().verify(&stored.id_token, None).await?;
        let tokens = verifier.token_set(&identity, stored).await?;
        let key = TokenKey {
            principal: user.clone(),
            issuer: identity.issuer().clone(),
            client_id: identity.client_id().clone(),
        };
        let login = verifier.new_login(identity.subject().clone(), identity.issued_at(), tokens)?;
        Ok((key, login))
    }
}

/// The issuer and the subject that a token names; nobody verified it. `None` if it names none.
pub fn stated_identity(id_token: &Secret) -> Option<(String, String)> {
    let claims = Claims::unverified(id_token.expose())?;
    let text = |name| claims.text(name).ok().flatten().map(str::to_owned);
    Some((text("iss")?, text("sub")?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use kube_authn_core::{
        CaBundle, ClientId, Issuer, KeyId, LoginConfig, ManualClock, TlsTrust, TokenForCluster, TokenVault,
        Transport, jiff::Timestamp, rustls::crypto::aws_lc_rs::default_provider,
    };
    use kube_authn_store::{KeyRing, MemoryTokenStore};
    use serde_json::{Value, json};

    use super::*;
    use crate::IssuerClient;

    const NOW: i64 = 1_500;

    fn jwt(claims: &Value) -> Secret {
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": "ES256" }).to_string());
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        Secret::new(format!("{header}.{claims}.c2ln"))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("an instant")
    }

    /// What comes of tokens whose signatures nobody verifies: no connection is opened.
    async fn taken(
        change: impl FnOnce(&mut Value, &mut LoginConfig, &mut PostedTokens),
    ) -> Result<(TokenKey, NewLogin)> {
        let mut config =
            LoginConfig::new(Issuer::new("https://i/")?).with_client_id(ClientId::new("kubernetes")?);
        let mut claims =
            json!({ "iss": "https://i/", "sub": "s", "aud": "kubernetes", "exp": 2_000, "iat": 1_000 });
        let mut stored = PostedTokens::new(Secret::new("")).with_access_token(Secret::new("opaque"));
        change(&mut claims, &mut config, &mut stored);
        stored.id_token = jwt(&claims);
        let certificate = rcgen::generate_simple_self_signed(["unused".to_owned()]).expect("a certificate");
        let trust = TlsTrust::new(CaBundle::Pem(certificate.cert.pem().into_bytes().into()));
        let transport = Transport::new(Arc::new(default_provider()), trust)?;
        let ring = KeyRing::new(vec![(KeyId::new("k")?, Secret::new([1; 32]))])?;
        LoginVerifier::new(
            config.clone(),
            IssuerClient::new(config.issuer, transport),
            Arc::new(ManualClock::at(at(NOW))),
            TokenVault::new(MemoryTokenStore::new(), ring),
        )
        .take_over(&EntityRef::parse("user:default/alice")?, stored, false)
        .await
    }

    #[tokio::test]
    async fn tokens_of_the_login_are_taken_over_with_all_they_say() {
        let (key, login) = taken(|_, _, stored| stored.refresh_token = Some(Secret::new("r")))
            .await
            .expect("taken over");

        assert_eq!(
            (
                key.principal.as_str(),
                key.issuer.as_str(),
                key.client_id.as_str()
            ),
            ("user:default/alice", "https://i/", "kubernetes")
        );
        assert_eq!(
            (login.subject.as_str(), login.expires_at, login.issued_at),
            ("s", at(2_000), Some(at(1_000)))
        );
        assert_eq!(login.tokens.refresh_token, Some(Secret::new("r")));
        assert_eq!(
            login.tokens.access_token.map(|token| token.expires_at),
            Some(at(2_000))
        );
    }

    #[tokio::test]
    async fn tokens_of_anything_else_are_refused() {
        for (name, value) in [
            ("iss", json!("https://other/")),
            ("iss", Value::Null),
            ("aud", json!("other")),
            ("azp", json!("other")),
            ("sub", json!("")),
            ("exp", json!("soon")),
            ("exp", json!(1_000)),
            ("iat", json!(NOW + 3_600)),
        ] {
            let refused = taken(|claims, _, _| claims[name] = value.clone()).await;
            assert!(refused.is_err(), "{name}: {value}");
        }
        let endless = taken(|claims, _, _| {
            claims.as_object_mut().expect("an object").remove("exp");
        });
        assert!(endless.await.is_err(), "a token without end");
        let opaque = taken(|_, login, _| login.token_for_cluster = TokenForCluster::AccessToken);
        assert!(opaque.await.is_err(), "clusters get no opaque token");
    }

    #[tokio::test]
    async fn stored_tokens_never_live_longer_than_posted_ones() {
        let minute = std::time::Duration::from_secs(60);
        let (_, login) = taken(|claims, login, _| {
            claims["exp"] = json!(4_000_000_000_u32);
            claims["iat"] = json!(NOW);
            login.lifetimes.max = Some(minute);
        })
        .await
        .expect("taken over");

        assert_eq!(login.expires_at, at(NOW + 60));
    }

    #[tokio::test]
    async fn tokens_that_ended_are_taken_with_a_refresh_token_and_nothing_else_is_forgiven() {
        let ended = |claims: &mut Value, stored: &mut PostedTokens| {
            claims["exp"] = json!(1_200);
            stored.refresh_token = Some(Secret::new("r"));
        };
        let (_, login) = taken(|claims, _, stored| ended(claims, stored))
            .await
            .expect("taken over");
        assert_eq!(login.expires_at, at(1_200));

        let future = taken(|claims, _, stored| {
            ended(claims, stored);
            claims["iat"] = json!(NOW + 3_600);
        });
        assert!(future.await.is_err());
    }

    #[tokio::test]
    async fn client_that_is_not_pinned_is_the_one_that_the_token_names() {
        let (key, _) = taken(|claims, login, _| {
            login.client_id = None;
            claims["aud"] = json!("portal");
        })
        .await
        .expect("taken over");

        assert_eq!(key.client_id.as_str(), "portal");
    }

    #[test]
    fn identity_is_read_of_whatever_names_one() {
        let expired = jwt(&json!({ "iss": "https://i/", "sub": "s", "exp": 1 }));

        assert_eq!(
            stated_identity(&expired),
            Some(("https://i/".to_owned(), "s".to_owned()))
        );
        assert_eq!(stated_identity(&jwt(&json!({ "iss": "https://i/" }))), None);
        assert_eq!(stated_identity(&Secret::new("opaque")), None);
    }
}
