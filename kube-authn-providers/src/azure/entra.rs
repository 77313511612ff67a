//! Entra's token endpoint: requests by azure_identity, over core's [`Transport`].

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use azure_core::{
    cloud::CustomConfiguration,
    credentials::{Secret as AzureSecret, TokenCredential},
    error::ErrorKind as AzureErrorKind,
    http::{
        AsyncRawResponse, Body, ClientMethodOptions, ClientOptions, HttpClient, RetryOptions,
        Transport as AzureTransport, headers::Headers,
    },
};
use azure_identity::{
    ClientAssertion, ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions,
};
use jiff::Timestamp;
use kube_authn_core::{
    Error, Secret, Transport,
    bytes::Bytes,
    http::{HeaderMap, Request, header::RETRY_AFTER},
    serde_json,
};
use serde::Deserialize;
use url::Url;

use super::{
    error::{AzureError, hint},
    options::is_tenant,
    tokens::Fetched,
};

/// The token endpoint of an authority host.
#[derive(Clone, Debug)]
pub(super) struct Entra {
    transport: Transport,
    /// Without a slash at the end.
    authority: String,
}

/// How a client proves to be who it says.
#[derive(Clone, Debug)]
pub(super) enum Proof {
    Secret(Secret),
    Assertion(Secret),
}

impl Entra {
    /// # Errors
    /// If the authority host is not https.
    pub(super) fn new(transport: Transport, authority: &str) -> Result<Self, AzureError> {
        let refused =
            |why: &str| AzureError::Misconfigured(format!("the authority host cannot be used: {why}"));
        // The variable may be a mere host name, as in Azure's own libraries.
        let text = match authority.contains("://") {
            true => authority.to_owned(),
            false => format!("https://{authority}"),
        };
        let url = Url::parse(&text).map_err(|_| refused("it is no URL"))?;
        let Some(host) = url.host_str().filter(|_| url.scheme() == "https") else {
            return Err(refused("it is not https"));
        };
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        Ok(Self {
            transport,
            authority: format!("https://{host}{port}"),
        })
    }

    pub(super) fn token_endpoint(&self, tenant: &str) -> String {
        format!("{}/{tenant}/oauth2/v2.0/token", self.authority)
    }

    /// A token by the client credentials grant
    /// (<https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>).
    pub(super) async fn token(
        &self,
        tenant: &str,
        client_id: &str,
        proof: Proof,
        scope: &str,
    ) -> Result<Fetched, AzureError> {
        if !is_tenant(tenant) {
            return Err(AzureError::Misconfigured(
                "the tenant is neither an id nor a domain".to_owned(),
            ));
        }
        // Made anew for each token: their own cache goes by another clock, and fails where ours keeps the last token.
        let answer = match &proof {
            Proof::Secret(secret) => self.by_secret(tenant, client_id, secret, scope).await,
            Proof::Assertion(assertion) => self.by_assertion(tenant, client_id, assertion, scope).await,
        };
        let token = answer.map_err(|error| self.reason(&error))?;
        let expires_at = Timestamp::from_second(token.expires_on.unix_timestamp()).unwrap_or(Timestamp::MAX);
        Ok(Fetched {
            token: Secret::new(token.token.secret()),
            expires_at,
        })
    }

    async fn by_secret(
        &self,
        tenant: &str,
        client_id: &str,
        secret: &Secret,
        scope: &str,
    ) -> azure_core::Result<azure_core::credentials::AccessToken> {
        let secret = secret.expose_str().unwrap_or_default().to_owned();
        let options = ClientSecretCredentialOptions {
            client_options: self.client_options(),
        };
        let secret = AzureSecret::new(secret);
        let credential = ClientSecretCredential::new(tenant, client_id.to_owned(), secret, Some(options))?;
        credential.get_token(&[scope], None).await
    }

    async fn by_assertion(
        &self,
        tenant: &str,
        client_id: &str,
        assertion: &Secret,
        scope: &str,
    ) -> azure_core::Result<azure_core::credentials::AccessToken> {
        let options = ClientAssertionCredentialOptions {
            client_options: self.client_options(),
        };
        let (tenant, client_id) = (tenant.to_owned(), client_id.to_owned());
        let assertion = Assertion(assertion.clone());
        let credential = ClientAssertionCredential::new(tenant, client_id, assertion, Some(options))?;
        credential.get_token(&[scope], None).await
    }

    fn client_options(&self) -> ClientOptions {
        let mut cloud = CustomConfiguration::default();
        cloud.authority_host.clone_from(&self.authority);
        ClientOptions {
            // A grant is sent once; what fails is tried again later.
            retry: RetryOptions::none(),
            transport: Some(AzureTransport::new(Arc::new(Wire(self.transport.clone())))),
            // Given, so that the environment is not read there.
            cloud: Some(Arc::new(cloud.into())),
            ..ClientOptions::default()
        }
    }

    /// Our own error inside theirs. What theirs says is dropped: it repeats answers.
    fn reason(&self, error: &azure_core::Error) -> AzureError {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<AzureError>() {
                return found.clone();
            }
            next = error.source();
        }
        AzureError::NoToken(self.authority.clone())
    }
}

/// An assertion made beforehand.
struct Assertion(Secret);

impl fmt::Debug for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Assertion")
    }
}

#[async_trait]
impl ClientAssertion for Assertion {
    async fn secret(&self, _: Option<ClientMethodOptions<'_>>) -> azure_core::Result<String> {
        Ok(self.0.expose_str().unwrap_or_default().to_owned())
    }
}

/// Core's client, as azure_core wants one.
#[derive(Debug)]
struct Wire(Transport);

#[async_trait]
impl HttpClient for Wire {
    async fn execute_request(
        &self,
        request: &azure_core::http::Request,
    ) -> azure_core::Result<AsyncRawResponse> {
        let sent = plain(request).map_err(foreign)?;
        let host = sent
            .uri()
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        let answer = self
            .0
            .send(sent)
            .await
            .map_err(|error| foreign(AzureError::Call(error)))?;
        let (parts, body) = answer.into_parts();
        if !parts.status.is_success() {
            return Err(foreign(refusal(
                host,
                parts.status.as_u16(),
                &parts.headers,
                &body,
            )));
        }
        Ok(AsyncRawResponse::from_bytes(
            parts.status.as_u16().into(),
            Headers::new(),
            body,
        ))
    }
}

fn plain(request: &azure_core::http::Request) -> Result<Request<Bytes>, AzureError> {
    let unsendable = || AzureError::Misconfigured("the request to Entra cannot be built".to_owned());
    let Body::Bytes(body) = request.body() else {
        return Err(unsendable());
    };
    let mut sent = Request::builder()
        .method(request.method().as_str())
        .uri(request.url().as_str());
    for (name, value) in request.headers().iter() {
        sent = sent.header(name.as_str(), value.as_str());
    }
    sent.body(body.clone()).map_err(|_| unsendable())
}

fn foreign(error: AzureError) -> azure_core::Error {
    azure_core::Error::with_error(AzureErrorKind::Other, error, "no token")
}

/// Codes are Entra's own numbers; the description beside them names users, and is not read.
pub(super) fn refusal(host: String, status: u16, headers: &HeaderMap, body: &[u8]) -> AzureError {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Answer {
        error_codes: Vec<u32>,
    }

    let retry_after = retry_after(headers);
    let codes = serde_json::from_slice::<Answer>(body)
        .unwrap_or_default()
        .error_codes;
    match codes.is_empty() || status == 429 || status >= 500 {
        true => AzureError::Status {
            host,
            status,
            retry_after,
        },
        false => AzureError::Refused {
            host,
            hint: hint(&codes),
            codes: codes
                .iter()
                .map(|code| format!("AADSTS{code}"))
                .collect::<Vec<_>>()
                .join(", "),
        },
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

impl From<Error> for AzureError {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}
