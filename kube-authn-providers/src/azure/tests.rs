use kube_authn_core::rustls::crypto::aws_lc_rs;

use super::*;

fn chain(config: &AzureConfig, env: &[(&str, &str)]) -> Chain {
    let variable = |name: &str| {
        let found = env.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let crypto = Arc::new(aws_lc_rs::default_provider());
    Chain::new(
        config,
        crypto,
        Environment::read(&variable),
        Arc::new(SystemClock),
    )
}

#[test]
fn each_cloud_has_its_own_authority_host_and_the_environment_may_name_another() {
    let endpoint = |cloud: &str, env: &[(&str, &str)]| {
        let config = AzureConfig {
            cloud: AzureCloud::parse(cloud).expect("a cloud"),
            ..AzureConfig::default()
        };
        chain(&config, env).token_endpoint("t").expect("usable")
    };

    assert_eq!(
        endpoint("AzurePublicCloud", &[]),
        "https://login.microsoftonline.com/t/oauth2/v2.0/token"
    );
    assert_eq!(
        endpoint("azureusgovernment", &[]),
        "https://login.microsoftonline.us/t/oauth2/v2.0/token"
    );
    assert_eq!(
        endpoint("AzureChinaCloud", &[]),
        "https://login.chinacloudapi.cn/t/oauth2/v2.0/token"
    );
    for host in ["https://login.example.com/", "login.example.com"] {
        assert_eq!(
            endpoint("AzureChinaCloud", &[("AZURE_AUTHORITY_HOST", host)]),
            "https://login.example.com/t/oauth2/v2.0/token"
        );
    }
}

#[test]
fn authority_host_without_tls_is_refused() {
    let unusable = chain(
        &AzureConfig::default(),
        &[("AZURE_AUTHORITY_HOST", "http://127.0.0.1:1/")],
    );

    assert_eq!(
        unusable.usable().expect_err("plain http").to_string(),
        "the authority host cannot be used: it is not https"
    );
}

#[test]
fn explicit_settings_leave_no_room_for_another_identity() {
    let mut config = AzureConfig::default();
    assert_eq!(config.order(), AzureSource::ALL[1..]);

    config.managed_identity = Some(ManagedIdentity::SystemAssigned);
    assert_eq!(config.order(), [AzureSource::ManagedIdentity]);

    config.federated_token_file = Some("/token".into());
    assert_eq!(
        config.order(),
        [AzureSource::Config, AzureSource::ManagedIdentity]
    );

    config.sources = Some(vec![AzureSource::AzureCli]);
    assert_eq!(config.order(), [AzureSource::AzureCli]);
}

#[test]
fn programs_are_found_in_absolute_folders_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("az"), "").expect("written");
    let path = format!(".:relative::{}", folder.path().display());

    let env = Environment::read(&|name: &str| (name == "PATH").then(|| path.clone()));

    assert_eq!((env.az, env.azd), (Some(folder.path().join("az")), None));
}
