//! What [`TokenVault`] promises of refreshes and of first use. Run by [`super::vault::all`].

use std::time::Duration;

use jiff::Timestamp;

use super::vault::{VaultFixture, after, alice, key, kind, login, of_subject, ok, present, tokens, valid};
use crate::{Claim, EntityRef, ErrorKind, Issuer, Login, LoginId, NewLogin, Secret, TokenSet, TokenVault};

pub(super) async fn all<F: Future<Output = VaultFixture>>(fresh: impl Fn() -> F) {
    one_of_many_claims_succeeds(&fresh().await).await;
    who_waits_for_another_is_told(&fresh().await).await;
    finished_refresh_is_everybodys(&fresh().await).await;
    new_refresh_token_is_saved_before_the_rest(&fresh().await).await;
    stale_mark_allows_exactly_one_attempt(&fresh().await).await;
    released_claim_is_free_again(&fresh().await).await;
    refresh_in_flight_never_writes_a_deleted_login_back(&fresh().await).await;
    refresh_in_flight_never_overwrites_a_new_login(&fresh().await).await;
    refresh_with_tokens_of_another_subject_is_refused(&fresh().await).await;
    withdrawn_grant_ends_the_login_and_no_later_one(&fresh().await).await;
    first_use_pins_for_good(&fresh().await).await;
    racing_first_uses_never_share_a_subject(&fresh().await).await;
    pin_left_half_done_is_no_way_in(&fresh().await).await;
    nobody_logs_in_as_a_pin(&fresh().await).await;
}

/// Many claims at once, by several processes.
pub async fn one_of_many_claims_succeeds(fixture: &VaultFixture) {
    let vaults = [fixture.vault(), fixture.vault_elsewhere()];
    ok(vaults[0].log_in(&alice(), login("one", 60)).await);
    let seen = present(&vaults[0]).await;

    let claims: Vec<_> = (0..16)
        .map(|index| {
            let (vault, seen) = (vaults[index % 2].clone(), seen.clone());
            tokio::spawn(async move { vault.claim_refresh(&seen, owner(index), after(30)).await })
        })
        .collect();
    let mut ours = 0;
    for claim in claims {
        match claim.await.map(ok) {
            Ok(Claim::Ours(_)) => ours += 1,
            Ok(Claim::Running { until }) => assert_eq!(until, after(30)),
            other => panic!("neither ours nor running: {other:?}"),
        }
    }

    assert_eq!(ours, 1, "the refresh token may be spent once");
}

/// Somebody else is at it; what he does is seen without asking the store again and again.
pub async fn who_waits_for_another_is_told(fixture: &VaultFixture) {
    let (vault, elsewhere) = (fixture.vault(), fixture.vault_elsewhere());
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let seen = present(&elsewhere).await;
    let waiting = tokio::spawn({
        let (elsewhere, seen) = (elsewhere.clone(), seen.clone());
        async move { elsewhere.changed(&seen, PATIENCE).await }
    });

    drop(claimed(&vault, &present(&vault).await).await);

    let told = tokio::time::timeout(PATIENCE / 2, waiting).await;
    assert!(matches!(told, Ok(Ok(()))), "told before its time was up");
    // Who asks too late is told at once.
    let at_once = tokio::time::timeout(PATIENCE / 2, elsewhere.changed(&seen, PATIENCE)).await;
    assert!(at_once.is_ok());
}

/// A claim by who read the login before it was refreshed.
pub async fn finished_refresh_is_everybodys(fixture: &VaultFixture) {
    let (vault, elsewhere) = (fixture.vault(), fixture.vault_elsewhere());
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let seen = present(&elsewhere).await;

    let claimed = claimed(&vault, &present(&vault).await).await;
    let mut refreshed = login("two", 3_600);
    refreshed.tokens.refresh_token = None;
    let finished = ok(vault.finish_refresh(&claimed, refreshed).await);

    let Claim::Done(done) = ok(elsewhere.claim_refresh(&seen, owner(2), after(30)).await) else {
        panic!("the refresh is done");
    };
    assert_eq!(
        (done.revision, &done.tokens),
        (finished.revision, &finished.tokens)
    );
    assert_eq!(
        (done.metadata.refreshing, done.metadata.expires_at),
        (None, after(3_600))
    );
    assert_eq!(
        done.tokens.refresh_token,
        Some(Secret::new("refresh-one")),
        "a refresh token that was not replaced stays"
    );
    assert!(
        !seen.handle.is_ended() && !claimed.handle.is_ended(),
        "a refresh ends no login"
    );
}

/// The order of writes.
pub async fn new_refresh_token_is_saved_before_the_rest(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let claimed = claimed(&vault, &present(&vault).await).await;

    let saved = ok(vault
        .save_refresh_token(&claimed, Secret::new("refresh-two"))
        .await);

    let seen = present(&fixture.vault_elsewhere()).await;
    assert_eq!(
        seen.tokens,
        tokens("one", 60).with_refresh_token(Secret::new("refresh-two"))
    );
    assert!(seen.metadata.refreshing.is_some(), "the claim stands");
    ok(vault.finish_refresh(&saved, login("three", 3_600)).await);
    assert_eq!(present(&vault).await.tokens, tokens("three", 3_600));
}

/// A process that died with the mark set may have spent the refresh token.
pub async fn stale_mark_allows_exactly_one_attempt(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 600)).await);
    drop(claimed(&vault, &present(&vault).await).await);

    fixture.clock.advance_seconds(31);
    let Claim::Ours(_) = ok(vault
        .claim_refresh(&present(&vault).await, owner(2), after(60))
        .await)
    else {
        panic!("a stale mark allows one attempt");
    };
    fixture.clock.advance_seconds(31);
    let Claim::Impossible(left) = ok(vault
        .claim_refresh(&present(&vault).await, owner(3), after(90))
        .await)
    else {
        panic!("a stale mark allows no second attempt");
    };

    assert_eq!(
        left.tokens,
        tokens("one", 600),
        "what the login holds may be used to its end"
    );
}

/// A call that spent nothing.
pub async fn released_claim_is_free_again(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let first = claimed(&vault, &present(&vault).await).await;

    ok(vault.release_refresh(&first).await);

    assert_eq!(present(&vault).await.tokens, tokens("one", 60));
    drop(claimed(&vault, &present(&vault).await).await);
}

/// Logout during a refresh.
pub async fn refresh_in_flight_never_writes_a_deleted_login_back(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let claimed = claimed(&vault, &present(&vault).await).await;

    ok(fixture.vault_elsewhere().log_out(&alice()).await);
    let finished = vault.finish_refresh(&claimed, login("two", 3_600)).await;

    assert_eq!(kind(finished), Some(ErrorKind::Conflict));
    assert!(ok(vault.load(&alice()).await).is_none());
    let again = ok(vault.claim_refresh(&claimed, owner(2), after(60)).await);
    assert!(matches!(again, Claim::Ended));
}

/// Logout and login during a refresh.
pub async fn refresh_in_flight_never_overwrites_a_new_login(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let seen = present(&vault).await;
    let claimed = claimed(&vault, &seen).await;

    ok(vault.log_out(&alice()).await);
    ok(vault.log_in(&alice(), login("new", 3_600)).await);
    // As many writes as the old login had: a counter alone would not tell them apart.
    let _ = self::claimed(&vault, &present(&vault).await).await;
    let finished = vault.finish_refresh(&claimed, login("stale", 9_000)).await;
    let ended = ok(vault.end(&claimed).await);

    assert_eq!(kind(finished), Some(ErrorKind::Conflict));
    assert!(!ended, "the end of an old login is not the end of a new one");
    assert_eq!(present(&vault).await.tokens, tokens("new", 3_600));
    let again = ok(vault.claim_refresh(&seen, owner(2), after(60)).await);
    assert!(matches!(again, Claim::Done(login) if login.tokens == tokens("new", 3_600)));
}

/// OpenID Connect Core section 12.2.
pub async fn refresh_with_tokens_of_another_subject_is_refused(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 60)).await);
    let claimed = claimed(&vault, &present(&vault).await).await;
    let of_mallory = NewLogin::new(of_subject("mallory"), tokens("two", 3_600), after(3_600));

    let error = vault.finish_refresh(&claimed, of_mallory).await.err();

    assert_eq!(
        error.map(|error| (error.kind(), error.code())),
        Some((ErrorKind::Refused, "identity_mismatch"))
    );
    assert_eq!(present(&vault).await.tokens, tokens("one", 60));
}

/// `invalid_grant`.
pub async fn withdrawn_grant_ends_the_login_and_no_later_one(fixture: &VaultFixture) {
    let vault = fixture.vault();
    ok(vault.log_in(&alice(), login("one", 3_600)).await);
    let claimed = claimed(&vault, &present(&vault).await).await;

    assert!(ok(vault.end(&claimed).await));

    assert!(claimed.handle.is_ended());
    let left = present(&vault).await;
    assert_eq!(
        (&left.tokens, left.metadata.refreshable),
        (&TokenSet::new(), false)
    );
    assert!(left.metadata.expires_at <= after(0), "the user learns of the end");
    let again = ok(vault.claim_refresh(&left, owner(2), after(60)).await);
    assert!(matches!(again, Claim::Impossible(_)));
    assert!(!ok(vault.end(&claimed).await), "ended twice");
    ok(vault.log_in(&alice(), login("two", 3_600)).await);
    assert_eq!(present(&vault).await.tokens, tokens("two", 3_600));
}

/// First use.
pub async fn first_use_pins_for_good(fixture: &VaultFixture) {
    let vault = fixture.vault();
    let (alice, bob, issuer) = (user("alice"), user("bob"), issuer("https://issuer.example.com/"));
    ok(vault.pin(&alice, &issuer, &of_subject("a")).await);
    ok(vault.log_in(&key("alice", "kubernetes"), login("one", 1)).await);

    ok(vault.log_out_all(&alice).await);
    ok(vault.purge(Timestamp::MAX, 1_000).await);
    let elsewhere = fixture.vault_elsewhere();

    ok(elsewhere.pin(&alice, &issuer, &of_subject("a")).await);
    for (principal, subject) in [(&alice, "b"), (&bob, "a")] {
        let error = elsewhere
            .pin(principal, &issuer, &of_subject(subject))
            .await
            .err();
        let asked = elsewhere
            .refuse_pinned_to_another(principal, &issuer, &of_subject(subject))
            .await
            .err();
        for error in [error, asked] {
            assert_eq!(
                error.map(|error| (error.kind(), error.code())),
                Some((ErrorKind::Refused, "identity_mismatch"))
            );
        }
    }
    let free = of_subject("free");
    for principal in [&bob, &user("carol")] {
        ok(elsewhere
            .refuse_pinned_to_another(principal, &issuer, &free)
            .await);
    }
    ok(elsewhere.pin(&bob, &issuer, &of_subject("b")).await);
    let another = self::issuer("https://another.example.com/");
    ok(elsewhere.pin(&bob, &another, &of_subject("a")).await);
}

/// Many users bring one subject at once, and one user many subjects.
pub async fn racing_first_uses_never_share_a_subject(fixture: &VaultFixture) {
    let vaults = [fixture.vault(), fixture.vault_elsewhere()];
    let issuer = issuer("https://issuer.example.com/");
    let tasks: Vec<_> = (0..36)
        .map(|index| {
            let vault = vaults[index % 2].clone();
            let issuer = issuer.clone();
            let (principal, subject) = (user(&format!("u{}", index / 6)), format!("s{}", index % 6));
            tokio::spawn(async move {
                let pinned = vault.pin(&principal, &issuer, &of_subject(&subject)).await;
                (principal, subject, pinned)
            })
        })
        .collect();
    let mut pins = Vec::new();
    for task in tasks {
        match task.await {
            Ok((principal, subject, Ok(()))) => pins.push((principal, subject)),
            Ok((.., Err(error))) => assert!(
                matches!(error.kind(), ErrorKind::Refused | ErrorKind::Conflict),
                "{error}"
            ),
            Err(error) => panic!("{error}"),
        }
    }

    assert!(!pins.is_empty());
    for (index, (principal, subject)) in pins.iter().enumerate() {
        for (other_principal, other_subject) in &pins[index + 1..] {
            assert!(
                principal != other_principal && subject != other_subject,
                "two pins share {principal} or {subject}"
            );
        }
        ok(vaults[1].pin(principal, &issuer, &of_subject(subject)).await);
    }
}

/// A process that died between the two rows of a pin.
pub async fn pin_left_half_done_is_no_way_in(fixture: &VaultFixture) {
    let vault = fixture.vault();
    let (alice, bob, issuer) = (user("alice"), user("bob"), issuer("https://issuer.example.com/"));
    ok(vault.pin(&alice, &issuer, &of_subject("s")).await);
    let rows = ok(fixture.store.scan(None, 10).await);
    let Some((of_principal, _)) = rows
        .iter()
        .find(|(_, row)| row.metadata.subject == of_subject("s"))
    else {
        panic!("a pin names its subject");
    };
    ok(fixture.store.delete(of_principal).await);

    let by_another = vault.pin(&bob, &issuer, &of_subject("s")).await;
    ok(vault.pin(&alice, &issuer, &of_subject("other")).await);
    let void_by_now = vault.pin(&bob, &issuer, &of_subject("s")).await;

    assert_eq!(kind(by_another), Some(ErrorKind::Refused));
    ok(void_by_now);
    assert_eq!(
        kind(vault.pin(&alice, &issuer, &of_subject("s")).await),
        Some(ErrorKind::Refused)
    );
}

/// Pins lie among logins, under a kind that no user may have.
pub async fn nobody_logs_in_as_a_pin(fixture: &VaultFixture) {
    let vault = fixture.vault();
    let (alice, issuer) = (user("alice"), issuer("https://issuer.example.com/"));
    ok(vault.pin(&alice, &issuer, &of_subject("a")).await);

    for (key, _) in ok(fixture.store.scan(None, 10).await) {
        let refused = [
            kind(vault.load(&key).await),
            kind(vault.log_in(&key, login("one", 60)).await),
            kind(vault.log_out(&key).await),
            kind(vault.log_out_all(&key.principal).await),
            kind(vault.list(&key.principal).await),
            kind(vault.pin(&key.principal, &issuer, &of_subject("x")).await),
        ];
        assert_eq!(refused, [Some(ErrorKind::Refused); 6], "{key:?}");
    }
    ok(vault.pin(&alice, &issuer, &of_subject("a")).await);
}

/// Twenty times what an event takes at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// A claim that succeeds, until half a minute after the clock's present.
pub(super) async fn claimed(vault: &TokenVault, login: &Login) -> Login {
    match ok(vault.claim_refresh(login, owner(1), after(30)).await) {
        Claim::Ours(login) => login,
        other => panic!("not ours: {other:?}"),
    }
}

pub(super) fn owner(index: usize) -> LoginId {
    LoginId::from_bytes([u8::try_from(index).unwrap_or(u8::MAX); 16])
}

fn user(name: &str) -> EntityRef {
    valid(EntityRef::parse(&format!("user:default/{name}")))
}

fn issuer(url: &str) -> Issuer {
    valid(Issuer::new(url))
}
