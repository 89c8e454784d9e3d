//! Who is at the other end: what a client's certificate says.

use rustls::pki_types::CertificateDer;
use whetstone_model::wire::{ROLE_AGENT, ROLE_OPS};
use x509_parser::x509::X509Name;

/// What the holder of a certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Speaks for one blade.
    Agent,
    /// A person, or `whet` for one.
    Ops,
}

impl Role {
    /// The organisational unit in the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Agent => ROLE_AGENT,
            Role::Ops => ROLE_OPS,
        }
    }
}

/// The holder of a certificate that this site's CA signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub role: Role,
    /// A blade's serial, or a user.
    pub name: String,
    /// Of the certificate, hex.
    pub serial_number: String,
    /// When the certificate runs out.
    pub not_after_ms: i64,
}

/// A certificate without the names that ours have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("client certificate: {0}")]
pub struct NotOurs(String);

impl Peer {
    /// Reads a leaf certificate. That our CA signed it is for the TLS handshake to know.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Peer, NotOurs> {
        let (_, x509) =
            x509_parser::parse_x509_certificate(der).map_err(|e| NotOurs(format!("unreadable: {e}")))?;
        let subject = x509.subject();
        let role = match unit(subject).as_deref() {
            Some(ROLE_AGENT) => Role::Agent,
            Some(ROLE_OPS) => Role::Ops,
            other => return Err(NotOurs(format!("OU is {other:?}, neither {ROLE_AGENT} nor {ROLE_OPS}"))),
        };
        let name = only(subject.iter_common_name()).ok_or_else(|| NotOurs("not one CN".into()))?;
        Ok(Peer {
            role,
            name,
            serial_number: hex::encode(x509.raw_serial()),
            not_after_ms: x509.validity().not_after.timestamp().saturating_mul(1000),
        })
    }
}

fn unit(subject: &X509Name<'_>) -> Option<String> {
    only(subject.iter_organizational_unit())
}

/// Exactly one, so that nobody has to choose.
fn only<'a>(
    mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
) -> Option<String> {
    let first = values.next()?.as_str().ok()?.to_owned();
    values.next().is_none().then_some(first)
}
