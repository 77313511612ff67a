//! The contract of [`TokenStore`], lines 7 to 10: purge, scan, events, failures. Run by [`super::store::all`].

use std::time::Duration;

use super::{
    sample::{alice, at, conflict, held, key, near_equal_keys, numbered, record},
    store::StoreFixture,
};
use crate::{
    Error, ErrorKind, Expected, LoginEvent, LoginEvents, LoginId, RefreshMark, TokenKey, TokenRecord,
    TokenStore,
};

/// Line 7.
pub async fn purge_deletes_what_ended_and_nothing_else(fixture: &StoreFixture) {
    let store = &fixture.store;
    let instant = at(1_000_000);
    let row = |name: &str, expires_at, marked_until: Option<i64>| {
        let mut record = record(1, 1);
        record.metadata.expires_at = at(expires_at);
        record.metadata.refreshing = marked_until.map(|until| RefreshMark {
            owner: LoginId::from_bytes([3; 16]),
            until: at(until),
        });
        (key(name, "https://issuer.example.com/", "client"), record)
    };
    let ended = [
        row("ended", 999_999, None),
        row("long-ended", 1, None),
        row("given-up", 5, Some(999_999)),
    ];
    let staying = [
        row("just-ending", 1_000_000, None),
        row("living", 1_000_001, None),
        row("refreshed-now", 5, Some(1_000_001)),
    ];
    for (key, record) in ended.iter().chain(&staying) {
        held(7, store.save(key, record, Expected::Absent).await);
    }

    assert_eq!(held(7, store.purge(instant, 0).await), 0, "line 7: the limit");
    assert_eq!(held(7, store.purge(instant, 2).await), 2, "line 7: the limit");
    assert_eq!(held(7, store.purge(instant, 2).await), 1, "line 7: the rest");
    assert_eq!(
        held(7, store.purge(instant, 2).await),
        0,
        "line 7: nothing is left to purge"
    );

    for (key, record) in staying {
        assert_eq!(
            held(7, fixture.other.load(&key).await),
            Some(record),
            "line 7: {key:?} went"
        );
    }
    for (key, _) in ended {
        assert_eq!(
            held(7, fixture.other.load(&key).await),
            None,
            "line 7: {key:?} stayed"
        );
    }
}

/// Line 8.
pub async fn scan_visits_every_row_once_in_order(fixture: &StoreFixture) {
    let keys = near_equal_keys();
    for (index, key) in keys.iter().enumerate() {
        held(
            8,
            fixture.store.save(key, &numbered(index), Expected::Absent).await,
        );
    }
    let mut expected: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(index, key)| (key.clone(), numbered(index)))
        .collect();
    expected.sort_by(|a, b| a.0.cmp(&b.0));

    for limit in [1, 3, 1_000] {
        assert_eq!(
            scanned(&*fixture.other, limit).await,
            expected,
            "line 8: pages of {limit}"
        );
    }
}

/// Line 8.
pub async fn scan_visits_rows_that_stay_while_others_change(fixture: &StoreFixture) {
    let name = |index: usize| key(&format!("u{index:02}"), "https://issuer.example.com/", "client");
    for index in 0..20 {
        held(
            8,
            fixture
                .store
                .save(&name(index), &numbered(index), Expected::Absent)
                .await,
        );
    }
    let mut going: Vec<_> = (0..20).filter(|index| index % 4 == 3).map(name).collect();

    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = held(8, fixture.store.scan(after.as_ref(), 3).await);
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        seen.extend(page.into_iter().map(|(key, _)| key));
        if let Some(going) = going.pop() {
            held(8, fixture.other.delete(&going).await);
        }
    }

    for index in (0..20).filter(|index| index % 4 != 3) {
        let visits = seen.iter().filter(|key| **key == name(index)).count();
        assert_eq!(visits, 1, "line 8: row {index}");
    }
}

/// Line 9.
pub async fn events_tell_of_every_change(fixture: &StoreFixture) {
    let (alice, bob, carol) = (
        alice(),
        key("bob", "https://i/", "c"),
        key("carol", "https://i/", "c"),
    );
    let mut ended_long_ago = record(4, 1);
    ended_long_ago.metadata.expires_at = at(1);
    held(
        9,
        fixture
            .other
            .save(&carol, &ended_long_ago, Expected::Absent)
            .await,
    );
    let mut here = held(9, fixture.store.events().await);
    let mut there = held(9, fixture.other.events().await);

    let first = record(1, 1).revision;
    let store = &fixture.other;
    held(9, store.save(&alice, &record(1, 1), Expected::Absent).await);
    held(9, store.save(&alice, &record(1, 2), Expected::At(first)).await);
    let second = record(1, 2).revision;
    held(9, store.save(&alice, &record(2, 1), Expected::At(second)).await);
    held(9, store.save(&bob, &record(3, 1), Expected::Absent).await);
    held(9, store.delete(&bob).await);
    held(9, store.purge(at(2), 10).await);
    conflict(
        "a save that tells nobody",
        store.save(&alice, &record(5, 1), Expected::Absent).await,
    );
    held(9, store.delete(&bob).await);

    let changed = |key: &TokenKey, record: TokenRecord| LoginEvent::Changed {
        key: key.clone(),
        revision: record.revision,
    };
    let ended = |key: &TokenKey, login: u8| LoginEvent::Ended {
        key: key.clone(),
        login: LoginId::from_bytes([login; 16]),
    };
    let expected = [
        changed(&alice, record(1, 1)),
        changed(&alice, record(1, 2)),
        ended(&alice, 1),
        changed(&alice, record(2, 1)),
        changed(&bob, record(3, 1)),
        ended(&bob, 3),
        ended(&carol, 4),
    ];
    for events in [&mut here, &mut there] {
        // What happened before the subscription may be told too.
        let mut told = Vec::new();
        while told.len() < expected.len() {
            let event = next(events).await;
            if event != changed(&carol, ended_long_ago.clone()) {
                told.push(event);
            }
        }
        assert_eq!(told, expected, "line 9");
    }
}

/// Line 9.
pub async fn slow_receiver_stops_no_writer_and_learns_of_the_gap(fixture: &StoreFixture) {
    let mut slow = held(9, fixture.store.events().await);
    let gone = held(9, fixture.store.events().await);
    drop(gone);
    let key = alice();
    held(9, fixture.store.save(&key, &numbered(0), Expected::Absent).await);
    let writes = 1_500;
    for index in 1..writes {
        let expected = Expected::At(numbered(index - 1).revision);
        let record = numbered(index);
        let write = fixture.store.save(&key, &record, expected);
        held(9, within("a save beside a slow receiver", write).await);
    }

    let last = LoginEvent::Changed {
        key: key.clone(),
        revision: numbered(writes - 1).revision,
    };
    let mut told = 0;
    loop {
        match next(&mut slow).await {
            LoginEvent::Gap => return,
            event if event == last => break,
            _ => told += 1,
        }
    }
    assert_eq!(told, writes - 1, "line 9: events were lost without a gap");
}

/// Line 10.
pub async fn unreachable_medium_is_unavailable(fixture: &StoreFixture) {
    let Some(store) = &fixture.unreachable else {
        return;
    };
    let key = alice();
    let failures: [(&str, Option<Error>); 7] = [
        ("load", store.load(&key).await.err()),
        (
            "save",
            store.save(&key, &record(1, 1), Expected::Absent).await.err(),
        ),
        ("delete", store.delete(&key).await.err()),
        ("list", store.list(&key.principal).await.err()),
        ("purge", store.purge(at(1), 1).await.err()),
        ("scan", store.scan(None, 1).await.err()),
        ("events", store.events().await.err()),
    ];
    for (what, error) in failures {
        let kind = error.as_ref().map(Error::kind);
        assert!(
            matches!(kind, Some(ErrorKind::Unavailable | ErrorKind::Timeout)),
            "line 10: {what} gave {error:?}"
        );
    }
}

async fn scanned(store: &dyn TokenStore, limit: u32) -> Vec<(TokenKey, TokenRecord)> {
    let mut rows: Vec<(TokenKey, TokenRecord)> = Vec::new();
    loop {
        let after = rows.last().map(|(key, _)| key.clone());
        let page = held(8, store.scan(after.as_ref(), limit).await);
        assert!(
            page.len() <= usize::try_from(limit).unwrap_or(usize::MAX),
            "line 8: the limit"
        );
        if page.is_empty() {
            return rows;
        }
        rows.extend(page);
    }
}

async fn next(events: &mut LoginEvents) -> LoginEvent {
    match within("an event", events.next()).await {
        Some(event) => event,
        None => panic!("line 9: the subscription ended"),
    }
}

/// Generous, since a machine that runs tests is busy; the promise of a second is for one that is not.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(10), future).await {
        Ok(output) => output,
        Err(_) => panic!("line 9: waited too long for {what}"),
    }
}
