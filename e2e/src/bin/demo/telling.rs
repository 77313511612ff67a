//! How the demo talks: numbered steps, real answers, and what did not hold.

use std::{error::Error, fmt::Display, process::ExitCode, time::Instant};

use crate::Failure;

/// Counts steps and remembers which did not hold.
pub(crate) struct Telling {
    steps: usize,
    broken: usize,
    start: Instant,
}

impl Telling {
    pub(crate) fn new() -> Self {
        Self {
            steps: 0,
            broken: 0,
            start: Instant::now(),
        }
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, what: impl Display) {
        self.steps += 1;
        println!("\n{:>2}. {what}", self.steps);
    }

    /// A line of a real answer.
    pub(crate) fn line(&self, text: impl Display) {
        for line in text.to_string().lines() {
            println!("      {line}");
        }
    }

    /// Whether what was to hold holds.
    pub(crate) fn holds(&mut self, claim: impl Display, true_: bool) {
        if true_ {
            println!("    ✓ {claim}");
        } else {
            self.broken += 1;
            println!("    ✗ {claim}: DOES NOT HOLD");
        }
    }

    /// An error that was to come, and whether its text is the expected one.
    pub(crate) fn refused<T>(&mut self, answer: Result<T, impl Into<Failure>>, expected: &str) {
        match answer {
            Ok(_) => self.holds(format!("refused with «{expected}»"), false),
            Err(error) => {
                let text = chain(error.into().as_ref());
                self.line(&text);
                self.holds(format!("refused with «{expected}»"), text.contains(expected));
            }
        }
    }

    /// Something that nobody expected to fail.
    pub(crate) fn failed(&mut self, failure: &(dyn Error + 'static)) {
        self.broken += 1;
        println!("    ✗ {}", chain(failure));
    }

    pub(crate) fn end(self) -> ExitCode {
        let seconds = self.start.elapsed().as_secs_f64();
        match self.broken {
            0 => {
                println!("\nAll {} steps hold ({seconds:.1} s).", self.steps);
                ExitCode::SUCCESS
            }
            broken => {
                println!("\n{broken} of the claims above do not hold ({seconds:.1} s).");
                ExitCode::FAILURE
            }
        }
    }
}

/// An error with all its causes, in one line; an answer of the API server as `kubectl` shows it.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    if let Some(kube::Error::Api(status)) = error.downcast_ref() {
        return format!("Error from server ({}): {}", status.reason, status.message);
    }
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
