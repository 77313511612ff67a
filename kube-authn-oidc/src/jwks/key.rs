//! One public key: what it may verify, and how.

use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    crypto::aws_lc,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde_json::Value;

/// The signature algorithms that are accepted (RFC 7518 section 3.1): asymmetric ones only, never `none`, never HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SignatureAlgorithm {
    /// One that jsonwebtoken knows.
    Known(Algorithm),
    /// ECDSA on P-521 with SHA-512, which jsonwebtoken leaves out.
    Es512,
}

impl SignatureAlgorithm {
    /// The algorithm of a token's `alg` header, `None` if it is not accepted.
    pub(crate) fn of(alg: &str) -> Option<Self> {
        Some(match alg {
            "RS256" => Self::Known(Algorithm::RS256),
            "RS384" => Self::Known(Algorithm::RS384),
            "RS512" => Self::Known(Algorithm::RS512),
            "PS256" => Self::Known(Algorithm::PS256),
            "PS384" => Self::Known(Algorithm::PS384),
            "PS512" => Self::Known(Algorithm::PS512),
            "ES256" => Self::Known(Algorithm::ES256),
            "ES384" => Self::Known(Algorithm::ES384),
            "ES512" => Self::Es512,
            _ => return None,
        })
    }

    /// The hash function of the algorithm, which `at_hash` uses too.
    pub(crate) fn digest(self) -> &'static aws_lc_rs::digest::Algorithm {
        match self {
            Self::Known(Algorithm::RS256 | Algorithm::PS256 | Algorithm::ES256) => &aws_lc_rs::digest::SHA256,
            Self::Known(Algorithm::RS384 | Algorithm::PS384 | Algorithm::ES384) => &aws_lc_rs::digest::SHA384,
            _ => &aws_lc_rs::digest::SHA512,
        }
    }
}

/// One public key with everything that restricts its use.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) id: Option<String>,
    /// `alg` of the key: then it verifies nothing else.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa(DecodingKey),
    P256(DecodingKey),
    P384(DecodingKey),
    P521(UnparsedPublicKey<Vec<u8>>),
}

impl Key {
    /// The key in this JSON, `None` if it is of no use for verifying signatures.
    pub(super) fn parse(value: Value) -> Option<Self> {
        let algorithm = match value.get("alg") {
            None => None,
            Some(alg) => Some(alg.as_str()?.to_owned()),
        };
        let key: Jwk = serde_json::from_value(value).ok()?;
        if !matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        if let Some(operations) = &key.common.key_operations
            && !operations.contains(&KeyOperations::Verify)
        {
            return None;
        }
        let material = match &key.algorithm {
            AlgorithmParameters::RSA(_) => Material::Rsa(DecodingKey::from_jwk(&key).ok()?),
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => Material::P256(DecodingKey::from_jwk(&key).ok()?),
                EllipticCurve::P384 => Material::P384(DecodingKey::from_jwk(&key).ok()?),
                EllipticCurve::P521 => Material::P521(p521(&curve.x, &curve.y)?),
                _ => return None,
            },
            // A shared secret in a public document is none; other key types are not accepted.
            _ => return None,
        };
        Some(Self {
            id: key.common.key_id,
            algorithm,
            material,
        })
    }

    /// Whether this key may verify that algorithm: its type fits, and it names no other one.
    pub(super) fn fits(&self, alg: &str, algorithm: SignatureAlgorithm) -> bool {
        let fits = match (&self.material, algorithm) {
            (Material::Rsa(_), SignatureAlgorithm::Known(known)) => {
                known.family() == jsonwebtoken::AlgorithmFamily::Rsa
            }
            (Material::P256(_), SignatureAlgorithm::Known(known)) => known == Algorithm::ES256,
            (Material::P384(_), SignatureAlgorithm::Known(known)) => known == Algorithm::ES384,
            (Material::P521(_), SignatureAlgorithm::Es512) => true,
            _ => false,
        };
        fits && self.algorithm.as_ref().is_none_or(|named| named == alg)
    }

    pub(super) fn verifies(&self, algorithm: SignatureAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        match (&self.material, algorithm) {
            (
                Material::Rsa(key) | Material::P256(key) | Material::P384(key),
                SignatureAlgorithm::Known(algorithm),
            ) => {
                // The provider is named, never jsonwebtoken's process-wide default: that one panics if features clash.
                (aws_lc::DEFAULT_PROVIDER.verifier_factory)(&algorithm, key)
                    .is_ok_and(|verifier| verifier.verify(message, &signature.to_vec()).is_ok())
            }
            (Material::P521(key), SignatureAlgorithm::Es512) => key.verify(message, signature).is_ok(),
            _ => false,
        }
    }
}

/// The uncompressed point of two coordinates (SEC 1 section 2.3.3), each 66 bytes (RFC 7518 section 6.2.1.2).
fn p521(x: &str, y: &str) -> Option<UnparsedPublicKey<Vec<u8>>> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        let coordinate = URL_SAFE_NO_PAD.decode(coordinate).ok()?;
        if coordinate.len() != P521_BYTES {
            return None;
        }
        point.extend(coordinate);
    }
    Some(UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point))
}

/// Bytes of a coordinate on P-521.
const P521_BYTES: usize = 66;
