//! Requests of strategy `azure` beside those of Azure's own library for Python, against one recording server.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

use std::{collections::BTreeMap, fs, path::Path, process::Stdio, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use entra::{Answer, Entra, Seen};
use kube_authn_clusters::{AppConfig, Environment};
use kube_authn_core::{
    CaBundle, ClusterDetails, CredentialRequest, KubernetesAuthProvider, Principal, Secret, rustls,
};
use kube_authn_e2e::python;
use kube_authn_providers::{AzureConfig, AzureProvider, AzureSource, ManagedIdentity};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

#[path = "../../kube-authn-providers/tests/support/entra.rs"]
mod entra;

#[tokio::test]
async fn client_secret_is_sent_as_azures_library_sends_it() {
    let mut side = Sides::start().await;
    let mut config = side.client();
    config.client_secret = Some(Secret::new("s/e+c r%"));

    let ours = side.ours(config, &[]).await;
    let theirs = side
        .theirs("secret", json!({"client_secret": "s/e+c r%"}), &[])
        .await;

    assert_eq!(ours.unwrap(), without_client_info(theirs.unwrap()));
}

#[tokio::test]
async fn certificate_is_proved_as_azures_library_proves_it() {
    let mut side = Sides::start().await;
    let (certificate, key) = entra::client_certificate();
    let file = side.file("both.pem", &format!("{key}{certificate}"));
    let mut config = side.client();
    config.certificate_file = Some(file.clone().into());
    config.send_certificate_chain = true;

    let mut ours = side.ours(config, &[]).await.unwrap();
    let arguments = json!({"certificate_path": file, "send_certificate_chain": true});
    let theirs = side.theirs("certificate", arguments, &[]).await;
    let mut theirs = without_client_info(theirs.unwrap());

    let (our_header, our_claims) = assertion(&mut ours);
    let (their_header, their_claims) = assertion(&mut theirs);
    assert_eq!(ours, theirs);
    for claim in ["aud", "iss", "sub"] {
        assert_eq!(our_claims[claim], their_claims[claim], "{claim}");
    }
    for claims in [&our_claims, &their_claims] {
        let lifetime = claims["exp"].as_f64().unwrap() - claims["iat"].as_f64().unwrap();
        assert!((lifetime - 600.0).abs() < 1.0, "{claims}");
        assert!(claims["jti"].as_str().unwrap().len() >= 16, "{claims}");
    }
    // `nbf` is what Entra's documentation asks for, and Azure's libraries for other languages send.
    assert_eq!(
        keys(&our_claims),
        ["aud", "exp", "iat", "iss", "jti", "nbf", "sub"]
    );
    assert_eq!(keys(&their_claims), ["aud", "exp", "iat", "iss", "jti", "sub"]);
    assert_eq!(&our_header["x5c"][0], single(&their_header["x5c"]));
    assert_eq!(our_header["typ"], their_header["typ"]);
    // SHA-256 and PSS, as Entra's documentation asks for; this library still names its certificate by SHA-1.
    assert_eq!(
        (&our_header["alg"], &their_header["alg"]),
        (&json!("PS256"), &json!("RS256"))
    );
    assert_eq!(keys(&our_header), ["alg", "typ", "x5c", "x5t#S256"]);
    assert_eq!(keys(&their_header), ["alg", "typ", "x5c", "x5t"]);
}

#[tokio::test]
async fn federated_token_is_sent_as_azures_library_sends_it() {
    let mut side = Sides::start().await;
    let file = side.file("token", "e30.e30.c2ln");
    let env = [
        ("AZURE_TENANT_ID", "home"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_FEDERATED_TOKEN_FILE", file.as_str()),
    ];
    let mut config = side.authority();
    config.sources = Some(vec![AzureSource::WorkloadIdentity]);

    let ours = side.ours(config, &env).await;
    let theirs = side.theirs("workload", json!({}), &env).await;

    assert_eq!(ours.unwrap(), theirs.unwrap());
}

#[tokio::test]
async fn metadata_service_is_asked_as_azures_library_asks_it() {
    let mut side = Sides::start().await;
    let host = side.entra.http.clone();
    let env = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", host.as_str())];

    for (identity, arguments) in identities() {
        let mut config = AzureConfig::default();
        config.managed_identity = Some(identity);

        let ours = side.ours(config, &env).await;
        let theirs = side.theirs("machine", arguments, &env).await;

        assert_eq!(ours.unwrap(), theirs.unwrap());
    }
}

#[tokio::test]
async fn app_service_is_asked_as_azures_library_asks_it() {
    let mut side = Sides::start().await;
    let endpoint = format!("{}/msi/token", side.entra.http);
    let env = [
        ("IDENTITY_ENDPOINT", endpoint.as_str()),
        ("IDENTITY_HEADER", "header"),
    ];

    for (identity, arguments) in identities() {
        let mut config = AzureConfig::default();
        config.managed_identity = Some(identity);

        let ours = side.ours(config, &env).await;
        let theirs = side.theirs("machine", arguments, &env).await;

        assert_eq!(ours.unwrap(), theirs.unwrap());
    }
}

#[tokio::test]
async fn programs_get_the_arguments_that_azures_library_gives_them() {
    let mut side = Sides::start().await;
    for (source, kind, program) in [
        (AzureSource::AzureCli, "az", "az"),
        (AzureSource::AzureDeveloperCli, "azd", "azd"),
    ] {
        let path = side.program(program);
        let mut config = AzureConfig::default();
        config.sources = Some(vec![source]);
        config.tenant_id = Some("home".to_owned());
        config.azure_cli_path = Some(path.clone().into());
        config.azure_developer_cli_path = Some(path.into());

        side.ours(config, &[]).await;
        let ours = side.argv();
        let search = format!("{}:/usr/bin:/bin", side.folder.path().display());
        side.theirs(kind, json!({"tenant_id": "home"}), &[("PATH", &search)])
            .await;

        assert_eq!(ours, side.argv(), "{program}");
    }
}

#[tokio::test]
async fn app_config_decides_who_asks_and_in_which_tenant() {
    let side = Sides::start().await;
    let text = format!(
        r#"
kubeAuthn:
  strategies:
    azure:
      authorityHost: {authority}
      caFile: {ca}
      tenantId: home
      clientId: client
      clientSecret: s3cret
kubernetes:
  serviceLocatorMethod: {{ type: multiTenant }}
  clusterLocatorMethods:
    - type: config
      clusters:
        - {{ name: one, url: "https://one.example.com", authProvider: azure }}
        - name: two
          url: https://two.example.com
          authProvider: azure
          kubeAuthn: {{ azure: {{ tenantId: other, clientId: guest, serverApplication: api }} }}
"#,
        authority = side.entra.https,
        ca = side.ca,
    );
    let config = AppConfig::from_texts(&[("app-config.yaml", &text)], &Environment::of([("", "")])).unwrap();
    let access = kube_authn::cluster_access(&config, None).await.unwrap();

    for (cluster, path, client, scope) in [
        ("one", "/home/oauth2/v2.0/token", "client", AKS_SCOPE),
        ("two", "/other/oauth2/v2.0/token", "guest", "api/.default"),
    ] {
        let request = access.request(&Principal::anonymous(), cluster).unwrap();
        access.credential(&request).await.unwrap();

        let asked = side.asked().unwrap();
        let form = ["client_id", "client_secret", "scope"].map(|field| asked.form[field].as_str());
        assert_eq!((asked.path.as_str(), form), (path, [client, "s3cret", scope]));
    }
}

fn identities() -> [(ManagedIdentity, Value); 4] {
    [
        (ManagedIdentity::SystemAssigned, json!({})),
        (
            ManagedIdentity::ClientId("c".to_owned()),
            json!({"client_id": "c"}),
        ),
        (
            ManagedIdentity::ObjectId("o".to_owned()),
            json!({"identity_config": {"object_id": "o"}}),
        ),
        (
            ManagedIdentity::ResourceId("/r".to_owned()),
            json!({"identity_config": {"resource_id": "/r"}}),
        ),
    ]
}

/// What is compared of a request. The rest is the client's description of itself.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    form: BTreeMap<String, String>,
    /// `Metadata` and `X-IDENTITY-HEADER`.
    proof: Vec<Option<String>>,
}

impl Asked {
    fn of(seen: Seen) -> Self {
        let proof = ["metadata", "x-identity-header"].map(|name| seen.headers.get(name).cloned());
        Self {
            method: seen.method,
            path: seen.path,
            query: seen.query,
            form: seen.form,
            proof: proof.into(),
        }
    }
}

/// Without the one field that asks for a description of a user's account, which an application has none of (MSAL adds it
/// to every grant).
fn without_client_info(mut asked: Asked) -> Asked {
    assert_eq!(asked.form.remove("client_info").as_deref(), Some("1"));
    asked
}

/// Ours and theirs, with one server for both.
struct Sides {
    entra: Entra,
    folder: TempDir,
    ca: String,
}

impl Sides {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let entra = Entra::start(|_| Answer::json(404, "{}")).await;
        let base = entra.https.clone();
        entra.answer(move |seen| answer(&base, seen));
        let ca = folder.path().join("ca.pem").to_str().unwrap().to_owned();
        fs::write(&ca, &entra.ca).unwrap();
        Self { entra, folder, ca }
    }

    fn authority(&self) -> AzureConfig {
        let mut config = AzureConfig::default();
        config.authority_host = Some(self.entra.https.parse().unwrap());
        config
    }

    fn client(&self) -> AzureConfig {
        let mut config = self.authority();
        config.tenant_id = Some("home".to_owned());
        config.client_id = Some("client".to_owned());
        config
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A stand-in for a program of the vendor's.
    fn program(&self, name: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kube-authn-providers/tests/support/az");
        let link = self.folder.path().join(name);
        std::os::unix::fs::symlink(script, &link).unwrap();
        let token = r#"echo '{"accessToken":"t","token":"t","expires_on":4000000000,"expiresOn":"2096-10-02T07:06:40Z"}'"#;
        self.file("behaviour", token);
        link.to_str().unwrap().to_owned()
    }

    fn argv(&self) -> String {
        let file = self.folder.path().join("argv");
        let argv = fs::read_to_string(&file).unwrap();
        fs::remove_file(file).unwrap();
        argv
    }

    /// The one request of our own, if there was one.
    async fn ours(&mut self, mut config: AzureConfig, env: &[(&str, &str)]) -> Option<Asked> {
        config.ca = Some(CaBundle::Pem(self.entra.ca.as_bytes().into()));
        let variable = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let azure = AzureProvider::new(config, crypto, &variable);
        let cluster = ClusterDetails::builder("prod", "https://prod.example.com").auth_provider("azure");
        let request = CredentialRequest::new(Principal::anonymous(), cluster.build().unwrap());
        azure.credential(&request).await.unwrap();
        self.asked()
    }

    /// The one request for a token that the library made, if there was one.
    async fn theirs(&mut self, kind: &str, arguments: Value, env: &[(&str, &str)]) -> Option<Asked> {
        let mut arguments = arguments;
        if ["secret", "certificate", "workload"].contains(&kind) {
            arguments["authority"] = json!(self.entra.https);
            arguments["disable_instance_discovery"] = json!(true);
            arguments["connection_verify"] = json!(self.ca);
        }
        if ["secret", "certificate"].contains(&kind) {
            arguments["tenant_id"] = json!("home");
            arguments["client_id"] = json!("client");
        }
        let env: BTreeMap<_, _> = env.iter().copied().collect();
        let case = json!([{
            "kind": kind, "arguments": arguments, "env": env,
            "scope": AKS_SCOPE,
        }]);
        run_python(&case).await;
        self.asked()
    }

    fn asked(&self) -> Option<Asked> {
        let discovery = |seen: &Seen| seen.path.ends_with("openid-configuration");
        let mut asked: Vec<_> = self
            .entra
            .take()
            .into_iter()
            .filter(|seen| !discovery(seen))
            .collect();
        assert!(asked.len() <= 1, "{asked:?}");
        asked.pop().map(Asked::of)
    }
}

async fn run_python(cases: &Value) {
    let python = tokio::task::spawn_blocking(python).await.unwrap().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/azure_token.py");
    let mut child = tokio::process::Command::new(python)
        .arg(script)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(cases.to_string().as_bytes()).await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What Entra and the machine's services answer, in one.
fn answer(base: &str, seen: &Seen) -> Answer {
    if seen.path.ends_with("openid-configuration") {
        return Answer::json(
            200,
            json!({
                "issuer": format!("{base}/home/v2.0"),
                "authorization_endpoint": format!("{base}/home/oauth2/v2.0/authorize"),
                "token_endpoint": format!("{base}/home/oauth2/v2.0/token"),
            }),
        );
    }
    Answer::json(
        200,
        json!({
            "token_type": "Bearer", "access_token": "t", "resource": "r",
            "expires_in": if seen.method == "GET" { json!("3600") } else { json!(3600) },
            "expires_on": "4000000000",
        }),
    )
}

/// Takes the assertion out: header and claims.
fn assertion(asked: &mut Asked) -> (Value, Value) {
    let assertion = asked.form.remove("client_assertion").unwrap();
    let mut parts = assertion
        .split('.')
        .map(|part| URL_SAFE_NO_PAD.decode(part).unwrap());
    let mut json = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
    (json(), json())
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// MSAL writes a single certificate as text or as a list, by its version.
fn single(x5c: &Value) -> &Value {
    x5c.get(0).unwrap_or(x5c)
}

const AKS_SCOPE: &str = "6dae42f8-4368-4678-94ff-3960e28e3630/.default";
