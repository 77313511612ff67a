//! What the tests of this crate share.

#![allow(dead_code, reason = "each test program uses a part")]

use kube_authn_core::{
    ClientId, EntityRef, Issuer, KeyId, NewLogin, Secret, Subject, Token, TokenKey, TokenSet, TokenVault,
    jiff::Timestamp,
};
use kube_authn_store::KeyRing;

/// Stands in every token, and must stand nowhere else.
pub(crate) const CANARY: &str = "canary-7f3a";

/// Far enough away that nothing expires under a test.
pub(crate) fn end() -> Timestamp {
    Timestamp::from_second(4_000_000_000).expect("an instant")
}

pub(crate) fn keys() -> KeyRing {
    let id = KeyId::new("k1").expect("an id");
    KeyRing::new(vec![(id, KeyRing::random_key().expect("a key"))]).expect("a ring")
}

/// The same keys in every process that asks.
pub(crate) fn fixed_keys() -> KeyRing {
    let id = KeyId::new("k1").expect("an id");
    KeyRing::new(vec![(id, Secret::new([7; 32]))]).expect("a ring")
}

pub(crate) fn key(name: &str) -> TokenKey {
    key_of(name, "https://issuer.example.com/", "kubernetes")
}

pub(crate) fn key_of(name: &str, issuer: &str, client: &str) -> TokenKey {
    TokenKey {
        principal: EntityRef::parse(&format!("user:default/{name}")).expect("a reference"),
        issuer: Issuer::new(issuer).expect("an issuer"),
        client_id: ClientId::new(client).expect("a client"),
    }
}

/// A login whose tokens and subject tell whose they are.
pub(crate) fn login_of(owner: &str) -> NewLogin {
    let tokens = TokenSet::new()
        .with_id_token(Token {
            secret: id_token_of(owner),
            expires_at: end(),
        })
        .with_refresh_token(Secret::new(format!("{CANARY}.refresh.{owner}")));
    NewLogin::new(Subject::new(owner).expect("a subject"), tokens, end())
}

/// Stores a login that tells whose it is.
pub(crate) async fn log_in(vault: &TokenVault, name: &str) {
    let stored = vault.log_in(&key(name), login_of(name)).await;
    stored.expect("stored");
}

pub(crate) fn id_token_of(owner: &str) -> Secret {
    Secret::new(format!("{CANARY}.id.{owner}"))
}
