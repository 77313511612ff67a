//! The story on one's own cluster and issuer: one person signs in with a real browser.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{ConfigMap, Namespace},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use kube_authn_e2e::fixtures;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use url::Url;

use crate::{
    Arguments, Failure,
    place::{Facts, OPENPORTAL, Place, RANCHER_DESKTOP, user},
    telling::Telling,
};

pub(crate) async fn run(
    arguments: &Arguments,
    kubeconfig: &Path,
    issuer: &str,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.step(format!(
        "Prepare namespace {NAMESPACE} in the cluster of {}",
        kubeconfig.display()
    ));
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let ca = config
        .root_cert
        .clone()
        .ok_or("the kubeconfig names no certificate authority")?;
    let ca_pem: Vec<u8> = ca.iter().flat_map(|der| pem(der).into_bytes()).collect();
    let api_server = config.cluster_url.to_string();
    let admin = Client::try_from(config)?;
    create(
        &Api::<Namespace>::all(admin.clone()),
        json!({ "metadata": { "name": NAMESPACE } }),
    )
    .await?;
    let robot = json!({ "metadata": { "name": ROBOT } });
    create(
        &Api::<k8s_openapi::api::core::v1::ServiceAccount>::namespaced(admin.clone(), NAMESPACE),
        robot,
    )
    .await?;
    let told = tell(arguments, issuer, api_server, ca_pem, &admin, telling).await;

    telling.step(format!("Delete namespace {NAMESPACE}"));
    let namespaces = Api::<Namespace>::all(admin);
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
    // The next demo may be a second away, and must not meet a namespace that is about to go.
    let begin = Instant::now();
    while namespaces.get_opt(NAMESPACE).await?.is_some() {
        if begin.elapsed() > DELETION_LIMIT {
            telling.line("it is still being deleted");
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    told
}

async fn tell(
    arguments: &Arguments,
    issuer: &str,
    api_server: String,
    api_server_ca_pem: Vec<u8>,
    admin: &Client,
    telling: &mut Telling,
) -> Result<(), Failure> {
    let place = Place::new(&Facts {
        api_server,
        api_server_ca_pem,
        issuer: issuer.to_owned(),
        issuer_ca: arguments.issuer_ca.clone(),
        client_id: arguments.client_id.clone(),
        service_account_token: fixtures::bound_token(admin, NAMESPACE, ROBOT, Duration::from_secs(3600))
            .await?,
    })
    .await?;
    let you = user("you")?;

    telling.step("Nobody has signed in yet");
    telling.refused(
        place.access.client(&you, OPENPORTAL).await.map(|_| ()),
        "No cluster authentication found.",
    );

    telling.step("Sign in: open this page in your browser");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let redirect_uri = Url::parse(&format!(
        "http://127.0.0.1:{}/callback",
        listener.local_addr()?.port()
    ))?;
    let base = redirect_uri.clone();
    let browse = async |url: &Url| -> Result<Url, Failure> {
        println!("\n      {url}\n");
        tokio::time::timeout(PATIENCE, callback(&listener, &base)).await?
    };
    let stored = place.sign_in(&you, redirect_uri, browse).await?;
    telling.line(format!(
        "signed in as subject {}; the ID token ends at {}",
        stored.subject, stored.expires_at
    ));

    telling.step("The API server says who you are");
    let client = place.access.client(&you, OPENPORTAL).await?;
    let review = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let who = review
        .status
        .and_then(|status| status.user_info)
        .unwrap_or_default();
    let username = who.username.unwrap_or_default();
    telling.line(format!(
        "{username}, groups {}",
        who.groups.unwrap_or_default().join(", ")
    ));
    telling.holds(
        "you are somebody",
        !username.is_empty() && username != "system:anonymous",
    );

    telling.step(format!("Your own rights count in namespace {NAMESPACE}"));
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    match maps.list(&ListParams::default()).await {
        Ok(list) => telling.line(format!("you may list config maps: {}", names(&list.items))),
        Err(error) => telling.line(error),
    }

    telling.step("The same API server with a service account without rights");
    let robot: Api<ConfigMap> = Api::namespaced(place.access.client(&you, RANCHER_DESKTOP).await?, NAMESPACE);
    let expected = format!("User \"system:serviceaccount:{NAMESPACE}:{ROBOT}\"");
    telling.refused(robot.list(&ListParams::default()).await, &expected);

    telling.step("The SQLite file holds your login and no readable token");
    let showing = place.files_that_show(&stored.secrets)?;
    telling.holds(
        format!(
            "none of {} tokens, nor any part of one, is in it",
            stored.secrets.len()
        ),
        showing.is_empty(),
    );
    if arguments.keep {
        telling.line(format!("kept: {}", place.keep().display()));
    }
    Ok(())
}

/// Waits for the browser to come back, and answers it with a plain page.
async fn callback(listener: &TcpListener, base: &Url) -> Result<Url, Failure> {
    loop {
        let (stream, _) = listener.accept().await?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let target = line.split_ascii_whitespace().nth(1).unwrap_or_default();
        let back = base.join(target)?;
        let ours = back.path() == base.path() && back.query().is_some();
        let (status, text) = match ours {
            true => ("200 OK", "You can close this page and go back to the terminal."),
            false => ("404 Not Found", "Not here."),
        };
        let head = "Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nConnection: close";
        stream
            .write_all(format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n{text}\r\n").as_bytes())
            .await?;
        stream.shutdown().await?;
        if ours {
            return Ok(back);
        }
    }
}

async fn create<K>(api: &Api<K>, object: serde_json::Value) -> Result<(), Failure>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    match api
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn names<K: kube::Resource>(items: &[K]) -> String {
    items
        .iter()
        .map(ResourceExt::name_any)
        .collect::<Vec<_>>()
        .join(", ")
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

const NAMESPACE: &str = "kube-authn-demo";
const ROBOT: &str = "portal";
/// For the namespace controller.
const DELETION_LIMIT: Duration = Duration::from_secs(60);
/// For a person to sign in.
const PATIENCE: Duration = Duration::from_secs(300);
