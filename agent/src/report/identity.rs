//! Who this agent is: its key, its certificate, and when that has to be renewed.

use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use whetstone_model::ids::{BladeName, Serial};
use whetstone_model::wire::{BladeFacts, JoinAnswer, JoinRequest, RenewRequest};

use super::client::{CallError, Client, certificates};
use super::state::{self, StateDir, StateError};

pub(super) const IDENTITY: &str = "identity.json";
const NEXT_KEY: &str = "next-key.pem";
/// Tokens have 55 characters; a file of more than this is something else.
const MAX_TOKEN: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("key or certificate request: {0}")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Call(#[from] CallError),
    /// What the operator sent does not belong to what was asked for.
    #[error("the operator's answer does not fit: {0}")]
    Misfit(String),
}

impl IdentityError {
    /// For metrics.
    pub fn category(&self) -> &'static str {
        match self {
            IdentityError::State(e) => e.category(),
            IdentityError::Key(_) => "key",
            IdentityError::Call(e) => e.category(),
            IdentityError::Misfit(_) => "misfit",
        }
    }

    /// The operator's code, if it refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            IdentityError::Call(e) => e.code(),
            _ => None,
        }
    }

    /// How long the operator asked to be left alone.
    pub fn retry_after(&self) -> Duration {
        match self {
            IdentityError::Call(e) => e.retry_after().unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }
}

/// A one-time token as it lies in its file.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    /// SHA-256, hex: what may be kept of it.
    pub sha256: String,
}

impl Token {
    /// `None` if the file is not there or empty.
    pub fn read(path: &Path) -> Result<Option<Token>, StateError> {
        let Some(bytes) = state::read(path)? else { return Ok(None) };
        let malformed = |what: String| StateError::Malformed { path: path.to_owned(), what };
        let text = std::str::from_utf8(&bytes).map_err(|_| malformed("no token: not text".into()))?.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > MAX_TOKEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(malformed("no token: one word of at most 512 printable characters".into()));
        }
        Ok(Some(Token { text: text.to_owned(), sha256: hex::encode(Sha256::digest(text.as_bytes())) }))
    }
}

/// What the operator gave, with the key that it belongs to; one file, so that they never part.
#[derive(Clone, Serialize, Deserialize)]
pub struct Identity {
    pub serial: Serial,
    /// The firmware said it, when this was made or since: it has to say it always.
    #[serde(default)]
    pub of_firmware: bool,
    pub blade: BladeName,
    key_pem: String,
    certificate_pem: String,
    ca_pem: String,
    /// By the operator's clock.
    not_before_ms: i64,
    pub not_after_ms: i64,
    /// When it came, by this blade's clock.
    received_ms: i64,
    /// SHA-256 of the token that was used, for one that cannot be deleted.
    pub used_token: Option<String>,
}

/// What is to be done about a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Good,
    /// Two thirds of the way are gone.
    Renew,
    /// Over: a renewal may still be granted, else only a token helps.
    Expired,
}

impl Identity {
    pub fn load(state: &StateDir) -> Result<Option<Identity>, StateError> {
        state.load(IDENTITY)
    }

    /// Notes that the firmware says this serial too.
    pub fn confirm(&mut self, state: &StateDir) -> Result<(), StateError> {
        self.of_firmware = true;
        state.save(IDENTITY, self, 0o600)
    }

    /// A client that shows this certificate and trusts the site's CA as well as `ca`, the one of the command line.
    pub fn client(&self, base: &super::OperatorUrl, ca: &str) -> Result<Client, CallError> {
        Client::new(base, &[ca, &self.ca_pem], Some((&self.certificate_pem, &self.key_pem)))
    }

    /// `now_ms` by this blade's clock, `ahead_ms` how much the operator's is ahead of it, `early` from 0 to 1 how
    /// much of a twentieth of the lifetime to be early by: thousands of blades that joined at once do not renew at once.
    pub fn life(&self, now_ms: i64, ahead_ms: i64, early: f64) -> Life {
        let now = now_ms.saturating_add(ahead_ms);
        if now >= self.not_after_ms {
            return Life::Expired;
        }
        // A certificate may be made valid from before it was made, for clocks that lag.
        let from = self.not_before_ms.max(self.received_ms.saturating_add(ahead_ms)).min(self.not_after_ms);
        let span = (self.not_after_ms - from) as f64;
        let due = from as f64 + span * (2.0 / 3.0 - early.clamp(0.0, 1.0) / 20.0);
        if now as f64 >= due { Life::Renew } else { Life::Good }
    }
}

/// Asks for a certificate with a token. Asking again after a lost answer is the same request with the same key.
pub fn join(
    state: &StateDir,
    client: &Client,
    serial: &Serial,
    of_firmware: bool,
    token: &Token,
    report_key: String,
    facts: BladeFacts,
) -> Result<Identity, IdentityError> {
    let key = next_key(state)?;
    let request = JoinRequest {
        serial: serial.clone(),
        token: token.text.clone(),
        csr_pem: csr(&key, serial)?,
        instance: state.instance().to_owned(),
        report_key,
        facts,
    };
    let answer: JoinAnswer = client.post("/v1/join", &request)?;
    keep(state, (serial, of_firmware), &key, answer, Some(token.sha256.clone()))
}

/// Asks for the next certificate with this one, for a new key.
pub fn renew(state: &StateDir, client: &Client, old: &Identity) -> Result<Identity, IdentityError> {
    let key = next_key(state)?;
    let request = RenewRequest { csr_pem: csr(&key, &old.serial)?, instance: state.instance().to_owned() };
    let answer: JoinAnswer = client.post("/v1/renew", &request)?;
    keep(state, (&old.serial, old.of_firmware), &key, answer, old.used_token.clone())
}

/// The key of the exchange that is under way: on disk before it is used, so that a lost answer can be asked for again.
fn next_key(state: &StateDir) -> Result<KeyPair, IdentityError> {
    let path = state.path(NEXT_KEY);
    if let Some(pem) = state::read(&path)?
        && let Ok(key) = KeyPair::from_pem(&String::from_utf8_lossy(&pem))
    {
        return Ok(key);
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    state::write(&path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

fn csr(key: &KeyPair, serial: &Serial) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, serial.as_str());
    params.serialize_request(key)?.pem()
}

fn keep(
    state: &StateDir,
    (serial, of_firmware): (&Serial, bool),
    key: &KeyPair,
    answer: JoinAnswer,
    used_token: Option<String>,
) -> Result<Identity, IdentityError> {
    check(key, &answer)?;
    let identity = Identity {
        serial: serial.clone(),
        of_firmware,
        blade: answer.blade,
        key_pem: key.serialize_pem(),
        certificate_pem: answer.certificate_pem,
        ca_pem: answer.ca_pem,
        not_before_ms: answer.not_before_ms,
        not_after_ms: answer.not_after_ms,
        received_ms: crate::probe::now_ms(),
        used_token,
    };
    state.save(IDENTITY, &identity, 0o600)?;
    // The exchange is over: the next one has a key of its own.
    let _ = std::fs::remove_file(state.path(NEXT_KEY));
    Ok(identity)
}

/// The certificate must be for our key: with another one every later call would fail, and the token be gone.
fn check(key: &KeyPair, answer: &JoinAnswer) -> Result<(), IdentityError> {
    let misfit = |what: &str| IdentityError::Misfit(what.to_owned());
    certificates(&answer.ca_pem).map_err(|e| IdentityError::Misfit(format!("CA: {e}")))?;
    let chain = certificates(&answer.certificate_pem)
        .map_err(|e| IdentityError::Misfit(format!("certificate: {e}")))?;
    let (_, leaf) = x509_parser::parse_x509_certificate(chain[0].der())
        .map_err(|e| IdentityError::Misfit(format!("certificate: {e}")))?;
    if leaf.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(misfit("the certificate is for another key"));
    }
    if answer.not_after_ms <= answer.not_before_ms {
        return Err(misfit("the certificate ends before it begins"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(from: i64, to: i64, received: i64) -> Identity {
        Identity {
            serial: Serial::new("S1").unwrap(),
            of_firmware: false,
            blade: BladeName::new("b-1").unwrap(),
            key_pem: String::new(),
            certificate_pem: String::new(),
            ca_pem: String::new(),
            not_before_ms: from,
            not_after_ms: to,
            received_ms: received,
            used_token: None,
        }
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_what_was_left_when_it_came() {
        let hour = 3_600_000;
        let day = identity(-hour, 24 * hour, 0);
        assert_eq!(day.life(15 * hour, 0, 0.0), Life::Good);
        assert_eq!(day.life(16 * hour + 1, 0, 0.0), Life::Renew);
        // As early as the jitter allows: a twentieth of the day.
        assert_eq!(day.life(15 * hour, 0, 1.0), Life::Renew);
        assert_eq!(day.life(14 * hour, 0, 1.0), Life::Good);
        assert_eq!(day.life(24 * hour, 0, 0.0), Life::Expired);
        // One that is valid from long ago for a short time to come is not renewed at once.
        let short = identity(-hour, 60_000, 0);
        assert_eq!(short.life(1_000, 0, 0.0), Life::Good);
        assert_eq!(short.life(41_000, 0, 0.0), Life::Renew);
    }

    #[test]
    fn it_is_the_operators_clock_that_counts() {
        let hour = 3_600_000;
        // This blade's clock is three hours behind.
        let day = identity(3 * hour, 27 * hour, 0);
        assert_eq!(day.life(15 * hour, 3 * hour, 0.0), Life::Good);
        assert_eq!(day.life(17 * hour, 3 * hour, 0.0), Life::Renew);
        assert_eq!(day.life(24 * hour, 3 * hour, 0.0), Life::Expired);
    }

    #[test]
    fn a_token_file_holds_one_word_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        assert!(Token::read(&path).unwrap().is_none());
        std::fs::write(&path, " \n").unwrap();
        assert!(Token::read(&path).unwrap().is_none());
        std::fs::write(&path, "wt-abc\n").unwrap();
        assert_eq!(Token::read(&path).unwrap().unwrap().text, "wt-abc");
        for bad in [&b"two words"[..], b"\xff\xfe", &[b'a'; 600]] {
            std::fs::write(&path, bad).unwrap();
            assert!(Token::read(&path).is_err());
        }
    }
}
