//! Everything that people do with a cluster, through the library, as themselves.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt, future::join_all, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{AttachParams, DeleteParams, ListParams, LogParams, PostParams, WatchEvent, WatchParams},
};
use kube_authn_core::{ErrorKind, RequestAuth, Secret};
use kube_authn_e2e::{Options, TestCluster, fixtures};
use serde_json::{Value, json};
use support::{log::Log, relay::Relay, *};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::OnceCell,
};
use tracing_subscriber::util::SubscriberInitExt;

/// Shared by the tests of this file, with short logins that can be used for some seconds.
async fn cluster() -> &'static TestCluster {
    static SHARED: OnceCell<TestCluster> = OnceCell::const_new();
    SHARED
        .get_or_try_init(|| {
            // Somebody listens from the start, or a place that logs could decide that nobody ever will.
            let _ = tracing_subscriber::registry().try_init();
            let mut options = Options::default();
            options.short_id_token_lifetime = SHORT_LIFE;
            TestCluster::start(options)
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn alice_executes_and_reads_logs_and_forwards_a_port_as_herself() {
    let cluster = cluster().await;
    let portal = Portal::new(cluster).await;
    let (alice, _) = portal.sign_in("alice").await;
    let pods = portal.pods(&alice, OPENPORTAL, "team-a-dev").await;

    let process = AttachParams::default().stdin(true).stdout(true).stderr(true);
    let mut exec = pods
        .exec(
            "web-0",
            [
                "sh",
                "-c",
                "echo $HOSTNAME; read line; echo $line; echo oh >&2; exit 3",
            ],
            &process,
        )
        .await
        .unwrap();
    let (mut stdout, mut stderr) = (exec.stdout().unwrap(), exec.stderr().unwrap());
    let status = exec.take_status().unwrap();
    let mut stdin = exec.stdin().unwrap();
    stdin.write_all(b"typed\n").await.unwrap();
    let mut said = [0; 12];
    within(PATIENCE, "exec", stdout.read_exact(&mut said))
        .await
        .unwrap();
    let mut complained = String::new();
    within(PATIENCE, "stderr", stderr.read_to_string(&mut complained))
        .await
        .unwrap();
    let status = within(PATIENCE, "status", status).await.unwrap();

    let log = pods.logs("web-0", &LogParams::default()).await.unwrap();
    let follow = LogParams {
        follow: true,
        ..LogParams::default()
    };
    let mut followed = pods.log_stream("web-0", &follow).await.unwrap().lines();
    let first = within(PATIENCE, "log", followed.try_next()).await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"from the pod").await.unwrap();
    });
    let mut forward = pods.portforward("web-0", &[port]).await.unwrap();
    let mut arrived = String::new();
    let mut stream = forward.take_stream(port).unwrap();
    within(PATIENCE, "port-forward", stream.read_to_string(&mut arrived))
        .await
        .unwrap();

    assert_eq!((&said, complained.as_str()), (b"web-0\ntyped\n", "oh\n"));
    assert_eq!(exit_code(&status), Some("3".to_owned()), "{status:?}");
    assert_eq!((log.as_str(), first.as_deref()), ("started\n", Some("started")));
    assert_eq!(arrived, "from the pod");
    for subresource in ["exec", "log", "portforward"] {
        let event = cluster.audit_event(|event| {
            event["objectRef"]["subresource"] == subresource
                && event["user"]["username"] == "alice@example.com"
        });
        event
            .await
            .unwrap_or_else(|error| panic!("{subresource}: {error}"));
    }
}

#[tokio::test]
async fn who_may_not_execute_gets_the_api_servers_own_refusal() {
    let portal = Portal::new(cluster().await).await;
    let (alice, _) = portal.sign_in("alice").await;
    let (bob, _) = portal.sign_in("bob").await;

    for (person, namespace) in [(&alice, "team-a"), (&bob, "team-a-dev")] {
        let pods = portal.pods(person, OPENPORTAL, namespace).await;
        let answer = pods.exec("web-0", ["true"], &AttachParams::default()).await;

        let error = answer.map(drop).unwrap_err();
        let text = chain(&error);
        assert!(
            text.contains("403") || text.contains("forbidden"),
            "{person}: {text}"
        );
    }
}

#[tokio::test]
async fn people_are_told_apart_by_the_api_server_and_the_robot_is_one_for_all() {
    let cluster = cluster().await;
    let portal = Portal::new(cluster).await;
    let (alice, _) = portal.sign_in("alice").await;
    let (bob, _) = portal.sign_in("bob").await;
    let offered = cluster.issuer_b().id_token("alice", "kubernetes").await.unwrap();

    let hers = portal.list(&alice, OPENPORTAL, "team-a").await.unwrap();
    let his = portal.list(&bob, OPENPORTAL, "team-a").await.unwrap_err();
    let robots = [
        portal.list(&alice, RANCHER_DESKTOP, "team-b").await.unwrap(),
        portal.list(&bob, RANCHER_DESKTOP, "team-b").await.unwrap(),
    ];
    // Whoever brings a token is whom the token names, and nobody without one.
    let auth = RequestAuth::new().with_oidc_token(OFFERED, Secret::new(offered));
    let request = portal.access.request(&bob, PASS_THROUGH).unwrap().with_auth(auth);
    let brought = send(&portal.access, &request, get(PODS_OF_TEAM_A)).await.unwrap();
    let nothing = portal
        .access
        .client(&bob, PASS_THROUGH)
        .await
        .map(drop)
        .unwrap_err();

    assert!(hers.contains(&"web-0".to_owned()), "{hers:?}");
    assert!(
        his.contains("pods is forbidden: User \"bob@example.com\""),
        "{his}"
    );
    assert_eq!(robots[0], robots[1]);
    assert_eq!(brought.status(), 200);
    assert_eq!(
        (nothing.kind(), nothing.to_string().as_str()),
        (
            ErrorKind::LoginRequired,
            "Auth token not found under oidc.portal-oidc in request body"
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_watches_delay_no_short_call() {
    let cluster = cluster().await;
    let relay = Relay::to(&cluster.api_server_url()).await;
    let mut config = app_config(cluster);
    cluster_entry(&mut config, OPENPORTAL)["url"] = relay.url().into();
    let portal = Portal::with_config(cluster, &config).await;
    let (alice, _) = portal.sign_in("alice").await;
    let pods = portal.pods(&alice, OPENPORTAL, "team-a-dev").await;
    let alone = times_of_lists(&pods).await;

    let opened = (0..WATCHES).map(|_| async {
        let mut events = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
        // It is open when what is there has come.
        within(PATIENCE, "first event", events.next())
            .await
            .unwrap()
            .unwrap();
        events
    });
    let mut watches = join_all(opened).await;
    let connections = relay.open();
    let beside = times_of_lists(&pods).await;
    let created = pods
        .create(&PostParams::default(), &fixtures::pod("seen-by-all").unwrap())
        .await
        .unwrap();
    for watch in &mut watches {
        within(PATIENCE, "the new pod", sees(watch, &created.name_any())).await;
    }
    pods.delete("seen-by-all", &DeleteParams::default())
        .await
        .unwrap();

    println!("lists alone {alone:?}, beside {WATCHES} watches {beside:?}, {connections} connections");
    assert!(
        beside.median < alone.median * 5 + Duration::from_millis(50)
            && beside.longest < Duration::from_secs(2),
        "{alone:?} alone, {beside:?} beside {WATCHES} watches"
    );
    // 80 streams and no more go on one connection.
    assert!((2..=4).contains(&connections), "{connections} connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_never_grow_with_users() {
    let cluster = cluster().await;
    let relay = Relay::to(&cluster.api_server_url()).await;
    let mut config = app_config(cluster);
    cluster_entry(&mut config, OPENPORTAL)["url"] = relay.url().into();
    let portal = Portal::with_config(cluster, &config).await;
    let names: Vec<_> = (0..USERS).map(|number| format!("user-{number}")).collect();
    let people: Vec<_> = stream::iter(&names)
        .map(|name| portal.sign_in(name))
        .buffered(4)
        .collect()
        .await;

    let whoami = |name: &str, principal| {
        let (portal, expected) = (&portal, format!("User \"{name}@example.com\""));
        async move {
            let answer = portal.list(principal, OPENPORTAL, "team-a").await.unwrap_err();
            assert!(answer.contains(&expected), "{answer}");
        }
    };
    for (name, (principal, _)) in names.iter().zip(&people) {
        whoami(name, principal).await;
    }
    let one_by_one = relay.accepted();
    for _ in 0..3 {
        stream::iter(names.iter().zip(&people))
            .map(|(name, (principal, _))| whoami(name, principal))
            .buffer_unordered(IN_FLIGHT)
            .collect::<()>()
            .await;
    }
    let in_flight = relay.accepted();

    assert_eq!(one_by_one, 1, "{USERS} users one by one");
    // One that has just answered may not be back in the pool when the next request leaves.
    assert!(
        in_flight <= 2 * IN_FLIGHT,
        "{in_flight} connections for {USERS} users, {IN_FLIGHT} requests in flight"
    );
}

#[tokio::test]
async fn audit_id_is_the_same_in_our_log_the_answer_and_the_audit_log_and_never_the_callers() {
    let cluster = cluster().await;
    let portal = Portal::new(cluster).await;
    let (alice, _) = portal.sign_in("alice").await;
    let forged = "11111111-2222-4333-8444-555555555555";
    let mut http = get("/api/v1/namespaces/team-a/pods?limit=7");
    http.headers_mut().insert("audit-id", forged.parse().unwrap());

    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone());
    let listening = subscriber.set_default();
    let first = portal.send(&alice, http).await.unwrap();
    let second = portal
        .send(&alice, get("/api/v1/namespaces/team-a/pods?limit=8"))
        .await
        .unwrap();

    drop(listening);

    let ids = [&first, &second].map(|answer| answer.headers()["audit-id"].to_str().unwrap().to_owned());
    for (id, limit) in ids.iter().zip(["limit=7", "limit=8"]) {
        let event = cluster
            .audit_event(|event| event["auditID"] == **id)
            .await
            .unwrap();
        assert_eq!(event["user"]["username"], "alice@example.com");
        assert!(event["requestURI"].as_str().unwrap().ends_with(limit), "{event}");
        let log = log.text();
        let line = log.lines().find(|line| line.contains(id)).unwrap();
        assert!(
            line.contains("user:default/alice") && line.contains(OPENPORTAL),
            "{line}"
        );
    }
    assert_ne!(ids[0], ids[1]);
    assert!(ids.iter().all(|id| id != forged), "{ids:?}");
}

#[tokio::test]
async fn identity_headers_of_a_caller_never_take_effect() {
    let cluster = cluster().await;
    let portal = Portal::new(cluster).await;
    let (alice, _) = portal.sign_in("alice").await;
    let admin = cluster.client().await.unwrap();
    let (namespace, name) = fixtures::PORTAL_SERVICE_ACCOUNT;
    let robot = fixtures::secret_token(&admin, namespace, name).await.unwrap();

    for (number, headers) in [
        vec![
            ("impersonate-user", "system:admin"),
            ("impersonate-group", "system:masters"),
        ],
        vec![("Impersonate-User", "bob@example.com"), ("Impersonate-Uid", "1")],
        vec![("impersonate-extra-scopes", "all")],
        vec![("authorization", &*format!("Bearer {robot}"))],
        vec![
            ("x-remote-user", "system:admin"),
            ("x-remote-group", "system:masters"),
        ],
        vec![
            ("connection", "authorization, impersonate-user"),
            ("impersonate-user", "x"),
        ],
        vec![(
            "sec-websocket-protocol",
            "base64url.bearer.authorization.k8s.io.eA, v4.channel.k8s.io",
        )],
    ]
    .into_iter()
    .enumerate()
    {
        let path =
            format!("/api/v1/namespaces/team-a/pods?limit=1&fieldSelector=metadata.name%3Dforged-{number}");
        let mut http = get(&path);
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            http.headers_mut().append(name, value.parse().unwrap());
        }

        let answer = portal.send(&alice, http).await.unwrap();

        assert_eq!(answer.status(), 200, "{path}");
        let id = answer.headers()["audit-id"].to_str().unwrap();
        let event = cluster.audit_event(|event| event["auditID"] == id).await.unwrap();
        assert_eq!(event["user"]["username"], "alice@example.com", "{event}");
        assert_eq!(event.get("impersonatedUser"), None, "{event}");
    }
}

#[tokio::test]
async fn logout_ends_a_warm_cache_a_watch_and_an_exec() {
    let portal = Portal::new(cluster().await).await;
    let (alice, stored) = portal.sign_in("alice").await;
    let pods = portal.pods(&alice, OPENPORTAL, "team-a-dev").await;
    pods.list(&ListParams::default()).await.unwrap();
    let mut watch = pods.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    within(PATIENCE, "first event", watch.next())
        .await
        .unwrap()
        .unwrap();
    let process = AttachParams::default().stdin(true).stdout(true).stderr(false);
    let mut exec = pods.exec("web-0", ["cat"], &process).await.unwrap();
    let (mut stdin, mut stdout) = (exec.stdin().unwrap(), exec.stdout().unwrap());
    stdin.write_all(b"hello").await.unwrap();
    within(PATIENCE, "echo", stdout.read_exact(&mut [0; 5]))
        .await
        .unwrap();
    let request = portal.access.request(&alice, OPENPORTAL).unwrap();
    assert!(
        portal.access.credentials().peek(&request).is_some(),
        "the cache is warm"
    );

    assert!(portal.vault.log_out(&stored.key).await.unwrap());
    let next = pods.list(&ListParams::default()).await.unwrap_err();
    let watch = within(Duration::from_secs(2), "end of the watch", ended(&mut watch));
    let exec = within(Duration::from_secs(2), "end of the exec", exec.join());
    let (watch, exec) = tokio::join!(watch, exec);

    assert_eq!(
        (ours(&next).kind(), ours(&next).to_string().as_str()),
        (ErrorKind::LoginRequired, NO_LOGIN)
    );
    assert!(
        watch.is_some_and(|error| error.contains("the login ended")),
        "cut, not done"
    );
    assert!(exec.is_err(), "cut, not done");
    let anew = portal
        .access
        .client(&alice, OPENPORTAL)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(anew.to_string(), NO_LOGIN);
}

#[tokio::test]
async fn an_expired_token_never_reaches_the_api_server() {
    let cluster = cluster().await;
    let mut config = app_config(cluster);
    config["clusterAuth"]["clientId"] = json!("kubernetes-short");
    let portal = Portal::with_config(cluster, &config).await;
    let alice = user("alice");
    let mut tokens = portal.tokens_of("alice").await.unwrap();
    tokens.refresh_token = None;
    portal.hand_over(&alice, tokens).await.unwrap();
    let namespace = "team-a-dev";
    let pods = portal.pods(&alice, OPENPORTAL, namespace).await;
    let probe = ListParams::default().labels("probe=expiry");
    pods.list(&probe).await.unwrap();

    let refused = eventually(SHORT_LIFE, "the end of the login", async || {
        pods.list(&probe).await.err()
    })
    .await;
    let anew = portal
        .access
        .client(&alice, OPENPORTAL)
        .await
        .map(drop)
        .unwrap_err();

    assert_eq!(
        (ours(&refused).kind(), ours(&refused).to_string().as_str()),
        (ErrorKind::TokenExpired, EXPIRED_LOGIN)
    );
    assert_eq!(anew.to_string(), EXPIRED_LOGIN);
    let asked: Vec<Value> = cluster
        .audit_lines()
        .unwrap()
        .into_iter()
        .filter(|event| {
            event["requestURI"]
                .as_str()
                .is_some_and(|uri| uri.contains("probe"))
        })
        .collect();
    assert!(!asked.is_empty());
    for event in asked {
        assert_eq!(event["responseStatus"]["code"], 200, "{event}");
    }
}

/// Median and maximum of twenty lists.
#[derive(Debug)]
struct Times {
    median: Duration,
    longest: Duration,
}

async fn times_of_lists(pods: &Api<Pod>) -> Times {
    let mut times = Vec::new();
    for _ in 0..20 {
        let begin = Instant::now();
        pods.list(&ListParams::default()).await.unwrap();
        times.push(begin.elapsed());
    }
    times.sort();
    Times {
        median: times[10],
        longest: times[19],
    }
}

async fn sees(watch: &mut (impl stream::Stream<Item = kube::Result<WatchEvent<Pod>>> + Unpin), name: &str) {
    while let Some(event) = watch.next().await {
        if matches!(event.unwrap(), WatchEvent::Added(pod) if pod.name_any() == name) {
            return;
        }
    }
    panic!("the watch ended");
}

/// The error that a watch ends with; `None` if it ends as if all were well.
async fn ended(watch: impl stream::Stream<Item = kube::Result<WatchEvent<Pod>>>) -> Option<String> {
    let mut watch = pin!(watch);
    while let Some(event) = watch.next().await {
        if let Err(error) = event {
            return Some(chain(&error));
        }
    }
    None
}

fn exit_code(status: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Status) -> Option<String> {
    let causes = status.details.as_ref()?.causes.as_ref()?;
    let cause = causes
        .iter()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))?;
    cause.message.clone()
}

const PODS_OF_TEAM_A: &str = "/api/v1/namespaces/team-a/pods";
const PATIENCE: Duration = Duration::from_secs(20);
const WATCHES: usize = 150;
const USERS: usize = 50;
/// Requests of all users under way at a time.
const IN_FLIGHT: usize = 5;
/// A token is sent until half a minute before its end.
const SHORT_LIFE: Duration = Duration::from_secs(42);
