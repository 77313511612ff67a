//! Logouts over a store that fails in the middle of them.
#![allow(
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "helpers of tests are tests"
)]

mod support;

use kube_authn_core::{
    EntityRef, Error, ErrorKind, Expected, KeyId, LoginEvents, LoginMetadata, Result, Revision, TokenKey,
    TokenRecord, TokenStore, TokenVault, async_trait, jiff::Timestamp,
};
use kube_authn_http::TokenExposure;
use kube_authn_store::{KeyRing, MemoryTokenStore};
use serde_json::json;
use support::{Answer, Service, clock};

/// Deletes everything but logins of one client.
#[derive(Debug)]
struct Stubborn {
    inner: MemoryTokenStore,
    keeps: &'static str,
}

#[async_trait]
impl TokenStore for Stubborn {
    async fn load(&self, key: &TokenKey) -> Result<Option<TokenRecord>> {
        self.inner.load(key).await
    }

    async fn save(&self, key: &TokenKey, record: &TokenRecord, expected: Expected) -> Result<()> {
        self.inner.save(key, record, expected).await
    }

    async fn delete(&self, key: &TokenKey) -> Result<bool> {
        match key.client_id.as_str() == self.keeps {
            true => Err(Error::new(ErrorKind::Unavailable, "the store is busy")),
            false => self.inner.delete(key).await,
        }
    }

    async fn list(&self, principal: &EntityRef) -> Result<Vec<(TokenKey, Revision, LoginMetadata)>> {
        self.inner.list(principal).await
    }

    async fn purge(&self, ended_before: Timestamp, limit: u32) -> Result<u32> {
        self.inner.purge(ended_before, limit).await
    }

    async fn scan(&self, after: Option<&TokenKey>, limit: u32) -> Result<Vec<(TokenKey, TokenRecord)>> {
        self.inner.scan(after, limit).await
    }

    async fn events(&self) -> Result<LoginEvents> {
        self.inner.events().await
    }
}

#[tokio::test]
async fn login_that_cannot_be_ended_never_keeps_others_from_ending() {
    let logins: &[(&str, &[&str])] = &[("a", &["prod"]), ("b", &["stage"]), ("c", &["old"])];
    for keeps in ["a", "b", "c"] {
        let key = KeyRing::random_key().expect("a key");
        let ring = KeyRing::new(vec![(KeyId::new("k1").expect("an id"), key)]).expect("a ring");
        let inner = MemoryTokenStore::new();
        let vault = TokenVault::new(Stubborn { inner, keeps }, ring).with_clock(clock());
        let service = Service::over(vault, TokenExposure::Never, clock(), logins).await;
        service.issuer.tokens(Answer::Status(200, String::new()));
        for (client, _) in logins {
            let stored = service
                .post("alice", &service.tokens("alice-sub", json!({ "aud": client })))
                .await;
            assert_eq!(stored.status, 200, "{}", stored.text);
        }

        let answer = service.delete("alice", "/api/cluster-auth/tokens").await;

        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (503, &json!("unavailable"))
        );
        let alice = EntityRef::parse("user:default/alice").expect("a reference");
        let left = service.vault.list(&alice).await.expect("a list");
        let left: Vec<_> = left.iter().map(|(key, ..)| key.client_id.as_str()).collect();
        assert_eq!(left, [keeps]);
        let revoked = service.issuer.posts();
        let revoked = revoked
            .iter()
            .filter(|post| post.iter().any(|(name, _)| name == "token"))
            .count();
        assert_eq!(revoked, 2, "{keeps}");
    }
}
