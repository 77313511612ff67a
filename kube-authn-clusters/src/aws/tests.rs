use super::*;
use crate::Environment;

fn read_as(yaml: &str, is_used: bool) -> (AwsAccounts, Findings) {
    let environment = Environment::of([
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("AWS_SECRET_ACCESS_KEY", " s3cret "),
    ]);
    let config = AppConfig::from_texts(&[("app-config.yaml", yaml)], &environment).expect("a configuration");
    let mut findings = Findings::default();
    let read = AwsAccounts::read(&config, is_used, &mut findings);
    (read, findings)
}

fn read(yaml: &str) -> AwsAccounts {
    let (read, findings) = read_as(yaml, true);
    assert_eq!(findings.problems, [], "{yaml}");
    read
}

fn told(yaml: &str) -> Vec<(String, String)> {
    let problems = read_as(yaml, true).1.problems;
    problems
        .into_iter()
        .map(|problem| (problem.key, problem.message))
        .collect()
}

fn keys() -> Option<(String, Secret)> {
    Some(("AKIA".to_owned(), Secret::new("s3cret")))
}

/// Backstage's documentation of static keys, letter by letter; its code refuses the region.
#[test]
fn documented_account_with_keys_and_region_is_read() {
    let accounts = read(
        "aws:\n  mainAccount:\n  accounts:\n    - accountId: '111122223333'\n      accessKeyId: ${AWS_ACCESS_KEY_ID}\n      \
         secretAccessKey: ${AWS_SECRET_ACCESS_KEY}\n      region: eu-west-1\n  accountDefaults:\n",
    );

    let account = AwsAccountConfig {
        keys: keys(),
        region: Some("eu-west-1".to_owned()),
        ..AwsAccountConfig::default()
    };
    assert_eq!(accounts.accounts, [("111122223333".to_owned(), account)]);
    assert_eq!(accounts.main_account, AwsAccountConfig::default());
    assert_eq!(accounts.account_defaults, AwsAccountConfig::default());
}

/// Backstage's documentation of an assumed role, letter by letter; its code forgets the role.
#[test]
fn documented_role_of_the_main_account_is_read() {
    let accounts = read(
        "aws:\n  mainAccount:\n    roleName: portal\n    region: eu-west-1\n  accounts:\n  accountDefaults:\n",
    );

    let main = AwsAccountConfig {
        role_name: Some("portal".to_owned()),
        region: Some("eu-west-1".to_owned()),
        ..AwsAccountConfig::default()
    };
    assert_eq!(accounts.main_account, main);
    assert!(accounts.accounts.is_empty());
}

#[test]
fn blocks_without_content_read_as_absent() {
    for yaml in [
        "{}",
        "aws:",
        "aws: {}",
        "aws: { mainAccount: null, accounts: null, accountDefaults: null }",
        "aws: { mainAccount: {}, accounts: [], accountDefaults: {} }",
    ] {
        assert_eq!(read(yaml), AwsAccounts::default(), "{yaml}");
    }
}

#[test]
fn every_setting_of_an_account_is_read() {
    let accounts = read(
        "aws: { accounts: [{ accountId: '1', roleName: r, partition: aws-cn, region: cn-north-1, externalId: e }, \
         { accountId: '2', profile: p }, { accountId: '3', roleName: r, webIdentityTokenFile: /t }], \
         accountDefaults: { roleName: d, webIdentityTokenFile: /t } }",
    );

    let text = |text: &str| Some(text.to_owned());
    let expected = [
        AwsAccountConfig {
            role_name: text("r"),
            partition: text("aws-cn"),
            region: text("cn-north-1"),
            external_id: text("e"),
            ..AwsAccountConfig::default()
        },
        AwsAccountConfig {
            profile: text("p"),
            ..AwsAccountConfig::default()
        },
        AwsAccountConfig {
            role_name: text("r"),
            web_identity_token_file: text("/t"),
            ..AwsAccountConfig::default()
        },
    ];
    let found: Vec<_> = accounts
        .accounts
        .into_iter()
        .map(|(_, account)| account)
        .collect();
    assert_eq!(found, expected);
    assert_eq!(accounts.account_defaults.role_name, text("d"));
}

#[test]
fn broken_rules_are_told_in_the_peers_words() {
    for (settings, expected) in [
        (
            "accessKeyId: A",
            "an access key ID configured, but no secret access key.",
        ),
        (
            "secretAccessKey: s",
            "a secret access key configured, but no access key ID",
        ),
        (
            "accessKeyId: A, secretAccessKey: s, profile: p",
            "both an access key ID and a profile configured, but only one must be specified",
        ),
        (
            "profile: p, roleName: r",
            "both an access key ID and a role name configured, but only one must be specified",
        ),
        ("externalId: e", "an external ID configured, but no role name."),
        ("region: eu-west-1", "an STS region configured, but no role name."),
        (
            "partition: aws-cn",
            "an IAM partition configured, but no role name.",
        ),
        (
            "webIdentityTokenFile: /t",
            "a web identity token file configured, but no role name.",
        ),
        (
            "roleName: r, webIdentityTokenFile: /t, accessKeyId: A, secretAccessKey: s",
            "both a web identity token file and static credentials configured, but only one must be specified",
        ),
        (
            "webIdentityTokenFile: /t, profile: p",
            "both a web identity token file and a profile configured, but only one must be specified",
        ),
        (
            "roleName: r, webIdentityTokenFile: /t, externalId: e",
            "both a web identity token file and an external ID configured; AssumeRoleWithWebIdentity does not support \
             external IDs.",
        ),
    ] {
        let found = told(&format!(
            "aws: {{ accounts: [{{ accountId: '1', {settings} }}] }}"
        ));

        let text = format!("AWS integration account 1 has {expected}");
        assert_eq!(found, [("aws.accounts[0]".to_owned(), text)], "{settings}");
    }
}

#[test]
fn main_account_and_defaults_have_prefixes_of_their_own() {
    let found = told("aws: { mainAccount: { accessKeyId: A }, accountDefaults: { region: eu-west-1 } }");

    let texts: Vec<&str> = found.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "The main AWS integration account has an access key ID configured, but no secret access key.",
            "AWS integration account default configuration has an STS region configured, but no role name.",
        ]
    );
}

#[test]
fn all_mistakes_come_at_once() {
    let found = told("aws: { mainAccount: [], accounts: [5, { profile: p }, { accountId: 7 }] }");

    assert_eq!(
        found,
        [
            (
                "aws.mainAccount".to_owned(),
                "Invalid type in config for key 'aws.mainAccount' in 'app-config.yaml', got array, wanted object".to_owned()
            ),
            (
                "aws.accounts[0]".to_owned(),
                "Invalid type in config for key 'aws.accounts[0]' in 'app-config.yaml', got number, wanted object-array"
                    .to_owned()
            ),
            (
                "aws.accounts[1].accountId".to_owned(),
                "Missing required config value at 'aws.accounts[1].accountId' in 'app-config.yaml'".to_owned()
            ),
            (
                "aws.accounts[2].accountId".to_owned(),
                "Invalid type in config for key 'aws.accounts[2].accountId' in 'app-config.yaml', got number, wanted string"
                    .to_owned()
            ),
        ]
    );
}

/// Otherwise the machine would sign in place of the account.
#[test]
fn vanished_keys_never_silently_become_another_identity() {
    let yaml = "aws: { accounts: [{ accountId: '1', accessKeyId: '${GONE}', secretAccessKey: '${GONE}', region: r }] }";

    let (_, used) = read_as(yaml, true);
    let (_, unused) = read_as(yaml, false);

    assert_eq!(used.problems.len(), 2, "{:?}", used.problems);
    assert_eq!(unused.problems, [], "other plugins read this block, too");
}

#[test]
fn last_entry_of_an_account_counts_and_is_warned_of() {
    let (accounts, findings) = read_as(
        "aws: { accounts: [{ accountId: '1', profile: a }, { accountId: '1', profile: b }] }",
        true,
    );

    assert_eq!(accounts.accounts.len(), 1);
    assert_eq!(accounts.accounts[0].1.profile.as_deref(), Some("b"));
    assert_eq!(findings.warnings.len(), 1);
}

#[test]
fn debug_shows_no_secret_key() {
    let accounts = read("aws: { mainAccount: { accessKeyId: AKIA, secretAccessKey: canary } }");

    assert!(!format!("{accounts:?}").contains("canary"));
}
