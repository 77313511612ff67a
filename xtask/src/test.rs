//! `cargo xtask test`: every check and every test, each step with its time, nothing left out in silence.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    build_test_cluster, features,
    shell::{Failure, Outcome, cache, cargo, require, say, workspace},
    test_cluster,
};

pub(crate) const HELP: &str = "\
Usage: cargo xtask test [--long] [NAME]

Installs what tests need (the test cluster's programs, cargo-deny), then runs format, clippy,
the documentation, deny, each feature alone, unit, conformance, doc and e2e tests. A step that
fails doesn't stop the next; the end lists them all.

  NAME     only tests whose name contains NAME, and no checks
  --long   the long runs too (kills, soak): hours instead of minutes

Needs Go and Node.js for the test cluster.";

const CARGO_DENY: &str = "0.20.2";

/// The e2e package is apart because it needs the cluster.
const E2E: &str = "kube-authn-e2e";

struct Report {
    steps: Vec<(String, Verdict, Duration)>,
}

enum Verdict {
    Passed,
    Failed,
    NotChecked(&'static str),
}

pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (mut long, mut filter) = (false, None);
    for argument in arguments {
        match argument.as_str() {
            "--long" => long = true,
            flag if flag.starts_with('-') => return Err(Failure::Usage(format!("no such option: {flag}"))),
            name if filter.is_none() => filter = Some(name),
            name => return Err(Failure::Usage(format!("one name is enough: {name}"))),
        }
    }
    require(&["go", "node", "npm"])?;

    let mut report = Report { steps: Vec::new() };
    report.step("build the test environment", || status(build_test_cluster()));
    report.step("test cluster programs", || status(test_cluster(&["tools"])));
    match filter {
        Some(name) => say(&format!("only tests with \"{name}\" in their name; no checks")),
        None => checks(&mut report)?,
    }
    tests(&mut report, filter, long);
    report.finish()
}

fn checks(report: &mut Report) -> Outcome {
    report.step("format", || status(cargo(&["fmt", "--all", "--check"])));
    report.step("clippy", || {
        status(cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ]))
    });
    report.step("documentation", || {
        let mut doc = cargo(&["doc", "--no-deps", "--all-features"]);
        doc.env("RUSTDOCFLAGS", "-D warnings");
        status(doc)
    });
    let folder = cache()?.join(format!("cargo-deny-{CARGO_DENY}"));
    let deny = folder.join("bin/cargo-deny");
    if !deny.is_file() {
        report.step("install cargo-deny", || {
            let mut command = cargo(&[
                "install",
                "cargo-deny",
                "--version",
                CARGO_DENY,
                "--locked",
                "--root",
            ]);
            command.arg(&folder);
            status(command)
        });
    }
    let deny = |check: &[&str]| {
        let mut command = Command::new(&deny);
        command
            .args(["--workspace", "--all-features", "--locked", "check"])
            .args(check)
            .current_dir(workspace());
        command
    };
    report.step("deny: bans, licences, sources", || {
        status(deny(&["bans", "licenses", "sources"]))
    });
    report.step("deny: advisories", || advisories(deny(&["advisories"])));
    for build in features::builds(workspace())? {
        let feature = build.feature.as_deref().unwrap_or("no feature");
        report.step(&format!("{} with {feature}", build.package), || {
            let arguments = build.arguments();
            status(cargo(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
        });
    }
    Ok(())
}

fn tests(report: &mut Report, filter: Option<&str>, long: bool) {
    let test = |arguments: &[&str]| {
        let mut command = cargo(&["test", "--no-fail-fast", "--all-features"]);
        command.args(arguments).args(filter);
        if long {
            // Tests with a small fixed sample read it and take the whole.
            command.env("KUBE_AUTHN_TEST_LONG", "1");
        }
        status(command)
    };
    report.step("unit, conformance and doc tests", || {
        test(&["--workspace", "--exclude", E2E])
    });
    report.step("e2e tests", || test(&["--package", E2E]));
}

/// The database lives on the network; without it there is nothing to check against, and the report says so.
fn advisories(mut command: Command) -> Verdict {
    let Ok(output) = command.stdin(Stdio::null()).output() else {
        return Verdict::Failed;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Verdict::Passed;
    }
    say(text.trim_end());
    if text.contains("failed to fetch advisory database") {
        return Verdict::NotChecked("the advisory database can't be fetched");
    }
    Verdict::Failed
}

fn status(mut command: Command) -> Verdict {
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Verdict::Passed,
        Ok(_) => Verdict::Failed,
        Err(error) => {
            say(&format!(
                "error: start {}: {error}",
                command.get_program().display()
            ));
            Verdict::Failed
        }
    }
}

impl Report {
    fn step(&mut self, name: &str, run: impl FnOnce() -> Verdict) {
        say(&format!("==> {name}"));
        let begin = Instant::now();
        let verdict = run();
        let took = begin.elapsed();
        say(&format!(
            "    {name}: {} in {:.1} s",
            verdict.word(),
            took.as_secs_f64()
        ));
        self.steps.push((name.to_owned(), verdict, took));
    }

    fn finish(self) -> Outcome {
        let width = self
            .steps
            .iter()
            .map(|(name, ..)| name.len())
            .max()
            .unwrap_or_default();
        let (mut failed, mut total) = (0, Duration::ZERO);
        say("\nsummary");
        for (name, verdict, took) in &self.steps {
            total += *took;
            failed += usize::from(matches!(verdict, Verdict::Failed));
            say(&format!(
                "  {name:width$}  {:>7.1} s  {}",
                took.as_secs_f64(),
                verdict.word()
            ));
        }
        say(&format!(
            "  {} steps in {:.0} s",
            self.steps.len(),
            total.as_secs_f64()
        ));
        match failed {
            0 => Ok(()),
            1 => Err(Failure::Failed("1 step failed".into())),
            many => Err(Failure::Failed(format!("{many} steps failed"))),
        }
    }
}

impl Verdict {
    fn word(&self) -> String {
        match self {
            Self::Passed => "ok".into(),
            Self::Failed => "FAILED".into(),
            Self::NotChecked(reason) => format!("NOT CHECKED: {reason}"),
        }
    }
}
