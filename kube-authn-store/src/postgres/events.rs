//! Listens to the notifications that the triggers send.

use std::{sync::Arc, time::Duration};

use kube_authn_core::{
    ClientId, EntityRef, Issuer, LoginEvent, LoginEvents, LoginId, Result, Revision, TokenKey,
};
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::timeout,
};

use super::{Inner, PostgresTokenStore, connections::Connections, error::PostgresError};
use crate::row;

/// The listening connection of a process, shared by its subscriptions; there is none while nobody subscribes.
#[derive(Debug, Default)]
pub(super) struct Hub(tokio::sync::Mutex<Option<broadcast::WeakSender<LoginEvent>>>);

/// A subscription from now on. It ends when the listening connection does: what happens until the next one is lost, and
/// only whoever subscribes again knows from when on it hears everything.
pub(super) async fn subscribe(store: &PostgresTokenStore) -> Result<LoginEvents> {
    store.ready().await?;
    let receiver = receiver(&store.0)
        .await
        .map_err(|error| error.at(&store.0.connections.address.place))?;
    let (sender, events) = mpsc::channel(UNREAD);
    tokio::spawn(forward(receiver, sender));
    Ok(LoginEvents::new(events))
}

/// Makes sure that what is said over one connection is heard on another.
pub(super) async fn prove_once(inner: &Inner) -> Result<(), PostgresError> {
    Ear::new(inner).await.map(drop)
}

async fn receiver(inner: &Arc<Inner>) -> Result<broadcast::Receiver<LoginEvent>, PostgresError> {
    let mut hub = inner.hub.0.lock().await;
    if let Some(sender) = hub.as_ref().and_then(broadcast::WeakSender::upgrade) {
        return Ok(sender.subscribe());
    }
    let ear = Ear::new(inner).await?;
    let (sender, receiver) = broadcast::channel(UNREAD);
    *hub = Some(sender.downgrade());
    let closed = inner.open.subscribe();
    let connections = Arc::clone(&inner.connections);
    tokio::spawn(async move {
        ear.pump(sender, closed).await;
        // What ended this connection has most likely ended the others.
        connections.forget_idle();
    });
    Ok(receiver)
}

/// A connection that hears everything from now on.
struct Ear {
    listener: PgListener,
    channel: String,
    connections: Arc<Connections>,
    primary: watch::Receiver<usize>,
}

impl Ear {
    async fn new(inner: &Inner) -> Result<Self, PostgresError> {
        let connections = Arc::clone(&inner.connections);
        let found = connections.read(|| sqlx::query(CHANNEL)).await?;
        let Some(channel) = found
            .first()
            .and_then(|row| row::Columns::text(row, "channel").ok())
        else {
            return Err(PostgresError::Closed);
        };
        let (server, primary) = connections.primary();
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_LIMIT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(server);
        let listening = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.ignore_pool_close_event(true);
            // A connection made behind our back would hide what was lost.
            listener.eager_reconnect(false);
            listener.listen(channel).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        let mut ear = Self {
            listener: connections.in_time(CONNECT_LIMIT, listening).await?,
            channel: channel.to_owned(),
            connections,
            primary,
        };
        // Nobody is subscribed yet: what is heard meanwhile is nobody's.
        ear.prove(CONNECT_LIMIT, |_| {}).await?;
        Ok(ear)
    }

    /// Says nothing over another connection and waits until that is heard, passing on what comes before it. A pooler that
    /// hands out its connections by transaction accepts `LISTEN`, answers every statement, and delivers nothing.
    async fn prove(
        &mut self,
        limit: Duration,
        mut tell: impl FnMut(LoginEvent),
    ) -> Result<(), PostgresError> {
        let Self {
            listener,
            channel,
            connections,
            ..
        } = self;
        let said = connections.read(|| sqlx::query("SELECT pg_notify($1, '')").bind(channel.as_str()));
        timeout(limit, said)
            .await
            .map_err(|_| PostgresError::TimedOut(limit))??;
        let heard = async {
            loop {
                match listener.try_recv().await? {
                    Some(heard) if heard.payload().is_empty() => return Ok(()),
                    Some(heard) => tell(event(heard.payload()).unwrap_or(LoginEvent::Gap)),
                    None => return Err(PostgresError::Closed),
                }
            }
        };
        timeout(limit, heard)
            .await
            .unwrap_or(Err(PostgresError::Unheard(limit)))
    }

    /// Passes on what is heard, until the connection breaks, another server is the primary, the store is gone, or nobody
    /// listens any more.
    async fn pump(mut self, sender: broadcast::Sender<LoginEvent>, mut open: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                heard = self.listener.try_recv() => match heard {
                    Ok(Some(heard)) if heard.payload().is_empty() => {}
                    Ok(Some(heard)) => {
                        let _ = sender.send(event(heard.payload()).unwrap_or(LoginEvent::Gap));
                    }
                    Ok(None) | Err(_) => return,
                },
                () = async { drop(open.wait_for(|open| !open).await) } => return,
                _ = self.primary.changed() => return,
                // Whatever is heard proves as much, also what another process says for a proof of its own.
                () = tokio::time::sleep(SILENCE) => {
                    let tell = |event| drop(sender.send(event));
                    if self.prove(ANSWER_LIMIT, tell).await.is_err() {
                        return;
                    }
                }
            }
            if sender.receiver_count() == 0 {
                return;
            }
        }
    }
}

async fn forward(mut receiver: broadcast::Receiver<LoginEvent>, sender: mpsc::Sender<LoginEvent>) {
    loop {
        let heard = tokio::select! {
            heard = receiver.recv() => heard,
            () = sender.closed() => return,
        };
        let event = match heard {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => LoginEvent::Gap,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

/// What a trigger wrote; `None` for anything else.
fn event(payload: &str) -> Option<LoginEvent> {
    let (kind, principal, issuer, client_id, login, number): (String, String, String, String, String, u64) =
        serde_json::from_str(payload).ok()?;
    let key = TokenKey {
        principal: EntityRef::parse(&principal).ok()?,
        issuer: Issuer::new(issuer).ok()?,
        client_id: ClientId::new(client_id).ok()?,
    };
    let login = LoginId::from_bytes(u128::from_str_radix(&login, 16).ok()?.to_be_bytes());
    match kind.as_str() {
        "changed" => Some(LoginEvent::Changed {
            key,
            revision: Revision { login, number },
        }),
        "ended" => Some(LoginEvent::Ended { key, login }),
        _ => None,
    }
}

/// As the trigger names it: the name of a schema may be longer than that of a channel.
const CHANNEL: &str = "SELECT 'kube_authn_' || md5(nspname) AS channel FROM pg_namespace \
    WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('kube_authn_logins'))";

/// A connection that has been silent for so long has to prove that it hears: logout must be seen soon, and one that a
/// firewall forgot says nothing.
const SILENCE: Duration = Duration::from_secs(1);
/// A server on the same network answers within milliseconds; who is subscribed to a slower one subscribes again.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// For a new connection, which has to log in, and for its proof.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Events that a subscriber may leave unread before it has to start over.
const UNREAD: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_trigger_wrote_is_no_event() {
        let changed =
            r#"["changed", "user:default/alice", "https://i/", "c", "000102030405060708090a0b0c0d0e0f", 7]"#;
        let Some(LoginEvent::Changed { revision, .. }) = event(changed) else {
            panic!("an event of ours");
        };
        assert_eq!(revision.number, 7);
        assert_eq!(revision.login.to_string(), "000102030405060708090a0b0c0d0e0f");

        for foreign in [
            "gap",
            "",
            "[]",
            &changed.replace("changed", "moved"),
            &changed.replace("7]", "-7]"),
        ] {
            assert_eq!(event(foreign), None, "{foreign}");
        }
    }
}
