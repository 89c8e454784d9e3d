//! The certificate authority: made once, loaded and checked at each start, signs certificates.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rand::TryRng as _;
use rand::rngs::SysRng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use super::files::{create_new, publish};
use super::{PkiError, Role};

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
/// Ten years: a site outlives this or replaces its CA in between.
pub const CA_LIFETIME_MS: i64 = 3_650 * DAY_MS;
const DAY_MS: i64 = 86_400_000;
/// Certificates hold from this long before they are made: the clocks of blades that were just unpacked differ by hours.
const BACKDATE_MS: i64 = DAY_MS;
/// A request has about 600 bytes.
const MAX_CSR: usize = 16 << 10;
/// CAs in one file: the old one, the new one, and some patience.
const MAX_CAS: usize = 8;

/// The site's CA with its key.
pub struct SiteCa {
    issuer: Issuer<'static, KeyPair>,
    /// All that are trusted, the signing one first.
    certificates: Vec<CertificateDer<'static>>,
    pem: String,
    not_after_ms: i64,
    /// The soonest end of all that are trusted.
    first_end_ms: i64,
    /// End of the server certificate that was signed last; 0 = none was.
    server_end_ms: AtomicI64,
}

/// A certificate that was signed just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub certificate_pem: String,
    pub ca_pem: String,
    pub not_before_ms: i64,
    pub not_after_ms: i64,
    /// Hex, 32 digits.
    pub serial_number: String,
    /// SHA-256 of the public key (SubjectPublicKeyInfo), hex.
    pub key_fingerprint: String,
}

impl std::fmt::Debug for SiteCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiteCa").field("not_after_ms", &self.not_after_ms).finish_non_exhaustive()
    }
}

impl SiteCa {
    /// Loads the CA in `dir`; makes one if there is none and `create` says so.
    pub fn open(dir: &Path, create: bool, now_ms: i64) -> Result<SiteCa, PkiError> {
        let there = |name: &str| dir.join(name).symlink_metadata().is_ok();
        if create && !there(CERTIFICATE) && !there(KEY) {
            SiteCa::create(dir, now_ms)
        } else {
            SiteCa::load(dir, now_ms)
        }
    }

    /// Makes a CA in `dir`, which must not hold one. The key comes first and under its name only when it is whole, so that of
    /// two at once one makes it; a crash between the two files leaves a key without certificate, which `load` tells.
    pub fn create(dir: &Path, now_ms: i64) -> Result<SiteCa, PkiError> {
        std::fs::create_dir_all(dir).map_err(PkiError::io(dir))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let id = random_serial()?;
        // A name of its own: a replaced CA must not be mistaken for the one before.
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Whetstone site CA {}", hex::encode(&id[..4])));
        params.serial_number = Some(SerialNumber::from_slice(&id));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now_ms - BACKDATE_MS, now_ms + CA_LIFETIME_MS);
        let certificate = params.self_signed(&key)?;
        create_new(&dir.join(KEY), key.serialize_pem().as_bytes())?;
        publish(&dir.join(CERTIFICATE), certificate.pem().as_bytes(), 0o644)?;
        SiteCa::load(dir, now_ms)
    }

    /// Loads and checks: a CA certificate, in force, that fits its key.
    pub fn load(dir: &Path, now_ms: i64) -> Result<SiteCa, PkiError> {
        let (certificate_path, key_path) = (dir.join(CERTIFICATE), dir.join(KEY));
        let pem = std::fs::read_to_string(&certificate_path).map_err(PkiError::io(&certificate_path))?;
        let bad = |what: String| PkiError::malformed(&certificate_path, what);
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .take(MAX_CAS + 1)
            .collect::<Result<_, _>>()
            .map_err(|e| bad(format!("not PEM: {e}")))?;
        if certificates.len() > MAX_CAS {
            return Err(bad(format!("more than {MAX_CAS} certificates")));
        }
        let signing = certificates.first().ok_or_else(|| bad("holds no certificate".into()))?;
        for certificate in &certificates {
            check_ca(certificate, now_ms).map_err(bad)?;
        }
        let key_pem = std::fs::read_to_string(&key_path).map_err(PkiError::io(&key_path))?;
        // The parser's own text could quote key material.
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|_| PkiError::malformed(&key_path, "no private key in PKCS#8 PEM"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(signing).map_err(|e| bad(e.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::malformed(&key_path, format!("does not belong to {CERTIFICATE}")));
        }
        let not_after_ms = parsed.validity().not_after.timestamp().saturating_mul(1000);
        let issuer = Issuer::from_ca_cert_der(signing, key)?;
        let ends = certificates.iter().filter_map(|certificate| {
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
            Some(parsed.validity().not_after.timestamp().saturating_mul(1000))
        });
        let first_end_ms = ends.fold(not_after_ms, i64::min);
        Ok(SiteCa { issuer, pem, not_after_ms, certificates, first_end_ms, server_end_ms: AtomicI64::new(0) })
    }

    /// All trusted CAs, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// When the signing CA runs out.
    pub fn not_after_ms(&self) -> i64 {
        self.not_after_ms
    }

    /// When the first of the trusted CAs runs out: an operator that starts after that does not load the file.
    pub fn first_end_ms(&self) -> i64 {
        self.first_end_ms
    }

    /// When the server's own certificate runs out, if it has one.
    pub fn server_end_ms(&self) -> Option<i64> {
        Some(self.server_end_ms.load(Ordering::Relaxed)).filter(|end| *end != 0)
    }

    /// A certificate for the public key in a request (PKCS#10, PEM). Nothing else of the request is used: who it is for is
    /// `role` and `name`. It ends with the CA at the latest.
    pub fn issue(
        &self,
        role: Role,
        name: &str,
        csr_pem: &str,
        now_ms: i64,
        lifetime_ms: i64,
    ) -> Result<Issued, PkiError> {
        if csr_pem.len() > MAX_CSR {
            return Err(PkiError::BadRequest(format!("more than {MAX_CSR} bytes")));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
            .map_err(|e| PkiError::BadRequest(format!("not PEM: {e}")))?;
        // Its signature is checked: whoever asks has the key.
        let mut request = CertificateSigningRequestParams::from_der(&der)
            .map_err(|e| PkiError::BadRequest(e.to_string()))?;
        let spki = request.public_key.subject_public_key_info();
        let (params, serial_number) = self.client_params(role, name, now_ms, lifetime_ms)?;
        request.params = params;
        let certificate = request.signed_by(&self.issuer)?;
        Ok(self.issued(&certificate, &request.params, serial_number, &spki))
    }

    /// A new key and its certificate, both PEM: for people, who have no agent that makes one.
    pub fn issue_with_key(
        &self,
        role: Role,
        name: &str,
        now_ms: i64,
        lifetime_ms: i64,
    ) -> Result<(Issued, String), PkiError> {
        let key = KeyPair::generate()?;
        let (params, serial_number) = self.client_params(role, name, now_ms, lifetime_ms)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let issued = self.issued(&certificate, &params, serial_number, &key.subject_public_key_info());
        Ok((issued, key.serialize_pem()))
    }

    /// The certificate of a server with these names (DNS names or IP addresses) and its new key.
    pub(super) fn server(
        &self,
        names: &[String],
        now_ms: i64,
        lifetime_ms: i64,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "whetstone-operator");
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let end_ms = (now_ms + lifetime_ms).min(self.not_after_ms);
        set_validity(&mut params, now_ms - BACKDATE_MS, end_ms);
        let certificate = params.signed_by(&key, &self.issuer)?;
        self.server_end_ms.store(end_ms, Ordering::Relaxed);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((certificate.der().clone(), key.into()))
    }

    fn client_params(
        &self,
        role: Role,
        name: &str,
        now_ms: i64,
        lifetime_ms: i64,
    ) -> Result<(CertificateParams, Vec<u8>), PkiError> {
        let serial_number = random_serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.as_str());
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from_slice(&serial_number));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        // A lifetime below a second would end before it begins: validity counts in seconds.
        let not_after = (now_ms + lifetime_ms.max(1_000)).min(self.not_after_ms);
        set_validity(&mut params, now_ms - BACKDATE_MS, not_after);
        Ok((params, serial_number))
    }

    fn issued(
        &self,
        certificate: &rcgen::Certificate,
        params: &CertificateParams,
        serial_number: Vec<u8>,
        spki: &[u8],
    ) -> Issued {
        Issued {
            certificate_pem: certificate.pem(),
            ca_pem: self.pem.clone(),
            // The agent renews at two thirds of the way from now, not from the backdated start.
            not_before_ms: params.not_before.unix_timestamp() * 1000 + BACKDATE_MS,
            not_after_ms: params.not_after.unix_timestamp() * 1000,
            serial_number: hex::encode(serial_number),
            key_fingerprint: sha256_hex(spki),
        }
    }
}

/// Both ends in whole seconds, which is what a certificate can say.
fn set_validity(params: &mut CertificateParams, from_ms: i64, to_ms: i64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |ms: i64| epoch + Duration::from_secs(u64::try_from(ms / 1000).unwrap_or(0));
    (params.not_before, params.not_after) = (at(from_ms), at(to_ms));
}

/// 127 random bits after a set one: positive, and never shorter than it looks.
fn random_serial() -> Result<Vec<u8>, PkiError> {
    let mut bytes = [0u8; 16];
    random(&mut bytes)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(bytes.to_vec())
}

/// Fills `bytes` from the operating system's source.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), PkiError> {
    SysRng.try_fill_bytes(bytes).map_err(|e| PkiError::Random(e.to_string()))
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn check_ca(certificate: &CertificateDer<'_>, now_ms: i64) -> Result<(), String> {
    let (_, x509) = x509_parser::parse_x509_certificate(certificate).map_err(|e| e.to_string())?;
    let is_ca = x509.basic_constraints().ok().flatten().is_some_and(|b| b.value.ca);
    if !is_ca {
        return Err(format!("{} is no CA certificate", x509.subject()));
    }
    let validity = x509.validity();
    let now = now_ms / 1000;
    if now > validity.not_after.timestamp() {
        return Err(format!("{} ran out at {}", x509.subject(), validity.not_after));
    }
    if now < validity.not_before.timestamp() {
        return Err(format!(
            "{} holds from {} only: is the clock right?",
            x509.subject(),
            validity.not_before
        ));
    }
    Ok(())
}
