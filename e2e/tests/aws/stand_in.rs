//! What AWS offers a machine on plain http, on loopback: STS, the instance metadata service, a container endpoint. It
//! records what it is asked and gives keys by role, the same ones each time.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use url::form_urlencoded;

/// One request that came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) form: HashMap<String, String>,
    pub(crate) body: Bytes,
}

/// How the next requests are answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mood {
    Fine,
    /// As a role's trust policy does.
    Denying,
    /// An answer that is none, with a secret in it.
    Babbling,
    /// Later than a test waits for less.
    Slow(Duration),
}

#[derive(Clone, Debug)]
pub(crate) struct StandIn {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    mood: Arc<Mutex<Mood>>,
}

impl StandIn {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let stand_in = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            seen: Arc::default(),
            mood: Arc::new(Mutex::new(Mood::Fine)),
        };
        let server = stand_in.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        stand_in
    }

    pub(crate) fn mood(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Everything since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let form: HashMap<_, _> = form_urlencoded::parse(&body).into_owned().collect();
        let path = head.uri.path().to_owned();
        self.seen.lock().unwrap().push(Seen {
            method: head.method.clone(),
            path: path.clone(),
            query: head.uri.query().map(str::to_owned),
            headers: head.headers,
            form: form.clone(),
            body,
        });
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Slow(pause) => tokio::time::sleep(pause).await,
            Mood::Denying if path == "/federation/credentials" => {
                let error = json!({ "message": "Session token not found or invalid" }).to_string();
                let mut response = respond(StatusCode::UNAUTHORIZED, &error);
                let kind = "UnauthorizedException".parse().unwrap();
                response.headers_mut().insert("x-amzn-errortype", kind);
                return response;
            }
            Mood::Denying => {
                let error = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: \
                             arn:aws:iam::123456789012:user/portal is not authorized to perform: sts:AssumeRole\
                             </Message></Error></ErrorResponse>";
                return respond(StatusCode::FORBIDDEN, error);
            }
            Mood::Babbling => {
                return respond(StatusCode::OK, "<SecretAccessKey>canary-of-sts</SecretAccessKey");
            }
            Mood::Fine => {}
        }
        match (head.method.as_str(), path.as_str()) {
            ("POST", "/") => sts(&form),
            ("PUT", "/latest/api/token") => {
                let mut response = respond(StatusCode::OK, "imds-token");
                let seconds = "21600".parse().unwrap();
                response
                    .headers_mut()
                    .insert("x-aws-ec2-metadata-token-ttl-seconds", seconds);
                response
            }
            ("GET", "/latest/meta-data/iam/security-credentials/") => respond(StatusCode::OK, "node"),
            ("GET", "/latest/meta-data/iam/security-credentials/node") => container("node"),
            ("GET", "/pod") => container("pod"),
            ("GET", "/ecs") => container("ecs"),
            ("GET", "/federation/credentials") => identity_center("reader"),
            ("POST", "/token") => {
                let renewed =
                    json!({ "accessToken": "renewed-login", "expiresIn": 3600, "tokenType": "Bearer" });
                respond(StatusCode::OK, &renewed.to_string())
            }
            _ => respond(StatusCode::NOT_FOUND, ""),
        }
    }
}

fn sts(form: &HashMap<String, String>) -> Response<Full<Bytes>> {
    let action = form["Action"].as_str();
    let result = match action {
        "GetCallerIdentity" => "<Account>123456789012</Account><UserId>U</UserId>\
                                <Arn>arn:aws:iam::123456789012:user/portal</Arn>"
            .to_owned(),
        _ => {
            let arn = &form["RoleArn"];
            let name = arn.rsplit('/').next().unwrap();
            format!(
                "<AssumedRoleUser><AssumedRoleId>A:s</AssumedRoleId><Arn>{arn}/s</Arn></AssumedRoleUser><Credentials>\
                 <AccessKeyId>ASIA{name}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
                 <SessionToken>{}</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>",
                secret_of(name),
                session_of(name),
            )
        }
    };
    let body = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>{result}</{action}Result>\
         </{action}Response>"
    );
    respond(StatusCode::OK, &body)
}

/// As IMDS and the container endpoints give keys.
fn container(name: &str) -> Response<Full<Bytes>> {
    let keys = json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": format!("ASIA{name}"),
        "SecretAccessKey": secret_of(name),
        "Token": session_of(name),
        "Expiration": "2099-01-01T00:00:00Z",
    });
    respond(StatusCode::OK, &keys.to_string())
}

/// As the portal of IAM Identity Center gives keys.
fn identity_center(name: &str) -> Response<Full<Bytes>> {
    let keys = json!({ "roleCredentials": {
        "accessKeyId": format!("ASIA{name}"),
        "secretAccessKey": secret_of(name),
        "sessionToken": session_of(name),
        "expiration": 4_070_908_800_000_u64,
    }});
    respond(StatusCode::OK, &keys.to_string())
}

pub(crate) fn secret_of(name: &str) -> String {
    format!("secret-of-{name}")
}

fn session_of(name: &str) -> String {
    format!("session/of+{name}==")
}

fn respond(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_owned()));
    *response.status_mut() = status;
    response
}
