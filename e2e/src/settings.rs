//! The files and arguments that the cluster's programs start with. YAML is written as JSON, its subset.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    certificates::{Authority, Identity, replace, write_service_account_key},
    cluster::Options,
    error::Result,
};

/// The ports of one cluster, all on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) etcd: u16,
    pub(crate) api_server: u16,
    pub(crate) issuer_a: u16,
    pub(crate) issuer_b: u16,
    pub(crate) issuer_admin: u16,
}

/// The common name that the API server shows at the node.
const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// Without the first, `view`, `edit` and `admin` hold no rules.
const CONTROLLERS: &str = "clusterrole-aggregation-controller,serviceaccount-controller,\
    serviceaccount-token-controller,namespace-controller,root-ca-certificate-publisher-controller";

/// Writes everything that a start reads.
pub(crate) fn write(folder: &Path, ca: &Authority, ports: Ports, options: &Options) -> Result<()> {
    replace(&folder.join("ca.pem"), ca.pem())?;
    for name in ["kube-apiserver", "node", "issuer"] {
        ca.serving(name)?.write(folder, name)?;
    }
    ca.client(KUBELET_CLIENT, None)?.write(folder, "kubelet-client")?;
    write_service_account_key(folder)?;
    // `system:masters` passes RBAC, which the API server has yet to fill.
    for (file, user) in [
        ("admin", "admin"),
        ("controllers", "kube-controller-manager"),
        ("nodes", "node"),
    ] {
        let identity = ca.client(user, Some("system:masters"))?;
        replace(
            &folder.join(format!("{file}.kubeconfig")),
            &kubeconfig(ca, ports.api_server, &identity).to_string(),
        )?;
    }
    replace(&folder.join("audit-policy.json"), &audit_policy().to_string())?;
    replace(
        &folder.join("authentication.json"),
        &authentication(ca, ports).to_string(),
    )?;
    replace(
        &folder.join("issuers.json"),
        &issuers(folder, ports, options).to_string(),
    )
}

pub(crate) fn etcd(folder: &Path, ports: Ports) -> Vec<String> {
    let url = format!("http://127.0.0.1:{}", ports.etcd);
    vec![
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        "--listen-peer-urls=http://127.0.0.1:0".into(),
        // The data is gone with the test.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

pub(crate) fn api_server(folder: &Path, ports: Ports) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let mut arguments: Vec<String> = [
        ("tls-cert-file", "kube-apiserver.pem"),
        ("tls-private-key-file", "kube-apiserver.key"),
        ("client-ca-file", "ca.pem"),
        ("kubelet-client-certificate", "kubelet-client.pem"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("kubelet-certificate-authority", "ca.pem"),
        ("service-account-key-file", "service-account.pub"),
        ("service-account-signing-key-file", "service-account.key"),
        ("authentication-config", "authentication.json"),
        ("audit-policy-file", "audit-policy.json"),
        ("audit-log-path", "audit.log"),
        ("cert-dir", "api-server"),
    ]
    .map(|(flag, name)| format!("--{flag}={}", file(name)))
    .into();
    arguments.extend([
        format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
        format!("--secure-port={}", ports.api_server),
        "--bind-address=127.0.0.1".into(),
        // Loopback is no valid endpoint of the `kubernetes` service.
        "--advertise-address=127.0.0.1".into(),
        "--endpoint-reconciler-type=none".into(),
        "--authorization-mode=RBAC".into(),
        // A line is there before the answer ends.
        "--audit-log-mode=blocking".into(),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        "--service-cluster-ip-range=10.0.0.0/24".into(),
        "--profiling=false".into(),
    ]);
    arguments
}

pub(crate) fn controller_manager(folder: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", folder.join("controllers.kubeconfig").display()),
        format!("--root-ca-file={}", folder.join("ca.pem").display()),
        format!(
            "--service-account-private-key-file={}",
            folder.join("service-account.key").display()
        ),
        format!("--controllers={CONTROLLERS}"),
        "--leader-elect=false".into(),
        "--secure-port=0".into(),
    ]
}

pub(crate) fn node(folder: &Path) -> Vec<String> {
    vec![
        format!("-kubeconfig={}", folder.join("nodes.kubeconfig").display()),
        format!("-tls-cert={}", folder.join("node.pem").display()),
        format!("-tls-key={}", folder.join("node.key").display()),
        format!("-client-ca={}", folder.join("ca.pem").display()),
        format!("-caller={KUBELET_CLIENT}"),
        format!("-name={}", crate::cluster::NODE),
    ]
}

fn kubeconfig(ca: &Authority, port: u16, user: &Identity) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": STANDARD.encode(ca.pem()),
        }}],
        "users": [{ "name": "admin", "user": {
            "client-certificate-data": STANDARD.encode(&user.certificate),
            "client-key-data": STANDARD.encode(&user.key),
        }}],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "admin" } }],
        "current-context": "test",
    })
}

/// <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata" }],
    })
}

/// <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>
fn authentication(ca: &Authority, ports: Ports) -> Value {
    let issuer = |port: u16, audiences: &[&str]| {
        json!({
            "url": format!("https://127.0.0.1:{port}"),
            "certificateAuthority": ca.pem(),
            "audiences": audiences,
            "audienceMatchPolicy": "MatchAny",
        })
    };
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": [
            {
                "issuer": issuer(ports.issuer_a, &["portal"]),
                "claimMappings": {
                    "username": { "expression": "'portal:' + claims.preferred_username" },
                    "groups": { "expression": "dyn(claims.groups).map(group, 'portal:' + group)" },
                },
            },
            {
                "issuer": issuer(ports.issuer_b, &["kubernetes", "kubernetes-short", "narrow"]),
                "claimMappings": {
                    "username": { "claim": "email", "prefix": "" },
                    "groups": { "claim": "groups", "prefix": "oidc:" },
                },
            },
        ],
    })
}

fn issuers(folder: &Path, ports: Ports, options: &Options) -> Value {
    let issuer = |name: &str, port: u16, algorithm: &str| {
        json!({
            "name": name,
            "port": port,
            "algorithm": algorithm,
            "idTokenSeconds": options.id_token_lifetime.as_secs(),
            "shortIdTokenSeconds": options.short_id_token_lifetime.as_secs(),
        })
    };
    json!({
        "certificate": folder.join("issuer.pem"),
        "key": folder.join("issuer.key"),
        "adminPort": ports.issuer_admin,
        "issuers": [issuer("a", ports.issuer_a, "RS256"), issuer("b", ports.issuer_b, "ES256")],
    })
}
