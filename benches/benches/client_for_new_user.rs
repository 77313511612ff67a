//! What does one more user of a known cluster cost?
//!
//! Row 7: `ClusterAccess::client`, beside `kube::Client::try_from(Config)`, and beside a `kube::Client` over a service
//! that does nothing: what kube itself takes for any client.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench: criterion makes the functions"
)]

use std::{
    any::Any,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use criterion::Criterion;
use http::{Request, Response};
use kube::{Client, Config, client::Body, config::AuthInfo};
use kube_authn_benches::{
    Minting, access,
    loopback::{self, Address, Loopback, SMALL},
    measure::{Rounds, micros, report, resident_bytes},
    user,
};
use kube_authn_core::{ClusterAccess, Principal, UpstreamPool};
use rustls::crypto::aws_lc_rs;
use tokio::runtime::Runtime;

/// What one client is made by.
#[derive(Clone, Copy, Debug)]
enum Subject {
    /// `ClusterAccess::client`; the credential is in the cache.
    Ours,
    /// The same; the credential is fetched first, from a source that costs nothing.
    OursUncached,
    /// `kube::Client::new` over a service that does nothing.
    KubeAlone,
    /// `kube::Client::try_from`.
    Kube,
}

const SUBJECTS: [Subject; 4] = [
    Subject::Ours,
    Subject::OursUncached,
    Subject::KubeAlone,
    Subject::Kube,
];

#[derive(Clone)]
struct Maker {
    access: ClusterAccess,
    config: Config,
    next: Arc<AtomicUsize>,
}

impl Maker {
    fn new(server: &Address) -> Self {
        let mut config = Config::new(
            format!("https://127.0.0.1:{}", server.port)
                .parse()
                .expect("a URL"),
        );
        let ca = rustls_pem(&server.ca);
        config.root_cert = Some(vec![ca]);
        let pool = UpstreamPool::new(Arc::new(aws_lc_rs::default_provider()));
        Self {
            access: access(Minting::default(), server.cluster("minting"), pool, 200_000),
            config,
            next: Arc::default(),
        }
    }

    /// Users that nobody has seen; their credentials are in the cache if the subject wants that.
    async fn newcomers(&self, subject: Subject, count: usize) -> Vec<Principal> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let users: Vec<_> = (first..first + count).map(user).collect();
        if matches!(subject, Subject::Ours) {
            for user in &users {
                let request = self.access.request(user, "prod").expect("a cluster");
                self.access.credential(&request).await.expect("a credential");
            }
        }
        users
    }

    async fn client(&self, subject: Subject, user: &Principal) -> Client {
        match subject {
            Subject::Ours | Subject::OursUncached => {
                self.access.client(user, "prod").await.expect("a client")
            }
            Subject::KubeAlone => {
                let nothing = |_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::empty())) };
                Client::new(tower::service_fn(nothing), "default")
            }
            Subject::Kube => {
                let mut config = self.config.clone();
                config.auth_info = AuthInfo {
                    token: Some(format!("token-of-{user}").into()),
                    ..AuthInfo::default()
                };
                Client::try_from(config).expect("a client")
            }
        }
    }

    /// Makes so many clients, in a task as a service would, and says how long each took.
    fn make(&self, runtime: &Runtime, subject: Subject, count: usize) -> (Vec<Client>, Duration) {
        let maker = self.clone();
        let task = runtime.spawn(async move {
            let users = maker.newcomers(subject, count).await;
            let mut clients = Vec::with_capacity(count);
            let start = Instant::now();
            for user in &users {
                clients.push(maker.client(subject, user).await);
            }
            let each = start.elapsed() / u32::try_from(count).unwrap_or(u32::MAX);
            (clients, each)
        });
        runtime.block_on(task).expect("clients")
    }

    /// The same, and each client gets its first answer.
    fn ask(&self, runtime: &Runtime, subject: Subject, count: usize) -> (Vec<Client>, Duration) {
        let maker = self.clone();
        let task = runtime.spawn(async move {
            let users = maker.newcomers(subject, count).await;
            let mut clients = Vec::with_capacity(count);
            let start = Instant::now();
            for user in &users {
                let client = maker.client(subject, user).await;
                let get = Request::get(SMALL).body(Vec::new()).expect("a request");
                client.request_text(get).await.expect("an answer");
                clients.push(client);
            }
            let each = start.elapsed() / u32::try_from(count).unwrap_or(u32::MAX);
            (clients, each)
        });
        runtime.block_on(task).expect("answers")
    }
}

/// How many clients one measurement of time makes, and how many measurements there are.
const BATCH: usize = 200;
const ROUNDS: usize = 21;
/// Clients that are alive at once when memory is measured.
const ALIVE: usize = 10_000;

fn time(runtime: &Runtime, maker: &Maker) {
    let rounds: Rounds<f64, 4> = Rounds::run(ROUNDS, |subject| {
        micros(maker.make(runtime, SUBJECTS[subject], BATCH).1)
    });
    for (index, subject) in SUBJECTS.iter().enumerate() {
        println!(
            "{subject:?}: {:.1} µs per client, {:.2} of kube's own",
            rounds.median(index, |time| *time),
            rounds.ratio(index, 3, |time| *time)
        );
    }
    let figure = |index| {
        let ratio = rounds.ratio(index, 3, |time| *time);
        format!(
            "{:.1} µs, {ratio:.3} × try_from",
            rounds.median(index, |time| *time)
        )
    };
    report(7, "client for a new user", &figure(1), "≤ 15 µs");
    report(7, "the same, credential cached", &figure(0), "≤ 15 µs");
}

fn first_answer(runtime: &Runtime, maker: &Maker, server: &mut Loopback) {
    let mut opened = [0; 2];
    let rounds: Rounds<f64, 2> = Rounds::run(7, |subject| {
        let before = server.served().connections;
        let which = [Subject::OursUncached, Subject::Kube][subject];
        let time = micros(maker.ask(runtime, which, 50).1);
        opened[subject] += server.served().connections - before;
        time
    });
    let figure = format!(
        "{:.0} µs, {:.3} × try_from; {} and {} connections for 350 users",
        rounds.median(0, |time| *time),
        rounds.ratio(0, 1, |time| *time),
        opened[0],
        opened[1]
    );
    report(
        7,
        "client and first answer",
        &figure,
        "connections grow with clusters",
    );
}

fn memory(runtime: &Runtime, maker: &Maker) {
    let mut kept: Vec<Box<dyn Any>> = Vec::new();
    let mut growth = |what: &str, count: usize, make: &dyn Fn() -> Vec<Client>| {
        let before = resident_bytes();
        kept.push(Box::new(make()));
        let each = resident_bytes().saturating_sub(before) / count;
        println!("{what}: {each} bytes resident per client ({count} alive)");
        each
    };
    // Once for nothing, so that the allocator has grown its arenas.
    growth("warm-up", 1_000, &|| {
        maker.make(runtime, Subject::KubeAlone, 1_000).0
    });
    let alone = growth("KubeAlone", ALIVE, &|| {
        maker.make(runtime, Subject::KubeAlone, ALIVE).0
    });
    let users = runtime.block_on(maker.newcomers(Subject::Ours, ALIVE));
    let ours = growth("Ours", ALIVE, &|| {
        let make = async |user| maker.client(Subject::Ours, user).await;
        runtime.block_on(async {
            let mut clients = Vec::with_capacity(ALIVE);
            for user in &users {
                clients.push(make(user).await);
            }
            clients
        })
    });
    let uncached = growth("OursUncached", ALIVE, &|| {
        maker.make(runtime, Subject::OursUncached, ALIVE).0
    });
    let kube = growth("Kube", 1_000, &|| maker.make(runtime, Subject::Kube, 1_000).0);
    let asked = growth("Kube, after one answer", 200, &|| {
        maker.ask(runtime, Subject::Kube, 200).0
    });
    let figure = format!(
        "{} B beyond kube's {alone} B; with user and credential {} B more; try_from {kube} B, connected {asked} B",
        ours.saturating_sub(alone),
        uncached.saturating_sub(ours)
    );
    report(7, "resident per client", &figure, "≤ 2 KiB beyond kube's");
}

fn criterion_benches(criterion: &mut Criterion, runtime: &Runtime, maker: &Maker) {
    let mut group = criterion.benchmark_group("client_for_new_user");
    for subject in SUBJECTS {
        group.bench_function(format!("{subject:?}"), |bencher| {
            bencher.iter_custom(|iterations| {
                let count = usize::try_from(iterations).unwrap_or(1).min(5_000);
                let each = maker.make(runtime, subject, count).1;
                each.mul_f64(iterations as f64)
            });
        });
    }
}

fn rustls_pem(pem: &str) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::from_pem_slice(pem.as_bytes())
        .expect("a certificate")
        .to_vec()
}

fn main() {
    loopback::serve_if_asked();
    aws_lc_rs::default_provider()
        .install_default()
        .expect("the only provider");
    let runtime = Runtime::new().expect("a runtime");
    let mut server = Loopback::start();
    let maker = Maker::new(server.address());
    // Memory first: what later benches free would be used again unseen.
    memory(&runtime, &maker);
    let maker = Maker::new(server.address());
    time(&runtime, &maker);
    first_answer(&runtime, &maker, &mut server);
    let mut criterion = kube_authn_benches::criterion();
    criterion_benches(&mut criterion, &runtime, &maker);
    criterion.final_summary();
}
