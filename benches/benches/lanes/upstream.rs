//! What is asked: the stand-in, or a real API server.

use kube_authn_benches::{
    Minting,
    api_server::ApiServer,
    loopback::{Address, LIST, Loopback, SMALL, Served},
    user,
};
use kube_authn_core::{Principal, Secret};

pub(crate) enum Upstream {
    Loopback(Loopback),
    Real { server: ApiServer, token: Secret },
}

/// Users whose requests are mixed, where the server believes any token.
const USERS: usize = 1_000;

impl Upstream {
    pub(crate) fn loopback() -> Self {
        Self::Loopback(Loopback::start())
    }

    /// With the token of a service account that may read everything.
    pub(crate) async fn real() -> Self {
        let server = ApiServer::start().await;
        let token = Secret::new(server.viewer_token().await);
        Self::Real { server, token }
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
            Self::Real { server, .. } => server.address(),
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
            Self::Real { server, .. } => server.served(),
        }
    }
}
