//! What `deploy/`, `examples/` and the documentation tell people to run: configurations, the systemd unit.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(
    clippy::disallowed_methods,
    reason = "the doors are those of the library, not of what tests the program"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

const STORE: &str = "postgres://kube-authn:secret@postgres.example.com/kube_authn?sslmode=verify-full\n";

/// Every configuration file that people are told to copy, with the layers it belongs with.
const FILES: [&[&str]; 6] = [
    &["deploy/app-config.yaml"],
    &["deploy/app-config.yaml", "deploy/app-config.gateway.yaml"],
    &["deploy/kubernetes/app-config.yaml"],
    &["deploy/kubernetes-replicas/app-config.yaml"],
    &["examples/app-config.in-cluster.yaml"],
    &["examples/app-config.out-of-cluster.yaml"],
];

/// A machine with everything in place that the guide puts in place: `/etc`, `/run` and `/var` are below this folder.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = certificate();
        for (path, text) in [
            ("etc/kube-authn/tls/tls.crt", &*certificate),
            ("etc/kube-authn/tls/tls.key", &key),
            ("etc/kube-authn/encryption.key", &format!("{KEY}\n")),
            ("etc/kube-authn/openportal-ca.pem", &certificate),
            ("etc/kube-authn/tools-ca.pem", &certificate),
            ("etc/kube-authn/issuer-ca.pem", &certificate),
            ("run/secrets/kube-authn/tls/tls.crt", &certificate),
            ("run/secrets/kube-authn/tls/tls.key", &key),
            ("run/secrets/kube-authn/encryption/key", KEY),
            ("run/secrets/kube-authn/store/url", STORE),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir_all(folder.path().join("var/lib/kube-authn")).unwrap();
        Self(folder)
    }

    fn etc(&self) -> PathBuf {
        self.0.path().join("etc/kube-authn")
    }

    /// Installs a text under `/etc/kube-authn`, its absolute paths led below this folder.
    fn install(&self, name: &str, text: &str) -> String {
        let root = self.0.path().display();
        let text = ["/etc/kube-authn", "/run/secrets", "/var/lib"]
            .iter()
            .fold(text.to_owned(), |text, path| {
                text.replace(path, &format!("{root}{path}"))
            });
        fs::write(self.etc().join(name), text).unwrap();
        name.to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-authn"));
        command
            .args(arguments)
            .current_dir(self.etc())
            .env_clear()
            .envs([
                ("CREDENTIALS_DIRECTORY", self.etc().to_str().unwrap()),
                ("KUBE_AUTHN_KEY", KEY),
                ("OPENPORTAL_CA_DATA", &STANDARD.encode(certificate().0)),
                ("TOOLS_SA_TOKEN", "t"),
                ("K8S_URL", "https://127.0.0.1:6443"),
                ("K8S_CA_DATA", &STANDARD.encode(certificate().0)),
                ("K8S_SA_TOKEN", "t"),
            ])
            .stdin(Stdio::null());
        command
    }

    /// The errors that `check` lists.
    fn errors(&self, names: &[String]) -> Value {
        let layers = names.iter().flat_map(|name| ["--config", name]);
        let arguments: Vec<_> = ["check", "--json"].into_iter().chain(layers).collect();
        let output = self.command(&arguments).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["errors"].clone()
    }
}

#[test]
fn configurations_that_we_ship_have_no_errors() {
    for layers in FILES {
        let machine = Machine::new();
        let names: Vec<_> = layers
            .iter()
            .map(|file| machine.install(file.rsplit('/').next().unwrap(), &read(file)))
            .collect();

        assert_eq!(machine.errors(&names), json!([]), "{layers:?}");
    }
    let known: BTreeSet<_> = FILES.concat().into_iter().map(|file| root().join(file)).collect();
    for folder in [
        "deploy",
        "deploy/kubernetes",
        "deploy/kubernetes-replicas",
        "examples",
    ] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(
                !name.starts_with("app-config") || known.contains(&path),
                "{path:?}"
            );
        }
    }
}

#[test]
fn configurations_in_the_documentation_have_no_errors() {
    let mut found = 0;
    let mut files = vec![root().join("README.md")];
    files.extend(
        fs::read_dir(root().join("docs"))
            .unwrap()
            .map(|entry| entry.unwrap().path()),
    );
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|end| end == "md"))
    {
        for block in yaml_blocks(&fs::read_to_string(file).unwrap()) {
            let ours = ["kubernetes:", "clusterAuth:", "kubeAuthn:", "backend:"];
            if !block
                .lines()
                .any(|line| ours.iter().any(|key| line.starts_with(key)))
            {
                continue;
            }
            found += 1;
            let machine = Machine::new();
            let name = machine.install("app-config.yaml", &block);

            assert_eq!(machine.errors(&[name]), json!([]), "{}:\n{block}", file.display());
        }
    }
    assert!(found > 1, "{found}");
}

#[test]
fn commands_of_the_systemd_unit_work_with_its_configuration() {
    let unit = read("deploy/kube-authn.service");
    let line = |name: &str| {
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{name} is missing")).to_owned()
    };
    let arguments = |name: &str| {
        let command = line(name);
        let mut words = command.split(' ').map(str::to_owned);
        assert_eq!(words.next().as_deref(), Some("/usr/local/bin/kube-authn"));
        words.collect::<Vec<_>>()
    };
    let machine = Machine::new();
    let config = read("deploy/app-config.yaml").replace("':7007'", "'127.0.0.1:0'");
    machine.install("app-config.yaml", &config);
    let run = |name: &str| {
        let words = arguments(name);
        machine.command(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };

    let checked = run("ExecStartPre").output().unwrap();
    let mut service = run("ExecStart").stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(service.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    service.kill().unwrap();
    service.wait().unwrap();

    assert!(checked.status.success(), "{checked:?}");
    assert!(said.starts_with("listening on https://127.0.0.1:"), "{said}");
    assert!(machine.0.path().join("var/lib/kube-authn/kube-authn.db").exists());
    let words = arguments("ExecStart");
    let drain = &words[words.iter().position(|word| word == "--drain").unwrap() + 1];
    let seconds = |text: &str| Duration::from_secs(text.parse().unwrap());
    // A refresh that is under way may take as long (`REFRESHES` in serve.rs).
    assert!(seconds(&line("TimeoutStopSec")) > seconds(drain) + Duration::from_secs(45));
    assert_eq!(
        line("LoadCredential"),
        "encryption.key:/etc/kube-authn/encryption.key"
    );
}

#[test]
fn users_are_never_named_by_a_claim_that_they_can_change() {
    for file in FILES
        .concat()
        .into_iter()
        .filter(|file| file.starts_with("deploy/"))
    {
        let text = read(file);
        let lines = text.lines().map(str::trim);
        let naming: Vec<_> = lines.filter(|line| line.starts_with("principal:")).collect();

        assert_eq!(naming, [""; 0], "{file}");
    }
}

#[test]
fn name_that_nginx_did_not_verify_is_never_passed_on() {
    let text = read("deploy/nginx.conf");
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    // `$remote_user` is what the client wrote, wherever nginx does not check the password itself: in this very block.
    let naming: Vec<_> = lines
        .split(|line| line.ends_with('{') || line.starts_with('}'))
        .filter(|block| block.iter().any(|line| line.contains("$remote_user")))
        .collect();

    assert_eq!(naming.len(), 1, "{naming:?}");
    for block in naming {
        let has = |directive: &str| block.iter().any(|line| line.starts_with(directive));
        assert!(has("auth_basic ") && has("auth_basic_user_file "), "{block:?}");
        assert!(
            has("proxy_set_header X-Forwarded-User $remote_user;"),
            "{block:?}"
        );
        assert!(has(r#"proxy_set_header Authorization "";"#), "{block:?}");
    }
    assert!(!text.contains("auth_basic off") && !text.contains("satisfy any"));
    // What tells the portal's own pages from those of other sites.
    assert!(lines.contains(&"proxy_set_header Host $http_host;"));
}

fn yaml_blocks(text: &str) -> Vec<String> {
    let fences = text.split("```yaml\n").skip(1);
    fences
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["kube-authn.example.com".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
