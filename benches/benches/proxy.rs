//! What does `kube-authn serve` cost, beside nothing, nginx and a reverse proxy in Go?
//!
//! Rows 1, 2, 4, 5 and 11 against the stand-in of `loopback.rs`; row 3, with `--real`, against the kube-apiserver of the
//! test cluster. Every subject is a process. `--rounds N` and `--millis N` make a run longer; `--before PATH` measures another
//! build of the program beside it.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench may panic and reports"
)]

#[path = "proxy/issuer.rs"]
mod issuer;
#[path = "proxy/load.rs"]
mod load;
#[path = "proxy/programs.rs"]
mod programs;
#[path = "proxy/subjects.rs"]
mod subjects;
#[path = "proxy/summary.rs"]
mod summary;
#[path = "proxy/upstream.rs"]
mod upstream;

use std::time::Duration;

use kube_authn_benches::{
    loopback,
    measure::{Rounds, micros},
    options::Options,
    process::{cpu_of, memory_of, move_to_cpu, on_cpu},
};
use kube_authn_e2e::Authority;
use load::{Load, Seen, load_if_asked};
use programs::Programs;
use rustls::crypto::aws_lc_rs;
use subjects::{Running, SUBJECTS, Subject, Surroundings};
use tokio::runtime::Runtime;
use upstream::Upstream;

/// Starts of the program that row 11 is the median of.
const STARTS: usize = 11;
/// Client and stand-in share the first processor, each subject has the second when its turn comes.
const CLIENT_CPU: usize = 0;
const SUBJECT_CPU: usize = 1;

/// What one subject did in one round.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    seen: Seen,
    /// Per answer, in microseconds; the subject's processes, and the API server's.
    cpu: f64,
    server_cpu: f64,
    connections: f64,
    /// In bytes, with all connections open.
    memory: f64,
}

/// What is asked, and by how many at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    what: &'static str,
    path: &'static str,
    concurrency: usize,
}

type Cell = Rounds<Run, { SUBJECTS.len() }>;

fn main() {
    loopback::serve_if_asked();
    load_if_asked();
    aws_lc_rs::default_provider()
        .install_default()
        .expect("the only provider");
    let options = Options::from_arguments(5, 1_000);
    let programs = Programs::ensure();
    match options.real {
        // It takes a processor and more by itself.
        true => bench(&options, programs),
        false => on_cpu(CLIENT_CPU, || bench(&options, programs)),
    }
}

fn bench(options: &Options, programs: Programs) {
    let runtime = Runtime::new().expect("a runtime");
    let authority = Authority::new("bench CA").expect("a CA");
    let folder = tempfile::tempdir().expect("a folder");
    let mut upstream = match options.real {
        true => runtime.block_on(Upstream::real()),
        false => runtime.block_on(Upstream::stand_in(&authority)),
    };
    upstream.write_certificates(folder.path());
    let serving = authority.serving("bench").expect("a certificate");
    serving.write(folder.path(), "serving").expect("files");
    let surroundings = Surroundings {
        programs,
        authority: &authority,
        folder: folder.path(),
        cpu: (!options.real).then_some(SUBJECT_CPU),
    };
    let subjects = SUBJECTS.map(|subject| surroundings.start(subject, &upstream));
    let ours = subjects[Subject::KubeAuthn as usize].as_ref().expect("ours");
    runtime.block_on(surroundings.log_in(ours, upstream.tokens()));

    let all_asked = upstream.asked();
    let mut cell = |asked: &Asked| {
        Rounds::run(options.rounds, |subject| match &subjects[subject] {
            Some(running) => run(running, &mut upstream, asked, options.span),
            None => Run::default(),
        })
    };
    for asked in &all_asked {
        summary::print(options.real, asked, &cell(asked));
    }
    if !options.real {
        // Without the time that an idle processor needs to wake up, twice per request.
        for running in subjects.iter().flatten() {
            running
                .process()
                .into_iter()
                .for_each(|process| move_to_cpu(process, CLIENT_CPU));
        }
        summary::print_on_one_processor(&cell(&all_asked[0]));
    }
    let starts =
        (0..STARTS).map(|_| runtime.block_on(surroundings.first_answer(&upstream, all_asked[0].path)));
    summary::print_starts(options.real, starts.collect());
}

fn run(subject: &Running, upstream: &mut Upstream, asked: &Asked, span: Duration) -> Run {
    let load = Load {
        address: &subject.address,
        path: &format!("{}{}", subject.prefix, asked.path),
        token: &subject.token,
        concurrency: asked.concurrency,
        span,
    };
    let mut client = load.start();
    let cpu = || subject.process().map(cpu_of).unwrap_or_default();
    let before = (cpu(), upstream.served());
    let seen = client.run();
    let after = (cpu(), upstream.served());
    Run {
        seen,
        cpu: micros(after.0 - before.0) / seen.requests,
        server_cpu: micros(after.1.cpu.saturating_sub(before.1.cpu)) / seen.requests,
        connections: after.1.connections.saturating_sub(before.1.connections) as f64,
        memory: subject.process().map_or(0.0, |process| memory_of(process) as f64),
    }
}
