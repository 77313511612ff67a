//! When something runs again and again: Backstage's schedules.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube_authn_core::Problem;

use crate::app_config::ConfigValue;

mod cron;
mod duration;

pub use self::cron::CronPattern;
pub(crate) use self::duration::optional_duration;

/// How often something runs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Cadence {
    /// At once, and then so long after each start.
    Every(Duration),
    /// At the times of a pattern.
    Cron(CronPattern),
    /// When somebody asks for it.
    Manual,
}

/// A schedule as Backstage's `readSchedulerServiceTaskScheduleDefinitionFromConfig` reads it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Schedule {
    /// `frequency`: how often it runs.
    pub frequency: Cadence,
    /// `timeout`: for how long one run may take.
    pub timeout: Duration,
    /// `initialDelay`: for how long the first run waits.
    pub initial_delay: Duration,
    /// `scope`: whether one run serves all replicas (`global`, the default), or each replica runs by itself (`local`).
    pub global: bool,
}

impl Cadence {
    /// Reads a text: `manual`; ISO 8601 if it begins with `P`; a preset such as `@daily`, or five or six fields, as a cron
    /// pattern in UTC; a number with its unit, `30s`, as a duration.
    ///
    /// # Errors
    /// The peer's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "manual" {
            return Ok(Self::Manual);
        }
        let is_cron = text.starts_with('@') || text.split_whitespace().count() > DURATION_WORDS;
        match is_cron {
            true => CronPattern::parse(text).map(Self::Cron),
            false => {
                let milliseconds = duration::signed_milliseconds(text)?;
                Self::every(Duration::from_millis(duration::bounded(milliseconds)?))
            }
        }
    }

    /// What `{cron: ...}` holds: `manual`, a duration if it begins with `P`, else a pattern.
    fn of_cron(text: &str) -> Result<Self, String> {
        match text.trim() {
            "manual" => Ok(Self::Manual),
            text if text.starts_with('P') => Self::parse(text),
            text => CronPattern::parse(text).map(Self::Cron),
        }
    }

    /// What a duration's text says, as the peer reads it, in seconds: also `PT0S` and `P-1D`, which no schedule here takes.
    ///
    /// # Errors
    /// The peer's text.
    pub fn seconds(text: &str) -> Result<f64, String> {
        let text = text.trim();
        let milliseconds = duration::signed_milliseconds(text)?;
        if !text.starts_with('P') {
            duration::bounded(milliseconds)?;
        }
        Ok(milliseconds.round() / 1_000.0)
    }

    fn every(duration: Duration) -> Result<Self, String> {
        match duration < SHORTEST {
            true => Err(format!(
                "a duration of less than {SHORTEST:?} is no frequency: it would run without end"
            )),
            false => Ok(Self::Every(duration)),
        }
    }

    /// Reads a frequency: `{cron: "...", timezone: "..."}`, `{trigger: manual}`, or a duration in any of its spellings.
    ///
    /// # Errors
    /// The peer's texts; a frequency of less than a second is refused too.
    pub fn read(value: &ConfigValue<'_>) -> Result<Self, Problem> {
        let refuse = |cause: String| {
            value.problem(format!(
                "Invalid schedule in config at '{}', Error: {cause}",
                value.key()
            ))
        };
        let pattern = value.child("cron");
        if let Some(text) = pattern.as_text().filter(|text| !text.is_empty()) {
            let cadence = Self::of_cron(text).map_err(refuse)?;
            return match (cadence, value.child("timezone").optional_string()?) {
                (Self::Cron(pattern), Some(zone)) => pattern.in_zone(zone).map(Self::Cron).map_err(refuse),
                (cadence, _) => Ok(cadence),
            };
        }
        if value.child("trigger").as_text() == Some("manual") {
            return Ok(Self::Manual);
        }
        match optional_duration(value)? {
            Some(duration) => Self::every(duration).map_err(refuse),
            None => Err(value.missing()),
        }
    }

    /// When the next run is due, after one that began at `begun`; `None` if only when somebody asks.
    pub fn next(&self, begun: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(duration) => {
                let next = SignedDuration::try_from(*duration)
                    .ok()
                    .and_then(|duration| begun.checked_add(duration).ok())?;
                Some(next.max(now))
            }
            Self::Cron(pattern) => pattern.next_after(now),
            Self::Manual => None,
        }
    }
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// The first problem: `frequency` and `timeout` are required.
    pub fn read(value: &ConfigValue<'_>) -> Result<Self, Problem> {
        value.optional_object()?;
        let timeout = value.child("timeout");
        let scope = value.child("scope");
        Ok(Self {
            frequency: Cadence::read(&value.child("frequency"))?,
            timeout: optional_duration(&timeout)?.ok_or_else(|| timeout.missing())?,
            initial_delay: optional_duration(&value.child("initialDelay"))?.unwrap_or_default(),
            global: match scope.optional_string()? {
                None | Some("global") => true,
                Some("local") => false,
                Some(other) => {
                    return Err(scope.problem(format!(
                        "Only \"global\" or \"local\" are allowed for TaskScheduleDefinition.scope, but got: {other}"
                    )));
                }
            },
        })
    }
}

/// `2 minutes` has two words; a pattern has five or six, and one with too few is still none of a duration.
const DURATION_WORDS: usize = 2;
/// Whoever asks for less means something else.
const SHORTEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppConfig, Environment};

    fn config(layers: &[&str]) -> AppConfig {
        let layers: Vec<_> = layers.iter().map(|text| ("app-config.yaml", *text)).collect();
        AppConfig::from_texts(&layers, &Environment::of::<&str, &str>([])).expect("a configuration")
    }

    fn read(yaml: &str) -> Result<Schedule, String> {
        Schedule::read(&config(&[yaml]).value("s")).map_err(|problem| problem.message)
    }

    fn cron(text: &str) -> Cadence {
        Cadence::Cron(CronPattern::parse(text).expect("a pattern"))
    }

    #[test]
    fn schedule_is_read_in_every_spelling() {
        let schedule = |frequency| {
            Ok(Schedule {
                frequency,
                timeout: Duration::from_secs(120),
                initial_delay: Duration::from_secs(15),
                global: false,
            })
        };
        let rest = "timeout: PT2M, initialDelay: { seconds: 15 }, scope: local";
        for (frequency, expected) in [
            ("{ cron: '0 6 * * *', extra: 1 }", cron("0 6 * * *")),
            ("{ cron: P1D }", Cadence::Every(Duration::from_secs(86_400))),
            ("{ cron: manual }", Cadence::Manual),
            ("{ trigger: manual }", Cadence::Manual),
            ("30m", Cadence::Every(Duration::from_secs(1_800))),
            (
                "{ hours: 1, minutes: '30' }",
                Cadence::Every(Duration::from_secs(5_400)),
            ),
        ] {
            assert_eq!(
                read(&format!("s: {{ frequency: {frequency}, {rest} }}")),
                schedule(expected),
                "{frequency}"
            );
        }
    }

    #[test]
    fn pattern_below_an_object_stays() {
        let config = config(&["s: { cron: '@daily' }", "s: { hours: 1 }"]);

        assert_eq!(Cadence::read(&config.value("s")), Ok(cron("@daily")));
    }

    #[test]
    fn what_is_no_schedule_gives_the_peers_text() {
        for (yaml, message) in [
            (
                "s: { timeout: 1m }",
                "Missing required config value at 's.frequency' in 'app-config.yaml'",
            ),
            (
                "s: { frequency: 1m }",
                "Missing required config value at 's.timeout' in 'app-config.yaml'",
            ),
            (
                "s: { frequency: 1m, timeout: 1m, scope: all }",
                "Only \"global\" or \"local\" are allowed for TaskScheduleDefinition.scope, but got: all",
            ),
            (
                "s: { frequency: { trigger: often }, timeout: 1m }",
                "Failed to read duration from config at 's.frequency', Error: Needs one or more of 'years', 'months', \
                 'weeks', 'days', 'hours', 'minutes', 'seconds', 'milliseconds'",
            ),
            (
                "s: { frequency: { cron: '* * *' }, timeout: 1m }",
                "Invalid schedule in config at 's.frequency', Error: Too few fields",
            ),
            (
                "s: { frequency: { cron: '@daily', timezone: Nowhere/Town }, timeout: 1m }",
                "Invalid schedule in config at 's.frequency', Error: there is no time zone 'Nowhere/Town': give an IANA \
                 name, as Europe/Berlin",
            ),
            (
                "s: { frequency: { hours: 0 }, timeout: 1m }",
                "Invalid schedule in config at 's.frequency', Error: a duration of less than 1s is no frequency: it \
                 would run without end",
            ),
        ] {
            assert_eq!(read(yaml), Err(message.to_owned()), "{yaml}");
        }
    }

    #[test]
    fn next_run_counts_from_the_start_of_the_last_one() {
        let at = |second| Timestamp::from_second(second).expect("an instant");
        let every = Cadence::Every(Duration::from_secs(60));

        assert_eq!(every.next(at(100), at(110)), Some(at(160)));
        assert_eq!(every.next(at(100), at(500)), Some(at(500)));
        assert_eq!(cron("* * * * *").next(at(100), at(500)), Some(at(540)));
        assert_eq!(Cadence::Manual.next(at(100), at(500)), None);
    }
}
