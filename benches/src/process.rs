//! Other processes: on which processor they run, what they cost, how much memory they hold.
#![allow(clippy::disallowed_methods, reason = "a bench reads what the kernel counts")]

use std::{fs, time::Duration};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Runs `start` on this processor alone, and with it the processes and threads that it starts. Where there is no such
/// processor it runs anywhere.
pub fn on_cpu<T>(cpu: usize, start: impl FnOnce() -> T) -> T {
    let before = sched_getaffinity(None);
    let pinned = sched_setaffinity(None, &only(cpu));
    let started = start();
    if let (Ok(before), Ok(())) = (before, pinned) {
        let _ = sched_setaffinity(None, &before);
    }
    started
}

/// Moves a process, its children and their threads to this processor.
pub fn move_to_cpu(process: u32, cpu: usize) {
    for process in tree(process) {
        let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
            continue;
        };
        for thread in threads.filter_map(Result::ok) {
            let thread = thread.file_name().to_str().and_then(|thread| thread.parse().ok());
            if let Some(thread) = thread.and_then(Pid::from_raw) {
                let _ = sched_setaffinity(Some(thread), &only(cpu));
            }
        }
    }
}

fn only(cpu: usize) -> CpuSet {
    let mut only = CpuSet::new();
    only.set(cpu);
    only
}

/// User and system time of a process and its children, in ticks of 10 ms.
pub fn cpu_of(process: u32) -> Duration {
    let own = |process: &u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // Fields 14 and 15; the name in field 2 may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
    };
    Duration::from_millis(10 * tree(process).iter().map(own).sum::<u64>())
}

/// Memory of a process and its children in bytes, pages that are shared with others in equal parts (PSS).
pub fn memory_of(process: u32) -> u64 {
    let own = |process: &u32| {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
        let kibibytes = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"))
            .and_then(|number| number.parse::<u64>().ok());
        1024 * kibibytes.unwrap_or(0)
    };
    tree(process).iter().map(own).sum()
}

fn tree(process: u32) -> Vec<u32> {
    let mut all = vec![process];
    let mut next = 0;
    while let Some(process) = all.get(next) {
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
        let children = children.unwrap_or_default();
        all.extend(
            children
                .split_whitespace()
                .filter_map(|child| child.parse::<u32>().ok()),
        );
        next += 1;
    }
    all
}

/// The process named kube-apiserver that was told this port; its supervisor has another name.
pub fn process_of_api_server(port: u16) -> Option<u32> {
    let told = format!("--secure-port={port}");
    fs::read_dir("/proc")
        .ok()?
        .filter_map(Result::ok)
        .find_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            let mine = arguments
                .split(|byte| *byte == 0)
                .any(|argument| argument == told.as_bytes());
            (name.trim() == "kube-apiserver" && mine).then_some(process)
        })
}

/// Established connections to this port, everybody's.
pub fn open_connections(port: u16) -> u64 {
    let remote = format!("0100007F:{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let established = table.lines().filter(|line| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next() == Some(remote.as_str()) && fields.next() == Some("01")
    });
    established.count() as u64
}
