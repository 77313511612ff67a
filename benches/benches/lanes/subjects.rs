//! Who is measured: two bare connections and two lanes.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use kube_authn_benches::{access, next_random};
use kube_authn_core::{Body, ClusterAccess, CredentialRequest, Lane, UpstreamPool};
use rustls::crypto::aws_lc_rs;

use crate::upstream::Upstream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A connection of HTTP/1.1 for each caller.
    DirectHttp1,
    /// One connection of h2 for all callers.
    DirectHttp2,
    /// `ClusterAccess::send` with `Lane::Http1`.
    LaneHttp1,
    /// `ClusterAccess::send` with `Lane::Http2`.
    LaneHttp2,
}

pub(crate) const SUBJECTS: [Subject; 4] = [
    Subject::DirectHttp1,
    Subject::DirectHttp2,
    Subject::LaneHttp1,
    Subject::LaneHttp2,
];

impl Subject {
    /// The bare connection of the same protocol.
    pub(crate) fn peer(self) -> usize {
        match self {
            Self::DirectHttp1 | Self::LaneHttp1 => Self::DirectHttp1 as usize,
            Self::DirectHttp2 | Self::LaneHttp2 => Self::DirectHttp2 as usize,
        }
    }
}

/// Sends one request and reads its answer to the end.
pub(crate) trait Caller: Send + 'static {
    fn get(&mut self) -> impl Future<Output = ()> + Send;
}

pub(crate) enum Callers {
    Http1(Vec<Http1>),
    Http2(Vec<Http2>),
    Lane(Vec<OverLane>),
}

impl Callers {
    pub(crate) async fn new(
        subject: Subject,
        upstream: &Upstream,
        path: &'static str,
        concurrency: usize,
    ) -> Self {
        let address = upstream.address();
        let host = format!("127.0.0.1:{}", address.port);
        match subject {
            Subject::DirectHttp1 => {
                let mut callers = Vec::new();
                for _ in 0..concurrency {
                    callers.push(Http1 {
                        sender: address.http1().await,
                        head: Head::new(upstream, path).await,
                        host: HeaderValue::from_str(&host).expect("a host"),
                    });
                }
                Self::Http1(callers)
            }
            Subject::DirectHttp2 => {
                let sender = address.http2().await;
                let head = Head::new(upstream, &format!("https://{host}{path}")).await;
                let caller = Http2 { sender, head };
                Self::Http2(vec![caller; concurrency])
            }
            Subject::LaneHttp1 | Subject::LaneHttp2 => {
                let lane = match subject {
                    Subject::LaneHttp1 => Lane::Http1,
                    _ => Lane::Http2,
                };
                let (access, requests) = over(lane, upstream).await;
                let caller = |number: usize| OverLane {
                    access: access.clone(),
                    requests: requests.clone(),
                    path,
                    random: number as u64,
                };
                Self::Lane((0..concurrency).map(caller).collect())
            }
        }
    }
}

/// Access over a pool of its own, whose users' credentials are in the cache.
async fn over(lane: Lane, upstream: &Upstream) -> (ClusterAccess, Arc<[CredentialRequest]>) {
    let pool = UpstreamPool::new(Arc::new(aws_lc_rs::default_provider())).with_lane(lane);
    let users = upstream.users();
    let access = access(
        upstream.provider(),
        upstream.address().cluster("minting"),
        pool,
        users.len(),
    );
    let mut requests = Vec::new();
    for user in &users {
        let request = access.request(user, "prod").expect("a cluster");
        access.credential(&request).await.expect("a credential");
        requests.push(request);
    }
    (access, requests.into())
}

/// What the bare connections send: the same header lines as the lanes, made beforehand.
#[derive(Clone)]
struct Head {
    uri: http::Uri,
    lines: Arc<[HeaderMap]>,
    random: u64,
}

impl Head {
    async fn new(upstream: &Upstream, uri: &str) -> Self {
        let (access, requests) = over(Lane::Http1, upstream).await;
        let mut lines = Vec::new();
        for request in requests.iter() {
            let mut headers = HeaderMap::new();
            let credential = access.credential(request).await.expect("a credential");
            credential.apply(&mut headers);
            let audit_id = HeaderValue::from_static("7a1ab5f6-2b5c-4a3c-8e3f-0d7c6c1f2b11");
            headers.insert("audit-id", audit_id);
            lines.push(headers);
        }
        Self {
            uri: uri.parse().expect("a URI"),
            lines: lines.into(),
            random: 1,
        }
    }

    fn request(&mut self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.lines[next_random(&mut self.random) % self.lines.len()].clone();
        request
    }
}

pub(crate) struct Http1 {
    sender: http1::SendRequest<Empty<Bytes>>,
    head: Head,
    host: HeaderValue,
}

impl Caller for Http1 {
    async fn get(&mut self) {
        let mut request = self.head.request();
        request.headers_mut().insert(header::HOST, self.host.clone());
        self.sender.ready().await.expect("a connection");
        let answer = self.sender.send_request(request).await.expect("an answer");
        drain(answer).await;
    }
}

#[derive(Clone)]
pub(crate) struct Http2 {
    sender: http2::SendRequest<Empty<Bytes>>,
    head: Head,
}

impl Caller for Http2 {
    async fn get(&mut self) {
        let mut request = self.head.request();
        *request.version_mut() = Version::HTTP_2;
        let answer = self.sender.send_request(request).await.expect("an answer");
        drain(answer).await;
    }
}

pub(crate) struct OverLane {
    access: ClusterAccess,
    requests: Arc<[CredentialRequest]>,
    path: &'static str,
    random: u64,
}

impl Caller for OverLane {
    async fn get(&mut self) {
        let request = &self.requests[next_random(&mut self.random) % self.requests.len()];
        let get = Request::get(self.path).body(Body::empty()).expect("a request");
        let answer = self.access.send(request, get).await.expect("an answer");
        drain(answer).await;
    }
}

async fn drain<B>(answer: http::Response<B>)
where
    B: http_body::Body + Unpin,
    B::Error: std::fmt::Debug,
{
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        frame.expect("the body to its end");
    }
}
