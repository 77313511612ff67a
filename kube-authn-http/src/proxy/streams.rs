//! How many streams one caller may hold open: each holds connections for as long as its caller likes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube_authn_core::{Error, ErrorKind, Principal, PrincipalName, Result, Way};

/// The open streams of each principal. Clones share the counts.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: Count,
    /// An entry vanishes with its last stream.
    open: Mutex<HashMap<PrincipalName, Count>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// Tunnels included.
    streams: usize,
    tunnels: usize,
}

/// One open stream, for as long as this lives.
#[derive(Debug)]
pub(super) struct OpenStream {
    streams: Streams,
    principal: PrincipalName,
    is_tunnel: bool,
}

impl Default for Streams {
    fn default() -> Self {
        Self::new(MAX_STREAMS, MAX_TUNNELS)
    }
}

impl Streams {
    pub(super) fn new(streams: usize, tunnels: usize) -> Self {
        Self(Arc::new(Shared {
            most: Count { streams, tunnels },
            open: Mutex::default(),
        }))
    }

    /// Counts one more; a short call is none. By name alone: groups that change make nobody somebody else.
    ///
    /// # Errors
    /// `RateLimited` if the principal has as many as it may; it isn't counted then.
    pub(super) fn open(&self, principal: &Principal, way: Way) -> Result<Option<OpenStream>> {
        let is_tunnel = match way {
            Way::Short => return Ok(None),
            Way::Long => false,
            Way::Upgrade => true,
        };
        let most = self.0.most;
        let mut open = self.lock();
        let count = open.get(principal.name()).copied().unwrap_or_default();
        if is_tunnel && count.tunnels >= most.tunnels {
            let what = "connections of exec, attach and port-forward";
            return Err(too_many(principal, most.tunnels, what));
        }
        if count.streams >= most.streams {
            let what = "watches, followed logs, and connections of exec, attach and port-forward";
            return Err(too_many(principal, most.streams, what));
        }
        let count = Count {
            streams: count.streams + 1,
            tunnels: count.tunnels + usize::from(is_tunnel),
        };
        open.insert(principal.name().clone(), count);
        Ok(Some(OpenStream {
            streams: self.clone(),
            principal: principal.name().clone(),
            is_tunnel,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PrincipalName, Count>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        if let Some(count) = open.get_mut(&self.principal) {
            count.streams = count.streams.saturating_sub(1);
            count.tunnels = count.tunnels.saturating_sub(usize::from(self.is_tunnel));
            if count.streams == 0 {
                open.remove(&self.principal);
            }
        }
    }
}

fn too_many(principal: &Principal, most: usize, what: &str) -> Error {
    let text =
        format!("{principal} may have {most} {what} open at once, and has them: close some and try again");
    Error::new(ErrorKind::RateLimited, text).with_retry_after(RETRY_AFTER)
}

/// A dashboard watches some 60 kinds of objects per cluster, of a few clusters at once. As many over HTTP/1.1 take 512 file
/// descriptors, less than a hundredth of the 65,536 that the systemd unit allows.
const MAX_STREAMS: usize = 256;
/// Somebody's terminals, and the connections that a browser opens through a few forwarded ports (port-forward takes one for all
/// of a port's).
const MAX_TUNNELS: usize = 64;
/// client-go (`k8s.io/client-go/rest/with_retry.go`) asks ten times in such a rhythm before kubectl tells its user.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use kube_authn_core::EntityRef;

    use super::*;

    fn user(name: &str) -> Principal {
        Principal::user(EntityRef::parse(&format!("user:default/{name}")).expect("a reference"))
    }

    #[test]
    fn memory_never_grows_with_streams_that_ended_or_were_refused() {
        let streams = Streams::new(2, 1);
        let open = |name, way| streams.open(&user(name), way);

        let tunnel = open("alice", Way::Upgrade).expect("allowed").expect("counted");
        assert!(open("alice", Way::Upgrade).is_err());
        let watch = open("alice", Way::Long).expect("allowed").expect("counted");
        assert!(open("alice", Way::Long).is_err());
        let other = open("bob", Way::Long).expect("allowed").expect("counted");
        for _ in 0..1_000 {
            assert!(open("alice", Way::Short).expect("allowed").is_none());
        }

        drop(tunnel);
        drop(open("alice", Way::Upgrade).expect("there is room again"));
        assert_eq!(streams.lock().len(), 2);
        drop((watch, other));
        assert_eq!(streams.lock().len(), 0);
    }

    #[test]
    fn group_or_token_of_another_login_never_gives_a_user_more_streams() {
        let streams = Streams::new(1, 1);
        let of_group = |group| user("alice").with_groups([group]).expect("a group");
        let _first = streams.open(&of_group("one"), Way::Long).expect("allowed");

        let more = streams.open(&of_group("other"), Way::Long);

        let error = more.expect_err("refused");
        assert_eq!(
            (error.kind(), error.retry_after()),
            (ErrorKind::RateLimited, Some(RETRY_AFTER))
        );
    }
}
