//! Header lines: what a client may not say, what it says to us alone, and what an API server may not say to a browser.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use kube_authn_core::{Error, ErrorKind, RequestAuth, Result, Secret, strip_identity};
use url::Url;

/// What the headers say to us.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// `Backstage-Kubernetes-Cluster`; `None` if it is absent or blank.
    pub(super) cluster: Option<String>,
    /// Tokens that the caller offers.
    pub(super) auth: RequestAuth,
}

/// Takes what is meant for us, and leaves only what may reach an API server. What concerns one connection goes later, in
/// core, right before the credential's own lines are set. `names_callers` are the headers by which gateways of ours name
/// users, of whatever spelling.
///
/// # Errors
/// `Refused` for impersonation; `RequestInvalid` if a line that we read is given twice.
pub(super) fn take(headers: &mut HeaderMap, names_callers: &[HeaderName]) -> Result<Told> {
    let mut told = Told::default();
    let mut doomed = Vec::new();
    for name in headers.keys() {
        match fate(name.as_str()) {
            Fate::Passes if !same_as_any(name.as_str(), names_callers) => {}
            Fate::Refused => {
                return Err(Error::new(
                    ErrorKind::Refused,
                    "impersonation is not offered here",
                ));
            }
            Fate::Passes | Fate::Stripped => doomed.push(name.clone()),
        }
    }
    for name in doomed {
        if let Some(rest) = name.as_str().strip_prefix(OURS) {
            told.listen(rest, headers.get_all(&name).iter())?;
        }
        headers.remove(name);
    }
    strip_identity(headers);
    Ok(told)
}

impl Told {
    fn listen<'a>(&mut self, name: &str, lines: impl Iterator<Item = &'a HeaderValue>) -> Result<()> {
        let mut lines = lines.map(|line| line.as_bytes().trim_ascii());
        let value = lines.next().unwrap_or_default();
        let offered = name.strip_prefix(OFFERED);
        if name != CLUSTER && name != AUTHORIZATION && offered.is_none() {
            return Ok(());
        }
        if lines.next().is_some() {
            let text = format!("the header {OURS}{name} stands there twice");
            return Err(Error::new(ErrorKind::RequestInvalid, text));
        }
        if value.is_empty() {
            return Ok(());
        }
        match offered {
            _ if name == CLUSTER => self.cluster = Some(String::from_utf8_lossy(value).into_owned()),
            Some(provider) => {
                self.auth = std::mem::take(&mut self.auth).with_header(provider, Secret::new(value))
            }
            None => self.auth = std::mem::take(&mut self.auth).with_authorization(Secret::new(value)),
        }
        Ok(())
    }
}

/// Removes from the fields behind a body what may not stand before it, and what decides on framing or routing (RFC 9110
/// section 6.5.1).
pub(super) fn clean_trailers(trailers: &mut HeaderMap, names_callers: &[HeaderName]) {
    retain(trailers, |name| {
        fate(name) == Fate::Passes && !FRAMING.contains(&name) && !same_as_any(name, names_callers)
    });
    strip_identity(trailers);
}

/// Removes from an answer what would speak for our origin in a browser, and credentials
/// from `Location`. Pods answer too, through `.../proxy`.
pub(super) fn clean_answer(headers: &mut HeaderMap) {
    retain(headers, |name| {
        !SPEAKS_FOR_ORIGIN.contains(&name) && !name.starts_with("access-control-")
    });
    let Some(location) = headers.get(header::LOCATION) else {
        return;
    };
    match without_user_info(location.as_bytes()) {
        Ok(None) => {}
        Ok(Some(clean)) => {
            headers.insert(header::LOCATION, clean);
        }
        Err(NoLocation) => {
            headers.remove(header::LOCATION);
        }
    }
}

/// Takes away from a page that a pod answers with what it could do as a page of our origin: its scripts, forms and plugins do
/// not run, and nothing else is taken for a page or a script. Clients of Kubernetes ignore both lines.
pub(super) fn confine(headers: &mut HeaderMap) {
    // Beside a policy of the pod's own: of several, each holds.
    headers.append(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
}

/// Removes from the fields behind an answer what may not stand before it, and what would undo [`confine`].
pub(super) fn clean_answer_trailers(trailers: &mut HeaderMap) {
    clean_answer(trailers);
    trailers.remove(header::CONTENT_SECURITY_POLICY);
    trailers.remove(header::X_CONTENT_TYPE_OPTIONS);
}

fn retain(headers: &mut HeaderMap, stays: impl Fn(&str) -> bool) {
    if headers.keys().all(|name| stays(name.as_str())) {
        return;
    }
    let doomed: Vec<_> = headers
        .keys()
        .filter(|name| !stays(name.as_str()))
        .cloned()
        .collect();
    for name in doomed {
        headers.remove(name);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passes,
    Stripped,
    Refused,
}

/// A gateway or a server's environment folds every other character of a name into one (`X_Remote-User`), so none counts
/// here. Names are lower-case already.
fn fate(name: &str) -> Fate {
    let begins = |prefix: &str| {
        let mut letters = name.bytes().filter(u8::is_ascii_alphanumeric);
        prefix.bytes().all(|letter| letters.next() == Some(letter))
    };
    match name.bytes().find(u8::is_ascii_alphanumeric) {
        Some(b'i') if begins("impersonate") => Fate::Refused,
        Some(b'a' | b'b' | b'c' | b'f' | b'p' | b'x') if STRIPPED.into_iter().any(begins) => Fate::Stripped,
        _ => Fate::Passes,
    }
}

/// Whether a header is one of these, for readers who fold names as [`fate`] says.
fn same_as_any(name: &str, others: &[HeaderName]) -> bool {
    let letters = |name: &str| -> Vec<u8> { name.bytes().filter(u8::is_ascii_alphanumeric).collect() };
    !others.is_empty() && {
        let name = letters(name);
        others.iter().any(|other| letters(other.as_str()) == name)
    }
}

struct NoLocation;

/// The location without `user:password@`, `None` if there is none in it. Read as browsers do, who find user info in
/// `https:u@host` and `\\\\u@host` too.
fn without_user_info(location: &[u8]) -> Result<Option<HeaderValue>, NoLocation> {
    // A base of another scheme, or `https:u@host` would be relative to it.
    let base = Url::parse("ftp://relative.invalid/").map_err(|_| NoLocation)?;
    let text = std::str::from_utf8(location).map_err(|_| NoLocation)?;
    let mut url = match base.join(text) {
        Ok(url) => url,
        // Nobody can follow it; it stays as it is unless it may hold a password.
        Err(_) if text.contains('@') => return Err(NoLocation),
        Err(_) => return Ok(None),
    };
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    url.set_username("").map_err(|()| NoLocation)?;
    url.set_password(None).map_err(|()| NoLocation)?;
    let clean = match Url::parse(text) {
        Ok(_) => url.as_str(),
        Err(_) => url.as_str().trim_start_matches("ftp:"),
    };
    HeaderValue::try_from(clean).map(Some).map_err(|_| NoLocation)
}

/// Beginnings of names that only this service may read, or that nobody but a gateway may write: what oauth2-proxy, Cloudflare
/// Access, Google's Identity-Aware Proxy, AWS's load balancers and Azure's App Service say of users among them.
const STRIPPED: [&str; 15] = [
    "authorization",
    "backstage",
    "cfaccess",
    "cookie",
    "forwarded",
    "proxyauthorization",
    "xamznoidc",
    "xauthrequest",
    "xforwarded",
    "xgoogauthenticateduser",
    "xgoogiap",
    "xmsclientprincipal",
    "xmstoken",
    "xremote",
    "xrealip",
];

const OURS: &str = "backstage-kubernetes-";
const CLUSTER: &str = "cluster";
const AUTHORIZATION: &str = "authorization";
const OFFERED: &str = "authorization-";

/// What decides on the length and the recipient of a message.
const FRAMING: [&str; 7] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// State of a browser for our origin: cookies beside the portal's, another server for it, its transport, its workers, where it
/// reports to, what it tells about itself, whether somebody is signed in, and where it goes next.
const SPEAKS_FOR_ORIGIN: [&str; 13] = [
    "accept-ch",
    "alt-svc",
    "clear-site-data",
    "critical-ch",
    "nel",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "service-worker-allowed",
    "set-cookie",
    "set-cookie2",
    "set-login",
    "strict-transport-security",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn impersonation_is_refused_in_any_spelling() {
        for name in [
            "impersonate-user",
            "impersonate_user",
            "impersonate-extra-a%2fb",
            "impersonate.group",
            "_impersonate-uid",
            "impersonateuser",
            "im-personate-user",
        ] {
            let error = take(&mut headers(&[(name, "root")]), &[]).expect_err(name);

            assert_eq!(
                (error.kind(), error.to_string().as_str()),
                (ErrorKind::Refused, "impersonation is not offered here")
            );
        }
    }

    #[test]
    fn what_a_client_says_about_itself_is_stripped() {
        let mut headers = headers(&[
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("x-remote-user", "root"),
            ("x_remote-group", "root"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x_forwarded_client_cert", "x"),
            ("forwarded", "for=1.1.1.1"),
            ("backstage-token", "x"),
            ("proxy-authorization", "x"),
            ("x-sso-user", "root"),
            ("x_sso_user", "root"),
            ("x-sso-user-agent", "1"),
            ("accept", "*/*"),
            ("x-request-id", "1"),
            ("if-match", "1"),
        ]);

        take(&mut headers, &[HeaderName::from_static("x-sso-user")]).expect("taken");

        assert_eq!(
            names(&headers),
            ["accept", "if-match", "x-request-id", "x-sso-user-agent"]
        );
    }

    #[test]
    fn offered_tokens_are_taken_and_not_passed_on() {
        let mut headers = headers(&[
            ("backstage-kubernetes-cluster", " prod "),
            ("backstage-kubernetes-authorization-google", "g"),
            ("backstage-kubernetes-authorization-oidc-corp-sso", "o"),
            ("backstage-kubernetes-authorization", "Basic x"),
        ]);

        let told = take(&mut headers, &[]).expect("taken");

        assert_eq!(told.cluster.as_deref(), Some("prod"));
        assert_eq!(told.auth.token("google"), Some(&Secret::new("g")));
        assert_eq!(told.auth.oidc_token("corp-sso"), Some(&Secret::new("o")));
        assert_eq!(told.auth.authorization(), Some(&Secret::new("Basic x")));
        assert!(headers.is_empty());
    }

    #[test]
    fn blank_lines_say_nothing_and_double_ones_are_refused() {
        let blank = take(
            &mut headers(&[
                ("backstage-kubernetes-cluster", " "),
                ("backstage-kubernetes-authorization", ""),
            ]),
            &[],
        )
        .expect("taken");
        assert!(blank.cluster.is_none() && blank.auth.is_empty());

        let double = take(
            &mut headers(&[
                ("backstage-kubernetes-cluster", "a"),
                ("backstage-kubernetes-cluster", "b"),
            ]),
            &[],
        );
        assert_eq!(double.expect_err("refused").kind(), ErrorKind::RequestInvalid);
    }

    #[test]
    fn location_loses_credentials_and_nothing_else() {
        let cleaned = |location: &'static str| {
            let mut headers = headers(&[("location", location)]);
            clean_answer(&mut headers);
            headers.remove("location")
        };
        for same in [
            "/api/v1",
            "https://a:1/b?c=d@e#f@g",
            "//a/b@c",
            "a/b@c",
            "?x=https://u:p@a",
            "../u@b",
        ] {
            assert_eq!(cleaned(same).expect("kept"), same);
        }
        for (location, clean) in [
            ("https://u:p@a:1/b@c", "https://a:1/b@c"),
            ("//u@a", "//a/"),
            ("https:u:p@a", "https://a/"),
            ("https:\\\\u:p@q@a/", "https://a/"),
            ("\\/u:p@a/b", "//a/b"),
            ("ws://:p@a/", "ws://a/"),
        ] {
            assert_eq!(cleaned(location).expect("kept"), clean);
        }
    }

    #[test]
    fn page_of_a_pod_never_escapes_its_sandbox() {
        let mut headers = headers(&[
            (
                "content-security-policy",
                "sandbox allow-scripts allow-same-origin",
            ),
            ("x-content-type-options", "none"),
        ]);
        let mut trailers = headers.clone();
        trailers.insert("x-sum", HeaderValue::from_static("1"));

        confine(&mut headers);
        clean_answer_trailers(&mut trailers);

        let policies: Vec<_> = headers.get_all("content-security-policy").iter().collect();
        assert_eq!(policies, ["sandbox allow-scripts allow-same-origin", "sandbox"]);
        let types: Vec<_> = headers.get_all("x-content-type-options").iter().collect();
        assert_eq!(types, ["nosniff"]);
        assert_eq!(names(&trailers), ["x-sum"]);
    }

    #[test]
    fn answer_never_speaks_for_our_origin() {
        let mut headers = headers(&[
            ("set-cookie", "session=x"),
            ("alt-svc", "h2=\"evil:443\""),
            ("nel", "{}"),
            ("report-to", "{}"),
            ("reporting-endpoints", "a=\"https://evil/\""),
            ("refresh", "0; url=https://evil/"),
            ("accept-ch", "Sec-CH-UA-Model"),
            ("critical-ch", "Sec-CH-UA-Model"),
            ("set-login", "logged-out"),
            ("access-control-allow-origin", "*"),
            ("content-type", "text/html"),
            ("audit-id", "1"),
        ]);

        clean_answer(&mut headers);

        assert_eq!(names(&headers), ["audit-id", "content-type"]);
    }
}
