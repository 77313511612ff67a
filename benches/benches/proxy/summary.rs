//! The tables, and the lines for the budget.

use std::{fs, time::Duration};

use kube_authn_benches::measure::{median_and_p99, report};

use crate::{
    Asked, Cell, Run,
    subjects::{SUBJECTS, Subject},
};

/// Backstage's fastest start to a first answer (reference run of its backend on this kind of machine).
const BACKSTAGE_START: Duration = Duration::from_millis(1700);
/// In the order of the report.
const LISTED: [Subject; 5] = [
    Subject::KubeAuthn,
    Subject::Before,
    Subject::GoKeepsIdle,
    Subject::Go,
    Subject::Nginx,
];
const MIB: f64 = 1024.0 * 1024.0;

/// One cell, all subjects.
pub(crate) fn print(real: bool, asked: &Asked, cell: &Cell) {
    let what = format!("{}, {}, {} at once", name(real), asked.what, asked.concurrency);
    table(&what, cell);
    for subject in listed(cell) {
        rows(real, asked, cell, subject, &format!("{subject:?}, {what}"));
    }
}

/// The cell of one connection with client, server and subject on one processor: row 4.
pub(crate) fn print_on_one_processor(cell: &Cell) {
    table("stand-in, 2 KiB, 1 at once, all on one processor", cell);
    for subject in listed(cell) {
        latency(cell, subject, "all on one processor");
    }
}

fn listed(cell: &Cell) -> impl Iterator<Item = Subject> {
    LISTED.into_iter().filter(|subject| has_run(cell, *subject))
}

fn has_run(cell: &Cell, subject: Subject) -> bool {
    cell.median(subject as usize, |run| run.seen.requests) > 0.0
}

fn table(what: &str, cell: &Cell) {
    println!(
        "\n{what}, load average {}\n\
         | subject | req/s (/direct) | p50 µs (added) | p99 µs (added) | CPU s per 10,000 (/nginx) | \
         server CPU µs (/direct) | new connections per 1,000 | memory MiB, first and last round |\n\
         |---|---|---|---|---|---|---|---|",
        load_average(),
    );
    for subject in SUBJECTS.into_iter().filter(|subject| has_run(cell, *subject)) {
        let median = |value: fn(&Run) -> f64| cell.median(subject as usize, value);
        let ratio =
            |peer: Subject, value: fn(&Run) -> f64| cell.ratio(subject as usize, peer as usize, value);
        let (first, last) = cell.first_and_last(subject as usize, |run| run.memory / MIB);
        println!(
            "| {subject:?} | {:.0} ({:.3}) | {:.0} ({:+.0}) | {:.0} ({:+.0}) | {:.3} ({:.2}) | {:.1} ({:.2}) | {:.1} | {first:.1}, {last:.1} |",
            median(|run| run.seen.per_second),
            ratio(Subject::Direct, |run| run.seen.per_second),
            median(|run| run.seen.p50),
            added(cell, subject, |run| run.seen.p50),
            median(|run| run.seen.p99),
            added(cell, subject, |run| run.seen.p99),
            median(|run| run.cpu) / 100.0,
            ratio(Subject::Nginx, |run| run.cpu),
            median(|run| run.server_cpu),
            ratio(Subject::Direct, |run| run.server_cpu),
            median(|run| 1000.0 * run.connections / run.seen.requests),
        );
    }
}

/// Lines for the budget: ours with its limit, the peers without.
fn rows(real: bool, asked: &Asked, cell: &Cell, subject: Subject, what: &str) {
    let limit = |limit| limit_of(subject, limit);
    let ratio = |peer: Subject, value: fn(&Run) -> f64| cell.ratio(subject as usize, peer as usize, value);
    if real {
        let figure = format!(
            "req/s {:.2} of direct",
            ratio(Subject::Direct, |run| run.seen.per_second)
        );
        let limit = limit(if asked.concurrency == 16 { "≥ 0.85" } else { "" });
        report(3, what, &figure, limit);
    } else {
        of_stand_in(asked, cell, subject, what);
    }
    if asked.concurrency == 64 {
        let (first, last) = cell.first_and_last(subject as usize, |run| run.memory / MIB);
        let figure = format!("{first:.1} to {last:.1} MiB");
        report(5, what, &figure, limit("≤ 25 MiB, flat"));
    }
}

/// Rows 1, 2 and 4.
fn of_stand_in(asked: &Asked, cell: &Cell, subject: Subject, what: &str) {
    let limit = |limit| limit_of(subject, limit);
    let ratio = |peer: Subject, value: fn(&Run) -> f64| cell.ratio(subject as usize, peer as usize, value);
    if subject != Subject::Nginx {
        let figure = match has_run(cell, Subject::Nginx) {
            true => format!("CPU {:.2} × nginx", ratio(Subject::Nginx, |run| run.cpu)),
            false => "NOT MEASURED: there is no nginx, and no Debian package of it".to_owned(),
        };
        report(1, what, &figure, limit("≤ 2 × nginx"));
    }
    let figure = format!(
        "server CPU {:.2}, {:.1} connections per 1,000",
        ratio(Subject::Direct, |run| run.server_cpu),
        cell.median(subject as usize, |run| 1000.0 * run.connections
            / run.seen.requests),
    );
    report(2, what, &figure, limit("≤ 1.5; ≤ 20 per 1,000"));
    if asked.concurrency == 1 {
        latency(cell, subject, "on a processor of its own");
    }
}

/// Row 4.
fn latency(cell: &Cell, subject: Subject, place: &str) {
    let figure = format!(
        "p50 {:+.0} µs, p99 {:+.0} µs",
        added(cell, subject, |run| run.seen.p50),
        added(cell, subject, |run| run.seen.p99),
    );
    let what = format!("{subject:?}, stand-in, 1 at once, {place}");
    report(4, &what, &figure, limit_of(subject, "p50 ≤ +60 µs"));
}

/// Limits are ours; peers are there to compare.
fn limit_of(subject: Subject, limit: &'static str) -> &'static str {
    match subject {
        Subject::KubeAuthn => limit,
        _ => "",
    }
}

/// The median of the rounds' own differences to direct.
fn added(cell: &Cell, subject: Subject, value: fn(&Run) -> f64) -> f64 {
    cell.difference(subject as usize, Subject::Direct as usize, value)
}

/// Row 11.
pub(crate) fn print_starts(real: bool, starts: Vec<Duration>) {
    let fastest = starts.iter().min().copied().unwrap_or_default();
    let (median, slowest) = median_and_p99(starts);
    let figure = format!(
        "{:.0} ms ({:.0} to {:.0}), {:.3} of {:.1} s",
        1e3 * median.as_secs_f64(),
        1e3 * fastest.as_secs_f64(),
        1e3 * slowest.as_secs_f64(),
        median.as_secs_f64() / BACKSTAGE_START.as_secs_f64(),
        BACKSTAGE_START.as_secs_f64(),
    );
    let what = format!("start to first answer, {}", name(real));
    report(11, &what, &figure, "≤ 0.1");
}

fn name(real: bool) -> &'static str {
    match real {
        true => "kube-apiserver",
        false => "stand-in",
    }
}

#[allow(clippy::disallowed_methods, reason = "a bench reads what the kernel knows")]
fn load_average() -> String {
    let averages = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split(' ').next().unwrap_or_default().to_owned()
}
