//! `cargo xtask`: sets up what is missing, then runs. No dependencies, so that it starts within seconds.

#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]

mod bench;
mod features;
mod shell;
mod test;

use std::{
    env,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use shell::{Failure, Outcome, cargo, require};

const HELP: &str = "\
Usage: cargo xtask <COMMAND>

Commands:
  demo      People's way through `kube-authn serve` to a real API server
  test      Everything that must pass: format, lints, licences, features, unit, conformance, doc and e2e tests
  cluster   The test cluster by hand: up, down, info
  bench     The benches

`cargo xtask <COMMAND> --help` says more. What a command needs is installed into
$XDG_CACHE_HOME/kube-authn, else ~/.cache/kube-authn.
Exit codes: 0 all went well, 1 something failed, 2 wrong usage.";

const DEMO: &str = "\
Usage: cargo xtask demo [--kubeconfig FILE --issuer URL] [ARGUMENTS]

Starts the test cluster and `kube-authn serve`, and tells a day of alice, bob and carol over
HTTP; every step prints the real answer, and a step that doesn't hold ends with exit code 1.
On a terminal the service stays after the story, with commands to try, until Ctrl-C.

  --kubeconfig FILE   your own cluster instead of the test cluster
  --issuer URL        your own issuer instead of the test issuers
  --client-id ID      its client [default: kubernetes]
  --issuer-ca FILE    its certificate authorities, PEM
  --port PORT         where the service listens on 127.0.0.1 [default: any free port]
  --keep-serving      stay after the story, also without a terminal
  --keep              keep the demo's folder: configuration, database and log

The first run builds the test cluster's programs, which takes minutes. It needs Go and
Node.js, unless both a cluster and an issuer of your own are given.";

const CLUSTER: &str = "\
Usage: cargo xtask cluster up [--foreground] [--id-token-lifetime SECONDS]
       cargo xtask cluster info [--json]
       cargo xtask cluster down

A real API server with RBAC and audit log, a node, and two OpenID Connect issuers, on
127.0.0.1. `up` returns when it is ready and prints its URLs, kubeconfig and users; it
stays until `down`.";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => return usage("no command is given", HELP),
    };
    let help = rest
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| is_help(argument));
    let outcome = match command {
        "help" | "--help" | "-h" => print(HELP),
        "demo" if help => print(DEMO),
        "test" if help => print(test::HELP),
        "cluster" if help => print(CLUSTER),
        "bench" if help => print(bench::HELP),
        "demo" => demo(rest),
        "test" => test::run(rest),
        "cluster" => cluster(rest),
        "bench" => bench::run(rest),
        unknown => return usage(&format!("no such command: {unknown}"), HELP),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => {
            usage(&message, &format!("`cargo xtask {command} --help` says more."))
        }
        Err(Failure::Failed(message)) => {
            shell::say(&format!("error: {message}"));
            ExitCode::FAILURE
        }
        // The program has said why.
        Err(Failure::Code(code)) => ExitCode::from(code),
    }
}

fn demo(arguments: &[String]) -> Outcome {
    let given = |flag: &str| {
        arguments
            .iter()
            .any(|argument| argument == flag || argument.starts_with(&format!("{flag}=")))
    };
    if !(given("--kubeconfig") && given("--issuer")) {
        require(&["go", "node", "npm"])?;
        shell::say("==> setting up the test cluster's programs");
        run(build_test_cluster())?;
        run(test_cluster(&["tools"]))?;
    }
    shell::say("==> building the demo");
    run(cargo(&[
        "build",
        "--package",
        "kube-authn-e2e",
        "--bin",
        "demo",
        "--bin",
        "kube-authn-program",
    ]))?;
    let mut command = cargo(&[
        "run",
        "--quiet",
        "--package",
        "kube-authn-e2e",
        "--bin",
        "demo",
        "--",
    ]);
    command.args(arguments);
    become_program(command)
}

fn cluster(arguments: &[String]) -> Outcome {
    let Some(verb @ ("up" | "down" | "info")) = arguments.first().map(String::as_str) else {
        return Err(Failure::Usage("one of up, down, info is needed".into()));
    };
    if verb == "up" {
        require(&["go", "node", "npm"])?;
        run(build_test_cluster())?;
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(test_cluster(&arguments))
}

/// Apart from its run, so that the minutes of a first build are seen.
fn build_test_cluster() -> Command {
    cargo(&["build", "--package", "kube-authn-e2e", "--bin", "test-cluster"])
}

/// `e2e/src/main.rs`.
fn test_cluster(arguments: &[&str]) -> Command {
    let mut command = cargo(&[
        "run",
        "--quiet",
        "--package",
        "kube-authn-e2e",
        "--bin",
        "test-cluster",
        "--",
    ]);
    command.args(arguments);
    command
}

/// Runs the program in place of us: Ctrl-C at the terminal is for it alone, and it decides how we end.
fn become_program(mut command: Command) -> Outcome {
    let error = command.exec();
    Err(Failure::Failed(format!(
        "start {}: {error}",
        command.get_program().display()
    )))
}

fn run(mut command: Command) -> Outcome {
    let program = command.get_program().to_owned();
    let status = command
        .status()
        .map_err(|error| Failure::Failed(format!("start {}: {error}", program.display())))?;
    match status.code() {
        Some(0) => Ok(()),
        code => Err(Failure::Code(
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        )),
    }
}

fn usage(problem: &str, help: &str) -> ExitCode {
    shell::say(&format!("error: {problem}\n\n{help}"));
    ExitCode::from(2)
}

fn print(text: &str) -> Outcome {
    writeln!(std::io::stdout(), "{text}").map_err(|error| Failure::Failed(format!("write the help: {error}")))
}

fn is_help(argument: &str) -> bool {
    matches!(argument, "--help" | "-h")
}
