//! The cluster's certificate authority and the hosts' certificates, made by the demo and by whoever
//! sets a cluster up without an authority of their own.

use mainstay_core::id::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The host's id cannot stand in a certificate.
    #[error(
        "the host id \"{host}\" cannot stand in a certificate; use letters, digits, '-' and '.'"
    )]
    HostId {
        /// The host.
        host: HostId,
        /// Why.
        source: rcgen::Error,
    },
    /// The cryptographic library failed.
    #[error("cannot make a certificate")]
    Crypto(#[from] rcgen::Error),
}

/// A certificate and its private key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate (PEM).
    pub cert_pem: String,
    /// The private key (PEM): mode 0600 when it is written.
    pub key_pem: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("cert_pem", &self.cert_pem)
            .finish_non_exhaustive()
    }
}

/// A cluster's certificate authority.
#[derive(Debug)]
pub struct Ca {
    /// Its own certificate and key.
    pub issued: Issued,
    issuer: Issuer<'static, KeyPair>,
}

/// Makes a certificate authority for one cluster.
///
/// # Errors
/// [`PkiError::Crypto`].
pub fn make_ca() -> Result<Ca, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "Mainstay cluster CA");
    let cert_pem = params.self_signed(&key)?.pem();
    let issued = Issued {
        cert_pem,
        key_pem: key.serialize_pem(),
    };
    Ok(Ca {
        issued,
        issuer: Issuer::new(params, key),
    })
}

impl Ca {
    /// Makes a host's certificate: its subject alternative name is the host's id.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue(&self, host: &HostId) -> Result<Issued, PkiError> {
        let key = KeyPair::generate()?;
        let mut params =
            CertificateParams::new(vec![host.as_str().to_owned()]).map_err(|source| {
                PkiError::HostId {
                    host: host.clone(),
                    source,
                }
            })?;
        params
            .distinguished_name
            .push(DnType::CommonName, host.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let cert_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued {
            cert_pem,
            key_pem: key.serialize_pem(),
        })
    }
}
