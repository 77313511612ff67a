//! The story on one's own cluster and issuer: one person signs in with a real browser.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use http::Request;
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    core::v1::{ConfigMap, Namespace, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use kube_authn_e2e::{Authority, Caller, fixtures};
use kube_authn_oidc::PostedTokens;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};
use url::Url;

use crate::{
    Arguments, Failure,
    keep::{self, quoted},
    login,
    place::{Facts, OPENPORTAL, Place, RANCHER_DESKTOP},
    signals::Signals,
    story::NO_LOGIN,
    telling::{Telling, answered, chain},
};

pub(crate) async fn run(
    arguments: &Arguments,
    kubeconfig: &Path,
    issuer: &str,
    signals: &mut Signals,
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
    signals.or(prepare(&admin)).await?;
    let serving = serve(arguments, issuer, api_server, ca_pem, &admin, telling);
    let started = signals.or(serving).await;
    let told = match telling.settle(started) {
        Ok(Some(place)) => beside(place, arguments, issuer, signals, telling).await,
        other => other.map(drop),
    };

    telling.step(format!("Delete namespace {NAMESPACE}"));
    signals.or(clean_up(admin, telling)).await?;
    told
}

async fn prepare(admin: &Client) -> Result<(), Failure> {
    let namespaces = Api::<Namespace>::all(admin.clone());
    create(&namespaces, json!({ "metadata": { "name": NAMESPACE } })).await?;
    let robot = json!({ "metadata": { "name": ROBOT } });
    create(
        &Api::<ServiceAccount>::namespaced(admin.clone(), NAMESPACE),
        robot,
    )
    .await
}

async fn clean_up(admin: Client, telling: &Telling) -> Result<(), Failure> {
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
    Ok(())
}

async fn serve(
    arguments: &Arguments,
    issuer: &str,
    api_server: String,
    api_server_ca_pem: Vec<u8>,
    admin: &Client,
    telling: &mut Telling,
) -> Result<Place, Failure> {
    telling.step("Start `kube-authn serve` in front of it, over https");
    let authority = Authority::new("kube-authn demo CA")?;
    let place = Place::new(&Facts {
        api_server,
        api_server_ca_pem,
        issuer: issuer.to_owned(),
        client_id: arguments.client_id.clone(),
        // One login is both: who calls, and whom the cluster gets to see.
        callers_issuer: issuer.to_owned(),
        callers_audience: arguments.client_id.clone(),
        callers_claim: None,
        issuer_ca: arguments.issuer_ca.clone(),
        service_account_token: fixtures::bound_token(admin, NAMESPACE, ROBOT, Duration::from_secs(3600))
            .await?,
        authority: &authority,
        port: arguments.port,
        cluster: None,
    })
    .await?;
    telling.line(format!("listening on {}", place.served.url()));
    telling.line(format!("its log: {}", place.served.log().display()));
    Ok(place)
}

async fn beside(
    mut place: Place,
    arguments: &Arguments,
    issuer: &str,
    signals: &mut Signals,
    telling: &mut Telling,
) -> Result<(), Failure> {
    let told = signals.or(tell(&place, arguments, issuer, telling)).await;
    let told = match telling.settle(told) {
        Ok(Some((you, tokens))) if telling.all_hold() && arguments.keeps_serving() => {
            let stayed = serving(&mut place, &you, &tokens, signals, telling).await;
            telling.settle(stayed).map(drop)
        }
        other => other.map(drop),
    };
    let ended = place.end(arguments.keep, telling).await;
    told?;
    ended
}

async fn tell(
    place: &Place,
    arguments: &Arguments,
    issuer: &str,
    telling: &mut Telling,
) -> Result<(Caller, PostedTokens), Failure> {
    telling.step("Sign in: open this page in your browser");
    let tokens = sign_in(arguments, issuer, telling).await?;
    let you = Caller::new(&place.served, place.ca_pem(), tokens.id_token.clone())?;
    telling.refused(who_am_i(you.client(OPENPORTAL)?).await.map(drop), NO_LOGIN);

    telling.step("Your tokens are posted, verified, bound to you, sealed and stored");
    let answer = login::post(&you, &tokens).await?;
    telling.line(format!("POST /api/cluster-auth/tokens: {answer}"));
    let status = answered(you.get("/api/cluster-auth/status").await?)?;
    telling.line(format!("GET /api/cluster-auth/status: {status}"));
    telling.holds("you are logged in", status["authenticated"] == true);

    telling.step("The API server says who you are");
    let client = you.client(OPENPORTAL)?;
    let (username, groups) = who_am_i(client.clone()).await?;
    telling.line(format!("{username}, groups {}", groups.join(", ")));
    telling.holds(
        "you are somebody",
        !username.is_empty() && username != "system:anonymous",
    );

    telling.step(format!("Your own rights count in namespace {NAMESPACE}"));
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    match maps.list(&ListParams::default()).await {
        Ok(list) => telling.line(format!("you may list config maps: {}", names(&list.items))),
        Err(error) => telling.line(chain(&error)),
    }

    telling.step("The same API server with a service account without rights");
    let robot: Api<ConfigMap> = Api::namespaced(you.client(RANCHER_DESKTOP)?, NAMESPACE);
    let expected = format!("User \"system:serviceaccount:{NAMESPACE}:{ROBOT}\"");
    telling.refused(robot.list(&ListParams::default()).await, &expected);

    telling.step("The SQLite file holds your login, and neither it nor the service's log shows a token");
    let secrets: Vec<_> = login::secrets(&tokens).collect();
    let showing = place.files_that_show(&secrets)?;
    telling.holds(
        format!(
            "none of {} tokens, nor any part of one, is in them",
            secrets.len()
        ),
        showing.is_empty(),
    );

    telling.step("You log out; it counts at once");
    let request = Request::delete("/api/cluster-auth/tokens");
    let answer = answered(you.send(request, &Value::Null).await?)?;
    telling.line(format!("DELETE /api/cluster-auth/tokens: {answer}"));
    telling.refused(who_am_i(you.client(OPENPORTAL)?).await.map(drop), NO_LOGIN);
    Ok((you, tokens))
}

async fn sign_in(arguments: &Arguments, issuer: &str, telling: &Telling) -> Result<PostedTokens, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let redirect_uri = Url::parse(&format!(
        "http://127.0.0.1:{}/callback",
        listener.local_addr()?.port()
    ))?;
    let base = redirect_uri.clone();
    let browse = async |url: &Url| -> Result<Url, Failure> {
        telling.plain(format!("\n      {url}\n"));
        tokio::time::timeout(PATIENCE, callback(&listener, &base)).await?
    };
    let ca = arguments.issuer_ca.as_deref();
    login::sign_in(issuer, ca, &arguments.client_id, redirect_uri, browse).await
}

async fn who_am_i(client: Client) -> Result<(String, Vec<String>), Failure> {
    let review = Api::<SelfSubjectReview>::all(client)
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let who = review
        .status
        .and_then(|status| status.user_info)
        .unwrap_or_default();
    Ok((who.username.unwrap_or_default(), who.groups.unwrap_or_default()))
}

/// Logs the person in again, with the same tokens, and stays.
async fn serving(
    place: &mut Place,
    you: &Caller,
    tokens: &PostedTokens,
    signals: &mut Signals,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.sum_up();
    let answer = login::post(you, tokens).await?;
    telling.plain(format!("\nYou are logged in again: {answer}"));
    let (kubeconfig, header) = (place.path().join("kubeconfig"), place.path().join("header"));
    you.write_kubeconfig(&kubeconfig, OPENPORTAL)?;
    you.write_header(&header)?;
    let url = place.served.url();
    telling.plain(format!("\nServing at {url}, as long as your ID token is valid:"));
    telling.plain(format!(
        "kubectl --kubeconfig {} auth whoami",
        quoted(&kubeconfig)
    ));
    telling.plain(format!(
        "curl --cacert {} -H @{} {url}/api/cluster-auth/status",
        quoted(&place.ca_file()),
        quoted(&header)
    ));
    telling.plain(format!("\nThe service's log: {}", place.served.log().display()));
    telling.plain(format!(
        "Ctrl-C ends the service and deletes namespace {NAMESPACE}."
    ));
    keep::wait(place, signals, telling).await
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
