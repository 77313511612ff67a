//! What is left behind: names in the audit log, and no token in any file.

use kube_authn_core::Secret;
use kube_authn_e2e::{TestCluster, fixtures};
use serde_json::Value;

use crate::{Failure, place::Place, telling::Telling};

pub(super) async fn audit_log_names_people(
    cluster: &TestCluster,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.step("The API server's own audit log names people");
    let robot = format!(
        "system:serviceaccount:{}:{}",
        fixtures::PORTAL_SERVICE_ACCOUNT.0,
        fixtures::PORTAL_SERVICE_ACCOUNT.1
    );
    for (name, verb, code) in [
        ("alice@example.com", "list", 200),
        ("alice@example.com", "create", 201),
        ("bob@example.com", "list", 403),
        (robot.as_str(), "list", 200),
    ] {
        let wanted = |event: &Value| {
            event["user"]["username"] == name
                && event["objectRef"]["resource"] == "pods"
                && event["verb"] == verb
                && event["responseStatus"]["code"] == code
                && event["stage"] == "ResponseComplete"
        };
        let event = cluster.audit_event(wanted).await;
        if let Ok(event) = &event {
            telling.line(format!(
                "{} {} {} {}",
                event["user"]["username"], verb, event["requestURI"], code
            ));
        }
        telling.holds(format!("{name} is named for {verb} ({code})"), event.is_ok());
    }
    Ok(())
}

pub(super) fn no_token_can_be_read(
    place: &Place,
    secrets: &[Secret],
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.step(
        "The SQLite file holds three logins, the service's log tells of them, and no token can be read",
    );
    telling.line(place.path().join("kube-authn.db").display());
    telling.line(place.served.log().display());
    let log = std::fs::read_to_string(place.served.log())?;
    let stored = log
        .lines()
        .filter(|line| line.contains("event=\"login_stored\""))
        .count();
    telling.line(format!(
        "{} lines, {stored} of them login_stored",
        log.lines().count()
    ));
    telling.holds("the log tells of three logins", stored == 3);
    let showing = place.files_that_show(secrets)?;
    telling.holds(
        format!(
            "none of {} tokens, nor any part of one, is in them",
            secrets.len()
        ),
        showing.is_empty(),
    );
    Ok(())
}
