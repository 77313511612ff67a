//! Where credentials come from: `aws-config`'s sources, and roles assumed on top of them. The named reader of the
//! machine's AWS configuration; the only file that builds the SDK's HTTP client.

use std::{
    fs::File,
    io::{self, Read as _},
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_config::{
    BehaviorVersion, ConfigLoader, Region, SdkConfig,
    environment::EnvironmentVariableRegionProvider,
    meta::region::ProvideRegion,
    profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider},
    provider_config::ProviderConfig,
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, SharedCredentialsProvider},
};
use aws_sdk_sts::types::Credentials as StsCredentials;
use aws_smithy_async::time::TimeSource;
use aws_smithy_http_client::{
    Builder, ConnectorBuilder,
    proxy::ProxyConfig,
    tls::{Provider, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use kube_authn_core::Clock;

use super::{
    accounts::{AwsKeys, Role, RoleLink},
    endpoint::Endpoint,
    error::AwsError,
};

/// Reads credentials anew at each call: `aws-config` remembers a configuration file that it could not parse for as long as
/// a source lives, so no source is kept.
#[derive(Debug)]
pub(super) struct Reader {
    http: SharedHttpClient,
    clock: Arc<dyn Clock>,
    session_name: String,
}

/// What the machine's own AWS configuration says beside credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) region: Option<Arc<str>>,
    pub(super) use_fips: bool,
    pub(super) use_dual_stack: bool,
}

/// Whom STS sees behind some credentials.
pub(super) struct Caller {
    pub(super) account: String,
    pub(super) arn: String,
}

impl Reader {
    pub(super) fn new(clock: Arc<dyn Clock>, session_name: Option<String>) -> Self {
        Self {
            http: http_client(),
            clock,
            session_name: session_name.unwrap_or_else(|| SESSION_NAME.to_owned()),
        }
    }

    pub(super) fn with_clock(&self, clock: Arc<dyn Clock>) -> Self {
        Self {
            http: self.http.clone(),
            clock,
            session_name: self.session_name.clone(),
        }
    }

    /// Region and kind of endpoint from environment and profile. The metadata service is not asked: a wrong region gives
    /// tokens that no cluster takes, and an instance need not be in its cluster's region.
    pub(super) async fn machine(&self) -> Machine {
        let named =
            |region: Region| Some(Arc::from(region.as_ref())).filter(|name: &Arc<str>| !name.is_empty());
        let region = match EnvironmentVariableRegionProvider::new()
            .region()
            .await
            .and_then(named)
        {
            Some(region) => Some(region),
            None => ProfileFileRegionProvider::new().region().await.and_then(named),
        };
        let config = self.loader(region.as_deref()).no_credentials().load().await;
        Machine {
            region,
            use_fips: config.use_fips().unwrap_or_default(),
            use_dual_stack: config.use_dual_stack().unwrap_or_default(),
        }
    }

    pub(super) fn keys(&self, keys: &AwsKeys) -> Result<Credentials, AwsError> {
        let secret = keys.secret_access_key.expose_str().map(str::trim);
        let secret =
            secret.ok_or_else(|| AwsError::Misconfigured("the secret access key is not text".to_owned()))?;
        Ok(Credentials::new(&keys.access_key_id, secret, None, None, SOURCE))
    }

    /// The default chain: environment, profile, web identity, container, instance metadata.
    pub(super) async fn default_chain(&self, sts: &Endpoint) -> Result<Credentials, AwsError> {
        let config = self.at(sts).load().await;
        let provider = config
            .credentials_provider()
            .ok_or_else(|| AwsError::NoCredentials("the SDK has no default chain".to_owned()))?;
        provided(&provider).await
    }

    pub(super) async fn profile(&self, name: &str, sts: &Endpoint) -> Result<Credentials, AwsError> {
        let config = ProviderConfig::without_region()
            .with_region(Some(Region::new(sts.region.to_string())))
            .with_use_fips(sts.fips.then_some(true))
            .with_use_dual_stack(sts.dual_stack.then_some(true))
            .with_time_source(ClockTime(self.clock.clone()))
            .with_http_client(self.http.clone())
            .with_retry_config(retries())
            .with_timeout_config(limits());
        let provider = ProfileFileCredentialsProvider::builder()
            .configure(&config)
            .profile_name(name)
            .build();
        provided(&provider).await
    }

    pub(super) async fn assume(&self, link: &RoleLink, with: Credentials) -> Result<Credentials, AwsError> {
        let arn = match &link.role {
            Role::Arn(arn) => arn.clone(),
            Role::OfCaller(name) => self.role_of_caller(name, &link.sts, with.clone()).await?,
        };
        let answer = aws_sdk_sts::Client::new(&self.signing(&link.sts, with).await)
            .assume_role()
            .role_arn(&arn)
            .role_session_name(&self.session_name)
            .set_external_id(link.external_id.clone())
            .send()
            .await
            .map_err(|error| AwsError::of_sts(format!("assume role {arn}"), &error))?;
        session(&arn, answer.credentials)
    }

    /// Assumes a role with an OIDC token from a file, read now.
    pub(super) async fn assume_with_token(
        &self,
        link: &RoleLink,
        file: &str,
    ) -> Result<Credentials, AwsError> {
        let Role::Arn(arn) = &link.role else {
            return Err(AwsError::MalformedArn);
        };
        let token = token_file(file).await?;
        let config = self.at(&link.sts).no_credentials().load().await;
        let answer = aws_sdk_sts::Client::new(&config)
            .assume_role_with_web_identity()
            .role_arn(arn)
            .role_session_name(&self.session_name)
            .web_identity_token(token)
            .send()
            .await
            .map_err(|error| AwsError::of_sts(format!("assume role {arn} with {file}"), &error))?;
        session(arn, answer.credentials)
    }

    pub(super) async fn caller(&self, sts: &Endpoint, with: Credentials) -> Result<Caller, AwsError> {
        let asked = "ask STS whose the credentials are";
        let answer = aws_sdk_sts::Client::new(&self.signing(sts, with).await)
            .get_caller_identity()
            .send()
            .await
            .map_err(|error| AwsError::of_sts(asked, &error))?;
        match (answer.account, answer.arn) {
            (Some(account), Some(arn)) => Ok(Caller { account, arn }),
            _ => Err(AwsError::Failed {
                what: asked.to_owned(),
                reason: "the answer names nobody".to_owned(),
            }),
        }
    }

    async fn role_of_caller(
        &self,
        name: &str,
        sts: &Endpoint,
        with: Credentials,
    ) -> Result<String, AwsError> {
        let caller = self.caller(sts, with).await?;
        let partition = caller.arn.split(':').nth(1).unwrap_or_default();
        Ok(format!("arn:{partition}:iam::{}:role/{name}", caller.account))
    }

    async fn signing(&self, sts: &Endpoint, with: Credentials) -> SdkConfig {
        self.at(sts)
            .credentials_provider(SharedCredentialsProvider::new(with))
            .load()
            .await
    }

    fn at(&self, sts: &Endpoint) -> ConfigLoader {
        let mut loader = self.loader(Some(&sts.region));
        if sts.fips {
            loader = loader.use_fips(true);
        }
        if sts.dual_stack {
            loader = loader.use_dual_stack(true);
        }
        loader
    }

    fn loader(&self, region: Option<&str>) -> ConfigLoader {
        // An unset region would be asked of the metadata service.
        let region = Region::new(region.unwrap_or_default().to_owned());
        aws_config::defaults(BehaviorVersion::latest())
            .region(region)
            .time_source(ClockTime(self.clock.clone()))
            .http_client(self.http.clone())
            .retry_config(retries())
            .timeout_config(limits())
    }
}

async fn provided(provider: &dyn ProvideCredentials) -> Result<Credentials, AwsError> {
    provider
        .provide_credentials()
        .await
        .map_err(|error| AwsError::of_source(&error))
}

fn session(arn: &str, credentials: Option<StsCredentials>) -> Result<Credentials, AwsError> {
    let failed = |reason: &str| AwsError::Failed {
        what: format!("assume role {arn}"),
        reason: reason.to_owned(),
    };
    let credentials = credentials.ok_or_else(|| failed("the answer holds no credentials"))?;
    let end = SystemTime::try_from(credentials.expiration)
        .map_err(|_| failed("the answer holds no usable expiration"))?;
    Ok(Credentials::new(
        credentials.access_key_id,
        credentials.secret_access_key,
        Some(credentials.session_token),
        Some(end),
        SOURCE,
    ))
}

async fn token_file(path: &str) -> Result<String, AwsError> {
    let failed = |reason: String| AwsError::Unreadable(format!("{path}: {reason}"));
    let asked = path.to_owned();
    let text = tokio::task::spawn_blocking(move || read_at_most(&asked))
        .await
        .map_err(|_| AwsError::Lost)?
        .map_err(|error| failed(error.to_string()))?;
    match text.trim() {
        "" => Err(failed("the file is empty".to_owned())),
        _ if text.len() as u64 > MAX_TOKEN_BYTES => Err(failed("the file is larger than 64 KiB".to_owned())),
        token => Ok(token.to_owned()),
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a named reader: the token file of an account"
)]
fn read_at_most(path: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(MAX_TOKEN_BYTES + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// TLS by rustls and aws-lc-rs with the system's roots. A proxy of the environment is used for https alone, as AWS's own
/// tools do: metadata service and container endpoint speak http, and what they are told is secret.
fn http_client() -> SharedHttpClient {
    let proxy = https_proxy();
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = ConnectorBuilder::default().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.set_proxy_config(Some(proxy.clone()));
        connector.build()
    })
}

#[allow(
    clippy::disallowed_methods,
    reason = "a named reader: HTTPS_PROXY and NO_PROXY"
)]
fn https_proxy() -> ProxyConfig {
    let env = |upper: &str| {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        set(&upper.to_ascii_lowercase()).or_else(|| set(upper))
    };
    let Some(url) = env("HTTPS_PROXY") else {
        return ProxyConfig::disabled();
    };
    match ProxyConfig::https(url.as_str()) {
        Ok(proxy) => match env("NO_PROXY") {
            Some(rules) => proxy.no_proxy(rules),
            None => proxy,
        },
        // The URL may hold a password.
        Err(_) => {
            tracing::warn!("HTTPS_PROXY is no URL: AWS is called without a proxy");
            ProxyConfig::disabled()
        }
    }
}

fn retries() -> RetryConfig {
    RetryConfig::standard()
}

fn limits() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .operation_attempt_timeout(Duration::from_secs(6))
        .operation_timeout(Duration::from_secs(15))
        .build()
}

#[derive(Debug)]
struct ClockTime(Arc<dyn Clock>);

impl TimeSource for ClockTime {
    fn now(&self) -> SystemTime {
        self.0.now().into()
    }
}

/// What the SDK calls the source of credentials in its user agent.
const SOURCE: &str = "kube-authn";

/// Shown in CloudTrail, and in the name that EKS maps a role's session to.
const SESSION_NAME: &str = "kube-authn";

/// A projected token has some 2 KiB; STS takes 20,000 characters.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;
