//! What leaves for the API server: target, header lines, body.

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request::Parts,
    uri::PathAndQuery,
};
use tracing::debug;

use super::SentAuditId;
use crate::{
    ClusterDetails, Credential, CredentialRequest, Error, ErrorKind, Result,
    upstream::{self, Body, Way},
};

/// A request that is ready but for the credential, and can be made again if its body can.
pub(super) struct Outgoing {
    head: Parts,
    /// `None` once a stream is spent.
    body: Option<Body>,
    pub(super) way: Way,
    /// Whether something behind the API server answers it, with a 401 of its own perhaps.
    is_passed_on: bool,
    /// Who wants to know under which ID the request left.
    sent: Option<SentAuditId>,
}

impl Outgoing {
    /// Everything that doesn't depend on the credential.
    pub(super) fn new(http: Request<Body>, cluster: &ClusterDetails) -> Result<Self> {
        let (mut head, body) = http.into_parts();
        let way = Way::of(&head.uri, &head.headers);
        let is_passed_on = upstream::is_passed_on(head.uri.path());
        head.uri = target(&head.method, &head.uri, cluster)?;
        let sent = head.extensions.remove();
        // Extensions steer hyper (and `http::Extensions` of a caller's own may hold anything): none leaves.
        head.extensions.clear();
        let upgrade = match way {
            Way::Upgrade => head.headers.get(header::UPGRADE).cloned(),
            Way::Short | Way::Long => None,
        };
        strip_hop_by_hop(&mut head.headers);
        head.headers.remove(header::HOST);
        if let Some(upgrade) = upgrade {
            head.headers
                .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            head.headers.insert(header::UPGRADE, upgrade);
        }
        let lengths = head.headers.get_all(header::CONTENT_LENGTH).iter().count();
        if http_body::Body::size_hint(&body).exact().is_some() || lengths != 1 {
            // hyper writes the length it knows, and chunks where nobody does.
            head.headers.remove(header::CONTENT_LENGTH);
        }
        Ok(Self {
            head,
            body: Some(body),
            way,
            is_passed_on,
            sent,
        })
    }

    /// The request with this credential's header lines and an audit ID of its own: an API server that sees one twice
    /// would write one event over the other. The log line names it, so that the two logs can be joined.
    pub(super) fn next(
        &mut self,
        on_behalf: &CredentialRequest,
        credential: &Credential,
    ) -> Result<Request<Body>> {
        let body = self.body.take().unwrap_or_else(Body::empty);
        self.body = body.try_clone();
        let mut request = Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = match self.is_replayable() {
            true => self.head.headers.clone(),
            false => std::mem::take(&mut self.head.headers),
        };
        credential.apply(request.headers_mut());
        let audit_id = audit_id()?;
        debug!(
            ?audit_id,
            cluster = on_behalf.cluster.name().as_str(),
            principal = %on_behalf.principal,
            method = request.method().as_str(),
            path = request.uri().path(),
            "to the API server"
        );
        if let Some(sent) = &self.sent {
            sent.set(audit_id.clone());
        }
        request.headers_mut().insert(AUDIT_ID, audit_id);
        Ok(request)
    }

    pub(super) fn is_replayable(&self) -> bool {
        self.body.is_some()
    }

    /// Whether this answer says that the API server took the credential for none. A pod that wants a login of its own says 401
    /// too, and must cost nobody a refresh.
    pub(super) fn is_refused_by<T>(&self, answer: &Response<T>) -> bool {
        answer.status() == StatusCode::UNAUTHORIZED && !self.is_passed_on
    }

    pub(super) fn method(&self) -> &Method {
        &self.head.method
    }
}

/// The cluster's URL with the request's path and query behind it. Only the cluster says which server that is.
fn target(method: &Method, uri: &Uri, cluster: &ClusterDetails) -> Result<Uri> {
    let server = cluster.server();
    let refuse = |what: &'static str| {
        Error::new(ErrorKind::RequestInvalid, what).with_cluster(cluster.name().as_str())
    };
    if uri
        .authority()
        .is_some_and(|authority| authority != server.authority())
        || uri.scheme().is_some_and(|scheme| scheme != server.scheme())
    {
        return Err(refuse(
            "the request names a server of its own: give a path, the cluster decides on the server",
        ));
    }
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if method == Method::CONNECT || !path.starts_with('/') {
        return Err(refuse(
            "the request has no path: give one that begins with a slash",
        ));
    }
    if climbs(uri.path()) {
        return Err(refuse(
            "the path of the request holds a segment . or .., which could leave the cluster's URL: resolve it first",
        ));
    }
    let path = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    server.join(&path).map_err(|source| {
        refuse("the path of the request cannot be appended to the cluster's URL").with_source(source)
    })
}

/// Whether a segment is `.` or `..`, as it stands or decoded once, and also for servers to which a backslash separates
/// segments or a semicolon ends them. Behind a base path such a segment reaches another cluster.
fn climbs(path: &str) -> bool {
    let (mut dots, mut only_dots, mut parameters) = (0_usize, true, false);
    for byte in decoded(path).chain([b'/']) {
        match byte {
            b'/' | b'\\' if only_dots && matches!(dots, 1 | 2) => return true,
            b'/' | b'\\' => (dots, only_dots, parameters) = (0, true, false),
            b';' => parameters = true,
            b'.' if !parameters => dots += 1,
            _ => only_dots &= parameters,
        }
    }
    false
}

/// The bytes of a path, percent-encoding undone once (RFC 3986 section 2.1).
fn decoded(path: &str) -> impl Iterator<Item = u8> {
    let digit = |byte: u8| HEX.iter().position(|hex| *hex == byte.to_ascii_lowercase());
    let mut rest = path.as_bytes();
    std::iter::from_fn(move || {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        if byte == b'%'
            && let Some(([high, low], after)) = rest.split_first_chunk()
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            rest = after;
            return u8::try_from(high << 4 | low).ok();
        }
        Some(byte)
    })
}

/// Removes what concerns one connection only (RFC 9110 section 7.6.1): h2 forbids it, and hyper frames bodies itself.
/// `Trailer` stays: it announces fields behind the body, which pass through.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<_> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| header::HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// A random UUID (RFC 9562 section 5.4).
fn audit_id() -> Result<HeaderValue> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|source| Error::new(ErrorKind::Unexpected, "no random numbers").with_source(source))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for byte in bytes {
        if matches!(at, 8 | 13 | 18 | 23) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 0xf)];
        at += 2;
    }
    HeaderValue::from_bytes(&text)
        .map_err(|source| Error::new(ErrorKind::Unexpected, "an audit ID is no header").with_source(source))
}

/// The API server writes it into its audit log unseen (`k8s.io/apiserver/pkg/endpoints/filters/audit_init.go`), so a
/// client's own never gets there.
const AUDIT_ID: header::HeaderName = header::HeaderName::from_static("audit-id");

const HOP_BY_HOP: [header::HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::HeaderName::from_static("http2-settings"),
    header::HeaderName::from_static("keep-alive"),
    header::HeaderName::from_static("proxy-connection"),
];

const HEX: &[u8; 16] = b"0123456789abcdef";
