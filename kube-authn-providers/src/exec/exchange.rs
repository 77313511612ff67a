//! What a plugin is asked, and what it answers: two objects `ExecCredential`
//! (`k8s.io/client-go/pkg/apis/clientauthentication/v1`).

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kube_authn_core::{
    ClientCertificate, ClusterDetails, Credential, Secret, UnverifiedClaims,
    serde_json::{self, Value, json},
};
use serde::Deserialize;

use super::{ExecError, settings::Settings};

/// The text of `KUBERNETES_EXEC_INFO`. Reads the CA file if the cluster has one.
pub(super) fn question(settings: &Settings, cluster: &ClusterDetails) -> Result<String, ExecError> {
    let mut spec = json!({ "interactive": false });
    if settings.provide_cluster_info {
        spec["cluster"] = cluster_info(cluster)?;
    }
    let question = json!({ "apiVersion": settings.api_version, "kind": KIND, "spec": spec });
    Ok(question.to_string())
}

fn cluster_info(cluster: &ClusterDetails) -> Result<Value, ExecError> {
    let mut info = json!({ "server": cluster.server().to_string() });
    if let Some(name) = cluster.tls_server_name() {
        info["tls-server-name"] = name.into();
    }
    let trust = cluster.trust();
    if trust.skip_verify() {
        info["insecure-skip-tls-verify"] = true.into();
    } else if let Some(pem) = trust.ca().read().map_err(ExecError::Ca)? {
        info["certificate-authority-data"] = STANDARD.encode(pem).into();
    }
    Ok(info)
}

/// The credential in a plugin's answer to a question of this version.
pub(super) fn credential(answer: &Secret, asked: &str, now: Timestamp) -> Result<Credential, AnswerError> {
    // The parser's own error may quote what it could not read.
    let answer: ExecCredential =
        serde_json::from_slice(answer.expose()).map_err(|_| AnswerError::Unreadable(answer.len()))?;
    if answer.kind != KIND {
        return Err(AnswerError::Kind);
    }
    if answer.api_version != asked {
        return Err(AnswerError::Version(asked.to_owned()));
    }
    let status = answer.status.ok_or(AnswerError::Nothing)?;
    let stated = match status.expiration_timestamp.as_deref() {
        Some(text) => Some(text.parse::<Timestamp>().map_err(|_| AnswerError::Expiration)?),
        None => None,
    };
    let given = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Secret::new);
    let pair = (
        given(status.client_certificate_data),
        given(status.client_key_data),
    );
    // With both, the API server would believe the certificate and never look at the token.
    let (credential, own_end) = match (pair, given(status.token)) {
        ((Some(chain), Some(key)), _) => of_certificate(&chain, key)?,
        ((None, None), Some(token)) => of_token(&token)?,
        ((None, None), None) => return Err(AnswerError::Nothing),
        (_, _) => return Err(AnswerError::HalfAPair),
    };
    let credential = match stated.into_iter().chain(own_end).min() {
        Some(end) => credential.with_expires_at(end),
        None => credential,
    };
    match credential.usable(now) {
        true => Ok(credential),
        false => Err(AnswerError::Expired),
    }
}

fn of_certificate(chain: &Secret, key: Secret) -> Result<(Credential, Option<Timestamp>), AnswerError> {
    let certificate = ClientCertificate::from_pem(chain.expose(), key).map_err(AnswerError::Certificate)?;
    let end = certificate.not_after();
    Ok((Credential::certificate(certificate), end))
}

fn of_token(token: &Secret) -> Result<(Credential, Option<Timestamp>), AnswerError> {
    let token = Secret::new(token.expose().trim_ascii());
    let credential = Credential::bearer(&token).map_err(|_| AnswerError::Token)?;
    let end = UnverifiedClaims::of(token.expose()).and_then(|claims| claims.expires_at());
    Ok((credential, end))
}

/// What is wrong with an answer, without a byte of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error("its answer of {0} bytes is not the JSON of an ExecCredential")]
    Unreadable(usize),
    #[error("its answer is not of kind ExecCredential")]
    Kind,
    #[error("its answer is not of the version that was asked for, {0}")]
    Version(String),
    #[error("its answer holds neither a token nor a client certificate")]
    Nothing,
    #[error("its answer holds a client certificate without key, or a key without certificate")]
    HalfAPair,
    #[error("its answer's expirationTimestamp is not RFC 3339")]
    Expiration,
    #[error("its token holds characters that no bearer token may have")]
    Token,
    #[error("its client certificate cannot be used")]
    Certificate(#[source] kube_authn_core::Error),
    #[error("its credential has expired already")]
    Expired,
}

impl AnswerError {
    /// Whether asking again may help: a plugin that speaks another language goes on to.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Unreadable(_) | Self::Nothing | Self::Expired)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    api_version: String,
    kind: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

const KIND: &str = "ExecCredential";
