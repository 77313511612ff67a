//! Long streams and much data through `kube-authn serve`: terminals, silence, volume, and a reader that stopped.
//!
//! With `KUBE_AUTHN_TEST_LONG=1`: ten minutes of silence, a GiB through exec both ways, a list of 100 MiB.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the crates, not of what tests them"
)]
#![allow(clippy::print_stderr, reason = "figures are what a long run is for")]

mod support;

use std::{
    fs,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{Context, SHA256};
use http::Request;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{AttachParams, PostParams},
};
use serde_json::{Value, json};
use support::{
    OPENPORTAL, eventually,
    stage::{LIMIT, Stage, until},
    within,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

/// Where alice may do what she likes, and a pod of hers that runs.
const NAMESPACE: &str = "team-a-dev";
const POD: &str = "web-0";

const MIB: u64 = 1 << 20;

/// The first in a normal run, the second with `KUBE_AUTHN_TEST_LONG`.
fn normal_or_long<T>(normal: T, long: T) -> T {
    match std::env::var_os("KUBE_AUTHN_TEST_LONG") {
        None => normal,
        Some(_) => long,
    }
}

fn exec<'a>(options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["exec"], options, &["-n", NAMESPACE, POD, "--"], command].concat()
}

#[tokio::test]
async fn terminal_of_an_exec_has_the_size_of_the_callers() {
    let stage = Stage::new().await;
    stage.log_in().await;
    for websocket in ["true", "false"] {
        let device = stage.folder.path().join("device");
        let inside = "while read line; do stty size; test $line = end && exit 7; done";
        let kubectl = stage.command(&exec(&["-it"], &["sh", "-c", inside]));
        let kubectl = kubectl.as_std();
        // `script` gives kubectl a terminal of its own; -e passes its exit code on.
        let mut shell = Command::new("script");
        shell
            .args([
                "-qe",
                "-c",
                r#"stty rows 30 cols 91; tty >"$DEVICE"; exec sh "$SCRIPT""#,
                "/dev/null",
            ])
            .env_clear()
            .envs(
                kubectl
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("DEVICE", &device)
            .env("SCRIPT", stage.folder.path().join("script"))
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let words: Vec<_> = std::iter::once(kubectl.get_program())
            .chain(kubectl.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        fs::write(
            stage.folder.path().join("script"),
            format!("exec {}", words.join(" ")),
        )
        .unwrap();
        let mut terminal = shell.spawn().unwrap();
        let mut typed = terminal.stdin.take().unwrap();
        let mut shown = BufReader::new(terminal.stdout.take().unwrap()).lines();
        typed.write_all(b"begin\n").await.unwrap();
        until(&mut shown, "30 91").await;

        let device = fs::read_to_string(device).unwrap();
        let resized = std::process::Command::new("stty")
            .args(["-F", device.trim(), "rows", "44", "cols", "120"])
            .status();
        assert!(resized.unwrap().success());
        // Input and sizes travel apart from each other.
        let asking = async {
            loop {
                typed.write_all(b"again\n").await.unwrap();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            _ = until(&mut shown, "44 120") => {}
            () = asking => {}
        }

        typed.write_all(b"end\n").await.unwrap();
        tokio::spawn(async move { while shown.next_line().await.is_ok_and(|line| line.is_some()) {} });
        let end = within(LIMIT, "the end", terminal.wait()).await.unwrap();
        assert_eq!(end.code(), Some(7), "websocket: {websocket}");
    }
}

/// Longer than any answer, head or connection may stand still elsewhere.
#[tokio::test]
async fn exec_and_watch_in_which_nothing_happens_stay_open() {
    let stage = Stage::new().await;
    stage.log_in().await;
    let silence = normal_or_long(Duration::from_secs(62), Duration::from_secs(600));
    let client = stage.alice.client(OPENPORTAL).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let _ = maps.delete("after-the-silence", &Default::default()).await;
    // The API server drops a watcher that is behind with large events: those of other tests don't come here.
    let watched = [
        "get",
        "configmaps",
        "-l",
        "kind=silent",
        "-n",
        NAMESPACE,
        "-w",
        "-o",
        "name",
    ];
    let (_watching, mut seen) = stage.lines(&watched);
    let mut kubectls = Vec::new();
    for websocket in ["true", "false"] {
        let mut command = stage.command(&exec(&["-i"], &["cat"]));
        let mut kubectl = command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = kubectl.stdin.take().unwrap();
        let output = BufReader::new(kubectl.stdout.take().unwrap()).lines();
        kubectls.push((kubectl, input, output));
    }
    // kubectl pings; this client doesn't.
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let parameters = AttachParams::default().stdin(true).stderr(false);
    let mut attached = pods.exec(POD, ["cat"], &parameters).await.unwrap();
    let (mut input, mut output) = (attached.stdin().unwrap(), attached.stdout().unwrap());
    for (_, input, output) in &mut kubectls {
        input.write_all(b"before\n").await.unwrap();
        until(output, "before").await;
    }

    tokio::time::sleep(silence).await;

    for (_, input, output) in &mut kubectls {
        input.write_all(b"after\n").await.unwrap();
        until(output, "after").await;
    }
    input.write_all(b"after\n").await.unwrap();
    let mut echo = [0; 6];
    within(LIMIT, "the echo", output.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"after\n");
    let map = json!({ "metadata": { "name": "after-the-silence", "labels": { "kind": "silent" } } });
    let map: ConfigMap = serde_json::from_value(map).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    until(&mut seen, "after-the-silence").await;
}

/// Watches the program's memory while something happens.
struct Memory {
    pid: u32,
    before: u64,
    high: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Memory {
    fn of(stage: &Stage) -> Self {
        let pid = stage.served.pid().unwrap();
        let (high, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let this = Self {
            pid,
            before: resident(pid),
            high: high.clone(),
            done: done.clone(),
        };
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                high.fetch_max(resident(pid), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        this
    }

    fn stayed_flat(&self, what: &str) {
        let high = self.high.load(Ordering::Relaxed);
        eprintln!(
            "{what}: resident {} KiB before, {} KiB at most, {} KiB now",
            self.before / 1024,
            high / 1024,
            resident(self.pid) / 1024
        );
        assert!(
            high > 0 && high < self.before + 48 * MIB,
            "{what}: {} to {high}",
            self.before
        );
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Resident bytes of a process; 0 once it is gone.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// Bytes that differ from place to place: a splitmix64 of the place.
fn piece(at: u64, bytes: &mut [u8]) {
    for (place, chunk) in (at / 8..).zip(bytes.chunks_exact_mut(8)) {
        let mut x = place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(x ^ (x >> 31)).to_le_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volume_through_exec_arrives_unchanged_in_flat_memory() {
    let stage = Stage::alone().await;
    stage.log_in().await;
    let total = normal_or_long(32 * MIB, 1024 * MIB);
    let (code, _, errors) = stage.kubectl(&exec(&[], &["true"])).await;
    assert_eq!(code, 0, "{errors}");
    for websocket in ["true", "false"] {
        let memory = Memory::of(&stage);
        let begin = Instant::now();
        let mut kubectl = stage
            .command(&exec(&["-i"], &["cat"]))
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (mut input, mut output) = (kubectl.stdin.take().unwrap(), kubectl.stdout.take().unwrap());

        let sending = tokio::spawn(async move {
            let (mut sent, mut bytes) = (Context::new(&SHA256), vec![0; 64 << 10]);
            for at in (0..total).step_by(64 << 10) {
                piece(at, &mut bytes);
                sent.update(&bytes);
                input.write_all(&bytes).await.unwrap();
            }
            sent.finish()
        });
        let (mut received, mut count, mut bytes) = (Context::new(&SHA256), 0, vec![0; 64 << 10]);
        while count < total {
            let read = within(LIMIT, "more", output.read(&mut bytes)).await.unwrap();
            assert_ne!(read, 0, "ended after {count}");
            received.update(&bytes[..read]);
            count += read as u64;
        }

        assert_eq!(received.finish().as_ref(), sending.await.unwrap().as_ref());
        assert_eq!(count, total);
        let what = format!(
            "{} MiB each way through exec, websocket {websocket}, {:.1} s",
            total / MIB,
            begin.elapsed().as_secs_f64()
        );
        memory.stayed_flat(&what);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_list_arrives_unchanged_in_flat_memory() {
    let stage = Stage::alone().await;
    stage.log_in().await;
    let count = normal_or_long(24, 100);
    let admin = stage.cluster.client().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(admin, NAMESPACE);
    let mut bytes = vec![0; 500 << 10];
    for number in 0..count {
        piece(number << 32, &mut bytes);
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("large-{number}");
        let map = json!({
            "metadata": { "name": name, "labels": { "kind": "large" } },
            "data": { "text": text },
        });
        let _ = maps
            .create(&PostParams::default(), &serde_json::from_value(map).unwrap())
            .await;
    }
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps?labelSelector=kind%3Dlarge");
    let memory = Memory::of(&stage);
    let begin = Instant::now();

    let (code, through, errors) = stage.kubectl(&["get", "--raw", &path]).await;
    let seconds = begin.elapsed().as_secs_f64();
    let direct = stage
        .cluster
        .kubectl()
        .args(["get", "--raw", &path])
        .output()
        .await
        .unwrap();

    assert_eq!(code, 0, "{errors}");
    let [through, direct] =
        [through.as_bytes(), &direct.stdout].map(|bytes| -> Value { serde_json::from_slice(bytes).unwrap() });
    assert_eq!(through["items"].as_array().unwrap().len() as u64, count);
    assert!(through["items"] == direct["items"], "the lists differ");
    memory.stayed_flat(&format!("a list of {count} MB, {seconds:.1} s"));
    for number in 0..count {
        let _ = maps.delete(&format!("large-{number}"), &Default::default()).await;
    }
}

/// Sockets that the program holds.
fn sockets(pid: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    files
        .filter(|file| {
            let target = file
                .as_ref()
                .ok()
                .and_then(|file| fs::read_link(file.path()).ok());
            target.is_some_and(|target| target.to_string_lossy().starts_with("socket:"))
        })
        .count()
}

#[tokio::test]
async fn logout_never_waits_for_a_caller_that_reads_nothing() {
    let stage = Stage::alone().await;
    stage.log_in().await;
    let pid = stage.served.pid().unwrap();
    let pods: Api<Pod> = Api::namespaced(stage.alice.client(OPENPORTAL).unwrap(), NAMESPACE);
    let parameters = AttachParams::default().stderr(false);
    let mut flooded = Vec::new();
    for _ in 0..3 {
        flooded.push(pods.exec(POD, ["yes"], &parameters).await.unwrap());
    }
    // Until every buffer on the way is full, nothing is held up.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let open = sockets(pid);

    let begin = Instant::now();
    let request = Request::delete("/api/cluster-auth/tokens");
    let (status, answer) = stage.alice.send(request, &Value::Null).await.unwrap();
    assert_eq!(status, 200, "{answer}");

    // Both sides of three execs.
    eventually(Duration::from_secs(5), "the sockets are closed", async || {
        (sockets(pid) + 6 <= open).then_some(())
    })
    .await;
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}
