use std::time::Duration;

use super::*;
use crate::Environment;

fn read(yaml: &str) -> (Logins, Findings) {
    let config = AppConfig::from_texts(&[("app-config.yaml", yaml)], &Environment::of::<&str, &str>([]))
        .expect("a configuration");
    let mut findings = Findings::default();
    let logins = Logins::read(&config, &mut findings);
    (logins, findings)
}

fn told(yaml: &str) -> Vec<(String, String)> {
    let problems = read(yaml).1.problems;
    problems
        .into_iter()
        .map(|problem| (problem.key, problem.message))
        .collect()
}

#[test]
fn every_key_reaches_the_login() {
    let (logins, findings) = read(
        "clusterAuth: { issuer: 'https://i/', clientId: kubernetes, verifySignature: true, \
         tokenForCluster: access_token, identityBinding: [subject, email, 'claim:upn', first-use], \
         exposeToken: service, guests: ['user:Default/Nobody'], \
         lifetimes: { assume: 1h, max: { hours: 2 }, streamGrace: PT5S }, \
         clientSecret: s1, clusters: [{ name: other, issuer: 'https://j/', clientId: c2, clientSecret: s2 }, \
         { name: same, clientId: c3 }, { name: narrow, audience: narrow-cluster }] }",
    );

    assert_eq!((findings.problems, findings.warnings), (vec![], vec![]));
    let login = logins.for_cluster("any").expect("a login");
    let mut expected = LoginConfig::new(Issuer::new("https://i/").expect("an issuer"))
        .with_client_id(ClientId::new("kubernetes").expect("an id"));
    expected.token_for_cluster = TokenForCluster::AccessToken;
    expected.binding = IdentityBinding::Rules(vec![
        BindingRule::Subject,
        BindingRule::Email,
        BindingRule::Claim("upn".to_owned()),
        BindingRule::FirstUse,
    ]);
    expected.guests = vec![EntityRef::parse("user:default/nobody").expect("a reference")];
    expected.lifetimes.assume = Some(Duration::from_secs(3_600));
    expected.lifetimes.max = Some(Duration::from_secs(7_200));
    expected.lifetimes.stream_grace = Duration::from_secs(5);
    expected.client_secret = Some(Secret::new("s1"));
    assert_eq!(login, &expected);
    let narrow = logins.for_cluster("narrow").expect("a login");
    expected.audience = Some(ClientId::new("narrow-cluster").expect("an audience"));
    assert_eq!(narrow, &expected);
    assert!(narrow.shares_logins_with(login));
    assert_eq!(logins.expose_token(), ExposeToken::Service);
    let other = logins.for_cluster("other").expect("a login");
    assert_eq!(
        (
            other.issuer.as_str(),
            other.client_id.as_ref().map(ClientId::as_str),
            &other.binding
        ),
        ("https://j/", Some("c2"), &expected.binding)
    );
    let same = logins.for_cluster("same").expect("a login");
    assert_eq!(
        (
            same.issuer.as_str(),
            same.client_id.as_ref().map(ClientId::as_str)
        ),
        ("https://i/", Some("c3"))
    );
}

#[test]
fn defaults_bind_verify_and_know_the_guests() {
    let (logins, _) =
        read("clusterAuth: { issuer: 'https://i/', clientId: c, lifetimes: { assume: null, max: null } }");

    let login = logins.default_login().expect("a login");
    assert!(login.verify_signature);
    assert_eq!(
        (&login.binding, login.lifetimes, login.token_for_cluster),
        (
            &IdentityBinding::Auto,
            Lifetimes::default(),
            TokenForCluster::IdToken
        )
    );
    let guests: Vec<_> = login.guests.iter().map(EntityRef::as_str).collect();
    assert_eq!(guests, ["user:default/guest", "user:development/guest"]);
    assert_eq!(logins.expose_token(), ExposeToken::Never);
    assert!(read("{}").0.for_cluster("a").is_none() && read("{}").1.problems.is_empty());
}

#[test]
fn verification_is_never_off_by_one_switch_alone() {
    for (keys, verified, warning) in [
        (
            "verifySignature: false",
            true,
            "signatures are verified nevertheless",
        ),
        ("dangerouslySkipVerification: true", true, "has no effect"),
        (
            "verifySignature: false, dangerouslySkipVerification: true",
            false,
            "are not verified",
        ),
    ] {
        let (logins, findings) = read(&format!(
            "clusterAuth: {{ issuer: 'https://i/', clientId: c, {keys} }}"
        ));

        assert_eq!(
            logins.default_login().map(|login| login.verify_signature),
            Some(verified)
        );
        assert_eq!(findings.warnings.len(), 1);
        assert!(findings.warnings[0].contains(warning), "{:?}", findings.warnings);
    }
}

#[test]
fn absent_client_and_absent_binding_are_warned_of() {
    let (_, findings) = read("clusterAuth: { issuer: 'https://i/', identityBinding: [none] }");

    assert_eq!(findings.warnings.len(), 2);
    assert!(
        findings.warnings[1].contains("clientId"),
        "{:?}",
        findings.warnings
    );
}

#[test]
fn mistakes_are_all_told_with_their_keys() {
    let told = told(
        "clusterAuth: { isuer: x, issuer: 'http://i/', tokenForCluster: jwt, identityBinding: email, exposeToken: all, \
         guests: [guest, a/b], lifetimes: { asume: 1h, assume: 0s, max: 5 }, clusters: [{ name: a, clientSecret: 7, foo: 1 }, 7] }",
    );

    let keys: Vec<_> = told.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "clusterAuth.isuer",
            "clusterAuth.issuer",
            "clusterAuth.tokenForCluster",
            "clusterAuth.identityBinding",
            "clusterAuth.lifetimes.asume",
            "clusterAuth.lifetimes.assume",
            "clusterAuth.lifetimes.max",
            "clusterAuth.guests[0]",
            "clusterAuth.guests[1]",
            "clusterAuth.clusters[0].foo",
            "clusterAuth.clusters[0].clientSecret",
            "clusterAuth.clusters[1]",
            "clusterAuth.exposeToken",
        ]
    );
    assert_eq!(
        told[0].1,
        "unknown key 'clusterAuth.isuer': did you mean 'issuer'?"
    );
}

#[test]
fn cluster_of_its_own_needs_an_issuer_from_somewhere() {
    assert_eq!(
        told("clusterAuth: { clusters: [{ name: a }] }"),
        [(
            "clusterAuth.clusters[0].issuer".to_owned(),
            "Missing required config value at 'clusterAuth.clusters[0].issuer' in 'app-config.yaml'"
                .to_owned()
        )]
    );
}

#[test]
fn setting_that_vanished_never_loosens_a_login() {
    for (keys, key) in [
        ("clientId: '${GONE}'", "clusterAuth.clientId"),
        ("caFile: '${GONE}'", "clusterAuth.caFile"),
        ("guests: ['${GONE}']", "clusterAuth.guests"),
        ("identityBinding: '${GONE}'", "clusterAuth.identityBinding"),
    ] {
        let told = told(&format!("clusterAuth: {{ issuer: 'https://i/', {keys} }}"));

        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, key);
        assert!(told[0].1.contains("environment variable GONE is not set"));
    }
}

#[test]
fn secret_of_one_client_is_never_told_to_another_issuer_or_as_another_client() {
    let (logins, findings) = read(
        "clusterAuth: { issuer: 'https://i/', clientId: c, clientSecret: s, clusters: [ \
         { name: elsewhere, issuer: 'https://j/' }, { name: other, clientId: d }, \
         { name: own, clientId: e, clientSecret: t }, { name: same, clientId: c }] }",
    );

    assert_eq!(findings.problems, vec![]);
    let secret = |name| logins.for_cluster(name).expect("a login").client_secret.clone();
    assert_eq!((secret("elsewhere"), secret("other")), (None, None));
    assert_eq!(
        (secret("own"), secret("same")),
        (Some(Secret::new("t")), Some(Secret::new("s")))
    );
    assert_eq!(
        told("clusterAuth: { issuer: 'https://i/', clientSecret: s }")[0].0,
        "clusterAuth.clientSecret"
    );
}

#[test]
fn clusters_that_share_logins_never_differ_in_secret_or_ca() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate");
    std::fs::write(&file, ca.cert.pem()).expect("written");
    let of_clusters = |clusters: &str| {
        told(&format!(
            "clusterAuth: {{ issuer: 'https://i/', clientId: c, clientSecret: s, clusters: [{clusters}] }}"
        ))
    };
    let ca = format!("caFile: '{}'", file.display());
    for (clusters, key, name) in [
        (
            "{ name: a, clientSecret: t }".to_owned(),
            "clusters[0].clientSecret",
            "a",
        ),
        (
            "{ name: a, clientId: d }, { name: b, clientId: d, clientSecret: t }".to_owned(),
            "clusters[1].clientSecret",
            "b",
        ),
        (format!("{{ name: a, {ca} }}"), "clusters[0].caFile", "a"),
        (
            format!("{{ name: a, issuer: 'https://j/', {ca} }}, {{ name: b, issuer: 'https://j/' }}"),
            "clusters[1].caFile",
            "b",
        ),
    ] {
        let told = of_clusters(&clusters);

        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, format!("clusterAuth.{key}"));
        assert!(told[0].1.starts_with(&format!("cluster '{name}' ")), "{told:?}");
    }
    let alike = format!(
        "{{ name: a, clientSecret: s }}, {{ name: b, issuer: 'https://j/', {ca} }}, {{ name: c, clientId: d, {ca} }}"
    );
    assert_eq!(of_clusters(&alike), vec![]);
}

#[test]
fn ca_of_one_issuer_never_vouches_for_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a certificate");
    std::fs::write(&file, ca.cert.pem()).expect("written");

    let (logins, findings) = read(&format!(
        "clusterAuth: {{ issuer: 'https://i/', clientId: k, caFile: '{}', \
         clusters: [{{ name: other, issuer: 'https://j/' }}, {{ name: same, issuer: 'https://i/' }}] }}",
        file.display()
    ));

    assert_eq!(findings.problems, vec![]);
    let ca = |name| logins.for_cluster(name).expect("a login").ca.clone();
    assert_eq!(ca("other"), CaBundle::System);
    assert_eq!((ca("same"), ca("any")), (CaBundle::File(file.into()), ca("same")));
}
