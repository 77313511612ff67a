//! `kube-authn serve` as people run it: a process, sockets, signals.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(clippy::print_stderr, reason = "says what it cost")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

mod support;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use support::{ApiServer, Authority, LIMIT, Program, eventually, refused};

#[test]
fn plain_backstage_file_starts_without_store_and_key() {
    let folder = tempfile::tempdir().unwrap();

    let program = Program::start(&folder, &json!({ "backend": { "listen": "127.0.0.1:0" } }));

    assert_eq!(program.scheme, "http");
    let answer = program.get("/healthz", &[]);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("{\"status\":\"ok\"}"), "{answer}");
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
}

#[test]
fn nobody_is_known_where_no_caller_is_configured_and_the_start_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(&folder, &json!({ "backend": { "listen": "127.0.0.1:0" } }));

    for path in ["/api/kubernetes/clusters", "/api/kubernetes/proxy/api"] {
        for lines in [
            &[][..],
            &["X-Forwarded-User: alice"],
            &["Authorization: Bearer a.b.c"],
        ] {
            let answer = program.get(path, lines);
            assert!(answer.starts_with("HTTP/1.1 401 "), "{path}: {answer}");
        }
    }

    assert!(program.told("nobody may call: every call is answered with 401"));
}

#[test]
fn errors_that_check_lists_refuse_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "backend": { "listen": "here", "https": true },
        "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [
            { "name": "a", "url": "nowhere", "authProvider": "serviceAccount" },
            { "name": "b", "url": "https://b", "authProvider": "unheard-of" },
        ]}]},
        "kubeAuthn": { "calers": [] },
    });

    let (code, text) = refused(&folder, &config);

    assert_eq!(code, Some(1), "{text}");
    for (key, said) in [
        (
            "kubernetes.clusterLocatorMethods[0].clusters[0].url",
            "the url is no URL",
        ),
        ("kubernetes.clusterLocatorMethods[0].clusters[1]", "unheard-of"),
        ("kubeAuthn.calers", "did you mean 'callers'?"),
        ("backend.listen", "Unable to parse listen address here"),
        ("backend.https", "'backend.https.certificate.cert'"),
    ] {
        let line = text
            .lines()
            .find(|line| line.starts_with("error ") && line.contains(&format!(" {key}")))
            .unwrap_or_else(|| panic!("{key} is not listed:\n{text}"));
        assert!(line.contains(said) && line.contains("app-config.yaml"), "{line}");
    }
}

#[test]
fn logins_without_a_key_refuse_the_start_and_name_keygen() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "backend": { "listen": "127.0.0.1:0" },
        "clusterAuth": { "issuer": "https://login.example.com/", "clientId": "kubernetes" },
        "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [
            { "name": "a", "url": "https://a.example.com", "authProvider": "clusterAuth" },
        ]}]},
    });

    let (code, text) = refused(&folder, &config);

    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("kubeAuthn.encryption.keys") && text.contains("kube-authn keygen"),
        "{text}"
    );
    assert!(!folder.path().join("kube-authn.db").exists());
}

#[test]
fn certificate_that_is_none_or_does_not_fit_its_key_refuses_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Authority::new().issue(), Authority::new().issue());

    for (certificate, key) in [
        ("certificate.pem", &one.1),
        (one.0.as_str(), &"key.pem".to_owned()),
        (one.0.as_str(), &other.1),
    ] {
        let config = json!({ "backend": {
            "listen": "127.0.0.1:0",
            "https": { "certificate": { "cert": certificate, "key": key } },
        }});
        let (code, text) = refused(&folder, &config);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("backend.https.certificate"), "{text}");
        assert!(!text.contains("PRIVATE KEY-----"), "{text}");
    }
}

#[test]
fn port_in_use_is_named_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();

    let (code, text) = refused(&folder, &json!({ "backend": { "listen": address.to_string() } }));

    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("backend.listen") && text.contains(&address.to_string()),
        "{text}"
    );
}

#[test]
fn renewed_certificate_is_shown_and_a_broken_one_leaves_it_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Authority::new(), Authority::new());
    let write = |pair: &(String, String)| {
        fs::write(folder.path().join("cert.pem"), &pair.0).unwrap();
        fs::write(folder.path().join("key.pem"), &pair.1).unwrap();
    };
    write(&first.issue());
    let config = json!({ "backend": {
        "listen": "127.0.0.1:0",
        "https": { "certificate": { "cert": { "$file": "cert.pem" }, "key": { "$file": "key.pem" } } },
    }});
    let program = Program::start(&folder, &config);
    assert_eq!(program.scheme, "https");
    assert_eq!(program.protocol(&first).as_deref(), Ok("h2"));
    assert!(program.protocol(&second).is_err());

    write(&second.issue());
    eventually(|| program.protocol(&second).is_ok());
    assert!(program.protocol(&first).is_err());

    fs::write(folder.path().join("cert.pem"), "no certificate").unwrap();
    eventually(|| program.told("the old one stays in force"));
    assert_eq!(program.protocol(&second).as_deref(), Ok("h2"));
}

#[test]
fn caller_whom_a_trusted_gateway_names_reaches_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let api_server = ApiServer::start(Duration::ZERO);
    let program = Program::start(&folder, &api_server.config(&folder, "127.0.0.1/32"));

    let alice = program.get(PODS, &["X-Forwarded-User: alice"]);
    let nobody = program.get(PODS, &[]);
    let listed = program.get("/api/kubernetes/clusters", &["X-Forwarded-User: alice"]);

    assert!(
        alice.starts_with("HTTP/1.1 200 OK\r\n") && alice.contains("PodList"),
        "{alice}"
    );
    assert!(
        nobody.starts_with("HTTP/1.1 401 ") && nobody.contains("Missing credentials"),
        "{nobody}"
    );
    assert!(listed.contains("\"name\":\"loopback\""), "{listed}");
    let seen = api_server.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    let head = seen[0].to_ascii_lowercase();
    assert!(
        head.starts_with("get /api/v1/pods?limit=1 http/1.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains("\r\nauthorization: bearer robot-token\r\n"),
        "{head}"
    );
    assert!(!head.contains("x-forwarded"), "{head}");
    let metrics = program.get("/metrics", &[]);
    assert!(
        metrics
            .lines()
            .any(|line| line.starts_with("kube_authn_requests_total{")
                && line.contains("cluster=\"loopback\"")
                && line.contains("outcome=\"2xx\"")),
        "{metrics}"
    );
}

#[test]
fn portal_with_a_certificate_of_its_own_ca_is_asked_for_its_keys_and_only_with_that_ca() {
    let token = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let head = json!({ "alg": "ES256", "kid": "k", "typ": "vnd.backstage.user" });
    for trusted in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let portal = ApiServer::start(Duration::ZERO);
        fs::write(folder.path().join("ca.pem"), &portal.authority.pem).unwrap();
        let base_url = format!("https://127.0.0.1:{}/api/auth", portal.port);
        let mut caller = json!({ "type": "backstage", "baseUrl": base_url });
        if trusted {
            caller["caFile"] = "ca.pem".into();
        }
        let program = Program::start(
            &folder,
            &json!({ "backend": { "listen": "127.0.0.1:0" }, "kubeAuthn": { "callers": [caller] } }),
        );
        let claims = json!({ "iss": base_url, "sub": "user:default/alice", "aud": "backstage", "exp": 4_000_000_000_u32 });
        let signature = URL_SAFE_NO_PAD.encode([7; 64]);
        let line = format!(
            "Authorization: Bearer {}.{}.{signature}",
            token(&head),
            token(&claims)
        );

        let answer = program.get("/api/kubernetes/clusters", &[&line]);

        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        let asked = portal
            .seen()
            .iter()
            .any(|head| head.starts_with("GET /api/auth/.well-known/jwks.json "));
        assert_eq!(asked, trusted, "{answer}");
    }
}

#[test]
fn gateway_that_is_not_trusted_names_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let api_server = ApiServer::start(Duration::ZERO);
    let program = Program::start(&folder, &api_server.config(&folder, "127.0.0.2/32"));

    let answer = program.get(PODS, &["X-Forwarded-User: alice"]);

    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_eq!(api_server.seen(), [""; 0]);
}

#[test]
fn stop_lets_a_slow_request_finish_and_accepts_nobody_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let api_server = ApiServer::start(Duration::from_secs(2));
    let mut program = Program::start(&folder, &api_server.config(&folder, "127.0.0.1"));
    let client = program.client();
    let asked = thread::spawn(move || client.get(PODS, &["X-Forwarded-User: alice"]));
    eventually(|| api_server.seen().len() == 1);

    program.signal("TERM");
    eventually(|| TcpStream::connect(("127.0.0.1", program.port)).is_err());

    let answer = asked.join().unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("PodList"),
        "{answer}"
    );
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn requests_that_outlast_the_drain_are_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let api_server = ApiServer::start(Duration::from_secs(60));
    let config = api_server.config(&folder, "127.0.0.1");
    let mut program = Program::start_with(&folder, &config, &["--drain", "1"]);
    let client = program.client();
    let asked = thread::spawn(move || client.get(PODS, &["X-Forwarded-User: alice"]));
    eventually(|| api_server.seen().len() == 1);

    program.signal("TERM");

    assert_eq!(program.end().code(), Some(0));
    assert_eq!(asked.join().unwrap(), "");
    assert!(program.told("the rest is cut off"));
}

#[test]
fn second_signal_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let api_server = ApiServer::start(Duration::from_secs(60));
    let config = api_server.config(&folder, "127.0.0.1");
    let mut program = Program::start_with(&folder, &config, &["--drain", "3600"]);
    let client = program.client();
    let asked = thread::spawn(move || client.get(PODS, &["X-Forwarded-User: alice"]));
    eventually(|| api_server.seen().len() == 1);

    program.signal("INT");
    eventually(|| TcpStream::connect(("127.0.0.1", program.port)).is_err());
    program.signal("TERM");

    assert_eq!(program.end().code(), Some(0));
    assert_eq!(asked.join().unwrap(), "");
}

#[test]
fn head_of_a_mebibyte_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(&folder, &json!({ "backend": { "listen": "127.0.0.1:0" } }));
    let mut stream = TcpStream::connect(("127.0.0.1", program.port)).unwrap();
    let line = format!(
        "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}",
        "a".repeat(1 << 20)
    );

    // It may be cut off before all of it is sent.
    let _ = stream.write_all(line.as_bytes());
    let mut answer = [0; 12];
    let read = stream.read(&mut answer).unwrap_or(0);

    assert!(read == 0 || &answer == b"HTTP/1.1 431", "{answer:?}");
    assert!(program.get("/healthz", &[]).starts_with("HTTP/1.1 200 "));
}

#[test]
fn half_open_clients_are_cut_off_and_nobody_waits_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(&folder, &json!({ "backend": { "listen": "127.0.0.1:0" } }));
    let count = open_files() / 2;
    let (begin, before) = (Instant::now(), program.resident());
    let open = |sent: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", program.port)).unwrap();
        stream.write_all(sent).unwrap();
        stream.set_read_timeout(Some(2 * LIMIT)).unwrap();
        stream
    };

    // Nothing, less than it takes to tell the protocols apart, half a head, a preface and no request.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let silent: Vec<_> = (0..count.min(5_000) / 4)
        .flat_map(|_| [&b""[..], b"PRI", b"GET /healthz HTTP/1.1\r\nHost", preface])
        .map(open)
        .collect();

    assert!(program.get("/healthz", &[]).starts_with("HTTP/1.1 200 "));
    assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
    let growth = program.resident() - before;
    eprintln!(
        "{} half-open clients: {} KiB each",
        silent.len(),
        growth / 1024 / silent.len() as u64
    );
    assert!(growth < 160 << 20, "{growth}");
    for mut stream in silent {
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "still open");
        }
    }
}

const PODS: &str = "/api/kubernetes/clusters/loopback/proxy/api/v1/pods?limit=1";

/// How many files this process may open; as many as the system lets it.
fn open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    limit.maximum.unwrap_or(u64::MAX)
}
