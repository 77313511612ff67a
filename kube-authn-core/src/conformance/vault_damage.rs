//! What [`TokenVault`](crate::TokenVault) promises of rows that somebody changed. Run by [`super::vault::all`].

use bytes::Bytes;

use super::{
    vault::{VaultFixture, after, alice, key, kind, login, of_subject, ok, present, tokens, valid},
    vault_refresh,
};
use crate::{ErrorKind, Expected, KeyId, RefreshMark, Revision, TokenKey, TokenRecord, TokenStore};

/// Rows moved, swapped, edited, truncated, or half put back by somebody who writes past us.
pub async fn changed_row_is_damaged_and_harms_no_other(fixture: &VaultFixture) {
    let (bob, carol) = (key("bob", "kubernetes"), key("carol", "kubernetes"));
    let other_client = key("alice", "another");
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("old", 60)).await);
    let old = row(fixture, &alice()).await;
    for (key, name) in [(&alice(), "a"), (&bob, "b"), (&carol, "c"), (&other_client, "d")] {
        ok(vault.log_in(key, login(name, 3_600)).await);
    }
    let good = row(fixture, &alice()).await;
    let edited = |edit: &dyn Fn(&mut TokenRecord)| {
        let mut row = good.clone();
        edit(&mut row);
        row
    };
    let (of_bob, of_client) = (row(fixture, &bob).await, row(fixture, &other_client).await);
    let edits = [
        ("a row of another user", of_bob.clone()),
        ("a row of another client", of_client),
        (
            "the sealed part of another user",
            edited(&|row| row.sealed = of_bob.sealed.clone()),
        ),
        (
            "an old sealed part",
            edited(&|row| row.sealed = old.sealed.clone()),
        ),
        ("an old revision", edited(&|row| row.revision = old.revision)),
        (
            "another number",
            edited(&|row| row.revision = row.revision.next()),
        ),
        (
            "another subject",
            edited(&|row| row.metadata.subject = of_subject("mallory")),
        ),
        (
            "a later end",
            edited(&|row| row.metadata.expires_at = after(9_000)),
        ),
        (
            "refreshable changed",
            edited(&|row| row.metadata.refreshable = false),
        ),
        (
            "a mark",
            edited(&|row| row.metadata.refreshing = Some(mark(row.revision))),
        ),
        (
            "another instant of login",
            edited(&|row| row.metadata.created_at = after(-60)),
        ),
        (
            "an unknown key",
            edited(&|row| row.key_id = valid(KeyId::new("unknown"))),
        ),
        (
            "a truncated sealed part",
            edited(&|row| row.sealed.truncate(row.sealed.len() - 1)),
        ),
        ("an empty sealed part", edited(&|row| row.sealed.clear())),
        ("a flipped bit", edited(&|row| row.sealed = flipped(&row.sealed))),
    ];
    for (what, edited) in edits {
        put(fixture, &alice(), &edited).await;

        let loaded = fixture.vault().load(&alice()).await;

        assert_eq!(kind(loaded), Some(ErrorKind::RecordDamaged), "{what}");
        assert!(
            ok(fixture.vault().load(&carol).await).is_some(),
            "{what}: another row"
        );
    }
    put(fixture, &alice(), &good).await;
    assert_eq!(present(&fixture.vault()).await.tokens, tokens("a", 3_600));
}

/// A whole old row verifies; who saw a newer one, or the end of the login, refuses it.
pub async fn old_row_put_back_is_refused_by_who_saw_a_newer_one(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 3_600)).await);
    let first = row(fixture, &alice()).await;
    let claimed = vault_refresh::claimed(&vault, &present(&vault).await).await;
    ok(vault.release_refresh(&claimed).await);

    put(fixture, &alice(), &first).await;
    let of_the_same_login = vault.load(&alice()).await;
    ok(vault.log_in(&alice(), login("two", 3_600)).await);
    put(fixture, &alice(), &first).await;
    let of_a_replaced_login = vault.load(&alice()).await;
    ok(vault.log_in(&alice(), login("three", 3_600)).await);
    let third = row(fixture, &alice()).await;
    let handle = present(&vault).await.handle;
    ok(vault.log_out(&alice()).await);
    put(fixture, &alice(), &third).await;
    let of_an_ended_login = vault.load(&alice()).await;

    for refused in [of_the_same_login, of_a_replaced_login, of_an_ended_login] {
        assert_eq!(kind(refused), Some(ErrorKind::RecordDamaged));
    }
    assert!(handle.is_ended());
}

/// Nobody is locked out by damage.
pub async fn damaged_login_is_replaced_by_the_next(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 3_600)).await);
    let mut damaged = row(fixture, &alice()).await;
    damaged.sealed = flipped(&damaged.sealed);
    put(fixture, &alice(), &damaged).await;

    ok(vault.log_in(&alice(), login("two", 60)).await);
    assert_eq!(present(&vault).await.tokens, tokens("two", 60));
    put(fixture, &alice(), &damaged).await;
    assert!(ok(vault.log_out(&alice()).await), "a damaged row can be deleted");
}

/// Tokens are in the vault's answers alone.
pub async fn nothing_shows_a_token(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("canary", 3_600)).await);
    let login = present(&vault).await;
    let row = row(fixture, &alice()).await;

    let shown = format!("{vault:?} {login:?} {row:?} {:?}", self::login("canary", 1));

    assert!(!shown.contains("canary"), "a token is shown: {shown}");
    let sealed = row.sealed.windows(6).any(|window| window == b"canary");
    assert!(!sealed, "a token is readable in its row");
}

/// The row as the store has it.
pub(super) async fn row(fixture: &VaultFixture, key: &TokenKey) -> TokenRecord {
    match ok(fixture.store.load(key).await) {
        Some(row) => row,
        None => panic!("no row under {key:?}"),
    }
}

/// Writes a row past every vault.
pub(super) async fn put(fixture: &VaultFixture, key: &TokenKey, row: &TokenRecord) {
    let present = ok(fixture.store.load(key).await);
    let expected = present.map_or(Expected::Absent, |row| Expected::At(row.revision));
    ok(fixture.store.save(key, row, expected).await);
}

fn flipped(sealed: &Bytes) -> Bytes {
    let mut sealed = sealed.to_vec();
    if let Some(last) = sealed.last_mut() {
        *last ^= 1;
    }
    sealed.into()
}

fn mark(revision: Revision) -> RefreshMark {
    RefreshMark {
        owner: revision.login,
        until: after(-1),
    }
}
