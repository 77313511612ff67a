//! What does a GET through `ClusterAccess::send` cost over each lane, against the barest connection?
//!
//! Rows 2 and 3, and the default lane. Without arguments against the stand-in of `loopback.rs`, a process of its own;
//! with `--real` against the kube-apiserver of the test cluster. `--rounds N` and `--millis N` make a run longer.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench may panic and reports"
)]

#[path = "lanes/subjects.rs"]
mod subjects;
#[path = "lanes/upstream.rs"]
mod upstream;

use std::time::{Duration, Instant};

use kube_authn_benches::{
    loopback,
    measure::{Rounds, cpu_time, median_and_p99, micros, report},
    options::Options,
};
use rustls::crypto::aws_lc_rs;
use subjects::{Caller, Callers, SUBJECTS, Subject};
use tokio::runtime::Runtime;
use upstream::Upstream;

const CONCURRENCY: [usize; 3] = [1, 16, 64];
/// Requests of a burst, and how many there are of each lane.
const BURST: usize = 64;
const BURSTS: usize = 9;

/// What one subject did in one round.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    requests: f64,
    per_second: f64,
    p50: f64,
    p99: f64,
    client_cpu: f64,
    server_cpu: f64,
    connections: f64,
}

fn main() {
    loopback::serve_if_asked();
    aws_lc_rs::default_provider()
        .install_default()
        .expect("the only provider");
    let options = Options::from_arguments(3, 400);
    let runtime = Runtime::new().expect("a runtime");
    let mut upstream = match options.real {
        true => runtime.block_on(Upstream::real()),
        false => Upstream::loopback(),
    };
    let paths = upstream.paths();
    burst(&runtime, &mut upstream, paths[0].1);
    for (what, path) in paths {
        for concurrency in CONCURRENCY {
            let rounds = cell(&runtime, &mut upstream, path, concurrency, &options);
            print(&upstream, what, concurrency, &rounds);
        }
    }
}

/// The first requests of all, at once: how long until the last one is answered over a pool without connections?
fn burst(runtime: &Runtime, upstream: &mut Upstream, path: &'static str) {
    const LANES: [Subject; 2] = [Subject::LaneHttp1, Subject::LaneHttp2];
    let rounds: Rounds<Run, 2> = Rounds::run(BURSTS, |lane| {
        let mut callers = runtime.block_on(Callers::new(LANES[lane], upstream, path, BURST));
        run(runtime, upstream, &mut callers, Duration::ZERO)
    });
    for (index, lane) in LANES.iter().enumerate() {
        let median = |value: fn(&Run) -> f64| rounds.median(index, value);
        let figure = format!(
            "{:.1} ms, {:.0} connections, server CPU {:.0} µs per request",
            median(|run| 1e3 * run.requests / run.per_second),
            median(|run| run.connections),
            median(|run| run.server_cpu),
        );
        let what = format!("{lane:?}, {}, first {BURST} at once", upstream.name());
        report(2, &what, &figure, "");
    }
}

/// All subjects in turn, so many requests at once.
fn cell(
    runtime: &Runtime,
    upstream: &mut Upstream,
    path: &'static str,
    concurrency: usize,
    options: &Options,
) -> Rounds<Run, 4> {
    let mut callers: Vec<Callers> = SUBJECTS
        .iter()
        .map(|subject| runtime.block_on(Callers::new(*subject, upstream, path, concurrency)))
        .collect();
    for callers in &mut callers {
        run(runtime, upstream, callers, options.span / 4);
    }
    let rounds = Rounds::run(options.rounds, |subject| {
        run(runtime, upstream, &mut callers[subject], options.span)
    });
    // Their connections end with the tasks; the next cell should not find them half closed.
    drop(callers);
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    rounds
}

fn run(runtime: &Runtime, upstream: &mut Upstream, callers: &mut Callers, span: Duration) -> Run {
    let served = upstream.served();
    let (cpu, start) = (cpu_time(), Instant::now());
    let times = match callers {
        Callers::Http1(callers) => load(runtime, callers, span),
        Callers::Http2(callers) => load(runtime, callers, span),
        Callers::Lane(callers) => load(runtime, callers, span),
    };
    let (elapsed, cpu) = (start.elapsed(), cpu_time() - cpu);
    let after = upstream.served();
    let requests = times.len() as f64;
    let (p50, p99) = median_and_p99(times);
    Run {
        requests,
        per_second: requests / elapsed.as_secs_f64(),
        p50: micros(p50),
        p99: micros(p99),
        client_cpu: micros(cpu) / requests,
        server_cpu: micros(after.cpu.saturating_sub(served.cpu)) / requests,
        connections: after.connections.saturating_sub(served.connections) as f64,
    }
}

/// Every caller in a task of its own, one request after the other, at least one.
fn load<C: Caller>(runtime: &Runtime, callers: &mut Vec<C>, span: Duration) -> Vec<Duration> {
    let tasks: Vec<_> = callers
        .drain(..)
        .map(|mut caller| {
            runtime.spawn(async move {
                let mut times = Vec::new();
                let end = Instant::now() + span;
                loop {
                    let start = Instant::now();
                    caller.get().await;
                    times.push(start.elapsed());
                    if Instant::now() >= end {
                        return (caller, times);
                    }
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        let (caller, times) = runtime.block_on(task).expect("no request fails");
        callers.push(caller);
        all.extend(times);
    }
    all
}

fn print(upstream: &Upstream, what: &str, concurrency: usize, rounds: &Rounds<Run, 4>) {
    println!(
        "\n{}, {what}, {concurrency} at once\n\
         | subject | req/s | p50 µs | p99 µs | own CPU µs | server CPU µs | new connections | \
         req/s, p50, p99, server CPU / its direct | the same / direct HTTP/1.1 |\n\
         |---|---|---|---|---|---|---|---|---|",
        upstream.name()
    );
    for (index, subject) in SUBJECTS.iter().enumerate() {
        let median = |value: fn(&Run) -> f64| rounds.median(index, value);
        let against = |peer: usize| {
            let ratio = |value: fn(&Run) -> f64| rounds.ratio(index, peer, value);
            format!(
                "{:.2}, {:.2}, {:.2}, {:.2}",
                ratio(|run| run.per_second),
                ratio(|run| run.p50),
                ratio(|run| run.p99),
                ratio(|run| run.server_cpu)
            )
        };
        println!(
            "| {subject:?} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} in {:.0} | {} | {} |",
            median(|run| run.per_second),
            median(|run| run.p50),
            median(|run| run.p99),
            median(|run| run.client_cpu),
            median(|run| run.server_cpu),
            median(|run| run.connections),
            median(|run| run.requests),
            against(subject.peer()),
            against(Subject::DirectHttp1 as usize),
        );
    }
    for lane in [Subject::LaneHttp1, Subject::LaneHttp2] {
        let ratio = |peer: Subject, value: fn(&Run) -> f64| rounds.ratio(lane as usize, peer as usize, value);
        let direct = SUBJECTS[lane.peer()];
        let figure = format!(
            "req/s {:.2}, p50 {:.2}, p99 {:.2}, server CPU {:.2}, {:.1} new connections",
            ratio(direct, |run| run.per_second),
            ratio(direct, |run| run.p50),
            ratio(direct, |run| run.p99),
            ratio(direct, |run| run.server_cpu),
            rounds.median(lane as usize, |run| run.connections),
        );
        let what = format!(
            "{lane:?}/{direct:?}, {}, {what}, {concurrency} at once",
            upstream.name()
        );
        report(
            if upstream.is_real() { 3 } else { 2 },
            &what,
            &figure,
            "req/s ≥ 0.85, CPU ≤ 1.5",
        );
    }
}
