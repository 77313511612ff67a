use std::{fs, io::Write, os::unix::fs::symlink, path::Path};

use kube_authn_core::{
    CachingProvider, CredentialRequest, ManualClock, Principal, conformance::provider::ProviderFixture,
};
use rustix::fs::{FileType, Mode};
use tempfile::TempDir;

use super::*;
use crate::test_support::*;

mod in_cluster;
mod rotation;
mod token_request;

const NOW: i64 = 1_000_000;

/// A folder as the kubelet mounts it: `token` → `..data/token`, `..data` → a folder that is replaced whole.
struct Mount {
    folder: TempDir,
    versions: std::cell::Cell<u32>,
}

impl Mount {
    fn empty() -> Self {
        Self {
            folder: TempDir::new().expect("a folder"),
            versions: std::cell::Cell::new(0),
        }
    }

    fn with(content: impl AsRef<[u8]>) -> Self {
        let mount = Self::empty();
        mount.rotate(content);
        symlink("..data/token", mount.token()).expect("a link");
        mount
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn token(&self) -> PathBuf {
        self.path().join("token")
    }

    /// As `AtomicWriter` of the kubelet: write beside, swap one link, remove what was there.
    fn rotate(&self, content: impl AsRef<[u8]>) {
        let version = self.versions.replace(self.versions.get() + 1);
        let (new, old) = (format!("..v{}", version + 1), format!("..v{version}"));
        fs::create_dir(self.path().join(&new)).expect("a folder");
        let mut file = fs::File::create(self.path().join(&new).join("token")).expect("a file");
        file.write_all(content.as_ref()).expect("written");
        symlink(&new, self.path().join("..data_tmp")).expect("a link");
        fs::rename(self.path().join("..data_tmp"), self.path().join("..data")).expect("swapped");
        let _first_time = fs::remove_dir_all(self.path().join(old));
    }

    fn strategy(&self) -> (ServiceAccountProvider, ManualClock) {
        let clock = ManualClock::at(at(NOW));
        (
            ServiceAccountProvider::with_folder(self.path()).with_clock(clock.clone()),
            clock,
        )
    }
}

fn prod() -> ClusterDetails {
    cluster(ServiceAccountProvider::NAME).build().expect("a cluster")
}

fn with_token(token: &str) -> ClusterDetails {
    cluster(ServiceAccountProvider::NAME)
        .service_account_token(Secret::new(token))
        .build()
        .expect("a cluster")
}

fn asked() -> CredentialRequest {
    CredentialRequest::new(Principal::anonymous(), prod())
}

async fn sent_by(strategy: &ServiceAccountProvider) -> Secret {
    sent(&strategy.credential(&asked()).await.expect("a credential"))
}

async fn refusal(strategy: &ServiceAccountProvider, request: &CredentialRequest) -> (ErrorKind, String) {
    let error = strategy.credential(request).await.expect_err("refused");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn mounted_token_keeps_the_contract() {
    let token = jwt("system:serviceaccount:team-a:portal", NOW + 3600);
    let mount = Mount::with(token.expose());
    let (strategy, clock) = mount.strategy();
    let fixture = ProviderFixture::new(strategy, request("alice", &prod()), request("bob", &prod()))
        .with_clock(clock)
        .with_expires_at(at(NOW + 3600))
        .refusing(
            request("alice", &with_token("canary token")),
            ErrorKind::ConfigInvalid,
        )
        .with_unworkable(with_token("canary token"), &["serviceAccountToken"])
        .with_canary(token)
        .with_canary(Secret::new("canary token"));

    bare_registered_and_cached(fixture).await;
}

#[tokio::test]
async fn configured_token_keeps_the_contract() {
    let token = jwt("system:serviceaccount:team-a:portal", NOW + 3600);
    let cluster = with_token(token.expose_str().expect("text"));
    let expired = with_token(jwt("x", NOW - 1).expose_str().expect("text"));
    let (strategy, clock) = Mount::empty().strategy();
    let fixture = ProviderFixture::new(strategy, request("alice", &cluster), request("bob", &cluster))
        .with_clock(clock)
        .with_expires_at(at(NOW + 3600))
        .refusing(request("alice", &expired), ErrorKind::ConfigInvalid)
        .refusing(request("alice", &prod()), ErrorKind::ConfigInvalid)
        .with_unworkable(with_token(""), &["serviceAccountToken"])
        .with_canary(token);

    bare_registered_and_cached(fixture).await;
}

#[tokio::test]
async fn line_break_at_the_end_of_a_token_does_no_harm() {
    for end in ["\n", "\r\n", "\r\n\r\n", " \t\n"] {
        let mount = Mount::with(format!("opaque{end}"));
        let (strategy, _) = mount.strategy();
        let configured = request("alice", &with_token(&format!("opaque{end}")));

        assert_eq!(sent_by(&strategy).await, Secret::new("opaque"), "{end:?}");
        let credential = strategy.credential(&configured).await.expect("a credential");
        assert_eq!(sent(&credential), Secret::new("opaque"), "{end:?}");
        assert!(strategy.validate(&configured.cluster).is_empty(), "{end:?}");
    }
}

#[tokio::test]
async fn missing_token_gives_the_peers_text_and_a_hint() {
    let mount = Mount::empty();
    let (strategy, _) = mount.strategy();

    let (kind, text) = refusal(&strategy, &asked()).await;

    let peers = format!(
        "ENOENT: no such file or directory, open '{}'",
        mount.token().display()
    );
    assert_eq!(kind, ErrorKind::ConfigInvalid);
    assert_eq!(
        text.strip_prefix(&peers),
        Some(": configure serviceAccountToken, or mount a service account into the pod")
    );
    assert_eq!(DEFAULT_FOLDER, "/var/run/secrets/kubernetes.io/serviceaccount");
}

#[tokio::test]
async fn expired_token_never_reaches_the_api_server() {
    for exp in [NOW - 1, NOW, NOW + 30] {
        let mount = Mount::with(jwt("x", exp).expose());
        let (strategy, _) = mount.strategy();
        let configured = request("alice", &with_token(jwt("x", exp).expose_str().expect("text")));

        assert_eq!(refusal(&strategy, &asked()).await.0, ErrorKind::Unavailable);
        assert_eq!(refusal(&strategy, &configured).await.0, ErrorKind::ConfigInvalid);
    }
}

#[tokio::test]
async fn configured_token_is_sent_though_another_one_is_mounted() {
    let mount = Mount::with("mounted");
    let (strategy, _) = mount.strategy();
    let request = request("alice", &with_token("configured"));

    let credential = strategy.credential(&request).await.expect("a credential");

    assert_eq!(sent(&credential), Secret::new("configured"));
    assert!(!strategy.invalidate(&request, &credential).await);
}

#[tokio::test]
async fn empty_configured_token_never_becomes_the_mounted_identity() {
    let mount = Mount::with("mounted");
    let (strategy, _) = mount.strategy();

    for empty in ["", " \n"] {
        let (kind, text) = refusal(&strategy, &request("alice", &with_token(empty))).await;

        assert_eq!(
            (kind, text.as_str()),
            (ErrorKind::ConfigInvalid, ILLEGAL_CONFIGURED_TOKEN)
        );
    }
}

#[tokio::test]
async fn nothing_but_a_regular_file_is_read_and_nothing_hangs() {
    let folder = TempDir::new().expect("a folder");
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    for target in [
        &*fifo,
        Path::new("/dev/zero"),
        Path::new("/dev/null"),
        folder.path(),
    ] {
        let mount = Mount::empty();
        symlink(target, mount.token()).expect("a link");
        let (strategy, _) = mount.strategy();

        let answer = tokio::time::timeout(Duration::from_secs(10), refusal(&strategy, &asked())).await;

        // Whoever waits for the pipe's writer can be released only by one.
        #[allow(clippy::disallowed_methods, reason = "a writer for the pipe")]
        let _writer = fs::File::options().read(true).write(true).open(&fifo);
        let (kind, text) = answer.expect("no hang");
        assert_eq!(kind, ErrorKind::ConfigInvalid);
        assert!(text.ends_with("is no regular file"), "{text}");
    }
}

#[tokio::test]
async fn file_of_a_gigabyte_is_refused_unread() {
    for length in [64 * 1024 + 1, 1 << 30] {
        let mount = Mount::empty();
        let file = fs::File::create(mount.token()).expect("a file");
        file.set_len(length).expect("a sparse file");
        let (strategy, _) = mount.strategy();

        let (kind, text) = refusal(&strategy, &asked()).await;

        assert_eq!(kind, ErrorKind::ConfigInvalid);
        assert!(text.ends_with("is larger than 64 KiB"), "{text}");
    }
}

#[tokio::test]
async fn token_that_cannot_stand_in_a_header_is_refused_by_file() {
    let mount = Mount::with("canary\r\nImpersonate-User: root");
    let (strategy, _) = mount.strategy();

    let (kind, text) = refusal(&strategy, &asked()).await;

    assert_eq!(kind, ErrorKind::ConfigInvalid);
    assert!(
        text.contains(&*mount.token().to_string_lossy()) && !text.contains("canary"),
        "{text}"
    );
}
