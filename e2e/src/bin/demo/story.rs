//! Seed 004's story on a test cluster: alice, bob and carol, their rights, their names in the audit log, over HTTP.

mod evidence;

use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use kube_authn_e2e::{Browser, Options, TestCluster, fixtures};
use kube_authn_oidc::PostedTokens;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
};
use url::Url;

use crate::{
    Arguments, Failure, keep, login,
    person::Person,
    place::{Facts, OPENPORTAL, Place, RANCHER_DESKTOP},
    signals::Signals,
    telling::{Telling, answered},
};

pub(crate) async fn run(
    arguments: &Arguments,
    signals: &mut Signals,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.step("Start etcd, kube-apiserver, kube-controller-manager, a node and two OpenID Connect issuers on loopback");
    let start = async { Ok(TestCluster::start(Options::default()).await?) };
    let cluster = signals.or(start).await?;
    let told = beside(&cluster, arguments, signals, telling).await;
    let stopped = cluster.stop().await;
    told?;
    Ok(stopped?)
}

async fn beside(
    cluster: &TestCluster,
    arguments: &Arguments,
    signals: &mut Signals,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.line(format!("API server {}", cluster.api_server_url()));
    telling.line(format!(
        "people sign in to the portal at {} (issuer A)",
        cluster.issuer_a().url()
    ));
    telling.line(format!(
        "and for the cluster at {} (issuer B)",
        cluster.issuer_b().url()
    ));

    telling.step("Start `kube-authn serve` with seed 004's app-config, a SQLite store and a key, over https");
    let mut place = signals.or(serve(cluster, arguments.port)).await?;
    telling.line(format!("listening on {}", place.served.url()));
    telling.line(format!("its log: {}", place.served.log().display()));

    let told = signals.or(tell(cluster, &place, telling)).await;
    let told = match telling.settle(told) {
        Ok(Some(())) if telling.all_hold() && arguments.keeps_serving() => {
            let stayed = keep::serving(cluster, &mut place, signals, telling).await;
            telling.settle(stayed).map(drop)
        }
        other => other.map(drop),
    };
    let ended = place.end(arguments.keep, telling).await;
    told?;
    ended
}

async fn serve(cluster: &TestCluster, port: u16) -> Result<Place, Failure> {
    let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
    Place::new(&Facts {
        api_server: cluster.api_server_url(),
        api_server_ca_pem: cluster.ca_pem().as_bytes().to_vec(),
        issuer: cluster.issuer_b().url().to_owned(),
        client_id: "kubernetes".to_owned(),
        callers_issuer: cluster.issuer_a().url().to_owned(),
        callers_audience: "portal".to_owned(),
        callers_claim: Some("preferred_username"),
        issuer_ca: Some(cluster.ca_path()),
        service_account_token: fixtures::secret_token(&cluster.client().await?, namespace, name).await?,
        authority: cluster.authority(),
        port,
        cluster: Some(cluster),
    })
    .await
}

async fn tell(cluster: &TestCluster, place: &Place, telling: &mut Telling) -> Result<(), Failure> {
    let mut secrets = Vec::new();

    telling.step(
        "alice signs in (authorization code with PKCE); her tokens are posted, verified, bound to her, sealed and stored",
    );
    let alice = Person::arrive(cluster, place, "alice").await?;
    secrets.extend(login::secrets(&log_in(cluster, &alice, telling).await?));
    let status = answered(alice.caller.get("/api/cluster-auth/status").await?)?;
    telling.line(format!("GET /api/cluster-auth/status: {status}"));
    telling.holds("she is logged in", status["authenticated"] == true);

    alice_reads(&alice, telling).await?;
    let (watch, seen) = alice_watches_and_creates(&alice, telling).await?;

    telling.step("bob signs in and logs in, and has no rights in team-a");
    let bob = Person::arrive(cluster, place, "bob").await?;
    let bobs = log_in(cluster, &bob, telling).await?;
    secrets.extend(login::secrets(&bobs));
    telling.refused(
        bob.runs("get pods -n team-a", telling).await,
        "pods is forbidden: User \"bob@example.com\"",
    );

    telling.step("carol never logged in to the cluster");
    let carol = Person::arrive(cluster, place, "carol").await?;
    telling.refused(carol.runs("get pods -n team-a", telling).await, NO_LOGIN);

    telling.step("carol logs in without a refresh token, and her ID token is about to end");
    cluster.issuer_b().set_id_token_lifetime(SHORT_LIFE).await?;
    let mut carols = sign_in(cluster, &carol).await?;
    secrets.extend(login::secrets(&carols));
    carols.refresh_token = None;
    hand_over(&carol, &carols, telling).await?;
    telling.refused(carol.runs("get pods -n team-a", telling).await, EXPIRED_LOGIN);

    nobody_becomes_somebody_else(&alice, &bobs, telling).await?;

    let people = [&alice, &bob, &carol];
    everybody_is_the_same_robot(people, telling).await?;
    secrets.extend(people.map(|person| person.caller.token().clone()));
    evidence::audit_log_names_people(cluster, telling).await?;
    evidence::no_token_can_be_read(place, &secrets, telling)?;
    alice_logs_out(&alice, watch, seen, telling).await
}

async fn alice_reads(alice: &Person, telling: &mut Telling) -> Result<(), Failure> {
    telling.step("alice lists pods in team-a, where she may view: kubectl, through the Kubernetes proxy");
    let who = alice.runs("auth whoami", telling).await?;
    telling.holds(
        "the API server knows her by name",
        who.contains("alice@example.com"),
    );
    let pods = alice.runs("get pods -n team-a", telling).await?;
    telling.holds("she sees the pods of team-a", pods.contains("web-0"));
    telling.refused(
        alice.runs("get pods -n default", telling).await,
        "pods is forbidden: User \"alice@example.com\"",
    );

    telling.step("The path of Backstage's front end, with the cluster in a header, leads to the same pods");
    telling.line(format!(
        "GET {BY_HEADER}{PODS} with Backstage-Kubernetes-Cluster: {OPENPORTAL}"
    ));
    let request =
        Request::get(format!("{BY_HEADER}{PODS}")).header("Backstage-Kubernetes-Cluster", OPENPORTAL);
    let list = answered(alice.caller.send(request, &Value::Null).await?)?;
    let names = names(&list);
    telling.line(names.join(", "));
    telling.holds(
        "kubectl saw them too",
        !names.is_empty() && names.iter().all(|name| pods.contains(name)),
    );
    Ok(())
}

/// A kubectl that watches until its stream ends, and what it prints.
async fn alice_watches_and_creates(
    alice: &Person,
    telling: &mut Telling,
) -> Result<(Child, Lines<BufReader<ChildStdout>>), Failure> {
    telling.step("alice watches team-a-dev with kubectl, and a program of hers creates a pod there, where she may edit");
    let watch = "get pods -n team-a-dev -w -o name";
    telling.line(format!("alice$ kubectl {watch}"));
    let mut kubectl = alice.command(watch).spawn()?;
    let output = kubectl.stdout.take().ok_or("kubectl has no output")?;
    let mut seen = BufReader::new(output).lines();
    // What is there already comes first; whatever is made now comes by the watch.
    next_line(&mut seen).await?;

    let pods: Api<Pod> = Api::namespaced(alice.caller.client(OPENPORTAL)?, "team-a-dev");
    let created = pods
        .create(&PostParams::default(), &fixtures::pod("made-by-alice")?)
        .await?;
    telling.line(format!(
        "created {}/{}",
        created.namespace().unwrap_or_default(),
        created.name_any()
    ));
    let line = next_line(&mut seen).await?;
    telling.line(format!("the watch says: {line}"));
    telling.holds("the watch saw her pod", line == "pod/made-by-alice");
    Ok((kubectl, seen))
}

async fn nobody_becomes_somebody_else(
    alice: &Person,
    bobs: &PostedTokens,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.step("Nobody becomes somebody else");
    telling.line("alice posts bob's tokens");
    telling.refused(login::post(&alice.caller, bobs).await, "403 identity_mismatch");
    telling.refused(
        alice
            .runs("get pods -n team-a --as=bob@example.com", telling)
            .await,
        "impersonation is not offered here",
    );
    telling.line("somebody calls with a token of issuer B, which is for the cluster and not for the portal");
    let stranger = alice.caller.with_token(bobs.id_token.clone());
    let path = format!("/api/kubernetes/clusters/{OPENPORTAL}/proxy{PODS}");
    telling.refused(answered(stranger.get(&path).await?), "401 Unauthorized");
    Ok(())
}

async fn everybody_is_the_same_robot(people: [&Person; 3], telling: &mut Telling) -> Result<(), Failure> {
    telling.step(
        "The same API server through authProvider serviceAccount: everybody sees the same (the baseline)",
    );
    let mut seen = Vec::new();
    for person in people {
        let pods: Api<Pod> = Api::namespaced(person.caller.client(RANCHER_DESKTOP)?, "team-a");
        let list = pods.list(&ListParams::default()).await?;
        let names: Vec<String> = list.iter().map(ResourceExt::name_any).collect();
        telling.line(format!("{}: {}", person.name, names.join(", ")));
        seen.push(names);
    }
    telling.holds(
        "all three see the same pods",
        !seen[0].is_empty() && seen.windows(2).all(|two| two[0] == two[1]),
    );
    Ok(())
}

async fn alice_logs_out(
    alice: &Person,
    mut watch: Child,
    mut seen: Lines<BufReader<ChildStdout>>,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.step("alice logs out; it counts at once, for what is open too");
    telling.holds("her watch is still open", watch.try_wait()?.is_none());
    let request = Request::delete("/api/cluster-auth/tokens");
    let answer = answered(alice.caller.send(request, &Value::Null).await?)?;
    telling.line(format!("DELETE /api/cluster-auth/tokens: {answer}"));
    telling.refused(alice.runs("get pods -n team-a", telling).await, NO_LOGIN);
    let rest = async {
        while seen.next_line().await?.is_some() {}
        watch.wait().await
    };
    telling.holds(
        "her watch was cut",
        tokio::time::timeout(PATIENCE, rest).await.is_ok(),
    );
    Ok(())
}

/// Signs the person in at issuer B and hands the tokens over to the service.
pub(crate) async fn log_in(
    cluster: &TestCluster,
    person: &Person,
    telling: &Telling,
) -> Result<PostedTokens, Failure> {
    let tokens = sign_in(cluster, person).await?;
    hand_over(person, &tokens, telling).await?;
    Ok(tokens)
}

async fn sign_in(cluster: &TestCluster, person: &Person) -> Result<PostedTokens, Failure> {
    // Where the login daemon of seed 004 listens; nobody opens it here.
    let redirect_uri = Url::parse("http://127.0.0.1:8000/callback")?;
    let browse = async |url: &Url| -> Result<Url, Failure> {
        Ok(Browser::new(cluster.ca_pem())?
            .follow_login(url, person.name)
            .await?)
    };
    let ca = cluster.ca_path();
    let issuer = cluster.issuer_b().url();
    login::sign_in(issuer, Some(&ca), "kubernetes", redirect_uri, browse).await
}

async fn hand_over(person: &Person, tokens: &PostedTokens, telling: &Telling) -> Result<(), Failure> {
    let answer = login::post(&person.caller, tokens).await?;
    telling.line(format!("POST /api/cluster-auth/tokens: {answer}"));
    Ok(())
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String, Failure> {
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
    line.ok_or_else(|| "kubectl ended".into())
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}

pub(crate) const NO_LOGIN: &str =
    "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster.";
const EXPIRED_LOGIN: &str =
    "Cluster authentication expired. Please re-authenticate at Settings → Auth Providers.";

/// Where the cluster stands in a header.
const BY_HEADER: &str = "/api/kubernetes/proxy";
const PODS: &str = "/api/v1/namespaces/team-a/pods";

/// Shorter than the half minute that a token must still have to be sent.
const SHORT_LIFE: Duration = Duration::from_secs(20);
/// For one line of a watch; twenty times what kubectl takes to begin.
const PATIENCE: Duration = Duration::from_secs(30);
