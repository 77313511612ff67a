//! Answers of the token API: the shapes of success, and the titles of refusals.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use jiff::Timestamp;
use kube_authn_core::{Error, ErrorKind, Token};
use serde::Serialize;

use crate::error::token_api_error;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    pub(super) status: &'static str,
    pub(super) message: &'static str,
    pub(super) user: String,
    pub(super) expires_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cluster: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) authenticated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<String>,
    pub(super) user: String,
    pub(super) clusters: Vec<ClusterState>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClusterState {
    pub(super) name: String,
    pub(super) issuer: String,
    pub(super) authenticated: bool,
    #[serde(skip)]
    pub(super) end: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<String>,
    pub(super) refreshable: bool,
    pub(super) refreshing: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<String>,
}

/// The only answer with a token in it.
#[derive(Serialize)]
pub(super) struct ExposedToken {
    access_token: String,
    token_type: &'static str,
    expires_at: String,
    token_use: &'static str,
}

impl ExposedToken {
    pub(super) fn new(token: &Token, is_access_token: bool) -> Result<Self, Refusal> {
        let text = token
            .secret
            .expose_str()
            .ok_or_else(|| Error::new(ErrorKind::Unexpected, "the stored token is not text"))?;
        Ok(Self {
            access_token: text.to_owned(),
            token_type: "Bearer",
            expires_at: instant(token.expires_at),
            token_use: if is_access_token { "access" } else { "id" },
        })
    }
}

#[derive(Serialize)]
pub(super) struct Deleted {
    pub(super) status: &'static str,
    pub(super) message: &'static str,
    pub(super) revoked: bool,
    pub(super) clusters: Vec<String>,
}

/// An instant as JavaScript's `toISOString` writes it.
pub(super) fn instant(instant: Timestamp) -> String {
    instant.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// An error with the title and, where the kind's own is too coarse, the status that it is answered with.
#[derive(Debug)]
pub(super) struct Refusal {
    title: &'static str,
    status: Option<StatusCode>,
    error: Error,
}

impl Refusal {
    pub(super) fn with_status(status: StatusCode, error: Error) -> Self {
        Self {
            status: Some(status),
            ..Self::from(error)
        }
    }

    /// The seed's own answer of `GET /status` to a caller whom nobody knows.
    pub(super) fn of_status(error: Error) -> Self {
        match error.kind() {
            ErrorKind::CallerUnknown => Self {
                title: "Unauthorized",
                status: None,
                error: Error::new(
                    ErrorKind::CallerUnknown,
                    "User not authenticated or invalid credentials",
                ),
            },
            _ => Self::from(error),
        }
    }

    pub(super) fn no_tokens_to_delete() -> Self {
        Error::new(ErrorKind::ClusterUnknown, "No tokens found for user").into()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let title = match error.kind() {
            ErrorKind::CallerUnknown | ErrorKind::LoginRequired => "Not authenticated",
            ErrorKind::TokenExpired => "Token expired",
            ErrorKind::TokenRejected => "Invalid token",
            ErrorKind::Refused => "Forbidden",
            ErrorKind::ClusterUnknown => "Not found",
            ErrorKind::RequestInvalid => "Invalid token payload",
            ErrorKind::Conflict => "Conflict",
            ErrorKind::RateLimited => "Too many requests",
            ErrorKind::Unavailable => "Service unavailable",
            _ => "Internal server error",
        };
        Self {
            title,
            status: None,
            error,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = token_api_error(self.title, &self.error);
        if let Some(status) = self.status {
            *response.status_mut() = status;
        }
        if response.status().is_server_error() {
            let error: &dyn std::error::Error = &self.error;
            tracing::warn!(error, "the token API failed");
        }
        response
    }
}

pub(super) async fn no_route() -> Response {
    let text = "there is no such route in the token API";
    Refusal::from(Error::new(ErrorKind::ClusterUnknown, text)).into_response()
}

pub(super) async fn method_not_allowed() -> Refusal {
    let error = Error::new(ErrorKind::RequestInvalid, "the route does not know this method");
    Refusal {
        title: "Method not allowed",
        status: Some(StatusCode::METHOD_NOT_ALLOWED),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instant_is_written_as_javascript_writes_it() {
        let of = |text: &str| instant(text.parse().expect("an instant"));

        assert_eq!(of("2025-11-06T00:00:00Z"), "2025-11-06T00:00:00.000Z");
        assert_eq!(of("2025-11-06T01:02:03.4567Z"), "2025-11-06T01:02:03.456Z");
    }
}
