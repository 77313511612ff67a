//! The identity of the machine, from the service that its cloud runs beside it.

use jiff::Timestamp;
use kube_authn_core::{
    Clock, Error, ErrorKind, Secret, Transport,
    bytes::Bytes,
    http::{HeaderValue, Request, StatusCode},
    serde_json,
};
use serde::Deserialize;
use url::Url;

use super::{
    credentials::Environment, entra::refusal, error::AzureError, settings::ManagedIdentity, tokens::Fetched,
};

/// Where this machine asks for tokens of its own identities.
#[derive(Clone, Debug)]
pub(super) struct MachineIdentity {
    transport: Transport,
    host: Host,
}

#[derive(Clone, Debug)]
enum Host {
    /// <https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference>
    AppService {
        endpoint: String,
        header: Secret,
    },
    /// <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>
    InstanceMetadata {
        host: String,
    },
    Unsupported {
        variable: &'static str,
    },
}

impl MachineIdentity {
    pub(super) fn new(transport: Transport, env: &Environment) -> Self {
        let host = match (env.other_host, &env.identity_endpoint, &env.identity_header) {
            (Some(variable), _, _) => Host::Unsupported { variable },
            (None, Some(endpoint), Some(header)) => Host::AppService {
                endpoint: endpoint.clone(),
                header: header.clone(),
            },
            (None, _, _) => Host::InstanceMetadata {
                host: env
                    .metadata_host
                    .clone()
                    .unwrap_or_else(|| METADATA_HOST.to_owned()),
            },
        };
        Self { transport, host }
    }

    /// A token of this identity for an application. `asked` is whether somebody chose the identity: then its absence is a
    /// failure, else it is no more than a machine without one.
    pub(super) async fn token(
        &self,
        identity: &ManagedIdentity,
        asked: bool,
        application: &str,
        clock: &dyn Clock,
    ) -> Result<Fetched, AzureError> {
        let request = self.request(identity, application)?;
        let host = request
            .uri()
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        let answer = self.transport.send(request).await.map_err(unreachable)?;
        match answer.status() {
            StatusCode::OK => {}
            // The service of another cloud has no such path.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN if !asked => {
                return Err(AzureError::Absent(format!("{host} gives no Azure tokens")));
            }
            StatusCode::BAD_REQUEST => {
                let text = format!("{host} knows no such identity: assign it to this machine");
                return Err(match asked {
                    true => AzureError::Misconfigured(text),
                    false => AzureError::Absent(text),
                });
            }
            status => return Err(refusal(host, status.as_u16(), answer.headers(), &[])),
        }
        let unreadable = || AzureError::NoToken(host.clone());
        let answer: Answer = serde_json::from_slice(answer.body()).map_err(|_| unreadable())?;
        answer.fetched(clock.now()).ok_or_else(unreadable)
    }

    fn request(&self, identity: &ManagedIdentity, application: &str) -> Result<Request<Bytes>, AzureError> {
        let (url, version, resource_key) = match &self.host {
            Host::AppService { endpoint, .. } => (endpoint.clone(), "2019-08-01", "mi_res_id"),
            Host::InstanceMetadata { host } => {
                let host = host.trim_end_matches('/');
                (
                    format!("{host}/metadata/identity/oauth2/token"),
                    "2018-02-01",
                    "msi_res_id",
                )
            }
            Host::Unsupported { variable } => {
                let text =
                    format!("{variable} is set, and managed identities of such hosts are not supported");
                return Err(AzureError::Absent(text));
            }
        };
        let malformed =
            |_| AzureError::Misconfigured("the address of the managed identity service is no URL".to_owned());
        let mut url = Url::parse(&url).map_err(malformed)?;
        {
            let mut query = url.query_pairs_mut();
            query
                .append_pair("api-version", version)
                .append_pair("resource", application);
            match identity {
                ManagedIdentity::SystemAssigned => &mut query,
                ManagedIdentity::ClientId(id) => query.append_pair("client_id", id),
                ManagedIdentity::ObjectId(id) => query.append_pair("object_id", id),
                ManagedIdentity::ResourceId(id) => query.append_pair(resource_key, id),
            };
        }
        let mut request = Request::get(url.as_str()).header("Metadata", "true");
        if let Host::AppService { header, .. } = &self.host {
            let header = HeaderValue::from_bytes(header.expose());
            let mut header =
                header.map_err(|_| AzureError::Misconfigured("IDENTITY_HEADER is no header".to_owned()))?;
            header.set_sensitive(true);
            request = request.header("X-IDENTITY-HEADER", header);
        }
        request.body(Bytes::new()).map_err(|_| {
            AzureError::Misconfigured("the address of the managed identity service is malformed".to_owned())
        })
    }
}

/// Nothing there is what a machine elsewhere looks like.
fn unreachable(error: Error) -> AzureError {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Timeout => AzureError::NoService(error),
        _ => AzureError::Call(error),
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    /// Seconds since 1970, a text or a number.
    #[serde(default)]
    expires_on: serde_json::Value,
    /// Seconds, a text or a number.
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl Answer {
    fn fetched(self, now: Timestamp) -> Option<Fetched> {
        let expires_at = match (seconds(&self.expires_on), seconds(&self.expires_in)) {
            (Some(at), _) => Timestamp::from_second(at).ok()?,
            (None, Some(life)) => Timestamp::from_second(now.as_second().checked_add(life)?).ok()?,
            (None, None) => return None,
        };
        Some(Fetched {
            token: Secret::new(self.access_token),
            expires_at,
        })
    }
}

fn seconds(value: &serde_json::Value) -> Option<i64> {
    match value {
        serde_json::Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    }
}

/// Link-local: the machine's own host answers.
const METADATA_HOST: &str = "http://169.254.169.254";
