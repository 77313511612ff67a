//! Hears of changes for a subscriber.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use ::redis::{
    Cmd, Msg, Value,
    aio::{PubSubSink, PubSubStream},
};
use futures_util::StreamExt;
use kube_authn_core::{Error, LoginEvent, LoginEvents, LoginId, Result, Revision};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Inner,
    connection::{ConnectionId, Request},
    error::Failure,
    primary::{CONNECT_TIMEOUT, in_time},
    row::{self, Wrong},
};

/// A subscription from now on, over a connection of its own. It always reads: what the subscriber has no room for is
/// dropped, and a gap tells so, since a reader that waits would make Redis keep the messages in its memory.
pub(super) async fn subscribe(store: &Arc<Inner>) -> Result<LoginEvents> {
    let subscription = Subscription::new(store, &proof()?)
        .await
        .map_err(|failure| failure.at(store.link.place()))?;
    let (sender, receiver) = mpsc::channel(UNREAD);
    tokio::spawn(subscription.forward(Subscriber { sender, gap: false }));
    Ok(LoginEvents::new(receiver))
}

struct Subscription {
    sink: PubSubSink,
    messages: PubSubStream,
    /// Subscriptions keep no store open.
    store: Weak<Inner>,
    /// The connection of commands whose server this one was made to.
    beside: ConnectionId,
    latest: watch::Receiver<Option<ConnectionId>>,
}

impl Subscription {
    async fn new(store: &Arc<Inner>, proof: &[u8]) -> Result<Self, Failure> {
        store.reached().await?;
        let latest = store.link.latest();
        let connection = store.link.connection().await?;
        let subscriber = store.link.place().subscriber(&connection.address).await?;
        let (mut sink, mut messages) = subscriber.split();
        in_time(async { Ok(sink.subscribe(&store.keys().events).await?) }).await?;
        store.say(proof).await?;
        match timeout(CONNECT_TIMEOUT, hears(&mut messages, proof)).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(Failure::Unheard),
        }
        Ok(Self {
            sink,
            messages,
            store: Arc::downgrade(store),
            beside: connection.id(),
            latest,
        })
    }

    /// Returns when the subscription is of no more use: broken, silent, or maybe not at the server that commands go to,
    /// which is no more the primary, or which a new connection reached. The subscriber's ends with it: who does not hear
    /// what happens must not go on as if nothing did.
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
                    if self.prove().await.is_err() {
                        return;
                    }
                }
                moved = self.latest.changed() => {
                    let is_beside = moved.is_ok() && self.latest.borrow().as_ref() == Some(&self.beside);
                    if !is_beside {
                        return;
                    }
                }
                () = subscriber.sender.closed() => return,
            }
        }
    }

    /// Whether the subscription still has an answer, and commands a primary.
    async fn prove(&mut self) -> Result<(), Failure> {
        let store = self.store.upgrade().ok_or(Failure::Closed)?;
        let ping = async { Ok(self.sink.ping::<Value>().await?) };
        in_time(async { tokio::try_join!(ping, store.ask_primary()) }).await?;
        Ok(())
    }
}

/// What no other process says: what others say is heard at another server, too, if they are there.
fn proof() -> Result<Vec<u8>> {
    Ok([b"N", &LoginId::random()?.as_bytes()[..]].concat())
}

/// Waits until this is told. Nobody is subscribed yet: what comes before is nobody's.
async fn hears(messages: &mut PubSubStream, proof: &[u8]) -> bool {
    while let Some(message) = messages.next().await {
        if message.get_payload_bytes() == proof {
            return true;
        }
    }
    false
}

impl Inner {
    /// Says it at the primary. A subscription that does not hear it is at another server, or behind a proxy that keeps
    /// messages back.
    async fn say(&self, proof: &[u8]) -> Result<(), Failure> {
        let mut publish = Cmd::new();
        publish.arg("PUBLISH").arg(&self.keys().events).arg(proof);
        self.link.asked::<Value>(Request::Read(&publish)).await?;
        Ok(())
    }

    /// Any question will do: the primary alone answers it.
    async fn ask_primary(&self) -> Result<(), Failure> {
        let mut question = Cmd::new();
        question.arg("GET").arg(&self.keys().layout);
        self.link.asked::<Value>(Request::Read(&question)).await?;
        Ok(())
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
    heard(message.get_payload_bytes())
}

fn heard(said: &[u8]) -> Option<LoginEvent> {
    match said {
        // Said when a connection is made, to see whether the user may, and when somebody subscribes.
        b"" | [b'N', ..] => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_of_a_subscription_is_its_own_and_no_event_for_anybody() {
        let (one, other) = (proof().expect("random"), proof().expect("random"));

        assert_ne!(one, other);
        assert_eq!(heard(&one), None);
        assert_eq!(heard(b""), None);
        assert_eq!(heard(b"?"), Some(LoginEvent::Gap));
    }
}
