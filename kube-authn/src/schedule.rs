//! `kube-authn schedule`: what the text of a schedule means.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use kube_authn_clusters::{AppConfig, Cadence, CronPattern, Environment};
use kube_authn_core::{
    Clock, SystemClock,
    serde_json::{Value, json},
};

/// Prints whether a text is a duration, a cron pattern or manual, and its seconds or next five times. Exits with 1 if no
/// schedule can have it.
#[derive(Debug, Args)]
pub(crate) struct Schedule {
    /// `30m`, `PT1H`, `{ hours: 1 }`, `0 6 * * mon-fri`, `@daily`, `{ cron: "...", timezone: "..." }`, `manual`
    #[arg(allow_hyphen_values = true)]
    text: String,
    /// The time zone of a cron pattern, by its IANA name
    #[arg(long, default_value = "UTC")]
    timezone: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Schedule {
    pub(crate) fn run(&self) -> ExitCode {
        let cadence = self.cadence();
        let meaning = match (&cadence, Cadence::seconds(&self.text)) {
            (Ok(cadence), _) => meaning(cadence),
            // The peer reads it, and no schedule here takes it.
            (Err(_), Ok(seconds)) => json!({ "kind": "duration", "seconds": number(seconds) }),
            (Err(cause), Err(_)) => {
                eprintln!("kube-authn: '{}' is no schedule: {cause}", self.text);
                return ExitCode::FAILURE;
            }
        };
        if self.print(&meaning).is_err() {
            return ExitCode::FAILURE;
        }
        match cadence {
            Ok(_) => ExitCode::SUCCESS,
            Err(cause) => {
                eprintln!("kube-authn: '{}' is no schedule: {cause}", self.text);
                ExitCode::FAILURE
            }
        }
    }

    fn cadence(&self) -> Result<Cadence, String> {
        let cadence = match self.text.trim_start().starts_with('{') {
            true => {
                let layer = format!("frequency: {}", self.text);
                let config =
                    AppConfig::from_texts(&[("schedule", &layer)], &Environment::of::<&str, &str>([]))
                        .map_err(|invalid| invalid.to_string())?;
                Cadence::read(&config.value("frequency")).map_err(|problem| problem.message)?
            }
            false => Cadence::parse(&self.text)?,
        };
        match cadence {
            Cadence::Cron(pattern) if self.timezone != "UTC" => {
                pattern.in_zone(&self.timezone).map(Cadence::Cron)
            }
            other => Ok(other),
        }
    }

    fn print(&self, meaning: &Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            return writeln!(out, "{meaning}");
        }
        for key in ["kind", "seconds", "timezone"] {
            match &meaning[key] {
                Value::Null => {}
                Value::String(text) => writeln!(out, "{key:<9} {text}")?,
                other => writeln!(out, "{key:<9} {other}")?,
            }
        }
        for next in meaning["next"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            writeln!(out, "{:<9} {next}", "next")?;
        }
        Ok(())
    }
}

fn meaning(cadence: &Cadence) -> Value {
    match cadence {
        Cadence::Every(duration) => json!({ "kind": "duration", "seconds": number(duration.as_secs_f64()) }),
        Cadence::Cron(pattern) => {
            json!({ "kind": "cron", "timezone": pattern.zone(), "next": next_times(pattern) })
        }
        _ => json!({ "kind": "manual" }),
    }
}

/// Without a fraction where there is none.
fn number(seconds: f64) -> Value {
    match seconds.fract() == 0.0 {
        true => json!(seconds as i64),
        false => json!(seconds),
    }
}

fn next_times(pattern: &CronPattern) -> Vec<String> {
    let now = SystemClock.now();
    std::iter::successors(pattern.next_after(now), |time| pattern.next_after(*time))
        .take(TIMES)
        .map(|time| time.to_string())
        .collect()
}

/// Enough to see a pattern.
const TIMES: usize = 5;
