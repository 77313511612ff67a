//! Seed 004's story on a test cluster: alice, bob and carol, their rights, their names in the audit log.

use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
};
use kube_authn_core::{ClusterAccess, Principal, Secret};
use kube_authn_e2e::{Browser, Options, TestCluster, fixtures};
use serde_json::Value;
use url::Url;

use crate::{
    Arguments, Failure,
    place::{Facts, OPENPORTAL, Place, RANCHER_DESKTOP, Stored, user},
    telling::Telling,
};

pub(crate) async fn run(arguments: &Arguments, telling: &mut Telling) -> Result<(), Failure> {
    telling.step("Start etcd, kube-apiserver, kube-controller-manager, a node and two OpenID Connect issuers on loopback");
    let cluster = TestCluster::start(Options::default()).await?;
    telling.line(format!("API server {}", cluster.api_server_url()));
    telling.line(format!("users sign in at {}", cluster.issuer_b().url()));

    let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
    let place = Place::new(&Facts {
        api_server: cluster.api_server_url(),
        api_server_ca_pem: cluster.ca_pem().as_bytes().to_vec(),
        issuer: cluster.issuer_b().url().to_owned(),
        issuer_ca: Some(cluster.ca_path()),
        client_id: "kubernetes".to_owned(),
        service_account_token: fixtures::secret_token(&cluster.client().await?, namespace, name).await?,
    })
    .await?;
    let told = tell(&cluster, &place, telling).await;
    if arguments.keep {
        telling.line(format!("kept: {}", place.keep().display()));
    }
    cluster.stop().await?;
    told
}

async fn tell(cluster: &TestCluster, place: &Place, telling: &mut Telling) -> Result<(), Failure> {
    let (alice, bob, carol) = (user("alice")?, user("bob")?, user("carol")?);
    let access = &place.access;
    let mut secrets = Vec::new();

    telling.step("alice signs in (authorization code with PKCE); her tokens are verified, bound to her, sealed and stored");
    secrets.extend(sign_in(cluster, place, &alice, "alice", telling).await?.secrets);
    alice_works(access, &alice, telling).await?;

    telling.step("bob signs in, and has no rights in team-a");
    secrets.extend(sign_in(cluster, place, &bob, "bob", telling).await?.secrets);
    telling.refused(
        list(access, &bob, OPENPORTAL, "team-a").await,
        "pods is forbidden: User \"bob@example.com\"",
    );

    telling.step("carol never signed in");
    telling.refused(list(access, &carol, OPENPORTAL, "team-a").await, NO_LOGIN);

    telling.step("carol signs in, and her ID token is about to end");
    cluster.issuer_b().set_id_token_lifetime(SHORT_LIFE).await?;
    secrets.extend(sign_in(cluster, place, &carol, "carol", telling).await?.secrets);
    telling.refused(list(access, &carol, OPENPORTAL, "team-a").await, EXPIRED_LOGIN);

    telling.step(
        "The same API server through authProvider serviceAccount: everybody sees the same (the baseline)",
    );
    let mut seen = Vec::new();
    for person in [&alice, &bob, &carol] {
        let pods = list(access, person, RANCHER_DESKTOP, "team-a").await?;
        telling.line(format!("{person}: {}", pods.join(", ")));
        seen.push(pods);
    }
    telling.holds(
        "all three see the same pods",
        !seen[0].is_empty() && seen.windows(2).all(|two| two[0] == two[1]),
    );

    audit_log_names_people(cluster, telling).await?;
    database_shows_no_token(place, &secrets, telling)?;

    telling.step("alice logs out; her cached credential is gone at once");
    for (key, ..) in place
        .vault
        .list(alice.entity_ref().ok_or("alice is a user")?)
        .await?
    {
        place.vault.log_out(&key).await?;
    }
    telling.refused(list(access, &alice, OPENPORTAL, "team-a").await, NO_LOGIN);
    Ok(())
}

async fn alice_works(
    access: &ClusterAccess,
    alice: &Principal,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.step("alice lists pods in team-a, where she may view");
    let pods = list(access, alice, OPENPORTAL, "team-a").await?;
    telling.line(pods.join(", "));
    telling.holds("she sees the pods of team-a", pods.contains(&"web-0".to_owned()));
    telling.refused(
        list(access, alice, OPENPORTAL, "default").await,
        "pods is forbidden: User \"alice@example.com\"",
    );

    telling.step("alice watches team-a-dev and creates a pod there, where she may edit");
    let pods: Api<Pod> = Api::namespaced(access.client(alice, OPENPORTAL).await?, "team-a-dev");
    let start = pods
        .list(&ListParams::default())
        .await?
        .metadata
        .resource_version
        .unwrap_or_default();
    let mut events = pods.watch(&WatchParams::default(), &start).await?.boxed();
    let created = pods
        .create(&PostParams::default(), &fixtures::pod("made-by-alice")?)
        .await?;
    telling.line(format!(
        "created {}/{}",
        created.namespace().unwrap_or_default(),
        created.name_any()
    ));
    let event = tokio::time::timeout(PATIENCE, events.next())
        .await?
        .ok_or("the watch ended")??;
    let added = match &event {
        WatchEvent::Added(pod) => pod.name_any(),
        other => format!("{other:?}"),
    };
    telling.line(format!("the watch says: ADDED {added}"));
    telling.holds("the watch saw her pod", added == "made-by-alice");
    Ok(())
}

async fn audit_log_names_people(cluster: &TestCluster, telling: &mut Telling) -> Result<(), Failure> {
    telling.step("The API server's own audit log names people");
    let robot = format!(
        "system:serviceaccount:{}:{}",
        fixtures::PORTAL_SERVICE_ACCOUNT.0,
        fixtures::PORTAL_SERVICE_ACCOUNT.1
    );
    for (name, verb, code) in [
        ("alice@example.com", "list", 200),
        ("alice@example.com", "create", 201),
        ("bob@example.com", "list", 403),
        (robot.as_str(), "list", 200),
    ] {
        let wanted = |event: &Value| {
            event["user"]["username"] == name
                && event["verb"] == verb
                && event["responseStatus"]["code"] == code
                && event["stage"] == "ResponseComplete"
        };
        let event = cluster.audit_event(wanted).await;
        if let Ok(event) = &event {
            telling.line(format!(
                "{} {} {} {}",
                event["user"]["username"], verb, event["requestURI"], code
            ));
        }
        telling.holds(format!("{name} is named for {verb} ({code})"), event.is_ok());
    }
    Ok(())
}

fn database_shows_no_token(place: &Place, secrets: &[Secret], telling: &mut Telling) -> Result<(), Failure> {
    telling.step("The SQLite file holds three logins and no readable token");
    telling.line(place.path().join("kube-authn.db").display());
    let showing = place.files_that_show(secrets)?;
    telling.holds(
        format!("none of {} tokens, nor any part of one, is in it", secrets.len()),
        showing.is_empty(),
    );
    Ok(())
}

async fn sign_in(
    cluster: &TestCluster,
    place: &Place,
    principal: &Principal,
    username: &str,
    telling: &mut Telling,
) -> Result<Stored, Failure> {
    let redirect_uri = Url::parse("http://127.0.0.1:8000/callback")?;
    let ca_pem = cluster.ca_pem().to_owned();
    let browse = async |url: &Url| -> Result<Url, Failure> {
        Ok(Browser::new(&ca_pem)?.follow_login(url, username).await?)
    };
    let stored = place.sign_in(principal, redirect_uri, browse).await?;
    telling.line(format!(
        "{principal} is {} at the issuer; the ID token ends at {}",
        stored.subject, stored.expires_at
    ));
    Ok(stored)
}

async fn list(
    access: &ClusterAccess,
    principal: &Principal,
    cluster: &str,
    namespace: &str,
) -> Result<Vec<String>, Failure> {
    let client = access.client(principal, cluster).await?;
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    Ok(pods
        .list(&ListParams::default())
        .await?
        .iter()
        .map(ResourceExt::name_any)
        .collect())
}

const NO_LOGIN: &str =
    "No cluster authentication found. Please authenticate at Settings → Auth Providers → Kubernetes Cluster.";
const EXPIRED_LOGIN: &str =
    "Cluster authentication expired. Please re-authenticate at Settings → Auth Providers.";

/// Shorter than the half minute that a token must still have to be sent.
const SHORT_LIFE: Duration = Duration::from_secs(20);
/// For one event of a watch.
const PATIENCE: Duration = Duration::from_secs(10);
