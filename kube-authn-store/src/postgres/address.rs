//! The URL of a store: where its servers are and how they are reached.

use std::{fmt, net::IpAddr, str::FromStr};

use kube_authn_core::{Error, ErrorKind, Result};
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgSslMode},
};

/// The servers of one store, of which one is the primary. Its `Debug` shows no password.
pub(crate) struct Address {
    pub(crate) servers: Vec<PgConnectOptions>,
    /// `host:port[,host:port]/database`, for errors.
    pub(super) place: String,
}

impl Address {
    /// Takes a libpq URL, with one or several servers.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let rest = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.ok_or_else(|| refused("it does not begin with postgres:// or postgresql://"))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let query = path.split_once('?').map_or("", |(_, query)| query);
        for (name, _) in pairs(query) {
            let is_known = PARAMETERS.contains(&name) || name.starts_with("options[") && name.ends_with(']');
            if !is_known {
                return Err(refused("it has a parameter that this store does not know"));
            }
        }
        let names_ca = is_named(query, "sslrootcert", "PGSSLROOTCERT");
        let (user, servers) = match authority.rsplit_once('@') {
            Some((user, servers)) => (format!("{user}@"), servers),
            None => (String::new(), authority),
        };
        let servers = servers
            .split(',')
            .map(|server| {
                PgConnectOptions::from_str(&format!("postgres://{user}{server}{path}"))
                    .map(|server| with_defaults(server, names_ca))
                    // The source may quote the URL, and the password is in it.
                    .map_err(|_| {
                        refused("expected postgres://user:password@host:port/database, percent-encoded")
                    })
            })
            .collect::<Result<Vec<_>>>()?;
        let address = Self::of(servers);
        match address.unverified() {
            Some(server) if !is_named(query, "sslmode", "PGSSLMODE") => Err(refused(&format!(
                "it does not say how {server} is verified: write ?sslmode=verify-full"
            ))),
            _ => Ok(address),
        }
    }

    pub(super) fn of(servers: Vec<PgConnectOptions>) -> Self {
        let names: Vec<String> = servers.iter().map(name).collect();
        let database = servers.first().and_then(PgConnectOptions::get_database);
        Self {
            place: format!("{}/{}", names.join(","), database.unwrap_or_default()),
            servers,
        }
    }

    /// The first server to which a password and rows may go over a network without anybody's identity being checked.
    pub(crate) fn unverified(&self) -> Option<String> {
        let open = |server: &&PgConnectOptions| {
            let is_local = server.get_socket().is_some()
                || server.get_host() == "localhost"
                || server.get_host().starts_with('/')
                || server
                    .get_host()
                    .trim_matches(['[', ']'])
                    .parse()
                    .is_ok_and(|ip: IpAddr| ip.is_loopback());
            let verified = matches!(server.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull);
            !is_local && !verified
        };
        self.servers.iter().find(open).map(name)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

/// As libpq: `require` with a CA at hand verifies it. The driver would not.
fn with_defaults(server: PgConnectOptions, names_ca: bool) -> PgConnectOptions {
    let server = match server.get_ssl_mode() {
        PgSslMode::Require if names_ca => server.ssl_mode(PgSslMode::VerifyCa),
        _ => server,
    };
    let named = server.get_application_name().is_some();
    let server = if named {
        server
    } else {
        server.application_name("kube-authn")
    };
    server.disable_statement_logging()
}

fn name(server: &PgConnectOptions) -> String {
    match server.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", server.get_host(), server.get_port()),
    }
}

/// Names and values as they stand in a query.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Whether the query has this parameter, or the driver takes it from the environment.
#[allow(
    clippy::disallowed_methods,
    reason = "the driver reads it too, and does not tell"
)]
fn is_named(query: &str, parameter: &str, variable: &str) -> bool {
    pairs(query).any(|(name, _)| name == parameter) || std::env::var_os(variable).is_some()
}

fn refused(why: &str) -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        format!("not the URL of a PostgreSQL database: {why}"),
    )
}

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
/// What the driver reads; it would pass over others with a line in the log that shows their value.
const PARAMETERS: [&str; 12] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_servers_share_user_database_and_parameters() {
        let url = "postgresql://portal:p%40ss@one:5433,two,[::1]:5434/db?application_name=x&sslmode=require";

        let address = Address::parse(url).expect("a URL");

        assert_eq!(address.place, "one:5433,two:5432,[::1]:5434/db");
        for server in &address.servers {
            assert_eq!(
                (server.get_username(), server.get_application_name()),
                ("portal", Some("x"))
            );
        }
        assert_eq!(format!("{address:?}"), address.place);
    }

    #[test]
    fn server_that_nobody_verifies_is_told_unless_it_is_local() {
        let first = |url: &str| Address::parse(url).expect("a URL").unverified();
        for url in [
            "postgres://u@localhost/d",
            "postgres://u@127.0.0.1/d",
            "postgres://u@[::1]/d",
            "postgres:///d?host=/run/postgresql",
            "postgres://u@db/d?hostaddr=::1",
            "postgres://u@db/d?sslmode=verify-full",
            "postgres://u@db/d?sslmode=verify-ca",
            "postgres://u@db/d?sslmode=require&sslrootcert=/ca.pem",
        ] {
            assert_eq!(first(url), None, "{url}");
        }
        for (url, server) in [
            ("postgres://u@db/d?sslmode=prefer", "db:5432"),
            ("postgres://u@db/d?sslmode=require", "db:5432"),
            ("postgres://u@localhost,db:6000/d?sslmode=disable", "db:6000"),
        ] {
            assert_eq!(first(url).as_deref(), Some(server), "{url}");
        }
    }

    #[test]
    fn server_elsewhere_is_never_reached_without_a_word_on_how_it_is_verified() {
        for url in [
            "postgres://u:canary@db/d",
            "postgres://u:canary@localhost,db/d",
            "postgres://u:canary@localhost/d?host=db",
            "postgres://u:canary@db/d?sslrootcert=/ca.pem",
        ] {
            let error = Address::parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            let text = error.to_string();
            assert!(
                text.contains("db:5432") && text.contains("?sslmode=verify-full"),
                "{url}: {text}"
            );
            assert!(!format!("{text} {error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_and_not_shown() {
        for url in [
            "",
            "canary",
            "sqlite://canary",
            "postgres://u:canary@h:x/d",
            "postgres://u:can/ary@h/d",
            "postgres://u@h/d?canary=1",
            "postgres://u@h/d?sslmode=canary",
        ] {
            let error = Address::parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
    }
}
