//! What [`TokenVault`](crate::TokenVault) promises of claims when answers are lost. Run by [`super::vault::all`].

use std::sync::Arc;

use super::{
    puppet::PuppetStore,
    vault::{VaultFixture, after, alice, kind, login, ok, present},
    vault_refresh::{claimed, owner},
};
use crate::{Claim, ErrorKind, Secret};

/// The mark is written, and the store's word of it is lost.
pub async fn claim_whose_answer_was_lost_is_ours(fixture: &VaultFixture) {
    let puppet = PuppetStore::new(Arc::clone(&fixture.store));
    let vault = fixture.vault_over(puppet.clone());
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let seen = present(&vault).await;

    puppet.lose_next_answer();
    let claimed = claimed(&vault, &seen).await;

    assert!(
        claimed.metadata.refreshing.is_some(),
        "the login as it stands, mark included"
    );
    ok(vault.finish_refresh(&claimed, login("two", 3_600)).await);
}

/// A store out of reach marks nothing, and nobody thinks that it did.
pub async fn claim_that_was_not_written_is_nobodys(fixture: &VaultFixture) {
    let puppet = PuppetStore::new(Arc::clone(&fixture.store));
    let vault = fixture.vault_over(puppet.clone());
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let seen = present(&vault).await;

    puppet.set_unreachable(true);
    let unmarked = vault.claim_refresh(&seen, owner(1), after(30)).await;
    puppet.set_unreachable(false);

    assert_eq!(kind(unmarked), Some(ErrorKind::Unavailable));
    assert!(present(&vault).await.metadata.refreshing.is_none());
}

/// Who dies in the attempt that a stale mark allows, but has saved a new refresh token, leaves one that is unspent.
pub async fn new_refresh_token_of_a_stale_attempt_may_be_spent(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 600)).await);
    drop(claimed(&vault, &present(&vault).await).await);
    fixture.clock.advance_seconds(31);
    let Claim::Ours(attempt) = ok(vault
        .claim_refresh(&present(&vault).await, owner(2), after(60))
        .await)
    else {
        panic!("a stale mark allows one attempt");
    };

    ok(vault
        .save_refresh_token(&attempt, Secret::new("refresh-two"))
        .await);
    fixture.clock.advance_seconds(31);
    let claim = vault
        .claim_refresh(&present(&vault).await, owner(3), after(90))
        .await;

    let Claim::Ours(claimed) = ok(claim) else {
        panic!("the new refresh token is unspent");
    };
    assert_eq!(claimed.tokens.refresh_token, Some(Secret::new("refresh-two")));
}
