//! `backend.listen` and `backend.https`: where a service listens, as Backstage reads it.

use kube_authn_core::{Problem, Secret};
use serde_json::Value;

use crate::{AppConfig, ConfigValue, InvalidConfig, findings::Findings};

/// Where a service listens, and with which certificate.
///
/// Read by programs that listen, not by [`EffectiveConfig`](crate::EffectiveConfig): the portal's own process has these keys,
/// too.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendConfig {
    /// Name or address to listen on, without brackets; empty: all interfaces.
    pub host: String,
    /// The port; 0 lets the system choose one.
    pub port: u16,
    /// Certificate and key; `None`: plain http.
    pub certificate: Option<ServerCertificate>,
}

/// A certificate as it stands in the configuration; nothing is parsed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerCertificate {
    /// The chain in PEM, the server's own certificate first.
    pub chain: String,
    /// The private key in PEM (PKCS #8, PKCS #1 or SEC 1).
    pub key: Secret,
}

impl BackendConfig {
    /// Reads `backend.listen` and `backend.https`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(config: &AppConfig) -> Result<Self, InvalidConfig> {
        let mut findings = Findings::default();
        let listen = findings.keep(listen(&config.value("backend.listen")));
        let certificate = findings.keep(certificate(&config.value("backend.https")));
        match (listen, certificate) {
            (Some((host, port)), Some(certificate)) => Ok(Self {
                host,
                port,
                certificate,
            }),
            _ => Err(InvalidConfig::new(findings.problems)),
        }
    }
}

fn listen(place: &ConfigValue<'_>) -> Result<(String, u16), Problem> {
    match place.unvanished()?.json() {
        None => Ok((String::new(), DEFAULT_PORT)),
        Some(Value::String(text)) => parse(&text).ok_or_else(|| unreadable(place, &text)),
        Some(Value::Number(number)) => {
            let text = number.to_string();
            parse(&text).ok_or_else(|| unreadable(place, &text))
        }
        _ => {
            place.optional_object()?;
            let (host, port) = (place.child("host"), place.child("port"));
            // Backstage lets the host be empty: all interfaces.
            let host = match host.unvanished()?.json() {
                Some(Value::String(text)) if text.is_empty() => "",
                _ => host.optional_string()?.unwrap_or_default(),
            };
            let number = match port.unvanished()?.optional_number()? {
                None => DEFAULT_PORT,
                Some(number) => number
                    .to_string()
                    .parse()
                    .map_err(|_| port.problem(format!("no port: {number}; expected 0 to 65535")))?,
            };
            Ok((unbracketed(host).to_owned(), number))
        }
    }
}

/// `7007`, `:7007`, `host:7007`, `[::1]:7007`.
fn parse(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let bare = unbracketed(host);
    let legal = bare.len() != host.len() || !bare.contains(':');
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    (legal && digits).then_some(())?;
    Some((bare.to_owned(), port.parse().ok()?))
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

fn unreadable(place: &ConfigValue<'_>, text: &str) -> Problem {
    place.problem(format!(
        "Unable to parse listen address {text}, expected <port> or <host>:<port>"
    ))
}

fn certificate(place: &ConfigValue<'_>) -> Result<Option<ServerCertificate>, Problem> {
    match place.unvanished()?.json() {
        None | Some(Value::Bool(false)) => return Ok(None),
        Some(Value::Bool(true)) => {
            return Err(place.problem(
                "no certificate is made up here, nobody could trust it: set 'backend.https.certificate.cert' and \
                 'backend.https.certificate.key' (PEM, usually by $file)",
            ));
        }
        Some(_) => place.optional_object()?,
    };
    let certificate = place.child("certificate");
    certificate.unvanished()?.optional_object()?;
    let (chain, key) = (certificate.child("cert"), certificate.child("key"));
    Ok(Some(ServerCertificate {
        chain: chain.unvanished()?.string()?.to_owned(),
        key: key.optional_secret()?.ok_or_else(|| key.missing())?,
    }))
}

/// Backstage's.
const DEFAULT_PORT: u16 = 7007;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Environment;

    fn read(text: &str) -> Result<BackendConfig, InvalidConfig> {
        let config = AppConfig::from_texts(&[("app-config.yaml", text)], &Environment::of([("", ""); 0]));
        BackendConfig::read(&config.expect("legal YAML"))
    }

    #[test]
    fn listen_address_is_read_as_backstage_reads_it() {
        for (listen, host, port) in [
            ("{}", "", 7007),
            ("backend: { listen: ':7000' }", "", 7000),
            ("backend: { listen: 7001 }", "", 7001),
            ("backend: { listen: '7001' }", "", 7001),
            (
                "backend: { listen: 'portal.example.com:80' }",
                "portal.example.com",
                80,
            ),
            ("backend: { listen: '[::1]:7007' }", "::1", 7007),
            (
                "backend: { listen: { host: 127.0.0.1, port: 8080 } }",
                "127.0.0.1",
                8080,
            ),
            ("backend: { listen: { host: '', port: '8080' } }", "", 8080),
            ("backend: { listen: { host: '[::]' } }", "::", 7007),
        ] {
            let backend = read(listen).expect(listen);
            assert_eq!((backend.host.as_str(), backend.port), (host, port), "{listen}");
            assert_eq!(backend.certificate, None);
        }
    }

    #[test]
    fn address_that_cannot_be_listened_on_is_refused_by_its_key() {
        for (listen, key) in [
            ("backend: { listen: 'host' }", "backend.listen"),
            ("backend: { listen: '::1:7007' }", "backend.listen"),
            ("backend: { listen: ':70000' }", "backend.listen"),
            ("backend: { listen: ':+80' }", "backend.listen"),
            ("backend: { listen: [1] }", "backend.listen"),
            ("backend: { listen: { port: 65536 } }", "backend.listen.port"),
            ("backend: { listen: { port: 1.5 } }", "backend.listen.port"),
            ("backend: { listen: { host: 7 } }", "backend.listen.host"),
            ("backend: { https: true }", "backend.https"),
            ("backend: { https: {} }", "backend.https.certificate.cert"),
            (
                "backend: { https: { certificate: { cert: a } } }",
                "backend.https.certificate.key",
            ),
            (
                "backend: { https: { certificate: { cert: '${UNSET}', key: b } } }",
                "backend.https.certificate.cert",
            ),
        ] {
            let problems = read(listen).expect_err(listen).problems;
            let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
            assert_eq!(keys, [key], "{listen}");
        }
    }
}
