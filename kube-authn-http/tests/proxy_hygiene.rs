//! What passes the proxy, byte for byte, and what never does: paths, header lines, framing, over HTTP/1.1 and HTTP/2.

#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests, and clients open connections"
)]

#[path = "support/proxy.rs"]
mod support;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, StreamBody};
use support::{ALICE, Ca, OK, Proxy, Recorder, Seen, body, cluster, full, http2_server, plain, status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Targets behind the proxy's own path that arrive as they are.
const LEGAL: [&str; 16] = [
    "/",
    "/api",
    "/api/v1/pods/",
    "/api/v1/pods?b=2&a=1&b=1",
    "/api/v1/pods?labelSelector=a%3Db%2Cc+in+%28d%29&limit=500",
    "/api/v1/namespaces/a/services/https:web:443/proxy/x%2Fy%2fz/",
    "/apis/g/v1;v=1/a;b;c",
    "/version?",
    "/a?x=%2e%2e/%2e%2e&y=//&z=..",
    "/a%20b/%C3%BC/%7E~",
    "/100%25",
    "/a/..b/.c/...",
    "/a?exec=%00%0d%0a%5c",
    "/a@b:c/$&'()*+,=!",
    "/a?x=https://other/?u=@",
    "/A/a",
];

/// Targets that are refused.
const TRICKS: [&str; 28] = [
    "/..",
    "/.",
    "/a/../b",
    "/a/..",
    "/a/./b",
    "/../../api/kubernetes/clusters/other/proxy/a",
    "/a/%2e%2e/b",
    "/a/%2E./b",
    "/a/.%2e/b",
    "/a/%252e%252e/b",
    "/a/%25252e%25252e/b",
    "/a/%25%32%65./b",
    "/a%2f..%2fb",
    "/a%252f..%252fb",
    "/a/..;/b",
    "/a/..%3b/b",
    "//other/a",
    "/a//b",
    "/\\other/a",
    "/a\\..\\b",
    "/a/..%5cb",
    "/a/..%255cb",
    "/a%00",
    "/a%0d%0aImpersonate-User:%20root",
    "/a%1f",
    "/a%",
    "/a%g0",
    "/a/%c0%ae%c0%ae/b",
];

/// Every target in turn, under both paths, over HTTP/1.1 and HTTP/2.
async fn walk(proxy: &Proxy, target: &str) -> Vec<u16> {
    let mut statuses = Vec::new();
    for prefix in ["/api/kubernetes/proxy", "/api/kubernetes/clusters/a/proxy"] {
        statuses.push(status(&proxy.get(&format!("{prefix}{target}"), "").await));
        let request = Request::get(format!("http://portal{prefix}{target}"))
            .header("authorization", "Bearer alice")
            .body(full(""))
            .expect("a request");
        let answer = proxy
            .http2()
            .await
            .send_request(request)
            .await
            .expect("an answer");
        statuses.push(answer.status().as_u16());
    }
    statuses
}

#[tokio::test]
async fn a04_legal_path_is_never_changed() {
    let ca = Ca::new();
    let plain_upstream = Recorder::start(OK).await;
    let tls_upstream = Recorder::tls(&ca, OK).await;
    let seen = Seen::default();
    let http2 = http2_server(&ca, {
        let seen = seen.clone();
        move |request| seen.clone().record(request)
    })
    .await;
    let https = |port: u16| cluster("a", &format!("https://127.0.0.1:{port}"), Some(&ca));
    for cluster in [
        plain("a", plain_upstream.address),
        https(tls_upstream.address.port()),
        https(http2.port()),
    ] {
        let proxy = Proxy::start(vec![cluster]).await;
        for target in LEGAL {
            assert_eq!(walk(&proxy, target).await, [200; 4], "{target}");
        }
    }

    let sent: Vec<_> = LEGAL.iter().flat_map(|target| [*target; 4]).collect();
    assert_eq!(plain_upstream.targets(), sent);
    assert_eq!(tls_upstream.targets(), sent);
    let arrived: Vec<_> = seen.all().into_iter().map(|request| request.target).collect();
    // `http` writes a target that ends with a bare `?` as it is.
    assert_eq!(arrived, sent);
}

#[tokio::test]
async fn a04_path_that_reads_two_ways_never_arrives() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    for target in TRICKS {
        assert_eq!(walk(&proxy, target).await, [400; 4], "{target}");
    }
    // Bytes that no client library sends.
    for target in ["/a\x01b", "/a\x7fb", "/a\tb", "/\u{fc}", "/a b"] {
        let answer = proxy.get(&format!("/api/kubernetes/proxy{target}"), "").await;
        assert_eq!(status(&answer), 400, "{target:?}");
    }

    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a04_cluster_base_path_is_never_left() {
    let upstream = Recorder::start(OK).await;
    let base = cluster("a", &format!("http://{}/k8s/c-1", upstream.address), None);
    let proxy = Proxy::start(vec![base]).await;

    proxy.get("/api/kubernetes/proxy", "").await;
    proxy.get("/api/kubernetes/proxy/x%2Fy?z", "").await;
    for target in ["/../c-2/x", "/%2e%2e/c-2/x", "/..%2fc-2/x"] {
        proxy.get(&format!("/api/kubernetes/proxy{target}"), "").await;
    }

    assert_eq!(upstream.targets(), ["/k8s/c-1/", "/k8s/c-1/x%2Fy?z"]);
}

#[tokio::test]
async fn a01_impersonation_by_a_client_never_arrives() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
    let stems = ["User", "Group", "Uid", "Extra-scopes", "Extra-a%2fb"];
    let mut spellings: Vec<String> = Vec::new();
    for stem in stems {
        for prefix in [
            "Impersonate-",
            "impersonate-",
            "IMPERSONATE-",
            "iMpErSoNaTe-",
            "Impersonate_",
            "IMPERSONATE_",
            "Impersonate.",
            "_Impersonate-",
            "Impersonate--",
            "Im-personate-",
        ] {
            spellings.push(format!("{prefix}{stem}"));
        }
    }

    for name in &spellings {
        for lines in [
            format!("{name}: root\r\n"),
            format!("{name}: alice\r\n{name}: system:masters\r\n"),
            format!("Connection: {name}\r\n{name}: root\r\n"),
        ] {
            let answer = proxy.get("/api/kubernetes/clusters/a/proxy/api", &lines).await;

            assert_eq!(status(&answer), 403, "{lines}");
            assert!(answer.contains("impersonation is not offered here"), "{answer}");
        }
    }
    assert_eq!((spellings.len(), upstream.connections()), (50, 0));
}

#[tokio::test]
async fn a02_header_that_connection_names_never_takes_ours_away() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
    let lines = "Connection: Authorization, X-One\r\nConnection:   audit-id ,X-Two,\t x-three\r\n\
        connection: host,,;\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\nX-Four: 4\r\nKeep-Alive: timeout=9\r\n\
        Proxy-Connection: keep-alive\r\nTE: trailers\r\nAudit-ID: forged\r\n";

    let answer = proxy.get("/api/kubernetes/proxy/api", lines).await;

    assert_eq!(status(&answer), 200, "{answer}");
    let mut lines = upstream.last_lines();
    lines.retain(|line| !line.starts_with("audit-id: "));
    lines.sort();
    let host = format!("host: {}", upstream.address);
    assert_eq!(lines, [&ALICE_LINE.to_lowercase(), &host, "x-four: 4"]);
    assert!(!upstream.requests()[0].contains("forged"));
}

const ALICE_LINE: &str = "Authorization: Bearer cluster-token-of-user-default-alice";

#[tokio::test]
async fn a03_what_a_client_claims_about_itself_never_arrives() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
    for name in [
        "X-Forwarded-For",
        "X-Forwarded-User",
        "X-Forwarded-Host",
        "X_Forwarded_Client_Cert",
        "X-Forwarded",
        "Forwarded",
        "X-Real-Ip",
        "X-Remote-User",
        "X-Remote-Group",
        "X-Remote-Extra-Scopes",
        "X_Remote_User",
        "x.remote.user",
        "X-REMOTE_UID",
        "Cookie",
        "Proxy-Authorization",
        "X-Auth-Request-User",
        "X-Auth-Request-Access-Token",
        "X_Auth_Request_Email",
        "Cf-Access-Jwt-Assertion",
        "Cf-Access-Authenticated-User-Email",
        "X-Goog-IAP-JWT-Assertion",
        "X-Goog-Authenticated-User-Email",
        "X-Amzn-Oidc-Data",
        "X-Amzn-Oidc-AccessToken",
        "X-MS-TOKEN-AAD-ID-TOKEN",
        "X-MS-CLIENT-PRINCIPAL",
        "X-MS-CLIENT-PRINCIPAL-NAME",
        "Backstage-Token",
        "Backstage_Kubernetes_Authorization",
    ] {
        let lines = format!("{name}: canary\r\n{name}: canary2\r\nX-Plain: 1\r\n");
        let answer = proxy.get("/api/kubernetes/proxy/api", &lines).await;

        assert_eq!(status(&answer), 200, "{name}");
        let request = upstream.requests().pop().expect("a request");
        assert!(
            !request.contains("canary") && request.contains(ALICE),
            "{request}"
        );
        assert!(request.to_lowercase().contains("x-plain: 1"), "{request}");
    }
}

#[tokio::test]
async fn a05_client_never_chooses_the_server() {
    let upstream = Recorder::start(OK).await;
    let other = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
    let there = other.address;
    let request = |line: String, host: String| {
        format!("{line} HTTP/1.1\r\n{host}Authorization: Bearer alice\r\nConnection: close\r\n\r\n")
    };
    let path = "/api/kubernetes/proxy/api";

    for line in [
        format!("GET http://{there}{path}"),
        format!("GET https://portal@{there}{path}"),
        format!("GET //{there}{path}"),
        format!("GET /api/kubernetes/proxy//{there}/api"),
        format!("GET @{there}{path}"),
        format!("CONNECT {there}"),
        format!("GET {there}{path}"),
    ] {
        let answer = proxy
            .raw(request(line.clone(), "Host: portal\r\n".to_owned()))
            .await;
        assert!([400, 404].contains(&status(&answer)), "{line}: {answer}");
    }
    assert_eq!(upstream.connections(), 0);

    for host in [
        format!("Host: {there}\r\n"),
        format!("Host: a\r\nHost: {there}\r\n"),
    ] {
        proxy.raw(request(format!("GET {path}"), host)).await;
    }
    let via_http2 = Request::get(format!("http://{there}{path}"))
        .header("authorization", "Bearer alice")
        .header("host", there.to_string())
        .body(full(""))
        .expect("a request");
    let _ = proxy.http2().await.send_request(via_http2).await;

    let own = format!("host: {}", upstream.address);
    for request in upstream.requests() {
        assert!(request.to_lowercase().contains(&own), "{request}");
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn a07_redirect_is_never_followed() {
    let other = Recorder::start(OK).await;
    for code in [301, 302, 303, 307, 308] {
        let location = format!("http://user:secret@{}/x?y", other.address);
        let upstream = Recorder::start(format!(
            "HTTP/1.1 {code} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ))
        .await;
        let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

        let answer = proxy.get("/api/kubernetes/proxy/api", "").await;

        assert_eq!(status(&answer), code);
        assert!(
            answer.contains(&format!("location: http://{}/x?y\r\n", other.address)),
            "{answer}"
        );
        assert!(!answer.contains("secret"));
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn a09_bearer_subprotocol_of_a_client_never_arrives() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
    let lines = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.Y2FuYXJ5\r\n\
        Sec-WebSocket-Protocol: BASE64URL.bearer.authorization.k8s.io.Y2FuYXJ5\r\n";

    proxy.get("/api/kubernetes/proxy/exec", lines).await;
    proxy
        .get(
            "/api/kubernetes/proxy/exec",
            &lines.replace("Upgrade: websocket\r\nConnection: Upgrade\r\n", ""),
        )
        .await;

    for request in upstream.requests() {
        assert!(
            !request.contains("Y2FuYXJ5") && request.contains("v5.channel.k8s.io"),
            "{request}"
        );
        assert!(request.contains(ALICE));
    }
    assert_eq!(upstream.requests().len(), 2);
}

/// Two requests in one write, of which a lenient reader takes the second for part of the first or the other way round.
#[tokio::test]
async fn a10_ambiguous_framing_never_smuggles_a_request() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = "POST /api/kubernetes/proxy/api HTTP/1.1\r\nHost: portal\r\nAuthorization: Bearer alice\r\n";
    let cases = [
        // Both lengths: chunks win, the other one goes.
        format!("{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX{smuggled}"),
        format!("{head}Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello{smuggled}"),
        format!("{head}Content-Length: 5, 0\r\n\r\nhello{smuggled}"),
        format!("{head}Content-Length: +5\r\n\r\nhello{smuggled}"),
        format!("{head}Content-Length: 0x5\r\n\r\nhello{smuggled}"),
        format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("{head}X: a\0b\r\n\r\n{smuggled}"),
        format!("{head} Impersonate-User: root\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5;a=\"\n\r\nhello\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n{smuggled}"),
        format!("{head}Content-Length: 5\r\nConnection: content-length\r\n\r\nhello{smuggled}"),
        format!(
            "{head}Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n\r\n0\r\n\r\n{smuggled}"
        ),
    ];
    for case in cases {
        let upstream = Recorder::start(OK).await;
        let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
        let mut stream = tokio::net::TcpStream::connect(proxy.http1)
            .await
            .expect("a connection");
        stream.write_all(case.as_bytes()).await.expect("written");
        stream.shutdown().await.expect("closed");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;

        for request in upstream.requests() {
            assert!(
                request.starts_with("POST /api ") || request.starts_with("unfinished POST /api "),
                "{case:?} became {request:?}"
            );
            assert!(
                !request.contains("smuggled") && !request.contains("mpersonate"),
                "{case:?} became {request:?}"
            );
            let lower = request.to_lowercase();
            assert!(
                !(lower.contains("content-length:") && lower.contains("transfer-encoding:")),
                "{case:?} became {request:?}"
            );
        }
        assert!(upstream.requests().len() <= 1, "{case:?}");
    }
}

#[tokio::test]
async fn a10_bare_line_feed_never_hides_a_header() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    let answer = proxy
        .get("/api/kubernetes/proxy/api", "X: a\nImpersonate-User: root\r\n")
        .await;

    assert_eq!(status(&answer), 403);
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn a10_trailers_never_carry_an_identity() {
    let ca = Ca::new();
    let seen = Seen::default();
    let http2 = http2_server(&ca, {
        let seen = seen.clone();
        move |request| seen.clone().record(request)
    })
    .await;
    let plain_upstream = Recorder::start(OK).await;
    let a = cluster("a", &format!("https://127.0.0.1:{}", http2.port()), Some(&ca));
    let proxy = Proxy::start(vec![a, plain("b", plain_upstream.address)]).await;
    let request = |name: &str| {
        format!(
            "POST /api/kubernetes/clusters/{name}/proxy/api HTTP/1.1\r\nHost: portal\r\nAuthorization: Bearer alice\r\n\
            Connection: close\r\nTrailer: X-Sum, Impersonate-User, Authorization, Content-Length\r\n\
            Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nImpersonate-User: root\r\n\
            Authorization: Bearer root\r\nContent-Length: 9\r\nX-Remote-User: root\r\n\r\n"
        )
    };

    let answers = [proxy.raw(request("a")).await, proxy.raw(request("b")).await];

    assert_eq!(answers.map(|answer| status(&answer)), [200, 200]);
    let arrived = seen.all().pop().expect("a request");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().expect("a value"));
    assert_eq!(
        (arrived.body, arrived.trailers),
        (Bytes::from("hello"), Some(trailers))
    );
    let raw = plain_upstream.requests().pop().expect("a request");
    assert_eq!(
        raw.split("\r\n\r\n").nth(1),
        Some("5\r\nhello\r\n0\r\nx-sum: 1"),
        "{raw:?}"
    );
}

#[tokio::test]
async fn trailers_over_http2_arrive() {
    let ca = Ca::new();
    let seen = Seen::default();
    let http2 = http2_server(&ca, {
        let seen = seen.clone();
        move |request| seen.clone().record(request)
    })
    .await;
    let a = cluster("a", &format!("https://127.0.0.1:{}", http2.port()), Some(&ca));
    let proxy = Proxy::start(vec![a]).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().expect("a value"));
    let mut with_identity = trailers.clone();
    with_identity.insert("impersonate-user", "root".parse().expect("a value"));
    let frames = [
        Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from("hello"))),
        Ok(http_body::Frame::trailers(with_identity)),
    ];
    let request = Request::post("http://portal/api/kubernetes/proxy/api")
        .header("authorization", "Bearer alice")
        .body(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
        .expect("a request");

    let answer = proxy
        .http2()
        .await
        .send_request(request)
        .await
        .expect("an answer");

    assert_eq!(answer.status(), 200);
    assert_eq!(seen.all()[0].trailers, Some(trailers));
}

#[tokio::test]
async fn chunked_bodies_arrive_with_their_bytes() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;

    let answer = proxy
        .raw(
            "POST /api/kubernetes/proxy/api HTTP/1.1\r\nHost: portal\r\nAuthorization: Bearer alice\r\n\
            Connection: close\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n\
            3;x=y\r\n\x1f\x08\x00\r\n2\r\n\r\n\r\n0\r\n\r\n",
        )
        .await;

    assert_eq!((status(&answer), body(&answer)), (200, "ok"));
    let raw = upstream.requests().pop().expect("a request");
    assert!(raw.to_lowercase().contains("content-encoding: gzip"), "{raw:?}");
    let bytes: String = raw.split_once("\r\n\r\n").expect("a body").1.to_owned();
    assert!(
        bytes.contains("\x1f\x08\x00") && bytes.ends_with("0\r\n\r\n"),
        "{bytes:?}"
    );
}

/// Frames of HTTP/2 that no library sends: header lines without HPACK indexing.
fn headers_frame(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in lines {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut frame = vec![
        0,
        0,
        u8::try_from(block.len()).expect("short"),
        1,
        0x05,
        0,
        0,
        0,
        1,
    ];
    frame.extend(block);
    frame
}

#[tokio::test]
async fn a10_malformed_head_of_http2_never_becomes_a_request() {
    let upstream = Recorder::start(OK).await;
    let proxy = Proxy::start(vec![plain("a", upstream.address)]).await;
    let path = "/api/kubernetes/proxy/api";
    let good = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "p"),
    ];
    let caller = ("authorization", "Bearer alice");
    let with = |extra: &[(&'static str, &'static str)]| {
        let mut lines = good.to_vec();
        lines.push(caller);
        lines.extend_from_slice(extra);
        lines
    };
    let cases = [
        with(&[("connection", "upgrade")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("te", "gzip")]),
        with(&[("Impersonate-User", "root")]),
        with(&[("x\r\nimpersonate-user", "root")]),
        with(&[("x", "a\r\nImpersonate-User: root")]),
        with(&[(":path", "/other")]),
        with(&[(":unknown", "x")]),
        vec![caller, good[0], good[1], good[2], good[3]],
        vec![
            good[0],
            good[1],
            (":path", "http://other/api/kubernetes/proxy/api"),
            caller,
        ],
        vec![
            good[0],
            good[1],
            (":path", "api/kubernetes/proxy/api"),
            good[3],
            caller,
        ],
        vec![
            (":method", "GET /x HTTP/1.1\r\nX:"),
            good[1],
            good[2],
            good[3],
            caller,
        ],
        vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            good[1],
            good[2],
            good[3],
            caller,
        ],
    ];
    for case in cases {
        let mut stream = tokio::net::TcpStream::connect(proxy.http2)
            .await
            .expect("a connection");
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        bytes.extend(headers_frame(&case));
        // A ping, so that the proxy has something to answer once it has read the rest.
        bytes.extend(b"\0\0\x08\x06\0\0\0\0\0pingping");
        stream.write_all(&bytes).await.expect("written");
        let mut answer = vec![0; 4096];
        let _ = stream.read(&mut answer).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;

        assert_eq!(upstream.requests(), Vec::<String>::new(), "{case:?}");
    }

    // The same bytes without a trick do arrive.
    let mut stream = tokio::net::TcpStream::connect(proxy.http2)
        .await
        .expect("a connection");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    bytes.extend(headers_frame(&with(&[])));
    stream.write_all(&bytes).await.expect("written");
    support::eventually(|| upstream.requests().len() == 1, "a request").await;
}
