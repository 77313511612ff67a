//! How many connections there may be, in all and from one address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube_authn_clusters::PeerRange;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places for connections.
#[derive(Debug)]
pub(super) struct Places {
    all: u32,
    free: Arc<Semaphore>,
    peers: Arc<Peers>,
}

#[derive(Debug)]
struct Peers {
    most: u32,
    /// They bring everybody's connections.
    gateways: Vec<PeerRange>,
    /// An entry vanishes with its last connection, so there are never more than places.
    open: Mutex<HashMap<IpAddr, Count>>,
}

#[derive(Debug, Default)]
struct Count {
    open: u32,
    /// Whether the log has it that this peer wants more.
    told: bool,
}

/// A place that is free still.
#[derive(Debug)]
pub(super) struct Free(Option<OwnedSemaphorePermit>, Arc<Peers>);

/// The place of one connection, taken for as long as this lives.
#[derive(Debug)]
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    /// The address that it counts for, if it counts.
    counted: Option<(IpAddr, Arc<Peers>)>,
}

impl Places {
    /// So many in all, so many for one address that is neither this machine's nor a gateway's.
    pub(super) fn new(all: u32, most: u32, gateways: Vec<PeerRange>) -> Self {
        Self {
            all,
            free: Arc::new(Semaphore::new(all as usize)),
            peers: Arc::new(Peers {
                most,
                gateways,
                open: Mutex::default(),
            }),
        }
    }

    /// Waits until there is a place.
    pub(super) async fn free(&self) -> Free {
        // Nobody closes the semaphore.
        let permit = self.free.clone().acquire_owned().await.ok();
        Free(permit, self.peers.clone())
    }

    /// Returns when no place is taken.
    pub(super) async fn all_free(&self) {
        let _ = self.free.acquire_many(self.all).await;
    }
}

impl Free {
    /// Takes it for this peer; `None` if its address has as many as it may.
    pub(super) fn take(self, peer: IpAddr) -> Option<Place> {
        let Self(permit, peers) = self;
        let peer = peer.to_canonical();
        let counts = !peer.is_loopback() && !peers.gateways.iter().any(|range| range.contains(peer));
        let counted = match counts {
            true => {
                let holder = holder(peer);
                peers.count(holder, peer).then_some((holder, peers))?.into()
            }
            false => None,
        };
        Some(Place {
            _permit: permit,
            counted,
        })
    }
}

impl Peers {
    /// Whether there was room for one more.
    fn count(&self, holder: IpAddr, peer: IpAddr) -> bool {
        let mut open = self.lock();
        let count = open.entry(holder).or_default();
        if count.open < self.most {
            count.open += 1;
            return true;
        }
        if !count.told {
            count.told = true;
            tracing::warn!(%peer, most = self.most, "a peer has as many connections as one may: more are closed");
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Count>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((holder, peers)) = &self.counted else {
            return;
        };
        let mut open = peers.lock();
        if let Some(count) = open.get_mut(holder) {
            count.open = count.open.saturating_sub(1);
            if count.open == 0 {
                open.remove(holder);
            }
        }
    }
}

/// Who an address belongs to: of IPv6, each machine has 2^64 (RFC 4291 section 2.5.4).
fn holder(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    async fn take(places: &Places, peer: &str) -> Option<Place> {
        places.free().await.take(address(peer))
    }

    #[tokio::test]
    async fn one_address_never_takes_all_places() {
        let places = Places::new(10, 2, Vec::new());
        let kept = [
            take(&places, "203.0.113.1").await,
            take(&places, "::ffff:203.0.113.1").await,
        ];
        let other = [
            take(&places, "2001:db8::1").await,
            take(&places, "2001:db8::ffff:2").await,
        ];

        assert!(kept.iter().chain(&other).all(Option::is_some));
        for full in ["203.0.113.1", "::ffff:203.0.113.1", "2001:db8::3"] {
            assert!(take(&places, full).await.is_none(), "{full}");
        }
        for room in ["203.0.113.2", "2001:db8:0:1::1"] {
            assert!(take(&places, room).await.is_some(), "{room}");
        }
        // A refusal keeps no place.
        assert_eq!(places.free.available_permits(), 6);
    }

    #[tokio::test]
    async fn gateway_and_this_machine_never_count_as_one_client() {
        let ranges = ["10.1.0.0/16", "fd00::/8"].map(|range| PeerRange::parse(range).expect("a range"));
        let places = Places::new(100, 1, ranges.into());
        let mut kept = Vec::new();

        for _ in 0..5 {
            for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.1.2.3", "fd00::7"] {
                kept.push(take(&places, peer).await.expect(peer));
            }
        }

        assert_eq!(places.peers.lock().len(), 0);
        let _other = take(&places, "10.2.0.1").await.expect("the first");
        assert!(take(&places, "10.2.0.1").await.is_none());
    }

    #[tokio::test]
    async fn memory_never_grows_with_connections_that_ended() {
        let places = Places::new(3, 1, Vec::new());
        for number in 0..1_000_u32 {
            let peer = std::net::Ipv4Addr::from_bits(0xc000_0000 + number).into();
            let place = places.free().await.take(peer).expect("a place");
            assert!(places.free().await.take(peer).is_none());
            assert_eq!(places.peers.lock().len(), 1);
            drop(place);
        }

        assert_eq!(
            (places.peers.lock().len(), places.free.available_permits()),
            (0, 3)
        );
    }
}
