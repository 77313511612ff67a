//! The address and the CA of the cluster that a pod runs in.

use std::{net::Ipv6Addr, path::Path};

use kube_authn_core::{CaBundle, ClusterDetails, Error, ErrorKind, Result, ServerUrl, TlsTrust, parse_ca};

pub(super) fn resolve(
    folder: &Path,
    env: &impl Fn(&str) -> Option<String>,
    cluster: &ClusterDetails,
) -> Result<Option<ClusterDetails>> {
    let file = folder.join(super::CA_FILE);
    match file.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(source) => {
            let text = format!("cannot look for {}: {source}", file.display());
            return Err(Error::new(ErrorKind::ConfigInvalid, text).with_source(source));
        }
    }
    let variable = |name: &str| {
        env(name).filter(|value| !value.is_empty()).ok_or_else(|| {
            invalid(format!(
                "{name} is not set, though {} is there: Kubernetes sets both in a pod; \
                 outside of one configure serviceAccountToken",
                file.display()
            ))
        })
    };
    let server = server(&variable(HOST)?, &variable(PORT)?)?;
    let ca = CaBundle::File(file.as_path().into());
    let pem = ca.read()?.unwrap_or_default();
    parse_ca(&pem).map_err(|problem| invalid(format!("{}: {problem}", file.display())))?;

    let home = cluster.with_server(server, TlsTrust::new(ca));
    if !home.is_transport_protected() {
        tracing::warn!(
            cluster = %home.name(), server = %home.server(),
            "the service account's token travels unencrypted, since {PORT} is a port of http",
        );
    }
    Ok(Some(home))
}

fn server(host: &str, port: &str) -> Result<ServerUrl> {
    let refuse = || {
        invalid(format!(
            "{HOST} and {PORT} are no host and port: {host:?}, {port:?}"
        ))
    };
    let port: u16 = port.parse().map_err(|_| refuse())?;
    let scheme = match HTTP_PORTS.contains(&port) {
        true => "http",
        false => "https",
    };
    let host = match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => host.to_owned(),
    };
    ServerUrl::parse(&format!("{scheme}://{host}:{port}"))
        .ok()
        .filter(|server| server.port() == port && server.base_path().is_empty())
        .ok_or_else(refuse)
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::ConfigInvalid, text)
}

const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";

/// What the JavaScript client takes for http (`loadFromCluster` in `@kubernetes/client-node`).
const HTTP_PORTS: [u16; 3] = [80, 8080, 8001];
