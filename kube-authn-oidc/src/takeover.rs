//! Taking over tokens that another program stored for a user.

use kube_authn_core::{
    ClientId, EntityRef, LoginConfig, MAX_JWT_BYTES, NewLogin, Result, Secret, Subject, Token,
    TokenForCluster, TokenKey, TokenSet, UnverifiedClaims, jiff::Timestamp,
};

use crate::{
    login::PostedTokens,
    verify::{claims::Claims, rejected},
};

/// A login of tokens that another program stored for this user, by what they say of themselves: issuer, client, subject and
/// end must be this login's. Nobody is asked, so signatures are not verified, and whose the tokens are is the other program's
/// word; clusters verify what they are sent.
///
/// # Errors
/// `TokenRejected` with the reason, which repeats nothing of a token but its issuer.
pub fn unverified_login(
    login: &LoginConfig,
    user: &EntityRef,
    stored: PostedTokens,
) -> Result<(TokenKey, NewLogin)> {
    let claims = parsed(&stored.id_token)?;
    let issuer = claims.text("iss")?.unwrap_or_default();
    if issuer != login.issuer.as_str() {
        return Err(rejected(format!(
            "Invalid issuer: expected {}, got {}",
            login.issuer,
            issuer.escape_debug()
        )));
    }
    let (subject, client_id) = (claims.subject()?, client(login, &claims)?);
    let id_end = end(&claims)?;
    let mut tokens = TokenSet::new();
    let mut expires_at = id_end;
    if let Some(secret) = stored.access_token.filter(|token| !token.is_empty()) {
        let access_end = match login.token_for_cluster {
            TokenForCluster::AccessToken => access_end(login, &secret, &subject)?,
            _ => UnverifiedClaims::of(secret.expose())
                .and_then(|claims| claims.expires_at())
                .unwrap_or(id_end),
        };
        if login.token_for_cluster == TokenForCluster::AccessToken {
            expires_at = access_end;
        }
        tokens = tokens.with_access_token(Token {
            secret: sendable(secret)?,
            expires_at: access_end,
        });
    } else if login.token_for_cluster == TokenForCluster::AccessToken {
        return Err(rejected(
            "clusters of this login get the access token, and there is none",
        ));
    }
    if let Some(secret) = stored.refresh_token.filter(|token| !token.is_empty()) {
        tokens = tokens.with_refresh_token(sendable(secret)?);
    }
    tokens = tokens.with_id_token(Token {
        secret: stored.id_token,
        expires_at: id_end,
    });
    let key = TokenKey {
        principal: user.clone(),
        issuer: login.issuer.clone(),
        client_id,
    };
    let mut taken = NewLogin::new(subject, tokens, expires_at);
    taken.issued_at = claims.instant("iat")?;
    Ok((key, taken))
}

fn parsed(token: &Secret) -> Result<Claims> {
    Claims::unverified(token.expose()).ok_or_else(|| rejected("Invalid JWT format"))
}

/// The pinned client if the token is for it, else the one that it names.
fn client(login: &LoginConfig, claims: &Claims) -> Result<ClientId> {
    let (audience, authorized) = (claims.audience()?, claims.text("azp")?);
    if let Some(client_id) = &login.client_id {
        let is_ours = |named: &str| named == client_id.as_str();
        let is_meant = audience.iter().any(|named| is_ours(named)) && authorized.is_none_or(is_ours);
        return match is_meant {
            true => Ok(client_id.clone()),
            false => Err(rejected(format!(
                "the token is not issued for client {client_id}"
            ))),
        };
    }
    let named = match (authorized, audience.as_slice()) {
        (Some(authorized), _) => authorized,
        (None, [only]) => only,
        (None, _) => {
            return Err(rejected(
                "the token has several audiences and no azp claim: configure the client id",
            ));
        }
    };
    ClientId::new(named).map_err(|_| rejected("the client that the token is issued for is malformed"))
}

fn access_end(login: &LoginConfig, token: &Secret, subject: &Subject) -> Result<Timestamp> {
    let claims = parsed(token)?;
    let same = claims.text("iss")? == Some(login.issuer.as_str()) && claims.subject()? == *subject;
    match same {
        true => end(&claims),
        false => Err(rejected(
            "the access token is of another issuer or subject than the ID token",
        )),
    }
}

fn end(claims: &Claims) -> Result<Timestamp> {
    claims
        .instant("exp")?
        .ok_or_else(|| rejected("the token does not say when it ends (exp)"))
}

/// Printable ASCII (RFC 6749 appendix A), as every token that is sent on.
fn sendable(token: Secret) -> Result<Secret> {
    let bytes = token.expose();
    let printable = bytes.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    match bytes.len() <= MAX_JWT_BYTES && printable {
        true => Ok(token),
        false => Err(rejected("a token is longer than 16 KiB, or not printable ASCII")),
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use kube_authn_core::Issuer;
    use serde_json::{Value, json};

    use super::*;

    fn jwt(claims: &Value) -> Secret {
        Secret::new(format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string())))
    }

    fn claims() -> Value {
        json!({ "iss": "https://i/", "sub": "s", "aud": "kubernetes", "exp": 2_000, "iat": 1_000 })
    }

    fn taken(change: impl FnOnce(&mut Value, &mut LoginConfig)) -> Result<(TokenKey, NewLogin)> {
        let mut login =
            LoginConfig::new(Issuer::new("https://i/")?).with_client_id(ClientId::new("kubernetes")?);
        let mut claims = claims();
        change(&mut claims, &mut login);
        let stored = PostedTokens::new(jwt(&claims))
            .with_access_token(Secret::new("opaque"))
            .with_refresh_token(Secret::new("r"));
        unverified_login(&login, &EntityRef::parse("user:default/alice")?, stored)
    }

    #[test]
    fn tokens_of_the_login_are_taken_over_with_all_they_say() {
        let (key, login) = taken(|_, _| {}).expect("taken over");

        assert_eq!(
            (
                key.principal.as_str(),
                key.issuer.as_str(),
                key.client_id.as_str()
            ),
            ("user:default/alice", "https://i/", "kubernetes")
        );
        let at = |second| Timestamp::from_second(second).expect("an instant");
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

    #[test]
    fn tokens_of_anything_else_are_refused() {
        for (name, value) in [
            ("iss", json!("https://other/")),
            ("iss", Value::Null),
            ("aud", json!("other")),
            ("azp", json!("other")),
            ("sub", json!("")),
            ("exp", json!("soon")),
        ] {
            let refused = taken(|claims, _| claims[name] = value.clone());
            assert!(refused.is_err(), "{name}: {value}");
        }
        let endless = taken(|claims, _| {
            claims.as_object_mut().expect("an object").remove("exp");
        });
        assert!(endless.is_err(), "a token without end");
        let opaque = taken(|_, login| login.token_for_cluster = TokenForCluster::AccessToken);
        assert!(opaque.is_err(), "clusters get no opaque token");
    }

    #[test]
    fn client_that_is_not_pinned_is_the_one_that_the_token_names() {
        let (key, _) = taken(|claims, login| {
            login.client_id = None;
            claims["aud"] = json!("portal");
        })
        .expect("taken over");

        assert_eq!(key.client_id.as_str(), "portal");
    }
}
