//! What [`TokenVault`] promises of the rotation of keys. Run by [`super::vault::all`].

use std::sync::Arc;

use bytes::Bytes;

use super::{
    vault::{VaultFixture, after, alice, key, kind, login, ok, present, tokens, valid},
    vault_damage,
};
use crate::{
    Claim, EntityRef, ErrorKind, Issuer, KeyId, LoginId, Rekeyed, Result, Sealer, Secret, TokenKey,
    TokenVault,
};

pub(super) async fn all<F: Future<Output = VaultFixture>>(fresh: impl Fn() -> F) {
    rekeyed_rows_end_no_login_and_keep_their_content(&fresh().await).await;
    row_of_a_running_refresh_is_left_to_it(&fresh().await).await;
    rekeyed_login_is_not_taken_for_a_refreshed_one(&fresh().await).await;
    row_of_an_unknown_key_stays_and_is_never_no_login(&fresh().await).await;
    damaged_row_never_passes_for_another_key(&fresh().await).await;
    row_of_a_lost_key_is_no_login_and_gives_way(&fresh().await).await;
}

/// Logins and pins get the newest key; handles, tokens and metadata stay, here and in other processes.
pub async fn rekeyed_rows_end_no_login_and_keep_their_content(fixture: &VaultFixture) {
    let (old, elsewhere) = (fixture.vault(), rotated(fixture));
    for number in 0..20 {
        ok(old
            .log_in(&key(&format!("user-{number}"), "c"), login("one", 60))
            .await);
    }
    ok(old.log_in(&alice(), login("one", 60)).await);
    let (principal, issuer) = (
        valid(EntityRef::parse("user:default/pinned")),
        valid(Issuer::new("https://i/")),
    );
    ok(old
        .pin(&principal, &issuer, &super::vault::of_subject("pinned"))
        .await);
    let (seen, read) = (present(&elsewhere).await, ok(elsewhere.rows_by_key().await));
    let rows = 23;
    assert_eq!(read.values().map(|key| key.rows).sum::<u64>(), rows);
    assert!(read.values().all(|key| key.opens), "{read:?}");

    let mut tried = Rekeyed::default();
    let mut after_key = None;
    loop {
        let (done, next) = ok(elsewhere.rekey(after_key.as_ref(), true).await);
        tried += done;
        after_key = next;
        if after_key.is_none() {
            break;
        }
    }
    assert_eq!(
        ok(elsewhere.rows_by_key().await),
        read,
        "a dry run must write nothing"
    );
    let done = rekey(&elsewhere).await;

    assert_eq!((tried, done.rewritten), (done, rows));
    let newest = ok(elsewhere.rows_by_key().await);
    let ids: Vec<_> = newest.keys().map(KeyId::as_str).collect();
    assert!(
        ids.len() == 1 && ids[0].starts_with(PREFIX),
        "rows of other keys are left: {ids:?}"
    );
    let now = present(&elsewhere).await;
    assert_eq!((&now.tokens, &now.metadata), (&seen.tokens, &seen.metadata));
    assert_eq!(
        (now.revision.login, now.revision.number),
        (seen.revision.login, seen.revision.number + 1)
    );
    assert!(!seen.handle.is_ended() && !now.handle.is_ended());
    ok(elsewhere
        .pin(&principal, &issuer, &super::vault::of_subject("pinned"))
        .await);
    assert_eq!(
        rekey(&elsewhere).await,
        Rekeyed {
            current: rows,
            ..Rekeyed::default()
        }
    );
    assert_eq!(
        logins(&elsewhere).await,
        21,
        "each login once, and no pin among them"
    );
}

/// A refresh saves against the revision that its claim wrote: were that gone, the new refresh token would be lost.
pub async fn row_of_a_running_refresh_is_left_to_it(fixture: &VaultFixture) {
    let (vault, rotated) = (fixture.vault(), rotated(fixture));
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let seen = present(&vault).await;
    let Claim::Ours(claimed) = ok(vault.claim_refresh(&seen, owner(), after(30)).await) else {
        panic!("nobody else is at it");
    };

    let held = rekey(&rotated).await;
    fixture.clock.advance_seconds(31);
    let late = rekey(&rotated).await;
    let saved = ok(vault
        .save_refresh_token(&claimed, Secret::new("refresh-two"))
        .await);
    ok(vault.finish_refresh(&saved, login("two", 3_600)).await);

    assert_eq!((held.busy, held.rewritten), (1, 0));
    assert_eq!(
        (late.busy, late.rewritten),
        (1, 0),
        "what came at the deadline is still being saved"
    );
    assert_eq!(rekey(&rotated).await.rewritten, 1);
    assert_eq!(present(&rotated).await.tokens, tokens("two", 3_600));
}

/// Whoever claims the refresh of a login that was written under another key since has to refresh it.
pub async fn rekeyed_login_is_not_taken_for_a_refreshed_one(fixture: &VaultFixture) {
    let rotated = rotated(fixture);
    ok(fixture.vault().log_in(&alice(), login("one", 60)).await);
    let seen = present(&rotated).await;
    assert_eq!(rekey(&rotated).await.rewritten, 1);

    let claim = ok(rotated.claim_refresh(&seen, owner(), after(30)).await);

    assert!(matches!(claim, Claim::Ours(_)), "{claim:?}");
}

/// A process without the key neither reads, rewrites nor forgets the row.
pub async fn row_of_an_unknown_key_stays_and_is_never_no_login(fixture: &VaultFixture) {
    let (rotated, behind) = (rotated(fixture), fixture.vault_elsewhere());
    ok(rotated.log_in(&alice(), login("one", 60)).await);

    let loaded = behind.load(&alice()).await;
    let done = rekey(&behind).await;

    assert_eq!(kind(loaded), Some(ErrorKind::RecordDamaged));
    assert_eq!(
        done,
        Rekeyed {
            damaged: 1,
            ..Rekeyed::default()
        }
    );
    assert_eq!(present(&rotated).await.tokens, tokens("one", 60));
    for (vault, opens) in [(&behind, false), (&rotated, true)] {
        let read = ok(vault.rows_by_key().await);
        let keys: Vec<_> = read.values().map(|key| (key.rows, key.opens)).collect();
        assert_eq!(keys, [(1, opens)]);
    }
}

/// A damaged row says nothing of its key as long as another one opens.
pub async fn damaged_row_never_passes_for_another_key(fixture: &VaultFixture) {
    let vault = fixture.vault();
    for name in ["alice", "bob", "carol"] {
        ok(vault.log_in(&key(name, "c"), login("one", 60)).await);
    }
    for name in ["alice", "bob"] {
        let mut row = vault_damage::row(fixture, &key(name, "c")).await;
        row.sealed.truncate(row.sealed.len() - 1);
        vault_damage::put(fixture, &key(name, "c"), &row).await;
    }

    let read = ok(vault.rows_by_key().await);

    let keys: Vec<_> = read.values().map(|key| (key.rows, key.opens)).collect();
    assert_eq!(keys, [(3, true)]);
}

/// Nobody can open what a lost key sealed: that locks nobody out, and brings nobody back.
pub async fn row_of_a_lost_key_is_no_login_and_gives_way(fixture: &VaultFixture) {
    let old = fixture.vault();
    let vault = fixture.vault_elsewhere_sealed(Rotated {
        sealer: fixture.sealer(),
        loses: true,
    });
    let TokenKey {
        principal, issuer, ..
    } = alice();
    let bob = key("bob", "kubernetes").principal;
    let (first, other) = (
        super::vault::of_subject("first"),
        super::vault::of_subject("other"),
    );
    ok(old.log_in(&alice(), login("one", 3_600)).await);
    ok(old.pin(&principal, &issuer, &first).await);
    ok(old.note_taken_over(&principal, &issuer).await);

    assert!(ok(vault.load(&alice()).await).is_none());
    assert!(ok(vault.find(&principal, &issuer, None).await).is_none());
    let lost = rekey(&vault).await;
    ok(vault.pin(&principal, &issuer, &other).await);
    let pinned = vault.pin(&bob, &issuer, &other).await;
    ok(vault.pin(&bob, &issuer, &first).await);
    ok(vault.log_in(&alice(), login("two", 60)).await);

    assert_eq!(
        lost,
        Rekeyed {
            lost: 4,
            ..Rekeyed::default()
        }
    );
    assert_eq!(kind(pinned), Some(ErrorKind::Refused));
    assert_eq!(present(&vault).await.tokens, tokens("two", 60));
    assert!(ok(vault.was_taken_over(&principal, &issuer).await));
    assert_eq!(
        rekey(&vault).await,
        Rekeyed {
            current: 5,
            lost: 1,
            ..Rekeyed::default()
        }
    );
}

/// How many logins the pages show.
async fn logins(vault: &TokenVault) -> usize {
    let (mut count, mut after) = (0, None);
    loop {
        let page = ok(vault.logins(after.as_ref(), 4).await);
        let Some(last) = page.last() else { return count };
        assert!(
            last.key_id.as_str().starts_with(PREFIX),
            "the page must name the key"
        );
        after = Some(last.key.clone());
        count += page.len();
    }
}

async fn rekey(vault: &TokenVault) -> Rekeyed {
    let mut sum = Rekeyed::default();
    let mut after = None;
    loop {
        let (done, next) = ok(vault.rekey(after.as_ref(), false).await);
        sum += done;
        after = next;
        if after.is_none() {
            return sum;
        }
    }
}

/// A vault, as another process would have it, whose newest key is one more than the fixture's.
fn rotated(fixture: &VaultFixture) -> TokenVault {
    fixture.vault_elsewhere_sealed(Rotated {
        sealer: fixture.sealer(),
        loses: false,
    })
}

fn owner() -> LoginId {
    LoginId::from_bytes([7; 16])
}

/// The fixture's keys, and in front of them the same key under another name.
#[derive(Debug)]
struct Rotated {
    sealer: Arc<dyn Sealer>,
    /// Whether the fixture's own keys are lost.
    loses: bool,
}

impl Sealer for Rotated {
    fn seal(&self, bound_to: &[u8], plain: &[u8]) -> Result<(KeyId, Bytes)> {
        let (id, sealed) = self.sealer.seal(bound_to, plain)?;
        Ok((KeyId::new(&format!("{PREFIX}{id}"))?, sealed))
    }

    fn open(&self, key_id: &KeyId, bound_to: &[u8], sealed: &[u8]) -> Result<Secret> {
        match key_id.as_str().strip_prefix(PREFIX) {
            Some(id) => self.sealer.open(&KeyId::new(id)?, bound_to, sealed),
            None => self.sealer.open(key_id, bound_to, sealed),
        }
    }

    fn is_lost(&self, key_id: &KeyId) -> bool {
        self.loses && !key_id.as_str().starts_with(PREFIX)
    }
}

const PREFIX: &str = "newest-";
