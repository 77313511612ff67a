//! A restart of `kube-authn serve` while people work with kubectl.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]
#![allow(clippy::print_stderr, reason = "says how much was tried")]

mod support;

use std::{
    net::TcpListener,
    os::fd::OwnedFd,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use support::{
    OPENPORTAL, eventually,
    stage::{LIMIT, Prepared, alice, log_in, run},
    within,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_never_notices_a_restart() {
    let prepared = Prepared::new().await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = start(&prepared, &socket).await;
    let url = format!("https://{}", socket.local_addr().unwrap());
    let alice = alice(prepared.cluster, &url).await;
    log_in(prepared.cluster, &alice).await;
    let kubeconfig = prepared.folder.path().join("kubeconfig");
    alice.write_kubeconfig(&kubeconfig, OPENPORTAL).unwrap();
    let (done, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let goes_on = async || {
        let until = done.load(Ordering::SeqCst) + 8;
        eventually(LIMIT, "eight more", async || {
            (done.load(Ordering::SeqCst) >= until).then_some(())
        })
        .await;
    };
    // One that stays open: it may end with the program, and must not before.
    let mut watching = prepared.cluster.kubectl();
    let mut watching = watching
        .env("KUBECONFIG", &kubeconfig)
        .args(["get", "pods", "-n", "team-a", "-w"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    let workers: Vec<_> = (0..4)
        .map(|number| {
            let verbs: &[&str] = match number % 2 {
                0 => &["get", "pods", "-n", "team-a", "-o", "name"],
                // A write, which no client sends twice.
                _ => &[
                    "create",
                    "configmap",
                    "never-kept",
                    "-n",
                    "team-a-dev",
                    "--dry-run=server",
                ],
            };
            let mut arguments = vec![format!("--kubeconfig={}", kubeconfig.display())];
            arguments.extend(verbs.iter().map(|&word| word.to_owned()));
            let home = prepared.folder.path().join(format!("home-{number}"));
            let (done, over, cluster) = (done.clone(), over.clone(), prepared.cluster);
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let mut kubectl = cluster.kubectl();
                    kubectl.env("HOME", &home).args(&arguments);
                    let (code, _, errors) = run(kubectl, "").await;
                    assert_eq!((code, errors.as_str()), (0, ""));
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    goes_on().await;
    // Started before the old one stops, and after it has.
    let second = start(&prepared, &socket).await;
    goes_on().await;
    assert!(watching.try_wait().unwrap().is_none());
    stop(first).await;
    goes_on().await;
    stop(second).await;
    let third = start(&prepared, &socket).await;
    goes_on().await;
    over.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    stop(third).await;

    eprintln!(
        "{} runs of kubectl over two restarts",
        done.load(Ordering::SeqCst)
    );
}

/// The program on this socket, handed over as systemd does.
async fn start(prepared: &Prepared, socket: &TcpListener) -> Child {
    let mut program = Command::new("sh")
        .args([
            "-c",
            "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"",
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_kube-authn-program"))
        .args(["serve", "--drain", "2", "--config"])
        .arg(prepared.config())
        .env_clear()
        .envs(prepared.environment.iter().map(|(name, value)| (name, value)))
        .stdin(OwnedFd::from(socket.try_clone().unwrap()))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let line = within(LIMIT, "the start", lines.next_line())
        .await
        .unwrap()
        .unwrap();
    assert!(line.starts_with("listening on https://127.0.0.1:"), "{line}");
    program
}

async fn stop(mut program: Child) {
    let pid = Pid::from_raw(program.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let end = within(Duration::from_secs(10), "the end", program.wait())
        .await
        .unwrap();
    assert_eq!(end.code(), Some(0));
}
