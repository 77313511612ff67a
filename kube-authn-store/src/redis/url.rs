//! What a URL says of a Redis store.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use kube_authn_core::{CaBundle, Error, ErrorKind, Result, Secret, rustls::crypto::CryptoProvider};
use percent_encoding::percent_decode_str;

/// Where Redis is, and how it is reached: a URL, and what a URL has no words for.
///
/// | URL | for |
/// |---|---|
/// | `redis://[user:password@]host[:6379][/database]` | one server, or an address that always leads to the primary |
/// | `redis+sentinel://[user:password@]host[:26379][,host...]/service[/database]` | the primary that these sentinels name |
/// | `redis+cluster://[user:password@]host[:6379][,host...]` | the node of a cluster that has our slot |
///
/// `rediss` in place of `redis` is the same over TLS, sentinels included. A user alone is a password without `:`; user and
/// password are percent-encoded (RFC 3986). After `?`, joined by `&`:
///
/// - `prefix`: what every key begins with, in braces; `kube-authn` if left out. Stores with different prefixes share nothing.
/// - `sentinelUser`, `sentinelPassword`: for the sentinels, if they ask for any.
///
/// `Display` and `Debug` show neither users nor passwords.
#[derive(Clone)]
pub struct RedisOptions {
    pub(super) tls: bool,
    pub(super) mode: Mode,
    pub(super) hosts: Vec<Address>,
    pub(super) login: Login,
    pub(super) sentinel_login: Login,
    pub(super) database: i64,
    pub(super) prefix: String,
    pub(super) ca: CaBundle,
    pub(super) provider: Option<Arc<CryptoProvider>>,
}

/// How the primary is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Standalone,
    Sentinel { service: String },
    Cluster,
}

/// A user of Redis; neither of them for a server that asks nobody.
#[derive(Clone, Default)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
}

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl RedisOptions {
    /// Reads a URL.
    ///
    /// # Errors
    /// `ConfigInvalid` if it is none of those above; the text says what is wrong and repeats nothing of it.
    pub fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(FORMS))?;
        let (scheme, mode) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return Err(wrong(FORMS)),
        };
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (self::login(login)?, hosts),
            None => (Login::default(), authority),
        };
        let (mode, port, database) = match mode {
            "" => (Mode::Standalone, PORT, path),
            "cluster" if path.is_empty() => (Mode::Cluster, PORT, ""),
            "cluster" => return Err(wrong("a cluster has no databases: leave the path out")),
            "sentinel" => {
                let (service, database) = path.split_once('/').unwrap_or((path, ""));
                let service = decoded(service)?;
                if service.is_empty() {
                    return Err(wrong(
                        "the name of the sentinels' service must follow the hosts: /service",
                    ));
                }
                (Mode::Sentinel { service }, SENTINEL_PORT, database)
            }
            _ => return Err(wrong(FORMS)),
        };
        let hosts: Vec<_> = hosts
            .split(',')
            .map(|host| address(host, port))
            .collect::<Result<_>>()?;
        if mode == Mode::Standalone && hosts.len() > 1 {
            return Err(wrong(
                "several hosts are for redis+sentinel:// and redis+cluster://",
            ));
        }
        let options = Self {
            tls,
            mode,
            hosts,
            login,
            sentinel_login: Login::default(),
            database: self::database(database)?,
            prefix: PREFIX.to_owned(),
            ca: CaBundle::System,
            provider: None,
        };
        options.with_parameters(parameters)
    }

    /// Trusts these certificate authorities with TLS, and not the machine's own.
    pub fn with_ca(mut self, ca: CaBundle) -> Self {
        self.ca = ca;
        self
    }

    /// The crypto provider of TLS connections; left out, it is the one that the process has installed.
    pub fn with_crypto_provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.provider = Some(provider);
        self
    }

    fn with_parameters(mut self, parameters: &str) -> Result<Self> {
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = decoded(value)?;
            match (name, &self.mode) {
                ("prefix", _) => self.prefix = prefix(value)?,
                ("sentinelUser", Mode::Sentinel { .. }) => self.sentinel_login.user = Some(value),
                ("sentinelPassword", Mode::Sentinel { .. }) => {
                    self.sentinel_login.password = Some(Secret::new(value));
                }
                ("sentinelUser" | "sentinelPassword", _) => {
                    return Err(wrong(
                        "sentinelUser and sentinelPassword are for redis+sentinel://",
                    ));
                }
                _ => {
                    return Err(wrong(
                        "the parameters after ? are prefix, sentinelUser and sentinelPassword",
                    ));
                }
            }
        }
        Ok(self)
    }

    /// Whether logins and passwords would cross a network that others may read.
    pub(super) fn is_readable_on_the_way(&self) -> bool {
        !self.tls && !self.hosts.iter().all(Address::is_loopback)
    }
}

impl fmt::Display for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let mode = match self.mode {
            Mode::Standalone => "",
            Mode::Sentinel { .. } => "+sentinel",
            Mode::Cluster => "+cluster",
        };
        write!(f, "{scheme}{mode}://")?;
        for (index, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if index == 0 { "" } else { "," })?;
        }
        match &self.mode {
            Mode::Sentinel { service } => write!(f, "/{service}"),
            Mode::Standalone | Mode::Cluster => Ok(()),
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("url", &format_args!("{self}"))
            .field("database", &self.database)
            .field("prefix", &self.prefix)
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

impl Address {
    fn is_loopback(&self) -> bool {
        let ip: Option<IpAddr> = self.host.parse().ok();
        ip.map_or(self.host == "localhost", |ip| ip.is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

fn login(text: &str) -> Result<Login> {
    let (user, password) = text.split_once(':').unwrap_or(("", text));
    let user = decoded(user)?;
    Ok(Login {
        user: (!user.is_empty()).then_some(user),
        password: Some(Secret::new(decoded(password)?)),
    })
}

fn address(text: &str, default_port: u16) -> Result<Address> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => (host, port),
        Some(_) => return Err(wrong(HOST)),
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            if host.is_empty() || !host.bytes().all(legal) {
                return Err(wrong(HOST));
            }
            (host, port)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| wrong(HOST))?,
        None if port.is_empty() => default_port,
        None => return Err(wrong(HOST)),
    };
    Ok(Address {
        host: host.to_owned(),
        port,
    })
}

fn database(text: &str) -> Result<i64> {
    match text {
        "" => Ok(0),
        _ => text
            .parse::<u16>()
            .map(i64::from)
            .map_err(|_| wrong("the database after the last / must be a number")),
    }
}

/// Braces inside would end the hash tag early, and glob characters would reach further in an ACL.
fn prefix(text: String) -> Result<String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(legal) {
        true => Ok(text),
        false => Err(wrong(
            "the prefix must be 1 to 64 characters of A-Z a-z 0-9 . - _ :",
        )),
    }
}

fn decoded(text: &str) -> Result<String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| wrong("user, password and names must be UTF-8, percent-encoded"))
}

fn wrong(what: &str) -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        format!("not the URL of a Redis store: {what}"),
    )
}

const FORMS: &str = "expected redis://host/, redis+sentinel://host,host/service or redis+cluster://host,host, or the \
                     same with rediss for TLS";
const HOST: &str = "expected host, host:port or [IPv6 address]:port, several joined by commas, and @, : and / in users and \
                    passwords percent-encoded";
const PREFIX: &str = "kube-authn";
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> RedisOptions {
        RedisOptions::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn url_of_one_server_names_user_password_and_database() {
        let options = parse("rediss://kube:p%40s%2Fs:w@redis.example.com:7000/3?prefix=portal");

        assert!(options.tls && options.mode == Mode::Standalone);
        assert_eq!(
            options.hosts,
            [Address {
                host: "redis.example.com".to_owned(),
                port: 7000
            }]
        );
        assert_eq!(options.login.user.as_deref(), Some("kube"));
        let password = options.login.password.as_ref().and_then(Secret::expose_str);
        assert_eq!(password, Some("p@s/s:w"));
        assert_eq!((options.database, options.prefix.as_str()), (3, "portal"));
        assert_eq!(parse("redis://localhost").hosts[0].port, 6379);
        assert_eq!(parse("redis://:word@[::1]:1/").hosts[0].to_string(), "[::1]:1");
        assert_eq!(parse("redis://word@h").login.user, None);
    }

    #[test]
    fn url_of_sentinels_names_the_service() {
        let options = parse("redis+sentinel://u:p@a,b:1,[::1]:2/main/4?sentinelUser=s&sentinelPassword=t");

        assert_eq!(
            options.mode,
            Mode::Sentinel {
                service: "main".to_owned()
            }
        );
        let hosts: Vec<_> = options.hosts.iter().map(Address::to_string).collect();
        assert_eq!(hosts, ["a:26379", "b:1", "[::1]:2"]);
        assert_eq!(options.database, 4);
        assert_eq!(options.sentinel_login.user.as_deref(), Some("s"));
        assert_eq!(options.to_string(), "redis+sentinel://a:26379,b:1,[::1]:2/main");
    }

    #[test]
    fn url_of_a_cluster_has_no_database() {
        assert_eq!(
            parse("rediss+cluster://a,b/").to_string(),
            "rediss+cluster://a:6379,b:6379"
        );
        assert!(RedisOptions::parse("redis+cluster://a/1").is_err());
    }

    #[test]
    fn malformed_url_is_refused_without_repeating_any_of_it() {
        for url in [
            "canary",
            "canary://h",
            "http://canary",
            "redis+canary://h",
            "redis://",
            "redis://u:canary@",
            "redis://u:canary@h:port",
            "redis://u:canary@h:70000",
            "redis://u:can@ary@h o s t",
            "redis://u:canary@a,b",
            "redis://u:canary@h/canary",
            "redis://u:canary@h/-1",
            "redis://u:canary%ff@h",
            "redis://u:canary@[::1",
            "redis://u:canary@[canary]:1",
            "redis://u:canary/x@h",
            "redis+sentinel://u:canary@h",
            "redis+sentinel://u:canary@h/",
            "redis://h?canary=1",
            "redis://h?prefix={canary}",
            "redis://h?prefix=",
            "redis://h?sentinelPassword=canary",
        ] {
            let error = RedisOptions::parse(url).expect_err(url);

            assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
            assert!(
                !format!("{error} {error:?}").contains("canary"),
                "{url}: {error:?}"
            );
        }
    }

    #[test]
    fn users_and_passwords_never_show() {
        let options =
            parse("redis+sentinel://canary1:canary2@h/s?sentinelUser=canary3&sentinelPassword=canary4");

        assert!(!format!("{options} {options:?}").contains("canary"));
    }

    #[test]
    fn only_a_network_without_tls_is_readable_on_the_way() {
        assert!(parse("redis://redis.example.com").is_readable_on_the_way());
        assert!(parse("redis+cluster://127.0.0.1,10.0.0.1").is_readable_on_the_way());
        assert!(!parse("rediss://redis.example.com").is_readable_on_the_way());
        assert!(!parse("redis+cluster://localhost,127.0.0.1,[::1]").is_readable_on_the_way());
    }
}
