//! Credentials of an app-config's clusters, obtained in a process whose environment a test decides.
//!
//! ```text
//! credentials FILE      reads lines of cluster names, separated by spaces; all of a line are asked at once; answers each
//!                       line with a JSON list of {"token", "expiresAt"} or {"kind", "error"}, in their order
//! ```

#![allow(clippy::print_stdout, reason = "its answers are what it is for")]

use std::{error::Error, io};

use futures_util::future::join_all;
use http::HeaderMap;
use kube_authn_clusters::AppConfig;
use kube_authn_core::{ClusterAccess, Principal};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("which configuration?")?;
    let config = AppConfig::load(&[file])?;
    let access = kube_authn::cluster_access(&config, None).await?;
    for line in io::stdin().lines() {
        let line = line?;
        let asked = line.split(' ').map(|cluster| answer(&access, cluster));
        println!("{}", Value::from(join_all(asked).await));
    }
    Ok(())
}

async fn answer(access: &ClusterAccess, cluster: &str) -> Value {
    let found = match access.request(&Principal::anonymous(), cluster) {
        Ok(request) => access.credential(&request).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(credential) => {
            let mut headers = HeaderMap::new();
            credential.apply(&mut headers);
            let line = headers
                .get(http::header::AUTHORIZATION)
                .and_then(|line| line.to_str().ok());
            json!({
                "token": line.and_then(|line| line.strip_prefix("Bearer ")),
                "expiresAt": credential.expires_at().map(|end| end.to_string()),
            })
        }
        Err(error) => json!({ "kind": format!("{:?}", error.kind()), "error": error.to_string() }),
    }
}
