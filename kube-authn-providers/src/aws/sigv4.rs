//! The token: a signed URL that asks STS who signed it. The API server's authenticator calls it
//! (<https://github.com/kubernetes-sigs/aws-iam-authenticator>, `pkg/token`).

use std::time::{Duration, SystemTime};

use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningParams, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_runtime_api::client::identity::Identity;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use kube_authn_core::Secret;

use super::error::AwsError;

/// What goes into a token beside who signs it.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) host: &'a str,
    pub(super) region: &'a str,
    /// Signed and not in the URL: whoever verifies the token puts in the name of his own cluster.
    pub(super) cluster_id: &'a str,
    pub(super) now: Timestamp,
}

/// `k8s-aws-v1.` and the URL, byte for byte as `aws eks get-token` makes it.
pub(super) fn token(identity: &Identity, claim: &Claim<'_>) -> Result<Secret, AwsError> {
    let mut url = format!("https://{}/?{ACTION}", claim.host);
    let headers = [(CLUSTER_ID_HEADER, claim.cluster_id)];
    let params = signed_params(identity, claim, &url, headers)?;
    for name in ORDER {
        if let Some((_, value)) = params.iter().find(|(known, _)| *known == name) {
            url.push('&');
            url.push_str(name);
            url.push('=');
            push_encoded(&mut url, value);
        }
    }
    let mut token = String::with_capacity(PREFIX.len() + url.len() * 4 / 3 + 4);
    token.push_str(PREFIX);
    URL_SAFE_NO_PAD.encode_string(&url, &mut token);
    Ok(Secret::new(token))
}

fn signed_params<'a>(
    identity: &Identity,
    claim: &Claim<'_>,
    url: &str,
    headers: [(&'static str, &str); 1],
) -> Result<Vec<(&'a str, std::borrow::Cow<'static, str>)>, AwsError> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(EXPIRES);
    let params: SigningParams<'_> = v4::SigningParams::builder()
        .identity(identity)
        .region(claim.region)
        .name(SERVICE)
        .time(SystemTime::from(claim.now))
        .settings(settings)
        .build()
        .map_err(|_| AwsError::Unsigned("a part of the signature is missing"))?
        .into();
    let request = SignableRequest::new("GET", url, headers.into_iter(), SignableBody::Bytes(&[]))
        .map_err(|_| AwsError::Unsigned("the cluster's name cannot stand in a header"))?;
    let (instructions, _) = sign(request, &params)
        .map_err(|_| AwsError::Unsigned("the cluster's name cannot stand in a header"))?
        .into_parts();
    Ok(instructions.into_parts().1)
}

/// Percent-encodes everything but what RFC 3986 section 2.3 calls unreserved, as SigV4 wants it.
fn push_encoded(url: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => url.push(byte.into()),
            _ => {
                url.push('%');
                for digit in [byte >> 4, byte & 15] {
                    url.push(HEX[usize::from(digit)].into());
                }
            }
        }
    }
}

const PREFIX: &str = "k8s-aws-v1.";
const SERVICE: &str = "sts";
const ACTION: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const CLUSTER_ID_HEADER: &str = "x-k8s-aws-id";
const HEX: [u8; 16] = *b"0123456789ABCDEF";

/// As botocore writes them. A verifier takes any order; a token that equals the vendor's is easier to compare.
const ORDER: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Security-Token",
    "X-Amz-Signature",
];

/// What every AWS tool writes. The authenticator checks that it is there and goes by the date.
const EXPIRES: Duration = Duration::from_secs(60);

/// The authenticator takes a token for 15 minutes after its date; one minute is left for clocks that differ.
pub(super) const LIFETIME: Duration = Duration::from_secs(14 * 60);

#[cfg(test)]
mod tests;
