//! Clients that misbehave: what they cost, and whether anybody else notices.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]
#![allow(clippy::print_stderr, reason = "says what it cost")]

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use support::{
    LIMIT, Program,
    recorder::{Recorder, config},
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const API: &str = "/api/kubernetes/clusters/loopback/proxy/api";
const MIB: u64 = 1 << 20;

fn connect(program: &Program) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", program.port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    stream
}

/// Somebody else's request, which must be answered soon.
fn others_are_served(program: &Program) {
    let begin = Instant::now();
    let answer = program.get(API, &["X-Forwarded-User: bob"]);
    assert!(answer.ends_with("ok"), "{answer}");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Alice's request without HPACK's tables.
fn block(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "portal"),
        ("x-forwarded-user", "alice"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Reads until the program closes, and says how many frames of this kind came.
fn read_to_end(stream: &mut TcpStream, kind: u8) -> usize {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "still open");
    }
    let (mut rest, mut count) = (&bytes[..], 0);
    while let Some((head, behind)) = rest.split_at_checked(9) {
        count += usize::from(head[3] == kind);
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        rest = behind.get(length..).unwrap_or_default();
    }
    count
}

/// A cluster that never answers, beside the one that does.
fn silent() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in socket.incoming() {
            kept.push(stream);
        }
    });
    port
}

#[test]
fn flood_of_http2_is_closed_in_bounded_memory_and_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Recorder::start(OK);
    let clusters = [("loopback", upstream.port), ("silent", silent())];
    let program = Program::start(&folder, &config(&clusters));
    others_are_served(&program);
    let hanging = block("/api/kubernetes/clusters/silent/proxy/api");
    let resets = |count: u32| -> Vec<u8> {
        let pair = |number: u32| {
            let stream = 2 * number + 1;
            let open = frame(HEADERS, END_STREAM | END_HEADERS, stream, &hanging);
            [open, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        };
        (0..count).flat_map(pair).collect()
    };
    let endless_head = |count: usize| -> Vec<u8> {
        let mut bytes = frame(HEADERS, END_STREAM, 1, &block(API));
        // A line whose value is 16 KiB of HPACK's literals.
        let mut line = vec![0, 1, b'x', 127, 0x80, 0x7f];
        line.resize(16384, b'a');
        bytes.extend(frame(CONTINUATION, 0, 1, &line).repeat(count));
        bytes
    };
    let empty_continuations = |count: usize| -> Vec<u8> {
        let mut bytes = frame(HEADERS, END_STREAM, 1, &block(API));
        bytes.extend(frame(CONTINUATION, 0, 1, b"").repeat(count));
        bytes
    };
    let pings = frame(PING, 0, 0, b"pingping").repeat(1_000_000);
    let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 9]).repeat(1_000_000);

    for (what, bytes, is_closed) in [
        ("rapid reset", resets(20_000), true),
        ("endless head", endless_head(4_000), true),
        ("empty continuations", empty_continuations(1_000_000), true),
        ("pings that nobody reads answers of", pings, false),
        ("settings that nobody reads answers of", settings, false),
    ] {
        let before = program.resident();
        let mut stream = connect(&program);
        stream.write_all(PREFACE).unwrap();
        // It may be cut off, or stop being read, before all of it is sent.
        let sent = stream.write_all(&bytes);
        others_are_served(&program);
        let high = program.resident();
        if is_closed {
            read_to_end(&mut stream, 7);
        }

        assert!(
            high < before + 32 * MIB,
            "{what}: {before} to {high}, sent: {sent:?}"
        );
        eprintln!(
            "{what}: {} KiB to {} KiB, sent: {sent:?}",
            before >> 10,
            high >> 10
        );
    }
}

#[test]
fn streams_of_one_connection_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Recorder::start(OK);
    let silent = silent();
    let clusters = [("loopback", upstream.port), ("silent", silent)];
    let program = Program::start(&folder, &config(&clusters));
    let before = program.resident();
    let hanging = block("/api/kubernetes/clusters/silent/proxy/api");
    let mut stream = connect(&program);
    let mut bytes = PREFACE.to_vec();
    for number in 0..1_000 {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, &hanging));
    }

    let _ = stream.write_all(&bytes);

    // 250 are taken; of the others each is refused, until the connection is closed for so many.
    let mut refused = 0;
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).is_ok() {
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).unwrap();
        refused += usize::from(head[3] == RST_STREAM);
        if head[3] == 7 {
            break;
        }
    }
    assert!(refused >= 100, "{refused}");
    others_are_served(&program);
    assert!(
        program.resident() < before + 32 * MIB,
        "{before}, {}",
        program.resident()
    );
}

#[test]
fn head_that_is_too_long_gets_431() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Recorder::start(OK);
    let program = Program::start(&folder, &config(&[("loopback", upstream.port)]));
    for (name, length) in [("X-Long", 100_000), ("X-Forwarded-User", 1 << 20)] {
        let mut stream = connect(&program);
        let head = format!(
            "GET {API} HTTP/1.1\r\nHost: x\r\n{name}: {}\r\n\r\n",
            "a".repeat(length)
        );
        // It may be cut off before all of it is sent; then the answer may be lost to the reset.
        let whole = stream.write_all(head.as_bytes()).is_ok();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            answer.starts_with(b"HTTP/1.1 431") || (answer.is_empty() && (!whole || length > 1 << 17)),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    // Over HTTP/2 in one go of frames; the status is in HPACK's literals.
    let mut stream = connect(&program);
    let mut line = vec![0, 6, b'x', b'-', b'l', b'o', b'n', b'g', 127, 0x80, 0x7f];
    line.resize(16384, b'a');
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(HEADERS, END_STREAM, 1, &block(API)));
    for number in 0..5 {
        let flags = if number == 4 { END_HEADERS } else { 0 };
        bytes.extend(frame(CONTINUATION, flags, 1, &line));
    }
    let _ = stream.write_all(&bytes);
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.windows(2).any(|pair| pair == b"ok"), "{answer:?}");

    assert_eq!(upstream.connections(), 0);
    others_are_served(&program);
}
