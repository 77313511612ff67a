//! Bytes that no client library sends, against the program: what passes to the API server, and what never does.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use support::{
    Program,
    recorder::{Recorder, latin1},
};
use tempfile::TempDir;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The program in front of one recording API server.
struct Stage {
    upstream: Recorder,
    program: Program,
    _folder: TempDir,
}

/// What came of one write.
#[derive(Debug)]
struct Outcome {
    text: String,
    /// Whether the program closed the connection.
    closed: bool,
}

impl Outcome {
    /// The status codes of all answers.
    fn statuses(&self) -> Vec<u16> {
        let heads = self.text.split("HTTP/1.1 ").skip(1);
        heads
            .map(|head| head.get(..3).unwrap_or_default().parse().unwrap_or(0))
            .collect()
    }
}

impl Stage {
    fn new() -> Self {
        Self::answering(OK)
    }

    fn answering(answer: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let upstream = Recorder::start(answer);
        Self {
            program: Program::start(&folder, &upstream.config()),
            upstream,
            _folder: folder,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.program.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        stream
    }

    /// Writes at one go and reads until nothing comes any more.
    fn send(&self, bytes: impl AsRef<[u8]>) -> Outcome {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes.as_ref());
        read(&mut stream)
    }

    /// One request of alice over HTTP/1.1 that closes its connection: these lines, this body.
    fn ask(&self, method: &str, target: &str, lines: &str, body: &str) -> Outcome {
        self.send(latin1(&format!(
            "{method} {target} HTTP/1.1\r\nHost: portal\r\nX-Forwarded-User: alice\r\nConnection: close\r\n{lines}\r\n{body}"
        )))
    }

    /// Header lines over HTTP/2, without HPACK's tables, then a body; returns what the program did about it.
    fn ask_http2(&self, lines: &[(&str, &str)], body: Option<&str>) -> Http2 {
        let mut stream = self.connect();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        bytes.extend(headers_frame(lines, body.is_none()));
        if let Some(body) = body {
            bytes.extend(frame(0, 1, body.as_bytes()));
        }
        let _ = stream.write_all(&bytes);
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).is_err() {
                return Http2::Closed;
            }
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).unwrap();
            match head[3] {
                // The first line of an answer is its status: 200 and 400 stand in HPACK's table.
                1 if payload[0] == 0x88 => return Http2::Answered,
                1 => return Http2::Refused,
                3 => return Http2::Reset,
                7 => return Http2::Closed,
                _ => {}
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http2 {
    /// 200.
    Answered,
    /// Another status.
    Refused,
    Reset,
    Closed,
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
    frame.extend_from_slice(payload);
    frame
}

fn headers_frame(lines: &[(&str, &str)], ends: bool) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in lines {
        block.push(0);
        for text in [latin1(name), latin1(value)] {
            // Lengths of HPACK: seven bits, then the rest (RFC 7541 section 5.1).
            match text.len() {
                short @ ..127 => block.push(u8::try_from(short).unwrap()),
                long => {
                    let mut rest = long - 127;
                    block.push(127);
                    while rest >= 128 {
                        block.push(u8::try_from(rest % 128).unwrap() | 128);
                        rest /= 128;
                    }
                    block.push(u8::try_from(rest).unwrap());
                }
            }
            block.extend_from_slice(&text);
        }
    }
    frame(1, if ends { 5 } else { 4 }, &block)
}

fn read(stream: &mut TcpStream) -> Outcome {
    let mut bytes = Vec::new();
    let closed = match stream.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    };
    Outcome {
        text: bytes.into_iter().map(char::from).collect(),
        closed,
    }
}

const PROXY: &str = "/api/kubernetes/clusters/loopback/proxy";

const PSEUDO: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/api/kubernetes/clusters/loopback/proxy/api"),
    (":authority", "portal"),
];
const ALICE: (&str, &str) = ("x-forwarded-user", "alice");

fn with<'a>(lines: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&PSEUDO[..], &[ALICE], lines].concat()
}

const IMPERSONATE: [&str; 14] = [
    "Impersonate-",
    "impersonate-",
    "IMPERSONATE-",
    "iMpErSoNaTe-",
    "Impersonate_",
    "IMPERSONATE_",
    "impersonate.",
    "Impersonate",
    "_Impersonate-",
    "-impersonate-",
    "Impersonate--",
    "Impersonate-_",
    "Im-personate-",
    "I.m.p.e.r.s.o.n.a.t.e-",
];
const WHOM: [&str; 6] = [
    "User",
    "Group",
    "Uid",
    "Extra-scopes",
    "Extra-a%2fb",
    "Anything-new",
];

#[test]
fn impersonation_in_any_spelling_never_arrives() {
    let stage = Stage::new();
    let mut spellings = 0;
    for prefix in IMPERSONATE {
        for whom in WHOM {
            let name = format!("{prefix}{whom}");
            for lines in [
                format!("{name}: root\r\n"),
                format!("{name}:\r\n"),
                format!("{name}: alice\r\nX-Between: 1\r\n{name}: system:masters\r\n"),
                format!("Connection: {name}\r\n{name}: root\r\n"),
                format!("Connection: keep-alive\r\nConnection: X-A ,\t{name}\r\n{name}: root\r\n"),
            ] {
                let refused = stage.ask("GET", &format!("{PROXY}/api"), &lines, "");
                assert_eq!(refused.statuses(), [403], "{lines:?}");
                assert!(refused.text.contains("impersonation is not offered here"));
            }
            // HTTP/2 knows lower-case names alone.
            let lower = name.to_lowercase();
            assert_eq!(
                stage.ask_http2(&with(&[(&lower, "root")]), None),
                Http2::Refused,
                "{lower}"
            );
            spellings += 1;
        }
    }
    // Spellings that are no header lines, or none before the body.
    for lines in [
        " Impersonate-User: root\r\n",
        "X-A: a\r\n Impersonate-User: root\r\n",
        "X-A: a\r\n\tImpersonate-User: root\r\n",
        "Impersonate-User : root\r\n",
        "Impersonate-User\t: root\r\n",
        "X-A: a\rImpersonate-User: root\r\n",
        "X-A: a\nImpersonate-User: root\r\n",
        "X-A: a\0\r\nImpersonate-User: root\r\n",
        "Impersonate-User\0: root\r\n",
        "\u{ef}\u{bb}\u{bf}Impersonate-User: root\r\n",
    ] {
        let refused = stage.ask("GET", &format!("{PROXY}/api"), lines, "");
        assert!(
            [vec![400], vec![403]].contains(&refused.statuses()),
            "{lines:?}: {refused:?}"
        );
    }

    assert!(spellings >= 50, "{spellings}");
    assert_eq!(stage.upstream.connections(), 0);
}

#[test]
fn identity_behind_the_body_or_in_a_subprotocol_never_arrives() {
    let stage = Stage::new();
    let trailers = "Transfer-Encoding: chunked\r\nTrailer: X-Sum, Impersonate-User\r\n";
    let body = "5\r\nhello\r\n0\r\nX-Sum: 1\r\nImpersonate-User: root\r\nimpersonate_group: root\r\n\
        X-Remote-User: root\r\nAuthorization: root\r\nCookie: root\r\nHost: root\r\nContent-Length: 9\r\n\
        Transfer-Encoding: chunked\r\n\r\n";
    let subprotocol = "Connection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Protocol: v5.channel.k8s.io,base64url.bearer.authorization.k8s.io.cm9vdA\r\n\
        Sec-WebSocket-Protocol: BASE64URL.BEARER.AUTHORIZATION.K8S.IO.cm9vdA\r\n";

    let with_trailers = stage.ask("POST", &format!("{PROXY}/api"), trailers, body);
    let upgrade = stage.ask("GET", &format!("{PROXY}/exec"), subprotocol, "");

    assert_eq!(
        (with_trailers.statuses(), upgrade.statuses()),
        (vec![200], vec![200])
    );
    let arrived = stage.upstream.take();
    assert_eq!(arrived.len(), 2);
    assert!(
        arrived[0].ends_with("\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n"),
        "{}",
        arrived[0]
    );
    assert!(
        arrived[1].contains("sec-websocket-protocol: v5.channel.k8s.io\r\n"),
        "{}",
        arrived[1]
    );
    for request in arrived {
        assert!(
            !request.contains("cm9vdA") && !request.contains(": root"),
            "{request}"
        );
        assert!(
            request.contains("\r\nauthorization: Bearer robot-token\r\n"),
            "{request}"
        );
    }
}

/// Two requests in one write, of which a reader that sees the first one's end elsewhere takes the second for its own.
const SMUGGLED: &str = "GET /api/kubernetes/clusters/loopback/proxy/smuggled HTTP/1.1\r\nHost: x\r\n\
    X-Forwarded-User: root\r\n\r\n";

/// Heads whose framing two readers could see in two ways, and the body behind them.
const AMBIGUOUS: [(&str, &str); 37] = [
    ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
    ),
    ("Content-Length: 5\r\nContent-Length: 0\r\n", "hello"),
    ("Content-Length: 0\r\nContent-Length: 5\r\n", ""),
    ("Content-Length: 5, 0\r\n", "hello"),
    ("Content-Length: 5, 5\r\n", "hello"),
    ("Content-Length: +5\r\n", "hello"),
    ("Content-Length: -5\r\n", ""),
    ("Content-Length: 0x5\r\n", "hello"),
    ("Content-Length: 5 5\r\n", "hello"),
    ("Content-Length: 5;\r\n", "hello"),
    ("Content-Length: five\r\n", "hello"),
    ("Content-Length:\r\n", ""),
    ("Content-Length: 18446744073709551616\r\n", ""),
    ("Content-Length : 5\r\n", "hello"),
    ("Content-Length\t: 5\r\n", "hello"),
    ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: identity\r\n", ""),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "0\r\n\r\n",
    ),
    ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
    ("Transfer\u{2d}Encoding\0: chunked\r\n", "0\r\n\r\n"),
    ("X: a\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ("X: a\r\n\tContent-Length: 5\r\n", "hello"),
    ("X: a\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ("X: a\0\r\n", ""),
    ("X\0: a\r\n", ""),
    ("Transfer-Encoding: chunked\r\n", "5\nhello\n0\n\n"),
    ("Transfer-Encoding: chunked\r\n", "5;a=\"\n\r\nhello\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "-1\r\nx\r\n0\r\n\r\n"),
    (
        "Transfer-Encoding: chunked\r\n",
        "fffffffffffffffff\r\nx\r\n0\r\n\r\n",
    ),
    ("Transfer-Encoding: chunked\r\n", "5\r\nhelloXX0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n", "0x5\r\nhello\r\n0\r\n\r\n"),
];

/// Odd heads that every reader frames alike, and the body behind them.
const PLAIN: [(&str, &str); 5] = [
    ("Content-Length: 5\r\nConnection: Content-Length\r\n", "hello"),
    ("Content_Length: 9\r\nContent-Length: 5\r\n", "hello"),
    ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
    ("Transfer-Encoding:\tchunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    (
        "Transfer-Encoding: Chunked\r\nConnection: Transfer-Encoding\r\n",
        "05;a=b\r\nhello\r\n0\r\n\r\n",
    ),
];

/// Request lines that are none, or that name a server.
const LINES: [&str; 18] = [
    "POST  /api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "POST\t/api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "POST /api/kubernetes/clusters/loopback/proxy/api  HTTP/1.1",
    "POST /api/kubernetes/clusters/loopback/proxy/a b HTTP/1.1",
    "POST /api/kubernetes/clusters/loopback/proxy/api HTTP/1.2",
    "POST /api/kubernetes/clusters/loopback/proxy/api HTTP/3.0",
    "POST /api/kubernetes/clusters/loopback/proxy/api",
    "P\0ST /api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "PO ST /api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "POST api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "POST http://other/api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "POST https://portal@other/api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "POST //other/api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "POST @other/api/kubernetes/clusters/loopback/proxy/api HTTP/1.1",
    "POST /api/kubernetes/clusters/loopback/proxy//other/api HTTP/1.1",
    "POST other:443 HTTP/1.1",
    "CONNECT other:443 HTTP/1.1",
    "OPTIONS * HTTP/1.1",
];

#[test]
fn framing_that_reads_two_ways_never_smuggles_a_request() {
    let stage = Stage::new();
    let mut wrong = Vec::new();
    for (lines, body) in AMBIGUOUS {
        let head = format!(
            "POST {PROXY}/api HTTP/1.1\r\nHost: portal\r\nX-Forwarded-User: alice\r\n{lines}\r\n{body}"
        );
        let outcome = stage.send(latin1(&format!("{head}{SMUGGLED}")));

        let arrived = stage.upstream.take();
        let served = outcome.statuses();
        let whole = |request: &String| {
            request
                .trim_start_matches("unfinished ")
                .starts_with("POST /api HTTP/1.1\r\n")
                && !request.contains("smuggled")
        };
        if !outcome.closed || served.len() > 1 || arrived.len() > 1 || !arrived.iter().all(whole) {
            wrong.push(format!("{lines:?}{body:?}: {outcome:?}, {arrived:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
    for (lines, body) in PLAIN {
        let head = format!(
            "POST {PROXY}/api HTTP/1.1\r\nHost: portal\r\nX-Forwarded-User: alice\r\n{lines}\r\n{body}"
        );
        let outcome = stage.send(format!("{head}{SMUGGLED}"));

        let mut arrived = stage.upstream.take();
        // A request above that was cut off may be told of only now.
        arrived.retain(|request| !request.starts_with("unfinished "));
        assert_eq!(outcome.statuses(), [200, 200], "{lines:?}");
        assert!(
            arrived[0].contains("hello") && arrived[1].starts_with("GET /smuggled HTTP/1.1\r\n"),
            "{arrived:?}"
        );
    }
    for line in LINES {
        let outcome = stage.send(latin1(&format!(
            "{line}\r\nHost: portal\r\nX-Forwarded-User: alice\r\nConnection: close\r\n\r\n"
        )));
        assert!(
            outcome
                .statuses()
                .iter()
                .all(|status| [400, 404, 405].contains(status)),
            "{line}: {outcome:?}"
        );
        assert_eq!(stage.upstream.take(), [""; 0], "{line}");
    }
}

#[test]
fn malformed_head_of_http2_never_becomes_a_request() {
    let stage = Stage::new();
    let pseudo = |path: &'static str| vec![PSEUDO[0], PSEUDO[1], (":path", path), PSEUDO[3], ALICE];
    let cases: Vec<Vec<(&str, &str)>> = vec![
        with(&[("connection", "upgrade")]),
        with(&[("connection", "impersonate-user")]),
        with(&[("keep-alive", "timeout=9")]),
        with(&[("proxy-connection", "keep-alive")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("te", "gzip")]),
        with(&[("X-Upper", "a")]),
        with(&[("Impersonate-User", "root")]),
        with(&[("x\r\nimpersonate-user", "root")]),
        with(&[("x:impersonate-user", "root")]),
        with(&[("x impersonate-user", "root")]),
        with(&[("", "a")]),
        with(&[("x", "a\r\nImpersonate-User: root")]),
        with(&[("x", "a\nb")]),
        with(&[("x", "a\0b")]),
        with(&[(":path", "/other")]),
        with(&[(":method", "DELETE")]),
        with(&[(":authority", "other")]),
        with(&[(":status", "200")]),
        with(&[(":unknown", "x")]),
        with(&[("content-length", "5")]),
        vec![ALICE, PSEUDO[0], PSEUDO[1], PSEUDO[2], PSEUDO[3]],
        vec![PSEUDO[0], PSEUDO[1], PSEUDO[3], ALICE],
        vec![PSEUDO[1], PSEUDO[2], PSEUDO[3], ALICE],
        pseudo(""),
        pseudo("*"),
        pseudo("api/kubernetes/clusters/loopback/proxy/api"),
        pseudo("http://other/api/kubernetes/clusters/loopback/proxy/api"),
        pseudo("//other/api/kubernetes/clusters/loopback/proxy/api"),
        pseudo("/api/kubernetes/clusters/loopback/proxy/a b"),
        pseudo("/api/kubernetes/clusters/loopback/proxy/a\r\nImpersonate-User: root"),
        pseudo("/api/kubernetes/clusters/loopback/proxy/../x"),
        vec![
            (":method", "GET /x HTTP/1.1\r\nX:"),
            PSEUDO[1],
            PSEUDO[2],
            PSEUDO[3],
            ALICE,
        ],
        vec![(":method", "CONNECT"), (":authority", "other:443"), ALICE],
        vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            PSEUDO[1],
            PSEUDO[2],
            PSEUDO[3],
            ALICE,
        ],
    ];
    for case in cases {
        let outcome = stage.ask_http2(&case, None);

        assert_ne!(outcome, Http2::Answered, "{case:?}");
        assert_eq!(stage.upstream.take(), [""; 0], "{case:?}");
    }

    // More or less of a body than announced.
    for (length, body) in [("5", "hell"), ("5", "hello!"), ("0", "hello")] {
        stage.ask_http2(&with(&[("content-length", length)]), Some(body));
        for request in stage.upstream.take() {
            assert!(request.starts_with("unfinished "), "{length} {body}: {request:?}");
        }
    }

    // Who it is for says the cluster, whatever names stand there.
    for extra in [
        &[("host", "other")][..],
        &[("te", "trailers")],
        &[("x-a", "caf\u{e9}")],
    ] {
        assert_eq!(stage.ask_http2(&with(extra), None), Http2::Answered, "{extra:?}");
        let arrived = stage.upstream.take();
        assert!(arrived[0].starts_with("GET /api HTTP/1.1\r\n"), "{arrived:?}");
        let host = format!("\r\nhost: 127.0.0.1:{}\r\n", stage.upstream.port);
        assert!(
            arrived[0].contains(&host) && !arrived[0].contains("other"),
            "{arrived:?}"
        );
    }
}

/// Segments that no server reads as another path.
const LEGAL_SEGMENTS: [&str; 20] = [
    "a",
    "..a",
    "a..",
    "...",
    "%2e%2e%2e",
    "%2F",
    "%2f",
    "x%2Fy%2fz",
    "a;b",
    ";",
    "a%3Bb",
    "a;v=1",
    "%20",
    "%7E~",
    "%C3%BC",
    "100%25",
    "%2525",
    "a@b:c",
    "$&'()*+,=!",
    "https:web:443",
];
/// Segments that some server reads as `.` or `..`, or that hold what none may.
const TRICKY_SEGMENTS: [&str; 34] = [
    ".",
    "..",
    "%2e",
    "%2E",
    "%2e%2e",
    "%2E%2e",
    ".%2e",
    "%2e.",
    "%252e%252e",
    "%252E.",
    "%25%32%65.",
    "%25252e.",
    "..;",
    "..;x=1",
    ".;",
    "%2e%2e;",
    "..%3b",
    "%2e%2e%3Bx",
    "..%253b",
    "..%2f",
    "%2f..",
    "..%252f",
    "a\\b",
    "\\",
    "%5c",
    "%5C..",
    "%255c",
    "%00",
    "a%00b",
    "%0d%0a",
    "%7f",
    "%",
    "%zz",
    "%c0%ae%c0%ae",
];
const PLACES: [&str; 4] = ["/{}", "/a/{}", "/a/{}/b", "/a/{}/"];
/// Queries are nobody's to read on the way.
const QUERIES: [&str; 12] = [
    "?",
    "?b=2&a=1&b=1",
    "?x=%2e%2e/%2e%2e",
    "?x=..&y=//",
    "?u=https://other/?v=@",
    "?exec=%00%0d%0a%5c",
    "?labelSelector=a%3Db%2Cc+in+%28d%29",
    "?watch=false",
    "??",
    "?a?b",
    "?%",
    "?x={}|\\^`",
];
/// Targets that are refused or belong to nobody, apart from tricky segments.
const TRICKY_TARGETS: [&str; 8] = [
    "//a",
    "/a//b",
    "/a//",
    "/%2f/../a",
    "/\u{fc}",
    "/a\u{1}",
    "/a\tb",
    "/../../../healthz",
];

#[test]
fn path_arrives_byte_for_byte_or_not_at_all() {
    let stage = Stage::new();
    let place = |place: &str, segment: &str| place.replace("{}", segment);
    let cross = |segments: &[&str]| -> Vec<String> {
        let places = |segment: &&str| PLACES.map(|at| place(at, segment));
        segments.iter().flat_map(places).collect()
    };
    let mut legal = cross(&LEGAL_SEGMENTS);
    legal.extend(QUERIES.iter().map(|query| format!("/api/v1/pods{query}")));
    legal.extend([
        "/".to_owned(),
        format!("/{}", "long/".repeat(1638)),
        format!("/a?{}", "x".repeat(8192)),
    ]);
    let mut tricky = cross(&TRICKY_SEGMENTS);
    tricky.extend(TRICKY_TARGETS.map(str::to_owned));
    assert!(
        legal.len() + tricky.len() >= 200,
        "{} {}",
        legal.len(),
        tricky.len()
    );

    for path in &legal {
        let target = format!("{PROXY}{path}");
        let mut lines = vec![PSEUDO[0], PSEUDO[1], (":path", target.as_str()), PSEUDO[3], ALICE];
        assert_eq!(stage.ask("GET", &target, "", "").statuses(), [200], "{path}");
        assert_eq!(stage.ask_http2(&lines, None), Http2::Answered, "{path}");
        // The same under the other path.
        let by_header = format!("/api/kubernetes/proxy{path}");
        lines[2] = (":path", &by_header);
        assert_eq!(stage.ask("GET", &by_header, "", "").statuses(), [200], "{path}");
        assert_eq!(stage.ask_http2(&lines, None), Http2::Answered, "{path}");

        let line = format!("GET {path} HTTP/1.1\r\n");
        let arrived = stage.upstream.take();
        assert_eq!(arrived.len(), 4);
        for request in arrived {
            assert!(request.starts_with(&line), "{path} became {request}");
        }
    }
    let connections = stage.upstream.connections();
    for path in &tricky {
        let target = format!("{PROXY}{path}");
        let lines = [PSEUDO[0], PSEUDO[1], (":path", target.as_str()), PSEUDO[3], ALICE];
        assert_eq!(stage.ask("GET", &target, "", "").statuses(), [400], "{path}");
        assert_ne!(stage.ask_http2(&lines, None), Http2::Answered, "{path}");
    }
    // What a browser keeps to itself.
    let refused = stage.ask("GET", &format!("{PROXY}/a#b"), "", "");
    assert!(
        refused.statuses() == [400] || stage.upstream.take()[0].starts_with("GET /a HTTP/1.1\r\n"),
        "{refused:?}"
    );
    assert!(stage.upstream.connections() <= connections + 1);
}

#[test]
fn legal_request_arrives_byte_for_byte() {
    let stage = Stage::answering(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 201 Created\r\n\
        Content-Type: application/json\r\nX-Odd: a  b \u{e9}\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
        4;x=y\r\n\x00\x01\x02\x03\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
    );
    let lines = "Content-Type: application/apply-patch+yaml\r\nAccept:   application/json;as=Table;v=v1,*/*  \r\n\
        X-Empty:\r\nX-Twice: 1\r\nX-Twice: 2\r\nX-Quoted: \"a, b\"; c='d'\r\nX-Latin: caf\u{e9}\r\n\
        User-Agent: kubectl/v1.36 (linux/amd64)\r\nAccept-Encoding: gzip\r\nIf-Match: \"1\"\r\n";
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        for (framing, body, arrives) in [
            (
                "Content-Length: 6\r\n",
                "\0\r\n\r\n\u{ff}",
                "\r\n\r\n\0\r\n\r\n\u{ff}",
            ),
            (
                "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n",
                "3;x=y\r\na\r\n\r\n2\r\n\0\u{ff}\r\n0\r\nX-Sum: 9\r\n\r\n",
                "\r\n0\r\nx-sum: 9\r\n\r\n",
            ),
        ] {
            let outcome = stage.ask(
                method,
                &format!("{PROXY}/x%2Fy?b&a"),
                &format!("{lines}{framing}"),
                body,
            );

            assert_eq!(*outcome.statuses().last().unwrap(), 201, "{outcome:?}");
            let answer = outcome.text.rsplit("HTTP/1.1 ").next().unwrap();
            assert!(answer.contains("x-odd: a  b \u{e9}\r\n"), "{answer:?}");
            assert!(answer.contains("\0\u{1}\u{2}\u{3}"), "{answer:?}");
            let arrived = stage.upstream.take().pop().unwrap();
            assert!(
                arrived.starts_with(&format!("{method} /x%2Fy?b&a HTTP/1.1\r\n")),
                "{arrived:?}"
            );
            for line in [
                "accept: application/json;as=Table;v=v1,*/*\r\n",
                "x-empty: \r\n",
                "x-twice: 1\r\nx-twice: 2\r\n",
                "x-quoted: \"a, b\"; c='d'\r\n",
                "x-latin: caf\u{e9}\r\n",
                "user-agent: kubectl/v1.36 (linux/amd64)\r\n",
                "if-match: \"1\"\r\n",
            ] {
                assert!(arrived.contains(line), "{line} in {arrived:?}");
            }
            assert!(arrived.ends_with(arrives), "{arrived:?}");
        }
    }
    let with_te = "TE: trailers\r\n";
    let answer = stage.ask("GET", &format!("{PROXY}/x"), with_te, "").text;
    assert!(answer.ends_with("0\r\nx-sum: 1\r\n\r\n"), "{answer:?}");
}

const EXEC: &str = "/api/kubernetes/clusters/loopback/proxy/api/v1/namespaces/n/pods/p/exec?command=sh";
const INSIDE: &str = "GET /api/kubernetes/clusters/loopback/proxy/inside HTTP/1.1\r\nHost: x\r\n\
    X-Forwarded-User: root\r\n\r\n";

#[test]
fn upgrade_tricks_never_leave_http() {
    const SWITCH: &str =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    const ALMOST: [&str; 10] = [
        "Upgrade: websocket\r\n",
        "Connection: Upgrade\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n",
        "Connection: Upgrade\r\nUpgrade:\r\n",
        "Connection: X-Upgrade\r\nUpgrade: websocket\r\n",
    ];
    let head = |lines: &str| {
        format!("GET {EXEC} HTTP/1.1\r\nHost: x\r\nX-Forwarded-User: alice\r\n{lines}\r\n{INSIDE}")
    };

    // The API server would switch for anybody: nobody asked it to.
    let switching = Stage::answering(SWITCH);
    for lines in ALMOST {
        let outcome = switching.send(head(lines));

        for request in switching.upstream.take() {
            let lower = request.to_lowercase();
            assert!(
                !lower.contains("upgrade:") && !lower.contains("http2-settings"),
                "{lines:?} became {request:?}"
            );
        }
        assert!(
            !outcome.statuses().contains(&101) && !outcome.text.contains("Switching"),
            "{lines:?}: {outcome:?}"
        );
    }

    // A proper question, and an answer that is no switch: the connection ends, for bytes of either protocol may follow.
    let refusing = Stage::new();
    for lines in [
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\n",
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n",
        "Upgrade: websocket\r\n",
    ] {
        let outcome = refusing.send(head(lines));

        assert_eq!(
            (outcome.statuses(), outcome.closed),
            (vec![200], true),
            "{lines:?}"
        );
        let arrived = refusing.upstream.take();
        assert_eq!(arrived.len(), 1, "{lines:?}: {arrived:?}");
        assert!(!arrived[0].contains("inside"), "{arrived:?}");
    }

    // With a body: it is no request inside of anything.
    let lines = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: {}\r\n",
        INSIDE.len()
    );
    let outcome = refusing.send(head(&lines));
    assert_eq!(
        (outcome.statuses(), outcome.closed),
        (vec![200], true),
        "{outcome:?}"
    );
    let arrived = refusing.upstream.take();
    assert!(
        arrived.len() == 1
            && arrived[0]
                .trim_start_matches("unfinished ")
                .starts_with("GET /api/v1/namespaces/n/pods/p/exec"),
        "{arrived:?}"
    );
}
