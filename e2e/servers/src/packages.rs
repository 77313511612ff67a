//! The servers' programs, from the distribution.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Instant,
};

/// Installs PostgreSQL and Redis where they are missing. Several processes may call it at once: apt-get's own lock makes
/// the later ones wait.
///
/// # Panics
/// When something is missing and cannot be installed.
pub fn packages() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        if is_there() {
            return;
        }
        install(&["postgresql", "redis-server"], MISSING);
        assert!(is_there(), "{MISSING}");
    });
}

/// The same for `PgBouncer`, which few tests need.
pub(crate) fn pooler() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        if program("pgbouncer").is_none() {
            install(&["pgbouncer"], NO_POOLER);
            assert!(program("pgbouncer").is_some(), "{NO_POOLER}");
        }
    });
}

fn install(packages: &[&str], missing: &str) {
    let apt = program("apt-get").unwrap_or_else(|| panic!("{missing}"));
    // The index may be missing or older than what the mirror still has.
    run("reading the list of packages", &apt, &["update"], missing);
    let options = ["install", "--yes", "--no-install-recommends"];
    let step = format!("installing {}", packages.join(" and "));
    run(&step, &apt, &[&options[..], packages].concat(), missing);
}

fn is_there() -> bool {
    postgres_program("postgres").is_some() && program("redis-server").is_some()
}

/// A program of PostgreSQL's server. Debian keeps them apart, by version; the newest counts.
pub(crate) fn postgres_program(name: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path).or_else(|| program(name))
}

/// A program on `PATH`, or where a user's `PATH` often does not reach.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

fn run(step: &str, apt: &Path, arguments: &[&str], missing: &str) {
    say(&format!("{step} ..."));
    let begin = Instant::now();
    let output = Command::new(apt)
        .args(["-o", "DPkg::Lock::Timeout=600"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Tests start their own servers; as at a system's rescue level, the packages start none.
        .env("RUNLEVEL", "1")
        .stdin(Stdio::null())
        .output()
        .expect("apt-get");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        output.status.success(),
        "{step} failed ({}):\n{text}\n{missing}",
        output.status
    );
    say(&format!("{step}: {} s", begin.elapsed().as_secs()));
}

#[expect(
    clippy::print_stderr,
    reason = "an installation takes a while; whoever waits wants to see it move"
)]
fn say(line: &str) {
    eprintln!("{line}");
}

const MISSING: &str = "the stores' tests need PostgreSQL 13 or later and Redis 7 or later: as root, `apt-get install \
                       postgresql redis-server` brings both";
const NO_POOLER: &str =
    "a test of the PostgreSQL store needs PgBouncer: as root, `apt-get install pgbouncer` brings it";
