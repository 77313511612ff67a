//! Reads the table of changes for a subscriber.

use std::{sync::Arc, time::Duration};

use kube_authn_core::{Error, LoginEvent, LoginEvents, Result, Revision};
use sqlx::{Row, SqlitePool, sqlite::SqliteRow};
use tokio::sync::mpsc;

use super::{Inner, SqliteTokenStore};
use crate::row::{self, Columns};

/// A subscription from now on. Each has its own place in the table, so a slow subscriber waits for itself alone.
pub(super) async fn subscribe(store: &SqliteTokenStore) -> Result<LoginEvents> {
    let last = last(&store.0.readers)
        .await
        .map_err(|source| store.failed(source))?;
    let (sender, receiver) = mpsc::channel(PAGE);
    let written = Arc::clone(&store.0.written);
    let store = Arc::downgrade(&store.0);
    tokio::spawn(async move {
        let mut last = last;
        loop {
            let mut woken = std::pin::pin!(written.notified());
            woken.as_mut().enable();
            let Some(readers) = store.upgrade().map(|store: Arc<Inner>| store.readers.clone()) else {
                return;
            };
            // Nothing is lost, but who does not hear what happens must not go on as if nothing did.
            let events = match next(&readers, &mut last).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot read who logged out elsewhere: nothing is cached until it works",
                    );
                    return;
                }
            };
            drop(readers);
            let more = events.len() >= PAGE;
            for event in events {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
            if more {
                continue;
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = sender.closed() => return,
            }
        }
    });
    Ok(LoginEvents::new(receiver))
}

async fn last(readers: &SqlitePool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM kube_authn_events")
        .fetch_one(readers)
        .await
}

/// The events behind `last`. The one at `last` is read too: if it is gone, the table was trimmed or the file put back,
/// and events may be lost.
async fn next(readers: &SqlitePool, last: &mut i64) -> Result<Vec<LoginEvent>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, principal, issuer, client_id, login, number FROM kube_authn_events \
         WHERE id >= ? ORDER BY id LIMIT ?",
    )
    .bind(*last)
    .bind(i64::try_from(PAGE).unwrap_or(i64::MAX).saturating_add(1))
    .fetch_all(readers)
    .await?;
    let ids: Vec<i64> = rows
        .iter()
        .map(|row| row.try_get("id"))
        .collect::<Result<_, _>>()?;
    let lost = match ids.first() {
        Some(first) => *first != (*last).max(FIRST),
        None => *last >= FIRST,
    };
    if lost {
        *last = self::last(readers).await?;
        return Ok(vec![LoginEvent::Gap]);
    }
    let fresh = rows.iter().zip(&ids).filter(|(_, id)| **id > *last);
    let events = fresh
        // A row that none of us wrote says that something changed, and no more than that.
        .map(|(changed, _)| event(changed).unwrap_or(LoginEvent::Gap))
        .collect();
    *last = ids.last().copied().unwrap_or(*last);
    Ok(events)
}

fn event(changed: &SqliteRow) -> Result<LoginEvent, Error> {
    let key = row::key(changed)?;
    let login = row::login_id(&row::bytes(changed, "login")?)?;
    Ok(match changed.integer("number")? {
        Some(number) => LoginEvent::Changed {
            key,
            revision: Revision {
                login,
                number: u64::try_from(number).map_err(row::foreign)?,
            },
        },
        None => LoginEvent::Ended { key, login },
    })
}

/// SQLite counts from here.
const FIRST: i64 = 1;
/// Logout is seen by other processes within a second; a poll costs tens of microseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Events read at once, and how many a subscriber may leave unread before we wait for it.
const PAGE: usize = 256;
