//! Where the primary is, and a connection to it.

use std::{
    fmt, io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use ::redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, ProtocolVersion, RedisConnectionInfo, Script, Value,
    aio::{MultiplexedConnection, PubSub},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use kube_authn_core::{
    Error, ErrorKind, Result, Secret, TlsTrust,
    rustls::{ClientConfig, crypto::CryptoProvider, pki_types::ServerName},
    tls::client_config,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    connection::{Connection, Request},
    error::Failure,
    row::Keys,
    url::{Address, Login, Mode, RedisOptions},
};

/// Where Redis is, with all that is needed to connect.
pub(super) struct Place {
    options: RedisOptions,
    tls: Option<TlsConnector>,
    /// Of the store; all of them are in one slot.
    pub(super) keys: Keys,
}

impl Place {
    pub(super) fn new(options: RedisOptions) -> Result<Self> {
        let tls = match options.tls {
            true => Some(TlsConnector::from(Arc::new(tls(&options)?))),
            false => None,
        };
        let keys = Keys::new(&options.prefix);
        Ok(Self { options, tls, keys })
    }

    /// Finds the primary and connects to it. Sentinels and nodes are asked all at once, and the first whose answer leads
    /// to a primary is believed: one that is down or wrong makes nobody wait. What is there is looked at each time: an
    /// address may lead elsewhere than it did before.
    pub(super) async fn connect(&self) -> Result<Connection, Failure> {
        let found = timeout(FIND_TIMEOUT, self.first()).await;
        found.unwrap_or(Err(Failure::Timeout(FIND_TIMEOUT)))
    }

    async fn first(&self) -> Result<Connection, Failure> {
        let mut asked: FuturesUnordered<_> = self.options.hosts.iter().map(|host| self.via(host)).collect();
        let mut failed = Failure::Timeout(FIND_TIMEOUT);
        while let Some(found) = asked.next().await {
            match found {
                Ok(connection) => return Ok(connection),
                // What somebody has to mend goes before what may pass.
                Err(_) if failed.is_configuration() => {}
                Err(failure) => failed = failure,
            }
        }
        Err(failed)
    }

    /// Notes the layout, or refuses a newer one: its rows may mean something else. Also sees whether this is the primary,
    /// and whether the user may write and tell, which a script would otherwise find out half way.
    async fn check(&self, connection: &Connection) -> Result<(), Failure> {
        let mut open = OPEN.prepare_invoke();
        open.key(&self.keys.layout).arg(&self.keys.events).arg(LAYOUT);
        let version: String = in_time(connection.asked(Request::WriteScript(&open))).await?;
        match version.parse::<u32>() {
            Ok(version) if version <= LAYOUT => Ok(()),
            _ => Err(Failure::Layout),
        }
    }

    /// The primary by way of this host.
    async fn via(&self, host: &Address) -> Result<Connection, Failure> {
        let connection = match &self.options.mode {
            Mode::Standalone => self.of_ours(host).await,
            Mode::Sentinel { service } => self.named_by(host, service).await,
            Mode::Cluster => self.mapped_by(host).await,
        }?;
        self.check(&connection).await?;
        Ok(connection)
    }

    /// A connection for subscriptions alone, to the same server as this one.
    pub(super) async fn subscriber(&self, address: &Address) -> Result<PubSub, Failure> {
        in_time(async {
            let stream = self.stream(address).await?;
            Ok(PubSub::new(&self.settings(), stream).await?)
        })
        .await
    }

    /// <https://redis.io/docs/latest/develop/reference/sentinel-clients/>: ask a sentinel, connect; the role comes with the
    /// check.
    async fn named_by(&self, sentinel: &Address, service: &str) -> Result<Connection, Failure> {
        let asked = self
            .open(sentinel, &settings(&self.options.sentinel_login, 0))
            .await?;
        let mut question = Cmd::new();
        question
            .arg("SENTINEL")
            .arg("get-master-addr-by-name")
            .arg(service);
        let named: Option<(String, u16)> = ask(&asked, &question).await?;
        let (host, port) = named.ok_or_else(|| Failure::NoPrimary(sentinel.clone()))?;
        self.of_ours(&Address { host, port }).await
    }

    /// Asks a node of a cluster which one has our slot.
    async fn mapped_by(&self, node: &Address) -> Result<Connection, Failure> {
        let asked = self.of_ours(node).await?;
        let mut question = Cmd::new();
        question.arg("CLUSTER").arg("KEYSLOT").arg(&self.keys.layout);
        let slot: u16 = ask(&asked, &question).await?;
        let mut question = Cmd::new();
        question.arg("CLUSTER").arg("SLOTS");
        let ranges: Vec<Vec<Value>> = ask(&asked, &question).await?;
        let owner = ranges
            .iter()
            .find_map(|range| owner(range, slot, node))
            .ok_or_else(|| Failure::NoPrimary(node.clone()))?;
        match owner == *node {
            true => Ok(asked),
            false => self.of_ours(&owner).await,
        }
    }

    async fn of_ours(&self, address: &Address) -> Result<Connection, Failure> {
        self.open(address, &self.settings()).await
    }

    async fn open(&self, address: &Address, settings: &RedisConnectionInfo) -> Result<Connection, Failure> {
        in_time(async {
            let stream = self.stream(address).await?;
            // The time limit is the caller's: with one here, an answer that comes late would be nobody's.
            let config = AsyncConnectionConfig::new().set_response_timeout(None);
            let (commands, driver) = MultiplexedConnection::new_with_config(settings, stream, config).await?;
            Ok(Connection::new(commands, driver, address.clone()))
        })
        .await
    }

    #[allow(clippy::disallowed_methods, reason = "the store opens its own connections")]
    async fn stream(&self, address: &Address) -> Result<Box<dyn Stream>, Failure> {
        let unreachable = |source| Failure::Connect(address.clone(), Arc::new(source));
        let stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(unreachable)?;
        // Commands are small and whole; waiting for more bytes only adds latency.
        stream.set_nodelay(true).map_err(unreachable)?;
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE)
            .with_interval(KEEP_ALIVE);
        SockRef::from(&stream)
            .set_tcp_keepalive(&keep_alive)
            .map_err(unreachable)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let untrusted = |source| Failure::Tls(address.clone(), Arc::new(source));
        let name = ServerName::try_from(address.host.clone())
            .map_err(|source| untrusted(io::Error::new(io::ErrorKind::InvalidInput, source)))?;
        Ok(Box::new(tls.connect(name, stream).await.map_err(untrusted)?))
    }

    fn settings(&self) -> RedisConnectionInfo {
        settings(&self.options.login, self.options.database)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.options, f)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

fn tls(options: &RedisOptions) -> Result<ClientConfig> {
    let provider = options
        .provider
        .clone()
        .or_else(|| CryptoProvider::get_default().cloned())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::ConfigInvalid,
                "no crypto provider for rediss: install one in the process, or hand one over",
            )
        })?;
    client_config(&provider, &TlsTrust::new(options.ca.clone()), &[])
}

fn settings(login: &Login, database: i64) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        // One command less that an ACL has to allow, and Redis 7.0 has none of it.
        .set_skip_set_lib_name()
        .set_db(database);
    if let Some(user) = &login.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = login.password.as_ref().and_then(Secret::expose_str) {
        settings = settings.set_password(password);
    }
    settings
}

async fn ask<T: FromRedisValue>(connection: &Connection, question: &Cmd) -> Result<T, Failure> {
    let mut commands = connection.commands.clone();
    in_time(async { Ok(question.query_async(&mut commands).await?) }).await
}

/// Within what a server that is there needs.
pub(super) async fn in_time<T>(step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let done = timeout(CONNECT_TIMEOUT, step).await;
    done.unwrap_or(Err(Failure::Timeout(CONNECT_TIMEOUT)))
}

/// The primary of one range of `CLUSTER SLOTS`, if it has this slot. A node that does not know its own name leaves it out.
fn owner(range: &[Value], slot: u16, asked: &Address) -> Option<Address> {
    let [Value::Int(from), Value::Int(to), Value::Array(node), ..] = range else {
        return None;
    };
    let [host, Value::Int(port), ..] = &node[..] else {
        return None;
    };
    if !(*from..=*to).contains(&i64::from(slot)) {
        return None;
    }
    let host = match host {
        Value::BulkString(host) if !host.is_empty() && host != b"?" => std::str::from_utf8(host).ok()?,
        _ => &asked.host,
    };
    Some(Address {
        host: host.to_owned(),
        port: u16::try_from(*port).ok()?,
    })
}

static OPEN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("open.lua")));

/// The version of the layout that this program writes, and the newest that it reads.
const LAYOUT: u32 = 1;
/// A server that is there answers in milliseconds, TLS and password included. With this, a primary that vanished without
/// a word costs callers a second before the next one is looked for.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For a question to sentinels or nodes, a connection to whom they name, and its own word.
const FIND_TIMEOUT: Duration = Duration::from_secs(2);
/// Below the minutes after which firewalls forget a silent connection.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn range(host: Value) -> Vec<Value> {
        let node = vec![host, Value::Int(7001), Value::BulkString(b"id".to_vec())];
        vec![Value::Int(100), Value::Int(200), Value::Array(node)]
    }

    #[test]
    fn owner_of_a_slot_is_the_first_node_of_its_range() {
        let asked = Address {
            host: "asked".to_owned(),
            port: 1,
        };
        let named = range(Value::BulkString(b"10.0.0.1".to_vec()));

        let found = |range: &[Value], slot| owner(range, slot, &asked).map(|owner| owner.to_string());

        assert_eq!(found(&named, 100).as_deref(), Some("10.0.0.1:7001"));
        assert_eq!(found(&named, 200).as_deref(), Some("10.0.0.1:7001"));
        assert_eq!(found(&named, 99), None);
        assert_eq!(found(&named, 201), None);
        for unnamed in [
            Value::Nil,
            Value::BulkString(Vec::new()),
            Value::BulkString(b"?".to_vec()),
        ] {
            assert_eq!(found(&range(unnamed), 150).as_deref(), Some("asked:7001"));
        }
        assert_eq!(found(&[Value::Int(1)], 1), None);
    }
}
