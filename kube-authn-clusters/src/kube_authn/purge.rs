//! `kubeAuthn.purge`: when logins that ended long ago are deleted.

use std::time::Duration;

use crate::{Cadence, ConfigValue, Schedule, findings::Findings, schedule::optional_duration};

/// When logins are deleted that ended long ago.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PurgeConfig {
    /// When each replica looks for them, and for how long at most.
    pub schedule: Schedule,
    /// For how long a login that ended is kept, also to be refreshed.
    pub keep: Duration,
}

impl PurgeConfig {
    /// The schedule in Backstage's spelling, and `keep` beside it.
    pub(super) fn read(block: &ConfigValue<'_>, findings: &mut Findings) -> Self {
        let mut purge = Self::default();
        if findings.keep(block.optional_object().map(|block| block.is_some())) != Some(true) {
            return purge;
        }
        findings.extend(block.unknown_keys(&["frequency", "timeout", "initialDelay", "scope", "keep"]));
        let states_schedule = ["frequency", "timeout", "initialDelay", "scope"]
            .iter()
            .any(|key| !block.child(key).is_absent());
        if states_schedule && let Some(schedule) = findings.keep(Schedule::read(block)) {
            purge.schedule = schedule;
        }
        if let Some(keep) = findings.keep(optional_duration(&block.child("keep"))).flatten() {
            purge.keep = keep;
        }
        purge
    }
}

impl Default for PurgeConfig {
    fn default() -> Self {
        Self {
            schedule: Schedule {
                frequency: Cadence::Every(HOUR),
                timeout: FIVE_MINUTES,
                initial_delay: FIVE_MINUTES,
                global: true,
            },
            keep: THIRTY_DAYS,
        }
    }
}

const HOUR: Duration = Duration::from_secs(3_600);
/// Enough for a hundred thousand rows on a slow disk; what is left waits for the next run. A start has other things to do
/// first.
const FIVE_MINUTES: Duration = Duration::from_secs(300);
/// Refresh tokens that nobody used for a month have ended at most issuers.
const THIRTY_DAYS: Duration = Duration::from_secs(30 * 24 * 3_600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppConfig, Environment, KubeAuthnConfig};

    fn read(text: &str) -> Result<PurgeConfig, Vec<(String, String)>> {
        let yaml = format!("kubeAuthn: {{ purge: {text} }}");
        let config = AppConfig::from_texts(&[("app-config.yaml", &yaml)], &Environment::of([("", ""); 0]));
        match KubeAuthnConfig::of(&config.expect("legal YAML")) {
            Ok(read) => Ok(read.purge),
            Err(invalid) => Err(invalid
                .problems
                .into_iter()
                .map(|problem| (problem.key, problem.message))
                .collect()),
        }
    }

    #[test]
    fn purge_takes_the_spellings_of_schedules() {
        let seconds = Duration::from_secs;
        assert_eq!(read("{}"), Ok(PurgeConfig::default()));
        assert_eq!(
            read(
                "{ frequency: { minutes: 30 }, timeout: PT3M, initialDelay: 15s, scope: local, keep: { days: 7 } }"
            ),
            Ok(PurgeConfig {
                schedule: Schedule {
                    frequency: Cadence::Every(seconds(1_800)),
                    timeout: seconds(180),
                    initial_delay: seconds(15),
                    global: false,
                },
                keep: seconds(7 * 86_400),
            })
        );
        let cron = read("{ frequency: { cron: '0 3 * * *' }, timeout: { minutes: 3 } }").expect("legal");
        assert!(matches!(cron.schedule.frequency, Cadence::Cron(_)));
        assert_eq!(read("{ keep: 1d }").map(|purge| purge.keep), Ok(seconds(86_400)));
        let manual = read("{ frequency: { trigger: manual }, timeout: 1m }").expect("legal");
        assert_eq!(manual.schedule.frequency, Cadence::Manual);
    }

    #[test]
    fn schedule_that_is_none_is_told_by_its_key() {
        assert_eq!(
            read("{ frequency: 1h }"),
            Err(vec![(
                "kubeAuthn.purge.timeout".to_owned(),
                "Missing required config value at 'kubeAuthn.purge.timeout' in 'app-config.yaml'".to_owned()
            )])
        );
        let keys = |text| read(text).map_err(|told| told.into_iter().map(|(key, _)| key).collect::<Vec<_>>());
        assert_eq!(
            keys("{ keep: soon }"),
            Err(vec!["kubeAuthn.purge.keep".to_owned()])
        );
        assert_eq!(
            keys("{ every: 1h }"),
            Err(vec!["kubeAuthn.purge.every".to_owned()])
        );
    }
}
