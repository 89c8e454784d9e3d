//! The site's own certificates: a CA in a directory, the server's certificate, and those of agents and people.
//!
//! ```text
//! ca.crt               the CA; the first is the one that signs, more may follow while it is being replaced
//! ca.key               its key, PKCS#8 PEM, readable by its owner alone
//! report-signing.pem   ed25519, signs acceptance reports (made by whoever signs first)
//! ```

mod ca;
mod files;
mod peer;
mod server;

use std::path::{Path, PathBuf};

pub use ca::{CA_LIFETIME_MS, Issued, SiteCa};
pub use files::{ops_cert, report_key};
pub use peer::{Peer, Role};
pub use server::server_config;

pub(crate) use ca::{random, sha256_hex};

/// Something about keys or certificates does not work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {what}", path = .path.display())]
    Malformed { path: PathBuf, what: String },
    /// The certificate request of somebody else: their fault.
    #[error("certificate request: {0}")]
    BadRequest(String),
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error("no random numbers: {0}")]
    Random(String),
    #[error(transparent)]
    Key(#[from] whetstone_bundle::Error),
}

impl PkiError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PkiError + '_ {
        |source| PkiError::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> PkiError {
        PkiError::Malformed { path: path.to_owned(), what: what.into() }
    }
}

#[cfg(test)]
mod tests;
