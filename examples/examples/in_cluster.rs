//! Seed 000: a service in a pod lists the pods of its own cluster with its own service account.
//!
//! In the pod: apply `manifests/in_cluster.yaml`. Outside, with a token from a Secret:
//!
//! ```sh
//! export K8S_URL=https://127.0.0.1:6443 K8S_CA_DATA=... K8S_SA_TOKEN=...
//! cargo run -p kube-authn-examples --example in_cluster -- examples/app-config.out-of-cluster.yaml
//! ```
//!
//! `--watch SECONDS` goes on listing, twenty times a second: the token may be rotated meanwhile.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example"
)]

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use kube_authn::kube_authn_clusters::AppConfig;
use kube_authn_core::Principal;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let mut arguments = std::env::args().skip(1);
    let file = arguments
        .next()
        .unwrap_or_else(|| "examples/app-config.in-cluster.yaml".to_owned());
    let seconds = arguments.nth(1).map_or(Ok(0), |text| text.parse())?;
    let config = AppConfig::load(&[file])?;

    let access = kube_authn::cluster_access(&config, None).await?;
    let pods: Api<Pod> = Api::all(access.client(&Principal::anonymous(), "backstage").await?);

    let start = Instant::now();
    let mut calls = 0;
    loop {
        let list = pods.list(&ListParams::default()).await?;
        calls += 1;
        if calls == 1 {
            for pod in &list {
                println!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            }
        }
        if start.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("{calls} calls, none failed");
    Ok(())
}
