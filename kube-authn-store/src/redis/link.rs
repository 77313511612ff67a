//! The one connection that commands go over, made anew whenever it is of no more use.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redis::{Cmd, FromRedisValue, RedisResult, ScriptInvocation, aio::MultiplexedConnection};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::{sync::watch, time::timeout};

use super::{
    error::Failure,
    primary::{Connection, Place},
    url::Address,
};

/// Commands of all callers share one connection. If it is lost, the next caller looks for the primary, and all callers
/// wait for that one attempt; nobody tries in the background.
#[derive(Debug)]
pub(super) struct Link {
    place: Arc<Place>,
    current: Mutex<State>,
    /// Where the primary was last seen: subscriptions follow it.
    primary: watch::Sender<Option<Address>>,
}

#[derive(Debug)]
enum State {
    Open(Option<Attempt>),
    Closed,
}

/// An attempt that is under way, or what became of it.
type Attempt = Shared<BoxFuture<'static, Result<Connection, Failure>>>;

/// What is sent.
#[derive(Clone, Copy)]
pub(super) enum Request<'a> {
    /// Changes nothing: it is sent again if it is unknown what became of it.
    Read(&'a Cmd),
    /// As [`Request::Read`].
    ReadScript(&'a ScriptInvocation<'a>),
    /// Is sent again only if Redis said that it did nothing.
    WriteScript(&'a ScriptInvocation<'a>),
}

impl Link {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place: Arc::new(place),
            current: Mutex::new(State::Open(None)),
            primary: watch::Sender::new(None),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn primary(&self) -> watch::Receiver<Option<Address>> {
        self.primary.subscribe()
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
        let answer = request.send(connection.commands.clone());
        let failure = match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Failure::from(error),
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
        self.primary.send_if_modified(|primary| {
            let moved = primary.as_ref() != Some(&connection.address);
            *primary = Some(connection.address.clone());
            moved
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
            if is_current
                .is_some_and(|current| current.as_ref().is_ok_and(|current| current.is_same(connection)))
            {
                *attempt = None;
            }
        }
    }
}

impl Request<'_> {
    async fn send<T: FromRedisValue>(self, mut connection: MultiplexedConnection) -> RedisResult<T> {
        match self {
            Self::Read(command) => command.query_async(&mut connection).await,
            Self::ReadScript(script) | Self::WriteScript(script) => {
                script.invoke_async(&mut connection).await
            }
        }
    }

    fn may_be_repeated_after(self, failure: &Failure) -> bool {
        match self {
            Self::Read(_) | Self::ReadScript(_) => failure.is_elsewhere() || failure.is_broken(),
            Self::WriteScript(_) => failure.is_elsewhere(),
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
