//! A primary, its replica, and sentinels.

use super::{REPLICATION, Redis, line, user};
use crate::keeper::free_port;

/// A primary, its replica, and three sentinels that watch them.
#[derive(Debug)]
pub struct Sentinels {
    servers: [Redis; 2],
    sentinels: [Redis; 3],
    primary: usize,
}

impl Sentinels {
    /// The name of the service.
    pub const SERVICE: &'static str = "portal-logins";

    /// Starts all of them. A primary that is gone for 300 ms is replaced.
    ///
    /// # Panics
    /// When they don't start or don't find each other, with a log; so do all methods.
    pub fn start() -> Self {
        let primary = Redis::start_with(REPLICATION);
        let of_primary = format!("127.0.0.1 {}", primary.port);
        let replica = [REPLICATION, &[("replicaof", &of_primary)]].concat();
        let replica = Redis::start_with(&replica);
        replica.wait("its primary", |replica| {
            replica
                .run(&["INFO", "replication"])
                .contains("master_link_status:up")
        });
        let sentinels = [(); 3].map(|()| {
            let watch = |setting: &str| format!("sentinel {setting}\n");
            let (name, port) = (Self::SERVICE, primary.port);
            let settings = [
                line("bind", "127.0.0.1"),
                watch(&format!("monitor {name} 127.0.0.1 {port} 2")),
                watch(&format!("down-after-milliseconds {name} 300")),
                watch(&format!("failover-timeout {name} 2000")),
            ];
            Redis::of(free_port(), &settings.concat(), &[], &["--sentinel"])
        });
        for sentinel in &sentinels {
            sentinel.wait("the others", |sentinel| {
                let known = sentinel.run(&["SENTINEL", "MASTER", Self::SERVICE]);
                let known: Vec<&str> = known.lines().collect();
                let count = |name: &str| {
                    known
                        .iter()
                        .position(|line| *line == name)
                        .map(|at| known[at + 1])
                };
                count("num-slaves") == Some("1") && count("num-other-sentinels") == Some("2")
            });
        }
        Self {
            servers: [primary, replica],
            sentinels,
            primary: 0,
        }
    }

    /// `redis+sentinel://user:password@sentinel,sentinel,sentinel/service`.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(Redis::address).collect();
        format!(
            "redis+sentinel://{}@{}/{}",
            user(),
            hosts.join(","),
            Self::SERVICE
        )
    }

    /// The server that is the primary since the last [`Sentinels::wait_for_failover`].
    pub fn primary(&mut self) -> &mut Redis {
        &mut self.servers[self.primary]
    }

    /// One of the sentinels.
    pub fn sentinel(&mut self, index: usize) -> &mut Redis {
        &mut self.sentinels[index]
    }

    /// Waits until the other server is the primary, and takes writes.
    pub fn wait_for_failover(&mut self) {
        self.primary = 1 - self.primary;
        let primary = &self.servers[self.primary];
        primary.wait("its promotion", Redis::is_primary);
    }

    /// Lets the sentinels swap primary and replica while both are there, and waits until it is done.
    pub fn swap(&mut self) {
        self.sentinels[0].run(&["SENTINEL", "FAILOVER", Self::SERVICE]);
        self.wait_for_failover();
    }
}
