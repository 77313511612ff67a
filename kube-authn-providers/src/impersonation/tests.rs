use kube_authn_core::{
    Clusters, EntityRef, Issuer, Principal, RequestAuth, Secret, StrategyOptions, Subject, VerifiedEmail,
    conformance::provider::ProviderFixture,
    http::HeaderMap,
    serde_json::{Value, json},
};

use super::*;
use crate::{LocalKubectlProxyProvider, OidcProvider, ServiceAccountProvider, test_support::*};

fn with_settings(settings: &Value) -> ClusterDetails {
    let block = json!({ "impersonation": settings });
    cluster(ImpersonationProvider::NAME)
        .options(StrategyOptions::new(
            block.as_object().expect("an object").clone(),
        ))
        .service_account_token(Secret::new("canary-carrier"))
        .build()
        .expect("a cluster")
}

fn strategy() -> ImpersonationProvider {
    let carriers = ProviderRegistry::new()
        .with(ServiceAccountProvider::with_folder("/nowhere"))
        .with(LocalKubectlProxyProvider)
        .with(OidcProvider::new());
    ImpersonationProvider::new(ImpersonationConfig::default(), &carriers)
}

/// The lines of a header that are sent for this principal.
async fn lines(settings: &Value, principal: &Principal, header: &str) -> Result<Vec<String>> {
    let request = CredentialRequest::new(principal.clone(), with_settings(settings));
    let credential = strategy().credential(&request).await?;
    let mut headers = HeaderMap::new();
    credential.apply(&mut headers);
    assert_eq!(headers["authorization"], "Bearer canary-carrier");
    let lines = headers.get_all(header).iter();
    Ok(lines
        .map(|line| line.to_str().expect("text").to_owned())
        .collect())
}

async fn name_of(settings: &Value, principal: &Principal) -> Result<Vec<String>> {
    lines(settings, principal, "impersonate-user").await
}

fn alice() -> Principal {
    let issuer = Issuer::new("https://login.example.com/").expect("an issuer");
    Principal::user(user("alice"))
        .with_verified(issuer, Subject::new("42").expect("a subject"))
        .with_email(VerifiedEmail::new("alice@example.com").expect("an e-mail"))
        .with_groups(["team-a", "team b"])
        .expect("groups")
}

fn entity(text: &str) -> Principal {
    Principal::user(EntityRef::parse(text).expect("a reference"))
}

#[tokio::test]
async fn keeps_the_contract() {
    let cluster = with_settings(&json!({}));
    let wrong = with_settings(&json!({
        "user": "admin", "service": "{email}", "groups": ["system:masters", "{who}"], "groupsFrom": "all",
        "groupsPrefix": "system:", "extra": { "kubernetes.io/a": "b", "c": 7 }, "as": "root",
    }));
    let unknown = with_settings(&json!({ "carrier": "nobody" }));
    let of_users = with_settings(&json!({ "carrier": "oidc" }));
    let of_carrier = ClusterDetails::builder("prod", "https://prod.example.com")
        .auth_provider(ImpersonationProvider::NAME)
        .service_account_token(Secret::new("canary\nx"))
        .build()
        .expect("a cluster");
    let on_behalf = |principal: Principal| CredentialRequest::new(principal, cluster.clone());
    let fixture = ProviderFixture::new(strategy(), request("alice", &cluster), request("bob", &cluster))
        .with_identity(|headers| format!("{:?}", headers.get("impersonate-user")))
        .refusing(on_behalf(Principal::anonymous()), ErrorKind::LoginRequired)
        .refusing(on_behalf(Principal::service("robot")), ErrorKind::Refused)
        .refusing(on_behalf(entity("user:other/alice")), ErrorKind::Refused)
        .refusing(on_behalf(entity("group:default/admins")), ErrorKind::Refused)
        .refusing(request("alice", &unknown), ErrorKind::ConfigInvalid)
        .refusing(request("alice", &of_users), ErrorKind::ConfigInvalid)
        .refusing(request("alice", &of_carrier), ErrorKind::ConfigInvalid)
        .with_unworkable(unknown, &["kubeAuthn.impersonation.carrier"])
        .with_unworkable(of_users, &["kubeAuthn.impersonation.carrier"])
        .with_unworkable(of_carrier, &["serviceAccountToken"])
        .with_unworkable(
            wrong,
            &[
                "kubeAuthn.impersonation.as",
                "kubeAuthn.impersonation.extra.c",
                "kubeAuthn.impersonation.groupsFrom",
                "kubeAuthn.impersonation.groups[0]",
                "kubeAuthn.impersonation.groups[1]",
                "kubeAuthn.impersonation.service",
                "kubeAuthn.impersonation.user",
                "kubeAuthn.impersonation.groupsPrefix",
                "kubeAuthn.impersonation.extra.kubernetes.io/a",
            ],
        )
        .with_canary(Secret::new("canary-carrier"))
        .with_canary(Secret::new("canary\nx"));

    bare_registered_and_cached(fixture).await;
}

#[tokio::test]
async fn user_gets_the_name_groups_and_fields_of_the_mapping_and_no_others() {
    let settings = json!({
        "user": "portal:{namespace}/{name}", "uid": "{subject}", "groups": ["portal-users", "of:{namespace}"],
        "groupsFrom": "principal", "groupsPrefix": "portal:", "extra": { "example.com/mail": "{email}" },
    });
    let sent = async |header: &str| lines(&settings, &alice(), header).await.expect("lines");

    assert_eq!(sent("impersonate-user").await, ["portal:default/alice"]);
    assert_eq!(sent("impersonate-uid").await, ["42"]);
    assert_eq!(
        sent("impersonate-group").await,
        ["portal-users", "of:default", "portal:team-a", "portal:team b"]
    );
    assert_eq!(
        sent("impersonate-extra-example.com%2fmail").await,
        ["alice@example.com"]
    );
    assert_eq!(name_of(&json!({}), &alice()).await.expect("a name"), ["alice"]);
    let groups = lines(&json!({}), &alice(), "impersonate-group")
        .await
        .expect("lines");
    assert!(groups.is_empty(), "{groups:?}");
}

#[tokio::test]
async fn template_never_makes_a_reserved_name_of_a_principal() {
    let hostile = |subject: &str| {
        let issuer = Issuer::new("https://login.example.com/").expect("an issuer");
        entity("user:default/mallory").with_verified(issuer, Subject::new(subject).expect("a subject"))
    };
    let settings = json!({ "user": "{subject}" });
    for subject in [
        "system:admin",
        "System:kube-controller-manager",
        "system:serviceaccount:kube-system:default",
    ] {
        let refused = name_of(&settings, &hostile(subject)).await.expect_err(subject);

        assert_eq!(refused.kind(), ErrorKind::Refused);
    }

    let masters = alice().with_groups(["team-a", "system:masters"]).expect("groups");
    let refused = name_of(&json!({ "groupsFrom": "principal" }), &masters).await;
    assert_eq!(refused.expect_err("refused").kind(), ErrorKind::Refused);
    // Harmless behind a prefix, and not asked for without `groupsFrom`.
    assert!(
        name_of(
            &json!({ "groupsFrom": "principal", "groupsPrefix": "p:" }),
            &masters
        )
        .await
        .is_ok()
    );
    assert!(name_of(&json!({}), &masters).await.is_ok());
}

#[tokio::test]
async fn people_of_other_namespaces_never_share_a_name() {
    let refused = name_of(&json!({}), &entity("user:other/alice"))
        .await
        .expect_err("refused");
    assert!(refused.to_string().contains("add {namespace}"), "{refused}");

    let told = name_of(
        &json!({ "user": "{namespace}/{name}" }),
        &entity("user:other/alice"),
    )
    .await;
    assert_eq!(told.expect("a name"), ["other/alice"]);
    let told = name_of(&json!({ "user": "{ref}" }), &entity("group:default/admins")).await;
    assert_eq!(told.expect("a name"), ["group:default/admins"]);
}

#[tokio::test]
async fn missing_field_is_named_and_service_needs_a_mapping() {
    let refused = name_of(&json!({ "user": "{email}" }), &entity("user:default/bob")).await;
    assert_eq!(
        refused.expect_err("refused").to_string(),
        "nobody is impersonated: the principal has no {email}, which the template needs"
    );

    let robot = Principal::service("robot");
    let told = name_of(&json!({ "service": "service:{name}" }), &robot).await;
    assert_eq!(told.expect("a name"), ["service:robot"]);
}

#[tokio::test]
async fn carrier_that_sends_nothing_makes_nobody_anonymous() {
    let error = name_of(&json!({ "carrier": "localKubectlProxy" }), &alice())
        .await
        .expect_err("refused");

    assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
}

#[tokio::test]
async fn own_token_of_a_caller_never_takes_the_place_of_the_mapping() {
    let cluster = with_settings(&json!({}));

    assert_eq!(strategy().scope(&cluster), CredentialScope::User);
    let offered = request("alice", &cluster)
        .with_auth(RequestAuth::new().with_token("impersonation", Secret::new("t")));
    assert_eq!(
        sent(&strategy().credential(&offered).await.expect("a credential")),
        Secret::new("canary-carrier")
    );
}

#[test]
fn settings_of_the_cluster_go_before_those_of_all() {
    let defaults = ImpersonationConfig {
        user: Some("all:{name}".to_owned()),
        groups: Some(vec!["all".to_owned()]),
        carrier: Some("exec".to_owned()),
        ..ImpersonationConfig::default()
    };

    let own = Mapping::of(&with_settings(&json!({ "user": "own:{name}" })), &defaults).expect("a mapping");

    assert_eq!(
        (own.user.as_str(), own.groups.as_slice(), own.carrier.as_str()),
        ("own:{name}", &["all".to_owned()][..], "exec")
    );
}

#[test]
fn rules_name_what_is_known_and_remark_on_what_is_not() {
    let rules = |settings: Value| strategy().rules(&with_settings(&settings)).expect("rules");

    assert_eq!(
        rules(json!({ "groups": ["portal-users"], "uid": "{subject}", "extra": { "scope": "read" } })),
        r#"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: kube-authn-impersonation
rules:
  - { apiGroups: [""], resources: ["users"], verbs: ["impersonate"] } # without resourceNames: names of users are made from who calls
  - { apiGroups: [""], resources: ["groups"], verbs: ["impersonate"], resourceNames: ["portal-users"] }
  - { apiGroups: ["authentication.k8s.io"], resources: ["uids"], verbs: ["impersonate"] } # without resourceNames: values are made from who calls
  - { apiGroups: ["authentication.k8s.io"], resources: ["userextras/scope"], verbs: ["impersonate"], resourceNames: ["read"] }
"#
    );
    assert!(!rules(json!({})).contains("groups\"]"), "no group is sent");
    assert!(
        rules(json!({ "groupsFrom": "principal" })).contains("[\"groups\"], verbs: [\"impersonate\"] } #")
    );
    let other = cluster("serviceAccount").build().expect("a cluster");
    assert_eq!(strategy().rules(&other), None);
}

#[tokio::test]
async fn credential_of_a_carrier_is_never_kept_after_its_cluster_went() {
    let (strategy, kept, gone) = (
        strategy(),
        with_settings(&json!({})),
        with_settings(&json!({ "groups": ["x"] })),
    );
    for cluster in [&kept, &gone] {
        let request = CredentialRequest::new(alice(), cluster.clone());
        strategy.credential(&request).await.expect("a credential");
    }
    let held = || strategy.carriers[ServiceAccountProvider::NAME].len();
    assert_eq!(held(), 2);

    strategy.retain_clusters(&Clusters::new(vec![kept]).current());

    assert_eq!(held(), 1);
}
