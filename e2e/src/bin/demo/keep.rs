//! After the story: the service stays, and shows what to try on it.

use std::{path::Path, time::Duration};

use kube_authn_e2e::{TestCluster, write_private};

use crate::{
    Failure, login,
    person::Person,
    place::{OPENPORTAL, Place, RANCHER_DESKTOP},
    signals::Signals,
    story,
    telling::Telling,
};

/// Logs alice and bob in again, shows commands, and waits to be told to end.
pub(crate) async fn serving(
    cluster: &TestCluster,
    place: &mut Place,
    signals: &mut Signals,
    telling: &mut Telling,
) -> Result<(), Failure> {
    telling.sum_up();
    let commands = signals.or(commands(cluster, place, telling)).await?;
    telling.plain(commands);
    wait(place, signals, telling).await
}

/// Until Ctrl-C, which is how this ends well.
pub(crate) async fn wait(place: &mut Place, signals: &mut Signals, telling: &Telling) -> Result<(), Failure> {
    tokio::select! {
        () = signals.next() => {
            telling.plain("\nstopping");
            Ok(())
        }
        ended = place.served.ended() => Err(format!("kube-authn serve ended by itself ({})", ended?).into()),
    }
}

async fn commands(cluster: &TestCluster, place: &Place, telling: &Telling) -> Result<String, Failure> {
    telling.plain("\nalice and bob log in again, with tokens for half a day");
    for issuer in [cluster.issuer_a(), cluster.issuer_b()] {
        issuer.set_id_token_lifetime(HALF_A_DAY).await?;
    }
    let alice = Person::arrive(cluster, place, "alice").await?;
    let bob = Person::arrive(cluster, place, "bob").await?;
    story::log_in(cluster, &bob, telling).await?;
    let tokens = story::log_in(cluster, &alice, telling).await?;
    let file = |name: &str| place.path().join(name);
    let mut again = login::body(&tokens)?;
    // The logout ends it at the issuer.
    again["refresh_token"].take();
    write_private(&file("alice.tokens.json"), &again.to_string())?;
    alice.caller.write_header(&file("alice.header"))?;

    let kubectl = |person: &Person, arguments: &str| {
        format!(
            "{} --kubeconfig {} {arguments}",
            quoted(person.kubectl()),
            quoted(&person.kubeconfig)
        )
    };
    let curl = format!(
        "curl --cacert {} -H @{}",
        quoted(&place.ca_file()),
        quoted(&file("alice.header"))
    );
    let url = place.served.url();
    let tokens_url = format!("{url}/api/cluster-auth/tokens");
    let tokens_file = quoted(&file("alice.tokens.json"));
    Ok([
        format!("\nServing at {url}; its files are in {}", place.path().display()),
        "\nkubectl as alice, and as bob:".to_owned(),
        kubectl(&alice, "auth whoami"),
        kubectl(&alice, "get pods -n team-a"),
        kubectl(&alice, "get pods -n team-a-dev -w"),
        kubectl(&alice, "logs -n team-a-dev made-by-alice"),
        kubectl(&bob, "get pods -n team-a"),
        "\nThe API as alice (the file holds her Authorization header):".to_owned(),
        format!("{curl} {url}/api/cluster-auth/status"),
        format!("{curl} {url}/api/kubernetes/clusters"),
        format!("{curl} {url}/api/kubernetes/clusters/{OPENPORTAL}/proxy/api/v1/namespaces/team-a/pods"),
        format!("{curl} {url}/api/kubernetes/clusters/{RANCHER_DESKTOP}/proxy/api/v1/namespaces/team-a/pods"),
        "\nLog alice out, and in again:".to_owned(),
        format!("{curl} -X DELETE {tokens_url}"),
        format!("{curl} -H 'Content-Type: application/json' -d @{tokens_file} {tokens_url}"),
        "\nFor everybody:".to_owned(),
        format!("curl --cacert {} {url}/readyz", quoted(&place.ca_file())),
        format!("curl --cacert {} {url}/metrics", quoted(&place.ca_file())),
        format!("\nThe service's log: {}", place.served.log().display()),
        format!("The API server's audit log: {}", cluster.audit_log().display()),
        "Ctrl-C ends everything and removes its files.".to_owned(),
    ]
    .join("\n"))
}

/// As a shell takes it for one word.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    match text.bytes().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Longer than anybody tries things.
const HALF_A_DAY: Duration = Duration::from_secs(12 * 3600);
