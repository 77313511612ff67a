//! The first half of a login: the authorization request and the answer that comes back through the browser
//! (RFC 6749 section 4.1, OpenID Connect Core section 3.1.2).

use std::fmt;

use kube_authn_core::{ClientId, Error, ErrorKind, Issuer, Result, Secret};
use url::{Url, form_urlencoded};

use crate::{
    discovery::IssuerMetadata,
    pkce::{CodeVerifier, random_text},
};

/// A random text that ties an ID token to the login it was asked for (OpenID Connect Core section 15.5.2).
#[derive(Clone, PartialEq, Eq)]
pub struct Nonce(Secret);

impl Nonce {
    /// A new nonce of 256 random bits.
    ///
    /// # Errors
    /// `Unexpected` if the system has no random numbers.
    pub fn random() -> Result<Self> {
        Ok(Self(random_text()?))
    }

    /// The nonce that was kept since the login began.
    pub fn new(nonce: Secret) -> Self {
        Self(nonce)
    }

    /// Whether a claim equals it; takes constant time.
    pub(crate) fn is(&self, claim: &str) -> bool {
        !claim.is_empty() && self.0 == Secret::new(claim)
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce([redacted])")
    }
}

/// A login that began: where to send the browser, and what must come back. Keep it until the answer arrives, and use it for
/// one answer only.
#[derive(Clone)]
pub struct AuthorizationRequest {
    issuer: Issuer,
    issuer_is_named: bool,
    url: Url,
    redirect_uri: Url,
    state: Secret,
    nonce: Nonce,
    verifier: CodeVerifier,
}

impl AuthorizationRequest {
    /// Begins a login of this client: authorization code flow with PKCE S256, state and nonce, always.
    ///
    /// `redirect_uri` is where the browser comes back to, exactly as it is registered with the issuer. `scopes` are asked
    /// for in addition to `openid`.
    ///
    /// # Errors
    /// `ConfigInvalid` if the issuer has no authorization endpoint; `Unexpected` if the system has no random numbers.
    pub fn new(
        issuer: &IssuerMetadata,
        client_id: &ClientId,
        redirect_uri: Url,
        scopes: &[&str],
    ) -> Result<Self> {
        let endpoint = issuer.authorization_endpoint.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::ConfigInvalid,
                format!("issuer {} has no authorization endpoint", issuer.issuer),
            )
        })?;
        let (state, nonce, verifier) = (random_text()?, Nonce::random()?, CodeVerifier::random()?);
        let others = scopes.iter().copied().filter(|scope| *scope != "openid");
        let scope = ["openid"].into_iter().chain(others).collect::<Vec<_>>().join(" ");
        let mut url = endpoint.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", client_id.as_str())
            .append_pair("redirect_uri", redirect_uri.as_str())
            .append_pair("scope", &scope)
            .append_pair("state", state.expose_str().unwrap_or_default())
            .append_pair("nonce", nonce.0.expose_str().unwrap_or_default())
            .append_pair("code_challenge", &verifier.challenge())
            .append_pair("code_challenge_method", "S256");
        Ok(Self {
            issuer: issuer.issuer.clone(),
            issuer_is_named: issuer.names_issuer_in_answers,
            url,
            redirect_uri,
            state,
            nonce,
            verifier,
        })
    }

    /// Adds a parameter of the issuer's own, such as `prompt` or `organization`.
    pub fn with_parameter(mut self, name: &str, value: &str) -> Self {
        self.url.query_pairs_mut().append_pair(name, value);
        self
    }

    /// Where to send the browser. Holds state and nonce: show it to the user who logs in, do not log it.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The `state` that the answer will carry, to find this request among several.
    pub fn state(&self) -> &Secret {
        &self.state
    }

    /// The nonce that the ID token must carry.
    pub fn nonce(&self) -> &Nonce {
        &self.nonce
    }

    pub(crate) fn redirect_uri(&self) -> &Url {
        &self.redirect_uri
    }

    pub(crate) fn verifier(&self) -> &CodeVerifier {
        &self.verifier
    }

    /// Reads the query that the browser came back with: `state` first, then the issuer (RFC 9207), then the outcome.
    ///
    /// # Errors
    /// `RequestInvalid` if the answer is not one to this request: ignore it and keep waiting. `LoginRequired` if the user or
    /// the issuer said no, `Unavailable` if the issuer is out of order; neither repeats the text of the answer, which
    /// anybody can write.
    pub fn answer(&self, query: &str) -> Result<AuthorizationCode> {
        let query = query.strip_prefix('?').unwrap_or(query);
        if query.len() > MAX_QUERY_BYTES {
            return Err(not_ours("it is too long"));
        }
        let answer = Answer::parse(query)?;
        if answer.state.as_ref() != Some(&self.state) {
            return Err(not_ours("its state is that of no login that is under way"));
        }
        match &answer.issuer {
            Some(issuer) if issuer == self.issuer.as_str() => {}
            None if !self.issuer_is_named => {}
            _ => return Err(not_ours("it is not from the issuer that was asked")),
        }
        match (answer.code, answer.error) {
            (Some(code), None) if !code.is_empty() => Ok(AuthorizationCode(code)),
            (None, Some(error)) => Err(refusal(&self.issuer, &error)),
            _ => Err(not_ours("it holds neither a code nor an error")),
        }
    }
}

impl fmt::Debug for AuthorizationRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorizationRequest")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// A code to be exchanged for tokens, once.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorizationCode(Secret);

impl AuthorizationCode {
    pub(crate) fn secret(&self) -> &Secret {
        &self.0
    }
}

impl fmt::Debug for AuthorizationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorizationCode([redacted])")
    }
}

/// The parameters of an authorization answer (RFC 6749 section 4.1.2, RFC 9207 section 2).
#[derive(Default)]
struct Answer {
    state: Option<Secret>,
    code: Option<Secret>,
    issuer: Option<String>,
    error: Option<String>,
}

impl Answer {
    /// RFC 6749 section 3.1: no parameter may be there twice.
    fn parse(query: &str) -> Result<Self> {
        let mut answer = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let twice = match &*name {
                "state" => answer.state.replace(Secret::new(&*value)).is_some(),
                "code" => answer.code.replace(Secret::new(&*value)).is_some(),
                "iss" => answer.issuer.replace(value.into_owned()).is_some(),
                "error" => answer.error.replace(value.into_owned()).is_some(),
                _ => false,
            };
            if twice {
                return Err(not_ours("it holds a parameter twice"));
            }
        }
        Ok(answer)
    }
}

fn not_ours(why: &str) -> Error {
    Error::new(
        ErrorKind::RequestInvalid,
        format!("this is not the answer to a login: {why}"),
    )
}

/// Errors of RFC 6749 section 4.1.2.1 and OpenID Connect Core section 3.1.2.6; anything else stays unnamed.
fn refusal(issuer: &Issuer, error: &str) -> Error {
    let known = KNOWN_ERRORS.iter().find(|known| **known == error).copied();
    match known {
        Some("server_error" | "temporarily_unavailable") => Error::new(
            ErrorKind::Unavailable,
            format!("issuer {issuer} is out of order: log in again later"),
        ),
        known => Error::new(
            ErrorKind::LoginRequired,
            format!(
                "issuer {issuer} refused the login ({}): log in again",
                known.unwrap_or("for a reason of its own")
            ),
        ),
    }
}

const KNOWN_ERRORS: [&str; 16] = [
    "access_denied",
    "account_selection_required",
    "consent_required",
    "interaction_required",
    "invalid_request",
    "invalid_request_object",
    "invalid_request_uri",
    "invalid_scope",
    "login_required",
    "registration_not_supported",
    "request_not_supported",
    "request_uri_not_supported",
    "server_error",
    "temporarily_unavailable",
    "unauthorized_client",
    "unsupported_response_type",
];
/// Longer than any answer: browsers and servers stop at 8 KiB.
const MAX_QUERY_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn request(names_issuer: bool) -> AuthorizationRequest {
        let issuer = IssuerMetadata {
            issuer: Issuer::new("https://login.example.com/").expect("an issuer"),
            authorization_endpoint: Url::parse("https://login.example.com/authorize?tenant=1").ok(),
            token_endpoint: None,
            jwks_uri: Url::parse("https://login.example.com/jwks").expect("a URL"),
            revocation_endpoint: None,
            names_issuer_in_answers: names_issuer,
            secret_in_form_only: false,
        };
        let client = ClientId::new("kubernetes").expect("a client");
        let redirect = Url::parse("http://127.0.0.1:8000/callback").expect("a URL");
        AuthorizationRequest::new(&issuer, &client, redirect, &["openid", "email"]).expect("a request")
    }

    fn state(request: &AuthorizationRequest) -> &str {
        request.state.expose_str().expect("text")
    }

    #[test]
    fn request_carries_state_nonce_and_an_s256_challenge() {
        let request = request(false);

        let query: HashMap<_, _> = request.url().query_pairs().into_owned().collect();

        assert_eq!(query["tenant"], "1");
        assert_eq!(query["response_type"], "code");
        assert_eq!(query["scope"], "openid email");
        assert_eq!(query["redirect_uri"], "http://127.0.0.1:8000/callback");
        assert_eq!(query["state"], state(&request));
        assert!(request.nonce().is(&query["nonce"]));
        assert_eq!(query["code_challenge"], request.verifier.challenge());
        assert_eq!(query["code_challenge_method"], "S256");
    }

    #[test]
    fn answer_with_another_state_never_gives_a_code() {
        let (ours, other) = (request(false), request(false));

        for query in [
            format!("code=c&state={}", state(&other)),
            "code=c".to_owned(),
            "code=c&state=".to_owned(),
            format!("code=c&state={}&state={}", state(&ours), state(&other)),
            format!("code=c&code=d&state={}", state(&ours)),
            format!("state={}", state(&ours)),
            format!("code=&state={}", state(&ours)),
        ] {
            let error = ours.answer(&query).expect_err("not ours");

            assert_eq!(error.kind(), ErrorKind::RequestInvalid);
            assert!(!error.to_string().contains(state(&ours)));
        }
        assert!(ours.answer(&format!("?code=c&state={}", state(&ours))).is_ok());
    }

    #[test]
    fn answer_of_another_issuer_never_gives_a_code() {
        let (named, unnamed) = (request(true), request(false));
        let answer = |request: &AuthorizationRequest, iss: &str| {
            request.answer(&format!("code=c&state={}{iss}", state(request)))
        };

        assert!(answer(&named, "&iss=https%3A%2F%2Flogin.example.com%2F").is_ok());
        assert!(answer(&named, "").is_err());
        assert!(answer(&named, "&iss=https%3A%2F%2Fevil.example%2F").is_err());
        assert!(answer(&unnamed, "").is_ok());
        assert!(answer(&unnamed, "&iss=https%3A%2F%2Flogin.example.com").is_err());
    }

    #[test]
    fn text_of_a_refusal_is_never_repeated() {
        let request = request(false);
        let kind = |error: &str| {
            let query = format!(
                "error={error}&error_description=%3Cscript%3Ecanary&state={}",
                state(&request)
            );
            let failure = request.answer(&query).expect_err("refused");
            assert!(!format!("{failure} {failure:?}").contains("canary"));
            failure.kind()
        };

        assert_eq!(kind("access_denied"), ErrorKind::LoginRequired);
        assert_eq!(kind("%3Cscript%3Ecanary"), ErrorKind::LoginRequired);
        assert_eq!(kind("temporarily_unavailable"), ErrorKind::Unavailable);
    }

    #[test]
    fn debug_shows_no_secret() {
        let request = request(false);

        let shown = format!("{request:?} {:?} {:?}", request.nonce(), request.verifier());

        assert!(!shown.contains(state(&request)) && !shown.contains("challenge"));
    }
}
