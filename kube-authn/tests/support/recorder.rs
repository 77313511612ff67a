//! An API server on loopback, without TLS, that keeps every byte it gets.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

/// What came over one connection, request by request.
#[derive(Clone)]
pub struct Recorder {
    pub port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

impl Recorder {
    /// Answers each request with these bytes.
    pub fn start(answer: &'static str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            port: socket.local_addr().unwrap().port(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let answer: Arc<[u8]> = latin1(answer).into();
        let recorder = this.clone();
        thread::spawn(move || {
            for stream in socket.incoming() {
                *recorder.connections.lock().unwrap() += 1;
                let (recorder, answer) = (recorder.clone(), answer.clone());
                thread::spawn(move || recorder.serve(stream.unwrap(), &answer));
            }
        });
        this
    }

    fn serve(&self, mut stream: TcpStream, answer: &[u8]) {
        stream.set_nodelay(true).unwrap();
        let mut bytes = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut bytes) {
            self.requests.lock().unwrap().push(request);
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }

    /// All requests since the last time, each with its body; bytes over 127 as Latin-1.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    /// An app-config with this cluster, and a gateway on this machine that names callers.
    pub fn config(&self) -> Value {
        config(&[("loopback", self.port)])
    }
}

/// An app-config with these clusters on loopback, and a gateway on this machine that names callers.
pub fn config(clusters: &[(&str, u16)]) -> Value {
    let clusters: Vec<_> = clusters
        .iter()
        .map(|(name, port)| {
            json!({
                "name": name,
                "url": format!("http://127.0.0.1:{port}"),
                "authProvider": "serviceAccount",
                "serviceAccountToken": "robot-token",
            })
        })
        .collect();
    json!({
        "backend": { "listen": { "host": "127.0.0.1", "port": 0 } },
        "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": clusters }]},
        "kubeAuthn": { "callers": [
            { "type": "header", "trustedPeers": ["127.0.0.1"], "user": "X-Forwarded-User" },
        ]},
    })
}

/// Characters up to U+00FF as one byte each, so that tables can hold any byte.
pub fn latin1(text: &str) -> Vec<u8> {
    text.chars()
        .map(|character| u8::try_from(u32::from(character)).unwrap())
        .collect()
}

/// One request as strict readers see it: what is none is kept as `unfinished`, and never read past.
pub fn read_request(stream: &mut impl Read, bytes: &mut Vec<u8>) -> Option<String> {
    let text = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
    let mut buffer = [0; 65536];
    loop {
        if let Some(end) = request_end(bytes) {
            return Some(text(&bytes.drain(..end).collect::<Vec<_>>()));
        }
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => bytes.extend_from_slice(&buffer[..read]),
            _ if bytes.is_empty() => return None,
            _ => return Some(format!("unfinished {}", text(&std::mem::take(bytes)))),
        }
    }
}

fn request_end(bytes: &[u8]) -> Option<usize> {
    let find = |from: usize, what: &[u8]| {
        let at = bytes
            .get(from..)?
            .windows(what.len())
            .position(|window| window == what)?;
        Some(from + at)
    };
    let head = find(0, b"\r\n\r\n")? + 4;
    let lines = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let value = |name: &str| {
        let mut values = lines.lines().filter_map(|line| line.strip_prefix(name));
        let value = values.next().map(str::trim);
        assert_eq!(values.next(), None, "twice: {name}");
        value
    };
    match (value("transfer-encoding:"), value("content-length:")) {
        (None, None) => Some(head),
        (None, Some(length)) => {
            let end = head + length.parse::<usize>().unwrap();
            (bytes.len() >= end).then_some(end)
        }
        (Some("chunked"), None) => {
            let mut at = head;
            loop {
                let line = find(at, b"\r\n")?;
                let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..line]).unwrap(), 16).unwrap();
                at = line + 2;
                if size == 0 {
                    // Fields behind the body end with an empty line.
                    return match bytes.get(at..at + 2)? == b"\r\n" {
                        true => Some(at + 2),
                        false => Some(find(at, b"\r\n\r\n")? + 4),
                    };
                }
                at += size + 2;
                assert!(bytes.len() < at || &bytes[at - 2..at] == b"\r\n");
            }
        }
        (coding, length) => panic!("two readers could differ: {coding:?} and {length:?}"),
    }
}
