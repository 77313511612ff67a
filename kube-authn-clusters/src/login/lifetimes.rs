//! The block `clusterAuth.lifetimes`.

use kube_authn_core::Lifetimes;

use crate::{ConfigValue, findings::Findings, schedule::optional_duration};

pub(super) fn lifetimes(block: &ConfigValue<'_>, findings: &mut Findings) -> Lifetimes {
    let mut lifetimes = Lifetimes::default();
    if findings.keep(block.optional_object().map(|block| block.is_some())) != Some(true) {
        return lifetimes;
    }
    findings.extend(block.unknown_keys(&LIFETIME_KEYS));
    let mut positive = |key: &str| {
        let place = block.child(key);
        let duration = findings.keep(optional_duration(&place)).flatten()?;
        if duration.is_zero() {
            findings.push(place.problem("a lifetime must be longer than nothing"));
        }
        Some(duration)
    };
    lifetimes.assume = positive("assume");
    lifetimes.max = positive("max");
    if let Some(grace) = findings
        .keep(optional_duration(&block.child("streamGrace")))
        .flatten()
    {
        lifetimes.stream_grace = grace;
    }
    lifetimes
}

const LIFETIME_KEYS: [&str; 3] = ["assume", "max", "streamGrace"];
