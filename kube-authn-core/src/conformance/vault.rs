//! What [`TokenVault`] promises, over any store and sealer: logins, their ends, and damage.
//!
//! ```no_run
//! # async fn example<S: kube_authn_core::TokenStore, K: kube_authn_core::Sealer>(fresh: fn() -> (S, K)) {
//! use kube_authn_core::conformance::vault::{self, VaultFixture};
//!
//! vault::all(|| async { let (store, sealer) = fresh(); VaultFixture::new(store, sealer) }).await;
//! # }
//! ```

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{vault_claims, vault_damage, vault_ends, vault_keys, vault_refresh};
use crate::{
    ClientId, EntityRef, Error, ErrorKind, Issuer, Login, ManualClock, NewLogin, Result, Sealer, Secret,
    Subject, Token, TokenKey, TokenSet, TokenStore, TokenVault,
};

/// An empty store, a second way to it, and a sealer. Clones share them.
#[derive(Clone, Debug)]
pub struct VaultFixture {
    pub(super) store: Arc<dyn TokenStore>,
    other: Arc<dyn TokenStore>,
    sealer: Arc<dyn Sealer>,
    pub(super) clock: ManualClock,
}

impl VaultFixture {
    /// A fixture over this store, which must be empty.
    pub fn new(store: impl TokenStore, sealer: impl Sealer) -> Self {
        let store: Arc<dyn TokenStore> = Arc::new(store);
        Self {
            other: Arc::clone(&store),
            store,
            sealer: Arc::new(sealer),
            clock: ManualClock::at(NOW),
        }
    }

    /// Adds a second way to the same medium, as another process would have one.
    pub fn with_other(mut self, other: impl TokenStore) -> Self {
        self.other = Arc::new(other);
        self
    }

    /// A vault as this process would have it.
    pub(super) fn vault(&self) -> TokenVault {
        self.vault_over(Arc::clone(&self.store))
    }

    /// A vault as another process would have it.
    pub(super) fn vault_elsewhere(&self) -> TokenVault {
        self.vault_over(Arc::clone(&self.other))
    }

    /// The same with other keys.
    pub(super) fn vault_elsewhere_sealed(&self, sealer: impl Sealer) -> TokenVault {
        TokenVault::new(Arc::clone(&self.other), sealer).with_clock(self.clock.clone())
    }

    pub(super) fn sealer(&self) -> Arc<dyn Sealer> {
        Arc::clone(&self.sealer)
    }

    pub(super) fn vault_over(&self, store: impl TokenStore) -> TokenVault {
        TokenVault::new(store, Arc::clone(&self.sealer)).with_clock(self.clock.clone())
    }
}

/// Every check, each on a fixture of its own.
pub async fn all<F: Future<Output = VaultFixture>>(fresh: impl Fn() -> F) {
    login_is_loaded_back_with_its_tokens(&fresh().await).await;
    newer_login_wins(&fresh().await).await;
    refresh_token_is_kept_for_the_same_subject_alone(&fresh().await).await;
    login_of_an_unknown_client_is_the_newest_usable_one(&fresh().await).await;
    vault_ends::logout_ends_every_credential_before_it_returns(&fresh().await).await;
    vault_ends::new_login_ends_the_one_it_replaces(&fresh().await).await;
    vault_ends::purge_ends_what_it_deletes(&fresh().await).await;
    vault_ends::purge_looks_at_no_login_twice(&fresh().await).await;
    vault_ends::takeover_is_noted_for_good(&fresh().await).await;
    vault_ends::what_is_no_login_takes_no_logins_place(&fresh().await).await;
    vault_ends::logout_elsewhere_is_seen_here(&fresh().await).await;
    vault_ends::load_that_began_before_a_logout_hands_out_nothing(&fresh().await).await;
    vault_ends::gap_ends_what_is_gone_and_keeps_the_rest(&fresh().await).await;
    vault_ends::told_lies_end_nobody_and_damage_nothing(&fresh().await).await;
    vault_ends::end_is_believed_once_the_store_confirms_it(&fresh().await).await;
    vault_ends::dropped_vault_stops_watching(&fresh().await).await;
    vault_damage::changed_row_is_damaged_and_harms_no_other(&fresh().await).await;
    vault_damage::old_row_put_back_is_refused_by_who_saw_a_newer_one(&fresh().await).await;
    vault_damage::damaged_login_is_replaced_by_the_next(&fresh().await).await;
    vault_damage::nothing_shows_a_token(&fresh().await).await;
    vault_refresh::all(&fresh).await;
    vault_keys::all(&fresh).await;
    vault_claims::claim_whose_answer_was_lost_is_ours(&fresh().await).await;
    vault_claims::new_refresh_token_of_a_stale_attempt_may_be_spent(&fresh().await).await;
    vault_claims::claim_that_was_not_written_is_nobodys(&fresh().await).await;
}

/// A login comes back whole, and two loads share one handle.
pub async fn login_is_loaded_back_with_its_tokens(fixture: &VaultFixture) {
    let vault = fixture.vault();
    assert!(
        ok(vault.load(&alice()).await).is_none(),
        "an empty store had a login"
    );

    let revision = ok(vault.log_in(&alice(), login("one", 3_600)).await);

    let (first, second) = (present(&vault).await, present(&vault).await);
    assert_eq!(
        (&first.key, first.revision, &first.tokens),
        (&alice(), revision, &tokens("one", 3_600))
    );
    assert_eq!(
        (first.metadata.subject.as_str(), first.metadata.refreshable),
        ("alice@issuer", true)
    );
    assert_eq!(first.metadata.expires_at, after(3_600));
    assert_eq!(present(&fixture.vault_elsewhere()).await.tokens, first.tokens);
    second.handle.end();
    assert!(
        first.handle.is_ended(),
        "two loads of one login must share its handle"
    );
}

/// Of two logins the one that the issuer made later stays, whatever the order in which they arrive.
pub async fn newer_login_wins(fixture: &VaultFixture) {
    let vault = fixture.vault();
    let issued = |name, at| login(name, 3_600).with_issued_at(after(at));
    ok(vault.log_in(&alice(), issued("second", 20)).await);

    let older = vault.log_in(&alice(), issued("first", 10)).await;
    let shorter = vault.log_in(&alice(), login("shorter", 60)).await;

    assert_eq!(kind(older), Some(ErrorKind::Conflict));
    assert_eq!(kind(shorter), Some(ErrorKind::Conflict));
    assert_eq!(present(&vault).await.tokens, tokens("second", 3_600));
    ok(vault
        .log_in(
            &alice(),
            NewLogin {
                expires_at: after(60),
                ..issued("third", 30)
            },
        )
        .await);
    assert_eq!(present(&vault).await.issued_at(), Some(after(30)));
}

/// A login without a refresh token keeps the one before, of the same subject and no other.
pub async fn refresh_token_is_kept_for_the_same_subject_alone(fixture: &VaultFixture) {
    let vault = fixture.vault();
    let without = |subject: &str, seconds| {
        let mut tokens = tokens("two", seconds);
        tokens.refresh_token = None;
        NewLogin::new(valid(Subject::new(subject)), tokens, after(seconds))
    };
    ok(vault.log_in(&alice(), login("one", 60)).await);

    ok(vault.log_in(&alice(), without("alice@issuer", 120)).await);
    let same = present(&vault).await;
    ok(vault.log_in(&alice(), without("somebody@issuer", 180)).await);
    let other = present(&vault).await;

    assert_eq!(same.tokens.refresh_token, Some(Secret::new("refresh-one")));
    assert_eq!(
        (other.tokens.refresh_token, other.metadata.refreshable),
        (None, false)
    );
}

/// [`TokenVault::find`] without a client.
pub async fn login_of_an_unknown_client_is_the_newest_usable_one(fixture: &VaultFixture) {
    let vault = fixture.vault();
    for (client, seconds) in [("long", 7_200), ("newer", 3_600), ("dead", 10)] {
        ok(vault.log_in(&key("alice", client), login(client, seconds)).await);
        fixture.clock.advance_seconds(1);
    }
    let elsewhere = TokenKey {
        issuer: valid(Issuer::new("https://elsewhere/")),
        ..key("alice", "other-issuer")
    };
    ok(vault.log_in(&elsewhere, login("elsewhere", 9_000)).await);
    ok(vault.log_in(&key("bob", "bobs"), login("bobs", 9_000)).await);
    let find = async |client: Option<&str>| {
        let client = client.map(|client| valid(ClientId::new(client)));
        let key = alice();
        ok(vault.find(&key.principal, &key.issuer, client.as_ref()).await).map(|login| login.key)
    };

    assert_eq!(find(None).await, Some(key("alice", "newer")));
    assert_eq!(find(Some("long")).await, Some(key("alice", "long")));
    assert_eq!(find(Some("unknown")).await, None);
    fixture.clock.advance_seconds(8_000);
    assert_eq!(
        find(None).await,
        Some(key("alice", "dead")),
        "none is usable: the newest tells of its end"
    );
    assert_eq!(ok(vault.log_out_all(&alice().principal).await), 4);
    assert_eq!(find(None).await, None);
    assert!(ok(vault.load(&key("bob", "bobs")).await).is_some());
}

/// Alice's login, which must be there.
pub(super) async fn present(vault: &TokenVault) -> Login {
    match ok(vault.load(&alice()).await) {
        Some(login) => login,
        None => panic!("the login is gone"),
    }
}

pub(super) fn login(name: &str, seconds: i64) -> NewLogin {
    NewLogin::new(of_subject("alice@issuer"), tokens(name, seconds), after(seconds))
}

pub(super) fn of_subject(subject: &str) -> Subject {
    valid(Subject::new(subject))
}

pub(super) fn tokens(name: &str, seconds: i64) -> TokenSet {
    let token = |kind: &str| Token {
        secret: Secret::new(format!("{kind}-{name}")),
        expires_at: after(seconds),
    };
    TokenSet::new()
        .with_id_token(token("id"))
        .with_access_token(token("access"))
        .with_refresh_token(Secret::new(format!("refresh-{name}")))
}

pub(super) fn alice() -> TokenKey {
    key("alice", "kubernetes")
}

pub(super) fn key(name: &str, client: &str) -> TokenKey {
    TokenKey {
        principal: valid(EntityRef::parse(&format!("user:default/{name}"))),
        issuer: valid(Issuer::new("https://issuer.example.com/")),
        client_id: valid(ClientId::new(client)),
    }
}

/// The instant so many seconds after the fixture's clock began.
pub(super) fn after(seconds: i64) -> Timestamp {
    NOW.saturating_add(SignedDuration::from_secs(seconds))
        .unwrap_or(NOW)
}

#[track_caller]
pub(super) fn ok<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

pub(super) fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().as_ref().map(Error::kind)
}

#[track_caller]
pub(super) fn valid<T>(result: Result<T>) -> T {
    ok(result)
}

/// Any instant will do.
const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
