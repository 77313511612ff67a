//! TLS settings of every connection that the family opens: one function, so no path can be laxer than another.

use std::sync::{Arc, OnceLock};

use rustls::{
    ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    version::{TLS12, TLS13},
};

use crate::{CaBundle, ClientCertificate, Error, ErrorKind, Result, TlsTrust, cluster::parse_ca};

/// Settings for connections that trust this bundle and offer these protocols (ALPN, RFC 7301), most wanted first.
///
/// # Errors
/// `ConfigInvalid` if the CA cannot be read or holds no certificate; an empty CA never means "trust everybody".
pub fn client_config(
    provider: &Arc<CryptoProvider>,
    trust: &TlsTrust,
    alpn: &[&[u8]],
) -> Result<ClientConfig> {
    client_config_with_certificate(provider, trust, None, alpn)
}

/// The same, showing a client certificate where the server asks for one.
///
/// # Errors
/// Also `ConfigInvalid` if key and certificate do not belong together.
pub fn client_config_with_certificate(
    provider: &Arc<CryptoProvider>,
    trust: &TlsTrust,
    certificate: Option<&ClientCertificate>,
    alpn: &[&[u8]],
) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|source| {
            refuse("the crypto provider supports neither TLS 1.3 nor 1.2").with_source(source)
        })?;
    let builder = if trust.skip_verify() {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(skip::AcceptAll::new(provider.clone())))
    } else {
        let roots = Arc::new(roots(trust.ca())?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|source| refuse("the CA cannot verify anything").with_source(source))?;
        builder.with_webpki_verifier(verifier)
    };
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(certificate) => builder
            .with_client_auth_cert(certificate.chain().to_vec(), certificate.private_key()?)
            .map_err(|source| {
                refuse("the client certificate and its key do not belong together").with_source(source)
            })?,
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn roots(ca: &CaBundle) -> Result<RootCertStore> {
    let Some(pem) = ca.read()? else {
        return system_roots();
    };
    let mut roots = RootCertStore::empty();
    for certificate in parse_ca(&pem).map_err(refuse)? {
        roots
            .add(certificate)
            .map_err(|source| refuse("the CA holds an unusable certificate").with_source(source))?;
    }
    Ok(roots)
}

/// The machine's roots, read once: they change with the operating system, not with a request.
fn system_roots() -> Result<RootCertStore> {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(roots.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(refuse(
            "this machine has no CA certificates: install them (Debian: ca-certificates) or configure a CA",
        ));
    }
    Ok(ROOTS.get_or_init(|| roots).clone())
}

fn refuse(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::ConfigInvalid, message)
}

/// The switch `skipTLSVerify`: its own module, so that nobody comes across it by chance.
mod skip {
    use std::sync::Arc;

    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    /// Accepts every certificate. Signatures of the handshake are still verified.
    #[derive(Debug)]
    pub(super) struct AcceptAll(Arc<CryptoProvider>);

    impl AcceptAll {
        pub(super) fn new(provider: Arc<CryptoProvider>) -> Self {
            Self(provider)
        }
    }

    impl ServerCertVerifier for AcceptAll {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(
                message,
                certificate,
                signed,
                &self.0.signature_verification_algorithms,
            )
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(
                message,
                certificate,
                signed,
                &self.0.signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider())
    }

    #[test]
    fn empty_ca_never_means_trust_everybody() {
        let trust = TlsTrust::new(CaBundle::Pem(Arc::from(&b""[..])));

        let error = client_config(&provider(), &trust, &[]).expect_err("refused");

        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
    }

    #[test]
    fn vanished_ca_file_is_an_error_and_not_the_system_roots() {
        let trust = TlsTrust::new(CaBundle::File(std::path::Path::new("/nonexistent/ca.pem").into()));

        let error = client_config(&provider(), &trust, &[]).expect_err("refused");

        assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
    }
}
