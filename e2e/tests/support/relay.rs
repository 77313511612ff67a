//! A TCP relay in front of the API server that counts the connections through it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::net::{TcpListener, TcpStream};

/// Passes bytes on and counts. Everything ends with the runtime.
pub(crate) struct Relay {
    port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

impl Relay {
    /// A relay to `server`, `https://host:port`.
    pub(crate) async fn to(server: &str) -> Self {
        let target = server.trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts::default());
        tokio::spawn({
            let counts = counts.clone();
            async move {
                while let Ok((mut near, _)) = listener.accept().await {
                    let (counts, target) = (counts.clone(), target.clone());
                    counts.accepted.fetch_add(1, Ordering::SeqCst);
                    counts.open.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(async move {
                        if let Ok(mut far) = TcpStream::connect(target).await {
                            // As the sockets themselves would be: or the figures tell of the relay.
                            let _ = (near.set_nodelay(true), far.set_nodelay(true));
                            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                        }
                        counts.open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Self { port, counts }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// Connections now.
    pub(crate) fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }
}
