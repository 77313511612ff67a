//! A token made by the API server (TokenRequest,
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/>).

use jiff::Timestamp;
use kube_authn_core::{
    ClusterDetails, Credential, Error, ErrorKind, Secret, UpstreamPool,
    bytes::Bytes,
    http::{Request, Response, StatusCode, header},
    serde_json::{self, json},
};
use serde::Deserialize;

use super::TokenRequest;

impl TokenRequest {
    /// Asks the API server, as whom `bootstrap` is.
    pub(super) async fn mint(
        &self,
        pool: &UpstreamPool,
        cluster: &ClusterDetails,
        bootstrap: &Credential,
        now: Timestamp,
    ) -> Result<Credential, Error> {
        let mut spec = json!({ "expirationSeconds": self.expiration_seconds });
        if !self.audiences.is_empty() {
            spec["audiences"] = self.audiences.clone().into();
        }
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let path = format!(
            "/api/v1/namespaces/{}/serviceaccounts/{}/token",
            self.namespace, self.service_account
        );
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Bytes::from(body.to_string()))
            .map_err(|source| {
                self.failed(ErrorKind::Unexpected, "the request is none")
                    .with_source(source)
            })?;
        let answer = pool.call(cluster, bootstrap, request).await?;
        match answer.status() {
            StatusCode::OK | StatusCode::CREATED => self.credential(&answer, now),
            status => Err(self.refused(status)),
        }
    }

    fn credential(&self, answer: &Response<Bytes>, now: Timestamp) -> Result<Credential, Error> {
        // The parser's own error may quote what it could not read.
        let answer: Answer = serde_json::from_slice(answer.body()).map_err(|_| {
            self.failed(
                ErrorKind::Unexpected,
                "the API server's answer is no TokenRequest",
            )
        })?;
        let credential = Credential::bearer(&Secret::new(answer.status.token))?;
        let end: Timestamp = answer
            .status
            .expiration_timestamp
            .parse()
            .map_err(|_| self.failed(ErrorKind::Unexpected, "the API server's answer states no end"))?;
        let credential = credential.with_expires_at(end);
        match credential.usable(now) {
            true => Ok(credential),
            false => Err(self.failed(
                ErrorKind::Unavailable,
                "the new token has expired already: compare the clocks of this machine and of the API server",
            )),
        }
    }

    fn refused(&self, status: StatusCode) -> Error {
        let (namespace, name) = (&self.namespace, &self.service_account);
        match status {
            StatusCode::FORBIDDEN => self.failed(
                ErrorKind::ConfigInvalid,
                &format!(
                    "the API server refused it (403): allow the configured token verb create on serviceaccounts/token, \
                     resourceNames [{name}], in namespace {namespace}"
                ),
            ),
            StatusCode::NOT_FOUND => self.failed(
                ErrorKind::ConfigInvalid,
                "there is no such service account (404): create it, or correct kubeAuthn.tokenRequest",
            ),
            StatusCode::UNAUTHORIZED => self.failed(
                ErrorKind::Unavailable,
                "the API server does not know the token that asks for it (401): configure a valid serviceAccountToken",
            ),
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => self.failed(
                ErrorKind::ConfigInvalid,
                &format!("the API server refused it ({}): check kubeAuthn.tokenRequest", status.as_u16()),
            ),
            status => self.failed(
                ErrorKind::Unavailable,
                &format!("the API server answered with {}", status.as_u16()),
            ),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    status: AnswerStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnswerStatus {
    token: String,
    expiration_timestamp: String,
}
