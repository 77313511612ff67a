//! A pod's surroundings: the folder of a service account, mounted where Kubernetes mounts it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{Api, api::PostParams};
use kube_authn_e2e::TestCluster;
use serde_json::json;
use tokio::process::Command;

/// What the kubelet mounts: `token` -> `..data/token`, `..data` -> a folder that is swapped for the next one.
/// (<https://github.com/kubernetes/kubernetes/blob/v1.36.3/pkg/volume/util/atomic_writer.go>)
pub(crate) struct Mount {
    folder: tempfile::TempDir,
    published: AtomicUsize,
}

impl Mount {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            published: AtomicUsize::new(0),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// All files at once; the same ones each time.
    pub(crate) fn publish(&self, files: &[(&str, &str)]) {
        let number = self.published.fetch_add(1, Ordering::SeqCst);
        let path = |name: &str| self.folder.path().join(name);
        let new = format!("..content-{number}");
        fs::create_dir(path(&new)).unwrap();
        for (file, content) in files {
            fs::write(path(&new).join(file), content).unwrap();
        }
        symlink(&new, path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        match number.checked_sub(1) {
            Some(old) => fs::remove_dir_all(path(&format!("..content-{old}"))).unwrap(),
            None => {
                for (file, _) in files {
                    symlink(Path::new("..data").join(file), path(file)).unwrap();
                }
            }
        }
    }
}

/// The files of a service account.
pub(crate) fn service_account<'a>(cluster: &'a TestCluster, token: &'a str) -> [(&'a str, &'a str); 3] {
    [
        ("token", token),
        ("ca.crt", cluster.ca_pem()),
        ("namespace", "backstage"),
    ]
}

/// Starts what follows with the service account of `mount`, in a mount namespace of its own.
pub(crate) async fn unshare(mount: &Mount) -> Vec<String> {
    let mut arguments: Vec<String> = ["unshare"].map(str::to_owned).into();
    arguments.extend(mount_namespace().await.iter().map(ToString::to_string));
    arguments.extend(["sh", "-c", MOUNT].map(str::to_owned));
    arguments.push(mount.path().display().to_string());
    arguments
}

/// A program that is `program` in a pod; `folder` is where it is written.
pub(crate) async fn in_pod(mount: &Mount, folder: &Path, program: &str) -> PathBuf {
    let quoted: Vec<_> = unshare(mount)
        .await
        .iter()
        .map(|word| format!("'{word}'"))
        .collect();
    let path = folder.join("in-pod");
    write_program(&path, &format!("exec {} '{program}' \"$@\"", quoted.join(" ")));
    path
}

/// How this machine lets us have one.
async fn mount_namespace() -> &'static [&'static str] {
    for arguments in [&["--mount"][..], &["--mount", "--map-root-user"]] {
        let mut probe = Command::new("unshare");
        probe
            .args(arguments)
            .args(["sh", "-c", "mount -t tmpfs tmpfs /var/run"]);
        if probe.output().await.is_ok_and(|output| output.status.success()) {
            return arguments;
        }
    }
    panic!(
        "no mount namespace is to be had here: run the tests on Linux, as root or where user namespaces are allowed"
    );
}

/// By a program of its own: a file that a process just forked by another test holds open cannot be started.
pub(crate) fn write_program(path: &Path, script: &str) {
    let script_file = path.with_extension("sh");
    fs::write(&script_file, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&script_file, fs::Permissions::from_mode(0o755)).unwrap();
    let copied = std::process::Command::new("/bin/cp")
        .arg("-p")
        .arg(&script_file)
        .arg(path)
        .status();
    assert!(copied.unwrap().success());
}

/// A token of a service account of `backstage` as the kubelet asks for it, bound to this Secret or to the account alone.
pub(crate) async fn token(cluster: &TestCluster, account: &str, bound_to: Option<&Secret>) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client().await.unwrap(), "backstage");
    let bound = bound_to.map(|secret| {
        json!({ "kind": "Secret", "apiVersion": "v1", "name": secret.metadata.name, "uid": secret.metadata.uid })
    });
    let request = json!({ "spec": { "expirationSeconds": 600, "audiences": [], "boundObjectRef": bound } });
    let answer = accounts
        .create_token_request(
            account,
            &PostParams::default(),
            &serde_json::from_value(request).unwrap(),
        )
        .await
        .unwrap();
    answer.status.and_then(|status| status.token).unwrap()
}

/// Nothing is left behind outside of the namespace: the folder to mount on is made in memory.
const MOUNT: &str = "set -e
    folder=/var/run/secrets/kubernetes.io/serviceaccount
    mount -t tmpfs tmpfs /var/run
    mkdir -p $folder
    mount --bind \"$0\" $folder
    exec \"$@\"";
