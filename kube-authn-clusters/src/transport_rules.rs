//! Which credential may travel on which connection.

use kube_authn_core::ClusterDetails;

/// Why the cluster must not be used: stored user credentials and impersonation need https with verification, unless the
/// cluster says that it may be otherwise. The key is the one to mend, relative to the cluster.
pub(crate) fn refusal(cluster: &ClusterDetails) -> Option<(&'static str, String)> {
    if cluster.allows_insecure_user_credentials() {
        return None;
    }
    let (key, what) = exposed_users(cluster)?;
    Some((
        key,
        format!(
            "authProvider \"{}\" must not send users' credentials over {what}: use https with verification, or set \
             'dangerouslyAllowInsecureUserCredentials: true' for this cluster",
            cluster.auth_provider()
        ),
    ))
}

/// The key and the connection that expose users' credentials, loopback included: other users of the machine listen there.
fn exposed_users(cluster: &ClusterDetails) -> Option<(&'static str, &'static str)> {
    match () {
        () if !USER_CREDENTIALS.contains(&cluster.auth_provider()) => None,
        () if !cluster.server().is_https() => Some(("url", "http")),
        () if cluster.trust().skip_verify() => {
            Some(("skipTLSVerify", "a connection without TLS verification"))
        }
        () => None,
    }
}

/// What works and should be looked at.
pub(crate) fn warnings(cluster: &ClusterDetails) -> Vec<String> {
    let name = cluster.name();
    let mut warnings = Vec::new();
    if cluster.trust().skip_verify() {
        warnings.push(format!(
            "cluster '{name}' has skipTLSVerify: anybody on the way can read and change what is sent, credentials \
             included"
        ));
    }
    if !cluster.server().is_https() && !cluster.server().is_loopback() && sends_credentials(cluster) {
        warnings.push(format!(
            "cluster '{name}' is reached over http: credentials travel in the clear"
        ));
    }
    if cluster.allows_insecure_user_credentials()
        && let Some((_, what)) = exposed_users(cluster)
    {
        warnings.push(format!(
            "cluster '{name}' gets users' credentials over {what} (dangerouslyAllowInsecureUserCredentials)"
        ));
    }
    warnings
}

/// `localKubectlProxy` sends none. `serviceAccount` without a token goes to the pod's own API server, whatever the url.
fn sends_credentials(cluster: &ClusterDetails) -> bool {
    match cluster.auth_provider() {
        "localKubectlProxy" => false,
        "serviceAccount" => cluster.service_account_token().is_some(),
        _ => true,
    }
}

const USER_CREDENTIALS: [&str; 2] = [crate::CLUSTER_AUTH, "impersonation"];

#[cfg(test)]
mod tests {
    use super::*;
    use kube_authn_core::{ClusterBuilder, Secret};

    fn told(provider: &str, server: &str, more: fn(ClusterBuilder) -> ClusterBuilder) -> usize {
        let builder = ClusterDetails::builder("a", server).auth_provider(provider);
        warnings(&more(builder).build().expect("a cluster")).len()
    }

    #[test]
    fn what_travels_unprotected_is_warned_of() {
        let with_token = |builder: ClusterBuilder| builder.service_account_token(Secret::new("t"));

        assert_eq!(told("aws", "https://a", |builder| builder), 0);
        assert_eq!(told("aws", "http://a", |builder| builder), 1);
        assert_eq!(told("aws", "http://127.0.0.1", |builder| builder), 0);
        assert_eq!(
            told("aws", "https://a", |builder| builder.skip_tls_verify(true)),
            1
        );
        assert_eq!(told("serviceAccount", "http://a", with_token), 1);
        assert_eq!(told("serviceAccount", "http://a", |builder| builder), 0);
        assert_eq!(told("localKubectlProxy", "http://a", |builder| builder), 0);
        let allowed = |builder: ClusterBuilder| builder.dangerously_allow_insecure_user_credentials(true);
        assert_eq!(told("clusterAuth", "http://127.0.0.1", allowed), 1);
        assert_eq!(told("clusterAuth", "https://a", allowed), 0);
    }
}
