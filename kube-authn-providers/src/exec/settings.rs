//! The block `kubeAuthn.exec` of a cluster: the fields of `users[].user.exec` in a kubeconfig.

use std::path::{Path, PathBuf};

use kube_authn_core::{ClusterDetails, Problem};

use crate::options::Block;

/// Which plugin, and how it is asked.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) command: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) api_version: &'static str,
    pub(super) provide_cluster_info: bool,
    pub(super) install_hint: Option<String>,
}

impl Settings {
    pub(super) fn of(cluster: &ClusterDetails) -> Result<Self, Vec<Problem>> {
        let mut block = Block::of(cluster, "exec", &KEYS);
        let command = block.required_text("command").map(PathBuf::from);
        if command
            .as_ref()
            .is_some_and(|command| !command.is_absolute() && !is_bare(command))
        {
            block.refuse(
                "command",
                "expected an absolute path, or the bare name of an allowed one: PATH is not searched",
            );
        }
        let api_version = block
            .choice("apiVersion", &API_VERSIONS)
            .unwrap_or(API_VERSIONS[0]);
        let args = block.texts("args").unwrap_or_default();
        if args.iter().any(|arg| arg.contains('\0')) {
            block.refuse("args", "an argument holds a NUL character");
        }
        let mut env = Vec::new();
        for mut variable in block.blocks("env", &["name", "value"]) {
            let name = variable.required_text("name");
            let value = variable.text_or_empty("value");
            if let Some(name) = name
                && (name.contains(['=', '\0']) || value.contains('\0'))
            {
                variable.refuse(
                    "name",
                    "a variable's name holds no =, and neither name nor value a NUL character",
                );
            }
            env.push((name.unwrap_or_default().to_owned(), value.to_owned()));
            block.problems.append(&mut variable.problems);
        }
        let settings = Self {
            command: command.unwrap_or_default(),
            args: args.into_iter().map(str::to_owned).collect(),
            env,
            api_version,
            provide_cluster_info: block.flag("provideClusterInfo").unwrap_or(false),
            install_hint: block.text("installHint").map(str::to_owned),
        };
        match block.problems.is_empty() {
            true => Ok(settings),
            false => Err(block.problems),
        }
    }

    /// Whether this program is the one that is meant: by its path letter by letter, or by its file name.
    pub(super) fn means(&self, allowed: &Path) -> bool {
        match self.is_bare() {
            true => allowed.is_absolute() && allowed.file_name() == Some(self.command.as_os_str()),
            false => allowed == self.command,
        }
    }

    /// Whether the command is a name without folder, as kubeconfig files of cloud tools have it.
    pub(super) fn is_bare(&self) -> bool {
        is_bare(&self.command)
    }

    /// The plugin's file name, for messages.
    pub(super) fn name(&self) -> String {
        let name = self.command.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

fn is_bare(command: &Path) -> bool {
    command.file_name() == Some(command.as_os_str())
}

pub(super) const COMMAND_KEY: &str = "kubeAuthn.exec.command";

const KEYS: [&str; 6] = [
    "command",
    "args",
    "env",
    "apiVersion",
    "provideClusterInfo",
    "installHint",
];

/// The first is what is asked for unless configured.
const API_VERSIONS: [&str; 2] = [
    "client.authentication.k8s.io/v1",
    "client.authentication.k8s.io/v1beta1",
];
