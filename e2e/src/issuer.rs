//! One of the two issuers, and the tests' ways to make trouble for it.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use serde_json::Value;
use url::form_urlencoded;

use crate::{
    browser,
    error::{Context, Error, Result},
    http::Http,
};

/// An OpenID Connect issuer of the test cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Issuer {
    name: &'static str,
    url: String,
    admin: String,
    ca_pem: String,
    http: Http,
}

impl Issuer {
    pub(crate) fn new(name: &'static str, port: u16, admin_port: u16, ca_pem: &str) -> Result<Self> {
        Ok(Self {
            name,
            url: format!("https://127.0.0.1:{port}"),
            admin: format!("http://127.0.0.1:{admin_port}/{name}"),
            ca_pem: ca_pem.to_owned(),
            http: Http::new(ca_pem)?,
        })
    }

    /// The issuer identifier, `https://127.0.0.1:port`, as it stands in `iss`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Signs `username` in by authorization code and PKCE, consents, and returns the token endpoint's answer.
    ///
    /// # Errors
    /// When the issuer doesn't answer or refuses.
    pub async fn sign_in(&self, username: &str, client_id: &str) -> Result<Value> {
        browser::sign_in(&self.ca_pem, &self.url, username, client_id)
            .await
            .context(format!("sign {username} in at issuer {}", self.name))
    }

    /// The ID token of a fresh login of `username`.
    ///
    /// # Errors
    /// As [`Issuer::sign_in`].
    pub async fn id_token(&self, username: &str, client_id: &str) -> Result<String> {
        let tokens = self.sign_in(username, client_id).await?;
        Ok(tokens["id_token"].as_str().unwrap_or_default().to_owned())
    }

    /// Spends a refresh token, and returns the token endpoint's answer.
    ///
    /// # Errors
    /// When the issuer refuses it.
    pub async fn refresh(&self, refresh_token: &str, client_id: &str) -> Result<Value> {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", refresh_token)
            .append_pair("client_id", client_id)
            .finish();
        let request = Request::post(format!("{}/token", self.url))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::from(form))
            .context("write the token request")?;
        browser::json(&self.http.send(request).await?).context("spend a refresh token")
    }

    /// Signs with a new key from now on; the old keys stay in the key set if `keep_old`.
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn rotate_keys(&self, keep_old: bool) -> Result<()> {
        self.command(Method::POST, &format!("rotate?keep={keep_old}"))
            .await
            .map(drop)
    }

    /// Lets every answer wait.
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn set_delay(&self, delay: Duration) -> Result<()> {
        self.command(Method::POST, &format!("delay?ms={}", delay.as_millis()))
            .await
            .map(drop)
    }

    /// Lets the token endpoint do its work at once and answer this much later.
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn set_late_tokens(&self, late: Duration) -> Result<()> {
        self.command(Method::POST, &format!("token?late={}", late.as_millis()))
            .await
            .map(drop)
    }

    /// Makes the token endpoint do nothing but trouble: `status` (500), `garbage` (200), `hang`, `reset`; `none` ends it.
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn set_token_trouble(&self, trouble: &str) -> Result<()> {
        self.command(Method::POST, &format!("token?trouble={trouble}"))
            .await
            .map(drop)
    }

    /// How many refresh tokens of `username` are neither spent nor revoked.
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn good_refresh_tokens(&self, username: &str) -> Result<u64> {
        let answer = self
            .command(Method::GET, &format!("refresh-tokens?login={username}"))
            .await?;
        answer["good"]
            .as_u64()
            .ok_or_else(|| Error::new("the issuer doesn't say how many tokens are good"))
    }

    /// Sets the lifetime of ID tokens issued from now on (not those of the client `kubernetes-short`).
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn set_id_token_lifetime(&self, lifetime: Duration) -> Result<()> {
        self.command(Method::POST, &format!("lifetimes?idToken={}", lifetime.as_secs()))
            .await
            .map(drop)
    }

    /// Ends all connections and refuses new ones.
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn stop(&self) -> Result<()> {
        self.command(Method::POST, "stop").await.map(drop)
    }

    /// Answers again after [`Issuer::stop`], on the same port, with the same keys, sessions and grants.
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn start(&self) -> Result<()> {
        self.command(Method::POST, "start").await.map(drop)
    }

    /// How often each grant type was served: `{"success": {"refresh_token": 2}, "error": {}}`.
    ///
    /// # Errors
    /// When the admin port doesn't answer.
    pub async fn grants(&self) -> Result<Value> {
        self.command(Method::GET, "grants").await
    }

    async fn command(&self, method: Method, verb: &str) -> Result<Value> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/{verb}", self.admin))
            .body(Bytes::new())
            .context("write a request")?;
        browser::json(&self.http.send(request).await?).context(format!("issuer {}: {verb}", self.name))
    }
}
