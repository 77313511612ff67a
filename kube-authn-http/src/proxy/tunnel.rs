//! Connections that leave HTTP: exec, attach, port-forward over WebSocket and SPDY.

use std::io;

use http::{HeaderMap, HeaderValue, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use kube_authn_core::{Error, ErrorKind, Result};
use tokio::sync::watch;
use tracing::{Instrument, Span, debug};

use super::{hangup::Hangup, streams::OpenStream};

/// The tunnels that are open. Clones share the count.
#[derive(Clone, Debug)]
pub(super) struct Tunnels(watch::Sender<usize>);

impl Default for Tunnels {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Tunnels {
    pub(super) fn open(&self) -> usize {
        *self.0.borrow()
    }

    pub(super) async fn closed(&self) {
        // The sender lives in `self`.
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Copies bytes both ways until both sides have ended, or one breaks; a side that ends is told to the other, which
    /// may go on. At the cut both are closed, even if neither side reads what the other sent. `stream` counts until then.
    pub(super) fn connect(
        &self,
        client: ClientSide,
        server: OnUpgrade,
        cut: impl Future<Output = Error> + Send + 'static,
        stream: Option<OpenStream>,
    ) {
        let open = (stream, Open::new(self.clone()));
        let copy = async move {
            tokio::select! {
                biased;
                why = cut => {
                    debug!(%why, "tunnel cut");
                    if let Some(hangup) = client.hangup {
                        hangup.call();
                    }
                }
                outcome = copy(client.connection, server) => match outcome {
                    Ok((sent, received)) => debug!(sent, received, "tunnel closed"),
                    Err(error) => debug!(%error, "tunnel broke"),
                },
            }
            drop(open);
        };
        tokio::spawn(copy.instrument(Span::current()));
    }
}

async fn copy(client: OnUpgrade, server: OnUpgrade) -> io::Result<(u64, u64)> {
    let mut server = TokioIo::new(server.await.map_err(io::Error::other)?);
    let mut client = TokioIo::new(client.await.map_err(io::Error::other)?);
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES).await
}

struct Open(Tunnels);

impl Open {
    fn new(tunnels: Tunnels) -> Self {
        tunnels.0.send_modify(|open| *open += 1);
        Self(tunnels)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.send_modify(|open| *open -= 1);
    }
}

/// A client that wants its connection to leave HTTP.
#[derive(Debug)]
pub(super) struct ClientSide {
    connection: OnUpgrade,
    hangup: Option<Hangup>,
    /// Its `Upgrade` lines.
    asked: Vec<HeaderValue>,
}

impl ClientSide {
    pub(super) fn new(connection: OnUpgrade, hangup: Option<Hangup>, headers: &HeaderMap) -> Self {
        let asked = headers.get_all(header::UPGRADE).iter().cloned().collect();
        Self {
            connection,
            hangup,
            asked,
        }
    }

    /// The header lines of a 101 for the client: the API server's, less what says anything about a body.
    ///
    /// # Errors
    /// `UpstreamUnreachable` unless the API server switches to a protocol that was asked for.
    pub(super) fn switched(&self, mut answer: HeaderMap) -> Result<HeaderMap> {
        let chosen = answer
            .get(header::UPGRADE)
            .filter(|chosen| self.asked_for(chosen.as_bytes()))
            .cloned()
            .ok_or_else(|| {
                let text = "the API server switched to a protocol that nobody asked for";
                Error::new(ErrorKind::UpstreamUnreachable, text)
            })?;
        for name in [
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::TRAILER,
        ] {
            answer.remove(name);
        }
        answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        answer.insert(header::UPGRADE, chosen);
        Ok(answer)
    }

    fn asked_for(&self, protocol: &[u8]) -> bool {
        self.asked
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .any(|asked| asked.trim_ascii().eq_ignore_ascii_case(protocol))
    }
}

/// Per direction. A frame of exec is at most 32 KiB.
const BUFFER_BYTES: usize = 16 * 1024;
