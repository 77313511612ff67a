//! The example `portal_api` over sockets: the portal's own sessions, and what reaches the cluster.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests an example"
)]

#[allow(dead_code, reason = "tests take its router")]
#[path = "../examples/portal_api.rs"]
mod portal_api;

use std::net::SocketAddr;

use axum::{Router, extract::Request};
use kube_authn::kube_authn_clusters::{AppConfig, Environment};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

const PROXY: &str = "/portal/api/kubernetes/clusters/tools/proxy";
const STATUS: &str = "/portal/api/cluster-auth/status";
const OUR_PAGE: &str = "Sec-Fetch-Site: same-origin";

#[tokio::test]
async fn employee_signs_in_to_the_portal_and_reaches_both_routers() {
    let place = Place::start().await;
    let cookie = place.sign_in("alice").await;
    let path = "/api/v1/namespaces/a/services/s/proxy/x%2Fy?watch=0";

    let home = place.get("/", &[&cookie, OUR_PAGE]).await;
    let status = place.get(STATUS, &[&cookie, OUR_PAGE]).await;
    let list = place
        .get("/portal/api/kubernetes/clusters", &[&cookie, OUR_PAGE])
        .await;
    let mut place = place;
    let answer = place.get(&format!("{PROXY}{path}"), &[&cookie, OUR_PAGE]).await;

    assert_eq!(home.1, "hello alice");
    let status: Value = serde_json::from_str(&status.1).unwrap();
    assert_eq!(
        (&status["user"], &status["authenticated"]),
        (&json!("user:default/alice"), &json!(false))
    );
    assert!(list.1.contains("\"name\":\"openportal\""), "{}", list.1);
    assert_eq!(answer, (200, "from the cluster".to_owned()));
    let seen = place.seen.recv().await.unwrap();
    assert_eq!(seen.uri(), path);
    assert_eq!(seen.headers()["authorization"], "Bearer robot");
    assert!(!seen.headers().contains_key("cookie"));
}

#[tokio::test]
async fn stranger_sees_the_portals_page_and_nothing_behind_it() {
    let mut place = Place::start().await;

    let home = place.get("/", &[]).await;

    assert_eq!(home, (200, "sign in".to_owned()));
    for path in [PROXY, STATUS, "/portal/api/kubernetes/clusters"] {
        for lines in [
            &[][..],
            &["Cookie: __Host-portal=", OUR_PAGE],
            &["Cookie: __Host-portal=x", OUR_PAGE],
            // Of a page on another host of the same domain.
            &["Cookie: portal=x", OUR_PAGE],
        ] {
            assert_eq!(place.get(path, lines).await.0, 401, "{path} {lines:?}");
        }
    }
    assert!(place.seen.try_recv().is_err());
}

#[tokio::test]
async fn cookie_that_another_site_makes_the_browser_send_names_nobody() {
    let mut place = Place::start().await;
    let cookie = place.sign_in("alice").await;

    for lines in [
        [&*cookie, "Sec-Fetch-Site: cross-site"],
        [&cookie, "Sec-Fetch-Site: same-site"],
        [&cookie, "Origin: https://evil.example"],
    ] {
        assert_eq!(place.get(PROXY, &lines).await.0, 401, "{lines:?}");
    }
    assert!(place.seen.try_recv().is_err());
}

#[tokio::test]
async fn another_site_never_signs_its_visitor_in() {
    let place = Place::start().await;
    for line in ["Sec-Fetch-Site: cross-site", "Origin: https://evil.example"] {
        let answer = place
            .exchange(format!(
                "POST /sign-in HTTP/1.1\r\nHost: portal\r\nConnection: close\r\n{line}\r\nContent-Length: 7\r\n\r\nmallory"
            ))
            .await;

        assert!(
            answer.starts_with("HTTP/1.1 403 ") && !answer.contains("set-cookie"),
            "{answer}"
        );
    }
}

/// The portal on loopback, and a cluster behind it that tells what it gets.
struct Place {
    portal: SocketAddr,
    seen: mpsc::UnboundedReceiver<Request>,
}

impl Place {
    async fn start() -> Self {
        let (tell, seen) = mpsc::unbounded_channel();
        let cluster = Router::new().fallback(async move |request: Request| {
            tell.send(request).unwrap();
            "from the cluster"
        });
        let cluster = serve(cluster).await;
        // JSON is YAML.
        let config = json!({
            "clusterAuth": { "issuer": "https://login.example.com/", "clientId": "kubernetes" },
            "kubernetes": { "clusterLocatorMethods": [{ "type": "config", "clusters": [
                { "name": "tools", "url": format!("http://{cluster}"), "authProvider": "serviceAccount",
                  "serviceAccountToken": "robot" },
                { "name": "openportal", "url": "https://o.example.com", "authProvider": "clusterAuth" },
            ]}]},
            "kubeAuthn": {
                "store": { "type": "memory" },
                "encryption": { "keys": [{ "id": "k1", "key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=" }] },
            },
        });
        let nothing = Environment::of([("", ""); 0]);
        let config = AppConfig::from_texts(&[("app-config.yaml", &config.to_string())], &nothing).unwrap();
        let portal = serve(portal_api::portal(&config).await.unwrap()).await;
        Self { portal, seen }
    }

    /// The line that carries the session.
    async fn sign_in(&self, name: &str) -> String {
        let request = format!(
            "POST /sign-in HTTP/1.1\r\nHost: portal\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{name}",
            name.len()
        );
        let answer = self.exchange(request).await;
        let (_, cookie) = answer.split_once("set-cookie: __Host-").unwrap();
        assert!(
            cookie.contains("; Secure; HttpOnly; SameSite=Strict; Path=/;"),
            "{cookie}"
        );
        format!("Cookie: other=1; __Host-{}", cookie.split(';').next().unwrap())
    }

    /// Status and body.
    async fn get(&self, path: &str, lines: &[&str]) -> (u16, String) {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: portal\r\nConnection: close\r\n{lines}\r\n");
        let answer = self.exchange(request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        // What comes from the cluster is streamed, one chunk here.
        let body = match head.contains("transfer-encoding: chunked") {
            true => body.split("\r\n").nth(1).unwrap(),
            false => body,
        };
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    async fn exchange(&self, request: String) -> String {
        let mut stream = TcpStream::connect(self.portal).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}
