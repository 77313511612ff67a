//! Hears of changes for a subscriber.

use std::time::Duration;

use ::redis::{
    Msg,
    aio::{PubSubSink, PubSubStream},
};
use futures_util::StreamExt;
use kube_authn_core::{Error, LoginEvent, LoginEvents, Result, Revision};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Inner,
    error::Failure,
    primary::CONNECT_TIMEOUT,
    row::{self, Wrong},
    url::Address,
};

/// A subscription from now on, over a connection of its own. It always reads: what the subscriber has no room for is
/// dropped, and a gap tells so, since a reader that waits would make Redis keep the messages in its memory.
pub(super) async fn subscribe(store: &Inner) -> Result<LoginEvents> {
    let subscription = Subscription::new(store)
        .await
        .map_err(|failure| failure.at(store.link.place()))?;
    let (sender, receiver) = mpsc::channel(UNREAD);
    tokio::spawn(subscription.forward(Subscriber { sender, gap: false }));
    Ok(LoginEvents::new(receiver))
}

struct Subscription {
    sink: PubSubSink,
    messages: PubSubStream,
    at: Address,
    primary: watch::Receiver<Option<Address>>,
}

impl Subscription {
    async fn new(store: &Inner) -> Result<Self, Failure> {
        store.checked().await?;
        let primary = store.link.primary();
        // The primary that commands go to now, found anew if need be.
        let at = store.link.connection().await?.address;
        let (mut sink, messages) = store.link.place().subscriber(&at).await?.split();
        let subscribed = timeout(CONNECT_TIMEOUT, sink.subscribe(&store.keys.events)).await;
        subscribed.map_err(|_| Failure::Timeout(CONNECT_TIMEOUT))??;
        Ok(Self {
            sink,
            messages,
            at,
            primary,
        })
    }

    /// Returns when the subscription is of no more use: broken, silent, or at a server that is the primary no more. The
    /// subscriber's ends with it: who does not hear what happens must not go on as if nothing did.
    async fn forward(mut self, mut subscriber: Subscriber) {
        let mut ticks = interval(PING_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.messages.next() => match message {
                    Some(message) => subscriber.tell(event(&message)),
                    None => return,
                },
                _ = ticks.tick() => {
                    subscriber.tell_gap();
                    let answer = timeout(CONNECT_TIMEOUT, self.sink.ping::<::redis::Value>()).await;
                    if !matches!(answer, Ok(Ok(_))) {
                        return;
                    }
                }
                moved = self.primary.changed() => {
                    let is_here = moved.is_ok() && self.primary.borrow().as_ref() == Some(&self.at);
                    if !is_here {
                        return;
                    }
                }
                () = subscriber.sender.closed() => return,
            }
        }
    }
}

struct Subscriber {
    sender: mpsc::Sender<LoginEvent>,
    /// Whether events were dropped that the subscriber does not know of.
    gap: bool,
}

impl Subscriber {
    fn tell(&mut self, event: Option<LoginEvent>) {
        let Some(event) = event else { return };
        self.tell_gap();
        if self.gap || self.sender.try_send(event).is_err() {
            self.gap = true;
        }
    }

    fn tell_gap(&mut self) {
        if self.gap && self.sender.try_send(LoginEvent::Gap).is_ok() {
            self.gap = false;
        }
    }
}

/// What a message says: `C` login number `:` member, or `E` login member, as the scripts write them.
fn event(message: &Msg) -> Option<LoginEvent> {
    match message.get_payload_bytes() {
        // Said when a store is opened, to see whether its user may.
        b"" => None,
        // What none of us wrote says that something changed, and no more than that.
        said => Some(parsed(said).unwrap_or(LoginEvent::Gap)),
    }
}

fn parsed(said: &[u8]) -> Result<LoginEvent, Error> {
    let (kind, rest) = said.split_at_checked(1).ok_or(Wrong::Value)?;
    let (login, rest) = rest.split_at_checked(16).ok_or(Wrong::Value)?;
    let login = row::login_id(login)?;
    match kind {
        b"E" => Ok(LoginEvent::Ended {
            key: row::key(rest)?,
            login,
        }),
        b"C" => {
            let colon = rest.iter().position(|byte| *byte == b':').ok_or(Wrong::Value)?;
            let number = row::parsed(&rest[..colon])?;
            Ok(LoginEvent::Changed {
                key: row::key(&rest[colon + 1..])?,
                revision: Revision { login, number },
            })
        }
        _ => Err(Wrong::Value.into()),
    }
}

/// How many events a subscriber may leave unread.
const UNREAD: usize = 1_024;
/// A connection that died without a word is found out within this and a time limit: logout must be seen soon.
const PING_INTERVAL: Duration = Duration::from_secs(1);
