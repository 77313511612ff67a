//! The example configurations of `docs/providers`, as a reader would use them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests its documents"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube_authn_clusters::{AppConfig, Environment};

const HEADINGS: [&str; 5] = [
    "Who is authenticated",
    "Configuration",
    "Where the credential comes from",
    "Lifetime and caching",
    "Failures",
];

fn documents() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/providers");
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

fn yaml_blocks(text: &str) -> Vec<&str> {
    let blocks = text.split("```yaml\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap()).collect()
}

/// What stands between `before` and `after`, each time.
fn between<'t>(text: &'t str, before: &str, after: &[char]) -> Vec<&'t str> {
    let rest = text.split(before).skip(1);
    rest.map(|rest| rest.split(after).next().unwrap().trim())
        .collect()
}

fn ca_pem() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
    parameters.self_signed(&key).unwrap().pem()
}

#[tokio::test]
async fn every_example_is_a_configuration_without_a_mistake() {
    let ca = ca_pem();
    let ca_data = STANDARD.encode(&ca);
    for (path, text) in documents() {
        let blocks = yaml_blocks(&text);
        assert!(!blocks.is_empty(), "{} has no example", path.display());
        for block in blocks {
            let folder = tempfile::tempdir().unwrap();
            for name in between(block, "$file: ", &['\n', '}', ' ']) {
                fs::write(folder.path().join(name), "stand-in").unwrap();
            }
            for name in between(block, "caFile: ", &['\n', '}', ' ']) {
                fs::write(folder.path().join(name), &ca).unwrap();
            }
            let file = folder.path().join("app-config.yaml");
            fs::write(&file, block).unwrap();
            let variables = between(block, "${", &['}', ':']).into_iter().map(|name| {
                let value = match name {
                    "KUBE_AUTHN_KEY" => "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
                    name if name.ends_with("CA_DATA") => ca_data.as_str(),
                    _ => "stand-in",
                };
                (name, value)
            });

            let config = AppConfig::load_with(&[file], &Environment::of(variables)).unwrap();
            let effective = kube_authn::effective_config(&config).await;

            assert_eq!(effective.problems, [], "{}", path.display());
            let strategy = path.file_stem().unwrap().to_str().unwrap();
            let is_of_it = |cluster: &kube_authn_core::ClusterDetails| cluster.auth_provider() == strategy;
            assert!(effective.clusters.iter().any(is_of_it), "{}", path.display());
        }
    }
}

#[test]
fn every_document_has_the_same_headings() {
    for (path, text) in documents() {
        let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();

        assert_eq!(found, HEADINGS, "{}", path.display());
    }
}
