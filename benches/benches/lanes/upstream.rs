//! What is asked: the stand-in, or a real API server.

use std::{fs, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use kube_authn_benches::{
    Minting,
    loopback::{Address, LIST, Loopback, SMALL, Served},
    user,
};
use kube_authn_core::{Principal, Secret};
use kube_authn_e2e::{Options, TestCluster, fixtures};

pub(crate) enum Upstream {
    Loopback(Loopback),
    Real {
        _cluster: Box<TestCluster>,
        address: Address,
        /// The API server's process.
        process: u32,
        token: Secret,
    },
}

/// Users whose requests are mixed, where the server believes any token.
const USERS: usize = 1_000;
/// So many pods are some 155 KiB.
const PODS: usize = 50;
const NAMESPACE: &str = "team-50";

impl Upstream {
    pub(crate) fn loopback() -> Self {
        Self::Loopback(Loopback::start())
    }

    /// A test cluster with a namespace of 50 pods, and the token of a service account that may read everything.
    pub(crate) async fn real() -> Self {
        let cluster = TestCluster::start(Options::default())
            .await
            .expect("a test cluster");
        let client = cluster.client().await.expect("an admin client");
        fixtures::namespace(&client, NAMESPACE)
            .await
            .expect("a namespace");
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        for number in 0..PODS {
            let pod = fixtures::pod(&format!("web-{number}")).expect("a pod");
            pods.create(&PostParams::default(), &pod).await.expect("a pod");
        }
        fixtures::running(&client, NAMESPACE, &format!("web-{}", PODS - 1))
            .await
            .expect("pods that run");
        let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
        let token = fixtures::bound_token(&client, namespace, name, Duration::from_secs(7200))
            .await
            .expect("a token");
        let port = cluster
            .api_server_url()
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .expect("a port");
        Self::Real {
            address: Address {
                port,
                ca: cluster.ca_pem().to_owned(),
            },
            process: process_of_api_server(port).expect("the API server's process"),
            _cluster: Box::new(cluster),
            token: Secret::new(token),
        }
    }

    pub(crate) fn is_real(&self) -> bool {
        matches!(self, Self::Real { .. })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Loopback(_) => "stand-in",
            Self::Real { .. } => "kube-apiserver",
        }
    }

    pub(crate) fn paths(&self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Loopback(_) => vec![("2 KiB", SMALL), ("155 KiB", LIST)],
            Self::Real { .. } => vec![("/version", "/version"), ("list of 50 pods", LIST)],
        }
    }

    pub(crate) fn address(&self) -> &Address {
        match self {
            Self::Loopback(server) => server.address(),
            Self::Real { address, .. } => address,
        }
    }

    pub(crate) fn provider(&self) -> Minting {
        match self {
            Self::Loopback(_) => Minting::default(),
            Self::Real { token, .. } => Minting::always(token.clone()),
        }
    }

    pub(crate) fn users(&self) -> Vec<Principal> {
        (0..USERS).map(user).collect()
    }

    /// Connections: of the stand-in those accepted so far, of the API server those open now.
    pub(crate) fn served(&mut self) -> Served {
        match self {
            Self::Loopback(server) => server.served(),
            Self::Real { address, process, .. } => Served {
                connections: open_connections(address.port),
                cpu: cpu_of(*process),
            },
        }
    }
}

/// The process named kube-apiserver that was told this port; its supervisor has another name.
#[allow(clippy::disallowed_methods, reason = "a bench reads what the kernel knows")]
fn process_of_api_server(port: u16) -> Option<u32> {
    let told = format!("--secure-port={port}");
    fs::read_dir("/proc")
        .ok()?
        .filter_map(Result::ok)
        .find_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            let mine = arguments
                .split(|byte| *byte == 0)
                .any(|argument| argument == told.as_bytes());
            (name.trim() == "kube-apiserver" && mine).then_some(process)
        })
}

/// User and system time of `/proc/<process>/stat`, in ticks of 10 ms (fields 14 and 15; the name in field 2 has no space).
#[allow(clippy::disallowed_methods, reason = "a bench reads what the kernel counts")]
fn cpu_of(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let ticks = stat
        .split(' ')
        .skip(13)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum::<u64>();
    Duration::from_millis(ticks * 10)
}

/// Established connections to this port, everybody's.
#[allow(clippy::disallowed_methods, reason = "a bench reads what the kernel counts")]
fn open_connections(port: u16) -> u64 {
    let remote = format!("0100007F:{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let established = table.lines().filter(|line| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next() == Some(remote.as_str()) && fields.next() == Some("01")
    });
    established.count() as u64
}
