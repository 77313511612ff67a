//! Our program and the vendors', each answering a line with a line.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A child that answers each line with one.
pub(crate) struct Conversation {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Conversation {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    pub(crate) fn ask(&mut self, line: &str) -> Value {
        writeln!(self.input, "{line}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The portal's process: an app-config, and nothing of this machine but what the test says.
pub(crate) struct Portal {
    folder: TempDir,
    program: Conversation,
}

impl Portal {
    pub(crate) fn start(config: &Value, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, config, environment)
    }

    /// `~` in the values of the environment is the folder.
    pub(crate) fn start_in(folder: TempDir, config: &Value, environment: &[(&str, &str)]) -> Self {
        let file = folder.path().join("app-config.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_credentials"));
        command.arg(file).env_clear().env("HOME", folder.path());
        // No machine on the way to a test asks the network who it is.
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        for (name, value) in environment {
            command.env(name, value.replace('~', &folder.path().display().to_string()));
        }
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command
            .env("PATH", "/usr/bin:/bin")
            .env("RUST_LOG", "trace")
            .stderr(log);
        Self {
            program: Conversation::start(command),
            folder,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What these clusters get, all asked at once.
    pub(crate) fn ask(&mut self, clusters: &[&str]) -> Vec<Value> {
        match self.program.ask(&clusters.join(" ")) {
            Value::Array(answers) => answers,
            other => panic!("{other}"),
        }
    }

    pub(crate) fn token(&mut self, cluster: &str) -> String {
        let answer = self.ask(&[cluster]).remove(0);
        answer["token"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    /// Kind and text.
    pub(crate) fn refusal(&mut self, cluster: &str) -> (String, String) {
        let answer = self.ask(&[cluster]).remove(0);
        let text = |key: &str| {
            answer[key]
                .as_str()
                .unwrap_or_else(|| panic!("{answer}"))
                .to_owned()
        };
        (text("kind"), text("error"))
    }
}

/// `aws eks get-token` of PyPI's awscli, its clock where the test says.
pub(crate) struct AwsCli(Conversation);

impl AwsCli {
    pub(crate) fn start() -> Self {
        let mut command = Command::new(kube_authn_e2e::python().unwrap());
        command
            .arg(script("eks_token.py"))
            .env_clear()
            .env("HOME", "/nonexistent");
        Self(Conversation::start(command))
    }

    pub(crate) fn token(&mut self, asked: &Value) -> String {
        let answer = self.0.ask(&asked.to_string());
        answer["token"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(name)
}

/// The authenticator's own verifier, before a stand-in for STS that knows these keys.
pub(crate) struct Verifier(Conversation);

impl Verifier {
    pub(crate) fn start() -> Self {
        let mut command = Command::new(kube_authn_e2e::eks_verifier().unwrap());
        command.arg("verify").env_clear();
        Self(Conversation::start(command))
    }

    /// The access key id that it saw.
    pub(crate) fn verify(
        &mut self,
        token: &str,
        cluster: &str,
        (partition, region): (&str, &str),
        key: (&str, &str),
    ) -> Result<String, String> {
        let asked = json!({
            "token": token,
            "cluster": cluster,
            "partition": partition,
            "region": region,
            "keys": { key.0: key.1 },
        });
        let answer = self.0.ask(&asked.to_string());
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["accessKeyId"].as_str().unwrap().to_owned()),
        }
    }
}

/// PyPI's moto, a whole AWS in memory; the same seed gives the same keys.
pub(crate) struct Moto {
    child: Child,
    pub(crate) url: String,
}

impl Moto {
    pub(crate) async fn start() -> Self {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))
            .and_then(|listener| listener.local_addr())
            .unwrap()
            .port();
        let child = Command::new(kube_authn_e2e::python().unwrap())
            .arg(script("moto_server.py"))
            .arg(port.to_string())
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        };
        for _ in 0..300 {
            if moto.post("/moto-api/reset").await.is_some() {
                return moto;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("moto does not answer");
    }

    pub(crate) async fn seed(&self) {
        self.post("/moto-api/seed?a=42").await.unwrap();
    }

    async fn post(&self, path: &str) -> Option<()> {
        let request = http::Request::post(format!("{}{path}", self.url));
        let http = kube_authn_e2e::Http::new("").unwrap();
        let answer = http.send(request.body(bytes::Bytes::new()).unwrap()).await.ok()?;
        answer.status().is_success().then_some(())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
