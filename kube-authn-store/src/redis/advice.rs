//! Warns of a Redis that forgets.

use ::redis::Cmd;

use super::{connection::Request, error::Failure, link::Link};

/// Says what of Redis's configuration may lose logins, as far as our user may see it.
pub(super) async fn warn(link: &Link) {
    let store = link.place();
    match settings(link).await {
        Ok(settings) => {
            for problem in problems(&settings) {
                tracing::warn!(%store, "{problem}");
            }
        }
        Err(error) => tracing::warn!(
            %store,
            error = &error as &dyn std::error::Error,
            "can't see whether Redis keeps logins: our user may neither CONFIG GET nor INFO; it needs appendonly yes, \
             appendfsync always and maxmemory-policy noeviction",
        ),
    }
}

/// Names and values of `CONFIG GET`; where that is forbidden, what `INFO` says of the same.
async fn settings(link: &Link) -> Result<Vec<(String, String)>, Failure> {
    let mut config = Cmd::new();
    config.arg("CONFIG").arg("GET");
    config
        .arg("appendonly")
        .arg("appendfsync")
        .arg("maxmemory-policy");
    if let Ok(settings) = link.asked(Request::Read(&config)).await {
        return Ok(settings);
    }
    let mut info = Cmd::new();
    info.arg("INFO").arg("persistence").arg("memory");
    let text: String = link.asked(Request::Read(&info)).await?;
    let settings = text.lines().filter_map(|line| line.split_once(':'));
    Ok(settings
        .filter_map(|(name, value)| match (name, value) {
            ("aof_enabled", "0") => Some(("appendonly", "no")),
            ("maxmemory_policy", policy) => Some(("maxmemory-policy", policy)),
            _ => None,
        })
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

fn problems(settings: &[(String, String)]) -> Vec<String> {
    let value = |name: &str| {
        let setting = settings.iter().find(|(key, _)| key == name);
        setting.map(|(_, value)| value.as_str())
    };
    let mut problems = Vec::new();
    if value("appendonly").is_some_and(|value| value != "yes") {
        problems.push(
            "Redis keeps logins in memory, and forgets at a restart what it has not saved yet, rotated refresh tokens \
             included: set appendonly yes and appendfsync always"
                .to_owned(),
        );
    } else if let Some(sync) = value("appendfsync").filter(|sync| *sync != "always") {
        problems.push(format!(
            "Redis acknowledges logins before they are on its disk (appendfsync {sync}), and a power cut loses the last \
             ones: set appendfsync always",
        ));
    }
    if let Some(policy) = value("maxmemory-policy").filter(|policy| *policy != "noeviction") {
        problems.push(format!(
            "Redis throws keys away when its memory is full (maxmemory-policy {policy}): set maxmemory-policy noeviction",
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(settings: &[(&str, &str)]) -> Vec<String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        problems(&settings.iter().map(owned).collect::<Vec<_>>())
    }

    #[test]
    fn redis_that_keeps_everything_is_not_warned_of() {
        let durable = [
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("maxmemory-policy", "noeviction"),
        ];

        assert_eq!(problems_of(&durable), [""; 0]);
        assert_eq!(problems_of(&[]), [""; 0]);
    }

    #[test]
    fn each_setting_that_may_lose_logins_is_named_with_what_to_set() {
        let forgetful = [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")];
        let in_a_hurry = [("appendonly", "yes"), ("appendfsync", "everysec")];

        let [memory, eviction] = &problems_of(&forgetful)[..] else {
            panic!("two problems")
        };
        assert!(memory.contains("appendonly yes"), "{memory}");
        assert!(
            eviction.contains("allkeys-lru") && eviction.contains("noeviction"),
            "{eviction}"
        );
        let [sync] = &problems_of(&in_a_hurry)[..] else {
            panic!("one problem")
        };
        assert!(
            sync.contains("everysec") && sync.contains("appendfsync always"),
            "{sync}"
        );
    }
}
