//! Which STS host a token names, and which region a cluster's URL names: the SDK's own partition data.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use aws_sdk_sts::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};

use super::error::AwsError;

/// A region and the kind of endpoint in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    pub(super) region: Arc<str>,
    pub(super) fips: bool,
    pub(super) dual_stack: bool,
}

/// Resolves hosts and remembers them.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    resolver: DefaultResolver,
    known: Mutex<HashMap<Endpoint, Arc<str>>>,
}

impl Hosts {
    /// `sts.eu-west-1.amazonaws.com`: always regional, and never an address that the environment puts in its place, since
    /// whoever verifies the token calls it.
    pub(super) async fn sts(&self, endpoint: &Endpoint) -> Result<Arc<str>, AwsError> {
        if let Some(host) = self.lock().get(endpoint) {
            return Ok(host.clone());
        }
        let host: Arc<str> = self.resolve(endpoint).await?.into();
        let mut known = self.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(endpoint.clone(), host.clone());
        Ok(host)
    }

    async fn resolve(&self, endpoint: &Endpoint) -> Result<String, AwsError> {
        if !is_region(&endpoint.region) {
            return Err(AwsError::NotARegion(endpoint.region.to_string()));
        }
        let failed = |reason: String| AwsError::NoEndpoint {
            region: endpoint.region.to_string(),
            reason,
        };
        let params = Params::builder()
            .region(&*endpoint.region)
            .use_fips(endpoint.fips)
            .use_dual_stack(endpoint.dual_stack)
            .use_global_endpoint(false)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let found = self
            .resolver
            .resolve_endpoint(&params)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let host = found.url().strip_prefix("https://").unwrap_or_default();
        match host.is_empty() || host.contains(['/', ':', '@', '?', '#']) {
            true => Err(failed("the endpoint is no https host".to_owned())),
            false => Ok(host.to_owned()),
        }
    }

    /// The region in an EKS API server's host name: `<id>.<group>.<region>.eks.<suffix>`, or
    /// `<id>.<group>.eks-cluster.<region>.<dual-stack suffix>`
    /// (<https://docs.aws.amazon.com/eks/latest/userguide/cluster-endpoint.html>). The suffix must be the one of the
    /// region's partition, so a name that only looks alike tells no region.
    pub(super) async fn region_of(&self, host: &str) -> Option<Arc<str>> {
        let host = host.to_ascii_lowercase();
        let (region, suffix, dual_stack) = split_single(&host)
            .map(|(region, suffix)| (region, suffix, false))
            .or_else(|| split_dual(&host).map(|(region, suffix)| (region, suffix, true)))?;
        let endpoint = Endpoint {
            region: region.into(),
            fips: false,
            dual_stack,
        };
        let sts = self.sts(&endpoint).await.ok()?;
        (*sts == format!("sts.{region}.{suffix}")).then_some(endpoint.region)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Endpoint, Arc<str>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn split_single(host: &str) -> Option<(&str, &str)> {
    let (before, suffix) = host.split_once(".eks.")?;
    Some((before.rsplit_once('.')?.1, suffix))
}

fn split_dual(host: &str) -> Option<(&str, &str)> {
    host.split_once(".eks-cluster.")?.1.split_once('.')
}

fn is_region(text: &str) -> bool {
    let is_part = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '-';
    !text.is_empty() && text.len() <= 63 && text.chars().all(is_part)
}

/// More than AWS has regions, times the kinds of endpoint.
const MAX_KNOWN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    async fn host(region: &str, fips: bool, dual_stack: bool) -> Result<String, AwsError> {
        let endpoint = Endpoint {
            region: region.into(),
            fips,
            dual_stack,
        };
        Hosts::default().sts(&endpoint).await.map(|host| host.to_string())
    }

    #[tokio::test]
    async fn host_is_that_of_the_regions_partition() {
        for (region, fips, dual_stack, expected) in [
            ("us-east-1", false, false, "sts.us-east-1.amazonaws.com"),
            ("eu-central-1", false, false, "sts.eu-central-1.amazonaws.com"),
            ("us-west-2", true, false, "sts-fips.us-west-2.amazonaws.com"),
            ("us-west-2", false, true, "sts.us-west-2.api.aws"),
            ("cn-north-1", false, false, "sts.cn-north-1.amazonaws.com.cn"),
            (
                "cn-north-1",
                false,
                true,
                "sts.cn-north-1.api.amazonwebservices.com.cn",
            ),
            ("us-gov-west-1", false, false, "sts.us-gov-west-1.amazonaws.com"),
            ("us-gov-west-1", true, false, "sts.us-gov-west-1.amazonaws.com"),
            ("us-iso-east-1", false, false, "sts.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", false, false, "sts.us-isob-east-1.sc2s.sgov.gov"),
            ("eusc-de-east-1", false, false, "sts.eusc-de-east-1.amazonaws.eu"),
        ] {
            assert_eq!(host(region, fips, dual_stack).await.expect("a host"), expected);
        }
    }

    #[tokio::test]
    async fn text_that_is_no_region_never_becomes_a_host() {
        for region in ["", "eu-west-1.evil.example", "EU-WEST-1", "a/b", "a@b", "a b"] {
            let error = host(region, false, false).await.expect_err("refused");

            assert!(matches!(error, AwsError::NotARegion(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn region_stands_in_the_url_of_the_cluster() {
        let hosts = Hosts::default();
        for (host, expected) in [
            ("0A1B.gr7.eu-west-1.eks.amazonaws.com", Some("eu-west-1")),
            ("0a1b.eu-west-1.eks.amazonaws.com", Some("eu-west-1")),
            ("0a1b.sk1.cn-north-1.eks.amazonaws.com.cn", Some("cn-north-1")),
            ("0a1b.gr7.us-gov-east-1.eks.amazonaws.com", Some("us-gov-east-1")),
            ("0a1b.gr7.eusc-de-east-1.eks.amazonaws.eu", Some("eusc-de-east-1")),
            ("0a1b.gr7.us-iso-east-1.eks.c2s.ic.gov", Some("us-iso-east-1")),
            ("0a1b.gr7.eks-cluster.us-west-2.api.aws", Some("us-west-2")),
            (
                "0a1b.gr7.eks-cluster.cn-north-1.api.amazonwebservices.com.cn",
                Some("cn-north-1"),
            ),
            ("0a1b.gr7.cn-north-1.eks.amazonaws.com", None),
            ("0a1b.gr7.eu-west-1.eks.amazonaws.com.evil.example", None),
            ("eks.amazonaws.com", None),
            ("eks.example.com", None),
            ("k8s.example.com", None),
            ("127.0.0.1", None),
        ] {
            assert_eq!(hosts.region_of(host).await.as_deref(), expected, "{host}");
        }
    }
}
