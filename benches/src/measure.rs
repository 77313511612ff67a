//! Measuring so that ratios mean something: all subjects in turn, round by round, in one run.

use std::{
    fs,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

/// What `N` subjects gave in each round of one run.
#[derive(Debug)]
pub struct Rounds<T, const N: usize>(Vec<[T; N]>);

impl<T: Copy + Default, const N: usize> Rounds<T, N> {
    /// Runs each subject once per round; who begins changes by round, so that nobody always follows the same one.
    pub fn run(rounds: usize, mut run: impl FnMut(usize) -> T) -> Self {
        let mut all = vec![[T::default(); N]; rounds];
        for (round, results) in all.iter_mut().enumerate() {
            for step in 0..N {
                let subject = (round + step) % N;
                results[subject] = run(subject);
            }
        }
        Self(all)
    }

    /// The subject's median over the rounds.
    pub fn median(&self, subject: usize, value: impl Fn(&T) -> f64) -> f64 {
        median(self.0.iter().map(|round| value(&round[subject])).collect())
    }

    /// The median of the rounds' own ratios, subject to peer.
    pub fn ratio(&self, subject: usize, peer: usize, value: impl Fn(&T) -> f64) -> f64 {
        let ratios = self
            .0
            .iter()
            .map(|round| value(&round[subject]) / value(&round[peer]));
        median(ratios.collect())
    }

    /// The median of the rounds' own differences, subject less peer.
    pub fn difference(&self, subject: usize, peer: usize, value: impl Fn(&T) -> f64) -> f64 {
        let differences = self
            .0
            .iter()
            .map(|round| value(&round[subject]) - value(&round[peer]));
        median(differences.collect())
    }

    /// The subject's values in the first and the last round.
    pub fn first_and_last(&self, subject: usize, value: impl Fn(&T) -> f64) -> (f64, f64) {
        let of = |round: Option<&[T; N]>| round.map_or(f64::NAN, |round| value(&round[subject]));
        (of(self.0.first()), of(self.0.last()))
    }
}

/// The value in the middle; of an even number, the upper one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median and 99th percentile of `samples` calls, each timed on its own, without what prepares it; about 25 ns of each
/// are the clock's.
pub fn percentiles<I>(
    samples: usize,
    mut prepare: impl FnMut() -> I,
    mut call: impl FnMut(I),
) -> (Duration, Duration) {
    let times = (0..samples).map(|_| {
        let input = prepare();
        let start = Instant::now();
        call(input);
        start.elapsed()
    });
    median_and_p99(times.collect())
}

/// Median and 99th percentile of these times.
pub fn median_and_p99(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let at = |percent: usize| {
        times
            .get(times.len() * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    (at(50), at(99))
}

/// A duration in microseconds.
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Processor time that this process has used so far, all threads.
pub fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Bytes of this process that are in memory (`VmRSS` of `/proc/self/status`); zero where there is no such file.
#[allow(clippy::disallowed_methods, reason = "a bench reads what the kernel counts")]
pub fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Prints one line of the summary that `cargo xtask bench` collects: row of the budget, what, figure, limit.
#[allow(clippy::print_stdout, reason = "the report of a bench")]
pub fn report(row: u8, what: &str, figure: &str, limit: &str) {
    println!("row {row} | {what} | {figure} | {limit}");
}
