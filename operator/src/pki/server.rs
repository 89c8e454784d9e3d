//! TLS of the server: a certificate that renews itself, and clients that are known or nobody.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};

use super::{PkiError, SiteCa};
use crate::clock::now_ms;

/// Of the server's own certificate; it is made anew at two thirds of it, without a restart.
const SERVER_LIFETIME_MS: i64 = 90 * 86_400_000;

/// The server's side of TLS 1.3 with the ring provider. Clients may come without a certificate (to join); one that they show has to
/// be signed by the site's CA and be in force, or have run out less than `grace_ms` ago: what it is then still good for (renewal)
/// is decided for each request.
pub fn server_config(
    ca: Arc<SiteCa>,
    names: Vec<String>,
    grace_ms: i64,
) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in ca.certificates() {
        roots.add(certificate.clone())?;
    }
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let verifier = Arc::new(Lenient { inner, grace_ms });
    let certificate = OwnCertificate::new(ca, names, provider.clone())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // An agent that comes back needs no signatures then; its certificate goes with the ticket.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// The server's certificate and when it is to be made anew.
#[derive(Debug)]
struct OwnCertificate {
    ca: Arc<SiteCa>,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
    current: RwLock<(Arc<CertifiedKey>, i64)>,
}

impl OwnCertificate {
    fn new(ca: Arc<SiteCa>, names: Vec<String>, provider: Arc<CryptoProvider>) -> Result<Self, PkiError> {
        let current = RwLock::new(make(&ca, &names, &provider, now_ms())?);
        Ok(OwnCertificate { ca, names, provider, current })
    }
}

fn make(
    ca: &SiteCa,
    names: &[String],
    provider: &CryptoProvider,
    now_ms: i64,
) -> Result<(Arc<CertifiedKey>, i64), PkiError> {
    let (certificate, key) = ca.server(names, now_ms, SERVER_LIFETIME_MS)?;
    let certified = CertifiedKey::from_der(vec![certificate], key, provider)?;
    Ok((Arc::new(certified), now_ms + SERVER_LIFETIME_MS / 3 * 2))
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now = now_ms();
        let (current, renew_ms) = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        if now < renew_ms {
            return Some(current);
        }
        match make(&self.ca, &self.names, &self.provider, now) {
            Ok(made) => {
                let key = made.0.clone();
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = made;
                Some(key)
            }
            Err(error) => {
                tracing::error!(%error, "the server's certificate could not be renewed");
                Some(current)
            }
        }
    }
}

/// As strict as the verifier inside, but for certificates that ran out a while ago: after a day without the operator every
/// agent of the site would need a new token otherwise.
#[derive(Debug)]
struct Lenient {
    inner: Arc<dyn ClientCertVerifier>,
    grace_ms: i64,
}

impl ClientCertVerifier for Lenient {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self.inner.verify_client_cert(end_entity, intermediates, now);
        let expired = matches!(
            verdict,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        );
        let Some(then) = end_of(end_entity).filter(|_| expired) else { return verdict };
        let age_ms = now.as_secs().saturating_sub(then.as_secs()).saturating_mul(1000);
        if i64::try_from(age_ms).is_ok_and(|age| age <= self.grace_ms) {
            self.inner.verify_client_cert(end_entity, intermediates, then)
        } else {
            verdict
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The last second in which a certificate is in force.
fn end_of(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let (_, x509) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(x509.validity().not_after.timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
}
