//! Every refusal of ours as an HTTP answer: the one table from kind to status, and the shapes of bodies.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, StatusCode, header};
use kube_authn_core::{Error, ErrorKind};
use serde_json::{Value, json};

/// A refusal of the token API: `{"error","message","code","cluster"?}`, never stored by anybody on the way.
pub fn token_api_error(title: &str, error: &Error) -> Response {
    let mut body = json!({ "error": title, "message": error.to_string(), "code": error.code() });
    if let Some(cluster) = error.cluster() {
        body["cluster"] = cluster.into();
    }
    answer(error, Json(body))
}

/// A refusal of a route that Backstage has too, in Backstage's shape.
pub(crate) fn backstage_refusal(error: &Error, method: &Method, url: &str) -> Response {
    answer(error, Json(backstage_error(error, method, url)))
}

/// A refusal of the Kubernetes proxy: a `Status` object, so that `kubectl` prints it; `extra` is added at its top. Its
/// details name the cluster that could not be served.
pub fn kubernetes_status(error: &Error, extra: &Value) -> Response {
    let status = status(error);
    let mut details = json!({ "causes": [{ "reason": error.code(), "message": error.to_string() }] });
    if let Some(cluster) = error.cluster() {
        details["kind"] = "cluster".into();
        details["name"] = cluster.into();
    }
    let mut body = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": error.to_string(),
        "reason": reason(status),
        "details": details,
        "code": status.as_u16(),
    });
    if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
        body.extend(extra.clone());
    }
    let mut response = answer(error, Json(body));
    // kubectl's discovery hides a Status message, but prints warnings (RFC 7234 section 5.5).
    let text: String = error.to_string().replace(['"', '\\'], "'");
    if let Ok(warning) = HeaderValue::from_bytes(format!("299 kube-authn \"{text}\"").as_bytes()) {
        response.headers_mut().insert(header::WARNING, warning);
    }
    response
}

/// What Backstage's client reads of a refusal, to be put beside a `Status`; `url` without query.
pub(crate) fn backstage_error(error: &Error, method: &Method, url: &str) -> Value {
    let status = status(error).as_u16();
    let name = match status {
        400 => "InputError",
        401 => "AuthenticationError",
        403 => "NotAllowedError",
        404 => "NotFoundError",
        409 => "ConflictError",
        503 => "ServiceUnavailableError",
        _ => "Error",
    };
    json!({
        "error": { "name": name, "message": error.to_string() },
        "request": { "method": method.as_str(), "url": url },
        "response": { "statusCode": status },
    })
}

fn answer(error: &Error, body: Json<Value>) -> Response {
    let mut response = (status(error), body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if error.kind().status() == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(after) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    } else if error.kind() == ErrorKind::Unavailable {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(1));
    }
    response
}

fn status(error: &Error) -> StatusCode {
    StatusCode::from_u16(error.kind().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// `metav1.StatusReason` of the codes that we answer with.
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        413 => "RequestEntityTooLarge",
        415 => "UnsupportedMediaType",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    }
}
