use std::sync::Mutex;

use kube_authn_core::{CaBundle, Secret, TlsTrust};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{AppConfig, Environment, test_support::ca_data};

#[derive(Debug)]
struct Fixed;

#[async_trait]
impl AccessTokenSource for Fixed {
    async fn access_token(&self) -> Result<Secret> {
        Ok(Secret::new("ya29.token"))
    }
}

/// Google's API on loopback, which gives this answer to every request and keeps their heads.
async fn google(status: &'static str, body: String) -> (GoogleApi, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let heard = Arc::new(Mutex::new(String::new()));
    let keeps = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.expect("a request");
            *keeps.lock().expect("lock") = String::from_utf8_lossy(&head[..length]).into_owned();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let trust = TlsTrust::new(CaBundle::Pem(
        rcgen::generate_simple_self_signed(["x".to_owned()])
            .expect("a certificate")
            .cert
            .pem()
            .into_bytes()
            .into(),
    ));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let api = GoogleApi {
        tokens: Arc::new(Fixed),
        transport: Transport::new(provider, trust).expect("a transport"),
        base_url: Url::parse(&format!("http://{address}")).expect("a URL"),
    };
    (api, heard)
}

fn locator(api: GoogleApi, keys: &str) -> Result<GkeLocator, Vec<Problem>> {
    let yaml = format!("method: {{ type: gke, {keys} }}");
    let config = AppConfig::from_texts(&[("app-config.yaml", &yaml)], &Environment::of::<&str, &str>([]))
        .expect("a configuration");
    let mut findings = Findings::default();
    let locator = GkeLocator::read(api, &config.value("method"), &mut findings);
    locator.ok_or(findings.problems)
}

#[tokio::test]
async fn clusters_of_the_project_are_listed_with_their_ca() {
    let body = json!({
        "clusters": [
            { "name": "one", "endpoint": "35.1.2.3", "resourceLabels": { "env": "prod", "team": "a" },
              "masterAuth": { "clusterCaCertificate": ca_data() } },
            { "name": "other-label", "endpoint": "35.1.2.4", "resourceLabels": { "env": "test" } },
            { "name": "broken", "resourceLabels": { "env": "prod" } },
        ],
        "missingZones": ["europe-west1-b"],
    });
    let (api, heard) = google("200 OK", body.to_string()).await;
    let keys = "projectId: my-project, region: europe-west1, authProvider: googleServiceAccount, exposeDashboard: true, \
                matchingResourceLabels: [{ key: env, value: prod }]";

    let located = locator(api, keys)
        .expect("settings")
        .locate()
        .await
        .expect("a list");

    let cluster = &located.clusters[0];
    assert_eq!(located.clusters.len(), 1);
    assert_eq!(
        (cluster.url(), cluster.auth_provider()),
        ("https://35.1.2.3", "googleServiceAccount")
    );
    assert!(matches!(cluster.trust().ca(), CaBundle::Pem(_)));
    assert_eq!(
        cluster.dashboard().parameters,
        Some(json!({ "projectId": "my-project", "region": "europe-west1", "clusterName": "one" }))
    );
    assert_eq!(located.problems[0].cluster.as_deref(), Some("broken"));
    assert!(located.warnings[0].contains("europe-west1-b"));
    let heard = heard.lock().expect("lock").to_ascii_lowercase();
    assert!(
        heard.starts_with("get /v1/projects/my-project/locations/europe-west1/clusters http/1.1\r\n"),
        "{heard}"
    );
    assert!(heard.contains("authorization: bearer ya29.token\r\n"));
}

#[tokio::test]
async fn dns_endpoint_is_taken_without_the_clusters_ca_and_absent_gives_the_public_one() {
    let dns = json!({ "dnsEndpointConfig": { "endpoint": "gke-1.europe-west1.gke.goog" } });
    let body = json!({ "clusters": [
        { "name": "dns", "endpoint": "35.1.2.3", "controlPlaneEndpointsConfig": dns,
          "masterAuth": { "clusterCaCertificate": ca_data() } },
        { "name": "ip", "endpoint": "35.1.2.4", "masterAuth": { "clusterCaCertificate": ca_data() } },
    ]});
    let (api, _) = google("200 OK", body.to_string()).await;

    let located = locator(api, "projectId: p, endpointType: dns")
        .expect("settings")
        .locate()
        .await;

    let clusters = located.expect("a list").clusters;
    assert_eq!(clusters[0].url(), "https://gke-1.europe-west1.gke.goog");
    assert_eq!(clusters[0].trust().ca(), &CaBundle::System);
    assert_eq!(
        (clusters[1].url(), clusters[1].auth_provider()),
        ("https://35.1.2.4", "google")
    );
}

#[tokio::test]
async fn what_goes_wrong_gives_the_peers_text() {
    let (api, _) = google("403 Forbidden", "{}".to_owned()).await;
    let error = locator(api.clone(), "projectId: p")
        .expect("settings")
        .locate()
        .await
        .expect_err("refused");
    assert_eq!(
        error.to_string(),
        "There was an error retrieving clusters from GKE for projectId=p region=-; caused by Error: 403: the account needs \
         the permission container.clusters.list"
    );

    for (keys, text) in [
        (
            "region: x",
            "Missing required config value at 'method.projectId' in 'app-config.yaml'",
        ),
        (
            "projectId: p, endpointType: vpc",
            "Invalid endpointType 'vpc', must be one of: public, dns",
        ),
    ] {
        assert_eq!(locator(api.clone(), keys).expect_err("refused")[0].message, text);
    }
}
