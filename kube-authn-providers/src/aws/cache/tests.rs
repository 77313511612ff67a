use std::sync::atomic::{AtomicUsize, Ordering};

use kube_authn_core::{ErrorKind, ManualClock};

use super::*;
use crate::shared_slots::{FIRST_PAUSE, LONGEST_PAUSE};

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("an instant")
}

fn keys(id: &str, expires_at: Option<i64>) -> Credentials {
    let end = expires_at.map(|end| at(end).into());
    Credentials::new(id, "canary", None, end, "test")
}

/// A source that counts its loads.
#[derive(Default)]
struct Source {
    loads: AtomicUsize,
}

impl Source {
    async fn gives(&self, life: Option<i64>, clock: &ManualClock) -> Result<Credentials, Error> {
        let load = self.loads.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(keys(
            &format!("key {load}"),
            life.map(|life| clock.now().as_second() + life),
        ))
    }

    async fn fails(&self) -> Result<Credentials, Error> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        Err(Error::new(ErrorKind::Unavailable, "down"))
    }

    fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }
}

async fn ask(slot: &Slot, clock: &ManualClock, source: &Source, life: Option<i64>) -> String {
    if let Some(held) = slot.fresh(clock.now()) {
        return held.credentials.access_key_id().to_owned();
    }
    let held = slot.fill(clock, source.gives(life, clock)).await;
    held.expect("credentials").credentials.access_key_id().to_owned()
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_load() {
    let (slot, clock, source) = (Slot::default(), ManualClock::at(at(NOW)), Source::default());

    let asked = (0..50).map(|_| ask(&slot, &clock, &source, Some(3600)));
    let got = futures_util::future::join_all(asked).await;

    assert!(got.iter().all(|key| key == "key 1"), "{got:?}");
    assert_eq!(source.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn credentials_are_renewed_before_a_token_would_outlive_them() {
    let (slot, clock, source) = (Slot::default(), ManualClock::at(at(NOW)), Source::default());
    ask(&slot, &clock, &source, Some(3600)).await;

    clock.advance_seconds(3600 - 16 * 60 - 1);
    assert_eq!(ask(&slot, &clock, &source, Some(3600)).await, "key 1");
    clock.advance_seconds(1);
    assert_eq!(ask(&slot, &clock, &source, Some(3600)).await, "key 2");
}

#[tokio::test(start_paused = true)]
async fn short_lived_credentials_are_not_loaded_without_pause() {
    let (slot, clock, source) = (Slot::default(), ManualClock::at(at(NOW)), Source::default());
    for _ in 0..10 {
        ask(&slot, &clock, &source, Some(900)).await;
        clock.advance_seconds(40);
    }

    assert_eq!(source.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_without_an_end_are_read_again_now_and_then() {
    let (slot, clock, source) = (Slot::default(), ManualClock::at(at(NOW)), Source::default());
    ask(&slot, &clock, &source, None).await;

    clock.advance_seconds(14 * 60);
    assert_eq!(ask(&slot, &clock, &source, None).await, "key 1");
    clock.advance_seconds(60);
    assert_eq!(ask(&slot, &clock, &source, None).await, "key 2");
}

#[tokio::test(start_paused = true)]
async fn failing_source_leaves_the_last_credentials_in_use_until_their_end() {
    let (slot, clock, source) = (Slot::default(), ManualClock::at(at(NOW)), Source::default());
    ask(&slot, &clock, &source, Some(3600)).await;
    clock.advance_seconds(3000);

    let served = slot.fill(&clock, source.fails()).await.expect("the last ones");
    assert_eq!(served.credentials.access_key_id(), "key 1");

    clock.advance_seconds(600);
    tokio::time::advance(LONGEST_PAUSE).await;
    let error = slot.fill(&clock, source.fails()).await.expect_err("nothing left");
    assert_eq!(error.to_string(), "down");
}

#[tokio::test(start_paused = true)]
async fn source_that_failed_is_asked_again_after_a_pause_and_recovers() {
    let (slot, clock, source) = (Slot::default(), ManualClock::at(at(NOW)), Source::default());
    for _ in 0..20 {
        slot.fill(&clock, source.fails()).await.expect_err("down");
    }
    assert_eq!(source.loads(), 1, "the failure is remembered");

    tokio::time::advance(FIRST_PAUSE).await;

    assert_eq!(ask(&slot, &clock, &source, Some(3600)).await, "key 2");
}

#[tokio::test(start_paused = true)]
async fn source_that_hangs_is_given_up() {
    let (slot, clock) = (Slot::default(), ManualClock::at(at(NOW)));

    let error = slot
        .fill(&clock, std::future::pending())
        .await
        .expect_err("too slow");

    assert_eq!(error.kind(), ErrorKind::Timeout);
}

#[tokio::test(start_paused = true)]
async fn credentials_that_ended_already_are_an_error() {
    let (slot, clock, source) = (Slot::default(), ManualClock::at(at(NOW)), Source::default());

    let error = slot
        .fill(&clock, source.gives(Some(-60), &clock))
        .await
        .expect_err("expired");

    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn refusal_makes_the_next_call_load_once_a_minute() {
    let (slot, clock, source) = (Slot::default(), ManualClock::at(at(NOW)), Source::default());
    ask(&slot, &clock, &source, Some(3600)).await;

    assert!(!slot.refuse(clock.now()), "loaded just now");
    clock.advance_seconds(60);
    assert!(slot.refuse(clock.now()));
    assert_eq!(ask(&slot, &clock, &source, Some(3600)).await, "key 2");
    assert!(!slot.refuse(clock.now()), "loaded just now");
}

#[test]
fn debug_of_a_slot_shows_no_secret() {
    let slot = Slot::default();
    lock(&slot.state).held = Some(Held::new(keys("AKIA", None)));

    assert!(!format!("{slot:?}").contains("canary"), "{slot:?}");
}
