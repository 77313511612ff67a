//! What [`TokenVault`](crate::TokenVault) promises of claims when answers are lost. Run by [`super::vault::all`].

use std::sync::Arc;

use super::{
    puppet::PuppetStore,
    vault::{VaultFixture, after, alice, kind, login, ok, present},
    vault_refresh::{claimed, owner},
};
use crate::ErrorKind;

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
