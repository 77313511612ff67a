use aws_credential_types::Credentials;

use super::*;

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

fn url(session_token: Option<&str>, region: &str, host: &str, cluster_id: &str) -> String {
    let keys = Credentials::new(ID, SECRET, session_token.map(str::to_owned), None, "test");
    let claim = Claim {
        host,
        region,
        cluster_id,
        now: "2026-01-02T03:04:05.678Z".parse().expect("an instant"),
    };
    let token = token(&keys.into(), &claim).expect("a token");
    let encoded = token.expose_str().expect("text").strip_prefix(PREFIX);
    let url = URL_SAFE_NO_PAD.decode(encoded.expect("the prefix"));
    String::from_utf8(url.expect("base64url without padding")).expect("text")
}

/// What `aws eks get-token` of awscli 1.46.3 made of the same keys at the same instant.
#[test]
fn token_is_that_of_the_aws_cli() {
    assert_eq!(
        url(
            Some("a/b+c=="),
            "eu-west-1",
            "sts.eu-west-1.amazonaws.com",
            "prod"
        ),
        "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20260102%2Feu-west-1%2Fsts%2Faws4_request&X-Amz-Date=20260102T030405Z\
         &X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id&X-Amz-Security-Token=a%2Fb%2Bc%3D%3D\
         &X-Amz-Signature=ba11dc4db6b07ff103dc4966c42807cd7bf452c1c7952f9e75315158386e2e32"
    );
    assert_eq!(
        url(None, "us-west-2", "sts-fips.us-west-2.amazonaws.com", "prod"),
        "https://sts-fips.us-west-2.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15\
         &X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20260102%2Fus-west-2%2Fsts%2Faws4_request&X-Amz-Date=20260102T030405Z\
         &X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id\
         &X-Amz-Signature=0d7f0469a9afd5901637ca43d10982d3675a3d254c4f8742d8bace2f7cf60fe9"
    );
}

/// A36: a verifier refuses anything beside this set, and STS anything in another spelling.
#[test]
fn no_parameter_is_added_or_repeated() {
    let url = url(
        Some("session"),
        "eu-west-1",
        "sts.eu-west-1.amazonaws.com",
        "prod",
    );
    let (address, query) = url.split_once('?').expect("a query");
    let names: Vec<&str> = query
        .split('&')
        .map(|pair| pair.split_once('=').expect("a pair").0)
        .collect();

    assert_eq!(address, "https://sts.eu-west-1.amazonaws.com/");
    assert_eq!(
        names,
        [
            "Action",
            "Version",
            "X-Amz-Algorithm",
            "X-Amz-Credential",
            "X-Amz-Date",
            "X-Amz-Expires",
            "X-Amz-SignedHeaders",
            "X-Amz-Security-Token",
            "X-Amz-Signature",
        ]
    );
    assert!(!url.contains([';', '#', '@', ' ']), "{url}");
}

/// A36: the cluster's id is signed, and only signed.
#[test]
fn token_of_one_cluster_is_never_good_for_another() {
    let of = |cluster: &str| url(None, "eu-west-1", "sts.eu-west-1.amazonaws.com", cluster);
    let (one, other) = (of("production-eu"), of("production-us"));

    assert!(one.contains("X-Amz-SignedHeaders=host%3Bx-k8s-aws-id&"));
    assert!(!one.contains("production-eu"), "{one}");
    assert_eq!(
        one.split("X-Amz-Signature=").next(),
        other.split("X-Amz-Signature=").next()
    );
    assert_ne!(one, other);
}

#[test]
fn cluster_id_that_breaks_a_header_is_refused() {
    let claim = Claim {
        host: "sts.eu-west-1.amazonaws.com",
        region: "eu-west-1",
        cluster_id: "prod\r\nx-evil: 1",
        now: Timestamp::UNIX_EPOCH,
    };
    let keys = Credentials::new(ID, SECRET, None, None, "test");

    let error = token(&keys.into(), &claim).expect_err("refused");

    assert!(!error.to_string().contains("evil"), "{error}");
}

/// A36: 15 minutes after the date the authenticator refuses.
#[test]
fn token_never_claims_more_than_a_quarter_of_an_hour() {
    assert!(LIFETIME < Duration::from_secs(15 * 60) && EXPIRES <= Duration::from_secs(15 * 60));
}
