//! Somebody who calls the service.

use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, header, request};
use kube::{Client, Config, config::AuthInfo};
use kube_authn_core::Secret;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

use super::Served;
use crate::{
    error::{Context, Error, Result},
    http::Http,
};

/// One person's way to the service: where it is, whom to trust, and the token that says who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    url: String,
    ca_pem: String,
    token: Secret,
    http: Http,
}

impl Caller {
    /// Calls `served`, whose certificate is signed by `ca_pem`, with `token`.
    ///
    /// # Errors
    /// When there is no certificate in `ca_pem`.
    pub fn new(served: &Served, ca_pem: &str, token: Secret) -> Result<Self> {
        Self::at(served.url(), ca_pem, token)
    }

    /// Calls the service at this URL, `https://host:port`, whoever started it.
    ///
    /// # Errors
    /// As [`Caller::new`].
    pub fn at(url: &str, ca_pem: &str, token: Secret) -> Result<Self> {
        Ok(Self {
            url: url.to_owned(),
            ca_pem: ca_pem.to_owned(),
            token,
            http: Http::new(ca_pem)?,
        })
    }

    /// The token that says who calls.
    pub fn token(&self) -> &Secret {
        &self.token
    }

    /// Somebody else at the same place.
    pub fn with_token(&self, token: Secret) -> Self {
        Self {
            token,
            ..self.clone()
        }
    }

    /// The Kubernetes proxy of a cluster, as kubectl's `server`.
    pub fn proxy(&self, cluster: &str) -> String {
        format!("{}/api/kubernetes/clusters/{cluster}/proxy", self.url)
    }

    /// Sends a request, whose URI is a path here, with a JSON body, or none for `null`; every status is an answer.
    ///
    /// # Errors
    /// When there is no answer, or none of JSON.
    pub async fn send(&self, request: request::Builder, body: &Value) -> Result<(u16, Value)> {
        let body = match body {
            Value::Null => Bytes::new(),
            body => Bytes::from(body.to_string()),
        };
        let mut request = request.body(body).context("write a request")?;
        *request.uri_mut() = format!("{}{}", self.url, request.uri())
            .parse()
            .context("read the request's URL")?;
        let bearer = self.token.to_bearer().context("write the Authorization header")?;
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, bearer);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer = self.http.send(request).await?;
        let value =
            serde_json::from_slice(answer.body()).context(format!("read the answer {}", answer.status()))?;
        Ok((answer.status().as_u16(), value))
    }

    /// `GET`, without a body.
    ///
    /// # Errors
    /// As [`Caller::send`].
    pub async fn get(&self, path: &str) -> Result<(u16, Value)> {
        self.send(Request::get(path), &Value::Null).await
    }

    /// A kube client through the Kubernetes proxy of a cluster.
    ///
    /// # Errors
    /// When the service's URL or certificate can't be used.
    pub fn client(&self, cluster: &str) -> Result<Client> {
        let mut config = Config::new(self.proxy(cluster).parse().context("read the proxy's URL")?);
        let authorities = CertificateDer::pem_slice_iter(self.ca_pem.as_bytes())
            .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .context("read the service's CA")?;
        config.root_cert = Some(authorities);
        config.auth_info = AuthInfo {
            token: Some(self.token_text()?.to_owned().into()),
            ..AuthInfo::default()
        };
        Client::try_from(config).context("make a client")
    }

    /// Writes a kubeconfig that knows the Kubernetes proxy of a cluster and the caller's token; nobody else may read it.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_kubeconfig(&self, file: &Path, cluster: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": cluster, "cluster": {
                "server": self.proxy(cluster),
                "certificate-authority-data": STANDARD.encode(&self.ca_pem),
            }}],
            "users": [{ "name": "caller", "user": { "token": self.token_text()? } }],
            "contexts": [{ "name": cluster, "context": { "cluster": cluster, "user": "caller" } }],
            "current-context": cluster,
        });
        write_private(file, &config.to_string())
    }

    /// Writes the caller's `Authorization` header, for `curl -H @file`; nobody else may read it.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_header(&self, file: &Path) -> Result<()> {
        write_private(file, &format!("Authorization: Bearer {}\n", self.token_text()?))
    }

    fn token_text(&self) -> Result<&str> {
        self.token
            .expose_str()
            .ok_or_else(|| Error::new("the caller's token is not text"))
    }
}

/// Writes a file that nobody else may read.
///
/// # Errors
/// When it can't be written.
pub fn write_private(file: &Path, content: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut open| open.write_all(content.as_bytes()))
        .context(format!("write {}", file.display()))
}
