//! Strategy `googleServiceAccount`: an access token of a Google service account, for clusters of GKE.

#[cfg(feature = "google-federation")]
use std::path::PathBuf;
use std::{fmt, sync::Arc};

use async_trait::async_trait;
use kube_authn_core::{
    AccessTokenSource, Clock, ClusterDetails, Credential, CredentialRequest, CredentialScope, Error,
    ErrorKind, KubernetesAuthProvider, Metadata, Problem, Result, Secret, SystemClock,
    rustls::crypto::CryptoProvider,
};
use url::Url;

mod account;
mod calls;
mod credentials;
mod error;
#[cfg(feature = "google-federation")]
mod executable;
#[cfg(feature = "google-federation")]
mod federation;
mod options;
mod shared_token;

pub use self::credentials::GoogleCredentials;
use self::{
    account::Account,
    calls::{AccessToken, Calls, Scopes},
    credentials::{Current, Source},
    error::GoogleError,
    shared_token::{Held, SharedTokens, State},
};

/// The application authenticates with an access token of Google. Clones share tokens and connections' settings.
///
/// One token serves all clusters that use the same account. It is asked for once for all who wait, and again ahead of its
/// end; while that fails, the old one is used until its end.
#[derive(Clone)]
pub struct GoogleServiceAccountProvider {
    source: Arc<Source>,
    /// For all clusters that name no other; or why it cannot be.
    impersonate: Option<Result<Arc<str>, &'static str>>,
    #[cfg_attr(
        not(feature = "google-federation"),
        allow(dead_code, reason = "only impersonation asks there")
    )]
    iam_credentials: Arc<str>,
    calls: Calls,
    tokens: Arc<SharedTokens>,
    clock: Arc<dyn Clock>,
}

/// Whose token is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum TokenOf {
    /// The account of the credentials.
    Account,
    /// The same account, with the right to impersonate alone.
    #[cfg(feature = "google-federation")]
    Impersonator,
    /// An impersonated service account.
    Impersonated(Arc<str>),
}

impl GoogleServiceAccountProvider {
    /// The wire value of `authProvider`.
    pub const NAME: &str = "googleServiceAccount";

    /// With these credentials; with [`GoogleCredentials::Default`] the environment is read here, by `env`.
    ///
    /// Nothing is asked or read from disk before a token is needed. `crypto` signs and encrypts.
    pub fn new(
        credentials: GoogleCredentials,
        crypto: Arc<CryptoProvider>,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Self {
        Self {
            source: Arc::new(Source::new(credentials, crypto.clone(), env)),
            impersonate: None,
            iam_credentials: IAM_CREDENTIALS.into(),
            calls: Calls::new(crypto, env),
            tokens: Arc::default(),
            clock: Arc::new(SystemClock),
        }
    }

    /// Impersonates this service account (`sa@project.iam.gserviceaccount.com`) for clusters that name no other. Anything but
    /// an e-mail address, and anything without the feature `google-federation`, is a problem of each cluster.
    pub fn with_impersonation(mut self, account: &str) -> Self {
        self.impersonate = Some(options::impersonated(account).map(|()| account.into()));
        self
    }

    /// Asks here for tokens of impersonated accounts, not at `https://iamcredentials.googleapis.com`.
    pub fn with_iam_credentials_url(mut self, url: &Url) -> Self {
        self.iam_credentials = url.as_str().into();
        self
    }

    /// Allows the programs at these absolute paths to give subject tokens (`credential_source.executable`), if
    /// `GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES` is `1` as well. Links are followed now, and what they lead to is
    /// remembered.
    #[cfg(feature = "google-federation")]
    pub fn with_executables(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.calls.executables = self.calls.executables.with_allowed(paths);
        self
    }

    /// With another clock.
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    fn wanted(&self, cluster: &ClusterDetails) -> Result<TokenOf> {
        let own = options::read(cluster).map_err(|problems| {
            let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
            Error::new(ErrorKind::ConfigInvalid, texts.join("; "))
        })?;
        match own {
            Some(account) => Ok(TokenOf::Impersonated(account)),
            None => self.wanted_by_default(),
        }
    }

    fn wanted_by_default(&self) -> Result<TokenOf> {
        match &self.impersonate {
            Some(Ok(account)) => Ok(TokenOf::Impersonated(account.clone())),
            Some(Err(why)) => Err(Error::new(ErrorKind::ConfigInvalid, unusable_account(why))),
            None => Ok(TokenOf::Account),
        }
    }

    /// Reads the credentials as they stand now, and asks nobody: for people who look for a mistake.
    ///
    /// # Errors
    /// `ConfigInvalid` or `Unavailable` if a file of credentials cannot be read or used, or names a program that is not
    /// allowed.
    #[cfg_attr(
        not(feature = "google-federation"),
        allow(unused_variables, reason = "only federation names programs")
    )]
    pub async fn read_credentials(&self) -> Result<()> {
        let current = self.source.current().await?;
        #[cfg(feature = "google-federation")]
        if let Some(executable) = current.account.executable()
            && let Err(source) = self.calls.executables.permit(executable)
        {
            let program = executable.program().to_owned();
            return Err(GoogleError::Executable { program, source }.of_source(&current.described));
        }
        Ok(())
    }

    /// Why the program that credentials of the configuration name would not be started.
    #[cfg(feature = "google-federation")]
    fn refused_program(&self) -> Option<String> {
        let executable = self.source.configured()?.executable()?;
        let source = self.calls.executables.permit(executable).err()?;
        let program = executable.program().to_owned();
        Some(GoogleError::Executable { program, source }.to_string())
    }

    /// In a task of its own: whoever stops waiting takes nothing from the others who wait for the same token.
    async fn held(&self, wanted: TokenOf) -> Result<Held> {
        let provider = self.clone();
        let fetch = tokio::spawn(async move { provider.token(&wanted).await });
        fetch.await.unwrap_or_else(|lost| {
            Err(Error::new(
                ErrorKind::Unexpected,
                "the call for a Google access token was lost",
            )
            .with_source(lost))
        })
    }

    async fn token(&self, wanted: &TokenOf) -> Result<Held> {
        let slot = self.tokens.slot(wanted);
        let mut state = slot.lock().await;
        let current = self.source.current().await?;
        if let Some(answer) = state.answer(&current, self.clock.now()) {
            return answer;
        }
        match self.fetch(wanted, &current).await {
            Ok(token) => state.keep(&current, token, self.clock.now()),
            Err(failure) => self.failed(&mut state, &current, failure),
        }
    }

    /// The old token as long as it is good.
    fn failed(&self, state: &mut State, current: &Current, failure: GoogleError) -> Result<Held> {
        let error = failure.of_source(&current.described);
        let old = state.failed(current, error.clone(), self.clock.now());
        if old.is_some() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot get a new Google access token: the old one is used until its end",
            );
        }
        old.ok_or(error)
    }

    async fn fetch(&self, wanted: &TokenOf, current: &Current) -> Result<AccessToken, GoogleError> {
        match wanted {
            TokenOf::Account => self.of_account(&current.account, Scopes::Clusters).await,
            #[cfg(feature = "google-federation")]
            TokenOf::Impersonator => self.of_account(&current.account, Scopes::Impersonation).await,
            #[cfg(feature = "google-federation")]
            TokenOf::Impersonated(account) => {
                let own = Box::pin(self.token(&TokenOf::Impersonator)).await;
                let own = own.map_err(GoogleError::Impersonator)?;
                let target = federation::Target::account(&self.iam_credentials, account)?;
                self.calls
                    .impersonate(&target, &own.token, Scopes::Clusters)
                    .await
            }
            #[cfg(not(feature = "google-federation"))]
            TokenOf::Impersonated(_) => Err(GoogleError::NeedsFederation("impersonation")),
        }
    }

    async fn of_account(&self, account: &Account, scopes: Scopes) -> Result<AccessToken, GoogleError> {
        let (calls, clock) = (&self.calls, &*self.clock);
        match account {
            Account::Key(key) => calls.assertion(clock, key, scopes).await,
            Account::User(user) => calls.refresh(clock, user, scopes).await,
            Account::Metadata(server) => calls.metadata(clock, server, scopes).await,
            #[cfg(feature = "google-federation")]
            Account::External(external) => calls.external(clock, external, scopes).await,
            #[cfg(feature = "google-federation")]
            Account::Impersonated(source, target) => {
                let own = Box::pin(self.of_account(source, Scopes::Impersonation)).await?;
                calls.impersonate(target, &own.token, scopes).await
            }
        }
    }
}

#[async_trait]
impl KubernetesAuthProvider for GoogleServiceAccountProvider {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn scope(&self, _: &ClusterDetails) -> CredentialScope {
        CredentialScope::Application
    }

    /// Looks at the cluster's own settings and at credentials that stand in the configuration; files are read when a token
    /// is needed.
    fn validate(&self, cluster: &ClusterDetails) -> Vec<Problem> {
        let mut problems = options::read(cluster).err().unwrap_or_default();
        problems.extend(self.source.problem().map(|text| Problem::new("", text)));
        #[cfg(feature = "google-federation")]
        problems.extend(self.refused_program().map(|text| Problem::new("", text)));
        if let Some(Err(why)) = &self.impersonate {
            problems.push(Problem::new("", unusable_account(why)));
        }
        problems
    }

    fn public_metadata(&self, _: &ClusterDetails) -> Metadata {
        Metadata::new()
    }

    async fn credential(&self, request: &CredentialRequest) -> Result<Credential> {
        let held = self.held(self.wanted(&request.cluster)?).await?;
        Ok(held.credential.with_refresh_at(held.due))
    }

    /// Drops the token if it is the one that was refused; the next one comes from Google anew.
    async fn invalidate(&self, request: &CredentialRequest, refused: &Credential) -> bool {
        let Ok(wanted) = self.wanted(&request.cluster) else {
            return false;
        };
        self.tokens.slot(&wanted).lock().await.drop_refused(refused);
        true
    }
}

#[async_trait]
impl AccessTokenSource for GoogleServiceAccountProvider {
    async fn access_token(&self) -> Result<Secret> {
        let wanted = self.wanted_by_default()?;
        Ok(self.held(wanted).await?.token)
    }
}

impl fmt::Debug for GoogleServiceAccountProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoogleServiceAccountProvider")
            .field("source", &self.source)
            .field("impersonate", &self.impersonate)
            .finish_non_exhaustive()
    }
}

fn unusable_account(why: &str) -> String {
    format!("kubeAuthn.strategies.googleServiceAccount.impersonate: {why}")
}

/// <https://cloud.google.com/iam/docs/reference/credentials/rest/v1/projects.serviceAccounts/generateAccessToken>
const IAM_CREDENTIALS: &str = "https://iamcredentials.googleapis.com";

#[cfg(test)]
mod tests;
