//! What is known of a request: for the audit log, and for the words of a refusal.

use axum::response::Response;
use http::{HeaderValue, Method, request::Parts};
use kube_authn_core::{AuditEvent, ClusterDetails, Error, SentAuditId};
use serde_json::Value;
use tokio::time::Instant;
use tracing::Span;

use super::path;
use crate::{
    caller::Caller,
    error::{backstage_error, kubernetes_status},
    metrics::count_request,
    trace,
};

/// One request, from its head to the head of its answer.
pub(super) struct Record {
    pub(super) caller: Option<Caller>,
    pub(super) cluster: Option<ClusterDetails>,
    /// For a request that gets no answer: the API server may have done its work all the same.
    pub(super) sent: SentAuditId,
    method: Method,
    /// Without query, which may hold anything, and not all of it if it is long.
    path: String,
    names_cluster: bool,
    begun: Instant,
    ended: bool,
    /// The code of our own refusal.
    refused: Option<&'static str>,
}

impl Record {
    pub(super) fn begin(head: &Parts) -> Self {
        Self {
            caller: None,
            cluster: None,
            sent: SentAuditId::new(),
            method: head.method.clone(),
            path: trace::shown(head.uri.path()).into_owned(),
            names_cluster: path::names_cluster(&head.uri),
            begun: Instant::now(),
            ended: false,
            refused: None,
        }
    }

    pub(super) fn span(&self) -> Span {
        trace::span(&self.method, &self.path)
    }

    /// A `Status`, with Backstage's error added where its client asks.
    pub(super) fn refusal(&mut self, error: &Error) -> Response {
        self.refused = Some(error.code());
        let extra = match self.names_cluster {
            true => Value::Null,
            false => backstage_error(error, &self.method, &self.path),
        };
        kubernetes_status(error, &extra)
    }

    pub(super) fn end(&mut self, response: &Response) {
        self.ended = true;
        self.emit(response.status().as_u16(), response.headers().get("audit-id"));
    }

    fn emit(&self, status: u16, answered: Option<&HeaderValue>) {
        let audit_id = answered.cloned().or_else(|| self.sent.get());
        count_request(self.cluster.as_ref(), self.refused.unwrap_or(class(status)));
        AuditEvent::Proxied {
            caller: self.caller.as_ref().map(|caller| &caller.principal),
            actor: self.caller.as_ref().and_then(|caller| caller.actor.as_ref()),
            cluster: self.cluster.as_ref().map(ClusterDetails::name),
            method: &self.method,
            path: &self.path,
            status,
            duration: self.begun.elapsed(),
            audit_id: audit_id.as_ref().and_then(|id| id.to_str().ok()),
        }
        .emit();
    }
}

/// A client that goes away early leaves its line in the log too.
impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.emit(CLIENT_GONE, None);
        }
    }
}

fn class(status: u16) -> &'static str {
    match status {
        CLIENT_GONE => "client_gone",
        ..200 => "1xx",
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500.. => "5xx",
    }
}

/// What nginx logs for a client that closed its connection before the answer; never sent.
const CLIENT_GONE: u16 = 499;
