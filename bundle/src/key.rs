//! The key that signs this machine's bundles, and the public keys that a reader trusts.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey};
use ed25519_dalek::{SigningKey, VerifyingKey};

use crate::Error;

/// Where the key lies if nobody says otherwise: `/var/lib/whetstone` for root, the user's state directory else.
pub fn default_path() -> PathBuf {
    let dir = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib/whetstone")
    } else {
        std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")))
            .unwrap_or_else(|| PathBuf::from("."))
            .join("whetstone")
    };
    dir.join("signing-key.pem")
}

/// Reads the PKCS#8 PEM key at `path`, or makes one there, readable by its owner alone.
pub fn load_or_create(path: &Path) -> Result<SigningKey, Error> {
    match fs::read_to_string(path) {
        Ok(pem) => SigningKey::from_pkcs8_pem(&pem)
            // The parser's own text could quote key material.
            .map_err(|_| Error::Malformed {
                path: path.to_owned(),
                what: "no ed25519 key in PKCS#8 PEM".into(),
            }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => create(path),
        Err(e) => Err(Error::io(path)(e)),
    }
}

fn create(path: &Path) -> Result<SigningKey, Error> {
    let mut secret = [0u8; 32];
    let source = Path::new("/dev/urandom");
    fs::File::open(source).and_then(|mut f| f.read_exact(&mut secret)).map_err(Error::io(source))?;
    let key = SigningKey::from_bytes(&secret);
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| Error::Malformed {
        path: path.to_owned(),
        what: "the new key has no PEM form".into(),
    })?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
    }
    // Under its name only when it is whole; of two first runs at once, one makes the key and the other takes it.
    let temporary = path.with_added_extension(format!("{}.partial", std::process::id()));
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&temporary, path)
    };
    let made = write();
    let _ = fs::remove_file(&temporary);
    match made {
        Ok(()) => Ok(key),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => load_or_create(path),
        Err(e) => Err(Error::io(path)(e)),
    }
}

/// A public key that a reader trusts: 64 hex digits, an SPKI PEM, or the PEM of a private key.
pub fn read_public(path: &Path) -> Result<VerifyingKey, Error> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    parse_public(text.trim())
        .ok_or_else(|| Error::Malformed { path: path.to_owned(), what: "no ed25519 key (hex or PEM)".into() })
}

fn parse_public(text: &str) -> Option<VerifyingKey> {
    if let Ok(key) = VerifyingKey::from_public_key_pem(text) {
        return Some(key);
    }
    if let Ok(key) = SigningKey::from_pkcs8_pem(text) {
        return Some(key.verifying_key());
    }
    let bytes: [u8; 32] = hex::decode(text).ok()?.try_into().ok()?;
    VerifyingKey::from_bytes(&bytes).ok()
}
