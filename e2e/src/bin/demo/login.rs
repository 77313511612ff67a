//! What a login daemon does: code and PKCE at an issuer, by the library, and the tokens handed over to the service.

use std::{path::Path, sync::Arc};

use http::Request;
use kube_authn_core::{CaBundle, ClientId, Issuer, Secret, TlsTrust, Transport};
use kube_authn_e2e::Caller;
use kube_authn_oidc::{AuthorizationRequest, IssuerClient, PostedTokens, TokenClient};
use serde_json::{Value, json};
use url::Url;

use crate::{Failure, telling::answered};

/// Signs somebody in. `browse` opens the URL and comes back with the one that the issuer redirects to.
pub(crate) async fn sign_in(
    issuer: &str,
    issuer_ca: Option<&Path>,
    client_id: &str,
    redirect_uri: Url,
    browse: impl AsyncFnOnce(&Url) -> Result<Url, Failure>,
) -> Result<PostedTokens, Failure> {
    let ca = issuer_ca.map_or(CaBundle::System, |file| CaBundle::File(file.into()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let issuer = IssuerClient::new(Issuer::new(issuer)?, Transport::new(provider, TlsTrust::new(ca))?);
    let client_id = ClientId::new(client_id)?;
    let request = AuthorizationRequest::new(&*issuer.metadata().await?, &client_id, redirect_uri, &SCOPES)?;

    let back = browse(request.url()).await?;
    let code = request.answer(back.query().unwrap_or_default())?;
    let answer = TokenClient::new(issuer, client_id)
        .exchange(&request, &code)
        .await?;
    Ok(PostedTokens::of_login(answer, request.nonce())?)
}

/// `POST /api/cluster-auth/tokens`: the answer, or the refusal as an error.
pub(crate) async fn post(caller: &Caller, tokens: &PostedTokens) -> Result<Value, Failure> {
    let request = Request::post("/api/cluster-auth/tokens");
    answered(caller.send(request, &body(tokens)?).await?)
}

/// What is posted.
pub(crate) fn body(tokens: &PostedTokens) -> Result<Value, Failure> {
    let text = |secret: &Secret| match secret.expose_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err("a token is not text"),
    };
    Ok(json!({
        "id_token": text(&tokens.id_token)?,
        "access_token": tokens.access_token.as_ref().map(text).transpose()?,
        "refresh_token": tokens.refresh_token.as_ref().map(text).transpose()?,
        "token_type": "Bearer",
    }))
}

/// For looking whether they can be read anywhere.
pub(crate) fn secrets(tokens: &PostedTokens) -> impl Iterator<Item = Secret> {
    let all = [
        Some(&tokens.id_token),
        tokens.access_token.as_ref(),
        tokens.refresh_token.as_ref(),
    ];
    all.into_iter().flatten().cloned().collect::<Vec<_>>().into_iter()
}

const SCOPES: [&str; 3] = ["email", "profile", "offline_access"];
