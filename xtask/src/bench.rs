//! `cargo xtask bench`: runs the benches and puts what they report into one table.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use crate::shell::{Failure, Outcome, cargo, say};

pub(crate) const HELP: &str = "\
Usage: cargo xtask bench [--real] [NAME...] [-- ARGUMENTS]

Runs the benches of these names, all without one (some six minutes), and ends with a table
of their figures beside the budget. ARGUMENTS go to each bench, for example `-- --rounds 9`.

  --real   `lanes` and `proxy` against the test cluster's kube-apiserver instead of its stand-in

Only ratios of one run mean anything; leave the machine alone meanwhile. benches/README.md
says what each figure means.";

const NAMES: [&str; 6] = [
    "credential_lookup",
    "client_for_new_user",
    "lanes",
    "store",
    "proxy",
    "eks_token",
];
/// Those that know `--real`.
const WITH_REAL: [&str; 2] = ["lanes", "proxy"];

/// How a bench marks a line for the table: `row <number> | <what> | <figure> | <limit>`.
const MARK: &str = "row ";

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let split = arguments.iter().position(|argument| argument == "--");
    let (ours, passed_on) = match split {
        Some(index) => (&arguments[..index], &arguments[index + 1..]),
        None => (arguments, &[][..]),
    };
    let real = ours.iter().any(|argument| argument == "--real");
    let wanted: Vec<&str> = ours
        .iter()
        .map(String::as_str)
        .filter(|argument| *argument != "--real")
        .collect();
    if let Some(unknown) = wanted.iter().find(|name| !NAMES.contains(name)) {
        let known = NAMES.join(", ");
        return Err(Failure::Usage(format!(
            "no such bench: {unknown}; there are {known}"
        )));
    }
    let mut rows = Vec::new();
    for name in NAMES {
        let is_wanted = match (wanted.is_empty(), real) {
            (true, true) => WITH_REAL.contains(&name),
            (true, false) => true,
            (false, _) => wanted.contains(&name),
        };
        if is_wanted {
            let real = (real && WITH_REAL.contains(&name)).then_some("--real");
            rows.extend(bench(name, real, passed_on)?);
        }
    }
    say(&table(&rows));
    Ok(())
}

/// Runs one bench, shows what it prints, and returns the cells of its lines for the table.
fn bench(name: &str, real: Option<&str>, passed_on: &[String]) -> Outcome<Vec<Vec<String>>> {
    let failed = |what: &str, error: std::io::Error| Failure::Failed(format!("{what} bench {name}: {error}"));
    say(&format!("==> {name}"));
    let mut child = cargo(&[
        "bench",
        "--quiet",
        "--package",
        "kube-authn-benches",
        "--bench",
        name,
        "--",
    ])
    .args(real)
    .args(passed_on)
    .stdout(Stdio::piped())
    .spawn()
    .map_err(|error| failed("start", error))?;
    let mut rows = Vec::new();
    for line in child
        .stdout
        .take()
        .into_iter()
        .flat_map(|pipe| BufReader::new(pipe).lines())
    {
        let line = line.map_err(|error| failed("read from", error))?;
        let _ = writeln!(std::io::stdout(), "{line}");
        if let Some(row) = line.strip_prefix(MARK) {
            rows.push(row.split(" | ").map(str::to_owned).collect());
        }
    }
    let status = child.wait().map_err(|error| failed("wait for", error))?;
    match status.success() {
        true => Ok(rows),
        false => Err(Failure::Failed(format!("bench {name} ended with {status}"))),
    }
}

fn table(rows: &[Vec<String>]) -> String {
    let head = ["row", "what", "measured", "budget"].map(str::to_owned).to_vec();
    let rows: Vec<_> = std::iter::once(&head).chain(rows).collect();
    let width = |column: usize| {
        let lengths = rows.iter().filter_map(|row| row.get(column));
        lengths.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |row: &&Vec<String>| {
        let cells = row.iter().zip(&widths);
        let padded: Vec<_> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("\n{}", padded.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
