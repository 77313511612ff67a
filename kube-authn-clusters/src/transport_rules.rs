//! Which credential may travel on which connection.

use kube_authn_core::ClusterDetails;

/// Why the cluster must not be used: stored user credentials and impersonation need https with verification, unless the
/// cluster says that it may be otherwise. The key is the one to mend, relative to the cluster.
pub(crate) fn refusal(cluster: &ClusterDetails) -> Option<(&'static str, String)> {
    if !USER_CREDENTIALS.contains(&cluster.auth_provider()) || cluster.allows_insecure_user_credentials() {
        return None;
    }
    let (key, what) = match () {
        () if !cluster.server().is_https() => ("url", "http"),
        () if cluster.trust().skip_verify() => ("skipTLSVerify", "a connection without TLS verification"),
        () => return None,
    };
    Some((
        key,
        format!(
            "authProvider \"{}\" must not send users' credentials over {what}: use https with verification, or set \
             'dangerouslyAllowInsecureUserCredentials: true' for this cluster",
            cluster.auth_provider()
        ),
    ))
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
