//! A browser for the issuers' development forms, so that tests sign in without one.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use serde_json::Value;
use url::{Url, form_urlencoded};

use crate::{
    error::{Context, Error, Result},
    http::Http,
};

/// A cookie jar and the patience to fill in forms. One browser is one person's session.
#[derive(Debug)]
pub struct Browser {
    http: Http,
    cookies: Vec<Cookie>,
}

#[derive(Debug)]
struct Cookie {
    name: String,
    value: String,
    path: String,
}

/// Where filling in forms has led.
enum End {
    /// The issuer sends the browser to another origin: the client's redirect URI.
    Away(Url),
    /// A page without a form.
    Page,
}

/// Login, consent and the redirects between them are about ten.
const MAX_STEPS: usize = 25;

impl Browser {
    /// A browser without cookies that trusts `ca_pem`.
    ///
    /// # Errors
    /// When there is no certificate in `ca_pem`.
    pub fn new(ca_pem: &str) -> Result<Self> {
        Ok(Self {
            http: Http::new(ca_pem)?,
            cookies: Vec::new(),
        })
    }

    /// Opens an authorization URL, signs in as `username`, consents, and returns the redirect URI with its code (or its
    /// error). The redirect URI itself isn't opened.
    ///
    /// # Errors
    /// When the issuer answers something else than forms and redirects.
    pub async fn follow_login(&mut self, authorize_url: &Url, username: &str) -> Result<Url> {
        match self.follow(authorize_url, username).await? {
            End::Away(url) => Ok(url),
            End::Page => Err(Error::new(format!(
                "{} ended on a page without a form",
                authorize_url.path()
            ))),
        }
    }

    /// Opens a device flow's `verification_uri_complete` and approves it as `username`.
    ///
    /// # Errors
    /// As [`Browser::follow_login`].
    pub async fn approve_device(&mut self, verification_uri: &Url, username: &str) -> Result<()> {
        match self.follow(verification_uri, username).await? {
            End::Page => Ok(()),
            End::Away(_) => Err(Error::new("the device page led elsewhere")),
        }
    }

    async fn follow(&mut self, start: &Url, username: &str) -> Result<End> {
        let mut url = start.clone();
        let mut form = None;
        for _ in 0..MAX_STEPS {
            let answer = self.open(&url, form.take()).await?;
            if answer.status().is_redirection() {
                let location = answer
                    .headers()
                    .get(header::LOCATION)
                    .and_then(|value| value.to_str().ok());
                url = url
                    .join(location.unwrap_or_default())
                    .context("follow a redirect")?;
                if url.origin() != start.origin() {
                    return Ok(End::Away(url));
                }
                continue;
            }
            if answer.status() != StatusCode::OK {
                return Err(Error::new(format!("{} answered {}", url.path(), answer.status())));
            }
            let page = String::from_utf8_lossy(answer.body()).into_owned();
            let Some((action, fields)) = filled_form(&page, username) else {
                return Ok(End::Page);
            };
            url = url.join(&action).context("read a form's action")?;
            form = Some(fields);
        }
        Err(Error::new(format!(
            "{} asks for more than {MAX_STEPS} steps",
            start.path()
        )))
    }

    async fn open(&mut self, url: &Url, form: Option<String>) -> Result<Response<Bytes>> {
        let cookies: Vec<String> = self
            .cookies
            .iter()
            .filter(|cookie| url.path().starts_with(&cookie.path))
            .map(|cookie| format!("{}={}", cookie.name, cookie.value))
            .collect();
        let mut request = Request::builder()
            .uri(url.as_str())
            .header(header::COOKIE, cookies.join("; "));
        if form.is_some() {
            request = request
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let request = request
            .body(Bytes::from(form.unwrap_or_default()))
            .context("write a request")?;
        let answer = self.http.send(request).await?;
        for line in answer.headers().get_all(header::SET_COOKIE) {
            self.keep(line.to_str().context("read a cookie")?);
        }
        Ok(answer)
    }

    fn keep(&mut self, line: &str) {
        let mut parts = line.split(';').map(str::trim);
        let (name, value) = parts
            .next()
            .and_then(|pair| pair.split_once('='))
            .unwrap_or_default();
        let path = parts.find_map(|part| part.strip_prefix("path=")).unwrap_or("/");
        self.cookies
            .retain(|cookie| cookie.name != name || cookie.path != path);
        // An empty value is how the issuers take a cookie back.
        if !value.is_empty() {
            self.cookies.push(Cookie {
                name: name.to_owned(),
                value: value.to_owned(),
                path: path.to_owned(),
            });
        }
    }
}

/// Signs `username` in at `issuer` by authorization code and PKCE, and returns the token endpoint's answer.
pub(crate) async fn sign_in(ca_pem: &str, issuer: &str, username: &str, client: &str) -> Result<Value> {
    const REDIRECT_URI: &str = "http://127.0.0.1:1/callback";
    let http = Http::new(ca_pem)?;
    let metadata = get_json(&http, &format!("{issuer}/.well-known/openid-configuration")).await?;
    let (verifier, state) = (random()?, random()?);
    let challenge = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes());

    let mut url =
        Url::parse(text(&metadata, "authorization_endpoint")?).context("read the authorization endpoint")?;
    url.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", client)
        .append_pair("redirect_uri", REDIRECT_URI)
        .append_pair("scope", "openid email profile groups offline_access")
        .append_pair("state", &state)
        .append_pair("nonce", &random()?)
        .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(challenge))
        .append_pair("code_challenge_method", "S256");
    let redirect = Browser::new(ca_pem)?.follow_login(&url, username).await?;
    let answer = |name: &str| {
        redirect
            .query_pairs()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    };
    if answer("state").as_deref() != Some(&*state) || answer("iss").as_deref() != Some(issuer) {
        return Err(Error::new("the redirect has another state or issuer"));
    }
    let code = answer("code").ok_or_else(|| Error::new("the redirect has no code"))?;

    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "authorization_code")
        .append_pair("code", &code)
        .append_pair("redirect_uri", REDIRECT_URI)
        .append_pair("client_id", client)
        .append_pair("code_verifier", &verifier)
        .finish();
    let request = Request::post(text(&metadata, "token_endpoint")?)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Bytes::from(form))
        .context("write the token request")?;
    json(&http.send(request).await?)
}

/// A GET that must answer 200 and JSON.
pub(crate) async fn get_json(http: &Http, url: &str) -> Result<Value> {
    let request = Request::get(url).body(Bytes::new()).context("write a request")?;
    json(&http.send(request).await?)
}

/// The body of an answer that must be 200 and JSON.
pub(crate) fn json(answer: &Response<Bytes>) -> Result<Value> {
    if answer.status() != StatusCode::OK {
        return Err(Error::new(format!("the answer is {}", answer.status())));
    }
    serde_json::from_slice(answer.body()).context("read a JSON answer")
}

fn text<'a>(object: &'a Value, key: &str) -> Result<&'a str> {
    object[key]
        .as_str()
        .ok_or_else(|| Error::new(format!("the issuer's metadata has no {key}")))
}

fn random() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("get random bytes")?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The first form's action and its fields, filled in.
fn filled_form(page: &str, username: &str) -> Option<(String, String)> {
    let (_, form) = page.split_once("<form")?;
    let form = form.split("</form>").next()?;
    let action = attribute(form.split('>').next()?, "action")?;
    let mut fields = form_urlencoded::Serializer::new(String::new());
    for input in form.split("<input").skip(1) {
        let input = input.split('>').next().unwrap_or_default();
        let Some(name) = attribute(input, "name") else {
            continue;
        };
        let value = match name.as_str() {
            "login" => username.to_owned(),
            "password" => "any".to_owned(),
            _ => attribute(input, "value").unwrap_or_default(),
        };
        fields.append_pair(&name, &value);
    }
    Some((action, fields.finish()))
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    let value = rest.split('"').next()?;
    Some(
        value
            .replace("&quot;", "\"")
            .replace("&#x27;", "'")
            .replace("&#39;", "'")
            .replace("&amp;", "&"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_fields_keep_their_value_and_the_login_is_filled_in() {
        let page = r#"<p></p><form autocomplete="off" action="/a?x=1&amp;y=2" method="post">
            <input type="hidden" name="prompt" value="login"/><input required type="text" name="login" >
            <input type="password" name="password"></form><a>"#;

        let form = filled_form(page, "alice");

        assert_eq!(
            form,
            Some((
                "/a?x=1&y=2".into(),
                "prompt=login&login=alice&password=any".into()
            ))
        );
    }

    #[test]
    fn a_cookie_taken_back_is_forgotten() {
        let mut browser = Browser {
            http: Http::new("").unwrap(),
            cookies: Vec::new(),
        };

        browser.keep("session=1; path=/; secure");
        browser.keep("resume=2; path=/auth/x; httponly");
        browser.keep("session=; path=/; expires=Thu, 01 Jan 1970 00:00:00 GMT");

        let names: Vec<_> = browser
            .cookies
            .iter()
            .map(|cookie| (&*cookie.name, &*cookie.path))
            .collect();
        assert_eq!(names, [("resume", "/auth/x")]);
    }
}
