use kube_authn_core::CaBundle;

use super::*;
use crate::Environment;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn read(yaml: &str) -> (KubeAuthnConfig, Findings) {
    let environment = Environment::of([("KEY", KEY)]);
    let config = AppConfig::from_texts(&[("app-config.yaml", yaml)], &environment).expect("a configuration");
    let mut findings = Findings::default();
    let read = KubeAuthnConfig::read(&config, &mut findings);
    (read, findings)
}

fn told(yaml: &str) -> Vec<(String, String)> {
    let problems = read(yaml).1.problems;
    problems
        .into_iter()
        .map(|problem| (problem.key, problem.message))
        .collect()
}

#[test]
fn callers_of_all_types_are_read_in_order() {
    let (config, findings) = read(
        "kubeAuthn: { callers: [{ type: backstage, baseUrl: 'https://p/api/auth/' }, \
         { type: oidc, issuer: 'https://i/', audience: portal, principal: { claim: preferred_username } }, \
         { type: header, trustedPeers: [127.0.0.1/32, '::1'], user: X-Forwarded-User }] }",
    );

    assert_eq!(findings.problems, []);
    let [
        CallerConfig::Backstage(portal),
        CallerConfig::Oidc(oidc),
        CallerConfig::Header(header),
    ] = &config.callers[..]
    else {
        panic!("{:?}", config.callers)
    };
    assert_eq!(
        (portal.base_url.as_str(), &portal.ca),
        ("https://p/api/auth", &CaBundle::System)
    );
    assert_eq!(
        (oidc.issuer.as_str(), oidc.audience.as_str(), &oidc.ca),
        ("https://i/", "portal", &CaBundle::System)
    );
    let principal = oidc.principal.as_ref().expect("a mapping");
    assert_eq!(
        (
            principal.claim.as_str(),
            principal.kind.as_str(),
            principal.namespace.as_str()
        ),
        ("preferred_username", "user", "default")
    );
    assert_eq!(
        (header.user.as_str(), header.trusted_peers.len()),
        ("x-forwarded-user", 2)
    );
}

#[test]
fn portal_with_a_ca_of_its_own_is_trusted_by_that_alone_and_a_ca_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, bad) = (folder.path().join("ca.pem"), folder.path().join("bad.pem"));
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .expect("a certificate");
    std::fs::write(&good, certificate.pem()).expect("written");
    std::fs::write(&bad, "no certificate").expect("written");
    let of = |ca: &std::path::Path| {
        format!(
            "kubeAuthn: {{ callers: [{{ type: backstage, baseUrl: 'https://p/api/auth', caFile: '{}' }}] }}",
            ca.display()
        )
    };

    let (config, findings) = read(&of(&good));

    assert_eq!(findings.problems, []);
    let [CallerConfig::Backstage(portal)] = &config.callers[..] else {
        panic!("{:?}", config.callers)
    };
    assert_eq!(portal.ca, CaBundle::File(good.into()));
    for ca in [bad, folder.path().join("gone.pem")] {
        let told = told(&of(&ca));
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, "kubeAuthn.callers[0].caFile");
    }
}

#[test]
fn without_callers_the_portal_of_the_backend_is_one() {
    let (config, _) = read("backend: { baseUrl: 'http://localhost:7007/' }");

    let [CallerConfig::Backstage(portal)] = &config.callers[..] else {
        panic!("{:?}", config.callers)
    };
    assert_eq!(portal.base_url.as_str(), "http://localhost:7007/api/auth");
    assert_eq!(read("{}").0, KubeAuthnConfig::default());
    assert!(
        read("{ kubeAuthn: { callers: [] }, backend: { baseUrl: 'http://a' } }")
            .0
            .callers
            .is_empty()
    );
}

#[test]
fn store_and_keys_are_read() {
    let (config, findings) = read(
        "kubeAuthn: { store: { type: sqlite, url: 'sqlite://x.db' }, encryption: { keys: [{ id: k1, key: '${KEY}' }] } }",
    );

    assert_eq!(findings.problems, []);
    assert_eq!(
        config.store,
        Some(StoreConfig::Sqlite {
            url: "sqlite://x.db".to_owned()
        })
    );
    let [key] = &config.encryption_keys[..] else {
        panic!("one key")
    };
    assert_eq!(
        (key.id.as_str(), key.key.expose()),
        ("k1", &(0..32).collect::<Vec<u8>>()[..])
    );
    let (config, findings) =
        read("kubeAuthn: { store: { type: postgres, url: 'postgres://portal:canary@db/portal' } }");
    assert_eq!(findings.problems, []);
    let Some(StoreConfig::Postgres { url }) = &config.store else {
        panic!("a store")
    };
    assert_eq!(url.expose(), b"postgres://portal:canary@db/portal");
    assert!(!format!("{config:?}").contains("canary"));
    let (config, findings) = read("kubeAuthn: { store: { type: redis, url: 'rediss://portal:canary@db/' } }");
    assert_eq!(findings.problems, []);
    let Some(StoreConfig::Redis { url, ca }) = &config.store else {
        panic!("a store")
    };
    assert_eq!(
        (url.expose(), ca),
        (&b"rediss://portal:canary@db/"[..], &CaBundle::System)
    );
    assert!(!format!("{config:?}").contains("canary"));
    for (store, key) in [
        ("type: redis", "kubeAuthn.store.url"),
        ("type: redis, url: 7", "kubeAuthn.store.url"),
        (
            "type: redis, url: 'redis://h', caFile: nowhere.pem",
            "kubeAuthn.store.caFile",
        ),
        ("type: memory, caFile: ca.pem", "kubeAuthn.store.caFile"),
    ] {
        let (_, findings) = read(&format!("kubeAuthn: {{ store: {{ {store} }} }}"));
        let keys: Vec<_> = findings
            .problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(keys, [key], "{store}");
    }
    assert_eq!(
        read("kubeAuthn: { store: { type: memory } }").0.store,
        Some(StoreConfig::Memory)
    );
}

#[test]
fn store_without_type_or_url_is_the_file_that_the_documentation_names() {
    for store in ["{ type: sqlite }", "{}"] {
        let (config, findings) = read(&format!("kubeAuthn: {{ store: {store} }}"));

        assert_eq!(findings.problems, [], "{store}");
        let url = StoreConfig::DEFAULT_URL.to_owned();
        assert_eq!(config.store, Some(StoreConfig::Sqlite { url }), "{store}");
    }
    for url in ["''", "7", "'${NOT_SET}'"] {
        let (_, findings) = read(&format!("kubeAuthn: {{ store: {{ type: sqlite, url: {url} }} }}"));
        assert_eq!(findings.problems[0].key, "kubeAuthn.store.url", "{url}");
    }
}

#[test]
fn mistakes_are_all_told_with_their_keys() {
    let told = told(
        "kubeAuthn: { stor: 1, callers: [{ type: saml }, { type: oidc, audiense: x }, { type: backstage }, \
         { type: header, trustedPeers: [nobody], user: 'a b' }, { type: header, user: x }], \
         store: { type: mysql, url: 'mysql://user:canary@h' }, encryption: { keys: [{ id: 'a b', key: canary }] } }",
    );

    let keys: Vec<_> = told
        .iter()
        .map(|(key, _)| key.trim_start_matches("kubeAuthn."))
        .collect();
    assert_eq!(
        keys,
        [
            "stor",
            "callers[0].type",
            "callers[1].audiense",
            "callers[1].issuer",
            "callers[1].audience",
            "callers[2].baseUrl",
            "callers[3].user",
            "callers[3].trustedPeers[0]",
            "callers[4].trustedPeers",
            "store.type",
            "encryption.keys[0].id",
            "encryption.keys[0].key",
        ]
    );
    assert!(
        told.iter().all(|(_, message)| !message.contains("canary")),
        "{told:?}"
    );
}

#[test]
fn key_is_either_configured_or_lost() {
    let of = |lost: &str| {
        format!("kubeAuthn: {{ encryption: {{ keys: [{{ id: k2, key: '${{KEY}}' }}], lost: [{lost}] }} }}")
    };
    let (config, _) = read(&of("k1, k0"));
    let ids: Vec<_> = config.lost_keys.iter().map(KeyId::as_str).collect();
    assert_eq!(ids, ["k1", "k0"]);

    let told = told(&of("k1, k2"));

    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "kubeAuthn.encryption.lost[1]");
    assert!(told[0].1.starts_with("the key 'k2' is configured"), "{told:?}");
}

#[test]
fn bad_key_is_told_without_its_bytes() {
    for (keys, key, part) in [
        (
            "[{ id: a, key: Y2FuYXJ5 }]",
            "keys[0].key",
            "base64 of 6 bytes, expected 32",
        ),
        (
            "[{ id: a, key: 'canary!' }]",
            "keys[0].key",
            "not base64 of 32 bytes",
        ),
        (
            "[{ id: a, key: '${GONE}' }]",
            "keys[0].key",
            "environment variable GONE is not set",
        ),
        ("[{ id: a }]", "keys[0].key", "Missing required config value"),
        (
            "[{ id: a, key: '${KEY}' }, { id: a, key: '${KEY}' }]",
            "keys[1].id",
            "two keys have the id 'a'",
        ),
    ] {
        let told = told(&format!("kubeAuthn: {{ encryption: {{ keys: {keys} }} }}"));

        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, format!("kubeAuthn.encryption.{key}"));
        assert!(told[0].1.contains(part), "{told:?}");
        for secret in ["canary", "Y2FuYXJ5", KEY] {
            assert!(!told[0].1.contains(secret), "{told:?}");
        }
    }
    let (config, _) = read("kubeAuthn: { encryption: { keys: [{ id: a, key: '${KEY}' }] } }");
    assert!(!format!("{config:?}").contains("AAEC"));
}

#[test]
fn key_in_a_file_of_its_own_is_read_and_one_that_is_none_is_told_by_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, bad) = (folder.path().join("key"), folder.path().join("bad"));
    std::fs::write(&good, format!("{KEY}\n")).expect("written");
    std::fs::write(&bad, "canary").expect("written");
    let of = |entry: String| format!("kubeAuthn: {{ encryption: {{ keys: [{{ id: k1, {entry} }}] }} }}");

    let (config, findings) = read(&of(format!("keyFile: '{}'", good.display())));
    let bytes: Vec<u8> = (0..32).collect();
    assert_eq!(findings.problems, []);
    assert_eq!(config.encryption_keys[0].key, Secret::new(bytes));

    for (entry, part) in [
        (format!("keyFile: '{}'", bad.display()), "not base64 of 32 bytes"),
        (
            "keyFile: /nonexistent".to_owned(),
            "the key file /nonexistent cannot be read",
        ),
        (
            format!("key: '${{KEY}}', keyFile: '{}'", good.display()),
            "remove one of the two",
        ),
    ] {
        let told = told(&of(entry));
        assert_eq!(told[0].0, "kubeAuthn.encryption.keys[0].keyFile");
        assert!(
            told[0].1.contains(part) && !told[0].1.contains("canary"),
            "{told:?}"
        );
    }
}
