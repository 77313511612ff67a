//! Cron patterns as the npm package `cron` reads them, which Backstage uses; the calendar is croner's.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    sync::Arc,
};

use croner::{Cron, parser::CronParser, parser::Seconds};
use jiff::{
    SignedDuration, Timestamp, ToSpan,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};

/// A cron pattern in a time zone. Five fields, or six with seconds first; day of month and day of week are alternatives
/// where both are restricted.
#[derive(Clone)]
pub struct CronPattern {
    text: String,
    calendar: Arc<Cron>,
    zone: TimeZone,
}

impl CronPattern {
    /// Reads a pattern, `0 6 * * mon-fri` or `@daily`, in UTC.
    ///
    /// # Errors
    /// The peer's text for what it refuses; croner's `L`, `W`, `#` and `?` are refused too.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let pattern = match PRESETS.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)) {
            Some((_, pattern)) => pattern,
            None => text,
        };
        let fields: Vec<&str> = pattern.split_whitespace().collect();
        let skipped = match fields.len() {
            5 => 1,
            6 => 0,
            ..5 => return Err("Too few fields".to_owned()),
            _ => return Err("Too many fields".to_owned()),
        };
        let mut plain = String::new();
        if skipped == 1 {
            plain.push('0');
        }
        for (unit, field) in UNITS.iter().skip(skipped).zip(fields) {
            let _ = write!(plain, " {}", unit.plain(field)?);
        }
        let parser = CronParser::builder().seconds(Seconds::Required).build();
        let calendar = parser.parse(&plain).map_err(|error| error.to_string())?;
        let pattern = Self {
            text: text.to_owned(),
            calendar: Arc::new(calendar),
            zone: TimeZone::UTC,
        };
        match pattern.next_after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(pattern),
            None => Err(format!("'{text}' names no time within eight years")),
        }
    }

    /// Reads the pattern in another time zone, by its IANA name.
    ///
    /// # Errors
    /// If there is no such zone.
    pub fn in_zone(self, name: &str) -> Result<Self, String> {
        let zone = TimeZone::get(name)
            .map_err(|_| format!("there is no time zone '{name}': give an IANA name, as Europe/Berlin"))?;
        Ok(Self { zone, ..self })
    }

    /// The IANA name of the time zone.
    pub fn zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// The first instant after this one that the pattern names. A time that the clocks skip counts as the instant of
    /// their change, one that they repeat as its first passing. `None` if there is none within eight years.
    pub fn next_after(&self, instant: Timestamp) -> Option<Timestamp> {
        let mut civil = self.zone.to_datetime(instant);
        let end = civil.checked_add(SEARCH_YEARS.years()).ok()?;
        loop {
            civil = self.calendar.find_next_occurrence(&civil, false).ok()?;
            if civil > end {
                return None;
            }
            let next = self.instant(civil)?;
            if next > instant {
                return Some(next);
            }
        }
    }

    fn instant(&self, civil: DateTime) -> Option<Timestamp> {
        let ambiguous = self.zone.to_ambiguous_timestamp(civil);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => ambiguous.unambiguous().ok(),
            AmbiguousOffset::Fold { .. } => ambiguous.earlier().ok(),
            // The change lies between what the time would be by either offset.
            AmbiguousOffset::Gap { .. } => {
                let before = ambiguous
                    .earlier()
                    .ok()?
                    .checked_sub(SignedDuration::from_secs(1))
                    .ok()?;
                self.zone
                    .following(before)
                    .next()
                    .map(|change| change.timestamp())
            }
        }
    }
}

impl fmt::Display for CronPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CronPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CronPattern")
            .field(&self.text)
            .field(&self.zone())
            .finish()
    }
}

impl PartialEq for CronPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.zone() == other.zone()
    }
}

/// One field of a pattern.
struct Unit {
    name: &'static str,
    low: u32,
    high: u32,
    /// Three letters each, the first one for `first_name`.
    names: &'static [&'static str],
    first_name: u32,
}

impl Unit {
    /// The field as a list of numbers, or `*` if it names them all: steps and names are gone, and whether a day is
    /// restricted can be told by the star alone.
    fn plain(&self, field: &str) -> Result<String, String> {
        let mut values = BTreeSet::new();
        for range in self.numbers(field)?.split(',') {
            self.range(range, field, &mut values)?;
        }
        if self.high == SUNDAY_AGAIN && values.remove(&SUNDAY_AGAIN) {
            values.insert(0);
        }
        let all = (self.low..=self.high).filter(|value| *value != SUNDAY_AGAIN || self.high != SUNDAY_AGAIN);
        if values.iter().copied().eq(all) {
            return Ok("*".to_owned());
        }
        let values: Vec<String> = values.iter().map(u32::to_string).collect();
        Ok(values.join(","))
    }

    /// The field with numbers for names, and a range for a star.
    fn numbers(&self, field: &str) -> Result<String, String> {
        let mut out = String::with_capacity(field.len());
        let mut rest = field;
        while let Some(first) = rest.chars().next() {
            let end = rest
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            if !word.is_empty() {
                let index = self.names.iter().position(|name| word.eq_ignore_ascii_case(name));
                let index = index.ok_or_else(|| format!("Unknown alias: {}", word.to_ascii_lowercase()))?;
                let _ = write!(out, "{}", self.first_name + index as u32);
                rest = after;
                continue;
            }
            match first {
                '*' if out.is_empty() || out.ends_with(',') => {
                    let _ = write!(out, "{}-{}", self.low, self.high);
                }
                '*' => return Err(format!("Field ({field}) has an invalid wildcard expression")),
                other => out.push(other),
            }
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        }
        Ok(out)
    }

    /// `n`, `n-m`, `n-m/s`; `n/s` runs to the end.
    fn range(&self, range: &str, field: &str, values: &mut BTreeSet<u32>) -> Result<(), String> {
        let unreadable = || format!("Field ({}) cannot be parsed", self.name);
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u32>().map_err(|_| unreadable()),
            false => Err(unreadable()),
        };
        let (bounds, step) = match range.split_once('/') {
            Some((bounds, step)) => (bounds, Some(number(step)?)),
            None => (range, None),
        };
        let (low, high) = match bounds.split_once('-') {
            Some((low, high)) => (number(low)?, Some(number(high)?)),
            None => (number(bounds)?, None),
        };
        if step == Some(0) {
            return Err(format!("Field ({}) has a step of zero", self.name));
        }
        if high.is_some_and(|high| low > high) {
            return Err(format!("Field ({}) has an invalid range", self.name));
        }
        if low < self.low || high.unwrap_or(low) > self.high {
            return Err(format!("Field value ({field}) is out of range"));
        }
        let high = high.unwrap_or(if step.is_some() { self.high } else { low });
        let step = usize::try_from(step.unwrap_or(1)).map_err(|_| unreadable())?;
        values.extend((low..=high).step_by(step));
        Ok(())
    }
}

/// 0 and 7 are the same day.
const SUNDAY_AGAIN: u32 = 7;

/// The 29th of February comes within eight years, a turn of a century included.
const SEARCH_YEARS: i64 = 8;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const UNITS: [Unit; 6] = [
    unit("second", 0, 59, &[], 0),
    unit("minute", 0, 59, &[], 0),
    unit("hour", 0, 23, &[], 0),
    unit("dayOfMonth", 1, 31, &[], 0),
    unit("month", 1, 12, &MONTHS, 1),
    unit("dayOfWeek", 0, SUNDAY_AGAIN, &DAYS, 0),
];

const fn unit(
    name: &'static str,
    low: u32,
    high: u32,
    names: &'static [&'static str],
    first_name: u32,
) -> Unit {
    Unit {
        name,
        low,
        high,
        names,
        first_name,
    }
}

const PRESETS: [(&str, &str); 9] = [
    ("@yearly", "0 0 0 1 1 *"),
    ("@monthly", "0 0 0 1 * *"),
    ("@weekly", "0 0 0 * * 0"),
    ("@daily", "0 0 0 * * *"),
    ("@hourly", "0 0 * * * *"),
    ("@minutely", "0 * * * * *"),
    ("@secondly", "* * * * * *"),
    ("@weekdays", "0 0 0 * * 1-5"),
    ("@weekends", "0 0 0 * * 0,6"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn next(pattern: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let pattern = CronPattern::parse(pattern)
            .expect(pattern)
            .in_zone(zone)
            .expect(zone);
        let mut instant: Timestamp = after.parse().expect("an instant");
        let mut found = Vec::new();
        for _ in 0..count {
            instant = pattern.next_after(instant).expect("a next time");
            found.push(instant.to_string());
        }
        found
    }

    #[test]
    fn next_times_are_those_of_the_peer() {
        for (pattern, after, expected) in [
            ("*/15 * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:15:00Z"),
            ("* * * * * *", "2026-01-01T00:00:00.5Z", "2026-01-01T00:00:01Z"),
            ("50/5 * * * *", "2026-01-01T00:51:00Z", "2026-01-01T00:55:00Z"),
            ("0 6 * * mon-FRI", "2026-11-21T00:00:00Z", "2026-11-23T06:00:00Z"),
            ("0 0 * * 7", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
            // Either day, since both are restricted; a list of all days restricts nothing.
            ("0 0 13 * 5", "2026-11-14T00:00:00Z", "2026-11-20T00:00:00Z"),
            ("0 0 13 * 0-6", "2026-11-14T00:00:00Z", "2026-12-13T00:00:00Z"),
            ("0 0 */2 * 5", "2026-11-19T12:00:00Z", "2026-11-20T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@weekly", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"),
        ] {
            assert_eq!(next(pattern, "UTC", after, 1), [expected], "{pattern}");
        }
    }

    #[test]
    fn skipped_time_fires_at_the_change_and_repeated_one_once() {
        // Berlin: 2026-03-29 02:00 -> 03:00, 2026-10-25 03:00 -> 02:00.
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
    }

    #[test]
    fn what_the_peer_refuses_is_refused() {
        for (pattern, text) in [
            ("* * * *", "Too few fields"),
            ("* * * * * * *", "Too many fields"),
            ("@annually", "Too few fields"),
            ("60 * * * *", "Field value (60) is out of range"),
            ("* * 0 * *", "Field value (0) is out of range"),
            ("*/0 * * * *", "Field (minute) has a step of zero"),
            ("5-1 * * * *", "Field (minute) has an invalid range"),
            ("* * L * *", "Unknown alias: l"),
            ("* * ? * *", "Field (dayOfMonth) cannot be parsed"),
            ("* * * * 5#2", "Field (dayOfWeek) cannot be parsed"),
            ("* * * january *", "Unknown alias: january"),
            ("1* * * * *", "Field (1*) has an invalid wildcard expression"),
            ("0 0 30 2 *", "'0 0 30 2 *' names no time within eight years"),
            ("1,, * * * *", "Field (minute) cannot be parsed"),
        ] {
            assert_eq!(
                CronPattern::parse(pattern).err().as_deref(),
                Some(text),
                "{pattern}"
            );
        }
    }
}
