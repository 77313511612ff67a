//! Through an egress proxy: a connection to it becomes one to the API server.

use std::{
    future::{Ready, ready},
    io,
    task::{Context, Poll},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri, header::InvalidHeaderValue};
use hyper_util::{
    client::legacy::connect::proxy::{SocksV5, Tunnel},
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower_service::Service;
use zeroize::Zeroizing;

use super::failure::{EgressCause, Failure};
use crate::{EgressProxy, Secret, ServerUrl, cluster::EgressProxyKind};

/// Has the proxy at the other end of this connection open one to the server.
pub(super) async fn tunnel(
    proxy: &EgressProxy,
    server: &ServerUrl,
    stream: TcpStream,
) -> Result<TcpStream, Failure> {
    let target = format!("https://{}:{}", server.authority().host(), server.port());
    let target = target
        .parse::<Uri>()
        .map_err(|error| EgressCause::refused(error).of(proxy))?;
    let (dialed, nowhere) = (Dialed(Some(stream)), Uri::default());
    let opened = match proxy.kind() {
        EgressProxyKind::Http => {
            let mut tunnel = Tunnel::new(nowhere, dialed);
            if let Some(login) = proxy.login() {
                tunnel =
                    tunnel.with_auth(basic(login).map_err(|error| EgressCause::refused(error).of(proxy))?);
            }
            tunnel.call(target).await.map_err(EgressCause::refused)
        }
        EgressProxyKind::Socks5 => {
            let mut socks = SocksV5::new(nowhere, dialed);
            if let Some((user, password)) = proxy.login() {
                socks = socks.with_auth(text(user), text(password));
            }
            socks.call(target).await.map_err(EgressCause::refused)
        }
    };
    opened.map(TokioIo::into_inner).map_err(|cause| cause.of(proxy))
}

/// RFC 7617.
fn basic((user, password): &(Secret, Secret)) -> Result<HeaderValue, InvalidHeaderValue> {
    let pair = Zeroizing::new([user.expose(), b":", password.expose()].concat());
    let encoded = Zeroizing::new(STANDARD.encode(&*pair));
    let mut line = HeaderValue::try_from(format!("Basic {}", &*encoded))?;
    line.set_sensitive(true);
    Ok(line)
}

fn text(secret: &Secret) -> String {
    secret.expose_str().unwrap_or_default().to_owned()
}

/// A connection that is there already, in the shape in which the library takes one.
struct Dialed(Option<TcpStream>);

impl Service<Uri> for Dialed {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(
            self.0
                .take()
                .map(TokioIo::new)
                .ok_or(io::ErrorKind::NotConnected.into()),
        )
    }
}
