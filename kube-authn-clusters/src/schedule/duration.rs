//! Durations as Backstage writes them: human objects, ISO 8601, and texts such as `30s`.

use std::time::Duration;

use kube_authn_core::Problem;

use crate::app_config::ConfigValue;

/// The duration at this place, if there is one: `{ hours: 1, minutes: 30 }`, `PT1H30M`, `90m`.
///
/// A month counts 30 days, a year 365. Fractions are kept to the millisecond.
///
/// # Errors
/// Backstage's texts for anything else; negative durations and those beyond 10,000 years are refused too.
pub(crate) fn optional_duration(value: &ConfigValue<'_>) -> Result<Option<Duration>, Problem> {
    if value.is_absent() {
        return Ok(None);
    }
    let milliseconds = match value.as_text() {
        Some(text) => {
            let text = text.trim();
            signed_milliseconds(text).and_then(bounded).map_err(|cause| {
                value.problem(format!(
                    "Invalid duration '{text}' in config at '{}', Error: {cause}",
                    value.key()
                ))
            })?
        }
        None => object_milliseconds(value)?,
    };
    Ok(Some(Duration::from_millis(milliseconds)))
}

/// What a text says, before it is asked whether so long a duration can be: ISO 8601 if it begins with `P`, else a number
/// with a unit.
pub(super) fn signed_milliseconds(text: &str) -> Result<f64, String> {
    match text.starts_with('P') {
        true => iso_milliseconds(text),
        false => text_milliseconds(text),
    }
}

fn object_milliseconds(value: &ConfigValue<'_>) -> Result<u64, Problem> {
    let type_error = |problem: Problem| {
        let class = match problem.message.starts_with("Invalid type") {
            true => "TypeError",
            false => "Error",
        };
        value.problem(format!(
            "Failed to read duration from config, {class}: {}",
            problem.message
        ))
    };
    let refuse = |cause: String| {
        value.problem(format!(
            "Failed to read duration from config at '{}', Error: {cause}",
            value.key()
        ))
    };

    value.optional_object().map_err(type_error)?;
    let (mut total, mut found) = (0.0, false);
    for (name, unit) in HUMAN_UNITS {
        if let Some(count) = value.child(name).optional_number().map_err(type_error)? {
            total += count * unit;
            found = true;
        }
    }
    let known = quoted(HUMAN_UNITS.iter().map(|(name, _)| *name));
    if !found {
        return Err(refuse(format!("Needs one or more of {known}")));
    }
    let unknown: Vec<&str> = value
        .entries()
        .map(|(key, _)| key)
        .filter(|key| HUMAN_UNITS.iter().all(|(name, _)| name != key))
        .collect();
    if !unknown.is_empty() {
        let what = if unknown.len() == 1 {
            "property"
        } else {
            "properties"
        };
        let unknown = quoted(unknown.into_iter());
        return Err(refuse(format!(
            "Unknown {what} {unknown}; expected one or more of {known}"
        )));
    }
    bounded(total).map_err(refuse)
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("'{name}'"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `PnYnMnWnDTnHnMnS`: upper case, in this order, each part at most once.
fn iso_milliseconds(text: &str) -> Result<f64, String> {
    let invalid = || "Invalid ISO format".to_owned();
    let body = text.strip_prefix('P').ok_or_else(invalid)?;
    let (date, time) = match body.split_once('T') {
        Some((date, time)) => (date, time),
        None => (body, ""),
    };
    let (dates, date_parts) = iso_parts(date, &ISO_DATE_UNITS).ok_or_else(invalid)?;
    let (times, time_parts) = iso_parts(time, &ISO_TIME_UNITS).ok_or_else(invalid)?;
    match date_parts + time_parts {
        0 => Err("Invalid ISO format, no values given".to_owned()),
        _ => Ok(dates + times),
    }
}

/// Sum and number of the parts of one half of an ISO 8601 duration.
fn iso_parts(mut text: &str, units: &[(char, f64)]) -> Option<(f64, usize)> {
    let (mut total, mut count) = (0.0, 0);
    let mut units = units.iter();
    while !text.is_empty() {
        let end = text.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, rest) = text.split_at_checked(end)?;
        let letter = rest.chars().next()?;
        let (_, unit) = units.find(|(name, _)| *name == letter)?;
        let number = match letter {
            'S' => number.replace(',', "."),
            _ => number.to_owned(),
        };
        total += decimal(&number)? * unit;
        count += 1;
        text = rest.get(letter.len_utf8()..)?;
    }
    Some((total, count))
}

/// A number, one space or none, and a unit in any case, as the npm package `ms` reads them.
fn text_milliseconds(text: &str) -> Result<f64, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(
            "The value cannot be a plain number; try adding a unit like 'ms' or 'seconds'".to_owned(),
        );
    }
    let invalid = || {
        "Not a valid duration string, try a number followed by a unit such as '1d' or '2 seconds'".to_owned()
    };
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end).ok_or_else(invalid)?;
    let number = decimal(number).ok_or_else(invalid)?;
    let unit = unit.trim_start_matches(' ').to_ascii_lowercase();
    let unit = TEXT_UNITS
        .iter()
        .find(|(names, _)| names.contains(&unit.as_str()))
        .map(|(_, unit)| *unit)
        .ok_or_else(invalid)?;
    Ok(number * unit)
}

/// `1`, `-1`, `.5`, `1.5`; no exponent, no sign but minus.
fn decimal(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match plain && digits.ends_with(|c: char| c.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    }
}

pub(super) fn bounded(milliseconds: f64) -> Result<u64, String> {
    if milliseconds < 0.0 {
        return Err("Negative durations are not allowed".to_owned());
    }
    match milliseconds.is_finite() && milliseconds <= MAX_MILLISECONDS {
        true => Ok(milliseconds.round() as u64),
        false => Err("a duration of more than 10,000 years is not allowed".to_owned()),
    }
}

const SECOND: f64 = 1_000.0;
const MINUTE: f64 = 60.0 * SECOND;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
const MONTH: f64 = 30.0 * DAY;
const YEAR: f64 = 365.0 * DAY;

/// Far beyond any lifetime, and far within what a `u64` of milliseconds holds.
const MAX_MILLISECONDS: f64 = 10_000.0 * YEAR;

const HUMAN_UNITS: [(&str, f64); 8] = [
    ("years", YEAR),
    ("months", MONTH),
    ("weeks", 7.0 * DAY),
    ("days", DAY),
    ("hours", HOUR),
    ("minutes", MINUTE),
    ("seconds", SECOND),
    ("milliseconds", 1.0),
];

const ISO_DATE_UNITS: [(char, f64); 4] = [('Y', YEAR), ('M', MONTH), ('W', 7.0 * DAY), ('D', DAY)];
const ISO_TIME_UNITS: [(char, f64); 3] = [('H', HOUR), ('M', MINUTE), ('S', SECOND)];

/// Names of the npm package `ms`; it has no months, so `m` is a minute whatever its case.
const TEXT_UNITS: [(&[&str], f64); 7] = [
    (&["", "milliseconds", "millisecond", "msecs", "msec", "ms"], 1.0),
    (&["seconds", "second", "secs", "sec", "s"], SECOND),
    (&["minutes", "minute", "mins", "min", "m"], MINUTE),
    (&["hours", "hour", "hrs", "hr", "h"], HOUR),
    (&["days", "day", "d"], DAY),
    (&["weeks", "week", "w"], 7.0 * DAY),
    (&["years", "year", "yrs", "yr", "y"], YEAR),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AppConfig, Environment};

    fn read(yaml: &str) -> Result<Option<Duration>, String> {
        let config = AppConfig::from_texts(&[("app-config.yaml", yaml)], &Environment::of::<&str, &str>([]))
            .expect("a configuration");
        optional_duration(&config.value("a.every")).map_err(|problem| problem.message)
    }

    #[test]
    fn all_three_spellings_are_read() {
        for (yaml, seconds) in [
            ("a: { every: { hours: 6, minutes: '3' } }", 21_780),
            ("a: { every: { days: 0.5 } }", 43_200),
            ("a: { every: P1DT2H }", 93_600),
            ("a: { every: 'PT1,5S' }", 2),
            ("a: { every: P1M }", 2_592_000),
            ("a: { every: 30s }", 30),
            ("a: { every: 1M }", 60),
            ("a: { every: 2 Hours }", 7_200),
            ("a: { every: 1y }", 31_536_000),
        ] {
            let read = read(yaml).expect(yaml).expect("a duration");

            assert_eq!(read.as_secs_f64().round() as u64, seconds, "{yaml}");
        }
        assert_eq!(read("a: { every: null }"), Ok(None));
        assert_eq!(read("a: { every: '1.5' }"), Ok(Some(Duration::from_millis(2))));
    }

    #[test]
    fn objects_of_two_layers_add_up() {
        let config = AppConfig::from_texts(
            &[
                ("a.yaml", "every: { hours: 6 }"),
                ("b.yaml", "every: { minutes: 3 }"),
            ],
            &Environment::of::<&str, &str>([]),
        )
        .expect("a configuration");

        let read = optional_duration(&config.value("every")).expect("a duration");

        assert_eq!(read, Some(Duration::from_secs(6 * 3600 + 180)));
    }

    #[test]
    fn what_is_no_duration_gives_the_peers_text() {
        let units = "'years', 'months', 'weeks', 'days', 'hours', 'minutes', 'seconds', 'milliseconds'";
        for (yaml, message) in [
            (
                "a: { every: '30' }",
                "Invalid duration '30' in config at 'a.every', Error: The value cannot be a plain number; \
                 try adding a unit like 'ms' or 'seconds'"
                    .to_owned(),
            ),
            (
                "a: { every: PT }",
                "Invalid duration 'PT' in config at 'a.every', Error: Invalid ISO format, no values given".to_owned(),
            ),
            (
                "a: { every: -1h }",
                "Invalid duration '-1h' in config at 'a.every', Error: Negative durations are not allowed".to_owned(),
            ),
            (
                "a: { every: {} }",
                format!("Failed to read duration from config at 'a.every', Error: Needs one or more of {units}"),
            ),
            (
                "a: { every: { hours: 1, foo: 2 } }",
                format!(
                    "Failed to read duration from config at 'a.every', Error: Unknown property 'foo'; \
                     expected one or more of {units}"
                ),
            ),
            (
                "a: { every: 5 }",
                "Failed to read duration from config, TypeError: Invalid type in config for key 'a.every' in \
                 'app-config.yaml', got number, wanted object"
                    .to_owned(),
            ),
        ] {
            assert_eq!(read(yaml), Err(message), "{yaml}");
        }
        for text in [
            "1h30m", "1mo", "P1H", "PT1D", "P1D1D", "p1d", "-P1D", "1e3s", "hours", "P1", "é", "P1é",
        ] {
            assert!(read(&format!("a: {{ every: {text} }}")).is_err(), "{text}");
        }
    }
}
