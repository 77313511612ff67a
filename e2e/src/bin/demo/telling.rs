//! How the demo talks: numbered steps, real answers, and what did not hold.

use std::{
    error::Error,
    fmt::Display,
    io::{Write, stdout},
    process::ExitCode,
    time::Instant,
};

use serde_json::Value;

use crate::{Failure, signals::Signals};

/// Counts steps and remembers which did not hold.
pub(crate) struct Telling {
    steps: usize,
    broken: usize,
    start: Instant,
    summed_up: bool,
}

impl Telling {
    pub(crate) fn new() -> Self {
        Self {
            steps: 0,
            broken: 0,
            start: Instant::now(),
            summed_up: false,
        }
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, what: impl Display) {
        self.steps += 1;
        say(format_args!("\n{:>2}. {what}", self.steps));
    }

    /// A line of a real answer.
    pub(crate) fn line(&self, text: impl Display) {
        for line in text.to_string().lines() {
            say(format_args!("      {line}"));
        }
    }

    /// A line for the reader to copy, or about such lines.
    pub(crate) fn plain(&self, text: impl Display) {
        say(text);
    }

    /// Whether what was to hold holds.
    pub(crate) fn holds(&mut self, claim: impl Display, true_: bool) {
        if true_ {
            say(format_args!("    ✓ {claim}"));
        } else {
            self.broken += 1;
            say(format_args!("    ✗ {claim}: DOES NOT HOLD"));
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
        say(format_args!("    ✗ {}", chain(failure)));
    }

    /// Tells of a failure where it happened; an interruption is the caller's to pass on.
    pub(crate) fn settle<T>(&mut self, outcome: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(failure) if Signals::are(&failure) => Err(failure),
            Err(failure) => {
                self.failed(failure.as_ref());
                Ok(None)
            }
        }
    }

    /// Somebody has heard enough.
    pub(crate) fn interrupted(&mut self) {
        self.broken += 1;
        self.summed_up = true;
        say(format_args!(
            "\nInterrupted at step {}; whatever was started ends.",
            self.steps
        ));
    }

    pub(crate) fn all_hold(&self) -> bool {
        self.broken == 0
    }

    /// Says how the story went; once.
    pub(crate) fn sum_up(&mut self) {
        if std::mem::replace(&mut self.summed_up, true) {
            return;
        }
        let seconds = self.start.elapsed().as_secs_f64();
        match self.broken {
            0 => say(format_args!("\nAll {} steps hold ({seconds:.1} s).", self.steps)),
            broken => say(format_args!(
                "\n{broken} of the claims above do not hold ({seconds:.1} s)."
            )),
        }
    }

    pub(crate) fn end(mut self) -> ExitCode {
        self.sum_up();
        match self.broken {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// Nobody may be listening any more, and what was started has to be ended all the same.
fn say(text: impl Display) {
    let _ = writeln!(stdout(), "{text}");
}

/// An answer of the service; a refusal becomes an error with its status, code and text.
pub(crate) fn answered((status, answer): (u16, Value)) -> Result<Value, Failure> {
    if status < 400 {
        return Ok(answer);
    }
    let code = [&answer["code"], &answer["reason"]]
        .into_iter()
        .find_map(Value::as_str);
    let message = answer["message"].as_str().unwrap_or_default();
    Err(format!("{status} {}: {message}", code.unwrap_or_default()).into())
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
