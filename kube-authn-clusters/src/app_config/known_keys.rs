//! Blocks in which an unknown key is a mistake.

use kube_authn_core::Problem;

use super::ConfigValue;

impl ConfigValue<'_> {
    /// A problem for each key of this object that is not one of these, with the nearest of them.
    pub(crate) fn unknown_keys(&self, known: &[&str]) -> Vec<Problem> {
        self.keys()
            .filter(|key| !known.contains(key))
            .map(|key| {
                let value = self.child(key);
                let hint = match nearest(key, known) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("known keys are {}", known.join(", ")),
                };
                value.problem(format!("unknown key '{}': {hint}", value.key()))
            })
            .collect()
    }
}

/// The known key that a mistyped one is closest to, if one is close: at most a third of its letters differ.
fn nearest<'k>(typed: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|key| {
            (
                distance(&typed.to_ascii_lowercase(), &key.to_ascii_lowercase()),
                *key,
            )
        })
        .min()
        .filter(|(distance, key)| distance * 3 <= key.len())
        .map(|(_, key)| key)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let cell = (diagonal + usize::from(x != y))
                .min(left + 1)
                .min(above.saturating_add(1));
            diagonal = above;
            if let Some(slot) = row.get_mut(j) {
                *slot = left;
            }
            left = cell;
        }
        if let Some(last) = row.last_mut() {
            *last = left;
        }
    }
    row.last().copied().unwrap_or_default()
}
