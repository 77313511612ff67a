//! API servers that hang, and answers of any size: memory stays flat, and nobody else waits.
//!
//! With `KUBE_AUTHN_TEST_LONG=1`: answers of a GiB.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]
#![allow(clippy::print_stderr, reason = "figures are what a long run is for")]

mod support;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use support::{
    Program,
    recorder::{config, read_request},
};

/// An API server that does something to each connection.
fn server(act: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in socket.incoming() {
            let act = act.clone();
            thread::spawn(move || act(stream.unwrap()));
        }
    });
    port
}

/// Answers, but for `/hang`.
fn sometimes(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut bytes) {
        if request.starts_with("GET /hang") {
            thread::sleep(LONG);
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

const LONG: Duration = Duration::from_secs(600);

fn ask(program: &Program, cluster: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", program.port)).unwrap();
    let get = format!(
        "GET /api/kubernetes/clusters/{cluster}/proxy{path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-User: alice\r\n\
        Connection: close\r\n\r\n"
    );
    stream.write_all(get.as_bytes()).unwrap();
    stream
}

#[test]
fn api_server_that_hangs_keeps_nobody_else_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let silent = server(|stream| {
        thread::sleep(LONG);
        drop(stream);
    });
    let trickling = server(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ");
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let still = server(|mut stream| {
        read_request(&mut stream, &mut Vec::new());
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        thread::sleep(LONG);
    });
    let good = server(sometimes);
    let clusters = [
        ("silent", silent),
        ("trickling", trickling),
        ("still", still),
        ("good", good),
    ];
    let program = Program::start(&folder, &config(&clusters));
    let before = program.resident();

    let hanging: Vec<_> = ["silent", "trickling", "still"]
        .into_iter()
        .map(|cluster| (cluster, "/api"))
        .chain([("good", "/hang"), ("good", "/hang?watch=1")])
        .flat_map(|asked| [asked; 40])
        .map(|(cluster, path)| ask(&program, cluster, path))
        .collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..300 {
        let begin = Instant::now();
        let mut answer = String::new();
        ask(&program, "good", "/api").read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("ok"), "{answer}");
        slowest = slowest.max(begin.elapsed());
    }

    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(
        program.resident() < before + (48 << 20),
        "{before}, {}",
        program.resident()
    );
    eprintln!("{} hang, slowest of 300 others: {slowest:?}", hanging.len());
}

/// A piece of an answer that begins at this place.
fn piece(at: u64) -> Vec<u8> {
    (at..at + PIECE)
        .step_by(8)
        .flat_map(|place| place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

const PIECE: u64 = 64 << 10;

/// An answer of so many bytes, said to be compressed or not.
fn large(mut stream: TcpStream, total: u64) {
    let mut bytes = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut bytes) {
        let coding = match request.starts_with("GET /bomb") {
            true => "Content-Encoding: gzip\r\n",
            false => "",
        };
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{coding}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        for at in (0..total).step_by(PIECE as usize) {
            let chunk = [format!("{PIECE:x}\r\n").into_bytes(), piece(at), b"\r\n".to_vec()].concat();
            if stream.write_all(&chunk).is_err() {
                return;
            }
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    }
}

#[test]
fn answer_of_any_size_arrives_unchanged_in_flat_memory() {
    let total: u64 = match std::env::var_os("KUBE_AUTHN_TEST_LONG") {
        None => 32 << 20,
        Some(_) => 1 << 30,
    };
    let folder = tempfile::tempdir().unwrap();
    let port = server(move |stream| large(stream, total));
    let program = Program::start(&folder, &config(&[("large", port)]));
    let before = program.resident();
    for path in ["/api/v1/pods", "/bomb"] {
        let begin = Instant::now();
        let mut stream = std::io::BufReader::with_capacity(1 << 20, ask(&program, "large", path));
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        assert_eq!(
            head.contains("content-encoding: gzip\r\n"),
            path == "/bomb",
            "{head}"
        );

        let (mut at, mut high) = (0, before);
        let mut expected = Vec::new();
        loop {
            let size = chunk_size(&mut stream);
            let mut chunk = vec![0; size];
            stream.read_exact(&mut chunk).unwrap();
            stream.read_exact(&mut [0; 2]).unwrap();
            if size == 0 {
                break;
            }
            // Pieces may be cut anew on the way.
            while expected.len() < size {
                expected.extend(piece(at));
                at += PIECE;
            }
            assert!(expected.drain(..size).as_slice() == chunk, "changed near {at}");
            if at.is_multiple_of(16 << 20) {
                high = high.max(program.resident());
            }
        }

        assert_eq!((at, expected.len()), (total, 0));
        assert!(high < before + (24 << 20), "{before} to {high}");
        eprintln!(
            "{path}: {} MiB in {:.1} s, resident {} KiB before, {} KiB at most",
            total >> 20,
            begin.elapsed().as_secs_f64(),
            before >> 10,
            high >> 10
        );
    }
}

fn chunk_size(stream: &mut impl Read) -> usize {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim_end(), 16).unwrap()
}
