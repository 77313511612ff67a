//! One connection: opened, used for one request, closed.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use url::Url;

use super::{MAX_HEADER_BYTES, MAX_RESPONSE_BYTES, Stream, Target, Transport, form_request};
use crate::{Error, ErrorKind, Result};

/// A connection on which nothing was sent yet, from [`Transport::connect`].
pub struct Connection {
    url: Url,
    target: Target,
    stream: Box<dyn Stream>,
}

impl Connection {
    pub(super) async fn open(transport: &Transport, url: &Url, target: Target) -> Result<Self> {
        let stream = transport.open(&target).await?;
        Ok(Self {
            url: url.clone(),
            target,
            stream,
        })
    }

    /// What a form posted to the URL gives within this time, whatever its status; as [`Transport::post_form`].
    ///
    /// # Errors
    /// As [`Transport::send`]. Whatever the error is, the server may have done what the form asks for.
    pub async fn post_form(
        self,
        authorization: Option<HeaderValue>,
        fields: &[(&str, &str)],
        within: Duration,
    ) -> Result<Response<Bytes>> {
        let request = form_request(&self.url, authorization, fields)?;
        timeout(within, exchange(&self.target, self.stream, &request))
            .await
            .unwrap_or_else(|_| Err(self.target.timeout()))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("host", &self.target.host)
            .finish_non_exhaustive()
    }
}

/// One request over one connection.
pub(super) async fn exchange(
    target: &Target,
    stream: Box<dyn Stream>,
    request: &Request<Bytes>,
) -> Result<Response<Bytes>> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| target.unavailable("the connection broke off").with_source(source))?;
    let conversation = async {
        let answer = sender
            .send_request(target.origin_form(request)?)
            .await
            .map_err(|source| target.unavailable("the connection broke off").with_source(source))?;
        read(target, answer).await
    };
    // The connection is driven here and not by a task: whoever stops waiting closes it.
    tokio::pin!(connection, conversation);
    tokio::select! {
        biased;
        answer = &mut conversation => answer,
        ended = &mut connection => match ended {
            Ok(()) => conversation.await,
            Err(source) => Err(target.unavailable("the connection broke off").with_source(source)),
        },
    }
}

async fn read(target: &Target, answer: Response<hyper::body::Incoming>) -> Result<Response<Bytes>> {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MAX_RESPONSE_BYTES)
        .collect()
        .await
        .map_err(|source| match source.downcast::<LengthLimitError>() {
            Ok(source) => Error::new(
                ErrorKind::Unexpected,
                format!("the answer of {} is larger than 1 MiB", target.host),
            )
            .with_source(*source),
            Err(source) => target
                .unavailable("the answer broke off")
                .with_source(BrokenAnswer(source)),
        })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

#[derive(Debug, thiserror::Error)]
#[error("the body of the answer could not be read")]
struct BrokenAnswer(#[source] Box<dyn std::error::Error + Send + Sync>);
