//! `kubeAuthn.callers`: who may call us.

use std::net::IpAddr;

use kube_authn_core::{CaBundle, EntityRef, Issuer, Problem, http::HeaderName};
use url::Url;

use crate::{ConfigValue, findings::Findings};

/// One way for callers to prove who they are; the configured ones are tried in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallerConfig {
    /// User and plugin tokens of a Backstage portal.
    Backstage(BackstageCaller),
    /// Bearer tokens of an OpenID Connect issuer.
    Oidc(OidcCaller),
    /// A header that a gateway in front of us sets.
    Header(HeaderCaller),
}

/// A Backstage portal whose tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackstageCaller {
    /// Base URL of the portal's auth plugin, without trailing slash; its keys are under `/.well-known/jwks.json`.
    pub base_url: Url,
    /// Trust for the portal.
    pub ca: CaBundle,
}

/// An issuer whose tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OidcCaller {
    /// The issuer, compared byte for byte.
    pub issuer: Issuer,
    /// The audience that a token must be for.
    pub audience: String,
    /// Trust for the issuer's endpoints.
    pub ca: CaBundle,
    /// How a token names the user; `None`: by a hash over issuer and subject.
    pub principal: Option<PrincipalMapping>,
}

/// From which claim the user's entity reference is made: `<kind>:<namespace>/<value of claim>`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrincipalMapping {
    /// The claim that holds the name.
    pub claim: String,
    /// The entity's kind, `user`.
    pub kind: String,
    /// The entity's namespace, `default`.
    pub namespace: String,
}

/// A gateway that authenticates callers and says who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeaderCaller {
    /// From whom the header is believed; never empty.
    pub trusted_peers: Vec<PeerRange>,
    /// The header that holds the user.
    pub user: HeaderName,
}

/// A range of addresses in CIDR notation, `10.0.0.0/8`; an address alone is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerRange {
    network: IpAddr,
    prefix: u8,
}

impl PeerRange {
    /// Parses the text; `None` if it is no range.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let network: IpAddr = address.parse().ok()?;
        let bits = if network.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
        };
        (prefix <= bits).then_some(Self { network, prefix })
    }

    /// Whether the address is in the range. An IPv4 address that arrived over IPv6 (`::ffff:10.0.0.1`) is taken for
    /// what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    fn is_everybody(&self) -> bool {
        self.prefix == 0
    }
}

/// Reads `kubeAuthn.callers`; without it, the portal of `backend.baseUrl` if there is one.
pub(crate) fn read(
    list: &ConfigValue<'_>,
    backend_url: &ConfigValue<'_>,
    findings: &mut Findings,
) -> Vec<CallerConfig> {
    let Some(elements) = findings.keep(list.optional_objects()) else {
        return Vec::new();
    };
    match elements {
        None if backend_url.is_absent() => Vec::new(),
        None => findings
            .keep(portal_url(backend_url))
            .map(|base_url| {
                let ca = CaBundle::System;
                CallerConfig::Backstage(BackstageCaller { base_url, ca })
            })
            .into_iter()
            .collect(),
        Some(elements) => elements
            .into_iter()
            .filter_map(|element| {
                let caller = findings.keep(element)?;
                read_caller(&caller, backend_url, findings)
            })
            .collect(),
    }
}

fn read_caller(
    caller: &ConfigValue<'_>,
    backend_url: &ConfigValue<'_>,
    findings: &mut Findings,
) -> Option<CallerConfig> {
    let place = caller.child("type");
    match findings.keep(place.string())? {
        "backstage" => backstage(caller, backend_url, findings).map(CallerConfig::Backstage),
        "oidc" => oidc(caller, findings).map(CallerConfig::Oidc),
        "header" => header(caller, findings).map(CallerConfig::Header),
        _ => {
            findings.push(place.problem("expected one of backstage, oidc, header"));
            None
        }
    }
}

fn backstage(
    caller: &ConfigValue<'_>,
    backend_url: &ConfigValue<'_>,
    findings: &mut Findings,
) -> Option<BackstageCaller> {
    findings.extend(caller.unknown_keys(&["type", "baseUrl", "caFile"]));
    let own = caller.child("baseUrl");
    let base_url = match own.is_absent() && !backend_url.is_absent() {
        true => portal_url(backend_url),
        false => own.string().and_then(|text| http_url(&own, text)),
    };
    let base_url = findings.keep(base_url);
    let ca = findings.keep(caller.child("caFile").ca_file()).flatten();
    Some(BackstageCaller {
        base_url: base_url?,
        ca: ca.unwrap_or(CaBundle::System),
    })
}

fn oidc(caller: &ConfigValue<'_>, findings: &mut Findings) -> Option<OidcCaller> {
    findings.extend(caller.unknown_keys(&["type", "issuer", "audience", "caFile", "principal"]));
    let place = caller.child("issuer");
    let issuer = place
        .string()
        .and_then(|text| Issuer::new(text).map_err(|error| place.problem(error.to_string())));
    let issuer = findings.keep(issuer);
    let audience = findings.keep(caller.child("audience").string());
    let ca = findings.keep(caller.child("caFile").ca_file()).flatten();
    let principal = principal(&caller.child("principal"), findings);
    Some(OidcCaller {
        issuer: issuer?,
        audience: audience?.to_owned(),
        ca: ca.unwrap_or(CaBundle::System),
        principal,
    })
}

fn principal(block: &ConfigValue<'_>, findings: &mut Findings) -> Option<PrincipalMapping> {
    findings
        .keep(block.optional_object().map(|block| block.is_some()))?
        .then_some(())?;
    findings.extend(block.unknown_keys(&["claim", "kind", "namespace"]));
    let claim = findings.keep(block.child("claim").string());
    let mut part = |key: &str, default: &str| {
        let place = block.child(key);
        let text = findings
            .keep(place.optional_string())
            .flatten()
            .unwrap_or(default);
        if EntityRef::parse(&format!("{text}:default/name")).is_err() {
            findings.push(place.problem("expected visible ASCII without ':' and '/'"));
        }
        text.to_owned()
    };
    let (kind, namespace) = (part("kind", "user"), part("namespace", "default"));
    Some(PrincipalMapping {
        claim: claim?.to_owned(),
        kind,
        namespace,
    })
}

fn header(caller: &ConfigValue<'_>, findings: &mut Findings) -> Option<HeaderCaller> {
    findings.extend(caller.unknown_keys(&["type", "trustedPeers", "user"]));
    let place = caller.child("user");
    let user = place.string().and_then(|name| {
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| place.problem("not the name of a header"))
    });
    let user = findings.keep(user);
    let peers = caller.child("trustedPeers");
    let texts = peers.optional_strings().and_then(|texts| {
        texts
            .filter(|texts| !texts.is_empty())
            .ok_or_else(|| peers.missing())
    });
    let mut trusted_peers = Vec::new();
    for (index, text) in findings.keep(texts)?.into_iter().enumerate() {
        match PeerRange::parse(text) {
            Some(range) if range.is_everybody() => {
                findings.warn(format!(
                    "{} holds {text}: anybody who reaches us can be anybody",
                    peers.key()
                ));
                trusted_peers.push(range);
            }
            Some(range) => trusted_peers.push(range),
            None => findings.push(peers.element(index).problem(format!(
                "{text:?} is no range of addresses: expected CIDR notation, such as 10.0.0.0/8"
            ))),
        }
    }
    Some(HeaderCaller {
        trusted_peers,
        user: user?,
    })
}

/// The auth plugin of the portal at this base URL.
fn portal_url(backend_url: &ConfigValue<'_>) -> Result<Url, Problem> {
    let base = backend_url.string()?.trim_end_matches('/');
    http_url(backend_url, &format!("{base}/api/auth"))
}

pub(crate) fn http_url(place: &ConfigValue<'_>, text: &str) -> Result<Url, Problem> {
    let refuse = |what: &str| place.problem(format!("not a base URL: {what}"));
    let url = Url::parse(text.trim_end_matches('/')).map_err(|error| refuse(&error.to_string()))?;
    match () {
        () if !matches!(url.scheme(), "http" | "https") => Err(refuse("expected http:// or https://")),
        () if !url.username().is_empty() || url.password().is_some() => {
            Err(refuse("it must not contain credentials"))
        }
        () if url.query().is_some() || url.fragment().is_some() => {
            Err(refuse("it must have neither query nor fragment"))
        }
        () => Ok(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_outside_the_range_is_no_trusted_peer() {
        for (range, inside, outside) in [
            ("127.0.0.1/32", "127.0.0.1", "127.0.0.2"),
            ("10.0.0.0/8", "::ffff:10.9.8.7", "11.0.0.1"),
            ("192.168.1.7", "192.168.1.7", "192.168.1.6"),
            ("fd00::/8", "fd12::1", "fe80::1"),
            ("10.0.0.0/8", "10.0.0.1", "::a00:1"),
        ] {
            let parsed = PeerRange::parse(range).expect(range);

            assert!(
                parsed.contains(inside.parse().expect("an address")),
                "{range} {inside}"
            );
            assert!(
                !parsed.contains(outside.parse().expect("an address")),
                "{range} {outside}"
            );
        }
        let all = PeerRange::parse("0.0.0.0/0").expect("a range");
        assert!(all.contains("8.8.8.8".parse().expect("an address")) && all.is_everybody());
    }

    #[test]
    fn text_that_is_no_range_is_refused() {
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "::/129",
            "host",
            "10.0.0/8",
        ] {
            assert_eq!(PeerRange::parse(text), None, "{text:?}");
        }
    }
}
