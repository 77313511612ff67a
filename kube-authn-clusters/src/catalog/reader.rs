//! A Backstage catalog over its REST API.
//!
//! <https://backstage.io/docs/features/software-catalog/software-catalog-api/>

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use kube_authn_core::{EntityReader, Error, ErrorKind, Result, Secret, Transport, http};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

/// The catalog of a Backstage backend. Clones share the transport.
#[derive(Clone, Debug)]
pub struct BackstageCatalog {
    base_url: Url,
    token: Option<Secret>,
    transport: Transport,
}

impl BackstageCatalog {
    /// The catalog at this base URL, `https://portal.example.com/api/catalog`.
    pub fn new(base_url: Url, transport: Transport) -> Self {
        Self {
            base_url,
            token: None,
            transport,
        }
    }

    /// Sends this bearer token: one of `backend.auth.externalAccess`.
    pub fn with_token(self, token: Secret) -> Self {
        Self {
            token: Some(token),
            ..self
        }
    }

    async fn page(&self, filter: &str, cursor: Option<&str>) -> Result<Page> {
        let mut url = self.base_url.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(["entities", "by-query"]),
            Err(()) => return Err(self.failed(ErrorKind::ConfigInvalid, "its URL takes no path")),
        };
        let limit = PAGE_ENTITIES.to_string();
        match cursor {
            // The filter is in the cursor.
            Some(cursor) => url
                .query_pairs_mut()
                .extend_pairs([("cursor", cursor), ("limit", &limit)]),
            None => url.query_pairs_mut().extend_pairs([
                ("filter", filter),
                ("fields", "kind,metadata,spec.type"),
                ("limit", &limit),
            ]),
        };
        let mut request = Request::get(url.as_str()).header(header::ACCEPT, "application/json");
        if let Some(token) = &self.token {
            let line = token
                .to_bearer()
                .map_err(|_| self.failed(ErrorKind::ConfigInvalid, "the token is no text of a header"))?;
            request = request.header(header::AUTHORIZATION, line);
        }
        let request = request.body(Bytes::new()).map_err(|source| {
            self.failed(ErrorKind::ConfigInvalid, "its URL is malformed")
                .with_source(source)
        })?;
        let answer = self.transport.send(request).await?;
        match answer.status() {
            StatusCode::OK => serde_json::from_slice(answer.body())
                .map_err(|_| self.failed(ErrorKind::Unavailable, "its answer is no page of entities")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.failed(
                ErrorKind::ConfigInvalid,
                "it refuses us: configure kubeAuthn.catalog.token with a token of its backend.auth.externalAccess",
            )),
            status => Err(self.failed(ErrorKind::Unavailable, &format!("it answers {}", status.as_u16()))),
        }
    }

    fn failed(&self, kind: ErrorKind, why: &str) -> Error {
        let host = self.base_url.host_str().unwrap_or_default();
        Error::new(kind, format!("cannot read the catalog at {host}: {why}"))
    }
}

#[async_trait]
impl EntityReader for BackstageCatalog {
    async fn entities(&self, filter: &str) -> Result<Vec<Value>> {
        let mut entities = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = self.page(filter, cursor.as_deref()).await?;
            entities.extend(page.items);
            cursor = page.page_info.next_cursor;
            if cursor.is_none() {
                return Ok(entities);
            }
        }
        Err(self.failed(
            ErrorKind::Unexpected,
            &format!("it goes on after {MAX_PAGES} pages of {PAGE_ENTITIES} entities"),
        ))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    items: Vec<Value>,
    #[serde(default)]
    page_info: PageInfo,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageInfo {
    next_cursor: Option<String>,
}

/// Entities with a CA have some 5 KiB, and an answer may have 1 MiB.
const PAGE_ENTITIES: usize = 100;
/// 10,000 clusters are more than anybody has.
const MAX_PAGES: usize = 100;
