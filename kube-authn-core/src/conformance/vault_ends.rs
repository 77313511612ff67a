//! What [`TokenVault`](crate::TokenVault) promises of ends: every credential of a login is told. Run by
//! [`super::vault::all`].

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    puppet::PuppetStore,
    vault::{VaultFixture, after, alice, key, login, of_subject, ok, present},
};
use crate::{EntityRef, LoginEvent, LoginHandle, Revision, TokenKey, TokenStore};

/// Logout here.
pub async fn logout_ends_every_credential_before_it_returns(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 3_600)).await);
    ok(vault
        .log_in(&key("bob", "kubernetes"), login("bobs", 3_600))
        .await);
    let handle = present(&vault).await.handle;
    let bobs = ok(vault.load(&key("bob", "kubernetes")).await).map(|login| login.handle);

    assert!(ok(vault.clone().log_out(&alice()).await));

    assert!(handle.is_ended());
    assert!(
        bobs.is_some_and(|handle| !handle.is_ended()),
        "the logout of another"
    );
    assert!(ok(vault.load(&alice()).await).is_none());
    assert!(!ok(vault.log_out(&alice()).await), "nothing was left");
}

/// A login in place of another.
pub async fn new_login_ends_the_one_it_replaces(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 3_600)).await);
    let first = present(&vault).await;

    ok(vault.log_in(&alice(), login("two", 3_600)).await);

    let second = present(&vault).await;
    assert!(first.handle.is_ended() && !second.handle.is_ended());
    assert_ne!(first.revision.login, second.revision.login);
}

/// A user whose login was taken over is known for good, in every process, and nobody else is.
pub async fn takeover_is_noted_for_good(fixture: &VaultFixture) {
    let vault = fixture.vault();
    let (alice, bob) = (alice(), key("bob", "kubernetes"));
    ok(vault.log_in(&alice, login("one", 10)).await);
    for _ in 0..2 {
        ok(vault.note_taken_over(&alice.principal, &alice.issuer).await);
    }

    ok(vault.log_out_all(&alice.principal).await);
    ok(vault.purge(Timestamp::MAX, 1_000).await);
    let elsewhere = fixture.vault_elsewhere();

    assert!(ok(elsewhere
        .was_taken_over(&alice.principal, &alice.issuer)
        .await));
    assert!(!ok(elsewhere.was_taken_over(&bob.principal, &bob.issuer).await));
    assert!(
        ok(elsewhere.logins(None, 10).await).is_empty(),
        "a note is no login"
    );
}

/// Counting and listing, where pins and notes of takeovers are many and stand between the logins.
pub async fn what_is_no_login_takes_no_logins_place(fixture: &VaultFixture) {
    let vault = fixture.vault();
    let before = TokenKey {
        principal: ok(EntityRef::parse("component:default/build")),
        ..alice()
    };
    for key in [&before, &alice()] {
        ok(vault.log_in(key, login("one", 3_600)).await);
    }
    for name in ["a", "b", "c"] {
        let TokenKey {
            principal, issuer, ..
        } = key(name, "kubernetes");
        ok(vault.pin(&principal, &issuer, &of_subject(name)).await);
        ok(vault.note_taken_over(&principal, &issuer).await);
    }

    for limit in [2, 3, 1_000] {
        assert_eq!(ok(vault.count(limit).await).usable, 2, "of at most {limit}");
    }
    assert_eq!(ok(vault.count(1).await).usable, 1);
    let (mut listed, mut last) = (Vec::new(), None);
    while let Some(login) = ok(vault.logins(last.as_ref(), 1).await).pop() {
        listed.push(login.key.clone());
        last = Some(login.key);
    }
    assert_eq!(listed, [before, alice()]);
}

/// Purge here.
pub async fn purge_ends_what_it_deletes(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("short", 10)).await);
    ok(vault
        .log_in(&key("bob", "kubernetes"), login("long", 3_600))
        .await);
    let short = present(&vault).await.handle;
    let long = ok(vault.load(&key("bob", "kubernetes")).await).map(|login| login.handle);

    assert_eq!(ok(vault.purge(after(60), 100).await), 1);

    assert!(short.is_ended());
    assert!(long.is_some_and(|handle| !handle.is_ended()));
}

/// Purge again and again, while somebody still holds what ended by a logout and by a purge.
pub async fn purge_looks_at_no_login_twice(fixture: &VaultFixture) {
    let puppet = PuppetStore::new(Arc::clone(&fixture.store));
    let vault = fixture.vault_over(puppet.clone());
    // The watcher asks for rows too, when it begins: it is done with that when it hears of an end.
    ok(vault.log_in(&alice(), login("zero", 5)).await);
    let zero = present(&vault).await.handle;
    ok(fixture.store.delete(&alice()).await);
    puppet
        .tell(LoginEvent::Ended {
            key: alice(),
            login: zero.id(),
        })
        .await;
    ends(&zero).await;
    let bob = key("bob", "kubernetes");
    ok(vault.log_in(&alice(), login("one", 10)).await);
    ok(vault.log_in(&bob, login("two", 10)).await);
    let _logged_out = present(&vault).await;
    let purged = ok(vault.load(&bob).await);
    ok(vault.log_out(&alice()).await);

    let before = puppet.loads();
    ok(vault.purge(after(60), 100).await);
    let first = puppet.loads() - before;
    ok(vault.purge(after(60), 100).await);

    assert!(purged.is_some_and(|login| login.handle.is_ended()));
    assert_eq!(first, 1, "a login that ended by a logout is not purged too");
    assert_eq!(puppet.loads() - before, 1, "a purged login is not purged again");
}

/// Logout and login by another process.
pub async fn logout_elsewhere_is_seen_here(fixture: &VaultFixture) {
    let (here, elsewhere) = (fixture.vault(), fixture.vault_elsewhere());
    ok(here.log_in(&alice(), login("one", 3_600)).await);
    let first = present(&here).await.handle;
    ok(elsewhere.log_in(&alice(), login("two", 3_600)).await);
    ends(&first).await;

    let second = present(&here).await.handle;
    ok(elsewhere.log_out(&alice()).await);

    ends(&second).await;
    assert!(ok(here.load(&alice()).await).is_none());
}

/// A load that has read its row when the login ends must not bring it back.
pub async fn load_that_began_before_a_logout_hands_out_nothing(fixture: &VaultFixture) {
    let puppet = PuppetStore::new(Arc::clone(&fixture.store));
    let vault = fixture.vault_over(puppet.clone());
    for warm in [false, true] {
        ok(vault.log_in(&alice(), login("one", 3_600)).await);
        if warm {
            drop(present(&vault).await);
        }
        puppet.hold_next_load();
        let loading = tokio::spawn({
            let vault = vault.clone();
            async move { vault.load(&alice()).await }
        });
        puppet.load_is_held().await;

        ok(vault.log_out(&alice()).await);
        puppet.release_load();

        let loaded = loading.await.map(ok);
        assert!(matches!(loaded, Ok(None)), "a login came back from the dead");
    }
}

/// Lost events.
pub async fn gap_ends_what_is_gone_and_keeps_the_rest(fixture: &VaultFixture) {
    let puppet = PuppetStore::new(Arc::clone(&fixture.store));
    let vault = fixture.vault_over(puppet.clone());
    let bob = key("bob", "kubernetes");
    ok(vault.log_in(&alice(), login("one", 3_600)).await);
    ok(vault.log_in(&bob, login("two", 3_600)).await);
    let gone = present(&vault).await.handle;
    let kept = ok(vault.load(&bob).await).map(|login| login.handle);
    puppet
        .tell(LoginEvent::Ended {
            key: bob.clone(),
            login: gone.id(),
        })
        .await;
    // First, since a new subscriber looks at everything too.
    puppet.set_unreachable(true);
    ok(fixture.store.delete(&alice()).await);

    puppet.tell(LoginEvent::Gap).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let unasked = !gone.is_ended();
    puppet.set_unreachable(false);

    ends(&gone).await;
    assert!(unasked, "a store out of reach ends nobody");
    assert!(kept.is_some_and(|handle| !handle.is_ended()));
}

/// Events that somebody forged: they say where to look, and no more than that.
pub async fn told_lies_end_nobody_and_damage_nothing(fixture: &VaultFixture) {
    let puppet = PuppetStore::new(Arc::clone(&fixture.store));
    let vault = fixture.vault_over(puppet.clone());
    ok(vault.log_in(&alice(), login("one", 3_600)).await);
    ok(vault.log_in(&key("bob", "kubernetes"), login("two", 3_600)).await);
    let present_login = present(&vault).await;
    let bobs = ok(vault.load(&key("bob", "kubernetes")).await).map(|login| login.handle);
    let login = present_login.handle.id();
    let forged = [
        LoginEvent::Changed {
            key: alice(),
            revision: Revision {
                login,
                number: u64::MAX,
            },
        },
        LoginEvent::Ended { key: alice(), login },
    ];
    for event in forged {
        puppet.tell(event).await;
    }
    // Told behind the lies, so that they have been heard once it works.
    ok(fixture.store.delete(&key("bob", "kubernetes")).await);
    if let Some(handle) = &bobs {
        let (key, login) = (key("bob", "kubernetes"), handle.id());
        puppet.tell(LoginEvent::Ended { key, login }).await;
        ends(handle).await;
    }

    assert!(bobs.is_some() && !present_login.handle.is_ended());
    assert_eq!(present(&vault).await.revision, present_login.revision);
}

/// A store that does not answer when it is asked whether a login ended.
pub async fn end_is_believed_once_the_store_confirms_it(fixture: &VaultFixture) {
    let puppet = PuppetStore::new(Arc::clone(&fixture.store));
    let vault = fixture.vault_over(puppet.clone());
    ok(vault.log_in(&alice(), login("one", 3_600)).await);
    let handle = present(&vault).await.handle;

    puppet.set_unreachable(true);
    ok(fixture.store.delete(&alice()).await);
    let (key, login) = (alice(), handle.id());
    puppet.tell(LoginEvent::Ended { key, login }).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let unasked = !handle.is_ended();
    puppet.set_unreachable(false);

    ends(&handle).await;
    assert!(unasked, "a store out of reach ends nobody");
}

/// The task that watches the store.
pub async fn dropped_vault_stops_watching(fixture: &VaultFixture) {
    let puppet = PuppetStore::new(Arc::clone(&fixture.store));
    let vault = fixture.vault_over(puppet.clone());
    ok(vault.load(&alice()).await);
    puppet.is_subscribed().await;
    let gone = puppet.clone();
    let gone = tokio::spawn(async move { gone.subscriber_is_gone().await });

    drop(vault);

    let stopped = tokio::time::timeout(PATIENCE, gone).await;
    assert!(stopped.is_ok(), "the task outlived its vault");
}

async fn ends(handle: &LoginHandle) {
    let ended = tokio::time::timeout(PATIENCE, handle.ended()).await;
    assert!(ended.is_ok(), "the end of a login was not seen");
}

/// A machine that runs tests is busy; the promise of a second is for one that is not.
const PATIENCE: Duration = Duration::from_secs(10);
