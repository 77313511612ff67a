//! A cluster with one replica.

use super::{REPLICATION, Redis, user};
use crate::keeper::free_port;

/// Three primaries with a third of the slots each, and a replica of the one that has [`Cluster::KEY`].
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Redis>,
    primary: usize,
}

impl Cluster {
    /// A key of a store with the default prefix.
    pub const KEY: &'static str = "{kube-authn}:logins";

    /// Starts the nodes and joins them. A node that is gone for half a second is replaced.
    ///
    /// # Panics
    /// When they don't start or don't find each other, with a log; so do all methods.
    pub fn start() -> Self {
        let nodes: Vec<Redis> = (0..4)
            .map(|_| {
                let bus = free_port().to_string();
                Redis::start_with(
                    &[
                        REPLICATION,
                        &[
                            ("cluster-enabled", "yes"),
                            ("cluster-port", &bus),
                            ("cluster-node-timeout", "500"),
                        ],
                    ]
                    .concat(),
                )
            })
            .collect();
        for (node, range) in nodes.iter().zip(SLOTS) {
            node.run(&[
                "CLUSTER",
                "ADDSLOTSRANGE",
                &range[0].to_string(),
                &range[1].to_string(),
            ]);
        }
        for (index, node) in nodes.iter().enumerate() {
            node.run(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for node in &nodes[1..] {
            let info = node.run(&["CONFIG", "GET", "cluster-port"]);
            let bus = info.lines().last().unwrap_or_default();
            nodes[0].run(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string(), bus]);
        }
        let slot: u16 = nodes[0]
            .run(&["CLUSTER", "KEYSLOT", Self::KEY])
            .parse()
            .expect("a slot");
        let primary = SLOTS
            .iter()
            .position(|range| (range[0]..=range[1]).contains(&slot));
        let cluster = Self {
            nodes,
            primary: primary.expect("all slots are served"),
        };
        cluster.wait_until_whole();
        let id = cluster.nodes[cluster.primary].run(&["CLUSTER", "MYID"]);
        let replica = &cluster.nodes[3];
        replica.run(&["CLUSTER", "REPLICATE", &id]);
        replica.wait("its primary", |replica| {
            replica
                .run(&["INFO", "replication"])
                .contains("master_link_status:up")
        });
        for node in &cluster.nodes {
            node.wait("word of the replica", |node| {
                node.run(&["CLUSTER", "NODES"]).contains("slave")
            });
        }
        cluster
    }

    /// `redis+cluster://user:password@node,node,node,node`.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(Redis::address).collect();
        format!("redis+cluster://{}@{}", user(), hosts.join(","))
    }

    /// The node that has [`Cluster::KEY`], until [`Cluster::wait_for_failover`].
    pub fn primary(&mut self) -> &mut Redis {
        &mut self.nodes[self.primary]
    }

    /// A node that has other slots.
    pub fn bystander(&mut self) -> &mut Redis {
        &mut self.nodes[usize::from(self.primary == 0)]
    }

    /// Waits until the replica has taken its primary's place.
    pub fn wait_for_failover(&mut self) {
        self.primary = 3;
        let replica = &self.nodes[3];
        replica.wait("its promotion", |redis| {
            redis.is_primary() && redis.said("CLUSTER INFO").contains("cluster_state:ok")
        });
    }

    /// Lets the replica take its primary's place while both are there.
    pub fn hand_over(&mut self) {
        self.nodes[3].run(&["CLUSTER", "FAILOVER"]);
        self.wait_for_failover();
    }

    fn wait_until_whole(&self) {
        for node in &self.nodes {
            node.wait("the cluster", |node| {
                let info = node.run(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:4")
            });
        }
    }
}

const SLOTS: [[u16; 2]; 3] = [[0, 5460], [5461, 10_922], [10_923, 16_383]];
