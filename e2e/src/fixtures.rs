//! What every test finds in the cluster: namespaces, pods, roles and a service account, as seed users know them.
//!
//! | who | where | role |
//! |---|---|---|
//! | `alice@example.com` | `team-a` | `view` (binding `alice-viewer`) |
//! | `alice@example.com` | `team-a-dev` | `edit` |
//! | service account `portal` of `backstage` | everywhere | `view` |
//!
//! Everybody else, `bob@example.com` first, has a login and no rights. `team-a` has the pods `web-0`, `web-1` and
//! `shell`, `team-a-dev` and `team-b` have `web-0`.

use std::time::{Duration, Instant};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::{Namespace, Pod, Secret, ServiceAccount},
        rbac::v1::{ClusterRoleBinding, RoleBinding},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    cluster::NODE,
    error::{Context, Error, Result},
};

/// The namespaces.
pub const NAMESPACES: [&str; 4] = ["team-a", "team-a-dev", "team-b", "backstage"];
/// Namespace and name of the service account that may view everything.
pub const PORTAL_SERVICE_ACCOUNT: (&str, &str) = ("backstage", "portal");

const PODS: [(&str, &str); 5] = [
    ("team-a", "web-0"),
    ("team-a", "web-1"),
    ("team-a", "shell"),
    ("team-a-dev", "web-0"),
    ("team-b", "web-0"),
];
const LIMIT: Duration = Duration::from_secs(30);

/// Creates everything and waits until the pods run.
///
/// # Errors
/// When the API server refuses anything.
pub async fn apply(client: &Client) -> Result<()> {
    for name in NAMESPACES {
        namespace(client, name).await?;
    }
    let (namespace, name) = PORTAL_SERVICE_ACCOUNT;
    create::<ServiceAccount>(client, namespace, service_account(name)).await?;
    create::<RoleBinding>(
        client,
        "team-a",
        binding("alice-viewer", "view", &user("alice@example.com")),
    )
    .await?;
    create::<RoleBinding>(
        client,
        "team-a-dev",
        binding("alice-editor", "edit", &user("alice@example.com")),
    )
    .await?;
    let subject = json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace });
    create_all::<ClusterRoleBinding>(
        &Api::all(client.clone()),
        binding("portal-viewer", "view", &subject),
    )
    .await?;
    for (namespace, name) in PODS {
        create::<Pod>(client, namespace, pod(name)?).await?;
    }
    for (namespace, name) in PODS {
        running(client, namespace, name).await?;
    }
    Ok(())
}

/// Creates a namespace that pods can be created in at once.
///
/// # Errors
/// When the API server refuses.
pub async fn namespace(client: &Client, name: &str) -> Result<()> {
    create_all::<Namespace>(&Api::all(client.clone()), json!({ "metadata": { "name": name } })).await?;
    // Pods need it, and its controller may take a moment.
    create::<ServiceAccount>(client, name, service_account("default")).await
}

/// A pod on the test node whose one container echoes what is attached to it.
///
/// # Errors
/// Never for a valid name.
pub fn pod(name: &str) -> Result<Pod> {
    let pod = json!({
        "metadata": { "name": name, "labels": { "app": name.split('-').next() } },
        "spec": { "nodeName": NODE, "containers": [{ "name": "main", "image": "echo", "stdin": true }] },
    });
    serde_json::from_value(pod).context("describe a pod")
}

/// Waits until a pod runs.
///
/// # Errors
/// When it doesn't within thirty seconds.
pub async fn running(client: &Client, namespace: &str, name: &str) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let begin = Instant::now();
    loop {
        let pod = pods
            .get(name)
            .await
            .context(format!("read pod {namespace}/{name}"))?;
        if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running") {
            return Ok(pod);
        }
        if begin.elapsed() > LIMIT {
            return Err(Error::new(format!("pod {namespace}/{name} doesn't run")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A token from a Secret of type `kubernetes.io/service-account-token`: it has no end (seed 004's `K8S_SA_TOKEN`).
///
/// # Errors
/// When the service account doesn't exist or its controller doesn't answer.
pub async fn secret_token(client: &Client, namespace: &str, service_account: &str) -> Result<String> {
    let name = format!("{service_account}-token");
    let secret = json!({
        "metadata": { "name": name, "annotations": { "kubernetes.io/service-account.name": service_account } },
        "type": "kubernetes.io/service-account-token",
    });
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    create_all(&secrets, secret).await?;
    let begin = Instant::now();
    loop {
        let secret = secrets.get(&name).await.context("read the token's Secret")?;
        if let Some(token) = secret.data.and_then(|mut data| data.remove("token")) {
            return String::from_utf8(token.0).context("read the token");
        }
        if begin.elapsed() > LIMIT {
            return Err(Error::new(format!(
                "no token comes for {namespace}/{service_account}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A token minted by TokenRequest, as a pod gets it: bound to its service account, with an end.
///
/// # Errors
/// When the service account doesn't exist.
pub async fn bound_token(
    client: &Client,
    namespace: &str,
    service_account: &str,
    lifetime: Duration,
) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let seconds = i64::try_from(lifetime.as_secs()).context("read the lifetime")?;
    let spec = TokenRequestSpec {
        expiration_seconds: Some(seconds),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest {
        spec: Some(spec),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(service_account, &PostParams::default(), &request)
        .await
        .context(format!("mint a token for {namespace}/{service_account}"))?;
    answer
        .status
        .and_then(|status| status.token)
        .ok_or_else(|| Error::new("the TokenRequest has no token"))
}

fn service_account(name: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    }
}

fn user(name: &str) -> Value {
    json!({ "kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io" })
}

fn binding(name: &str, role: &str, subject: &Value) -> Value {
    json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [subject],
    })
}

async fn create<K>(client: &Client, namespace: &str, object: impl Serialize) -> Result<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    create_all(&Api::<K>::namespaced(client.clone(), namespace), object).await
}

/// Creates an object; one that is there already is fine.
async fn create_all<K>(api: &Api<K>, object: impl Serialize) -> Result<()>
where
    K: Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let object: K = serde_json::to_value(object)
        .and_then(serde_json::from_value)
        .context("describe an object")?;
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).context(format!("create {}", object.name_any())),
    }
}
