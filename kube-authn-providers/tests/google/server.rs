//! Google on loopback: answers with tokens and remembers what it was asked.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use kube_authn_core::serde_json::json;
use tokio::net::TcpListener;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn form(&self) -> Vec<(String, String)> {
        let mut form: Vec<_> = url::form_urlencoded::parse(&self.body).into_owned().collect();
        form.sort();
        form
    }

    pub(crate) fn field(&self, name: &str) -> String {
        let form = self.form();
        let found = form.into_iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("no field {name}")).1
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

#[derive(Clone, Default)]
pub(crate) struct Google(Arc<Inner>);

#[derive(Default)]
struct Inner {
    port: AtomicUsize,
    asked: Mutex<Vec<Asked>>,
    /// Given once each, before anything else.
    scripted: Mutex<VecDeque<(u16, String)>>,
    slow: AtomicUsize,
    tokens: AtomicUsize,
}

impl Google {
    pub(crate) async fn start() -> Self {
        let google = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        google.0.port.store(port.into(), Ordering::Relaxed);
        let routes = Router::new().fallback(answer).with_state(google.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        google
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.0.port.load(Ordering::Relaxed))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    /// The next request gets this answer.
    pub(crate) fn next(&self, status: u16, body: impl Into<String>) {
        let scripted = &mut *self.0.scripted.lock().expect("unpoisoned");
        scripted.push_back((status, body.into()));
    }

    /// Each answer takes this long from now on.
    pub(crate) fn slow(&self, milliseconds: usize) {
        self.0.slow.store(milliseconds, Ordering::Relaxed);
    }

    /// Everything that was asked since the last look.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.0.asked.lock().expect("unpoisoned"))
    }

    pub(crate) fn asked_once(&self) -> Asked {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }
}

/// The instant at which tokens of impersonated accounts end.
pub(crate) const IMPERSONATED_UNTIL: &str = "2023-11-14T23:13:20Z";

async fn answer(State(google): State<Google>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let asked = Asked {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect(),
        headers: parts.headers,
        body: to_bytes(body, 1 << 20).await.expect("a body"),
    };
    let path = asked.path.clone();
    google.0.asked.lock().expect("unpoisoned").push(asked);
    let slow = google.0.slow.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(u64::try_from(slow).expect("small"))).await;
    let scripted = google.0.scripted.lock().expect("unpoisoned").pop_front();
    if let Some((status, body)) = scripted {
        return (StatusCode::from_u16(status).expect("a status"), body).into_response();
    }
    let number = google.0.tokens.fetch_add(1, Ordering::Relaxed) + 1;
    let body = match path.as_str() {
        "/subject" => json!({ "id_token": "canary-subject" }),
        path if path.ends_with(":generateAccessToken") => {
            json!({ "accessToken": format!("canary-token-{number}"), "expireTime": IMPERSONATED_UNTIL })
        }
        _ => {
            json!({ "access_token": format!("canary-token-{number}"), "expires_in": 3600, "token_type": "Bearer" })
        }
    };
    ([("metadata-flavor", "Google")], body.to_string()).into_response()
}
