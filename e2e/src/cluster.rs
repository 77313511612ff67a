//! [`TestCluster`]: a real API server with everything around it, on loopback.

mod api_server;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    sync::{OnceCell, Semaphore},
};

use crate::{
    certificates::Authority,
    error::{Context, Error, Result},
    fixtures,
    issuer::Issuer,
    process::{RunFolder, Supervised},
    settings::{self, Ports},
    tools::Tools,
};

/// The name of the one node; a pod says it in `spec.nodeName`, there is no scheduler.
pub const NODE: &str = "node";

/// How a cluster is started.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Lifetime of ID tokens. One hour.
    pub id_token_lifetime: Duration,
    /// Lifetime of ID tokens of the client `kubernetes-short`. Five seconds.
    pub short_id_token_lifetime: Duration,
    /// Whether the [`fixtures`] are there. Yes.
    pub fixtures: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            id_token_lifetime: Duration::from_secs(3600),
            short_id_token_lifetime: Duration::from_secs(5),
            fixtures: true,
        }
    }
}

/// etcd, API server, controllers, a node and two issuers. They end when this is dropped or the process ends in any way.
#[derive(Debug)]
pub struct TestCluster {
    tools: Tools,
    ports: Ports,
    ca: Authority,
    issuer_a: Issuer,
    issuer_b: Issuer,
    api_server: Option<Supervised>,
    others: Vec<Supervised>,
    // Last: the folder goes when all others have ended.
    folder: RunFolder,
}

static STARTING: Semaphore = Semaphore::const_new(1);

/// Twenty times what a start takes on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

impl TestCluster {
    /// Starts a cluster and returns when it answers, its roles have rules, both issuers' tokens are accepted and the
    /// fixtures' pods run. The first start of all builds the tools, which takes minutes.
    ///
    /// # Errors
    /// When a tool is missing or a program doesn't come up within two minutes, with the end of its log.
    pub async fn start(options: Options) -> Result<Self> {
        let tools = tokio::task::spawn_blocking(Tools::ensure)
            .await
            .context("wait for the tools")??;
        // One at a time: several starts at once take longer together than one after the other.
        let _turn = STARTING.acquire().await.context("wait for another start")?;
        let folder = RunFolder::create(&tools.supervise)?;
        let ca = Authority::new("kube-authn test CA")?;
        let ports = free_ports()?;
        settings::write(folder.path(), &ca, ports, &options)?;
        let others = start_around(&folder, &tools, ports).await?;

        let mut cluster = Self {
            issuer_a: Issuer::new("a", ports.issuer_a, ports.issuer_admin, ca.pem())?,
            issuer_b: Issuer::new("b", ports.issuer_b, ports.issuer_admin, ca.pem())?,
            tools,
            ports,
            ca,
            api_server: None,
            others,
            folder,
        };
        cluster.start_api_server().await?;
        cluster.start_controllers()?;
        let client = cluster.client().await?;
        cluster.settle(&client).await?;
        if options.fixtures {
            fixtures::apply(&client).await?;
        }
        Ok(cluster)
    }

    /// The cluster that all tests of one test binary share; started at first use. A test that stops, restarts or
    /// misconfigures anything starts its own.
    ///
    /// # Errors
    /// As [`TestCluster::start`].
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<TestCluster> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Self::start(Options::default())).await
    }

    /// Ends every program, waits for it, and removes the cluster's folder. Dropping does the same in the background.
    ///
    /// # Errors
    /// When a program doesn't end.
    pub async fn stop(mut self) -> Result<()> {
        self.stop_api_server().await?;
        for program in self.others.iter_mut().rev() {
            program.stop().await?;
        }
        self.folder.remove().await
    }

    /// `https://127.0.0.1:port`.
    pub fn api_server_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.api_server)
    }

    /// The test CA, which signed the API server's, the node's and the issuers' certificates, PEM.
    pub fn ca_pem(&self) -> &str {
        self.ca.pem()
    }

    /// The test CA itself, for client certificates of one's own: the API server takes the common name for the user.
    pub fn authority(&self) -> &Authority {
        &self.ca
    }

    /// The file that holds [`TestCluster::ca_pem`].
    pub fn ca_path(&self) -> PathBuf {
        self.path().join("ca.pem")
    }

    /// A kubeconfig with every right.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.path().join("admin.kubeconfig")
    }

    /// The issuer that signs callers in to the portal: RS256, client `portal`, users become `portal:<login>`.
    pub fn issuer_a(&self) -> &Issuer {
        &self.issuer_a
    }

    /// The issuer of the cluster's users: ES256, clients `kubernetes` and `kubernetes-short`, users become their e-mail.
    pub fn issuer_b(&self) -> &Issuer {
        &self.issuer_b
    }

    /// The programs the cluster was started from.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The cluster's folder: certificates, configuration, `audit.log`, `logs/<program>.log`.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A client with every right. It belongs to the runtime that makes it: make one per test.
    ///
    /// # Errors
    /// When the kubeconfig can't be used.
    pub async fn client(&self) -> Result<Client> {
        Client::try_from(self.config().await?).context("make the admin client")
    }

    /// A client that sends `token`, for comparing with what our own crates do.
    ///
    /// # Errors
    /// When the kubeconfig can't be used.
    pub async fn client_with_token(&self, token: &str) -> Result<Client> {
        let mut config = self.config().await?;
        config.auth_info = AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        };
        Client::try_from(config).context("make a client")
    }

    /// The kubectl of the cluster's version with the admin kubeconfig.
    pub fn kubectl(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.tools.kubectl);
        command
            .env("KUBECONFIG", self.admin_kubeconfig())
            .env("HOME", self.path())
            .kill_on_drop(true);
        command
    }

    /// Applies a manifest, as its admin.
    ///
    /// # Errors
    /// When kubectl can't be run or refuses it.
    pub async fn apply(&self, manifest: impl AsRef<[u8]>) -> Result<()> {
        let mut kubectl = self
            .kubectl()
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("run kubectl")?;
        if let Some(mut stdin) = kubectl.stdin.take() {
            stdin
                .write_all(manifest.as_ref())
                .await
                .context("give kubectl the manifest")?;
        }
        let output = kubectl.wait_with_output().await.context("run kubectl")?;
        match output.status.success() {
            true => Ok(()),
            false => Err(Error::new(format!(
                "kubectl apply: {}",
                String::from_utf8_lossy(&output.stderr)
            ))),
        }
    }

    /// All events of the audit log so far, oldest first.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn audit_lines(&self) -> Result<Vec<Value>> {
        let log = fs::read_to_string(self.audit_log()).context("read the audit log")?;
        // The last line may still be written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).context("read an audit event"))
            .collect()
    }

    /// The API server's audit log, one JSON event per line.
    pub fn audit_log(&self) -> PathBuf {
        self.path().join("audit.log")
    }

    /// The first audit event that `wanted` holds for; waits for it up to ten seconds.
    ///
    /// # Errors
    /// When there is none.
    pub async fn audit_event(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let begin = Instant::now();
        loop {
            if let Some(event) = self.audit_lines()?.into_iter().find(&wanted) {
                return Ok(event);
            }
            if begin.elapsed() > Duration::from_secs(10) {
                return Err(Error::new("the audit log has no such event"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// They give up on an API server that isn't ready within ten seconds.
    fn start_controllers(&mut self) -> Result<()> {
        let program = &self.tools.kube_controller_manager;
        let arguments = settings::controller_manager(self.path());
        let controllers = self.folder.start("kube-controller-manager", program, arguments)?;
        self.others.push(controllers);
        Ok(())
    }

    async fn config(&self) -> Result<Config> {
        let kubeconfig =
            Kubeconfig::read_from(self.admin_kubeconfig()).context("read the admin kubeconfig")?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .context("use the admin kubeconfig")
    }

    fn check_programs(&mut self) -> Result<()> {
        self.api_server
            .iter_mut()
            .chain(&mut self.others)
            .try_for_each(Supervised::still_running)
    }
}

/// Starts what may run before the API server.
async fn start_around(folder: &RunFolder, tools: &Tools, ports: Ports) -> Result<Vec<Supervised>> {
    let path = folder.path();
    let issuers = [tools.issuer.clone(), path.join("issuers.json")];
    let mut programs = vec![
        folder.start("issuers", &tools.nodejs, issuers)?,
        folder.start("etcd", &tools.etcd, settings::etcd(path, ports))?,
        folder.start("node", &tools.node, settings::node(path))?,
    ];
    // The API server retries an issuer that it missed only every ten seconds.
    let first = [ports.issuer_a, ports.issuer_b, ports.issuer_admin, ports.etcd];
    wait_for_ports(&first, &mut programs).await?;
    Ok(programs)
}

async fn wait_for_ports(ports: &[u16], programs: &mut [Supervised]) -> Result<()> {
    let begin = Instant::now();
    for port in ports {
        while tokio::net::TcpStream::connect(("127.0.0.1", *port))
            .await
            .is_err()
        {
            programs.iter_mut().try_for_each(Supervised::still_running)?;
            if begin.elapsed() > START_LIMIT {
                return Err(Error::new(format!("nothing listens on 127.0.0.1:{port}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

fn free_ports() -> Result<Ports> {
    Ok(Ports {
        etcd: free_port()?,
        api_server: free_port()?,
        issuer_a: free_port()?,
        issuer_b: free_port()?,
        issuer_admin: free_port()?,
    })
}

/// A port that nobody listens on, below the range that outgoing connections take theirs from: it must still be free
/// when a stopped program comes back.
fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let mut random = [0; 2];
    getrandom::fill(&mut random).context("get random bytes")?;
    let _ = NEXT.compare_exchange(
        0,
        u16::from_le_bytes(random) % COUNT + 1,
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    for _ in 0..COUNT {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new("no free port on 127.0.0.1"))
}
