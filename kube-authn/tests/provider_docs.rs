//! What `docs/providers/*.md` show must work, and they all answer the same questions.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "reads the documentation")]

use std::{fs, path::Path};

use kube_authn::kube_authn_clusters::{AppConfig, Environment};

const HEADINGS: [&str; 5] = [
    "Who is authenticated",
    "Configuration",
    "Where the credential comes from",
    "Lifetime and caching",
    "Failures",
];

/// Stand-ins for the variables of the examples.
fn environment() -> Environment {
    let ca = rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap();
    let ca = base64_of(ca.cert.pem().as_bytes());
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    Environment::of([
        ("CA_DATA", ca.as_str()),
        ("K8S_SA_TOKEN", "token"),
        ("KUBE_AUTHN_KEY", key),
    ])
}

fn base64_of(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

fn pages() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/providers");
    let pages = fs::read_dir(folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    });
    pages.collect()
}

fn yaml_blocks(page: &str) -> Vec<&str> {
    let blocks = page.split("```yaml\n").skip(1);
    blocks.map(|rest| rest.split("\n```").next().unwrap()).collect()
}

#[tokio::test]
async fn every_example_is_a_configuration_without_problems_that_uses_its_strategy() {
    let pages = pages();
    assert!(!pages.is_empty());
    for (name, page) in &pages {
        let blocks = yaml_blocks(page);
        assert!(!blocks.is_empty(), "{name} has no example");
        for block in blocks {
            let config = AppConfig::from_texts(&[("app-config.yaml", block)], &environment())
                .unwrap_or_else(|invalid| panic!("{name}: {invalid}"));
            let effective = kube_authn::effective_config(&config).await;

            assert!(effective.problems.is_empty(), "{name}: {:?}", effective.problems);
            let used = effective
                .clusters
                .iter()
                .any(|cluster| cluster.auth_provider() == name);
            assert!(used, "{name}: no cluster of the example uses it");
        }
    }
}

#[test]
fn every_page_answers_the_same_questions_in_the_same_order() {
    for (name, page) in pages() {
        let headings: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();

        assert_eq!(headings, HEADINGS, "{name}");
        assert_eq!(page.lines().next(), Some(format!("# `{name}`").as_str()));
    }
}
