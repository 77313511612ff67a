//! Workload identity federation, and service accounts that another one speaks for.
//!
//! <https://google.aip.dev/auth/4117>, <https://cloud.google.com/iam/docs/service-account-impersonation>

use std::{fmt, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kube_authn_core::{
    Clock, Secret,
    bytes::Bytes,
    http::{HeaderName, HeaderValue, Request, StatusCode, header},
    serde_json::{self, Value, json},
};
use url::{Host, Url};

use super::{
    account::{Fields, protected_url},
    calls::{AccessToken, Calls, Scopes, answered, host, token, usable},
    credentials,
    error::{FileError, GoogleError},
    executable::{Asking, Executable},
};

/// An identity of another issuer that Google trusts (type `external_account`).
pub(super) struct ExternalAccount {
    audience: String,
    subject_token_type: String,
    token_url: Url,
    client: Option<(String, Secret)>,
    user_project: Option<String>,
    subject: Subject,
    impersonated: Option<Target>,
}

/// Where the other issuer's token is.
struct Subject {
    place: Place,
    /// The token is the text of this field of a JSON object; `None`: it is all there is.
    field: Option<String>,
}

enum Place {
    File(PathBuf),
    Url(Url, Vec<(HeaderName, HeaderValue)>),
    Program(Executable),
}

/// A service account that is spoken for.
#[derive(Debug)]
pub(super) struct Target {
    url: Url,
    delegates: Vec<String>,
    seconds: u64,
}

impl ExternalAccount {
    pub(super) fn of(fields: &mut Fields) -> Result<Self, FileError> {
        let url = fields.text("token_url")?;
        let secret = fields.optional_text("client_secret")?.map(Secret::new);
        Ok(Self {
            audience: fields.text("audience")?,
            subject_token_type: fields.text("subject_token_type")?,
            token_url: protected_url("token_url", &url)?,
            client: fields
                .optional_text("client_id")?
                .map(|id| (id, secret.unwrap_or_else(|| Secret::new("")))),
            user_project: fields.optional_text("workforce_pool_user_project")?,
            subject: Subject::of(Fields::of(fields.take("credential_source")?)?)?,
            impersonated: Target::of_external(fields)?,
        })
    }
}

impl ExternalAccount {
    /// The program that gives the subject token.
    pub(super) fn executable(&self) -> Option<&Executable> {
        match &self.subject.place {
            Place::Program(executable) => Some(executable),
            Place::File(_) | Place::Url(..) => None,
        }
    }
}

impl Subject {
    fn of(mut source: Fields) -> Result<Self, FileError> {
        if source.optional("environment_id").is_some() || source.optional("certificate").is_some() {
            return Err(FileError::Unsupported(
                "this credential_source is not supported: use a file, a URL or an executable",
            ));
        }
        let field = match source.optional("format") {
            None => None,
            Some(format) => {
                let mut format = Fields::of(format)?;
                match format.optional_text("type")?.as_deref() {
                    None | Some("text") => None,
                    Some("json") => Some(format.text("subject_token_field_name")?),
                    Some(_) => return Err(FileError::WrongType("format.type")),
                }
            }
        };
        let place = match (
            source.optional_text("file")?,
            source.optional_text("url")?,
            source.optional("executable"),
        ) {
            (Some(file), None, None) => Place::File(file.into()),
            (None, Some(url), None) => Place::Url(subject_url(&url)?, headers(&mut source)?),
            (None, None, Some(executable)) => Place::Program(Executable::of(executable)?),
            _ => {
                return Err(FileError::Unsupported(
                    "credential_source needs one of file, url and executable",
                ));
            }
        };
        Ok(Self { place, field })
    }

    /// The token in what the place gave.
    fn token(&self, content: &Secret) -> Option<Secret> {
        let Some(field) = &self.field else {
            let token = content.expose().trim_ascii();
            return (!token.is_empty()).then(|| Secret::new(token));
        };
        match serde_json::from_slice::<Value>(content.expose())
            .ok()?
            .get_mut(field)?
            .take()
        {
            Value::String(token) if !token.is_empty() => Some(Secret::new(token)),
            _ => None,
        }
    }
}

/// As [`protected_url`], and metadata servers of other clouds, too.
fn subject_url(text: &str) -> Result<Url, FileError> {
    const NAME: &str = "credential_source.url";
    let url = Url::parse(text).map_err(|_| FileError::Url(NAME))?;
    match url.host() {
        Some(Host::Ipv4(address)) if url.scheme() == "http" && address.is_link_local() => Ok(url),
        _ => protected_url(NAME, text),
    }
}

fn headers(source: &mut Fields) -> Result<Vec<(HeaderName, HeaderValue)>, FileError> {
    const WRONG: FileError = FileError::WrongType("credential_source.headers");
    let Some(headers) = source.optional("headers") else {
        return Ok(Vec::new());
    };
    let headers = headers.as_object().ok_or(WRONG)?;
    let header = |(name, value): (&String, &Value)| {
        let name = HeaderName::try_from(name).map_err(|_| WRONG)?;
        let mut value = HeaderValue::try_from(value.as_str().ok_or(WRONG)?).map_err(|_| WRONG)?;
        value.set_sensitive(true);
        Ok((name, value))
    };
    headers.iter().map(header).collect()
}

impl Target {
    /// What a file of type `impersonated_service_account` names.
    pub(super) fn of(fields: &mut Fields) -> Result<Self, FileError> {
        const NAME: &str = "delegates";
        let url = fields.text("service_account_impersonation_url")?;
        let delegates = match fields.optional(NAME) {
            None => Vec::new(),
            Some(Value::Array(list)) => list
                .into_iter()
                .map(|value| match value {
                    Value::String(text) => Ok(text),
                    _ => Err(FileError::WrongType(NAME)),
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(FileError::WrongType(NAME)),
        };
        Ok(Self {
            url: protected_url("service_account_impersonation_url", &url)?,
            delegates,
            seconds: LIFETIME_SECONDS,
        })
    }

    fn of_external(fields: &mut Fields) -> Result<Option<Self>, FileError> {
        let Some(url) = fields.optional_text("service_account_impersonation_url")? else {
            return Ok(None);
        };
        let seconds = match fields.optional("service_account_impersonation") {
            None => None,
            Some(options) => Fields::of(options)?.optional("token_lifetime_seconds"),
        };
        let seconds = match seconds {
            None => LIFETIME_SECONDS,
            Some(seconds) => seconds
                .as_u64()
                .filter(|seconds| (MIN_LIFETIME_SECONDS..=MAX_LIFETIME_SECONDS).contains(seconds))
                .ok_or(FileError::Unsupported(
                    "token_lifetime_seconds must be 600 to 43200",
                ))?,
        };
        Ok(Some(Self {
            url: protected_url("service_account_impersonation_url", &url)?,
            delegates: Vec::new(),
            seconds,
        }))
    }

    /// The e-mail address in the URL.
    fn email(&self) -> Option<&str> {
        let name = self.url.path().rsplit('/').next()?;
        name.strip_suffix(":generateAccessToken")
    }

    /// The service account of this e-mail address, which is checked.
    pub(super) fn account(iam_credentials: &str, email: &str) -> Result<Self, GoogleError> {
        let base = iam_credentials.trim_end_matches('/');
        let url = format!("{base}/v1/projects/-/serviceAccounts/{email}:generateAccessToken");
        Ok(Self {
            url: Url::parse(&url).map_err(|_| GoogleError::IamUrl)?,
            delegates: Vec::new(),
            seconds: LIFETIME_SECONDS,
        })
    }
}

impl Calls {
    /// Exchanges the other issuer's token (RFC 8693), then perhaps speaks for a service account.
    pub(super) async fn external(
        &self,
        clock: &dyn Clock,
        account: &ExternalAccount,
        scopes: Scopes,
    ) -> Result<AccessToken, GoogleError> {
        let Some(target) = &account.impersonated else {
            return self.exchange(clock, account, scopes).await;
        };
        let own = self.exchange(clock, account, Scopes::Impersonation).await?;
        self.impersonate(target, &own.token, scopes).await
    }

    async fn exchange(
        &self,
        clock: &dyn Clock,
        account: &ExternalAccount,
        scopes: Scopes,
    ) -> Result<AccessToken, GoogleError> {
        let subject = self.subject_token(clock, account).await?;
        let scope = scopes.list().join(" ");
        let options = account
            .user_project
            .as_ref()
            .map(|project| json!({ "userProject": project }).to_string());
        let mut fields = vec![
            ("grant_type", TOKEN_EXCHANGE),
            ("audience", &account.audience),
            ("scope", &scope),
            ("requested_token_type", ACCESS_TOKEN),
            ("subject_token", subject.expose_str().unwrap_or_default()),
            ("subject_token_type", &account.subject_token_type),
        ];
        if let (Some(options), None) = (&options, &account.client) {
            fields.push(("options", options));
        }
        let authorization = account.client.as_ref().map(basic).transpose()?;
        let begun = clock.now();
        let answer = self
            .transport()
            .await?
            .post_form(&account.token_url, authorization, &fields)
            .await;
        token(&account.token_url, &answer.map_err(GoogleError::Call)?, begun)
    }

    async fn subject_token(
        &self,
        clock: &dyn Clock,
        account: &ExternalAccount,
    ) -> Result<Secret, GoogleError> {
        let subject = &account.subject;
        let (content, place) = match &subject.place {
            Place::Program(executable) => return self.printed_token(clock, account, executable).await,
            Place::File(path) => {
                let asked = path.clone();
                let content = tokio::task::spawn_blocking(move || credentials::read(&asked))
                    .await
                    .unwrap_or_else(|lost| Err(std::io::Error::other(lost)));
                let content = content.map_err(|source| GoogleError::Unreadable {
                    path: path.clone(),
                    source,
                })?;
                (content, path.display().to_string())
            }
            Place::Url(url, headers) => {
                let mut request = Request::get(url.as_str());
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                let request = request.body(Bytes::new()).map_err(|_| {
                    GoogleError::SubjectToken(format!("cannot be asked for at {}", host(url)))
                })?;
                let transport = self.transport().await?.clone().with_link_local_http();
                let answer = transport.send(request).await.map_err(GoogleError::Call)?;
                if answer.status() != StatusCode::OK {
                    return Err(GoogleError::Refused {
                        host: host(url),
                        status: answer.status(),
                        code: None,
                    });
                }
                (Secret::new(answer.body().to_vec()), host(url))
            }
        };
        let found = subject
            .token(&content)
            .filter(|token| token.expose_str().is_some());
        found.ok_or_else(|| GoogleError::SubjectToken(format!("is not in {place}")))
    }

    async fn printed_token(
        &self,
        clock: &dyn Clock,
        account: &ExternalAccount,
        executable: &Executable,
    ) -> Result<Secret, GoogleError> {
        let asking = Asking {
            audience: &account.audience,
            token_type: &account.subject_token_type,
            impersonated: account.impersonated.as_ref().and_then(Target::email),
        };
        let token = self.executables.token(executable, &asking, clock.now()).await;
        token.map_err(|source| GoogleError::Executable {
            program: executable.program().to_owned(),
            source,
        })
    }

    /// A token of another account, by the right to speak for it.
    pub(super) async fn impersonate(
        &self,
        target: &Target,
        own: &Secret,
        scopes: Scopes,
    ) -> Result<AccessToken, GoogleError> {
        let malformed = || GoogleError::NoToken(host(&target.url));
        let body = json!({
            "delegates": target.delegates,
            "scope": scopes.list(),
            "lifetime": format!("{}s", target.seconds),
        });
        let request = Request::post(target.url.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, own.to_bearer().map_err(GoogleError::Call)?)
            .body(Bytes::from(body.to_string()))
            .map_err(|_| malformed())?;
        let answer = self.transport().await?.send(request).await;
        let mut fields = answered(&target.url, &answer.map_err(GoogleError::Call)?)?;
        let expires_at = fields
            .text("expireTime")
            .ok()
            .and_then(|time| time.parse::<Timestamp>().ok());
        let found = expires_at.zip(fields.text("accessToken").ok());
        let found = found.map(|(expires_at, token)| AccessToken {
            token: Secret::new(token),
            expires_at,
        });
        usable(&target.url, found)
    }
}

/// RFC 6749 section 2.3.1, as Google's libraries write it.
fn basic((id, secret): &(String, Secret)) -> Result<HeaderValue, GoogleError> {
    let pair = Secret::new([id.as_bytes(), b":", secret.expose()].concat());
    let line = format!("Basic {}", STANDARD.encode(pair.expose()));
    HeaderValue::try_from(line).map_err(|_| GoogleError::Signature)
}

impl fmt::Debug for ExternalAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAccount")
            .field("audience", &self.audience)
            .field("impersonated", &self.impersonated)
            .finish_non_exhaustive()
    }
}

/// RFC 8693 section 2.1 and section 3.
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Google's default, and what it takes (<https://google.aip.dev/auth/4117>).
const LIFETIME_SECONDS: u64 = 3600;
const MIN_LIFETIME_SECONDS: u64 = 600;
const MAX_LIFETIME_SECONDS: u64 = 43_200;
