#![allow(
    clippy::field_reassign_with_default,
    reason = "each test changes what it is about"
)]

use super::*;

const ARN: &str = "arn:aws:iam::111122223333:role/eks";

fn endpoint(region: &str) -> Endpoint {
    Endpoint {
        region: region.into(),
        fips: false,
        dual_stack: false,
    }
}

fn keys() -> Option<AwsKeys> {
    Some(AwsKeys {
        access_key_id: "AKIA".to_owned(),
        secret_access_key: Secret::new("s"),
    })
}

fn role(name: &str) -> AwsAccount {
    AwsAccount {
        role_name: Some(name.to_owned()),
        ..AwsAccount::default()
    }
}

fn link(config: &AwsConfig, assume_role: Option<(&str, Option<&str>)>) -> Link {
    config
        .link(assume_role, &endpoint("eu-west-1"), None)
        .expect("a link")
}

fn assumed(role: Role, external_id: Option<&str>, with: With, region: &str) -> Link {
    Link::Role(Arc::new(RoleLink {
        role,
        external_id: external_id.map(str::to_owned),
        with,
        sts: endpoint(region),
    }))
}

fn arn(text: &str) -> Role {
    Role::Arn(text.to_owned())
}

fn machine() -> With {
    With::Credentials(Link::Machine(endpoint("eu-west-1")))
}

#[test]
fn without_configuration_the_machine_signs() {
    let config = AwsConfig::default();

    assert_eq!(link(&config, None), Link::Machine(endpoint("eu-west-1")));
    assert_eq!(
        link(&config, Some((ARN, Some("ext")))),
        assumed(arn(ARN), Some("ext"), machine(), "eu-west-1")
    );
}

#[test]
fn machines_own_region_wins_where_the_machine_asks_sts() {
    let found = AwsConfig::default().link(None, &endpoint("eu-west-1"), Some("us-east-1"));

    assert_eq!(found.expect("a link"), Link::Machine(endpoint("us-east-1")));
}

#[test]
fn role_of_an_account_is_chained_below_the_clusters_role() {
    let mut config = AwsConfig::default();
    let mut account = role("portal");
    account.external_id = Some("of-account".to_owned());
    account.region = Some("us-east-2".to_owned());
    config.accounts.insert("111122223333".to_owned(), account);

    let below = assumed(
        arn("arn:aws:iam::111122223333:role/portal"),
        Some("of-account"),
        machine(),
        "us-east-2",
    );
    assert_eq!(
        link(&config, Some((ARN, None))),
        assumed(arn(ARN), None, With::Credentials(below), "eu-west-1")
    );
    assert_eq!(link(&config, None), Link::Machine(endpoint("eu-west-1")));
}

#[test]
fn defaults_serve_accounts_that_are_not_listed() {
    let mut config = AwsConfig::default();
    config.account_defaults = role("portal");
    config.account_defaults.web_identity_token_file = Some("/token".to_owned());
    let china = "arn:aws-cn:iam::444455556666:role/eks";

    let below = assumed(
        arn("arn:aws-cn:iam::444455556666:role/portal"),
        None,
        With::TokenFile("/token".to_owned()),
        "eu-west-1",
    );
    assert_eq!(
        link(&config, Some((china, None))),
        assumed(arn(china), None, With::Credentials(below), "eu-west-1")
    );
}

#[test]
fn listed_account_never_gets_the_defaults() {
    let mut config = AwsConfig::default();
    config.account_defaults = role("portal");
    let listed = AwsAccount {
        keys: keys(),
        ..AwsAccount::default()
    };
    config.accounts.insert("111122223333".to_owned(), listed);

    let below = With::Credentials(Link::Keys(Some("111122223333".into())));
    assert_eq!(
        link(&config, Some((ARN, None))),
        assumed(arn(ARN), None, below, "eu-west-1")
    );
}

#[test]
fn role_name_of_the_main_account_is_honoured() {
    let mut config = AwsConfig::default();
    config.main_account = role("portal");
    config.main_account.region = Some("us-east-2".to_owned());

    let source = With::Credentials(Link::Machine(endpoint("us-east-2")));
    let main = assumed(Role::OfCaller("portal".to_owned()), None, source, "us-east-2");
    assert_eq!(link(&config, None), main);
    assert_eq!(
        link(&config, Some((ARN, None))),
        assumed(arn(ARN), None, With::Credentials(main), "eu-west-1")
    );
}

#[test]
fn documented_account_with_keys_and_region_stands_for_the_main_account() {
    let documented = AwsAccount {
        keys: keys(),
        region: Some("us-east-2".to_owned()),
        ..AwsAccount::default()
    };
    let mut config = AwsConfig::default();
    config
        .accounts
        .insert("111122223333".to_owned(), documented.clone());
    let of_account = Link::Keys(Some("111122223333".into()));

    assert_eq!(link(&config, None), of_account);
    assert_eq!(config.account_region(None), Some("us-east-2"));

    config.accounts.insert("444455556666".to_owned(), documented);
    assert_eq!(
        link(&config, None),
        Link::Machine(endpoint("eu-west-1")),
        "which of two?"
    );
}

/// Backstage accepts it, and signs as the machine.
#[test]
fn account_with_keys_alone_never_stands_for_the_main_account() {
    let mut config = AwsConfig::default();
    let listed = AwsAccount {
        keys: keys(),
        ..AwsAccount::default()
    };
    config.accounts.insert("111122223333".to_owned(), listed);

    assert_eq!(link(&config, None), Link::Machine(endpoint("eu-west-1")));
}

#[test]
fn roles_that_differ_in_anything_are_not_one_entry() {
    let config = AwsConfig::default();
    let links = [
        link(&config, Some((ARN, None))),
        link(&config, Some((ARN, Some("a")))),
        link(&config, Some((ARN, Some("b")))),
        link(&config, Some(("arn:aws:iam::111122223333:role/other", None))),
    ];

    for (index, one) in links.iter().enumerate() {
        assert!(links.iter().skip(index + 1).all(|other| other != one), "{one:?}");
    }
}

#[test]
fn arn_that_is_none_is_refused_in_the_peers_words() {
    for text in [
        "",
        "arn",
        "role/eks",
        "arn:aws:iam::1",
        "urn:aws:iam::1:role/x",
        "arn:aws:iam::1:",
    ] {
        let error = AwsConfig::default()
            .link(Some((text, None)), &endpoint("eu-west-1"), None)
            .expect_err("refused");

        assert_eq!(error.to_string(), "Malformed ARN", "{text:?}");
    }
}
