//! Keys and certificates of the test cluster: ECDSA P-256, made anew at every start.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use crate::error::{Context, Result};

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its PKCS #8 key.
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority, trusted by nobody yet.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(common_name: &str) -> Result<Self> {
        let mut params = params(common_name, None, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().context("make the key of the test CA")?;
        let pem = params.self_signed(&key).context("sign the test CA")?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// The authority's own certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A serving certificate for loopback.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn serving(&self, common_name: &str) -> Result<Identity> {
        let names = [
            "127.0.0.1",
            "::1",
            "localhost",
            "kubernetes.default.svc",
            "10.0.0.1",
        ];
        let mut params = params(common_name, None, &names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&mut params)
    }

    /// A client certificate: for the API server, `common_name` is the user and `organization` the group.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn client(&self, common_name: &str, organization: Option<&str>) -> Result<Identity> {
        let mut params = params(common_name, organization, &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&mut params)
    }

    fn sign(&self, params: &mut CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("sign a certificate")?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Identity {
    /// Writes `<name>.pem` and `<name>.key` below `folder`, each replaced in one step.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        replace(&folder.join(format!("{name}.key")), &self.key)?;
        replace(&folder.join(format!("{name}.pem")), &self.certificate)
    }
}

/// The key that signs service account tokens, as `service-account.key` and `service-account.pub`.
pub(crate) fn write_service_account_key(folder: &Path) -> Result<()> {
    let key = KeyPair::generate().context("make the service account key")?;
    replace(&folder.join("service-account.key"), &key.serialize_pem())?;
    replace(&folder.join("service-account.pub"), &key.public_key_pem())
}

/// Writes a file so that a reader sees the old or the new content, never a part.
pub(crate) fn replace(path: &Path, content: &str) -> Result<()> {
    let fresh = path.with_added_extension("new");
    fs::write(&fresh, content)
        .and_then(|()| fs::rename(&fresh, path))
        .context(format!("write {}", path.display()))
}

fn params(common_name: &str, organization: Option<&str>, names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).context("name a certificate")?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
    }
    Ok(params)
}
