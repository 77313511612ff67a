//! The one connection that commands go over, made anew whenever it is of no more use.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redis::FromRedisValue;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{sync::watch, time::timeout};

use super::{
    connection::{Connection, ConnectionId, Request},
    error::Failure,
    primary::Place,
};

/// Commands of all callers share one connection. If it is lost, the next caller looks for the primary, and all callers
/// wait for that one attempt; nobody tries in the background.
#[derive(Debug)]
pub(super) struct Link {
    place: Arc<Place>,
    current: Mutex<State>,
    /// The last connection there was: subscriptions follow it.
    latest: watch::Sender<Option<ConnectionId>>,
}

#[derive(Debug)]
enum State {
    Open(Option<Attempt>),
    Closed,
}

/// An attempt that is under way, or what became of it.
type Attempt = Shared<BoxFuture<'static, Result<Connection, Failure>>>;

impl Link {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place: Arc::new(place),
            current: Mutex::new(State::Open(None)),
            latest: watch::Sender::new(None),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn latest(&self) -> watch::Receiver<Option<ConnectionId>> {
        self.latest.subscribe()
    }

    /// Closes the connection; every call after that fails.
    pub(super) fn close(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = State::Closed;
    }

    pub(super) async fn asked<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, Failure> {
        for pause in PAUSES {
            match self.once(request).await {
                Err(failure) if request.may_be_repeated_after(&failure) => tokio::time::sleep(pause).await,
                answer => return answer,
            }
        }
        self.once(request).await
    }

    async fn once<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, Failure> {
        let connection = self.connection().await?;
        let failure = match timeout(ANSWER_TIMEOUT, connection.asked(request)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Timeout(ANSWER_TIMEOUT),
        };
        if failure.ends_connection() {
            self.forget(&connection);
        }
        Err(failure)
    }

    /// The connection there is, or what comes of the attempt to make one.
    pub(super) async fn connection(&self) -> Result<Connection, Failure> {
        let attempt = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            let State::Open(current) = &mut *current else {
                return Err(Failure::Closed);
            };
            let attempt = match current.as_ref().map(|attempt| (attempt, attempt.peek())) {
                Some((_, Some(Ok(connection)))) if !connection.is_closed() => return Ok(connection.clone()),
                Some((attempt, None)) => attempt.clone(),
                _ => self.attempt(),
            };
            current.insert(attempt).clone()
        };
        let connection = attempt.await?;
        let id = Some(connection.id());
        self.latest.send_if_modified(|latest| {
            let is_new = *latest != id;
            *latest = id;
            is_new
        });
        Ok(connection)
    }

    /// A task of its own: a caller that stops waiting stops nobody else's attempt.
    fn attempt(&self) -> Attempt {
        let place = Arc::clone(&self.place);
        let attempt = tokio::spawn(async move { place.connect().await });
        async move {
            match attempt.await {
                Ok(connection) => connection,
                // The runtime is shutting down.
                Err(_) => Err(Failure::Closed),
            }
        }
        .boxed()
        .shared()
    }

    fn forget(&self, connection: &Connection) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Open(attempt) = &mut *current {
            let is_current = attempt.as_ref().and_then(Shared::peek);
            if is_current.is_some_and(|current| {
                current
                    .as_ref()
                    .is_ok_and(|current| current.id() == connection.id())
            }) {
                *attempt = None;
            }
        }
    }
}

/// Before a request goes to another node. For a moment after a handover the other nodes still name the former primary.
const PAUSES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
];

/// Redis answers within milliseconds, after a save that waits for the disk within tens of them. One that has not answered
/// by now has vanished or stalls, and the next caller finds out where the primary is.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_500);
