//! The cluster that the pod runs in.

use kube_authn_core::CaBundle;

use super::*;

fn mount() -> Mount {
    let mount = Mount::with("mounted");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let ca = params.self_signed(&key).expect("a certificate").pem();
    fs::write(mount.path().join("ca.crt"), ca).expect("written");
    mount
}

fn env(host: &str, port: &str) -> impl Fn(&str) -> Option<String> {
    move |name| match name {
        "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
        "KUBERNETES_SERVICE_PORT" => Some(port.to_owned()),
        _ => None,
    }
}

/// The cluster of a portal that runs in the cluster it shows, as people write it.
fn home() -> ClusterDetails {
    ClusterDetails::builder("backstage", "http://kubernetes.default.svc")
        .auth_provider("serviceAccount")
        .skip_tls_verify(true)
        .build()
        .expect("a cluster")
}

#[test]
fn configured_url_and_skip_give_way_to_the_pods_own_cluster() {
    let mount = mount();
    let (strategy, _) = mount.strategy();

    let found = strategy
        .in_cluster(&env("10.96.0.1", "443"), &home())
        .expect("it works")
        .expect("in a cluster");

    let ca = CaBundle::File(mount.path().join("ca.crt").into());
    assert_eq!(found.server().to_string(), "https://10.96.0.1");
    assert_eq!((found.trust().ca(), found.trust().skip_verify()), (&ca, false));
    assert_eq!(
        (found.name(), found.auth_provider()),
        (home().name(), "serviceAccount")
    );
}

#[test]
fn repeated_resolution_keeps_the_content() {
    let mount = mount();
    let (strategy, _) = mount.strategy();
    let resolve = || {
        strategy
            .in_cluster(&env("10.96.0.1", "443"), &home())
            .expect("it works")
            .expect("home")
    };

    assert!(resolve().same_content(&resolve()));
}

#[test]
fn address_follows_the_environment() {
    let mount = mount();
    let (strategy, _) = mount.strategy();
    for (host, port, url) in [
        ("10.96.0.1", "6443", "https://10.96.0.1:6443"),
        ("fd00::1", "443", "https://[fd00::1]"),
        ("kubernetes.default", "443", "https://kubernetes.default"),
        ("10.96.0.1", "80", "http://10.96.0.1"),
        ("10.96.0.1", "8080", "http://10.96.0.1:8080"),
        ("10.96.0.1", "8001", "http://10.96.0.1:8001"),
    ] {
        let found = strategy
            .in_cluster(&env(host, port), &home())
            .expect("it works")
            .expect("home");

        assert_eq!(found.server().to_string(), url);
    }
}

#[test]
fn cluster_with_a_token_or_another_strategy_is_left_alone() {
    let mount = mount();
    let (strategy, _) = mount.strategy();
    let env = env("10.96.0.1", "443");

    for cluster in [
        with_token("t"),
        with_token(""),
        cluster("oidc").build().expect("a cluster"),
    ] {
        assert!(strategy.in_cluster(&env, &cluster).expect("it works").is_none());
    }
}

#[test]
fn outside_of_a_pod_the_configuration_holds() {
    let mount = Mount::with("mounted");
    let (strategy, _) = mount.strategy();

    let found = strategy.in_cluster(&|_: &str| None, &home());

    assert!(found.expect("no ca.crt, no environment needed").is_none());
}

#[test]
fn missing_or_impossible_environment_is_a_clear_error() {
    let mount = mount();
    let (strategy, _) = mount.strategy();
    for (host, port, named) in [
        ("", "443", "KUBERNETES_SERVICE_HOST is not set"),
        ("10.96.0.1", "", "KUBERNETES_SERVICE_PORT is not set"),
        ("10.96.0.1", "https", "no host and port"),
        ("10.96.0.1/x", "443", "no host and port"),
        ("a@evil.example", "443", "no host and port"),
        ("10.96.0.1?", "443", "no host and port"),
        ("10.96.0.1:1", "443", "no host and port"),
    ] {
        let error = strategy
            .in_cluster(&env(host, port), &home())
            .expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(error.to_string().contains(named), "{host} {port}: {error}");
        assert_eq!(
            (error.provider(), error.cluster()),
            (Some("serviceAccount"), Some("backstage"))
        );
    }
}

#[test]
fn broken_ca_is_an_error_and_not_the_system_roots() {
    let mount = mount();
    let (strategy, _) = mount.strategy();
    for content in ["", "no certificate"] {
        fs::write(mount.path().join("ca.crt"), content).expect("written");

        let error = strategy
            .in_cluster(&env("10.96.0.1", "443"), &home())
            .expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(error.to_string().contains("ca.crt"), "{error}");
    }
}
