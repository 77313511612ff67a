//! The sources of a token, one after the other.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kube_authn_core::{CaBundle, Clock, Error, Secret, TlsTrust, Transport, rustls::crypto::CryptoProvider};

use super::{
    assertion::{self, Claims},
    cli,
    credentials::{self, Environment},
    entra::{Entra, Proof},
    error::{AzureError, ChainError},
    managed_identity::MachineIdentity,
    options::{Wanted, is_tenant},
    settings::{AzureConfig, AzureSource, ManagedIdentity},
    tokens::Fetched,
};

/// All sources with what they need.
#[derive(Debug)]
pub(super) struct Chain {
    config: AzureConfig,
    order: Vec<AzureSource>,
    env: Environment,
    services: Result<Services, AzureError>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Services {
    entra: Entra,
    machine: MachineIdentity,
}

/// A client as far as it is known, and with what it proves to be it.
struct Client<'a> {
    tenant: Option<&'a str>,
    id: Option<&'a str>,
    proof: Means<'a>,
    /// Where tenant and client id are set.
    place: &'static str,
}

enum Means<'a> {
    Secret(&'a Secret),
    Certificate {
        file: &'a PathBuf,
        key_file: &'a PathBuf,
        send_chain: bool,
    },
    FederatedToken(&'a PathBuf),
}

impl Chain {
    pub(super) fn new(
        config: &AzureConfig,
        crypto: Arc<CryptoProvider>,
        env: Environment,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            config: config.clone(),
            order: config.order(),
            services: Services::new(config, crypto, &env),
            env,
            clock,
        }
    }

    /// # Errors
    /// What no cluster can do without.
    pub(super) fn usable(&self) -> Result<(), &AzureError> {
        self.services.as_ref().map(drop)
    }

    #[cfg(test)]
    pub(super) fn token_endpoint(&self, tenant: &str) -> Result<String, AzureError> {
        Ok(self.services()?.entra.token_endpoint(tenant))
    }

    /// A token from the first source that is set up; from `only` alone if it is given.
    pub(super) async fn fetch(
        &self,
        wanted: &Wanted,
        only: Option<AzureSource>,
    ) -> Result<(AzureSource, Fetched), ChainError> {
        let mut reasons = Vec::new();
        for &source in self
            .order
            .iter()
            .filter(|source| only.is_none_or(|only| only == **source))
        {
            match self.ask(source, wanted).await {
                Ok(fetched) => return Ok((source, fetched)),
                Err(reason) => {
                    let ends = !reason.is_absence();
                    reasons.push((source, reason));
                    if ends {
                        break;
                    }
                }
            }
        }
        Err(ChainError(reasons))
    }

    async fn ask(&self, source: AzureSource, wanted: &Wanted) -> Result<Fetched, AzureError> {
        match source {
            AzureSource::Config => self.client_token(self.configured()?, wanted).await,
            AzureSource::Environment => self.client_token(self.environment()?, wanted).await,
            AzureSource::WorkloadIdentity => self.client_token(self.workload()?, wanted).await,
            AzureSource::ManagedIdentity => self.machine_token(wanted).await,
            AzureSource::AzureCli => {
                let program = self.config.azure_cli_path.as_ref().or(self.env.az.as_ref());
                cli::azure_cli(program, wanted, self.account_tenant(wanted)?).await
            }
            AzureSource::AzureDeveloperCli => {
                let program = self
                    .config
                    .azure_developer_cli_path
                    .as_ref()
                    .or(self.env.azd.as_ref());
                cli::azure_developer_cli(program, wanted, self.account_tenant(wanted)?).await
            }
        }
    }

    fn configured(&self) -> Result<Client<'_>, AzureError> {
        let config = &self.config;
        let proof = match (
            &config.client_secret,
            &config.certificate_file,
            &config.federated_token_file,
        ) {
            (Some(secret), None, None) => Means::Secret(secret),
            (None, Some(file), None) => Means::Certificate {
                file,
                key_file: config.certificate_key_file.as_ref().unwrap_or(file),
                send_chain: config.send_certificate_chain,
            },
            (None, None, Some(file)) => Means::FederatedToken(file),
            _ => {
                return Err(AzureError::Misconfigured(
                    "set one of clientSecret, certificateFile and federatedTokenFile".to_owned(),
                ));
            }
        };
        Ok(Client {
            tenant: config.tenant_id.as_deref(),
            id: config.client_id.as_deref(),
            proof,
            place: "tenantId and clientId under kubeAuthn.strategies.azure",
        })
    }

    fn environment(&self) -> Result<Client<'_>, AzureError> {
        let env = &self.env;
        let proof = match (&env.client_secret, &env.certificate_file) {
            (Some(secret), _) => Means::Secret(secret),
            (None, Some(_)) if env.has_certificate_password => {
                return Err(AzureError::Misconfigured(
                    "AZURE_CLIENT_CERTIFICATE_PASSWORD is set, and encrypted certificates are not read: give a PEM file \
                     without password"
                        .to_owned(),
                ));
            }
            (None, Some(file)) => Means::Certificate {
                file,
                key_file: file,
                send_chain: env.send_certificate_chain,
            },
            (None, None) => {
                return Err(AzureError::Absent(
                    "neither AZURE_CLIENT_SECRET nor AZURE_CLIENT_CERTIFICATE_PATH is set".to_owned(),
                ));
            }
        };
        Ok(self.environment_client(proof))
    }

    fn workload(&self) -> Result<Client<'_>, AzureError> {
        match &self.env.federated_token_file {
            Some(file) => Ok(self.environment_client(Means::FederatedToken(file))),
            None => Err(AzureError::Absent(
                "AZURE_FEDERATED_TOKEN_FILE is not set".to_owned(),
            )),
        }
    }

    fn environment_client<'a>(&'a self, proof: Means<'a>) -> Client<'a> {
        Client {
            tenant: self.home_tenant(),
            id: self.config.client_id.as_deref().or(self.env.client_id.as_deref()),
            proof,
            place: "AZURE_TENANT_ID and AZURE_CLIENT_ID",
        }
    }

    fn home_tenant(&self) -> Option<&str> {
        self.config.tenant_id.as_deref().or(self.env.tenant_id.as_deref())
    }

    async fn client_token(&self, client: Client<'_>, wanted: &Wanted) -> Result<Fetched, AzureError> {
        let entra = &self.services()?.entra;
        let tenant = wanted.tenant.as_deref().or(client.tenant);
        let id = wanted.client_id.as_deref().or(client.id);
        let (Some(tenant), Some(id)) = (tenant, id) else {
            return Err(AzureError::Misconfigured(format!("set {}", client.place)));
        };
        let proof = match client.proof {
            Means::Secret(secret) => Proof::Secret(secret.clone()),
            Means::FederatedToken(file) => {
                let token = credentials::read(file).await?;
                Proof::Assertion(Secret::new(token.expose().trim_ascii()))
            }
            Means::Certificate {
                file,
                key_file,
                send_chain,
            } => {
                let endpoint = entra.token_endpoint(tenant);
                Proof::Assertion(
                    self.assertion((file, key_file, send_chain), &endpoint, id)
                        .await?,
                )
            }
        };
        entra.token(tenant, id, proof, &wanted.scope()).await
    }

    /// Signed off the async threads: RSA takes a millisecond.
    async fn assertion(
        &self,
        (file, key_file, send_chain): (&PathBuf, &PathBuf, bool),
        token_endpoint: &str,
        client_id: &str,
    ) -> Result<Secret, AzureError> {
        let chain = credentials::read(file).await?;
        let key = match key_file == file {
            true => chain.clone(),
            false => credentials::read(key_file).await?,
        };
        let (endpoint, client_id, now) = (token_endpoint.to_owned(), client_id.to_owned(), self.clock.now());
        let signing = tokio::task::spawn_blocking(move || {
            let claims = Claims::new(&endpoint, &client_id, now)?;
            assertion::sign(&chain, &key, &claims, send_chain)
        });
        let signed = signing.await.unwrap_or(Err("could not be read to its end"));
        signed
            .map_err(|why| AzureError::Misconfigured(format!("the certificate in {} {why}", file.display())))
    }

    async fn machine_token(&self, wanted: &Wanted) -> Result<Fetched, AzureError> {
        let machine = &self.services()?.machine;
        if wanted.tenant.is_some() && wanted.tenant.as_deref() != self.home_tenant() {
            return Err(AzureError::Absent(
                "a managed identity has tokens of its own tenant alone, and the cluster names another one"
                    .to_owned(),
            ));
        }
        let by_client_id = |id: &String| ManagedIdentity::ClientId(id.clone());
        let chosen = wanted.client_id.as_ref().map(by_client_id);
        let chosen = chosen.or_else(|| self.config.managed_identity.clone());
        let asked = chosen.is_some();
        let known = chosen.or_else(|| {
            let id = self.config.client_id.as_ref().or(self.env.client_id.as_ref());
            id.map(by_client_id)
        });
        let identity = known.unwrap_or(ManagedIdentity::SystemAssigned);
        machine
            .token(&identity, asked, &wanted.application, &*self.clock)
            .await
    }

    /// A person's account knows its own tenant.
    fn account_tenant<'a>(&'a self, wanted: &'a Wanted) -> Result<Option<&'a str>, AzureError> {
        let tenant = wanted.tenant.as_deref().or(self.config.tenant_id.as_deref());
        match tenant.is_none_or(is_tenant) {
            true => Ok(tenant),
            false => Err(AzureError::Misconfigured(
                "the tenant is neither an id nor a domain".to_owned(),
            )),
        }
    }

    fn services(&self) -> Result<&Services, AzureError> {
        self.services.as_ref().map_err(Clone::clone)
    }
}

impl Services {
    fn new(config: &AzureConfig, crypto: Arc<CryptoProvider>, env: &Environment) -> Result<Self, AzureError> {
        let unusable = |error: Error| AzureError::Call(error);
        let transport = Transport::new(
            crypto,
            TlsTrust::new(config.ca.clone().unwrap_or(CaBundle::System)),
        )
        .map_err(unusable)?;
        let configured = config.authority_host.as_ref().map(ToString::to_string);
        let authority = configured.or_else(|| env.authority_host.clone());
        let authority = authority.unwrap_or_else(|| config.cloud.authority_host().to_owned());
        let nearby = transport
            .clone()
            .with_link_local_http()
            .with_timeouts(NEARBY_CONNECT, NEARBY_TOTAL);
        Ok(Self {
            entra: Entra::new(transport, &authority)?,
            machine: MachineIdentity::new(nearby, env),
        })
    }
}

/// Where there is no such service its address swallows what is sent to it.
const NEARBY_CONNECT: Duration = Duration::from_secs(1);
const NEARBY_TOTAL: Duration = Duration::from_secs(10);
