//! The URL of a store: where its servers are and how they are reached.

use std::{fmt, net::IpAddr, str::FromStr};

use kube_authn_core::{Error, ErrorKind, Result};
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgSslMode},
};

use super::files;

/// The servers of one store, of which one is the primary. Its `Debug` shows no password.
pub(crate) struct Address {
    pub(crate) servers: Vec<PgConnectOptions>,
    /// `host:port[,host:port]/database`, for errors.
    pub(crate) place: String,
}

impl Address {
    /// Takes a libpq URL, with one or several servers.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let rest = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.ok_or_else(|| refused("it does not begin with postgres:// or postgresql://"))?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let query = path.split_once('?').map_or("", |(_, query)| query);
        // Behind an '@' or a colon that belong to a password in plain, what looks like a parameter may be its rest.
        let is_whole = !path.contains('@') && (authority.contains('@') || !authority.contains(':'));
        for (name, value) in pairs(query) {
            refuse_parameter(name, value, is_whole)?;
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
        if servers.iter().any(|server| server.get_database().is_none()) {
            return Err(refused(
                "it names no database: write postgres://user:password@host:port/database",
            ));
        }
        if servers.iter().any(|server| speaks_tls(server.get_ssl_mode())) {
            files::check(query)?;
        }
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

/// Refuses what the driver does not know, or would refuse without saying what it is.
fn refuse_parameter(name: &str, value: &str, may_be_shown: bool) -> Result<()> {
    let is_known = PARAMETERS.contains(&name) || name.starts_with("options[") && name.ends_with(']');
    match name {
        "sslmode" if !SSL_MODES.contains(&value) => Err(refused(&format!(
            "sslmode must be one of {}",
            SSL_MODES.join(", ")
        ))),
        "port" if value.parse::<u16>().is_err() => Err(refused("port is no number of a port")),
        "hostaddr" if value.parse::<IpAddr>().is_err() => Err(refused("hostaddr is no IP address")),
        _ if is_known => Ok(()),
        _ if may_be_shown => Err(refused(&format!(
            "it has a parameter that this store does not know: {}",
            name.escape_debug()
        ))),
        _ => Err(refused("it has a parameter that this store does not know")),
    }
}

fn speaks_tls(mode: PgSslMode) -> bool {
    !matches!(mode, PgSslMode::Disable | PgSslMode::Allow)
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
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
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

pub(super) fn refused(why: &str) -> Error {
    Error::new(
        ErrorKind::ConfigInvalid,
        format!("not the URL of a PostgreSQL database: {why}"),
    )
}

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];
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

    /// A certificate, its key, and what is neither.
    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let made = rcgen::generate_simple_self_signed(["db".to_owned()]).expect("a certificate");
            for (name, text) in [
                ("ca.pem", made.cert.pem()),
                ("key.pem", made.signing_key.serialize_pem()),
                ("text", "canary".to_owned()),
            ] {
                std::fs::write(folder.path().join(name), text).expect("written");
            }
            Self(folder)
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }
    }

    #[test]
    fn file_that_is_not_what_its_parameter_says_is_told_with_both() {
        let files = Files::new();
        let (ca, key, text, gone) = (
            files.path("ca.pem"),
            files.path("key.pem"),
            files.path("text"),
            files.path("gone"),
        );
        for (query, parameter, file) in [
            (format!("sslrootcert={gone}"), "sslrootcert", &gone),
            (format!("sslrootcert={text}"), "sslrootcert", &text),
            (format!("sslrootcert={key}"), "sslrootcert", &key),
            (format!("sslcert={gone}&sslkey={key}"), "sslcert", &gone),
            (format!("sslcert={key}&sslkey={key}"), "sslcert", &key),
            (format!("sslcert={ca}&sslkey={gone}"), "sslkey", &gone),
            (format!("sslcert={ca}&sslkey={ca}"), "sslkey", &ca),
        ] {
            let url = format!("postgres://u:canary@db/d?sslmode=verify-full&{query}");

            let error = Address::parse(&url).expect_err(&url);

            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            let says = format!("cannot use the file {file} of {parameter}: ");
            assert!(error.to_string().starts_with(&says), "{error}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
        for query in [
            format!("sslmode=verify-full&sslrootcert={ca}&sslcert={ca}&sslkey={key}"),
            format!("sslmode=verify-ca&sslrootcert={}", ca.replace('/', "%2F")),
            format!("sslmode=disable&sslrootcert={gone}"),
        ] {
            Address::parse(&format!("postgres://u@db/d?{query}")).expect(&query);
        }
        let error = Address::parse(&format!("postgres://u@db/d?sslmode=verify-full&sslcert={ca}"));
        assert!(error.expect_err("half").to_string().contains("no sslkey"));
    }

    #[test]
    fn parameter_that_is_wrong_is_named() {
        for (url, says) in [
            (
                "postgres://u@h/d?sslmode=bogus",
                "sslmode must be one of disable, ",
            ),
            ("postgres://u@h/d?sslmodus=x", "does not know: sslmodus"),
            ("postgres:///d?hots=/run", "does not know: hots"),
            ("postgres://u@h/d?port=x", "port is no number"),
            ("postgres://u@h/d?hostaddr=x", "hostaddr is no IP address"),
            ("postgres://u:p@localhost:5432", "it names no database"),
            (
                "postgres://u:p@localhost:5432/?sslmode=prefer",
                "it names no database",
            ),
        ] {
            let error = Address::parse(url).expect_err(url).to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
        for url in [
            "postgres://u@localhost?dbname=d",
            "postgres:///d",
            "postgres://u@%2Frun:5433/d",
        ] {
            assert!(Address::parse(url).expect(url).place.ends_with("/d"), "{url}");
        }
    }

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
        ] {
            assert_eq!(first(url), None, "{url}");
        }
        let files = Files::new();
        let url = format!(
            "postgres://u@db/d?sslmode=require&sslrootcert={}",
            files.path("ca.pem")
        );
        assert_eq!(first(&url), None);
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
        let files = Files::new();
        for url in [
            "postgres://u:canary@db/d",
            "postgres://u:canary@localhost,db/d",
            "postgres://u:canary@localhost/d?host=db",
            &format!("postgres://u:canary@db/d?sslrootcert={}", files.path("ca.pem")),
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
            "postgres://u@h/d?x=canary",
            "postgres://u:pa?canary=word@h/d?sslmode=verify-full",
            "postgres://u:pa?canary",
            "postgres://u@h/d?port=canary",
            "postgres://u@h/d?hostaddr=canary",
            "postgres://u@h/d?sslmode=canary",
        ] {
            let error = Address::parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::ConfigInvalid, "{url}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
    }
}
